"""Simulate: replay accesses through maps of other sizes and policies, and say what each would have saved.

Values are left out; everything else is what runs: the same map, the same policies, the times of the accesses. Redis is
approximated, because its code is not ours: allkeys-lfu as its documentation describes it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

from cache.accesses import Access
from cache.bounded import Bounded, K, Policy, Removal
from cache.value import policy_named

GIB = 1024**3
OVERHEAD = 512  # bytes of bookkeeping for every entry, here and in Redis much alike
ReplayPolicy: TypeAlias = Literal["value", "lru", "lfu"]
_ENDLESS = 1 << 62


@dataclass(frozen=True, slots=True)
class Replay:
    """What a map of `max_bytes` would have done. Costs are in device seconds."""

    policy: str
    max_bytes: int
    lookups: int
    hits: int
    bytes_asked: int
    bytes_hit: int
    cost_asked: float
    cost_saved: float
    seconds: float  # from the first access to the last
    peak_bytes: int  # held at most
    evictions: int  # for want of room

    @property
    def hit_rate(self) -> float:
        return self.hits / self.lookups if self.lookups else 0.0

    @property
    def byte_hit_rate(self) -> float:
        return self.bytes_hit / self.bytes_asked if self.bytes_asked else 0.0

    @property
    def share_saved(self) -> float:
        return self.cost_saved / self.cost_asked if self.cost_asked else 0.0

    @property
    def saved_per_gib(self) -> float:
        return self.cost_saved / (self.max_bytes / GIB)


def replay(
    accesses: Sequence[Access],
    policy: ReplayPolicy,
    max_bytes: int,
    *,
    ttl: float = float("inf"),
    max_entries: int | None = None,
    max_weight: int | None = None,
) -> Replay:
    """`ttl` in seconds without access; entries over `max_weight` bytes are not kept. Accesses are in order of time."""
    now = 0.0
    entries: Bounded[str, bool] = Bounded(
        max_bytes=max_bytes,
        max_entries=max_entries,
        max_share=1.0 if max_weight is None else min(max_weight / max_bytes, 1.0),
        policy=_policy(policy, max_bytes, max_entries, lambda: now),
    )
    hits = bytes_hit = peak = 0
    saved = 0.0
    for access in accesses:
        now = access.at
        if entries.get(access.key, now) is not None:
            hits += 1
            bytes_hit += access.size
            saved += access.cost
        else:
            entries.put(access.key, True, weight=access.size + OVERHEAD, now=now, ttl=ttl, cost=access.cost)
            peak = max(peak, entries.bytes)
    return Replay(
        policy,
        max_bytes,
        len(accesses),
        hits,
        sum(access.size for access in accesses),
        bytes_hit,
        sum(access.cost for access in accesses),
        saved,
        accesses[-1].at - accesses[0].at if accesses else 0.0,
        peak,
        entries.removals[Removal.SIZE],
    )


def ceiling(accesses: Sequence[Access], *, ttl: float = float("inf")) -> Replay:
    """What memory without end would have saved."""
    return replay(accesses, "lru", _ENDLESS, ttl=ttl)


@dataclass(frozen=True, slots=True)
class Advice:
    """The size from which on another GiB saves less than it must; `next_gib` is what it saves, in device seconds an
    hour. None: that is so at no size that was tried, and `next_gib` is what the last step still saved.
    """

    max_bytes: int | None
    next_gib: float


def advise(curve: Sequence[Replay], worth: float) -> Advice:
    """Over replays of one policy. `worth` is what a GiB must save to pay, in device seconds an hour.

    Raises ValueError for fewer than two sizes.
    """
    curve = sorted(curve, key=lambda each: each.max_bytes)
    if len({each.max_bytes for each in curve}) < 2:
        raise ValueError("advice needs two sizes")
    steps = [(smaller, _saved_by_step(smaller, larger)) for smaller, larger in pairwise(curve)]
    # A step that pays after one that does not makes both worth it, so it is the last one that counts.
    paying = [position for position, (_, saved) in enumerate(steps) if saved >= worth]
    if not paying:
        return Advice(steps[0][0].max_bytes, steps[0][1])
    if paying[-1] == len(steps) - 1:
        if not curve[-1].evictions:
            return Advice(curve[-1].max_bytes, 0.0)
        return Advice(None, steps[-1][1])
    smaller, saved = steps[paying[-1] + 1]
    return Advice(smaller.max_bytes, saved)


def _saved_by_step(smaller: Replay, larger: Replay) -> float:
    hours = max(larger.seconds, 1.0) / 3600
    return (larger.cost_saved - smaller.cost_saved) / ((larger.max_bytes - smaller.max_bytes) / GIB) / hours


def _policy(name: ReplayPolicy, max_bytes: int, max_entries: int | None, clock: Callable[[], float]) -> Policy[str]:
    if name == "lfu":
        return RedisLeastFrequentlyUsed(clock)
    return policy_named(name, max_bytes=max_bytes, max_entries=max_entries)


class RedisLeastFrequentlyUsed(Policy[K]):
    """Redis's allkeys-lfu, near enough: a counter that grows by chance, ever more slowly, and loses one each minute
    without access; of a few keys drawn at random the one with the least goes, kept company by the best candidates of
    earlier draws.
    """

    _FIRST, _MOST, _FACTOR, _MINUTE = 5, 255, 10, 60.0
    _SAMPLES, _CANDIDATES = 5, 16

    def __init__(self, clock: Callable[[], float], *, seed: int = 0) -> None:
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 - a simulation needs no secrecy
        self._counters: dict[K, tuple[int, float]] = {}  # and when it was last touched
        self._keys: list[K] = []  # in no order, so that one can be drawn
        self._places: dict[K, int] = {}
        self._candidates: set[K] = set()

    def admits(self, key: K, weight: int, cost: float, victims: Sequence[K]) -> bool:
        return True

    def admitted(self, key: K, weight: int, cost: float) -> None:
        self._counters[key] = self._FIRST, self._clock()
        self._places[key] = len(self._keys)
        self._keys.append(key)

    def accessed(self, key: K) -> None:
        counter = self._counter(key)
        grows = self._random.random() < 1.0 / (max(0, counter - self._FIRST) * self._FACTOR + 1)
        self._counters[key] = min(self._MOST, counter + grows), self._clock()

    def removed(self, key: K, cause: Removal) -> None:
        del self._counters[key]
        self._candidates.discard(key)
        place, last = self._places.pop(key), self._keys.pop()
        if last != key:
            self._keys[place] = last
            self._places[last] = place

    def victims(self) -> Iterator[K]:
        given: set[K] = set()
        while len(given) < len(self._keys):
            drawn = {self._random.choice(self._keys) for _ in range(self._SAMPLES)} | self._candidates
            in_question = drawn - given or set(self._keys) - given
            first, *others = sorted(in_question, key=lambda key: (self._counter(key), self._places[key]))
            self._candidates = set(others[: self._CANDIDATES])
            given.add(first)
            yield first

    def _counter(self, key: K) -> int:
        counter, touched = self._counters[key]
        return max(0, counter - int((self._clock() - touched) / self._MINUTE))
