"""Costs: what stages have cost lately, and so what one will cost. Seconds are device seconds, and never promised."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import NamedTuple, TypeAlias

from cache.description import Description, Scalar, Stage
from cache.keys import depends_on
from gateway.history import Asked
from gateway.parts import REUSED, RUN, is_mixed, is_repeat
from reprise.v1 import common_pb2 as pb

_SAMPLES = 5  # of equal work: the last ones
_VARIANTS = 32  # of one stage's work
_STAGES = 512  # of all models and revisions


class _Work(NamedTuple):
    """What the device time of a stage depends on, as far as the model says."""

    amounts: tuple[tuple[str, float], ...]  # of parameters that it grows with in proportion
    sort: tuple[Scalar, ...]  # what makes it other work altogether: choices, and which upstream outputs there are


_Key: TypeAlias = "tuple[str, str, str]"  # model, revision, stage or one part of it


class Costs:
    """Remembers in bounded memory. Belongs to one event loop."""

    def __init__(self) -> None:
        self._known: OrderedDict[_Key, OrderedDict[_Work, deque[float]]] = OrderedDict()

    def learn(
        self,
        description: Description,
        stage: str,
        parameters: Mapping[str, Scalar],
        seconds: float,
        *,
        hearsay: bool = False,
        part: bool = False,
    ) -> None:
        """A stage took so long for this request, or for one part of its text. Hearsay counts only while nothing better
        is known of equal work.
        """
        if not 0 <= seconds < math.inf:
            return  # no worker measures that
        work = _work_of(description, description.stage(stage), parameters)
        key = _key(description, stage, part)
        variants = self._known.setdefault(key, OrderedDict())
        self._known.move_to_end(key)
        if hearsay and work in variants:
            return
        variants.setdefault(work, deque(maxlen=_SAMPLES)).append(seconds)
        variants.move_to_end(work)
        while len(variants) > _VARIANTS:
            variants.popitem(last=False)
        while len(self._known) > _STAGES:
            self._known.popitem(last=False)

    def learn_all(
        self, description: Description, parameters: Mapping[str, Scalar], reports: Iterable[pb.StageReport]
    ) -> None:
        """What a generation took, stage by stage; of outputs it reused, what they had taken when they were made."""
        for report in reports:
            self.learn_parts(description, parameters, report, RUN, REUSED)
            ran = report.outcome == RUN
            if (ran or report.outcome == REUSED) and not is_mixed(report):
                self.learn(description, report.stage, parameters, report.device_seconds, hearsay=not ran)

    def learn_parts(
        self,
        description: Description,
        parameters: Mapping[str, Scalar],
        report: pb.StageReport,
        *outcomes: pb.StageOutcome,
    ) -> None:
        """What a stage took for the parts of a text of which this became."""
        for part in report.parts:
            if part.outcome in outcomes and not is_repeat(part):
                hearsay = part.outcome != RUN
                self.learn(description, report.stage, parameters, part.device_seconds, hearsay=hearsay, part=True)

    def learn_row(self, description: Description, row: Asked) -> None:
        """What the stages of an earlier request took, if it was for this model and its row says enough."""
        if (row.model, row.revision) != (description.model, description.revision):
            return
        named = {parameter.name: parameter.kind for parameter in description.parameters}
        if not row.fields.keys() >= named.keys():
            return
        if any(kind in ("int", "float") and isinstance(row.fields[name], str) for name, kind in named.items()):
            return  # anybody may have written the row
        for stage in {stage.name for stage in description.stages} & row.seconds.keys():
            self.learn(description, stage, row.fields, row.seconds[stage], hearsay=True)

    def estimate(
        self, description: Description, stage: str, parameters: Mapping[str, Scalar], *, part: bool = False
    ) -> float | None:
        """What this stage of this request should take, or each part of it. None: nothing like it has been seen.

        The median of equal work; else the nearest work there is, scaled by what the model says that time grows with.
        """
        variants = self._known.get(_key(description, stage, part))
        if not variants:
            return None
        work = _work_of(description, description.stage(stage), parameters)
        if work in variants:
            return median(variants[work])
        alike = [each for each in variants if each.sort == work.sort] or list(variants)
        nearest = min(reversed(alike), key=lambda each: sum(abs(math.log(ratio)) for ratio in _ratios(each, work)))
        return median(variants[nearest]) * math.prod(_ratios(nearest, work))

    def estimates(
        self, description: Description, stages: Iterable[Stage], parameters: Mapping[str, Scalar]
    ) -> dict[str, float]:
        """What each of these stages of a request should take, as far as is known; as "stage[]" each part of one."""
        guesses: dict[str, float | None] = {}
        for stage in stages:
            guesses[stage.name] = self.estimate(description, stage.name, parameters)
            if stage.each:
                guesses[f"{stage.name}[]"] = self.estimate(description, stage.name, parameters, part=True)
        return {name: seconds for name, seconds in guesses.items() if seconds is not None}


def _key(description: Description, stage: str, part: bool) -> _Key:
    return description.model, description.revision, f"{stage}[]" if part else stage


def _work_of(description: Description, stage: Stage, parameters: Mapping[str, Scalar]) -> _Work:
    own = set(stage.parameters.values())
    reach = {"stage": own, "onward": depends_on(description, stage)}
    amounts = [
        (parameter.name, float(parameters[parameter.name]))
        for parameter in description.parameters
        if parameter.proportional and parameter.name in reach[parameter.proportional]
    ]
    choices = [
        parameters[parameter.name]
        for parameter in description.parameters
        if parameter.kind == "choice" and parameter.name in own
    ]
    active = {each.name for each in description.active(parameters)}
    return _Work(tuple(amounts), (*choices, *sorted(active.intersection(stage.upstream.values()))))


def _ratios(known: _Work, wanted: _Work) -> list[float]:
    have = dict(known.amounts)
    return [value / have[name] for name, value in wanted.amounts if value > 0 and have.get(name, 0.0) > 0]
