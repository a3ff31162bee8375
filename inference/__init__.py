"""The inference room: stages, devices and models. The only room that imports torch, diffusers and transformers.

A worker is one process of `python -m inference`. Start with `engine.py` (who follows which run) and `job.py` (the work
of one run, stage by stage); `plan.py` says what a request may be answered with and `meaning.py` what it means,
`worker.py` puts the process together.
`models/` holds the model families; `models/base.py` is what one of them owes. May import `cache` and `reprise.v1`.
"""
