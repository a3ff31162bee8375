"""Frequency: how often things were asked lately, counted for all processes of a deployment together.

Counts lie in Redis beside L2, under the same budget and the same breaker: a sorted set for each group and day, of
names that say nothing. A day's counts are worth half of the next day's, and all of them are gone after a week. Nothing
depends on them; what Redis forgets was not that frequent.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

from cache.clock import steady
from cache.guard import Guard

DAYS = 7
_DAY = 24 * 3600.0
_TTL = (DAYS + 1) * _DAY
_MOST, _READ = 1024, 256  # names of a group and day that are counted, and that are read: the most frequent ones


class Scores(Protocol):
    """Named sets of counted members on some server. Methods raise TierError, and nothing else."""

    async def count(self, names: Sequence[str], member: str, keep: int, ttl: float) -> float:
        """Count a member once more in the first set, of which the `keep` highest stay; its sum over all of them."""
        ...

    async def highest(self, names: Sequence[str], count: int) -> list[list[tuple[str, float]]]: ...

    async def delete_many(self, names: Sequence[str]) -> None: ...


class Frequency:
    """All methods raise TierError and are over within the budget."""

    def __init__(self, scores: Scores, guard: Guard, *, clock: Callable[[], float] = steady) -> None:
        self._scores = scores
        self._guard = guard
        self._clock = clock

    async def asked(self, group: str, name: str) -> int:
        """Count it. How often it was asked in these days, this time included."""
        counting = self._scores.count(self._sets(group), name, _MOST, _TTL)
        return round(await self._guard.call(counting, writes=True))

    async def most(self, group: str, *, least: int = 1) -> list[str]:
        """What was asked `least` times in these days, or more often; the most frequent first."""
        days = await self._guard.call(self._scores.highest(self._sets(group), _READ))
        times: Counter[str] = Counter()
        worth: defaultdict[str, float] = defaultdict(float)
        for age, scores in enumerate(days):
            for name, count in scores:
                times[name] += round(count)
                worth[name] += count / 2**age
        return sorted((name for name in times if times[name] >= least), key=lambda name: (-worth[name], name))

    async def forget(self, group: str) -> None:
        await self._guard.call(self._scores.delete_many(self._sets(group)), writes=True)

    def _sets(self, group: str) -> list[str]:
        """Today's first."""
        today = int(self._clock() // _DAY)
        return [f"f/{group}/{day}" for day in range(today, today - DAYS, -1)]
