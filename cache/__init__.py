"""The storage room: bytes, digests and tiers. Knows no torch, no grpc, and nothing of the other rooms.

Start with `keys.py` (how an output gets its name) and `tier.py` (what a tier promises), then `hierarchy.py` (the tiers
together). `build.py` puts them together as a process uses them. `settings.py`, `telemetry.py` and `process.py` are what
both kinds of process share beyond storage; they live here because this is the only room both may enter.
"""
