"""Store: the few things L2 and L3 ask of a driver; and the tier made of a store.

Layers, from the wire up: a store (`redis.py`, `objects.py`) speaks to its server and translates its errors; `guard.py`
gives it a budget and breakers; `StoredTier` seals what goes in and believes nothing that comes out; `proven.py` looks
whether that is what its name promises; `metered.py` counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from cache.digest import AT_ONCE
from cache.envelope import Damaged, seal, unseal
from cache.errors import TierError, TierResting, TierTimeout
from cache.keys import Key
from cache.tier import Lookup, Outcome, TierName


class Store(Protocol):
    """Named bytes on some server. Every method raises TierError, and nothing else, when the server fails.

    What is read is young again for `ttl` seconds, where the server forgets by itself; None changes nothing.
    """

    async def get(self, name: str, ttl: float | None) -> bytes | None: ...

    async def get_many(self, names: Sequence[str], ttl: float | None) -> list[bytes | None]: ...

    async def put(self, name: str, data: bytes, ttl: float, *, replace: bool) -> bool: ...

    async def delete(self, name: str) -> None: ...

    async def aclose(self) -> None: ...


class StoredTier:
    """A store as a tier: entries in envelopes, verified on every read, damaged ones removed."""

    def __init__(
        self,
        name: TierName,
        store: Store,
        *,
        max_payload: int | None = None,
        breaker: Callable[[], str] = lambda: "",
    ) -> None:
        """`breaker` says what state the store's is in; every lookup tells what it was then."""
        self.name = name
        self.local = False
        self._store = store
        self._max_payload = max_payload
        self._breaker = breaker

    def holds(self, size: int) -> bool:
        return self._max_payload is None or size <= self._max_payload

    async def get(self, key: Key, ttl: float | None) -> Lookup:
        started_ns, start, breaker = time.time_ns(), time.perf_counter(), self._breaker()
        try:
            data = await self._store.get(str(key), ttl)
        except TierError as error:
            outcome, payload = _outcome_of(error), None
        else:
            outcome, payload = await self._verified(key, data, remove=ttl is not None)
        return Lookup(self.name, outcome, payload, started_ns, time.perf_counter() - start, breaker)

    async def get_many(self, keys: Sequence[Key], ttl: float | None) -> list[Lookup]:
        started_ns, start, breaker = time.time_ns(), time.perf_counter(), self._breaker()
        try:
            found = await self._store.get_many([str(key) for key in keys], ttl)
        except TierError as error:
            answers: list[tuple[Outcome, bytes | None]] = [(_outcome_of(error), None)] * len(keys)
        else:
            remove = ttl is not None
            answers = [await self._verified(key, data, remove=remove) for key, data in zip(keys, found, strict=True)]
        seconds = time.perf_counter() - start
        return [Lookup(self.name, outcome, payload, started_ns, seconds, breaker) for outcome, payload in answers]

    async def put(self, key: Key, payload: bytes, ttl: float, *, replace: bool = False, cost: float = 0.0) -> bool:
        return await self._store.put(str(key), await sealed(key, payload), ttl, replace=replace)

    async def delete(self, key: Key) -> None:
        await self._store.delete(str(key))

    async def aclose(self) -> None:
        await self._store.aclose()

    async def _verified(self, key: Key, data: bytes | None, *, remove: bool) -> tuple[Outcome, bytes | None]:
        if data is None:
            return Outcome.MISS, None
        try:
            return Outcome.HIT, await unsealed(key, data)
        except Damaged:
            if remove:
                await self._remove_damaged(key)
            return Outcome.CORRUPT, None

    async def _remove_damaged(self, key: Key) -> None:
        # Left in place it would block the create-only write that heals it. Failing to remove it costs that, no more.
        try:
            await self._store.delete(str(key))
        except TierError:
            return


async def sealed(key: Key, payload: bytes) -> bytes:
    """Like `seal`, off the event loop where that takes longer than a loop may stand still."""
    return seal(key, payload) if len(payload) <= AT_ONCE else await asyncio.to_thread(seal, key, payload)


async def unsealed(key: Key, data: bytes) -> bytes:
    """Like `unseal`, off the event loop where that takes longer than a loop may stand still."""
    return unseal(key, data) if len(data) <= AT_ONCE else await asyncio.to_thread(unseal, key, data)


def _outcome_of(error: TierError) -> Outcome:
    if isinstance(error, TierResting):
        return Outcome.SKIPPED
    return Outcome.TIMEOUT if isinstance(error, TierTimeout) else Outcome.ERROR
