"""Work: what a request comes down to once it is known which outputs there are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cache.description import Stage


@dataclass(frozen=True, slots=True)
class Work:
    """The stages to run, in order, and those whose outputs they read."""

    run: tuple[Stage, ...]
    reuse: tuple[Stage, ...]


def divide(stages: Sequence[Stage], given: Collection[str], readable: Collection[str]) -> Work:
    """Walk back from the result: what is needed is read where it can be, else it runs and its upstream is needed.

    `given` are stages whose outputs are at hand already; they appear in neither part. The result always runs.
    """
    needed = {stages[-1].name}
    run: list[Stage] = []
    reuse: list[Stage] = []
    for stage in reversed(stages):
        if stage.name not in needed or stage.name in given:
            continue
        if stage.name in readable and stage is not stages[-1]:
            reuse.append(stage)
        else:
            run.append(stage)
            needed.update(stage.upstream.values())
    return Work(tuple(reversed(run)), tuple(reversed(reuse)))


def read_by(work: Work) -> set[str]:
    """Names of the stages whose outputs are read by those that run."""
    return {name for stage in work.run for name in stage.upstream.values()}
