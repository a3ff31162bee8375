"""Reason: why something had to be made although there is a cache. What the tiers themselves can tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from cache.tier import FAULTS, Lookup, Outcome, TierName


class Reason(StrEnum):
    """See `MissReason` in the contract, which has the same names."""

    NEW = "new"
    EXPIRED = "expired"
    EVICTED = "evicted"
    INVALIDATED = "invalidated"
    POLICY = "policy"
    TIER_FAILED = "tier_failed"
    DAMAGED = "damaged"
    NEVER_KEPT = "never_kept"


# In the order in which they count, where tiers say different things. An outcome that has no reason says only that there
# was nothing, or that there was.
_REASONS = {
    Outcome.INVALIDATED: Reason.INVALIDATED,
    Outcome.CORRUPT: Reason.DAMAGED,
    Outcome.EXPIRED: Reason.EXPIRED,
    Outcome.OFF: Reason.POLICY,
}


def reason_of(lookups: Sequence[Lookup]) -> Reason | None:
    """Why these lookups found nothing. None: every tier that counts says that it is not there, and no more.

    The last tier is the durable one. Where it has answered, a fault of one before it hides nothing.
    """
    said = {lookup.outcome for lookup in lookups}
    for outcome, reason in _REASONS.items():
        if outcome in said:
            return reason
    return Reason.TIER_FAILED if lookups and lookups[-1].outcome in FAULTS else None


def any_failed(lookups: Sequence[Lookup]) -> bool:
    """Whether a shared tier could not be asked, so that what should be there may be there."""
    return any(lookup.outcome in FAULTS and lookup.tier is not TierName.L1 for lookup in lookups)
