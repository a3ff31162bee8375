"""How many of a bounded number of places one of many may hold."""

from __future__ import annotations

from collections import Counter

import pytest

from cache.fair import may_take


def settled(everybody: str, *, places: int, share: float) -> list[int]:
    """What each holds once all have taken what they may, one place each in turn."""
    held = Counter[str]()
    before = -1
    while held.total() > before:
        before = held.total()
        for each in everybody:
            if may_take(held[each], held.total() - held[each], places=places, share=share):
                held[each] += 1
    return [held[each] for each in everybody]


@pytest.mark.parametrize(
    ("everybody", "held"), [("a", [80]), ("ab", [45, 44]), ("abc", [31, 31, 31]), ("abcd", [24, 24, 24, 23])]
)
def test_those_who_want_all_come_to_hold_equally_many(everybody: str, held: list[int]) -> None:
    """And leave room for somebody else."""
    assert held == settled(everybody, places=100, share=0.8)


def test_few_places_are_all_for_who_is_alone() -> None:
    """A share is rounded up, and is never more than there is."""
    assert [[0], [1], [4]] == [settled("a", places=places, share=0.8) for places in (0, 1, 4)]
    assert [2, 2] == settled("ab", places=4, share=1.0)
    assert not may_take(0, 4, places=4, share=1.0)


def test_who_held_more_gives_way() -> None:
    """Nothing is taken away from who filled the places while alone; the next that come free are not theirs."""
    assert may_take(10, 80, places=100, share=0.8)
    assert not may_take(79, 11, places=100, share=0.8)
