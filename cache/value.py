"""Value: a policy that keeps what saves most device time for the room it takes.

GreedyDual-Size-Frequency. An entry's priority is L + frequency * cost / charge: how often it was asked for, the device
seconds it would take to have it again, the bytes it is charged for. Who has the least leaves, and L, the inflation,
rises to its priority: whoever came or was asked for since stands above, so that yesterday's favourites sink without
anybody ageing them. A newcomer is one of those who may have to leave: it is let in if it is worth as much as the last
one it would push out. Frequencies of those who left or were not let in are remembered for a while (ghosts), so that a
key that returns is judged by its past, and a batch that is read once pushes out little.

An access only marks its entry. The heap keeps the priority an entry had when it was queued, which is never more than
the one it has now, and corrects it when the entry comes up. So an access costs O(1) and a victim O(log n), amortised.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from cache.bounded import K, LeastRecentlyUsed, Policy, Removal

PolicyName: TypeAlias = Literal["value", "lru"]

_LEAST_COST = 0.001  # device seconds: of what is not known to cost anything, so that size and frequency still order
_LEAST_CHARGE = 4096  # bytes: a small entry has bookkeeping too, and would be immortal if it were charged for its own
_GHOSTS = 16_384  # keys that have left and are remembered: some megabytes


def policy_named(name: PolicyName, *, max_bytes: int, max_entries: int | None) -> Policy[K]:
    """The policy of a map with these bounds."""
    if name == "lru":
        return LeastRecentlyUsed()
    # Where entries are bounded in number too, each takes a slot that is worth its share of the bytes.
    slot = max_bytes // max_entries if max_entries else 0
    return GreedyDualSizeFrequency(least_charge=max(_LEAST_CHARGE, slot))


@dataclass(slots=True)
class _Standing:
    """Of one entry. Of equal priorities the lower turn goes first: the least recently used."""

    frequency: int
    value: float  # device seconds per byte, asked for once
    priority: float
    turn: int
    queued: int = 0  # the turn under which the heap has it; 0: it has not


class GreedyDualSizeFrequency(Policy[K]):
    """See the module. `least_charge` is the least number of bytes that an entry is charged for."""

    def __init__(self, *, least_charge: int = _LEAST_CHARGE, ghosts: int = _GHOSTS) -> None:
        self._least_charge = max(1, least_charge)
        self._max_ghosts = ghosts
        self._inflation = 0.0
        self._turn = 0
        self._standings: dict[K, _Standing] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._ghosts: OrderedDict[K, int] = OrderedDict()  # frequency; who left first is forgotten first

    def admits(self, key: K, weight: int, cost: float, victims: Sequence[K]) -> bool:
        frequency = self._ghosts.get(key, 0) + 1
        priority = self._inflation + frequency * self._value(weight, cost)
        if not victims or priority >= self._standings[victims[-1]].priority:
            return True
        self._remember(key, frequency)
        self._inflation = priority
        return False

    def admitted(self, key: K, weight: int, cost: float) -> None:
        frequency = self._ghosts.pop(key, 0) + 1
        value = self._value(weight, cost)
        self._turn += 1
        self._standings[key] = _Standing(frequency, value, self._inflation + frequency * value, self._turn)
        self._queue(key)
        if len(self._heap) > 2 * len(self._standings) + 64:
            self._forget_the_gone()

    def accessed(self, key: K) -> None:
        standing = self._standings[key]
        standing.frequency += 1
        standing.priority = self._inflation + standing.frequency * standing.value
        self._turn += 1
        standing.turn = self._turn

    def removed(self, key: K, cause: Removal) -> None:
        standing = self._standings.pop(key)
        if cause is Removal.SIZE:
            self._inflation = max(self._inflation, standing.priority)
        # Another value under the same key is no new request for it.
        self._remember(key, standing.frequency - (cause is Removal.REPLACED))

    def victims(self) -> Iterator[K]:
        passed = []
        try:
            while (key := self._least()) is not None:
                passed.append(key)
                yield key
        finally:
            for key in passed:
                if (standing := self._standings.get(key)) is not None and not standing.queued:
                    self._queue(key)

    def _value(self, weight: int, cost: float) -> float:
        return max(cost, _LEAST_COST) / max(weight, self._least_charge)

    def _remember(self, key: K, frequency: int) -> None:
        self._ghosts[key] = frequency
        self._ghosts.move_to_end(key)
        if len(self._ghosts) > self._max_ghosts:
            self._ghosts.popitem(last=False)

    def _least(self) -> K | None:
        """Takes the entry of least priority off the heap."""
        while self._heap:
            _, turn, key = heapq.heappop(self._heap)
            standing = self._standings.get(key)
            if standing is None or standing.queued != turn:
                continue  # it has left since
            standing.queued = 0
            if standing.turn == turn:
                return key
            self._queue(key)
        return None

    def _queue(self, key: K) -> None:
        standing = self._standings[key]
        standing.queued = standing.turn
        heapq.heappush(self._heap, (standing.priority, standing.turn, key))

    def _forget_the_gone(self) -> None:
        """Most of the heap is of entries that have left."""
        self._heap = []
        for key in self._standings:
            self._queue(key)
