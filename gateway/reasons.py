"""Reasons: why a request had to be generated, and each of its stages run. The same for a report and for an explanation.

What is certain goes first: the request's policy, what is never kept, what the tiers or the worker saw. Only then does
the history of the caller tell what is new from what is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cache import tags
from cache.description import Scope
from cache.digest import Digest
from cache.hierarchy import Found
from cache.keys import ancestors, depends_on
from cache.reason import Reason, any_failed, reason_of
from cache.record import Output, Record
from cache.tier import Outcome
from gateway.answer import reason_message, reason_name
from gateway.history import Past
from gateway.plan import Plan
from reprise.v1 import common_pb2 as pb


@dataclass(frozen=True, slots=True)
class Seen:
    """What the tiers said when they were asked for a result, or for a stage's output, and had none to give."""

    reason: Reason | None = None  # None: they have none, and say no more
    failed: bool = False  # one could not be asked
    asked: bool = False  # they were asked at all; not about what only a worker can name, or was missing just now


def seen(plan: Plan, found: Found) -> Seen:
    """Of a lookup that gave nothing."""
    lookups, reason = found.lookups, reason_of(found.lookups)
    if reason is None and found.lost:
        reason = Reason.EVICTED
    if reason is None and plan.policy.max_age is not None and any(each.outcome is Outcome.HIT for each in lookups):
        reason = Reason.POLICY  # there is one, too old for this request
    return Seen(reason, any_failed(lookups), bool(lookups))


def why_not_served(plan: Plan, told: Seen, past: Past, now: float) -> Reason:
    """Why the result was not served from a tier."""
    final = plan.description.final
    if not plan.policy.read:
        return Reason.POLICY
    if not final.cached:
        return Reason.NEVER_KEPT
    return told.reason or _by_history(plan, final.name, told, past, now)


@dataclass(frozen=True, slots=True)
class Hints:
    """What is known of single stages beside the history."""

    result: Reason  # why the result was not served
    stages: Mapping[str, Seen] = field(default_factory=dict)


def with_reasons(
    plan: Plan, reports: Sequence[pb.StageReport], hints: Hints, past: Past, now: float
) -> list[pb.StageReport]:
    """Copies of these reports (others may see them too) in which each stage that runs says why, and each part of one
    of which nobody knows better.
    """
    told = []
    for report in reports:
        mine = pb.StageReport()
        mine.CopyFrom(report)
        if mine.outcome == pb.STAGE_OUTCOME_RUN:
            mine.reason = reason_message(_why_run(plan, mine, hints, past, now))
            for part in mine.parts:
                if part.outcome == pb.STAGE_OUTCOME_RUN and not part.reason:
                    part.reason = mine.reason
        told.append(mine)
    return told


def _why_run(plan: Plan, report: pb.StageReport, hints: Hints, past: Past, now: float) -> Reason:
    stage = plan.description.stage(report.stage)
    if stage is plan.description.final:
        return hints.result
    if not plan.policy.reuse:
        return Reason.POLICY
    if not stage.cached:
        return Reason.NEVER_KEPT
    told = hints.stages.get(stage.name, Seen())
    return told.reason or reason_name(report.reason) or _by_history(plan, stage.name, told, past, now)


def _by_history(plan: Plan, stage: str, told: Seen, past: Past, now: float) -> Reason:
    why = past.why(plan.addresses[stage].content_id, plan.description.stage(stage).ttl, now)
    if why is Reason.EVICTED and _was_banned(plan, stage, past):
        return Reason.INVALIDATED
    if why is Reason.EVICTED and told.failed:
        return Reason.TIER_FAILED
    if why is Reason.EVICTED and plan.policy.max_age is not None and not told.asked:
        return Reason.POLICY  # it should be there, and nobody had to look whether it is young enough
    return why


def _was_banned(plan: Plan, stage: str, past: Past) -> bool:
    """Whether what this caller had of a stage fell under an invalidation, as far as the request tells what it was."""
    last = past.last_kept(plan.addresses[stage].content_id)
    return last is not None and bool(past.bans) and past.bans.forbid(_as_made(plan, stage, last))


def _as_made(plan: Plan, name: str, at: float) -> Record:
    """What the record of a stage said, in all that an invalidation may be about, except labels."""
    description, before = plan.description, ancestors(plan.description, name)
    stage, media = description.stage(name), plan.media_tags
    marks = [
        tags.of_tenant(plan.namespaces[Scope.TENANT]),
        tags.of_user(plan.namespaces[Scope.USER]),
        *(mark for each in depends_on(description, stage) & media.keys() for mark in media[each]),
        *(tags.of_ancestor(plan.addresses[each].content_id) for each in before & plan.addresses.keys()),
        *map(tags.of_stage, before),
    ]
    return Record(
        address=plan.addresses[name],
        model=description.model,
        revision=description.revision,
        stage=name,
        fingerprint=stage.fingerprint,
        output=Output(Digest("", 0), ""),
        device_seconds=0.0,
        total_device_seconds=0.0,
        made_at=at,
        touched_at=at,
        ttl=stage.ttl,
        expires_at=at + stage.max_age,
        tags=tuple(marks),
    )
