"""Bounded: within its bounds after every step, whatever the steps."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache.bounded import Bounded, Policy, Removal

_KEYS = st.sampled_from("abcdefgh")
_MAX_BYTES, _MAX_ENTRIES = 100, 5


@dataclass
class _Held:
    value: int
    weight: int
    ttl: float
    expires: float
    hard_expiry: float
    leases: int = 0


class _Machine(RuleBasedStateMachine):
    """Compares the map with a model of it that is a plain dictionary in order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.count = 0
        self.model: dict[str, _Held] = {}  # least recently used first
        self.left: list[tuple[str, int, Removal]] = []
        self.expected_left: list[tuple[str, int, Removal]] = []
        self.map: Bounded[str, int] = Bounded(
            max_bytes=_MAX_BYTES, max_entries=_MAX_ENTRIES, on_removal=lambda *gone: self.left.append(gone)
        )

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        key=_KEYS,
        weight=st.integers(0, 120),
        ttl=st.floats(0, 10),
        hard=st.just(float("inf")) | st.floats(0, 8),
    )
    def put(self, key: str, weight: int, ttl: float, hard: float) -> None:
        self.count += 1
        hard_expiry = self.now + hard
        kept = self.map.put(key, self.count, weight=weight, now=self.now, ttl=ttl, hard_expiry=hard_expiry)
        assert (
            self._model_put(key, _Held(self.count, weight, ttl, min(self.now + ttl, hard_expiry), hard_expiry)) == kept
        )

    @rule(key=_KEYS)
    def get(self, key: str) -> None:
        assert self._model_get(key) == self.map.get(key, self.now)

    @rule(key=_KEYS)
    def lease(self, key: str) -> None:
        value = self._model_get(key)
        if value is not None:
            self.model[key].leases += 1
        assert value == self.map.lease(key, self.now)

    @rule(key=_KEYS)
    def release(self, key: str) -> None:
        held = self.model.get(key)
        if held is None:
            with pytest.raises(KeyError):
                self.map.release(key)
        elif held.leases == 0:
            with pytest.raises(ValueError, match="more often"):
                self.map.release(key)
        else:
            held.leases -= 1
            self.map.release(key)

    @rule(key=_KEYS)
    def delete(self, key: str) -> None:
        held = self.model.get(key)
        deleted = held is not None and not held.leases
        if deleted:
            self._leave(key, Removal.EXPLICIT)
        assert deleted == self.map.delete(key)

    @rule()
    def clear(self) -> None:
        going = [key for key, held in self.model.items() if not held.leases]
        freed = sum(self.model[key].weight for key in going)
        for key in going:
            self._leave(key, Removal.EXPLICIT)
        assert freed == self.map.clear()

    @rule()
    def expire(self) -> None:
        self._model_expire()
        self.map.expire(self.now)

    @invariant()
    def bytes_counted_are_bytes_held(self) -> None:
        assert sum(held.weight for held in self.model.values()) == self.map.bytes
        assert len(self.model) == len(self.map)
        assert {key for key in "abcdefgh" if key in self.map} == set(self.model)

    @invariant()
    def bounds_hold(self) -> None:
        assert self.map.bytes <= _MAX_BYTES
        assert len(self.map) <= _MAX_ENTRIES

    @invariant()
    def every_removal_has_its_cause(self) -> None:
        assert Counter(self.expected_left) == Counter(self.left)
        assert Counter(cause for *_, cause in self.left) == Counter(self.map.removals)

    def _model_put(self, key: str, held: _Held) -> bool:
        self._model_expire()
        if key in self.model:
            if self.model[key].leases:
                return False
            self._leave(key, Removal.REPLACED)
        if not self._model_makes_room(held.weight):
            return False
        self.model[key] = held
        return True

    def _model_makes_room(self, weight: int) -> bool:
        stay = [held for held in self.model.values() if held.leases]
        if weight + sum(held.weight for held in stay) > _MAX_BYTES or len(stay) >= _MAX_ENTRIES:
            return False
        while weight + sum(held.weight for held in self.model.values()) > _MAX_BYTES or len(self.model) >= _MAX_ENTRIES:
            self._leave(next(key for key, held in self.model.items() if not held.leases), Removal.SIZE)
        return True

    def _model_get(self, key: str) -> int | None:
        held = self.model.get(key)
        if held is None:
            return None
        if self.now >= held.expires:
            if not held.leases:
                self._leave(key, Removal.EXPIRED)
            return None
        held.expires = min(self.now + held.ttl, held.hard_expiry)
        self.model[key] = self.model.pop(key)
        return held.value

    def _model_expire(self) -> None:
        for key in [key for key, held in self.model.items() if held.expires <= self.now and not held.leases]:
            self._leave(key, Removal.EXPIRED)

    def _leave(self, key: str, cause: Removal) -> None:
        self.expected_left.append((key, self.model.pop(key).value, cause))


_Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAgainstAModel = _Machine.TestCase


def _map(
    max_bytes: int = 10, max_entries: int | None = None, on_removal: Callable[[str, int, Removal], None] | None = None
) -> Bounded[str, int]:
    return Bounded(max_bytes=max_bytes, max_entries=max_entries, on_removal=on_removal)


def test_the_least_recently_used_goes_first() -> None:
    """Room is made in the order of last use, and no more than is needed."""
    entries = _map(max_bytes=3)
    for value, key in enumerate("abc"):
        entries.put(key, value, weight=1, now=0, ttl=10)
    entries.get("a", 1)

    entries.put("d", 3, weight=2, now=1, ttl=10)

    assert ["a", "d"] == [key for key in "abcd" if key in entries]
    assert {Removal.SIZE: 2, Removal.EXPIRED: 0, Removal.REPLACED: 0, Removal.EXPLICIT: 0} == entries.removals


def test_what_does_not_fit_evicts_nothing() -> None:
    """A value over the budget is refused, and so is one that only leased entries could make room for."""
    entries = _map(max_bytes=10)
    entries.put("a", 1, weight=4, now=0, ttl=10)
    entries.put("b", 2, weight=4, now=0, ttl=10)
    entries.lease("a", 0)

    assert not entries.put("c", 3, weight=11, now=0, ttl=10)
    assert not entries.put("c", 3, weight=7, now=0, ttl=10)
    assert 2 == len(entries)


def test_another_budget_holds_at_once() -> None:
    """What a smaller one has no room for goes, by the policy's choice; what is leased stays."""
    entries = _map(max_bytes=10)
    for key, weight in (("a", 4), ("b", 4), ("c", 2)):
        entries.put(key, 1, weight=weight, now=0, ttl=10)
    entries.lease("a", 0)

    entries.resize(6)
    assert ["a", "c"] == [key for key in "abc" if key in entries]
    entries.resize(1)
    assert (4, ["a"], 2) == (entries.bytes, [key for key in "abc" if key in entries], entries.removals[Removal.SIZE])
    assert not entries.put("d", 1, weight=1, now=0, ttl=10)

    entries.resize(8)
    assert entries.put("d", 1, weight=4, now=0, ttl=10)


def test_it_shrinks_once_and_keeps_its_budget() -> None:
    """Those of least value go until so many bytes are left; what is leased stays, and there is room for others."""
    entries = _map(max_bytes=9)
    for key in "abc":
        entries.put(key, 1, weight=3, now=0, ttl=10)
    entries.lease("a", 0)

    entries.shrink(6)
    assert ({"a", "c"}, 6) == ({key for key, _ in entries.items()}, entries.bytes)
    entries.shrink(0)
    assert ({"a"}, 3, 2) == ({key for key, _ in entries.items()}, entries.bytes, entries.removals[Removal.SIZE])
    assert entries.put("d", 1, weight=6, now=0, ttl=10)


def test_the_share_of_one_entry_is_of_the_budget_there_is() -> None:
    """After a change of the budget, too."""
    entries: Bounded[str, int] = Bounded(max_bytes=8, max_share=0.25)
    assert [True, False] == [entries.put("a", 1, weight=weight, now=0, ttl=10) for weight in (2, 3)]

    entries.resize(16)
    assert [True, False] == [entries.put("a", 1, weight=weight, now=0, ttl=10) for weight in (4, 5)]


def test_a_leased_entry_cannot_be_replaced_deleted_or_evicted() -> None:
    """Until it is released, and as often as it was leased."""
    entries = _map(max_bytes=1)
    entries.put("a", 1, weight=1, now=0, ttl=10)
    entries.lease("a", 0)
    entries.lease("a", 0)
    entries.release("a")

    assert not entries.put("a", 2, weight=1, now=0, ttl=10)
    assert not entries.put("b", 2, weight=1, now=0, ttl=10)
    assert not entries.delete("a")
    assert 0 == entries.clear()
    entries.expire(100)
    assert "a" in entries

    entries.release("a")
    assert entries.put("b", 2, weight=1, now=0, ttl=10)


def test_a_leased_entry_that_expired_is_no_longer_given_out() -> None:
    """It stays for its holder, is a miss for everybody else, and goes once it is released."""
    entries = _map()
    entries.put("a", 1, weight=1, now=0, ttl=10)
    entries.lease("a", 0)

    assert entries.get("a", 10) is None
    assert "a" in entries

    entries.expire(10)
    entries.release("a")
    entries.expire(10)
    assert "a" not in entries
    assert 1 == entries.removals[Removal.EXPIRED]


def test_access_starts_the_age_again_up_to_the_hard_expiry() -> None:
    """Reads keep an entry alive for its TTL, but never past its hard age."""
    entries = _map()
    entries.put("a", 1, weight=1, now=0, ttl=10, hard_expiry=25)

    assert [1, 1, 1, None] == [entries.get("a", now) for now in (9, 18, 24.9, 25)]


def test_a_peek_is_no_access() -> None:
    """It tells value and weight; the age goes on, and the entry is as near to leaving as before."""
    entries: Bounded[str, int] = Bounded(max_bytes=100, max_entries=2)
    for key, value in (("a", 1), ("b", 2)):
        entries.put(key, value, weight=10, now=0.0, ttl=5.0)
    assert (1, 10) == (entries.peek("a", 4.0), entries.weight_of("a"))
    assert entries.peek("c", 4.0) is None
    entries.put("c", 3, weight=10, now=4.0, ttl=5.0)
    assert entries.peek("a", 4.0) is None
    assert entries.peek("b", 5.0) is None
    assert 2 == len(entries)


def test_old_entries_go_without_being_asked_for() -> None:
    """`expire` lets go of all that is too old and of nothing else."""
    entries = _map()
    for key, ttl in (("a", 5), ("b", 10), ("c", 15)):
        entries.put(key, 0, weight=1, now=0, ttl=ttl)
    entries.get("a", 4)

    entries.expire(10)
    assert ["c"] == [key for key in "abc" if key in entries]
    entries.expire(14.9)
    assert "c" in entries


def test_old_entries_go_before_young_ones() -> None:
    """Room is made by age before it is made by eviction."""
    entries = _map(max_bytes=2)
    entries.put("young", 0, weight=1, now=0, ttl=100)
    entries.put("old", 0, weight=1, now=0, ttl=1)

    assert entries.put("new", 0, weight=1, now=5, ttl=100)
    assert ["young", "new"] == [key for key in ("young", "old", "new") if key in entries]


def test_bookkeeping_does_not_grow_with_traffic() -> None:
    """The notes kept for expiry stay in proportion to the entries, however often these are replaced."""
    entries = _map(max_entries=2)
    for turn in range(10_000):
        entries.put("ab"[turn % 2], turn, weight=1, now=turn * 0.001, ttl=1000)

    assert len(entries._expiries) <= 100


def test_whoever_hears_of_a_removal_finds_it_done() -> None:
    """`on_removal` is called after the entry has left and its bytes are free."""
    seen: list[tuple[int, bool]] = []
    entries = _map(on_removal=lambda key, value, cause: seen.append((entries.bytes, key in entries)))
    entries.put("a", 1, weight=4, now=0, ttl=10)

    entries.delete("a")

    assert [(0, False)] == seen


@pytest.mark.parametrize(("max_bytes", "max_entries"), [(0, None), (10, 0)])
def test_a_map_without_room_keeps_nothing(max_bytes: int, max_entries: int | None) -> None:
    """Zero bytes or zero entries turn it off."""
    entries = _map(max_bytes, max_entries)

    assert not entries.put("a", 1, weight=1, now=0, ttl=10)
    assert entries.get("a", 0) is None


class _Cheapest(Policy[str]):
    """Lets go of what is cheapest to have again, for nothing cheaper."""

    def __init__(self) -> None:
        self.costs: dict[str, float] = {}

    def admits(self, key: str, weight: int, cost: float, victims: Sequence[str]) -> bool:
        return all(cost >= self.costs[victim] for victim in victims)

    def admitted(self, key: str, weight: int, cost: float) -> None:
        self.costs[key] = cost

    def accessed(self, key: str) -> None: ...

    def removed(self, key: str, cause: Removal) -> None:
        del self.costs[key]

    def victims(self) -> Iterator[str]:
        return iter(sorted(self.costs, key=self.costs.__getitem__))


def test_another_policy_chooses_other_victims() -> None:
    """The map asks its policy who should go."""
    entries: Bounded[str, int] = Bounded(max_bytes=2, policy=_Cheapest())
    entries.put("dear", 1, weight=1, now=0, ttl=10, cost=9)
    entries.put("cheap", 2, weight=1, now=0, ttl=10, cost=1)

    entries.put("new", 3, weight=1, now=0, ttl=10, cost=5)

    assert ["dear", "new"] == [key for key in ("dear", "cheap", "new") if key in entries]
