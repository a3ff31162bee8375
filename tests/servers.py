"""Real servers for tests: started on free ports in folders of their own, and gone afterwards whatever happens.

A process cannot clean up after its own violent death, so every stack is started on a leash: a watcher process that
takes the stack down when the pipe between them breaks.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.stack import Bucket, Part, Stack, objects, redis
from gateway.stack.ports import free_port

_WATCH = """
import sys
if not sys.stdin.read():
    from pathlib import Path
    from gateway.stack import Stack
    Stack(Path(sys.argv[1])).down()
"""


@dataclass(frozen=True)
class S3(Bucket):
    """A bucket and the prefix in it that belongs to one test."""

    prefix: str = ""


@contextmanager
def leashed(data: Path) -> Iterator[Stack]:
    """A stack that is taken down at the end, or by the watcher when this process dies before."""
    watcher = subprocess.Popen(
        [sys.executable, "-c", _WATCH, str(data)], stdin=subprocess.PIPE, start_new_session=True, cwd=_root()
    )
    stack = Stack(data)
    try:
        yield stack
    finally:
        try:
            stack.down()
        finally:
            watcher.communicate(b"done")


@contextmanager
def serving(data: Path, *parts: Part) -> Iterator[Stack]:
    """These parts, up and ready."""
    with leashed(data) as stack:
        stack.up(parts)
        yield stack


def redis_part(data: Path, *, memory: str = "256mb") -> Part:
    return redis.redis(free_port(), data / "redis", data / "logs" / "redis.log", memory=memory)


def objects_part(data: Path) -> Part:
    part = objects.objects(free_port(), data / "objects", data / "logs" / "objects.log")
    return replace(part, grace=0.0)  # nothing is kept


def redis_url(stack: Stack) -> str:
    return f"redis://{stack.part('redis').part.address}/0"


def bucket(stack: Stack) -> Bucket:
    return objects.bucket_of(stack.part("objects").part)


def named_endpoint() -> Bucket | None:
    """The S3 server that the environment names for this run, if it does."""
    endpoint = os.environ.get("REPRISE_TEST_S3_ENDPOINT")
    if not endpoint:
        return None
    return Bucket(
        endpoint,
        os.environ["REPRISE_TEST_S3_KEY"],
        os.environ["REPRISE_TEST_S3_SECRET"],
        os.environ.get("REPRISE_TEST_S3_BUCKET", "reprise"),
        os.environ.get("REPRISE_TEST_S3_REGION", "us-east-1"),
    )


def _root() -> Path:
    return Path(__file__).resolve().parent.parent
