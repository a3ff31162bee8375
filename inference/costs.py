"""Costs: device seconds of a run's outputs, each by itself and with everything that it is made of.

An encoding that every sentence of a text reads was made once, so it counts once in what the whole would cost from
nothing. Of what was found, a record says what it cost itself and in all; what lies between the two is known where the
records of its upstream were found too, and is otherwise shared by all outputs of which the same upstream is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cache.record import Record


class Costs:
    """`made_of` names, by stage, everything that it needs; `free` are stages that cost nothing."""

    def __init__(self, made_of: Mapping[str, frozenset[str]], free: Iterable[str]) -> None:
        self._made_of = made_of
        self._own = dict.fromkeys(free, 0.0)
        self._in_all: dict[str, float] = {}  # of what was found

    def know(self, records: Mapping[str, Record], reused: Iterable[str]) -> None:
        """Records by stage, and of which of these stages the outputs are read."""
        self._own |= {name: record.device_seconds for name, record in records.items()}
        self._in_all |= {name: records[name].total_device_seconds for name in reused}

    def spend(self, name: str, seconds: float) -> None:
        """A stage ran for so long."""
        self._own[name] = seconds

    def total(self, name: str) -> float:
        """What it would cost to have this output again from nothing."""
        needed = self._made_of[name] | {name}
        unknown: dict[frozenset[str], float] = {}
        for found in needed & self._in_all.keys():
            parts = self._made_of[found] | {found}
            if missing := frozenset(parts - self._own.keys()):
                rest = self._in_all[found] - self._sum(parts)
                unknown[missing] = max(unknown.get(missing, 0.0), rest)
        return self._sum(needed) + sum(unknown.values())

    def _sum(self, names: Iterable[str]) -> float:
        return sum(self._own.get(name, 0.0) for name in names)
