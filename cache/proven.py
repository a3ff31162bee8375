"""Proven: a tier whose entries are believed only if they are what their keys name.

An envelope proves that bytes are those that were sealed under a name. Whether they are what the name promises is known
by looking: a blob by its digest, a record by its schema and its address. What is not is as damaged as if a bit had
turned: removed, counted, and a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cache.digest import Digest
from cache.errors import TierError
from cache.keys import Address, Key
from cache.record import NotARecord, Record
from cache.tier import Lookup, Outcome, Tier


class ProvenTier:
    """Stands below whatever counts, so that what it does not believe is counted as damaged and not as a hit."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self.name = tier.name
        self.local = tier.local

    def holds(self, size: int) -> bool:
        return self._tier.holds(size)

    async def get(self, key: Key, ttl: float | None) -> Lookup:
        return await self._proven(key, await self._tier.get(key, ttl), remove=ttl is not None)

    async def get_many(self, keys: Sequence[Key], ttl: float | None) -> list[Lookup]:
        lookups = await self._tier.get_many(keys, ttl)
        remove = ttl is not None
        return [await self._proven(key, lookup, remove=remove) for key, lookup in zip(keys, lookups, strict=True)]

    async def put(self, key: Key, payload: bytes, ttl: float, *, replace: bool = False, cost: float = 0.0) -> bool:
        return await self._tier.put(key, payload, ttl, replace=replace, cost=cost)

    async def delete(self, key: Key) -> None:
        await self._tier.delete(key)

    async def aclose(self) -> None:
        await self._tier.aclose()

    async def _proven(self, key: Key, lookup: Lookup, *, remove: bool) -> Lookup:
        if lookup.value is None or await _is_what_it_names(key, lookup.value):
            return lookup
        if remove:
            await self._remove(key)
        return replace(lookup, outcome=Outcome.CORRUPT, value=None)

    async def _remove(self, key: Key) -> None:
        try:
            await self._tier.delete(key)
        except TierError:
            return  # it is found damaged again


async def _is_what_it_names(key: Key, payload: bytes) -> bool:
    if key.kind == "b":
        return (await Digest.of_any_size(payload)).hex == key.hex
    try:
        Record.from_bytes(payload, Address(key.namespace, key.hex))
    except NotARecord:
        return False
    return True
