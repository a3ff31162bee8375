"""Admission: who may begin a generation, asked before anything is begun.

Never asked of what costs no device: a hit, or joining what is under way. The others are refused where

- this process is short of memory (`pressure.py`): MEMORY_SHORT;
- as many generations are under way here as may be, or the tenant has its share of them (`cache/fair.py`): TENANT_SHARE
  says which;
- there is less time than the work takes on the device (DEADLINE_TOO_SHORT: asking again is of no use), or than it takes
  with the wait before it (QUEUE_TOO_LONG: asking again later is). Both go by what such work cost lately; of what was
  never seen nothing is known, and it is let in.

What a request comes down to only its worker knows: it may know the result by another spelling, or have a run of it
under way. So whoever would clearly be in time is let in at once, and the worker is asked about the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cache.description import Scope
from cache.fair import may_take
from gateway.costs import Costs
from gateway.errors import DeadlineExceeded, Overloaded
from gateway.forward import Forwarder
from gateway.parts import RUN
from gateway.plan import Plan
from gateway.pressure import Pressure
from gateway.workers import Fleet

_DOUBT = (
    1.25  # a line may take so much longer than it should: those before it are guesses too, and some are on their way
)


class Admission:
    """`places` is how many generations may be under way at once, `share` what one tenant may have of that."""

    def __init__(
        self, fleet: Fleet, forwarder: Forwarder, costs: Costs, pressure: Pressure, *, places: int, share: float
    ) -> None:
        self._fleet = fleet
        self._forwarder = forwarder
        self._costs = costs
        self._pressure = pressure
        self._places = places
        self._share = share

    def check_place(self, plan: Plan, under_way: Iterable[str]) -> None:
        """`under_way` are the namespaces of the tenants for whom generations are. Raises Overloaded."""
        self._pressure.admit_work()
        tenants = list(under_way)
        held = tenants.count(plan.namespaces[Scope.TENANT])
        if not may_take(held, len(tenants) - held, places=self._places, share=self._share):
            raise Overloaded("GATEWAY_BUSY" if len(tenants) >= self._places else "TENANT_SHARE")

    async def check_deadline(self, plan: Plan, left: Callable[[], float | None]) -> None:
        """`left` says how many seconds there are. Raises DeadlineExceeded and Overloaded, and what a run would be
        refused with.
        """
        seconds = left()
        if seconds is None or self._clearly_in_time(plan, seconds):
            return
        within = None if self._somebody_is_idle(plan) else seconds / _DOUBT
        foreseen = await self._forwarder.foresee(plan, {}, within=within)
        seconds = left()
        if seconds is None or foreseen is None or foreseen.under_way:
            return
        if all(report.outcome != RUN for report in foreseen.stages):
            return
        wait = 0.0 if self._somebody_is_idle(plan) else foreseen.wait_seconds
        told = {"device_seconds": f"{foreseen.run_seconds:.3f}", "wait_seconds": f"{wait:.3f}"}
        if foreseen.run_seconds > seconds:
            message = (
                f"the device would take about {foreseen.run_seconds:.3g} s, and there are {seconds:.3g} s: allow more"
            )
            raise DeadlineExceeded(message, reason="DEADLINE_TOO_SHORT", metadata=told)
        if (late := _DOUBT * wait + foreseen.run_seconds - seconds) > 0:
            raise Overloaded("QUEUE_TOO_LONG", retry_after=max(1.0, late), metadata=told)

    def _clearly_in_time(self, plan: Plan, seconds: float) -> bool:
        """Whether it would be even if every stage had to run, behind everybody who waits at its home."""
        description = plan.description
        home = self._fleet.home(description.model, description.revision, plan.affinity)
        if home is None or home.status is None:
            return True  # it will be told so
        wait = 0.0 if self._somebody_is_idle(plan) else home.status.queue_seconds
        guesses = (self._costs.estimate(description, stage.name, plan.parameters) for stage in plan.stages)
        return _DOUBT * wait + sum(guess or 0.0 for guess in guesses) <= seconds

    def _somebody_is_idle(self, plan: Plan) -> bool:
        """To whom a home with a line could leave it."""
        description = plan.description
        return bool(self._fleet.idle(description.model, description.revision, plan.affinity, without=()))
