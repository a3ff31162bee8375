"""Warm: results made before anybody asks, one after the other, at idle priority and within a budget of device seconds.

What to make comes from operators, or from what is asked often (`replays.py`). Each is planned as its caller would have
it, looked up, estimated by what `Explain` says, and, unless that would exceed the budget, resolved like any request: so
everything that holds for requests holds here, and an equal request that comes meanwhile shares the run.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from opentelemetry.context import Context

from cache.keys import Principal
from gateway.answer import Answer, Outcome
from gateway.errors import Internal, InvalidField, Overloaded, Refused
from gateway.explain import Explainer
from gateway.identity import NAME_RULE, is_name
from gateway.plan import Plan
from gateway.replays import Replays
from gateway.resolve import Resolver, Visit
from gateway.tasks import ANIMATE, SPEAK, Request, quieten, request_in
from reprise.v1 import cache_pb2 as pb
from reprise.v1 import common_pb2

METHOD = "reprise.v1.CacheService/Warm"
MOST_FAVOURITES = 1000
MOST_FREQUENT = 20  # unless it is said
_MOST_AT_ONCE = 4  # warm-ups under way; each of them waits most of its time
_OUTCOMES = {
    Outcome.HIT: pb.WARM_OUTCOME_THERE,
    Outcome.MISS: pb.WARM_OUTCOME_MADE,
    Outcome.COALESCED: pb.WARM_OUTCOME_JOINED,
}


@dataclass
class _Progress:
    of: int
    budget: float  # seconds; infinite where there is none
    done: int = 0
    spent: float = 0.0

    @property
    def left(self) -> float:
        return self.budget - self.spent

    def told(self, warmed: pb.Warmed | None = None, summary: pb.WarmSummary | None = None) -> pb.WarmResponse:
        return pb.WarmResponse(
            done=self.done, of=self.of, device_seconds_spent=self.spent, warmed=warmed, summary=summary
        )


class Warmer:
    def __init__(
        self,
        plan: Callable[[Request, Principal], Awaitable[Plan]],
        explainer: Explainer,
        resolver: Resolver,
        replays: Replays,
        *,
        heartbeat: float,
    ) -> None:
        self._plan = plan
        self._explainer = explainer
        self._resolver = resolver
        self._replays = replays
        self._heartbeat = heartbeat
        self._under_way = 0

    async def warm(
        self, request: pb.WarmRequest, caller: Principal, parent: Context | None = None
    ) -> AsyncGenerator[pb.WarmResponse]:
        """How far it is, what became of each, and at last the sum of it. Raises Refused for the request as a whole."""
        budget = request.budget_device_seconds
        if not 0 <= budget < math.inf:
            raise InvalidField("budget_device_seconds", "must be a number of seconds, or 0 for no limit")
        if not request.favourites and not request.frequent:
            raise InvalidField("favourites", "give some, or ask for what is frequent")
        if len(request.favourites) > MOST_FAVOURITES:
            raise InvalidField("favourites", f"at most {MOST_FAVOURITES:,} at once")
        if request.most > MOST_FAVOURITES:
            raise InvalidField("most", f"at most {MOST_FAVOURITES:,}")
        with self._place():
            wanted = await self._wanted(request, caller)
            progress = _Progress(len(wanted), budget or math.inf)
            counts: Counter[pb.WarmOutcome] = Counter()
            yield progress.told()
            for position, favourite in enumerate(wanted):
                making = asyncio.create_task(self._make(position, favourite, caller, progress.left, parent))
                try:
                    while not (await asyncio.wait({making}, timeout=self._heartbeat))[0]:
                        yield progress.told()
                    warmed = making.result()
                finally:
                    making.cancel()
                    await asyncio.gather(making, return_exceptions=True)
                progress.done += 1
                progress.spent += warmed.device_seconds
                counts[warmed.outcome] += 1
                yield progress.told(warmed)
            yield progress.told(summary=_summary(counts))

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._under_way >= _MOST_AT_ONCE:
            raise Overloaded("GATEWAY_BUSY", retry_after=self._heartbeat)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    async def _wanted(self, request: pb.WarmRequest, caller: Principal) -> Sequence[pb.Favourite]:
        wanted = list(request.favourites)
        if request.frequent:
            tenant = request.tenant or caller.tenant
            if not is_name(tenant):
                raise InvalidField("tenant", NAME_RULE)
            wanted += await self._replays.most_asked(tenant, request.most or MOST_FREQUENT)
        return wanted

    async def _make(
        self, position: int, favourite: pb.Favourite, caller: Principal, left: float, parent: Context | None
    ) -> pb.Warmed:
        warmed = pb.Warmed(position=position)
        try:
            if left <= 0:
                warmed.outcome = pb.WARM_OUTCOME_OVER_BUDGET
                return warmed
            principal = _principal_of(favourite, caller)
            plan = (await self._plan(_quiet(favourite), principal)).ahead()
            if not (plan.policy.read and plan.policy.generate and plan.policy.store):
                raise InvalidField("cache_policy", "what is made for it would not be found again")
            warmed.address = str(plan.address)
            explained = (await self._explainer.explain(plan)).report
            if explained.outcome != common_pb2.OUTCOME_HIT:
                if _is_estimated(explained):
                    warmed.estimated_seconds = explained.device_seconds_spent
                if explained.device_seconds_spent > left:
                    warmed.outcome = pb.WARM_OUTCOME_OVER_BUDGET
                    return warmed
            answer = await self._resolve(plan, Visit(principal, METHOD, parent, _nobody_reads, warming=True))
        except Refused as refused:
            warmed.outcome, warmed.reason, warmed.field = (
                pb.WARM_OUTCOME_REFUSED,
                refused.reason,
                refused.field or "",
            )
        else:
            warmed.outcome = _OUTCOMES[answer.outcome]
            warmed.device_seconds, warmed.address = answer.device_seconds_spent, str(answer.address)
        return warmed

    async def _resolve(self, plan: Plan, visit: Visit) -> Answer:
        async with aclosing(self._resolver.resolve(plan, visit)) as responses:
            async for _ in responses:
                pass
        if visit.answer is None:
            raise Internal
        return visit.answer


def _quiet(favourite: pb.Favourite) -> Request:
    """The request in it, as `quieten` leaves it. Raises InvalidField."""
    quiet = pb.Favourite()
    quiet.CopyFrom(favourite)
    if (request := request_in(quiet)) is None:
        raise InvalidField(ANIMATE.name, f"give a request, here or as {SPEAK.name}")
    quieten(request)
    return request


def _principal_of(favourite: pb.Favourite, caller: Principal) -> Principal:
    if not favourite.tenant and not favourite.user:
        return caller
    if not is_name(favourite.tenant):
        raise InvalidField("tenant", NAME_RULE)
    if favourite.user and not is_name(favourite.user):
        raise InvalidField("user", NAME_RULE)
    return Principal(favourite.tenant, favourite.user)


def _is_estimated(report: common_pb2.CacheReport) -> bool:
    """Whether something is known of every stage that would run; else the sum is a lower bound."""
    return all(stage.estimated for stage in report.stages if stage.outcome == common_pb2.STAGE_OUTCOME_RUN)


def _summary(counts: Counter[pb.WarmOutcome]) -> pb.WarmSummary:
    return pb.WarmSummary(
        made=counts[pb.WARM_OUTCOME_MADE],
        there=counts[pb.WARM_OUTCOME_THERE],
        joined=counts[pb.WARM_OUTCOME_JOINED],
        over_budget=counts[pb.WARM_OUTCOME_OVER_BUDGET],
        refused=counts[pb.WARM_OUTCOME_REFUSED],
    )


def _nobody_reads(_status: str) -> None: ...
