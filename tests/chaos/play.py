"""Plays cases one after the other on one stack: steps, mending, history."""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.chaos.case import CannotBeHad, Case, Figure, Scene, Sheet
from tests.chaos.clients import Callers, Heard, Oracle
from tests.chaos.history import Before, History
from tests.chaos.world import World


@dataclass
class Played:
    """What came of a case."""

    case: Case
    began: float  # on the callers' clock
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)  # of the history checker
    error: str = ""  # of the case itself, which then judged nothing
    missing: str = ""  # what this machine lacks for it
    log: list[Heard] = field(default_factory=list)
    faults: list[tuple[float, float, str]] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        return not self.error and not self.findings and all(figure.kept for figure in self.figures)

    @property
    def verdict(self) -> str:
        return "cannot be had here" if self.missing else "kept" if self.kept else "BROKEN"


class Play:
    """One stack, one oracle, seeds that are used once."""

    def __init__(self, world: World, *, full: bool) -> None:
        self._world = world
        self._oracle = Oracle()
        self._history = History(self._oracle)
        self._full = full
        self._seeds = itertools.count(1)

    async def case(self, case: Case, told: Callable[[Figure, Played], None] = lambda figure, played: None) -> Played:
        """`told` hears of each figure as it is found; the callers' log grows meanwhile."""
        self._world.begin()
        before = await Before.of(self._world)
        played = Played(case, time.monotonic())
        async with Callers(self._world.door, self._oracle) as callers:
            scene = Scene(self._world, callers, Sheet(lambda figure: told(figure, played)), self._seeds, self._full)
            played.figures, played.log, played.faults = scene.sheet.figures, callers.log, scene.faults
            try:
                await case.steps(scene)
            except CannotBeHad as lack:
                played.missing = str(lack)
            except Exception:  # noqa: BLE001 - the others are still to be played
                played.error = traceback.format_exc()
            played.seconds = time.monotonic() - played.began
            await self._world.mended()
            played.findings = await self._history.findings(scene, before)
        return played

    async def lost(self) -> list[str]:
        """Of all that was ever called durable, what cannot be read."""
        return await self._history.lost(self._world)
