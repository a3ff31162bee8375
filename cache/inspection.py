"""Inspection: where an entry lies, and what its record says, without making it younger, moving it or removing it.

It asks the stores themselves: the tiers above them refresh ages, promote, remove what is damaged, and count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cache.bans import Bans
from cache.build import Tiers
from cache.clock import steady
from cache.envelope import Damaged
from cache.errors import TierError, TierTimeout
from cache.keys import Address, Key
from cache.record import NotARecord, Record
from cache.store import unsealed
from cache.tier import Outcome, TierName

_PATIENCE = 5.0  # seconds for one tier


@dataclass(frozen=True, slots=True)
class Copy:
    """What one tier has of an entry. `size` is that of its payload in bytes, in L1 with what else it is charged."""

    tier: TierName
    outcome: Outcome
    size: int = 0
    seconds: float = 0.0
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """One entry in every tier of this process."""

    key: Key
    copies: Sequence[Copy]

    @property
    def found(self) -> bool:
        """Whether anything lies there, or may lie there because a tier could not say."""
        return any(copy.outcome is not Outcome.MISS for copy in self.copies)

    @property
    def record(self) -> Record | None:
        """As the fastest tier has it that can be read, past its age or not."""
        return next((copy.record for copy in self.copies if copy.record is not None), None)


def read_key(text: str) -> Key:
    """The key in any form in which one is told: a record's name, a blob's, or an address. Raises ValueError."""
    return Key.parse(text) if text.count("/") == 3 else Key.of_record(Address.parse(text))


async def inspect(tiers: Tiers, key: Key, *, clock: Callable[[], float] = steady) -> Inspection:
    """Look into L1, L2 and L3, as far as there are any."""
    copies = [_in_memory(tiers, key, clock())]
    if tiers.redis is not None:
        copies.append(await _stored(TierName.L2, key, tiers.redis.get(str(key), None), clock, tiers.bans))
    if tiers.objects is not None:
        copies.append(await _stored(TierName.L3, key, tiers.objects.get(str(key), None), clock, tiers.bans))
    return Inspection(key, copies)


def _in_memory(tiers: Tiers, key: Key, now: float) -> Copy:
    # L1 keeps what is sent in wire form, with its record, and everything else as it is stored.
    for kept_as in (key, replace(key, kind="w")) if key.kind == "r" else (key,):
        if (value := tiers.memory.entries.peek(kept_as, now)) is not None:
            copy = Copy(TierName.L1, Outcome.HIT, tiers.memory.entries.weight_of(kept_as))
            return _judged(copy, key, value, now, tiers.bans) if key.kind == "r" else copy
    return Copy(TierName.L1, Outcome.MISS)


async def _stored(
    tier: TierName, key: Key, read: Awaitable[bytes | None], clock: Callable[[], float], bans: Bans
) -> Copy:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(_PATIENCE):
            sealed = await read
            payload = None if sealed is None else await unsealed(key, sealed)
    except Damaged:
        copy, payload = Copy(tier, Outcome.CORRUPT), None
    except (TierTimeout, TimeoutError):
        copy, payload = Copy(tier, Outcome.TIMEOUT), None
    except TierError:
        copy, payload = Copy(tier, Outcome.ERROR), None
    else:
        copy = Copy(tier, Outcome.MISS) if payload is None else Copy(tier, Outcome.HIT, len(payload))
    if payload is not None and key.kind == "r":
        copy = _judged(copy, key, payload, clock(), bans)
    return replace(copy, seconds=time.perf_counter() - started)


def _judged(copy: Copy, key: Key, value: Any, now: float, bans: Bans) -> Copy:
    """The copy with the record that is in it."""
    record = getattr(value, "record", None)
    if isinstance(value, bytes):
        try:
            record = Record.from_bytes(value, Address(key.namespace, key.hex))
        except NotARecord:
            return replace(copy, outcome=Outcome.CORRUPT)
    if not isinstance(record, Record):
        return copy
    outcome = Outcome.EXPIRED if record.expired(now) else Outcome.INVALIDATED if bans.forbid(record) else Outcome.HIT
    return replace(copy, record=record, outcome=outcome)
