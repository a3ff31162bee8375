"""Arrivals: how many bytes of results a gateway holds because they are not stored yet, all together.

The worker that made a result stores it, and the gateway keeps it until that is done, so that it is not lost if the
worker goes. Where the object store is slow, workers are whole queues ahead of it. What there is no room for stays in
the worker's stream, and its callers wait: as they do where a worker's own queue of writes is full.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cache.news import News


class Arrivals:
    """Belongs to one event loop. `max_bytes` is kept, but for a result that has no room in it even alone."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.whole = 0  # results that are here to their last byte
        self.coming: list[Arrival] = []  # those of which some bytes are here or wait for room, the first one first
        self.news = News()

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

    async def take(self, size: int) -> None:
        """So many bytes of it come as soon as there is room."""
        if self not in self._all.coming:
            self._all.coming.append(self)
        while not self._has_room(size):
            await self._all.news.wait()
        self._all.bytes += size
        self._bytes += size

    def end(self) -> None:
        """All of it is here."""
        self._all.coming = [other for other in self._all.coming if other is not self]
        self._all.whole += 1
        self._whole = True
        self._all.news.announce()

    def _has_room(self, size: int) -> bool:
        # Where all the room is taken by what waits for more of it, the first of these goes on, else none ever would.
        stuck = not self._all.whole and self._all.coming[0] is self
        return self._all.bytes + size <= self._all.max_bytes or stuck
