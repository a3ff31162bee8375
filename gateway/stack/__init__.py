"""The local stack: the real servers of one machine, started and stopped as child processes.

A `Part` is one server process as plain data; a `Stack` starts parts in order, waits until each is ready, remembers
them in `<data>/stack.json` and stops them again, from this process or from a later one. Nothing here is part of a
request's path and nothing here is a fake: tests, the demo and `reprise up` all run the same real servers.

Open `local.py` first: it composes the whole stack. Then `stack.py` (the life of a stack), `parts.py` (the life of one
process), `redis.py` and `objects.py` (the two storage servers), `envoy.py` (the edge). May import the standard library,
psutil, grpc and yaml.
"""

from gateway.stack.objects import Bucket
from gateway.stack.parts import Part, PartFailed, Running, StackError
from gateway.stack.stack import AlreadyRunning, Stack, UnknownPart

__all__ = ["AlreadyRunning", "Bucket", "Part", "PartFailed", "Running", "Stack", "StackError", "UnknownPart"]
