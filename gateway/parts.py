"""Parts: reports of stages that run once for every part of a text, taken apart and put together again.

Parts are counted by place here: "speech[2]" is what is said third, and is the same output as "speech[0]" where the
text says the same thing there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cache.description import Stage
from cache.parts import part_name
from reprise.v1 import common_pb2 as pb

RUN, REUSED, NOT_NEEDED = pb.STAGE_OUTCOME_RUN, pb.STAGE_OUTCOME_REUSED, pb.STAGE_OUTCOME_NOT_NEEDED
_FAR = (pb.TIER_UNSPECIFIED, pb.TIER_POOL, pb.TIER_L1, pb.TIER_L2, pb.TIER_L3)  # the last is the farthest


def is_repeat(part: pb.PartReport) -> bool:
    """Whether a part is reused from no tier: an equal one came before it in the same text."""
    return part.outcome == REUSED and not part.tier


def is_mixed(report: pb.StageReport) -> bool:
    """Whether a stage ran for some parts of a text and not for others: what it cost says little of the next text."""
    return len({part.outcome for part in report.parts if not is_repeat(part)}) > 1


def order_in(
    stages: Sequence[Stage], reports: Mapping[str, pb.StageReport], addresses: Mapping[str, str]
) -> dict[str, list[int]] | None:
    """Which part stands at each place of each text, as `cache.parts.unfold` wants it, by what a worker calls them.

    Nothing where no worker was asked, so that nobody knows of parts. None: it does not say of every place.
    """
    order: dict[str, list[int]] = {}
    for stage in stages:
        if stage.each and (parts := reports[stage.name].parts):
            places = [part_name(stage.name, place) for place in range(len(parts))]
            if not addresses.keys() >= set(places):
                return None
            numbers: dict[str, int] = {}
            order[stage.each] = [numbers.setdefault(addresses[place], len(numbers)) for place in places]
    return order


def apart(report: pb.StageReport, order: Sequence[int]) -> dict[str, pb.StageReport]:
    """A report of each distinct part, by the name that it has when its stage is unfolded."""
    found: dict[str, pb.StageReport] = {}
    for number, part in zip(order, report.parts, strict=True):
        name = part_name(report.stage, number)
        alone = pb.StageReport(
            stage=name,
            outcome=part.outcome,
            tier=part.tier,
            device_seconds=part.device_seconds,
            reason=part.reason,
        )
        found.setdefault(name, alone)
    return found


def together(stage: str, order: Sequence[int], reports: Mapping[str, pb.StageReport]) -> pb.StageReport:
    """The reverse: one report of a stage, with a part for each place of its text."""
    parts: list[pb.PartReport] = []
    for place, number in enumerate(order):
        alone = reports[part_name(stage, number)]
        if number in order[:place] and alone.outcome == RUN:
            parts.append(pb.PartReport(outcome=REUSED, device_seconds=alone.device_seconds))
            continue
        parts.append(
            pb.PartReport(
                outcome=alone.outcome,
                tier=alone.tier,
                device_seconds=alone.device_seconds,
                reason=alone.reason,
            )
        )
    outcome = next(each for each in (RUN, REUSED, NOT_NEEDED) if any(part.outcome == each for part in parts))
    alike = [part for part in parts if part.outcome == outcome]
    return pb.StageReport(
        stage=stage,
        outcome=outcome,
        tier=max((part.tier for part in alike), key=_FAR.index),
        device_seconds=sum(part.device_seconds for part in alike),
        parts=parts,
    )
