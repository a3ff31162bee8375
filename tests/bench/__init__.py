"""What a hit costs, and a miss, and a crowd: `python -m tests.bench`.

Everything is real and in processes of its own: gateways, Redis, an S3 server, and a worker that speaks the real
protocol and whose one step lasts as long as it is told. Nothing in here judges a run by its times; pytest runs it
once, tiny, so that it keeps working. Open `__main__.py` first, then `rig.py` (what is up), `subjects.py` (what is
measured) and `aims.py` (what it should come to).
"""
