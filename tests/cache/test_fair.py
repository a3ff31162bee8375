"""How many of a bounded number of places one of many may hold."""

from __future__ import annotations

from collections import Counter

import pytest

from cache.bounded import Bounded, Removal
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


# Room that can be taken back.


def mine(max_bytes: int = 100, max_entries: int | None = None) -> Bounded[str, int]:
    """Entries belong to the first letter of their key; those of "-" to nobody."""
    return Bounded(
        max_bytes=max_bytes, max_entries=max_entries, owner=lambda key: key[0] if not key.startswith("-") else None
    )


def fill(entries: Bounded[str, int], *keys: str, weight: int = 10) -> str:
    """Put them in, one after the other, and say whose entries are there then."""
    for number, key in enumerate(keys):
        entries.put(f"{key}{len(keys)}.{number}.{entries.removals[Removal.SIZE]}", 0, weight=weight, now=0.0, ttl=60.0)
    return "".join(sorted(key[0] for key, _ in entries.items()))


def test_who_is_alone_has_all_the_room() -> None:
    """Nothing is kept free for nobody."""
    assert "a" * 10 == fill(mine(), *"a" * 30)


def test_a_flood_takes_no_more_than_a_part() -> None:
    """However much of it comes: what others hold within an equal part stays, though it was not used for longest."""
    entries = mine()
    assert "bbb" == fill(entries, *"bbb")
    assert "aaaaaaabbb" == fill(entries, *"a" * 30)
    assert "aaaaabbbbb" == fill(entries, *"b" * 30)
    assert "aaaabbbccc" == fill(entries, *"c" * 30, *"b" * 30, *"a" * 30)


def test_places_are_shared_as_bytes_are() -> None:
    """Where entries are bounded in number."""
    entries = mine(max_bytes=10_000, max_entries=6)
    assert "aaaaaa" == fill(entries, *"a" * 9)
    assert "aaabbb" == fill(entries, *"b" * 9)
    assert "aaabbb" == fill(entries, *"a" * 9)


def test_what_is_nobodys_leaves_first() -> None:
    """Then what is over a part; and if nothing else is left, what is within one."""
    entries = mine()
    assert "--------bb" == fill(entries, *"bb", *"-" * 8)
    assert "aaaaaaaabb" == fill(entries, *"a" * 8)
    entries.put("c", 0, weight=90, now=0.0, ttl=60.0)
    assert 90 <= entries.bytes <= 100
    assert "c" in entries


def test_what_leaves_is_not_counted_any_more() -> None:
    """Whatever made it leave: the parts are those of who is there."""
    entries = mine()
    fill(entries, *"aaaaabbbbb")
    for key in [key for key, _ in entries.items() if key.startswith("b")]:
        entries.delete(key)
    assert "a" * 10 == fill(entries, *"a" * 12)
    entries.expire(100.0)
    assert "b" * 10 == fill(entries, *"b" * 12)
