"""A case: a fault, a promise, and the steps that judge it. Its figures are what was promised and what was seen."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tests.chaos.clients import Callers, Heard, Wish
from tests.chaos.world import World

Value: TypeAlias = float | int | bool | str


class CannotBeHad(Exception):
    """This machine does not allow the fault; the message says what is missing."""


@dataclass(frozen=True)
class Figure:
    """Something that was counted or measured, beside what was promised of it, if anything was."""

    what: str
    value: Value
    unit: str = ""
    promised: str = ""
    kept: bool = True

    @property
    def timed(self) -> bool:
        """A time, which says little where others use the machine too."""
        return self.unit in ("ms", "s")

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.what}: {_told(self.value)}{unit}" + (f" (promised: {self.promised})" if self.promised else "")


def _told(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


class Sheet:
    """What a case found."""

    def __init__(self, told: Callable[[Figure], None] = lambda figure: None) -> None:
        self.figures: list[Figure] = []
        self._told = told

    def tell(self, what: str, value: Value, unit: str = "") -> None:
        self._add(Figure(what, value, unit))

    def exactly(self, what: str, value: Value, promised: Value) -> None:
        self._add(Figure(what, value, "", _told(promised), value == promised))

    def at_most(self, what: str, value: float, promised: float, unit: str = "") -> None:
        self._add(Figure(what, value, unit, f"at most {promised:,g}", value <= promised))

    def at_least(self, what: str, value: float, promised: float, unit: str = "") -> None:
        self._add(Figure(what, value, unit, f"at least {promised:,g}", value >= promised))

    def _add(self, figure: Figure) -> None:
        self.figures.append(figure)
        self._told(figure)


@dataclass
class Scene:
    """What the steps of a case have: the stack, callers, a sheet for figures, and seeds that nobody had before."""

    world: World
    callers: Callers
    sheet: Sheet
    seeds: Iterator[int]
    full: bool  # as many as the case is about; else the share that fits among tests
    faults: list[tuple[float, float, str]] = field(default_factory=list)  # begin, end, what: for the time-line

    def size(self, full: int, share: int) -> int:
        return full if self.full else share

    def wishes(self, count: int, *, steps: int = 2, picture: int = 0) -> list[Wish]:
        return [Wish(next(self.seeds), steps, picture) for _ in range(count)]

    def during(self, what: str) -> _Window:
        """A block in which something is broken, for the time-line."""
        return _Window(self, what)

    def judge_answers(self, heard: Sequence[Heard] | None = None) -> None:
        """The promises of every case: nobody fails, and nobody gets anything else than the oracle knows."""
        told = self.callers.log if heard is None else heard
        failed = [each for each in told if each.outcome == "failed"]
        self.sheet.tell("requests", len(told))
        self.sheet.exactly(f"failed requests{reasons(failed)}", len(failed), 0)
        self.sheet.exactly("wrong answers", sum(bool(each.wrong) for each in told), 0)


def reasons(failed: Iterable[Heard]) -> str:
    found = sorted({f"{each.problem.code.name} {each.problem.reason}".strip() for each in failed if each.problem})
    return f" ({', '.join(found)})" if found else ""


class _Window:
    def __init__(self, scene: Scene, what: str) -> None:
        self._scene, self._what, self._began = scene, what, 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *exc: object) -> None:
        self._scene.faults.append((self._began, time.monotonic(), self._what))


Steps: TypeAlias = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Case:
    name: str
    fault: str
    promise: str
    steps: Steps
    share: bool  # also run among the tests


CASES: dict[str, Case] = {}
_PARTS = "RSIGCHLBMN"  # in the order of the matrix


def in_order(cases: Iterable[Case]) -> list[Case]:
    return sorted(cases, key=lambda each: (_PARTS.index(each.name[0]), int(each.name.split()[0][1:])))


def case(name: str, *, fault: str, promise: str, share: bool = False) -> Callable[[Steps], Steps]:
    """Registers steps as a case."""

    def register(steps: Steps) -> Steps:
        assert name not in CASES
        CASES[name] = Case(name, fault, promise, steps, share)
        return steps

    return register
