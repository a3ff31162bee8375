"""Flight: one generation that any number of callers follow, inside one process.

A flight is a log of events that its leader's task writes and followers read, each at its own pace and from wherever
it joins. The work runs in a task of its own: a caller that leaves takes nobody down with it. When the last one has left
and the grace is over, the leader's task is told.

| event | result |
|---|---|
| a follower leaves | the others are served |
| all leave, one returns within the grace | served, one call of the work |
| all leave for longer | the work is cancelled once |
| the work fails | every follower gets the error, once; the next caller starts anew |
| it becomes wrong (`part`) | its followers are served; the next caller starts anew |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

from cache.news import News

K = TypeVar("K", bound=Hashable)
E = TypeVar("E")
V = TypeVar("V")


class Flight(Generic[E]):
    """The log of one generation."""

    def __init__(
        self,
        on_deserted: Callable[[Flight[E]], None],
        on_return: Callable[[Flight[E]], None] = lambda flight: None,
    ) -> None:
        # Both are told which flight: closures over it would make a ring, and all that was heard would stay in memory
        # until somebody looks for rings.
        self.events: list[E] = []
        self.followers = 0
        self.goes_on = False  # set by a leader whose work is to be ended even if nobody follows it any more
        self.ended = False
        self.given_up = False
        self.error: BaseException | None = None
        self._on_deserted = on_deserted
        self._on_return = on_return
        self._news = News()
        self._passed_on = 0  # events that some follower has come back from
        self._progress = News()  # of that

    def publish(self, event: E) -> None:
        self.events.append(event)
        self._news.announce()

    async def told(self, *, patience: float) -> None:
        """Wait until some follower has passed on all that is published by now: not for longer than `patience`, in
        seconds, and not if there is none.
        """
        wanted = len(self.events)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._passed_on < wanted and self.followers:
                    await self._progress.wait()

    def end(self, error: BaseException | None = None) -> None:
        self.ended, self.error = True, error
        self._news.announce()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Interest in this flight for as long as the block lasts."""
        self.followers += 1
        if self.followers == 1 and not self.ended:
            self._on_return(self)
        try:
            yield
        finally:
            self.followers -= 1
            self._progress.announce()
            if self.followers == 0 and not self.ended:
                self._on_deserted(self)

    def wait_again(self) -> None:
        """What went on has to begin anew: it is dropped again if nobody follows it for a grace."""
        self.goes_on = False
        if self.followers == 0 and not self.ended:
            self._on_deserted(self)

    def wake(self) -> None:
        """Let followers look whether they still want to follow."""
        self._news.announce()

    async def follow(self, start: int = 0, *, until: Callable[[], bool] = lambda: False) -> AsyncGenerator[E]:
        """Events from index `start` on: those of the past at once, then each as it comes, until `until` holds after a
        `wake`. Raises the work's error.
        """
        position = start
        while not until():
            while position < len(self.events):
                yield self.events[position]
                position += 1
                self._passed_on = max(self._passed_on, position)
                self._progress.announce()
            if self.ended:
                if self.error is not None:
                    raise self.error
                return
            await self._news.wait()


class Flights(Generic[K, E]):
    """The flights under way, by key. `grace` is how long, in seconds, deserted work goes on. `on_change` hears of a
    flight when its last follower has left, and when there is one (again).
    """

    def __init__(self, *, grace: float, on_change: Callable[[Flight[E]], None] = lambda flight: None) -> None:
        self._grace = grace
        self._on_change = on_change
        self._flights: dict[K, Flight[E]] = {}  # those that can be joined
        self._tasks: dict[Flight[E], asyncio.Future[None]] = {}
        self._graces: dict[Flight[E], asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        """All that are not over, those included that nobody can join any more."""
        return len(self._tasks)

    def __iter__(self) -> Iterator[Flight[E]]:
        """The same."""
        return iter(list(self._tasks))

    def get(self, key: K) -> Flight[E] | None:
        return self._flights.get(key)

    def join(self, key: K, lead: Callable[[Flight[E]], Awaitable[None]]) -> tuple[Flight[E], bool]:
        """The flight for this key, and whether this call began it. `lead` does the work and publishes its events.

        A flight can be joined until `lead` returns; it may stay on after the result to see it stored. Whoever joins
        must enter `following()` before giving control back to the loop.
        """
        if (under_way := self._flights.get(key)) is not None:
            return under_way, False
        flight: Flight[E] = Flight(self._deserted, self._on_change)
        self._flights[key] = flight
        task = asyncio.ensure_future(lead(flight))
        self._tasks[flight] = task
        task.add_done_callback(lambda done: self._landed(key, flight, done))
        return flight, True

    def cancel(self, flight: Flight[E]) -> None:
        """End the work now, whoever follows. Nobody joins it any more: who comes now begins anew.

        Once: cancelling it again would cut short what it does to end well.
        """
        if flight in self._tasks and not flight.given_up:
            flight.given_up = True
            self._flights = {key: other for key, other in self._flights.items() if other is not flight}
            self._tasks[flight].cancel()

    def part(self) -> None:
        """Let nobody join what is under way now: it may be made from what has become wrong since it began."""
        self._flights = {}

    async def drain(self, patience: float) -> None:
        """Wait until every flight has ended, for `patience` seconds at most; cancel those that have not."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=patience)
        remaining = list(self._tasks.values())
        for task in remaining:
            task.cancel()
        await asyncio.gather(*remaining, return_exceptions=True)

    def _landed(self, key: K, flight: Flight[E], task: asyncio.Future[None]) -> None:
        del self._tasks[flight]
        if self._flights.get(key) is flight:
            del self._flights[key]
        self._end_grace(flight)
        flight.end(Deserted("the work was cancelled") if task.cancelled() else task.exception())

    def _deserted(self, flight: Flight[E]) -> None:
        self._end_grace(flight)  # of an earlier departure: the grace counts from the last one
        self._graces[flight] = asyncio.get_running_loop().call_later(
            self._grace, self._cancel_if_still_deserted, flight
        )
        self._on_change(flight)

    def _end_grace(self, flight: Flight[E]) -> None:
        if timer := self._graces.pop(flight, None):
            timer.cancel()

    def _cancel_if_still_deserted(self, flight: Flight[E]) -> None:
        if flight.followers == 0 and not flight.goes_on:
            self.cancel(flight)


class Errands(Generic[K, V]):
    """Short work whose only news is its result: whoever wants the same at the same time waits for the same call.

    It is done to its end, whoever leaves: it must have a bound of its own.
    """

    def __init__(self) -> None:
        self._under_way: dict[K, asyncio.Future[V]] = {}

    async def share(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """What the work returns or raises, called once for everybody who is waiting for this key."""
        errand = self._under_way.get(key)
        if errand is None:
            errand = self._under_way[key] = asyncio.ensure_future(work())
            errand.add_done_callback(lambda done: self._done(key, done))
        return await asyncio.shield(errand)

    def _done(self, key: K, errand: asyncio.Future[V]) -> None:
        del self._under_way[key]
        if not errand.cancelled():
            errand.exception()  # seen, also when everybody has left


class Deserted(Exception):
    """The work was cancelled because nobody wanted it any more, or the process is stopping."""
