"""Reports: what became of a stage, or would, as the contract says it."""

from __future__ import annotations

from cache.description import Stage
from cache.reason import Reason
from cache.record import Record
from cache.tier import Lookup, Outcome, TierName
from reprise.v1 import common_pb2 as pb

_TIERS = {
    TierName.L1: pb.TIER_L1,
    TierName.L2: pb.TIER_L2,
    TierName.L3: pb.TIER_L3,
    TierName.POOL: pb.TIER_POOL,
}
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


def not_needed_report(stage: Stage) -> pb.StageReport:
    return pb.StageReport(stage=stage.name, outcome=pb.STAGE_OUTCOME_NOT_NEEDED)


def reused_report(stage: Stage, record: Record, tier: TierName | None) -> pb.StageReport:
    return pb.StageReport(
        stage=stage.name,
        outcome=pb.STAGE_OUTCOME_REUSED,
        tier=_TIERS[tier] if tier is not None else pb.TIER_UNSPECIFIED,
        device_seconds=record.device_seconds,
    )


def lookup_message(lookup: Lookup) -> pb.TierLookup:
    return pb.TierLookup(tier=_TIERS[lookup.tier], outcome=_OUTCOMES[lookup.outcome], seconds=lookup.seconds)


def reason_message(reason: Reason | None) -> pb.MissReason:
    return _REASONS[reason] if reason is not None else pb.MISS_REASON_UNSPECIFIED
