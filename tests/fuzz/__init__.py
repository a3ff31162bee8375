"""Fuzzing: bytes that nobody would send, for everything here that takes bytes apart, and for the ports it listens on.

target.py       what a target is, and when an input is a finding; begin here
stored.py       targets: what lies in the tiers
files.py        targets: pictures and recordings
requests.py     targets: messages of callers, and what they call themselves
repair.py       makes right the checksums of a changed file, so that what is behind them is reached
guided.py       one process that tries inputs on one target, guided by coverage
campaign.py     runs such processes, follows them, and keeps what they find
__main__.py     `python -m tests.fuzz`
frames.py       malformed HTTP/2, gRPC and grpc-web, for live ports
"""
