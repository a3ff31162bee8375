"""Foresight: what a run would find and what it would do, told without doing it and without leaving a trace."""

from __future__ import annotations

from collections.abc import Sequence

from cache.description import Stage
from cache.reason import Reason, reason_of
from cache.record import Record
from cache.tier import TierName
from cache.work import divide
from inference.meaning import Meaning
from inference.plan import Plan
from inference.reports import not_needed_report, reports_of, reused_report, run_report
from inference.workshop import Workshop
from reprise.v1 import common_pb2 as pb


class _Sight:
    """What is there of each stage, as far as looking alone can tell."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.tiers: dict[str, TierName | None] = {}
        self.reasons: dict[str, Reason | None] = {}


async def foresee(
    shop: Workshop, plan: Plan, meaning: Meaning, *, result_only: bool = False
) -> tuple[list[pb.StageReport], Sequence[Stage]]:
    """A report for every stage, as a run of this plan would give it now, and the stages that it would run, each part of
    a text a stage of its own. Device seconds only of what is reused. With `result_only` nothing else is looked for.
    """
    final = meaning.final
    sight = _Sight()
    if not plan.reuse_nothing:
        stages = [stage for stage in meaning.stages if stage.cached and (stage is final or not result_only)]
        await _look(shop, plan, meaning, sight, stages)
    if final.name in sight.records:
        return [*map(not_needed_report, plan.stages[:-1]), _reused(final, sight)], ()

    def ran(stage: Stage) -> pb.StageReport:
        # Why there is no result, a gateway knows better.
        return run_report(stage, sight.reasons.get(stage.name) if stage is not final else None)

    work = divide(meaning.stages, meaning.outputs, sight.records)
    return reports_of(plan.stages, meaning, work, ran, lambda stage: _reused(stage, sight)), work.run


async def _look(shop: Workshop, plan: Plan, meaning: Meaning, sight: _Sight, stages: Sequence[Stage]) -> None:
    """In the order of a run: the pools, what the plan brought, the tiers."""
    now = shop.clock()
    for stage in stages:
        address = meaning.addresses[stage.name]
        for pool, tier in ((shop.pool, TierName.POOL), (shop.stock.host, TierName.L1)):
            hot = pool.peek(address)
            if hot is not None and plan.young_enough(hot.record, now) and not shop.bans.forbid(hot.record):
                sight.records.setdefault(stage.name, hot.record)
                sight.tiers.setdefault(stage.name, tier)
        if stage.name in sight.records:
            continue
        if (record := plan.brought(stage.name, address, now)) is not None and not shop.bans.forbid(record):
            sight.records[stage.name], sight.tiers[stage.name] = record, None
    addresses = {meaning.addresses[stage.name]: stage.name for stage in stages if stage.name not in sight.records}
    for address, found in (await shop.hierarchy.peek_many(list(addresses))).items():
        name = addresses[address]
        if found.record is None:
            sight.reasons[name] = reason_of(found.lookups)
        elif plan.young_enough(found.record, now):
            sight.records[name], sight.tiers[name] = found.record, found.tier
        else:
            sight.reasons[name] = Reason.POLICY


def _reused(stage: Stage, sight: _Sight) -> pb.StageReport:
    return reused_report(stage, sight.records[stage.name], sight.tiers[stage.name])
