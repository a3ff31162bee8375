"""What the figures should come to. A missed aim is told, and is no failure: machines differ, and so do days."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.bench.figures import Cell, Figure, Figures, compared
from tests.bench.load import Slice
from tests.bench.subjects import CROWD, KIB

AT_MOST_OF_BARE = 1.15
AT_MOST_OF_NAIVE = 0.5
MISS_ADDS_MS = 3.0
CROWD_ADDS_MS = 25.0
HIT_MS = 10.0


@dataclass(frozen=True)
class Verdict:
    """One aim under one load."""

    aim: str
    where: str
    measured: Figure
    bound: float
    unit: str

    @property
    def held(self) -> bool:
        return self.measured.value <= self.bound

    def as_json(self) -> dict[str, Any]:
        return {
            "aim": self.aim,
            "where": self.where,
            "measured": self.measured.as_json(),
            "bound": self.bound,
            "unit": self.unit,
            "held": self.held,
        }


def verdicts(figures: Figures) -> list[Verdict]:
    """Every aim for which this run has the figures."""
    return [*_beside_bare(figures), *_beside_naive(figures), *_latencies(figures), *_generations(figures)]


def _beside_bare(figures: Figures) -> Iterator[Verdict]:
    for hit, bare in figures.pairs("L1", "bare"):
        ratio = compared(hit, bare, lambda each: each.cost, operator.truediv)
        yield Verdict("processor time of an L1 hit, of the bare server's", _where(hit), ratio, AT_MOST_OF_BARE, "x")


def _beside_naive(figures: Figures) -> Iterator[Verdict]:
    for hit, naive in figures.pairs("L1", "naive"):
        if hit.size >= 512 * KIB:
            ratio = compared(hit, naive, lambda each: each.cost, operator.truediv)
            yield Verdict("and of the naive server's", _where(hit), ratio, AT_MOST_OF_NAIVE, "x")


def _latencies(figures: Figures) -> Iterator[Verdict]:
    for cell in (*figures.of("L1"), *figures.of("L2")):
        if cell.clients == 1 and cell.size <= 512 * KIB:
            yield Verdict(f"an {cell.name} hit answers within", _where(cell), cell.p50, HIT_MS, "ms")


def _generations(figures: Figures) -> Iterator[Verdict]:
    for miss, generation in figures.pairs("miss", "generation"):
        added = compared(miss, generation, _typical, operator.sub)
        yield Verdict("a miss adds to its generation", _where(miss), added, MISS_ADDS_MS, "ms")
    for crowd, generation in figures.pairs(f"{CROWD} at once", "generation"):
        added = compared(crowd, generation, _typical, operator.sub)
        yield Verdict(f"{CROWD} cold ones end within, after one", _where(crowd), added, CROWD_ADDS_MS, "ms")


def _typical(each: Slice) -> float:
    return median(each.latencies) * 1e3


def _where(cell: Cell) -> str:
    clients = "1 client" if cell.clients == 1 else f"{cell.clients} clients"
    return f"{size_text(cell.size)}, {clients}"


def size_text(size: int) -> str:
    return f"{size // KIB} KB" if size < 1024 * KIB else f"{size // (1024 * KIB)} MB"
