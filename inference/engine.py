"""Engine: who follows which run. Understand a plan, join the run for its result or lead it, tell what happens.

| event | result |
|---|---|
| equal plans at once, in any spelling | one run, told to all; late ones hear first what was told before |
| somebody follows a run for which nobody waited | it waits behind others no longer |
| a follower leaves | the run goes on for the others |
| the last one leaves | queued work is dropped once the grace is over; running work ends and is stored |
| nobody waits for it any more, followed or not | it waits behind those that somebody waits for, until somebody does |
| a follower abandons | its stream ends; if it was the last, queued work is dropped and running work stops at a step |
| a run fails | all followers hear why, once; the next plan starts anew |
| more runs wait than must, and other workers are idle | the later ones are handed over (see `handover.py`) |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakKeyDictionary

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode

from cache.bans import Ban
from cache.description import canonical_first
from cache.digest import Digest
from cache.flight import Deserted, Flight, Flights
from cache.keys import Address
from cache.orders import Order
from cache.parts import part_name
from cache.pins import Pin
from cache.sweep import Gone
from cache.switches import Switch
from cache.telemetry import bind
from inference.device import DeviceThread
from inference.errors import Abandoned, Fault, NoSuchRun, NotReady, Refused
from inference.events import Event, Outcome
from inference.foresight import foresee
from inference.handover import Note, Notes
from inference.job import Job
from inference.meaning import Meaning, meaning_of, understand
from inference.models.base import Model, Tensors, weight_of
from inference.plan import Plan, read_plan
from inference.status import report_fault
from inference.turns import Ticket
from inference.workshop import Workshop
from reprise.v1.inference_pb2 import Elsewhere, ForeseeResponse, RunRequest, RunResponse, StatusResponse

_Key: TypeAlias = "tuple[Address, bool, bool, float | None]"


@dataclass(eq=False)
class _Follower:
    flight: Flight[Event]
    waits: bool  # whether somebody waits for what it is told
    gone: bool = False


class Engine:
    """`grace` is how long, in seconds, queued work waits for its last follower to come back. `spill_after` is how many
    runs wait here before later ones are handed over to workers that are idle; None: none ever.
    """

    def __init__(
        self, models: Mapping[str, Model], shop: Workshop, *, grace: float, spill_after: int | None = 1
    ) -> None:
        self.models = models
        self.shop = shop
        self.draining = False
        self._spill_after = spill_after
        self._model_bytes = sum(weight_of(model.modules) for model in models.values())
        self._flights: Flights[_Key, Event] = Flights(grace=grace)
        self._notes: Notes[_Key] = Notes(grace=grace)
        self._jobs: WeakKeyDictionary[Flight[Event], Job] = WeakKeyDictionary()
        # Those that may be handed over while they wait, and to whom.
        self._movable: WeakKeyDictionary[Flight[Event], tuple[_Key, tuple[str, ...]]] = WeakKeyDictionary()
        self._followers: dict[str, _Follower] = {}  # those with a name
        self._all_followers: dict[Flight[Event], list[_Follower]] = {}
        # What a request means is needed before it can be known whether anything must wait, so it never waits itself.
        self._hosts = {name: DeviceThread(shop.device.device, f"canonical-{name}", beside=True) for name in models}

    @property
    def under_way(self) -> int:
        """Runs that are not over: waiting, running, or being stored."""
        return len(self._flights)

    async def plan(
        self, request: RunRequest, contents: Mapping[str, bytes] | None = None, *, parent: Context | None = None
    ) -> Plan:
        """The plan in a request, with the media that came beside it. Raises InvalidInput and PlanDiffers."""
        return await asyncio.to_thread(read_plan, request, self.models, contents, parent)

    async def run(self, plan: Plan) -> AsyncGenerator[RunResponse]:
        """Everything that happens to the run that answers this plan, to the very end. Raises Refused."""
        span = self.shop.tracing.begin(
            "worker.run",
            parent=plan.parent,
            attributes={"reprise.model": plan.description.model, "reprise.address": str(plan.address)},
            kind=SpanKind.SERVER,
        )
        bind(span)
        try:
            meaning = await self._understand(plan)
            async with aclosing(self._follow(plan, meaning, span)) as responses:
                async for response in responses:
                    yield response
        except Refused as refused:
            span.set_status(StatusCode.ERROR, refused.reason)
            raise
        finally:
            span.end()

    async def foresee(self, plan: Plan, *, within: float | None = None) -> ForeseeResponse:
        """What a run of this plan would reuse and compute, without running it; if it would wait for more than `within`
        seconds, only whether there is a result. Raises Refused.
        """
        meaning = await self._understand(plan)
        key = self._key(plan, meaning)
        ticket = Ticket(idle=plan.idle_priority, whose=plan.tenant)
        late = within is not None and self.shop.turns.wait_of(ticket) > within
        reports, run = await foresee(self.shop, plan, meaning, result_only=late)
        ticket.seconds = None if late else plan.seconds_of(run)
        named = {
            part_name(stage.name, place) if stage.each else stage.name: meaning.addresses[name]
            for stage in plan.stages
            for place, name in enumerate(meaning.names(stage))
        }
        return ForeseeResponse(
            stages=reports,
            addresses={name: str(address) for name, address in named.items()},
            under_way=self._flights.get(key) is not None or self._notes.find(key) is not None,
            wait_seconds=self.shop.turns.wait_of(ticket),
            run_seconds=ticket.seconds or 0.0,
        )

    def abandon(self, follower: str) -> None:
        """End a follower's stream; if nobody else follows its run, end that too. Raises NoSuchRun."""
        leaving = self._followers.get(follower)
        if leaving is None:
            raise NoSuchRun
        leaving.gone = True
        flight = leaving.flight
        gone = sum(other.gone for other in self._followers.values() if other.flight is flight)
        if flight.followers <= gone:
            self._give_up(flight)
        flight.wake()

    def attend(self, follower: str, *, waiting: bool) -> None:
        """Somebody waits for what this one follows, or nobody any more. Raises NoSuchRun."""
        attending = self._followers.get(follower)
        if attending is None:
            raise NoSuchRun
        attending.waits = waiting
        self._rank(attending.flight)

    async def obey(self, order: Order | None) -> Gone:
        """Let go of what is banned. A run under way may be made from it: its followers are told it, nobody joins."""
        if isinstance(order, Switch | Pin):
            return Gone()
        if isinstance(order, Ban):
            self._flights.part()
        return await self.shop.stock.let_go(self.shop.bans)

    def stop_accepting(self) -> None:
        """Lead no more runs; those under way can still be joined."""
        self.draining = True
        self.shop.news.announce()

    async def drain(self, patience: float) -> None:
        """Let runs end, for `patience` seconds at most. Then queued ones are dropped and a running one is stopped at
        its next step.
        """
        timer = asyncio.get_running_loop().call_later(patience, self._stop_all)
        try:
            await self._flights.drain(patience)
        finally:
            timer.cancel()
            self._notes.close()

    def close(self) -> None:
        for host in self._hosts.values():
            host.close()

    def status(self) -> StatusResponse:
        shop = self.shop
        return StatusResponse(
            state=StatusResponse.STATE_DRAINING if self.draining else StatusResponse.STATE_READY,
            queued=shop.turns.waiting,
            busy=shop.turns.busy,
            generations=shop.generations,
            pool_bytes=shop.pool.bytes,
            pool_entries=len(shop.pool),
            pool_evictions=shop.pool.evictions,
            device_bytes_free=shop.memory.free,
            device_bytes_total=shop.memory.total,
            model_bytes=self._model_bytes,
            host_bytes=shop.stock.host.bytes,
            host_entries=len(shop.stock.host),
            queue_seconds=shop.turns.seconds,
        )

    async def _understand(self, plan: Plan) -> Meaning:
        host = self._hosts[plan.description.model]
        outputs: dict[str, Tensors] = {}
        digests: dict[str, Digest] = {}
        order: dict[str, Sequence[int]] = {}
        for stage in canonical_first(plan.stages):
            try:
                understood = await host.run(understand, plan, stage, outputs)
            except Refused:
                raise
            except Exception as error:  # noqa: BLE001  # whatever a model raises is its fault, and one sentence
                report_fault(error, stage=stage.name, model=plan.description.model)
                raise Fault from None
            outputs |= understood.outputs
            digests |= understood.digests
            if understood.order:
                order[stage.name] = understood.order
        return await host.run(meaning_of, plan, outputs, digests, order)

    async def _follow(self, plan: Plan, meaning: Meaning, span: Span) -> AsyncGenerator[RunResponse]:
        key = self._key(plan, meaning)
        if plan.must_run:
            self._notes.forget(key)
        note = self._notes.find(key) if self._flights.get(key) is None else None
        if note is None:
            async with aclosing(self._hear(key, plan, meaning, span)) as events:
                async for event in events:
                    if isinstance(event, Note):
                        note = event
                    else:
                        yield event
        if note is not None:
            span.set_attribute("reprise.run.outcome", "elsewhere")
            with self._notes.telling(note):
                yield RunResponse(elsewhere=Elsewhere(worker=note.worker))
                await self._notes.until_closed()

    async def _hear(
        self, key: _Key, plan: Plan, meaning: Meaning, span: Span
    ) -> AsyncGenerator[RunResponse | Note[_Key]]:
        """Everything that is told of a run here, to the end or until another worker has it."""
        flight, led = self._join(key, plan, meaning, span)
        follower = _Follower(flight, waits=not plan.idle_priority)
        outcome: Outcome | None = None
        try:
            with flight.following(), self._named(plan.follower, follower), self._counted(follower):
                async with aclosing(flight.follow(until=lambda: follower.gone)) as events:
                    async for event in events:
                        if isinstance(event, Note):
                            yield event
                            return
                        if isinstance(event, Outcome):
                            outcome = event
                            yield outcome.told(plan.address, joined=not led)
                            continue
                        if event.HasField("stored") and outcome is not None:
                            await self._store_alias(plan, outcome)
                        yield event
        except (Deserted, Abandoned):
            raise NotReady("DRAINING") if self.draining else Abandoned from None
        if follower.gone:
            raise Abandoned

    def _key(self, plan: Plan, meaning: Meaning) -> _Key:
        address = meaning.addresses[meaning.final.name]
        return address, plan.reuse_nothing, plan.store_nothing, plan.max_age

    def _join(self, key: _Key, plan: Plan, meaning: Meaning, span: Span) -> tuple[Flight[Event], bool]:
        if self.draining and self._flights.get(key) is None:
            raise NotReady("DRAINING")
        job = Job(self.shop, plan, meaning, span, self._share)
        flight, led = self._flights.join(key, job.lead)
        if led:
            self._jobs[flight] = job
            if plan.idle and not (plan.must_run or plan.reuse_nothing or plan.replace):
                self._movable[flight] = key, plan.idle
            self._relieve()
        else:
            span.set_attribute("reprise.run.outcome", "joined")
            span.add_link(self._jobs[flight].span.get_span_context())
            if plan.must_run:
                self._movable.pop(flight, None)
        self._jobs[flight].aliases.add(plan.address)
        return flight, led

    def _share(self, encodings: Iterable[Address]) -> None:
        """Other workers can find these encodings of pictures: what reads them need not wait here for them."""
        for job in self._jobs.values():
            job.encodings.difference_update(encodings)
        self._relieve()

    def _relieve(self) -> None:
        """Hand over runs that wait behind too many others, as long as another worker has fewer before them.

        A run that reads a picture which one before it is about to encode stays until that is done: encoded once is
        worth more than sooner.
        """
        if self._spill_after is None:
            return
        before: list[Job] = []
        for flight in self._in_line():
            job = self._jobs[flight]
            key, idle = self._movable.get(flight, (None, ()))
            if key is not None and len(before) > self._spill_after and not any(map(job.waits_for, before)):
                choice = self._notes.choose(idle, job.encodings)
                if choice is not None and choice[1] < len(before):
                    self._hand_over(flight, key, choice[0])
                    continue
            before.append(job)

    def _in_line(self) -> list[Flight[Event]]:
        """Runs without an answer yet, the one that has the device first, the others as they came, at last those
        that nobody waits for."""
        line = [flight for flight, job in self._jobs.items() if not (job.answered or flight.ended)]
        return sorted(line, key=lambda flight: (not flight.goes_on, self._jobs[flight].idle))

    def _hand_over(self, flight: Flight[Event], key: _Key, worker: str) -> None:
        job = self._jobs[flight]
        job.answered = True
        flight.publish(self._notes.write(key, worker, job.encodings))
        self._flights.cancel(flight)
        self.shop.metrics.handed_over.inc()

    @contextmanager
    def _named(self, name: str, follower: _Follower) -> Iterator[None]:
        if not name:
            yield
            return
        self._followers[name] = follower
        try:
            yield
        finally:
            if self._followers.get(name) is follower:
                del self._followers[name]

    @contextmanager
    def _counted(self, follower: _Follower) -> Iterator[None]:
        followers = self._all_followers.setdefault(follower.flight, [])
        followers.append(follower)
        self._rank(follower.flight)
        try:
            yield
        finally:
            followers.remove(follower)
            if not followers:
                del self._all_followers[follower.flight]
            self._rank(follower.flight)

    def _rank(self, flight: Flight[Event]) -> None:
        """Let a run that waits stand among those that somebody waits for, or behind them."""
        if any(follower.waits for follower in self._all_followers.get(flight, ())):
            self._jobs[flight].lift()
        elif not self._jobs[flight].sink():
            self._give_up(flight)

    async def _store_alias(self, plan: Plan, outcome: Outcome) -> None:
        """Store the result at this follower's address too, if it came too late for that to have been done already."""
        if plan.store_nothing or plan.address in outcome.aliases or plan.address == outcome.record.address:
            return
        alias = outcome.record.alias(plan.address)
        await (await self.shop.hierarchy.commit(alias, outcome.data, replace=plan.replace))

    def _give_up(self, flight: Flight[Event]) -> None:
        self._jobs[flight].stop.set()
        self._flights.cancel(flight)

    def _stop_all(self) -> None:
        for job in self._jobs.values():
            job.stop.set()
