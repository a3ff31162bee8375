"""Turns: who may use the device. One at a time, in the order in which they came, and a bounded number waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from cache.news import News
from inference.errors import QueueFull


class Turns:
    """`limit` is how many may wait. `changed` hears of every change of `waiting` and `busy`."""

    def __init__(self, limit: int, changed: Callable[[], None] = lambda: None) -> None:
        self._limit = limit
        self._changed = changed
        self._line: list[object] = []
        self._news = News()
        self.busy = False
        self.typical = 1.0  # seconds the last turn took: a guess at when there is room again

    @property
    def waiting(self) -> int:
        return len(self._line)

    @asynccontextmanager
    async def turn(self, moved: Callable[[int], None]) -> AsyncIterator[None]:
        """Wait for the device, and have it for as long as the block lasts.

        `moved` hears how many are before this one, at first and whenever that changes; never, if nobody is. Raises
        QueueFull.
        """
        await self._wait(moved)
        started = asyncio.get_running_loop().time()
        self._become(busy=True)
        try:
            yield
        finally:
            self.typical = asyncio.get_running_loop().time() - started
            self._become(busy=False)

    async def _wait(self, moved: Callable[[int], None]) -> None:
        if not self.busy and not self._line:
            return
        if len(self._line) >= self._limit:
            raise QueueFull(retry_after=max(1.0, self.typical))
        ticket = object()
        self._line.append(ticket)
        told: int | None = None
        try:
            self._changed()
            while self.busy or self._line[0] is not ticket:
                if (position := self._line.index(ticket)) != told:
                    told = position
                    moved(position)
                await self._news.wait()
        finally:
            self._line.remove(ticket)
            self._announce()

    def _become(self, *, busy: bool) -> None:
        self.busy = busy
        self._announce()

    def _announce(self) -> None:
        self._news.announce()
        self._changed()
