"""From turns to figures: every round gives one, and what is told is their median with the lowest and the highest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tests.bench.load import Slice


@dataclass(frozen=True)
class Figure:
    """A median over rounds, and its spread."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        rounds = list(values)
        return cls(median(rounds), min(rounds), max(rounds))

    def as_json(self) -> dict[str, float]:
        return {"median": self.value, "low": self.low, "high": self.high}


@dataclass
class Cell:
    """One subject under one load, in every round so far."""

    name: str
    size: int
    clients: int
    rounds: list[Slice] = field(default_factory=list)

    @property
    def p50(self) -> Figure:
        """Latency, in milliseconds."""
        return Figure.of(median(each.latencies) * 1e3 for each in self.rounds)

    @property
    def p99(self) -> float:
        """Latency, in milliseconds, over all rounds together."""
        latencies = sorted(latency for each in self.rounds for latency in each.latencies)
        return latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))] * 1e3

    @property
    def cost(self) -> Figure:
        """Processor time of one request, in milliseconds."""
        return Figure.of(each.cost * 1e3 for each in self.rounds)

    @property
    def rate(self) -> Figure:
        """Answers per second."""
        return Figure.of(each.rate for each in self.rounds)

    @property
    def requests(self) -> int:
        return sum(len(each.latencies) for each in self.rounds)

    @property
    def strays(self) -> int:
        return sum(each.strays for each in self.rounds)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "size": self.size,
            "clients": self.clients,
            "requests": self.requests,
            "strays": self.strays,
            "p50_ms": self.p50.as_json(),
            "p99_ms": self.p99,
            "processor_ms": self.cost.as_json(),
            "per_second": self.rate.as_json(),
        }


class Figures:
    """All cells, by name, size and number of clients."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.cells = list(cells)

    def of(self, name: str, size: int | None = None) -> list[Cell]:
        return [cell for cell in self.cells if cell.name == name and size in (None, cell.size)]

    def pairs(self, name: str, other: str) -> list[tuple[Cell, Cell]]:
        """Cells of two names that were measured under the same load."""
        return [(one, two) for one in self.of(name) for two in self.of(other, one.size) if two.clients == one.clients]


def compared(one: Cell, two: Cell, by: Callable[[Slice], float], how: Callable[[float, float], float]) -> Figure:
    """What two subjects are to each other, round by round, so that what slowed a whole round down cancels out."""
    return Figure.of(how(by(a), by(b)) for a, b in zip(one.rounds, two.rounds, strict=True))
