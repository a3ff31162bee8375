"""Value: what saves most device time for its bytes stays; nothing stays for ever; the past is remembered, boundedly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache.bounded import Bounded, LeastRecentlyUsed, Policy, Removal
from cache.value import GreedyDualSizeFrequency, policy_named

_KEYS = st.sampled_from("abcdefghijkl")
_MAX_BYTES, _MAX_ENTRIES, _LEAST_CHARGE, _GHOSTS = 100, 6, 10, 4


@dataclass
class _Known:
    frequency: int
    value: float
    priority: float
    used: int


class _Plain(Policy[str]):
    """The same policy as it is written in the paper: everything sorted, every time."""

    def __init__(self) -> None:
        self.inflation = 0.0
        self.known: dict[str, _Known] = {}
        self.ghosts: list[tuple[str, int]] = []  # latest last
        self.uses = 0

    def admits(self, key: str, weight: int, cost: float, victims: Sequence[str]) -> bool:
        frequency = dict(self.ghosts).get(key, 0) + 1
        priority = self.inflation + frequency * self.value(weight, cost)
        if victims and priority < max(self.known[victim].priority for victim in victims):
            self.remember(key, frequency)
            self.inflation = priority
            return False
        return True

    def admitted(self, key: str, weight: int, cost: float) -> None:
        self.known[key] = _Known(dict(self.ghosts).get(key, 0), self.value(weight, cost), 0.0, 0)
        self.ghosts = [ghost for ghost in self.ghosts if ghost[0] != key]
        self.accessed(key)

    def accessed(self, key: str) -> None:
        self.uses += 1
        known = self.known[key]
        known.frequency += 1
        known.priority = self.inflation + known.frequency * known.value
        known.used = self.uses

    def removed(self, key: str, cause: Removal) -> None:
        known = self.known.pop(key)
        if cause is Removal.SIZE:
            self.inflation = max(self.inflation, known.priority)
        self.remember(key, known.frequency - 1 if cause is Removal.REPLACED else known.frequency)

    def victims(self) -> Iterator[str]:
        return iter(sorted(self.known, key=lambda key: (self.known[key].priority, self.known[key].used)))

    def value(self, weight: int, cost: float) -> float:
        return max(cost, 0.001) / max(weight, _LEAST_CHARGE)

    def remember(self, key: str, frequency: int) -> None:
        self.ghosts = [*(ghost for ghost in self.ghosts if ghost[0] != key), (key, frequency)][-_GHOSTS:]


class _Machine(RuleBasedStateMachine):
    """Does everything twice: in a map with the policy, and in one with the plain form of it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.left: list[tuple[str, int, Removal]] = []
        self.plainly_left: list[tuple[str, int, Removal]] = []
        self.policy: GreedyDualSizeFrequency[str] = GreedyDualSizeFrequency(least_charge=_LEAST_CHARGE, ghosts=_GHOSTS)
        self.map = self._map(self.policy, self.left)
        self.plain = self._map(_Plain(), self.plainly_left)

    @staticmethod
    def _map(policy: Policy[str], left: list[tuple[str, int, Removal]]) -> Bounded[str, int]:
        return Bounded(
            max_bytes=_MAX_BYTES,
            max_entries=_MAX_ENTRIES,
            max_share=60 / _MAX_BYTES,
            policy=policy,
            on_removal=lambda *gone: left.append(gone),
        )

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=_KEYS, weight=st.integers(0, 70), cost=st.sampled_from((0.0, 0.5, 3.0, 40.0)), ttl=st.floats(0, 40))
    def put(self, key: str, weight: int, cost: float, ttl: float) -> None:
        first, second = (
            entries.put(key, weight, weight=weight, now=self.now, ttl=ttl, cost=cost)
            for entries in (self.map, self.plain)
        )
        assert second == first

    @rule(key=_KEYS)
    def get(self, key: str) -> None:
        assert self.plain.get(key, self.now) == self.map.get(key, self.now)

    @rule(key=_KEYS)
    def lease(self, key: str) -> None:
        assert self.plain.lease(key, self.now) == self.map.lease(key, self.now)

    @rule(key=_KEYS)
    def release(self, key: str) -> None:
        for entries in (self.map, self.plain):
            if key in entries and entries._entries[key].leases:
                entries.release(key)

    @rule(key=_KEYS)
    def delete(self, key: str) -> None:
        assert self.plain.delete(key) == self.map.delete(key)

    @invariant()
    def the_same_left_in_the_same_order(self) -> None:
        assert self.plainly_left == self.left
        assert set(dict(self.plain.items())) == set(dict(self.map.items()))

    @invariant()
    def bounds_hold(self) -> None:
        assert self.map.bytes == sum(weight for _, weight in self.map.items()) <= _MAX_BYTES
        assert len(self.map) <= _MAX_ENTRIES
        assert len(self.policy._ghosts) <= _GHOSTS


_Machine.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestAgainstThePlainForm = _Machine.TestCase


def _entries(max_bytes: int, *, max_entries: int | None = None, least_charge: int = 1) -> Bounded[str, int]:
    return Bounded(
        max_bytes=max_bytes, max_entries=max_entries, policy=GreedyDualSizeFrequency(least_charge=least_charge)
    )


def _put(entries: Bounded[str, int], key: str, *, weight: int = 1, cost: float = 1.0, now: float = 0.0) -> bool:
    return entries.put(key, 0, weight=weight, now=now, ttl=1e9, cost=cost)


def test_what_costs_most_for_its_bytes_stays() -> None:
    """A long generation in a small file is kept before a short one in a large file, whichever was used last."""
    entries = _entries(10)
    _put(entries, "dear", weight=5, cost=50.0)
    _put(entries, "cheap", weight=5, cost=1.0)
    entries.get("cheap", 0)

    _put(entries, "new", weight=5, cost=10.0)

    assert {"dear", "new"} == set(dict(entries.items()))


def test_what_is_asked_for_more_often_stays() -> None:
    """Of entries alike in size and cost."""
    entries = _entries(2)
    _put(entries, "favourite")
    entries.get("favourite", 0)
    _put(entries, "other")

    _put(entries, "new")

    assert {"favourite", "new"} == set(dict(entries.items()))


def test_a_favourite_of_yesterday_goes_in_the_end() -> None:
    """What is no longer asked for sinks below those that come, however often it was asked for."""
    entries = _entries(3)
    _put(entries, "old")
    for _ in range(20):
        entries.get("old", 0)

    turns = 0
    while "old" in entries:
        turns += 1
        _put(entries, f"new {turns}")
        entries.get(f"new {turns}", 0)
        assert turns < 100

    assert turns > 10


def test_a_newcomer_that_is_worth_less_is_not_let_in_at_once_but_is_in_the_end() -> None:
    """It pushes out nothing dearer; asked for again and again, it is worth more each time."""
    entries = _entries(1)
    _put(entries, "dear", cost=4.5)

    tries = [_put(entries, "cheap", cost=1.0) for _ in range(3)]

    assert [False, False, True] == tries
    assert ["cheap"] == list(dict(entries.items()))


def test_a_key_that_returns_is_judged_by_its_past() -> None:
    """A popular entry that had to leave comes back as popular as it was."""
    entries = _entries(1)
    _put(entries, "popular")
    for _ in range(4):
        entries.get("popular", 0)
    entries.delete("popular")
    _put(entries, "passing")
    assert _put(entries, "popular")

    assert not _put(entries, "newer")
    assert ["popular"] == list(dict(entries.items()))


def test_being_replaced_is_no_request() -> None:
    """A value that is put again under its key is as popular as before."""
    entries = _entries(2)
    _put(entries, "replaced")
    for _ in range(5):
        _put(entries, "replaced")
    _put(entries, "asked for")
    entries.get("asked for", 0)

    _put(entries, "new")

    assert {"asked for", "new"} == set(dict(entries.items()))


def test_what_has_no_known_cost_is_ordered_by_size() -> None:
    """Nothing is worth nothing."""
    entries = _entries(10)
    _put(entries, "small", weight=3, cost=0.0)
    _put(entries, "large", weight=7, cost=0.0)

    _put(entries, "new", weight=2, cost=0.0)

    assert {"small", "new"} == set(dict(entries.items()))


def test_a_small_entry_is_charged_for_more_than_its_bytes() -> None:
    """Or cheap little things would outlive everything."""
    entries = _entries(10_000, least_charge=4096)
    _put(entries, "tiny", weight=1, cost=0.1)
    _put(entries, "clip", weight=8192, cost=10.0)

    _put(entries, "new", weight=1808, cost=10.0)

    assert {"clip", "new"} == set(dict(entries.items()))


def test_where_entries_are_few_a_slot_has_its_share_of_the_bytes() -> None:
    """With a bound on their number, an entry that is small for its slot is not kept for its smallness."""
    entries: Bounded[str, int] = Bounded(
        max_bytes=1_000_000, max_entries=2, policy=policy_named("value", max_bytes=1_000_000, max_entries=2)
    )
    _put(entries, "line", weight=10_000, cost=1.0)
    _put(entries, "video", weight=400_000, cost=9.0)

    _put(entries, "new", weight=400_000, cost=9.0)

    assert {"video", "new"} == set(dict(entries.items()))


def test_a_leased_entry_is_passed_over_and_comes_up_again() -> None:
    """The next victim goes instead, and the leased one once it is released."""
    entries = _entries(2)
    _put(entries, "least", cost=0.1)
    _put(entries, "more", cost=2.0)
    entries.lease("least", 0)

    assert _put(entries, "new", cost=9.0)
    assert {"least", "new"} == set(dict(entries.items()))

    entries.release("least")
    assert _put(entries, "newer", cost=9.0)
    assert {"new", "newer"} == set(dict(entries.items()))


def test_what_is_remembered_is_bounded() -> None:
    """Neither the past nor the heap grows with traffic."""
    policy: GreedyDualSizeFrequency[int] = GreedyDualSizeFrequency(ghosts=100)
    entries: Bounded[int, int] = Bounded(max_bytes=10, policy=policy)
    for number in range(5_000):
        entries.put(number, 0, weight=1, now=0, ttl=1e9, cost=1.0)
        entries.get(number, 0)
        entries.put(number, 0, weight=1, now=0, ttl=1e9, cost=1.0)

    assert 90 < len(policy._ghosts) <= 100
    assert len(policy._heap) <= 100


@pytest.mark.parametrize(("name", "kind"), [("value", GreedyDualSizeFrequency), ("lru", LeastRecentlyUsed)])
def test_policies_have_names(name: str, kind: type[object]) -> None:
    """As settings give them."""
    assert isinstance(policy_named(name, max_bytes=1, max_entries=None), kind)  # type: ignore[arg-type]
