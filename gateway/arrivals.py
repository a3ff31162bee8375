"""Arrivals: how many bytes of results a gateway holds because they are not stored yet, all together.

The worker that made a result stores it, and the gateway keeps it until that is done, so that it is not lost if the
worker goes. Where the object store is slow, workers are whole queues ahead of it. What there is no room for stays in
the worker's stream, and its callers wait: as they do where a worker's own queue of writes is full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Gauge

from cache.news import News


class Arrivals:
    """Belongs to one event loop. Of all but one result it holds `max_bytes` at most: how large a result is nobody knows
    before its end, so where the room is full of halves, the first one goes on.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.whole = 0  # results that are here to their last byte
        self.coming: list[Arrival] = []  # those of which some bytes are here or wait for room, the first one first
        self.waiting = 0  # of these, those that have no room
        self.news = News()

    def watch(self, registry: CollectorRegistry) -> None:
        """Show in metrics what is held, and how many wait."""
        held = Gauge("reprise_unstored_bytes", "Bytes held of results that are not stored yet", registry=registry)
        held.set_function(lambda: self.bytes)
        waiting = Gauge("reprise_unstored_waiting", "Results that wait at their workers for room", registry=registry)
        waiting.set_function(lambda: self.waiting)

    @contextmanager
    def one(self) -> Iterator[Arrival]:
        """What one result holds; given back at the end."""
        arrival = Arrival(self)
        try:
            yield arrival
        finally:
            arrival.begin()


class Arrival:
    def __init__(self, arrivals: Arrivals) -> None:
        self._all = arrivals
        self._bytes = 0
        self._whole = False

    def begin(self) -> None:
        """Nothing of it is here: it has not come yet, it comes once more, or it has been stored."""
        self._all.bytes -= self._bytes
        self._all.whole -= self._whole
        self._all.coming = [other for other in self._all.coming if other is not self]
        self._bytes, self._whole = 0, False
        self._all.news.announce()

    async def take(self, size: int, *, lost: Callable[[], bool] = lambda: False) -> None:
        """So many bytes of it come as soon as there is room, or at once if the rest of it is `lost` meanwhile."""
        if self not in self._all.coming:
            self._all.coming.append(self)
        self._all.waiting += 1
        try:
            while not (self._has_room(size) or lost()):
                await self._all.news.wait()
        finally:
            self._all.waiting -= 1
        self._all.bytes += size
        self._bytes += size

    def end(self) -> None:
        """All of it is here."""
        self._all.coming = [other for other in self._all.coming if other is not self]
        self._all.whole += 1
        self._whole = True
        self._all.news.announce()

    def look_again(self) -> None:
        """It may be lost."""
        self._all.news.announce()

    def _has_room(self, size: int) -> bool:
        # Where all the room is taken by what waits for more of it, the first of these goes on, else none ever would.
        stuck = not self._all.whole and self._all.coming[0] is self
        return self._all.bytes + size <= self._all.max_bytes or stuck
