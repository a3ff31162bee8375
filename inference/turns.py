"""Turns: who may use the device. One at a time, a bounded number waiting, and everybody in turn.

A tenant's runs come in the order in which they came. Among tenants the one goes first who has had least of the device
since they wait for it (start-time fair queueing): a run starts, by the clock of what was given away, where its tenant's
run before it ended, or now, if that is later. So nobody saves up turns by staying away, a long run counts for more than
a short one, and whoever fills the line delays themselves. No tenant takes more than its share of the places
(`cache/fair.py`).

Those for whom nobody waits (idle ones) stand behind all others, whenever these come, and have a bound of their own:
they can neither delay nor crowd out what somebody waits for. Only one that has the device already keeps it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cache.fair import may_take
from cache.news import News
from inference.errors import QueueFull


@dataclass(eq=False)
class Ticket:
    """Somebody's place in the line, once they stand in it."""

    idle: bool = False
    whose: str = ""  # the tenant's namespace
    seconds: float | None = None  # that the turn should last; None: nobody knows
    number: int = 0  # who came first has the least


class Turns:
    """`limit` is how many of either kind may wait, `share` what one tenant may have of that. `changed` hears of every
    change of `waiting` and `busy`.
    """

    def __init__(
        self,
        limit: int,
        changed: Callable[[], None] = lambda: None,
        *,
        share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._share = share
        self._changed = changed
        self._now = clock
        self._line: list[Ticket] = []  # as they will be served, if nobody else comes
        self._news = News()
        self._arrivals = 0
        self._running: Ticket | None = None
        self._since = 0.0
        self._measured: float | None = None  # seconds the last turn took
        self._clock = 0.0  # of what was given away: where the last turn started
        self._ends: dict[
            str, float
        ] = {}  # on that clock, by tenant, of its last turn; those that are past are forgotten

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def busy(self) -> bool:
        return self._running is not None

    @property
    def typical(self) -> float:
        """Seconds of a turn: a guess at when there is room again."""
        return 1.0 if self._measured is None else self._measured

    @property
    def seconds(self) -> float:
        """That the line should take, from the start of the turn that is under way to the last one's end."""
        running = [self._running] if self._running is not None else []
        return self._sum([*running, *self._line])

    def wait_of(self, ticket: Ticket) -> float:
        """Seconds that somebody with this ticket should wait, if they came now. Nothing known counts as nothing."""
        ticket.number = self._arrivals + 1
        line = self._in_order([*self._line, ticket])
        wait = self._sum(line[: line.index(ticket)])
        if self._running is not None:
            wait += max(0.0, self._sum([self._running]) - (self._now() - self._since))
        return wait

    @asynccontextmanager
    async def turn(self, moved: Callable[[int], None], ticket: Ticket | None = None) -> AsyncIterator[None]:
        """Wait for the device, and have it for as long as the block lasts.

        `moved` hears how many are before this one, at first and whenever that changes; never, if nobody is. Raises
        QueueFull.
        """
        ticket = ticket or Ticket()
        await self._wait(moved, ticket)
        self._begin(ticket)
        try:
            yield
        finally:
            self._end(ticket)

    def lift(self, ticket: Ticket) -> None:
        """Somebody waits for this one after all: it stands where it would if it had come now."""
        if ticket.idle:
            self._move(ticket, idle=False)

    def sink(self, ticket: Ticket) -> bool:
        """Nobody waits for this one any more. False if as many such ones wait as may, so that it cannot."""
        if ticket.idle or ticket not in self._line:
            ticket.idle = True
            return True
        self._move(ticket, idle=True)
        return sum(other.idle for other in self._line) <= self._limit

    def _move(self, ticket: Ticket, *, idle: bool) -> None:
        ticket.idle = idle
        if ticket in self._line:
            self._line.remove(ticket)
            self._line_up(ticket)
            self._announce()

    async def _wait(self, moved: Callable[[int], None], ticket: Ticket) -> None:
        if not self.busy and not self._line:
            return
        self._check_room(ticket)
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
            self._line = self._in_order(self._line)
            self._announce()

    def _check_room(self, ticket: Ticket) -> None:
        alike = [other.whose for other in self._line if other.idle == ticket.idle]
        own = alike.count(ticket.whose)
        if not may_take(own, len(alike) - own, places=self._limit, share=self._share):
            full = len(alike) >= self._limit
            raise QueueFull(max(1.0, self.typical), "QUEUE_FULL" if full else "TENANT_SHARE")

    def _line_up(self, ticket: Ticket) -> None:
        self._arrivals += 1
        ticket.number = self._arrivals
        self._line = self._in_order([*self._line, ticket])
        self._news.announce()  # those behind it have moved

    def _in_order(self, tickets: Iterable[Ticket]) -> list[Ticket]:
        """As they are served: by where each starts on the clock, idle ones last."""
        ends = dict(self._ends)
        starts: dict[Ticket, float] = {}
        for ticket in sorted(tickets, key=lambda each: (each.idle, each.number)):
            starts[ticket] = max(self._clock, ends.get(ticket.whose, 0.0))
            ends[ticket.whose] = starts[ticket] + self._guess(ticket)
        return sorted(starts, key=lambda each: (each.idle, starts[each], each.number))

    def _begin(self, ticket: Ticket) -> None:
        self._clock = max(self._clock, self._ends.get(ticket.whose, 0.0))
        self._ends[ticket.whose] = self._clock + self._guess(ticket)
        self._ends = {whose: end for whose, end in self._ends.items() if end > self._clock}
        self._running, self._since = ticket, self._now()
        self._line = self._in_order(self._line)
        self._announce()

    def _end(self, ticket: Ticket) -> None:
        took = self._now() - self._since
        if ticket.whose in self._ends:  # what it took counts, not what it should have taken
            self._ends[ticket.whose] += took - self._guess(ticket)
        self._measured, self._running = took, None
        if not self._line:
            self._clock, self._ends = 0.0, {}
        self._line = self._in_order(self._line)
        self._announce()

    def _guess(self, ticket: Ticket) -> float:
        return self.typical if ticket.seconds is None else ticket.seconds

    def _sum(self, tickets: Iterable[Ticket]) -> float:
        unknown = self._measured or 0.0
        return sum(unknown if each.seconds is None else each.seconds for each in tickets)

    def _announce(self) -> None:
        self._news.announce()
        self._changed()
