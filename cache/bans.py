"""Bans: invalidations in force. What was made before a ban and meets its condition is served by nobody.

A ban is asked about wherever a record is read or written, so it holds from the moment a process knows of it, whichever
tier an entry lies in and whoever still has one on its way. That what is banned is also removed gives back space and is
no condition of correctness. A record's `made_at` is when its making began: work under way during a ban falls under it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cache.condition import Condition, digests_of
from cache.record import Record


@dataclass(frozen=True, slots=True)
class Ban:
    """`at` is in seconds since the epoch; the condition is judged as of then. It must say something."""

    at: float
    condition: Condition

    def forbids(self, record: Record) -> bool:
        return record.made_at <= self.at and self.condition.meets(record, self.at)


class Bans:
    """All bans a process knows. A look costs a few dict look-ups, and nothing while there are none."""

    def __init__(self, bans: Iterable[Ban] = ()) -> None:
        self._by_mark: dict[str, list[Ban]] = {}  # those that name a digest or a tag
        self._others: list[Ban] = []
        for ban in bans:
            self.add(ban)

    def __bool__(self) -> bool:
        return bool(self._others or self._by_mark)

    def add(self, ban: Ban) -> None:
        mark = ban.condition.digest or next(iter(ban.condition.tags), "")
        (self._by_mark.setdefault(mark, []) if mark else self._others).append(ban)

    def forget(self, before: float) -> None:
        """Drop bans given before this time: whatever they forbid is gone by its age."""
        self._others = [ban for ban in self._others if ban.at >= before]
        kept = {mark: [ban for ban in bans if ban.at >= before] for mark, bans in self._by_mark.items()}
        self._by_mark = {mark: bans for mark, bans in kept.items() if bans}

    def forbid(self, record: Record) -> bool:
        if not self:
            return False
        return any(ban.forbids(record) for ban in self._concerning(record))

    def _concerning(self, record: Record) -> Iterable[Ban]:
        yield from self._others
        if self._by_mark:
            for mark in (*record.tags, *digests_of(record)):
                yield from self._by_mark.get(mark, ())
