"""L1: entries in this process's memory, bounded in bytes and number."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from cache.bounded import Bounded, Policy
from cache.keys import Key
from cache.tier import Lookup, Outcome, TierName

_OVERHEAD = 512  # bytes of bookkeeping charged to every entry, so that many small ones are not free


class MemoryTier:
    """Values are immutable and were verified when they came in. Belongs to one event loop.

    Besides bytes it holds other immutable values in the same budget (`hold`, `held`): replies in wire form.
    """

    name = TierName.L1
    local = True

    def __init__(
        self,
        *,
        max_bytes: int,
        max_entries: int | None = None,
        policy: Policy[Key] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.entries: Bounded[Key, Any] = Bounded(max_bytes=max_bytes, max_entries=max_entries, policy=policy)
        self._clock = clock

    def holds(self, size: int) -> bool:
        return size + _OVERHEAD <= self.entries.max_bytes

    async def get(self, key: Key, ttl: float | None) -> Lookup:
        started_ns, start = time.time_ns(), time.perf_counter()
        value = self.entries.get(key, self._clock()) if ttl is not None else self.peek(key)
        outcome = Outcome.MISS if value is None else Outcome.HIT
        return Lookup(self.name, outcome, value, started_ns, time.perf_counter() - start)

    async def get_many(self, keys: Sequence[Key], ttl: float | None) -> list[Lookup]:
        return [await self.get(key, ttl) for key in keys]

    async def put(self, key: Key, payload: bytes, ttl: float, *, replace: bool = False) -> bool:
        if not replace and self.entries.get(key, self._clock()) is not None:
            return False
        return self.hold(key, payload, len(payload), ttl)

    async def delete(self, key: Key) -> None:
        self.entries.delete(key)

    async def aclose(self) -> None:
        self.entries.clear()

    def hold(
        self, key: Key, value: object, weight: int, ttl: float, *, hard_expiry: float = float("inf"), cost: float = 0.0
    ) -> bool:
        """Keep an immutable value of `weight` bytes. False if it does not fit."""
        return self.entries.put(
            key, value, weight=weight + _OVERHEAD, now=self._clock(), ttl=ttl, hard_expiry=hard_expiry, cost=cost
        )

    def held(self, key: Key) -> Any | None:
        return self.entries.get(key, self._clock())

    def peek(self, key: Key) -> Any | None:
        """What `held` would give; its age and rank stay as they are."""
        return self.entries.peek(key, self._clock())
