"""Shares: a batch's time is counted once, however many were asked for in it."""

from cache.shares import shares
from cache.tier import Lookup, Outcome, TierName


def test_a_batch_is_divided_and_a_single_question_is_not() -> None:
    """By tier and time; the sum over all is what was waited for."""
    redis = Lookup(TierName.L2, Outcome.MISS, None, 1, 0.03)
    store = Lookup(TierName.L3, Outcome.HIT, b"x", 2, 0.4)
    alone = Lookup(TierName.L2, Outcome.HIT, b"y", 7, 0.01)
    divided = shares({"a": [redis, store], "b": [redis, store], "c": [redis], "d": [alone]})

    seconds = {key: [each.seconds for each in lookups] for key, lookups in divided.items()}
    assert {"a": [0.01, 0.2], "b": [0.01, 0.2], "c": [0.01], "d": [0.01]} == seconds
    assert {None} == {each.value for lookups in divided.values() for each in lookups}
