"""Departures: how many bytes of files a gateway holds because they are read from the tiers and sent, all together.

How large a file is stands in its record, so its bytes are reserved before it is read; where there is no room for them,
it waits in line. While it is read there are two copies of it: its pieces and the whole, sealed and opened, as a file
and in wire form. From then on there is one, until everybody who shares the read has been sent it.

A size that only the caller has said is not believed so far that others wait for it: it waits until nobody else does.

A reader may stand still for as long as nobody needs the room. Where somebody waits for it, those who have not moved for
`patience` seconds lose the file: they are told to ask again as soon as they move. Whoever has waited for `longest_wait`
seconds is told so too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress

from prometheus_client import CollectorRegistry, Gauge

from cache.news import News
from gateway.errors import Overloaded
from gateway.wire import CHUNK_BYTES

_COPIES = 2  # of a file while it is read
_MOST_WAITING = 256  # files


class Departures:
    """Belongs to one event loop. It holds `max_bytes` at most, or one file that is larger."""

    def __init__(
        self,
        max_bytes: int,
        *,
        patience: float = 5.0,
        longest_wait: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.line: list[Departure] = []  # those that wait for room, the first one first
        self._clock = clock
        self._patience = patience
        self._longest_wait = longest_wait
        self._open: dict[Hashable, Departure] = {}  # those that have not been read yet
        self._held: dict[Departure, None] = {}  # those that have bytes, in the order they came
        self._news = News()

    def watch(self, registry: CollectorRegistry) -> None:
        """Show in metrics what is held, and how many wait."""
        held = Gauge("reprise_departing_bytes", "Bytes of files that are read from tiers and sent", registry=registry)
        held.set_function(lambda: self.bytes)
        waiting = Gauge("reprise_departing_waiting", "Files that wait for room to be read", registry=registry)
        waiting.set_function(lambda: len(self.line))

    @contextmanager
    def one(self, key: Hashable, *, claimed: bool = False) -> Iterator[Reader]:
        """One reader of a file. Who comes with the same key before it has been read shares the read. `claimed`: its
        size is what the caller says.
        """
        departure = self._open.setdefault(key, Departure(self, key, claimed=claimed))
        reader = Reader(departure, self._clock)
        departure.readers.append(reader)
        try:
            yield reader
        finally:
            departure.leave(reader)

    async def reserve(self, departure: Departure, size: int) -> None:
        """Wait in line for so many bytes, as long as there is a reader. Raises Overloaded."""
        if len(self.line) >= _MOST_WAITING:
            raise Overloaded("GATEWAY_BUSY")
        self.line.append(departure)
        try:
            async with asyncio.timeout(self._longest_wait):
                while not self._has_room(departure, size):
                    if not departure.readers:
                        raise Overloaded("GATEWAY_BUSY")
                    await self._wait(departure, size)
            self.hold(departure, size)
        except TimeoutError:
            raise Overloaded("GATEWAY_BUSY") from None
        finally:
            self.line.remove(departure)
            self._news.announce()

    def hold(self, departure: Departure, size: int) -> None:
        """It has so many bytes from now on."""
        self.bytes += size - departure.bytes
        departure.bytes = size
        if size:
            self._held[departure] = None
        else:
            self._held.pop(departure, None)
        self._news.announce()

    def close(self, key: Hashable, departure: Departure) -> None:
        """Nobody can share its read any more."""
        if self._open.get(key) is departure:
            del self._open[key]

    def look_again(self) -> None:
        """Somebody in line may not need to wait any more."""
        self._news.announce()

    def _has_room(self, departure: Departure, size: int) -> bool:
        return self._is_next(departure) and (self.bytes == 0 or self.bytes + size <= self.max_bytes)

    def _is_next(self, departure: Departure) -> bool:
        first = next((each for each in self.line if not each.claimed), departure)
        return first is departure

    async def _wait(self, departure: Departure, size: int) -> None:
        # Looked at after any news, too: where there is some all the time, nobody would be sent away otherwise.
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                await self._news.wait()
        if self._is_next(departure) and not self._has_room(departure, size):
            self._send_away(size)

    def _send_away(self, size: int) -> None:
        """Have as many give way as it takes, those first who have stood still for longest."""
        long_ago = self._clock() - self._patience
        missing = min(size, self.max_bytes) + self.bytes - self.max_bytes
        for departure in sorted(self._held, key=lambda each: each.moved):
            if missing <= 0 or departure.moved > long_ago:
                return
            missing -= departure.bytes
            for reader in list(departure.readers):
                reader.give_way()


class Departure:
    """One file, for all who share its read."""

    def __init__(self, departures: Departures, key: Hashable, *, claimed: bool) -> None:
        self.claimed = claimed
        self._all = departures
        self._key = key
        self._size = 0
        self._reading = False
        self.bytes = 0
        self.readers: list[Reader] = []

    @contextmanager
    def being_read(self) -> Iterator[None]:
        """As long as this lasts it is not given back, whoever leaves."""
        self._reading = True
        try:
            yield
        finally:
            self._reading = False
            self._all.close(self._key, self)
            self.settle()

    async def reserve(self, size: int) -> None:
        """Room for a file of so many bytes. What is one message is free: gRPC holds as much of every stream."""
        if size > CHUNK_BYTES and not self.bytes:
            await self._all.reserve(self, _COPIES * size)
            self._size = size

    def found_nothing(self) -> None:
        """There is no such file, or it cannot be read."""
        self._size = 0

    def settle(self) -> None:
        """Give back what is not needed any more."""
        if self._reading:
            return
        if not self.readers:
            self._all.close(self._key, self)
        if self.bytes:
            self._all.hold(self, self._size if self.readers else 0)

    @property
    def moved(self) -> float:
        """When one of its readers last moved. While it is read none of them stands still."""
        never = float("inf")
        return never if self._reading else max((reader.moved for reader in self.readers), default=never)

    def leave(self, reader: Reader) -> None:
        """It has been sent the file, or does without."""
        if reader in self.readers:
            self.readers.remove(reader)
            self.settle()
            if self in self._all.line:
                self._all.look_again()


class Reader:
    """Somebody who is sent a file: iterates over its messages."""

    def __init__(self, departure: Departure, clock: Callable[[], float]) -> None:
        self.departure = departure
        self.moved = float("inf")  # when it was last given something; it has not begun
        self._clock = clock
        self._messages: Iterator[bytes] | None = iter(())

    def takes(self, messages: Iterator[bytes]) -> None:
        """The only ones who hold the file from now on."""
        self._messages = messages

    def give_way(self) -> None:
        """Let go of the file. Its reader hears of it when it takes the next message."""
        self._messages = None
        self.departure.leave(self)

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> bytes:
        if self._messages is None:
            raise Overloaded("GATEWAY_BUSY")
        self.moved = self._clock()
        return next(self._messages)
