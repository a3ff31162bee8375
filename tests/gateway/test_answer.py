"""Answers: one value, and the report, the trailer and the span that are views of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from cache.tier import Lookup, TierName
from cache.tier import Outcome as LookupOutcome
from gateway.answer import (
    Answer,
    Outcome,
    hit_stages,
    lookup_outcome_message,
    outcome_message,
    tier_message,
    tier_name,
)
from gateway.ledger import Ledger
from reprise.v1 import common_pb2 as pb
from tests.cache.helpers import NOW, record_of
from tests.gateway.worker import family

RECORD = record_of(b"clip")  # cost 1.5 s itself and 4 s with everything before it
RAN = [
    pb.StageReport(stage="picture", outcome=pb.STAGE_OUTCOME_REUSED, device_seconds=1.0),
    pb.StageReport(stage="denoise", outcome=pb.STAGE_OUTCOME_RUN, device_seconds=2.0),
    pb.StageReport(stage="render", outcome=pb.STAGE_OUTCOME_RUN, device_seconds=1.0),
]
HIT = Answer(
    Outcome.HIT,
    RECORD,
    RECORD.address,
    [Lookup(TierName.L1, LookupOutcome.MISS, seconds=0.001), Lookup(TierName.L2, LookupOutcome.HIT, b"", 5, 0.25)],
    hit_stages(family().stages, RECORD, TierName.L2),
    TierName.L2,
)
MISS = Answer(Outcome.MISS, RECORD, RECORD.address, [], RAN)


@pytest.mark.parametrize(
    ("answer", "spent", "saved", "status"),
    [
        (HIT, 0.0, 4.0, "reprise; hit; ttl=600; detail=l2"),
        (replace(HIT, lookups=HIT.lookups[:1], tier=TierName.L3), 0.0, 4.0, "reprise; fwd=uri-miss; detail=worker-l3"),
        (replace(HIT, record=record_of(b"", max_age=30.0)), 0.0, 4.0, "reprise; hit; ttl=30; detail=l2"),
        (MISS, 3.0, 1.0, "reprise; fwd=uri-miss"),
        (replace(MISS, outcome=Outcome.COALESCED), 0.0, 4.0, "reprise; fwd=uri-miss; collapsed"),
        (replace(MISS, outcome=Outcome.BYPASS), 3.0, 1.0, "reprise; fwd=request"),
        (replace(MISS, record=replace(RECORD, total_device_seconds=1.0)), 3.0, 0.0, "reprise; fwd=uri-miss"),
    ],
)
def test_each_view_says_the_same(answer: Answer, spent: float, saved: float, status: str) -> None:
    """Who made it pays, everybody else saves the whole cost; nothing is saved below zero."""
    report = answer.report()
    assert (spent, saved) == (report.device_seconds_spent, report.device_seconds_saved)
    assert status == answer.cache_status(NOW)
    assert outcome_message(answer.outcome) == report.outcome
    span = TracerProvider().get_tracer("test").start_span("test")
    answer.describe(span)
    attributes = span.attributes  # type: ignore[attr-defined]  # of the SDK's span
    assert (answer.outcome.value, spent, saved, 4) == (
        attributes["reprise.outcome"],
        attributes["reprise.device_seconds.spent"],
        attributes["reprise.device_seconds.saved"],
        attributes["reprise.bytes"] or 4,
    )


def test_a_report_lists_lookups_and_stages_in_order() -> None:
    """Tiers as they were asked with their times; of a hit the last stage was reused and no other was needed."""
    report = HIT.report()
    assert [
        pb.TierLookup(tier=pb.TIER_L1, outcome=pb.LOOKUP_OUTCOME_MISS, seconds=0.001),
        pb.TierLookup(tier=pb.TIER_L2, outcome=pb.LOOKUP_OUTCOME_HIT, seconds=0.25),
    ] == list(report.lookups)
    not_needed = [pb.STAGE_OUTCOME_NOT_NEEDED] * 5
    assert [*not_needed, pb.STAGE_OUTCOME_REUSED] == [stage.outcome for stage in report.stages]
    assert (pb.TIER_L2, 1.5) == (report.stages[-1].tier, report.stages[-1].device_seconds)
    assert (pb.TIER_L2, str(RECORD.address)) == (report.tier, report.address)
    assert NOW == report.made_at.ToNanoseconds() / 1e9


def test_every_value_has_its_message() -> None:
    """Tiers, outcomes and lookups of ours map one to one to what the contract has, and tiers back."""
    tiers = {tier: tier_message(tier) for tier in TierName}
    assert {tier: tier for tier in TierName} == {tier: tier_name(message) for tier, message in tiers.items()}
    assert (None, pb.TIER_UNSPECIFIED) == (tier_name(pb.TIER_UNSPECIFIED), tier_message(None))
    assert set(pb.Outcome.values()) - {0} == {outcome_message(outcome) for outcome in Outcome}
    assert set(pb.LookupOutcome.values()) - {0} == {lookup_outcome_message(outcome) for outcome in LookupOutcome}


def test_the_ledger_adds_up() -> None:
    """Outcomes, device time and metrics come from the same answers."""
    registry = CollectorRegistry()
    ledger = Ledger(registry)
    for answer in (HIT, HIT, MISS):
        ledger.enter("Animate", answer, 0.5)
    ledger.generated()
    ledger.refused("Animate", "NOT_FOUND", "NOT_CACHED")

    assert {Outcome.HIT: 2, Outcome.MISS: 1} == dict(ledger.outcomes)
    assert (3.0, 9.0, 1) == (ledger.device_seconds_spent, ledger.device_seconds_saved, ledger.generations)
    hits = {"method": "Animate", "outcome": "hit", "tier": "l2"}
    assert 2.0 == registry.get_sample_value("reprise_answers_total", hits)
    assert 3.0 == registry.get_sample_value("reprise_device_seconds_spent_total")
    assert 9.0 == registry.get_sample_value("reprise_device_seconds_saved_total")
    assert 1.0 == registry.get_sample_value("reprise_generations_total")
    refused = {"method": "Animate", "code": "NOT_FOUND", "reason": "NOT_CACHED"}
    assert 1.0 == registry.get_sample_value("reprise_refusals_total", refused)
