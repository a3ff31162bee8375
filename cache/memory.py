"""L1: entries in this process's memory, bounded in bytes and number."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from cache.bans import Ban, Bans
from cache.bounded import Bounded, Policy
from cache.clock import steady
from cache.keys import Key
from cache.pins import Pin
from cache.record import NotARecord, Record
from cache.sweep import Gone, sweep
from cache.switches import Subject, Switch, Switches
from cache.tier import Lookup, Outcome, TierName

_OVERHEAD = 512  # bytes of bookkeeping charged to every entry, so that many small ones are not free


class MemoryTier:
    """Values are immutable and were verified when they came in. Belongs to one event loop.

    Besides bytes it holds other immutable values in the same budget (`hold`, `held`): replies in wire form, which know
    their `record`. Results of one tenant do not push out those of another that has no more than an equal part.
    """

    name = TierName.L1
    local = True

    def __init__(
        self,
        *,
        max_bytes: int,
        max_entries: int | None = None,
        max_share: float = 1.0,
        policy: Policy[Key] | None = None,
        switches: Switches | None = None,
        clock: Callable[[], float] = steady,
    ) -> None:
        self.entries: Bounded[Key, Any] = Bounded(
            max_bytes=max_bytes, max_entries=max_entries, max_share=max_share, policy=policy, owner=_owner
        )
        self._switches = switches if switches is not None else Switches()
        self._clock = clock

    @property
    def on(self) -> bool:
        return self._switches.on(Subject.TIER, self.name.value)

    def holds(self, size: int) -> bool:
        return self.on and size + _OVERHEAD <= self.entries.max_weight

    async def get(self, key: Key, ttl: float | None) -> Lookup:
        started_ns, start = time.time_ns(), time.perf_counter()
        value = self.held(key) if ttl is not None else self.peek(key)
        outcome = Outcome.HIT if value is not None else Outcome.MISS if self.on else Outcome.OFF
        return Lookup(self.name, outcome, value, started_ns, time.perf_counter() - start)

    async def get_many(self, keys: Sequence[Key], ttl: float | None) -> list[Lookup]:
        return [await self.get(key, ttl) for key in keys]

    async def put(self, key: Key, payload: bytes, ttl: float, *, replace: bool = False, cost: float = 0.0) -> bool:
        if not replace and self.entries.get(key, self._clock()) is not None:
            return False
        return self.hold(key, payload, len(payload), ttl, cost=cost)

    async def delete(self, key: Key) -> None:
        self.entries.delete(key)

    async def aclose(self) -> None:
        self.entries.clear()

    def hold(
        self, key: Key, value: object, weight: int, ttl: float, *, hard_expiry: float = float("inf"), cost: float = 0.0
    ) -> bool:
        """Keep an immutable value of `weight` bytes. False if it does not fit, or is worth less than what is there."""
        return self.on and self.entries.put(
            key, value, weight=weight + _OVERHEAD, now=self._clock(), ttl=ttl, hard_expiry=hard_expiry, cost=cost
        )

    def shrink(self, most: int) -> None:
        """Give up entries until `most` bytes are left, those of least value first."""
        self.entries.shrink(most)

    def held(self, key: Key) -> Any | None:
        return self.entries.get(key, self._clock()) if self.on else None

    def peek(self, key: Key) -> Any | None:
        """What `held` would give; its age and rank stay as they are."""
        return self.entries.peek(key, self._clock()) if self.on else None

    async def obey(self, order: Ban | Switch | Pin | None, bans: Bans) -> Gone:
        """Let go of what is banned; of everything if switched off.

        Blobs do not say what they are of, so all of them go. Those that no banned record names are not counted: they
        are copies, and come back with the next look.
        """
        if self.on and isinstance(order, Switch | Pin):
            return Gone()
        if not self.on:
            return await sweep(self.entries, lambda key, value: True)
        named: set[Key] = set()

        def banned(key: Key, value: Any) -> bool:
            if key.kind == "b":
                return False
            try:
                record = Record.from_bytes(value) if isinstance(value, bytes) else value.record
            except NotARecord:
                return True  # whatever it is, nobody can use it
            if forbidden := bans.forbid(record):
                named.add(Key.of_blob(record.address.namespace, record.output.digest))
            return forbidden

        gone = [await sweep(self.entries, banned), await sweep(self.entries, lambda key, _: key in named)]
        await sweep(self.entries, lambda key, _: key.kind == "b")
        return Gone.total(gone)


def _owner(key: Key) -> str | None:
    """Whose results these are. Whatever else lies here is nobody's: it is made of more than one namespace."""
    return key.namespace if key.kind == "w" else None
