"""Tier: one storage level, and what a question to it can be answered with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cache.keys import Key


class TierName(StrEnum):
    L1 = "l1"
    L2 = "l2"
    L3 = "l3"
    POOL = "pool"


class Outcome(StrEnum):
    """What one tier said to one lookup. Only HIT carries a value."""

    HIT = "hit"
    MISS = "miss"
    EXPIRED = "expired"
    CORRUPT = "corrupt"
    ERROR = "error"
    TIMEOUT = "timeout"
    SKIPPED = "skipped"
    INVALIDATED = "invalidated"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Lookup:
    """One question to one tier, and its answer. Metrics, spans and reports are views of this value."""

    tier: TierName
    outcome: Outcome
    value: bytes | None = None
    started_ns: int = 0  # wall clock, nanoseconds since the epoch
    seconds: float = 0.0
    breaker: str = ""  # what state the breaker was in when it was asked; empty where there is none


FAULTS = frozenset({Outcome.ERROR, Outcome.TIMEOUT, Outcome.SKIPPED})  # the tier could not be asked
_CERTAIN = (Outcome.MISS, Outcome.CORRUPT, Outcome.EXPIRED, Outcome.INVALIDATED)


def proves_absence(lookups: Sequence[Lookup]) -> bool:
    """Whether every tier that was asked has said for certain that it has no good copy. A fault says nothing."""
    return all(lookup.outcome in _CERTAIN for lookup in lookups)


class Tier(Protocol):
    """One storage level.

    The law: a key fully describes its value, so entries never change and any copy is as good as another. A lookup
    always returns; faults are outcomes. A value it returns is, bit for bit, what was put under that key. All methods
    may be called concurrently. Whoever opens a tier closes it.
    """

    name: TierName
    local: bool  # in this process: storing costs no I/O and takes effect at once

    def holds(self, size: int) -> bool:
        """Whether entries of this many payload bytes are ever kept here."""
        ...

    async def get(self, key: Key, ttl: float | None) -> Lookup:
        """Look an entry up; a hit starts its TTL (seconds) again. None: look without any effect, and uncounted."""
        ...

    async def get_many(self, keys: Sequence[Key], ttl: float | None) -> list[Lookup]:
        """Look several entries up at once, in the cost of about one."""
        ...

    async def put(self, key: Key, payload: bytes, ttl: float, *, replace: bool = False, cost: float = 0.0) -> bool:
        """Store an entry, for `ttl` seconds without access where the tier forgets by itself. `cost` is the device
        seconds it saves whoever finds it, for a tier that chooses by value whom to let go.

        False if there is one already and `replace` is not set: the first one stays. Raises TierError.
        """
        ...

    async def delete(self, key: Key) -> None:
        """Forget an entry, if there is one. Raises TierError."""
        ...

    async def aclose(self) -> None: ...
