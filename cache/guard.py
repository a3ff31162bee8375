"""Guard: a budget and breakers around a server, and protection from callers that leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, TypeVar

from cache.errors import TierResting, TierTimeout
from cache.store import Store

_T = TypeVar("_T")


class Breaker:
    """Stops asking a server that keeps failing, and probes it with one question at a time until it answers again.

    After `failures` failures in a row it rests for `rest` seconds; then one caller is let through (half-open), whose
    fate decides. Not thread-safe; it belongs to one event loop.
    """

    def __init__(self, failures: int = 5, rest: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._rest = rest
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        if self._open_until is None:
            return "closed"
        return "half-open" if self._probing or self._clock() >= self._open_until else "open"

    def admit(self) -> None:
        """Raises TierResting if the server should be left alone now."""
        if self._open_until is None:
            return
        if self._probing or self._clock() < self._open_until:
            raise TierResting("resting after failures")
        self._probing = True

    def succeeded(self) -> None:
        self._failures, self._open_until, self._probing = 0, None, False

    def failed(self) -> None:
        self._failures += 1
        if self._probing or self._failures >= self._limit:
            self._open_until = self._clock() + self._rest
        self._probing = False


class Guard:
    """Every call ends within the budget, or was not made at all.

    Calls run in tasks of their own: a caller that is cancelled leaves its call to finish, because cutting a command off
    in the middle costs the connection. `budget` bounds a call in seconds; None leaves timing to the server's driver,
    which knows better what progress is (an object store that streams a large blob).

    Writes have a breaker of their own: a server that takes none (its memory or its disk is full, it became a replica)
    can still be read. They also rest while reads do, and find out for themselves whether that is over.
    """

    def __init__(self, breaker: Breaker, *, budget: float | None, writing: Breaker | None = None) -> None:
        self._budget = budget
        self._running: set[asyncio.Task[Any]] = set()
        self.breaker = breaker
        self.writing = writing if writing is not None else Breaker()

    async def quiet(self) -> None:
        """Wait until nothing runs any more."""
        if self._running:
            await asyncio.wait(self._running)

    async def call(self, call: Coroutine[Any, Any, _T], *, writes: bool = False) -> _T:
        """What the call returns. Raises TierResting, TierTimeout, or what the call raises."""
        breaker = self.writing if writes else self.breaker
        try:
            self._admit(writes=writes)
        except TierResting:
            call.close()
            raise
        task = asyncio.create_task(self._timed(call, breaker))
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _admit(self, *, writes: bool) -> None:
        if not writes:
            self.breaker.admit()
        elif self.breaker.state == "open":
            raise TierResting("resting after failures to read")
        else:
            self.writing.admit()

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even if the caller left before it was raised

    async def _timed(self, call: Coroutine[Any, Any, _T], breaker: Breaker) -> _T:
        try:
            async with asyncio.timeout(self._budget):
                result = await call
        except TimeoutError as error:
            breaker.failed()
            raise TierTimeout("over budget") from error
        except BaseException:  # whatever it is, a probe that ended must not be waited for for ever
            breaker.failed()
            raise
        breaker.succeeded()
        return result


class GuardedStore(Guard):
    """A store behind a guard, which whatever else is asked of its server can share."""

    def __init__(self, store: Store, breaker: Breaker, *, budget: float | None, writing: Breaker | None = None) -> None:
        super().__init__(breaker, budget=budget, writing=writing)
        self._store = store

    async def get(self, name: str, ttl: float | None) -> bytes | None:
        return await self.call(self._store.get(name, ttl))

    async def get_many(self, names: Sequence[str], ttl: float | None) -> list[bytes | None]:
        return await self.call(self._store.get_many(names, ttl))

    async def put(self, name: str, data: bytes, ttl: float, *, replace: bool) -> bool:
        return await self.call(self._store.put(name, data, ttl, replace=replace), writes=True)

    async def delete(self, name: str) -> None:
        await self.call(self._store.delete(name), writes=True)

    async def aclose(self) -> None:
        await self.quiet()
        await self._store.aclose()
