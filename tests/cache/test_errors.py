"""Errors of tiers."""

import pytest

from cache.errors import TierError, TierResting, TierTimeout


@pytest.mark.parametrize("kind", [TierTimeout, TierResting])
def test_every_kind_of_failure_is_a_tier_error(kind: type[Exception]) -> None:
    """Whoever catches TierError has caught them all."""
    assert issubclass(kind, TierError)
