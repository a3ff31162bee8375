"""Answer: where a result came from. One value; the report, the `cache-status` trailer, the span and the counters are
views of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.trace import Span

from cache.description import Stage
from cache.keys import Address
from cache.reason import Reason
from cache.record import Record
from cache.tier import Lookup, TierName
from cache.tier import Outcome as LookupOutcome
from gateway.plan import StandIn
from reprise.v1 import common_pb2 as pb

_LAST_MOMENT = 253_402_300_799.0  # seconds; more has no message
_TIERS = {
    TierName.L1: pb.TIER_L1,
    TierName.L2: pb.TIER_L2,
    TierName.L3: pb.TIER_L3,
    TierName.POOL: pb.TIER_POOL,
}
_LOOKUPS = {
    LookupOutcome.HIT: pb.LOOKUP_OUTCOME_HIT,
    LookupOutcome.MISS: pb.LOOKUP_OUTCOME_MISS,
    LookupOutcome.EXPIRED: pb.LOOKUP_OUTCOME_EXPIRED,
    LookupOutcome.CORRUPT: pb.LOOKUP_OUTCOME_CORRUPT,
    LookupOutcome.ERROR: pb.LOOKUP_OUTCOME_ERROR,
    LookupOutcome.TIMEOUT: pb.LOOKUP_OUTCOME_TIMEOUT,
    LookupOutcome.SKIPPED: pb.LOOKUP_OUTCOME_SKIPPED,
    LookupOutcome.INVALIDATED: pb.LOOKUP_OUTCOME_INVALIDATED,
    LookupOutcome.OFF: pb.LOOKUP_OUTCOME_OFF,
}

_REASONS: dict[Reason, pb.MissReason] = {
    Reason.NEW: pb.MISS_REASON_NEW,
    Reason.EXPIRED: pb.MISS_REASON_EXPIRED,
    Reason.EVICTED: pb.MISS_REASON_EVICTED,
    Reason.INVALIDATED: pb.MISS_REASON_INVALIDATED,
    Reason.POLICY: pb.MISS_REASON_POLICY,
    Reason.TIER_FAILED: pb.MISS_REASON_TIER_FAILED,
    Reason.DAMAGED: pb.MISS_REASON_DAMAGED,
    Reason.NEVER_KEPT: pb.MISS_REASON_NEVER_KEPT,
}


class Outcome(StrEnum):
    """How a request was answered."""

    HIT = "hit"
    MISS = "miss"
    COALESCED = "coalesced"
    BYPASS = "bypass"


_OUTCOMES = {
    Outcome.HIT: pb.OUTCOME_HIT,
    Outcome.MISS: pb.OUTCOME_MISS,
    Outcome.COALESCED: pb.OUTCOME_COALESCED,
    Outcome.BYPASS: pb.OUTCOME_BYPASS,
}


@dataclass(frozen=True, slots=True)
class Answer:
    outcome: Outcome
    record: Record
    address: Address
    lookups: Sequence[Lookup]
    stages: Sequence[pb.StageReport]
    tier: TierName | None = None  # that gave the bytes, for a hit
    reason: Reason | None = None  # why this request was not answered from a tier
    nearest: pb.Nearest | None = None
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict)  # by medium: what the result rests on
    folded: Sequence[str] = ()  # what was changed in a text before it was read
    first_audio: float | None = None  # seconds until a listener was told the first samples

    @property
    def device_seconds_spent(self) -> float:
        if self.outcome in (Outcome.HIT, Outcome.COALESCED):
            return 0.0
        return sum(stage.device_seconds for stage in self.stages if stage.outcome == pb.STAGE_OUTCOME_RUN)

    @property
    def device_seconds_saved(self) -> float:
        return max(0.0, self.record.total_device_seconds - self.device_seconds_spent)

    def report(self) -> pb.CacheReport:
        return pb.CacheReport(
            outcome=_OUTCOMES[self.outcome],
            tier=tier_message(self.tier),
            lookups=map(lookup_message, self.lookups),
            stages=self.stages,
            device_seconds_spent=self.device_seconds_spent,
            device_seconds_saved=self.device_seconds_saved,
            made_at=moment(self.record.made_at),
            address=str(self.address),
            reason=reason_message(self.reason),
            nearest=self.nearest,
            similar=[
                pb.SimilarPicture(
                    media=name,
                    distance=stand_in.likeness.distance,
                    thumbnail_difference=stand_in.likeness.difference,
                    identity=stand_in.identity,
                )
                for name, stand_in in self.stand_ins.items()
            ],
            folded=self.folded,
        )

    @property
    def differing(self) -> str:
        """The one field in which the nearest earlier request differs; for counting."""
        match list(self.nearest.differing) if self.nearest is not None else []:
            case []:
                return "none"
            case [field]:
                return field
        return "several"

    def cache_status(self, now: float) -> str:
        """One entry of an RFC 9211 `Cache-Status` field."""
        similar = max((stand_in.likeness.distance for stand_in in self.stand_ins.values()), default=None)
        return self._came_from(now) + (f"; similar={similar}" if similar is not None else "")

    def _came_from(self, now: float) -> str:
        match self.outcome:
            case Outcome.HIT:
                if not self.lookups or self.lookups[-1].outcome is not LookupOutcome.HIT:
                    # Forwarded, and a worker had it: under another spelling, or faster than our lookup.
                    return f"reprise; fwd=uri-miss; detail=worker-{self.tier.value if self.tier else 'flight'}"
                ttl = int(min(self.record.ttl, self.record.expires_at - now))
                return f"reprise; hit; ttl={ttl}; detail={self.tier.value if self.tier else ''}"
            case Outcome.COALESCED:
                return "reprise; fwd=uri-miss; collapsed"
            case Outcome.BYPASS:
                return "reprise; fwd=request"
            case Outcome.MISS:
                detail = f"; detail={self.reason.value}" if self.reason is not None else ""
                return f"reprise; fwd=uri-miss{detail}"

    def describe(self, span: Span) -> None:
        span.set_attributes(
            {
                "reprise.outcome": self.outcome.value,
                "reprise.tier": self.tier.value if self.tier else "",
                "reprise.address": str(self.address),
                "reprise.similar": len(self.stand_ins),
                "reprise.bytes": self.record.output.digest.size,
                "reprise.device_seconds.spent": self.device_seconds_spent,
                "reprise.device_seconds.saved": self.device_seconds_saved,
                "reprise.miss.reason": self.reason.value if self.reason else "",
            }
        )
        if self.first_audio is not None:
            span.set_attribute("reprise.first_audio_seconds", self.first_audio)


def hit_stages(stages: Sequence[Stage], record: Record, tier: TierName) -> list[pb.StageReport]:
    """Of a hit: the result was reused, and nothing before it was needed."""
    *before, final = stages
    return [
        *(pb.StageReport(stage=stage.name, outcome=pb.STAGE_OUTCOME_NOT_NEEDED) for stage in before),
        pb.StageReport(
            stage=final.name,
            outcome=pb.STAGE_OUTCOME_REUSED,
            tier=tier_message(tier),
            device_seconds=record.device_seconds,
        ),
    ]


def with_lookups(stages: Sequence[pb.StageReport], lookups: Mapping[str, Sequence[Lookup]]) -> list[pb.StageReport]:
    """Reports of stages with the questions that were asked for their outputs before."""
    reports = []
    for stage in stages:
        report = pb.StageReport(lookups=map(lookup_message, lookups.get(stage.stage, ())))
        report.MergeFrom(stage)
        reports.append(report)
    return reports


def moment(seconds: float) -> Timestamp:
    told = min(max(seconds, 0.0), _LAST_MOMENT)
    return Timestamp(seconds=int(told), nanos=int(told % 1 * 1e9))


def tier_message(tier: TierName | None) -> pb.Tier:
    return _TIERS[tier] if tier is not None else pb.TIER_UNSPECIFIED


def lookup_message(lookup: Lookup) -> pb.TierLookup:
    return pb.TierLookup(tier=_TIERS[lookup.tier], outcome=_LOOKUPS[lookup.outcome], seconds=lookup.seconds)


def lookup_outcome_message(outcome: LookupOutcome) -> pb.LookupOutcome:
    return _LOOKUPS[outcome]


def outcome_message(outcome: Outcome) -> pb.Outcome:
    return _OUTCOMES[outcome]


def tier_name(tier: pb.Tier) -> TierName | None:
    return next((name for name, message in _TIERS.items() if message == tier), None)


def reason_message(reason: Reason | None) -> pb.MissReason:
    return _REASONS[reason] if reason is not None else pb.MISS_REASON_UNSPECIFIED


def reason_name(message: pb.MissReason) -> Reason | None:
    return next((reason for reason, other in _REASONS.items() if other == message), None)
