"""Reasons: what lookups say of why there was nothing."""

import pytest

from cache.reason import Reason, any_failed, reason_of
from cache.tier import Lookup, Outcome, TierName


def _lookups(*outcomes: str) -> list[Lookup]:
    return [Lookup(tier, Outcome(outcome)) for tier, outcome in zip(TierName, outcomes, strict=False)]


@pytest.mark.parametrize(
    ("outcomes", "reason", "failed"),
    [
        ((), None, False),
        (("miss", "miss", "miss"), None, False),
        (("miss", "miss", "expired"), Reason.EXPIRED, False),
        (("miss", "expired", "miss"), Reason.EXPIRED, False),
        (("miss", "corrupt", "expired"), Reason.DAMAGED, False),
        (("miss", "miss", "corrupt"), Reason.DAMAGED, False),
        (("miss", "miss", "error"), Reason.TIER_FAILED, True),
        (("miss", "miss", "timeout"), Reason.TIER_FAILED, True),
        (("miss", "skipped", "skipped"), Reason.TIER_FAILED, True),
        (("miss", "timeout", "miss"), None, True),  # the durable tier has answered
        (("miss", "timeout", "expired"), Reason.EXPIRED, True),
        (("miss", "hit", "miss"), None, False),
    ],
)
def test_tiers_say_why(outcomes: tuple[str, ...], reason: Reason | None, failed: bool) -> None:
    """Damage before age before faults; a fault counts where the durable tier is the one that failed."""
    lookups = _lookups(*outcomes)
    assert (reason, failed) == (reason_of(lookups), any_failed(lookups))
