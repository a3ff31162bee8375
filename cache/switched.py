"""Switched: a tier that can be taken out of use while it runs. Nothing is read from it or written to it then; what it
holds stays, and can still be removed, so that it comes back without anything that was invalidated meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cache.errors import TierResting
from cache.keys import Key
from cache.switches import Subject, Switches
from cache.tier import Lookup, Outcome, Tier


class SwitchedTier:
    def __init__(self, tier: Tier, switches: Switches) -> None:
        self._tier = tier
        self._switches = switches
        self.name = tier.name
        self.local = tier.local

    @property
    def on(self) -> bool:
        return self._switches.on(Subject.TIER, self.name.value)

    def holds(self, size: int) -> bool:
        return self.on and self._tier.holds(size)

    async def get(self, key: Key, ttl: float | None) -> Lookup:
        return await self._tier.get(key, ttl) if self.on else self._off()

    async def get_many(self, keys: Sequence[Key], ttl: float | None) -> list[Lookup]:
        return await self._tier.get_many(keys, ttl) if self.on else [self._off() for _ in keys]

    async def put(self, key: Key, payload: bytes, ttl: float, *, replace: bool = False, cost: float = 0.0) -> bool:
        if not self.on:
            raise TierResting("switched off")
        return await self._tier.put(key, payload, ttl, replace=replace, cost=cost)

    async def delete(self, key: Key) -> None:
        await self._tier.delete(key)

    async def aclose(self) -> None:
        await self._tier.aclose()

    def _off(self) -> Lookup:
        return Lookup(self.name, Outcome.OFF, started_ns=time.time_ns())
