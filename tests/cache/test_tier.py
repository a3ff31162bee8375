"""Tier: what the answers to a question prove."""

import pytest

from cache.tier import Lookup, Outcome, TierName, proves_absence

_PROOFS = {Outcome.MISS, Outcome.CORRUPT, Outcome.EXPIRED, Outcome.INVALIDATED}


@pytest.mark.parametrize("outcome", Outcome)
def test_only_a_sound_answer_proves_absence(outcome: Outcome) -> None:
    """That nothing usable is there is known from tiers that looked; one that failed or was not asked may hold it."""
    missed, said = Lookup(TierName.L2, Outcome.MISS), Lookup(TierName.L3, outcome)

    assert (outcome in _PROOFS) == proves_absence([missed, said])
