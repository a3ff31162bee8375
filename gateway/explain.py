"""Explain: what a request would be answered with, now or after another one, without running anything.

A request is looked at as it would be looked up: memory, the tiers, the home worker, each asked without any effect. What
is found is a forecast; what another request would add to it is worked out here; both become the report that would come
with the result. Device time is estimated from what such work cost before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cache.build import Tiers
from cache.clock import steady
from cache.description import Stage
from cache.hierarchy import Found
from cache.keys import Key
from cache.parts import part_name, unfold
from cache.reason import Reason
from cache.record import Record
from cache.tier import Lookup, TierName
from cache.tier import Outcome as LookupOutcome
from cache.work import divide
from gateway.answer import Outcome, hit_stages, lookup_message, moment, outcome_message, reason_message, tier_message
from gateway.costs import Costs
from gateway.forward import Forwarder, sift
from gateway.history import History, Past
from gateway.parts import NOT_NEEDED, REUSED, RUN, apart, order_in, together
from gateway.plan import Plan, after_canonical
from gateway.reasons import Hints, Seen, seen, why_not_served, with_reasons
from gateway.wire import Reply
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import ExplainResponse


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one request would meet."""

    plan: Plan
    lookups: Sequence[Lookup] = ()
    record: Record | None = None  # of the result, where a tier would serve it
    stages: Sequence[pb.StageReport] = ()  # empty: the request would be refused
    missed: Seen = field(default_factory=Seen)
    hints: Mapping[str, Seen] = field(default_factory=dict)
    addresses: Mapping[str, str] = field(default_factory=dict)  # by stage, canonical as far as is known
    worker_asked: bool = False

    @property
    def made(self) -> set[str]:
        """Addresses of what this request would have added to the tiers."""
        if not self.plan.policy.store:
            return set()
        ran = [report for report in self.stages if report.outcome == RUN]
        own = {str(self.plan.addresses[report.stage]) for report in ran}
        kept = [name for report in ran if self.plan.description.stage(report.stage).cached for name in _ran(report)]
        return own | {self.addresses[name] for name in kept if name in self.addresses}


class Explainer:
    def __init__(
        self,
        tiers: Tiers,
        forwarder: Forwarder,
        history: History,
        costs: Costs,
        *,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._memory = tiers.memory
        self._hierarchy = tiers.below_memory
        self._forwarder = forwarder
        self._history = history
        self._costs = costs
        self._clock = clock

    async def explain(self, plan: Plan, after: Plan | None = None) -> ExplainResponse:
        """Raises InvalidField for what only a worker can refuse."""
        past = self._history.recall(plan)
        forecast = await self._foresee(plan, past)
        if after is not None:
            earlier = await self._foresee(after, past)
            forecast = _following(forecast, earlier)
            past.suppose(self._history.row_of(after, earlier.stages))
        await past.known()
        self._learn(plan, past, forecast.stages)
        return ExplainResponse(report=self._report(forecast, past), worker_asked=forecast.worker_asked)

    # What is there.

    async def _foresee(self, plan: Plan, past: Past) -> Forecast:
        reply = self._in_memory(plan) if plan.policy.read else None
        if reply is not None:
            return _served(Forecast(plan, [Lookup(TierName.L1, LookupOutcome.HIT)]), reply.record, TierName.L1)
        stages = plan.reachable if plan.policy.reuse and plan.policy.generate else ()
        wanted = {stage.name: plan.addresses[stage.name] for stage in stages}
        result = {plan.address} if plan.policy.read else set()
        asked = await self._hierarchy.peek_many([*result, *wanted.values()])
        found = asked.get(plan.address, Found(())) if plan.policy.read else Found(())
        memory = [Lookup(TierName.L1, LookupOutcome.MISS)] if plan.policy.read else []
        forecast = Forecast(plan, [*memory, *found.lookups], missed=seen(plan, found))
        if found.record is not None and found.tier is not None:
            if plan.policy.young_enough(found.record, self._clock()):
                return _served(forecast, found.record, found.tier)
        if not plan.policy.generate:
            return replace(forecast, addresses=_as_written(plan))
        records, hints = sift(plan, {stage: asked[address] for stage, address in wanted.items()}, self._clock())
        foreseen = await self._forwarder.foresee(plan, records)
        if foreseen is not None:
            reports, addresses = list(foreseen.stages), dict(foreseen.addresses)
        else:
            await past.known()
            reports, addresses = self._judge(plan, records, past), _as_written(plan)
        return replace(forecast, stages=reports, hints=hints, addresses=addresses, worker_asked=foreseen is not None)

    def _in_memory(self, plan: Plan) -> Reply | None:
        reply: Reply | None = self._memory.peek(Key.of_wire(plan.address))
        now = self._clock()
        if reply is None or now >= reply.record.expires_at or not plan.policy.young_enough(reply.record, now):
            return None
        return reply

    def _judge(self, plan: Plan, records: Mapping[str, tuple[Record, TierName]], past: Past) -> list[pb.StageReport]:
        """Without a worker: what the tiers have, and what this caller had made lately in the same words."""
        now = self._clock()
        readable = {name: _reused(name, record.device_seconds, tier) for name, (record, tier) in records.items()}
        for stage in plan.stages:
            if plan.policy.reuse and stage.cached and after_canonical(plan.description, stage.name):
                if past.why(plan.addresses[stage.name].content_id, stage.ttl, now) is Reason.EVICTED:
                    readable[stage.name] = pb.StageReport(stage=stage.name, outcome=REUSED)
        return _divided(plan.stages, readable, {})

    # What to say of it.

    def _learn(self, plan: Plan, past: Past, reports: Sequence[pb.StageReport]) -> None:
        known = [report for report in reports if report.outcome == REUSED and report.tier]
        self._costs.learn_all(plan.description, plan.parameters, known)
        for report in reports:
            self._costs.learn_parts(plan.description, plan.parameters, report, REUSED)
        for row in past.asked:
            self._costs.learn_row(plan.description, row)

    def _report(self, forecast: Forecast, past: Past) -> pb.CacheReport:
        plan, now = forecast.plan, self._clock()
        outcome = _outcome(forecast)
        reason = None
        if outcome is not Outcome.HIT or (forecast.record is None and forecast.stages[-1].tier):
            reason = why_not_served(plan, forecast.missed, past, now)
        stages = with_reasons(plan, forecast.stages, Hints(reason or Reason.NEW, forecast.hints), past, now)
        spent, saved = self._estimate(plan, stages, forecast.record)
        report = pb.CacheReport(
            outcome=outcome_message(outcome) if outcome is not None else pb.OUTCOME_UNSPECIFIED,
            tier=stages[-1].tier if outcome is Outcome.HIT else pb.TIER_UNSPECIFIED,
            lookups=map(lookup_message, forecast.lookups),
            stages=stages,
            device_seconds_spent=spent,
            device_seconds_saved=saved,
            address=str(plan.address),
            reason=reason_message(reason),
            nearest=past.nearest(),
            folded=plan.folded,
        )
        if forecast.record is not None:
            report.made_at.CopyFrom(moment(forecast.record.made_at))
        return report

    def _estimate(self, plan: Plan, stages: Sequence[pb.StageReport], record: Record | None) -> tuple[float, float]:
        """Device seconds to be spent and saved; writes what it knows of each stage into its report."""
        spent = whole = 0.0
        for report in stages:
            if report.parts:
                run, reuse = self._estimate_parts(plan, report)
                whole, spent = whole + run + reuse, spent + run
                continue
            seconds = report.device_seconds
            if report.outcome != REUSED or not report.tier:
                guess = self._costs.estimate(plan.description, report.stage, plan.parameters)
                seconds = guess or 0.0
                if guess is not None and report.outcome in (RUN, REUSED):
                    report.device_seconds, report.estimated = guess, True
            whole += seconds
            spent += seconds if report.outcome == RUN else 0.0
        return spent, max(0.0, (record.total_device_seconds if record is not None else whole) - spent)

    def _estimate_parts(self, plan: Plan, report: pb.StageReport) -> tuple[float, float]:
        """The same of a stage that runs once for every part of a text."""
        guess = self._costs.estimate(plan.description, report.stage, plan.parameters, part=True)
        seconds = {RUN: 0.0, REUSED: 0.0, NOT_NEEDED: 0.0}
        for part in report.parts:
            if part.outcome == RUN or (part.outcome == REUSED and not part.device_seconds):
                part.device_seconds = guess or 0.0
            seconds[part.outcome] += guess or 0.0 if part.outcome == NOT_NEEDED else part.device_seconds
        if report.outcome == RUN or not report.device_seconds:
            report.device_seconds = seconds[report.outcome] if report.outcome != NOT_NEEDED else 0.0
            report.estimated = guess is not None and report.outcome != NOT_NEEDED
        return seconds[RUN], seconds[REUSED] + seconds[NOT_NEEDED]


def _served(forecast: Forecast, record: Record, tier: TierName) -> Forecast:
    stages = hit_stages(forecast.plan.stages, record, tier)
    return replace(forecast, record=record, stages=stages, addresses=_as_written(forecast.plan), worker_asked=False)


def _following(forecast: Forecast, earlier: Forecast) -> Forecast:
    """The same request, once the earlier one is done."""
    plan, made = forecast.plan, earlier.made
    if forecast.record is not None:
        return forecast
    certain = earlier.worker_asked or earlier.record is not None or not earlier.stages
    final, asked = plan.description.final.name, forecast.worker_asked and certain
    if plan.policy.read and {str(plan.address), forecast.addresses[final]} & made:
        stages = [pb.StageReport(stage=stage.name, outcome=NOT_NEEDED) for stage in plan.stages[:-1]]
        return replace(forecast, stages=[*stages, pb.StageReport(stage=final, outcome=REUSED)], worker_asked=asked)
    if not plan.policy.reuse or not plan.policy.generate:
        return replace(forecast, worker_asked=asked)
    order = order_in(plan.stages, {report.stage: report for report in forecast.stages}, forecast.addresses)
    if order is None:
        return replace(forecast, worker_asked=asked)
    before: dict[str, pb.StageReport] = {}
    for report in forecast.stages:
        places = order.get(plan.description.stage(report.stage).each)
        before |= apart(report, places) if places is not None else {report.stage: report}
    readable = {name: report for name, report in before.items() if report.outcome == REUSED}
    if final in readable:
        return replace(forecast, worker_asked=asked)
    where = _by_number(plan, order, forecast.addresses)
    unfolded = unfold(plan.stages, order) if order else plan.stages
    for stage in unfolded:
        if stage.cached and where.get(stage.name) in made:
            readable.setdefault(stage.name, pb.StageReport(stage=stage.name, outcome=REUSED))
    divided = {report.stage: report for report in _divided(unfolded, readable, before)}
    reports = [
        together(stage.name, order[stage.each], divided) if stage.each in order else divided[stage.name]
        for stage in plan.stages
    ]
    return replace(forecast, stages=reports, worker_asked=asked)


def _by_number(plan: Plan, order: Mapping[str, Sequence[int]], addresses: Mapping[str, str]) -> dict[str, str]:
    """Address of every stage that the request has, with each part a stage of its own."""
    where = {stage.name: addresses[stage.name] for stage in plan.stages if stage.each not in order}
    for stage in plan.stages:
        for place, number in enumerate(order.get(stage.each, ())):
            where[part_name(stage.name, number)] = addresses[part_name(stage.name, place)]
    return where


def _ran(report: pb.StageReport) -> list[str]:
    """What a stage that runs is called where addresses are named: each part of it that does, by place."""
    if not report.parts:
        return [report.stage]
    return [part_name(report.stage, place) for place, part in enumerate(report.parts) if part.outcome == RUN]


def _divided(
    stages: Sequence[Stage], readable: Mapping[str, pb.StageReport], before: Mapping[str, pb.StageReport]
) -> list[pb.StageReport]:
    """A report for every stage if these can be read; of those that run, as they were reported before."""
    work = divide(stages, (), readable)
    run, reuse = {stage.name for stage in work.run}, {stage.name for stage in work.reuse}
    reports = []
    for stage in stages:
        if stage.name in reuse:
            reports.append(readable[stage.name])
        elif stage.name in run:
            reports.append(before.get(stage.name, pb.StageReport(stage=stage.name, outcome=RUN)))
        else:
            reports.append(pb.StageReport(stage=stage.name, outcome=NOT_NEEDED))
    return reports


def _outcome(forecast: Forecast) -> Outcome | None:
    """How the request would be answered. None: it would be refused."""
    if not forecast.stages:
        return None
    if all(report.outcome != RUN for report in forecast.stages):
        return Outcome.HIT
    policy = forecast.plan.policy
    return Outcome.MISS if policy.reuse or policy.store else Outcome.BYPASS


def _reused(stage: str, device_seconds: float, tier: TierName) -> pb.StageReport:
    return pb.StageReport(stage=stage, outcome=REUSED, tier=tier_message(tier), device_seconds=device_seconds)


def _as_written(plan: Plan) -> dict[str, str]:
    return {stage: str(address) for stage, address in plan.addresses.items()}
