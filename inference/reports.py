"""Reports: what became of a stage, or would, as the contract says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cache.description import Stage
from cache.parts import whole_name
from cache.reason import Reason
from cache.record import Record
from cache.tier import Lookup, Outcome, TierName
from cache.work import Work, read_by
from inference.meaning import Meaning
from reprise.v1 import common_pb2 as pb

_RUN, _REUSED, _NOT_NEEDED = pb.STAGE_OUTCOME_RUN, pb.STAGE_OUTCOME_REUSED, pb.STAGE_OUTCOME_NOT_NEEDED
_TIERS = {
    TierName.L1: pb.TIER_L1,
    TierName.L2: pb.TIER_L2,
    TierName.L3: pb.TIER_L3,
    TierName.POOL: pb.TIER_POOL,
}
_FAR = (pb.TIER_UNSPECIFIED, pb.TIER_POOL, pb.TIER_L1, pb.TIER_L2, pb.TIER_L3)  # the last is the farthest
_OUTCOMES = {
    Outcome.HIT: pb.LOOKUP_OUTCOME_HIT,
    Outcome.MISS: pb.LOOKUP_OUTCOME_MISS,
    Outcome.EXPIRED: pb.LOOKUP_OUTCOME_EXPIRED,
    Outcome.CORRUPT: pb.LOOKUP_OUTCOME_CORRUPT,
    Outcome.ERROR: pb.LOOKUP_OUTCOME_ERROR,
    Outcome.TIMEOUT: pb.LOOKUP_OUTCOME_TIMEOUT,
    Outcome.SKIPPED: pb.LOOKUP_OUTCOME_SKIPPED,
    Outcome.INVALIDATED: pb.LOOKUP_OUTCOME_INVALIDATED,
    Outcome.OFF: pb.LOOKUP_OUTCOME_OFF,
}
_REASONS = {  # that a worker can know
    Reason.EXPIRED: pb.MISS_REASON_EXPIRED,
    Reason.EVICTED: pb.MISS_REASON_EVICTED,
    Reason.INVALIDATED: pb.MISS_REASON_INVALIDATED,
    Reason.POLICY: pb.MISS_REASON_POLICY,
    Reason.TIER_FAILED: pb.MISS_REASON_TIER_FAILED,
    Reason.DAMAGED: pb.MISS_REASON_DAMAGED,
}


def reports_of(
    stages: Sequence[Stage],
    meaning: Meaning,
    work: Work,
    ran: Callable[[Stage], pb.StageReport],
    reused: Callable[[Stage], pb.StageReport],
) -> list[pb.StageReport]:
    """One for each stage of the description that a request has. `ran` and `reused` report what became of what has the
    name of this request.
    """
    running, reading = ({stage.name for stage in part} for part in (work.run, work.reuse))
    understood = {whole_name(name) for name in read_by(work)} & meaning.outputs.keys()
    reports: dict[str, pb.StageReport] = {}
    for stage in meaning.stages:
        if stage.name in running or stage.name in understood:
            reports[stage.name] = ran(stage)
        else:
            reports[stage.name] = reused(stage) if stage.name in reading else not_needed_report(stage)
    return [folded(stage, meaning.names(stage), reports) if stage.each else reports[stage.name] for stage in stages]


def folded(stage: Stage, names: Sequence[str], reports: Mapping[str, pb.StageReport]) -> pb.StageReport:
    """What became of a stage that ran for every part of a text. `names` are its parts' by place."""
    parts = [_part(reports[name], again=name in names[:place]) for place, name in enumerate(names)]
    outcomes = {part.outcome for part in parts}
    outcome = next(each for each in (_RUN, _REUSED, _NOT_NEEDED) if each in outcomes)
    counted = [part for part in parts if part.outcome == outcome]
    return pb.StageReport(
        stage=stage.name,
        outcome=outcome,
        tier=max((part.tier for part in counted), key=_FAR.index),
        device_seconds=sum(part.device_seconds for part in counted),
        reason=next((part.reason for part in counted if part.reason), pb.MISS_REASON_UNSPECIFIED),
        parts=parts,
        lookups=[lookup for name in dict.fromkeys(names) for lookup in reports[name].lookups],
    )


def _part(report: pb.StageReport, *, again: bool) -> pb.PartReport:
    if again and report.outcome == _RUN:  # what came before it in the text is not made twice
        return pb.PartReport(outcome=_REUSED, device_seconds=report.device_seconds)
    return pb.PartReport(
        outcome=report.outcome, tier=report.tier, device_seconds=report.device_seconds, reason=report.reason
    )


def run_report(stage: Stage, reason: Reason | None, device_seconds: float = 0.0) -> pb.StageReport:
    return pb.StageReport(stage=stage.name, outcome=_RUN, device_seconds=device_seconds, reason=reason_message(reason))


def not_needed_report(stage: Stage) -> pb.StageReport:
    return pb.StageReport(stage=stage.name, outcome=_NOT_NEEDED)


def reused_report(stage: Stage, record: Record, tier: TierName | None) -> pb.StageReport:
    return pb.StageReport(
        stage=stage.name,
        outcome=_REUSED,
        tier=_TIERS[tier] if tier is not None else pb.TIER_UNSPECIFIED,
        device_seconds=record.device_seconds,
    )


def lookup_message(lookup: Lookup) -> pb.TierLookup:
    return pb.TierLookup(tier=_TIERS[lookup.tier], outcome=_OUTCOMES[lookup.outcome], seconds=lookup.seconds)


def reason_message(reason: Reason | None) -> pb.MissReason:
    return _REASONS[reason] if reason is not None else pb.MISS_REASON_UNSPECIFIED
