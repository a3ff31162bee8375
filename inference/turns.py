"""Turns: who may use the device. One at a time, in the order in which they came, and a bounded number waiting.

Those for whom nobody waits (idle ones) stand behind all others, whenever these come, and have a bound of their own:
they can neither delay nor crowd out what somebody waits for. Only one that has the device already keeps it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cache.news import News
from inference.errors import QueueFull


@dataclass(eq=False)
class Ticket:
    """Somebody's place in the line, once they stand in it."""

    idle: bool = False


class Turns:
    """`limit` is how many of either kind may wait. `changed` hears of every change of `waiting` and `busy`."""

    def __init__(self, limit: int, changed: Callable[[], None] = lambda: None) -> None:
        self._limit = limit
        self._changed = changed
        self._line: list[Ticket] = []  # idle ones last
        self._news = News()
        self.busy = False
        self.typical = 1.0  # seconds the last turn took: a guess at when there is room again

    @property
    def waiting(self) -> int:
        return len(self._line)

    @asynccontextmanager
    async def turn(self, moved: Callable[[int], None], ticket: Ticket | None = None) -> AsyncIterator[None]:
        """Wait for the device, and have it for as long as the block lasts.

        `moved` hears how many are before this one, at first and whenever that changes; never, if nobody is. Raises
        QueueFull.
        """
        await self._wait(moved, ticket or Ticket())
        started = asyncio.get_running_loop().time()
        self._become(busy=True)
        try:
            yield
        finally:
            self.typical = asyncio.get_running_loop().time() - started
            self._become(busy=False)

    def lift(self, ticket: Ticket) -> None:
        """Somebody waits for this one after all: it stands where it would if it had come now."""
        if not ticket.idle:
            return
        ticket.idle = False
        if ticket in self._line:
            self._line.remove(ticket)
            self._line_up(ticket)
            self._announce()

    async def _wait(self, moved: Callable[[int], None], ticket: Ticket) -> None:
        if not self.busy and not self._line:
            return
        if sum(other.idle == ticket.idle for other in self._line) >= self._limit:
            raise QueueFull(retry_after=max(1.0, self.typical))
        self._line_up(ticket)
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

    def _line_up(self, ticket: Ticket) -> None:
        behind = len(self._line) if ticket.idle else sum(not other.idle for other in self._line)
        self._line.insert(behind, ticket)
        self._news.announce()  # those behind it have moved

    def _become(self, *, busy: bool) -> None:
        self.busy = busy
        self._announce()

    def _announce(self) -> None:
        self._news.announce()
        self._changed()
