"""The front room: typed RPCs in; plan, look up, join or lead a flight, forward; events out. Knows no torch.

Start with `resolve.py`, which is the path of one request. `plan.py` makes requests canonical, `forward.py` talks to
workers, `generation.py` is a caller's view of work that others may share, `wire.py` is what goes out. `serve.py` puts
a process together. The command line is in `cli/`, the local servers it starts in `stack/`.
"""
