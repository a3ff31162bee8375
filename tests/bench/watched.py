"""Watched: what each stage of a model spends, by any gauge that only grows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from inference.models.base import Call, Following, Output, Streamed, Tensors
from tests.inference.proof import StagedModel


@dataclass
class Watched:
    """A model, and what its stages have spent: seconds of the processor, unless the gauge shows something else."""

    model: StagedModel
    gauge: Callable[[], float] = time.process_time
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        self.description, self.device, self.pipeline = self.model.description, self.model.device, self.model.pipeline

    def run(self, stage: str, call: Call) -> Output:
        with self.counted(stage):
            return self.model.run(stage, call)

    def follow(self, stage: str, call: Call) -> Following:
        return _Following(self, stage, cast("Streamed", self.model).follow(stage, call))

    @contextmanager
    def counted(self, stage: str) -> Iterator[None]:
        begun = self.gauge()
        yield
        self.spent[stage] += self.gauge() - begun


@dataclass
class _Following:
    watched: Watched
    stage: str
    following: Following

    def feed(self, piece: Tensors) -> Iterator[Tensors]:
        with self.watched.counted(self.stage):
            made = list(self.following.feed(piece))
        yield from made

    def end(self) -> Iterator[Tensors]:
        with self.watched.counted(self.stage):
            made = list(self.following.end())
        yield from made
