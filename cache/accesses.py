"""Accesses: what was asked of a cache, written down so that other sizes and policies can be tried on it.

A line has a time, a key, a size and a cost, and nothing else: no prompt, no name, no media. The key is an address,
hashed once more with the deployment's secret, so that a line does not say where in a tier to find what it is of.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext, suppress
from logging.handlers import QueueListener
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, TypeAlias

import structlog

from cache.clock import steady
from cache.encoding import keyed_hash_of
from cache.keys import Address
from cache.outlet import LineFile
from cache.record import Record

Subject: TypeAlias = Literal["result", "stage"]  # what a gateway's memory and a worker's pool are asked for

_FILE_BYTES = 32 * 1024 * 1024  # some 300,000 lines; then one older file is kept
_WAITING = 10_000  # lines that may wait for the disk; more are dropped
_KEY = 32  # hexadecimal digits: enough for accesses not to meet
_log = structlog.get_logger(__name__)


class Access(NamedTuple):
    """One look for one entry."""

    at: float  # seconds
    key: str
    size: int  # bytes
    cost: float  # device seconds to have it again from nothing


class AccessLog:
    """Notes accesses in a file, from a thread of its own. Use as an async context manager."""

    def __init__(self, path: Path, subject: Subject, secret: bytes, *, clock: Callable[[], float] = steady) -> None:
        self.dropped = 0
        self._path = path
        self._subject = subject
        self._secret = secret
        self._clock = clock
        self._lines: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        self._closing = ExitStack()

    async def __aenter__(self) -> AccessLog:
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._closing.close)
        if self.dropped:
            _log.warning("accesses dropped, the disk was too slow", count=self.dropped)

    def _open(self) -> None:
        handler = LineFile(self._path, most=_FILE_BYTES, of="accesses")
        self._closing.callback(handler.close)
        writer = QueueListener(self._lines, handler)
        writer.start()
        self._closing.callback(writer.stop)

    def note(self, address: Address, record: Record) -> None:
        """Somebody looked for this entry, whether or not it was there. Never waits for the disk: what has no room is
        dropped.
        """
        if self._lines.qsize() >= _WAITING:
            self.dropped += 1
            return
        line = json.dumps(
            {
                "at": round(self._clock(), 3),
                "of": self._subject,
                "key": keyed_hash_of(self._secret, "access", str(address))[:_KEY],
                "size": record.output.digest.size,
                "cost": round(record.total_device_seconds, 6),
            }
        )
        self._lines.put(logging.LogRecord("accesses", logging.INFO, "", 0, line, None, None))


def access_log(
    folder: str, process: str, subject: Subject, secret: bytes
) -> AbstractAsyncContextManager[AccessLog | None]:
    """The log of a process, or none where there is no folder for it."""
    if not folder:
        return nullcontext()
    return AccessLog(Path(folder) / f"{subject}s-{process}.jsonl", subject, secret)


def read_accesses(paths: Iterable[Path]) -> dict[Subject, list[Access]]:
    """What these files say, in order of time. Lines that say nothing, such as one being written, are passed over.

    Raises OSError.
    """
    found: dict[Subject, list[Access]] = {"result": [], "stage": []}
    for path in paths:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for subject, access in _parsed(lines):
                found[subject].append(access)
    for accesses in found.values():
        accesses.sort(key=lambda access: access.at)
    return found


def _parsed(lines: Iterable[str]) -> Iterator[tuple[Subject, Access]]:
    for line in lines:
        with suppress(ValueError, TypeError, KeyError, OverflowError):
            fields = json.loads(line)
            access = Access(float(fields["at"]), str(fields["key"]), int(fields["size"]), float(fields["cost"]))
            if fields["of"] in ("result", "stage") and isfinite(access.at) and isfinite(access.cost):
                if access.size >= 0 and access.cost >= 0:
                    yield fields["of"], access
