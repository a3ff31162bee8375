"""Resolve: the path of one request. Look up; join the flight or lead it; forward; fill."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from weakref import WeakKeyDictionary

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode

from cache.bans import Ban
from cache.build import Tiers
from cache.clock import steady
from cache.description import Scope
from cache.digest import Digest
from cache.flight import Errands, Flight, Flights
from cache.hierarchy import Found
from cache.keys import Address, Key, Principal
from cache.orders import Order
from cache.record import Record
from cache.sweep import Gone
from cache.telemetry import Tracing, bind, trace_id_of
from cache.tier import Lookup, TierName
from cache.tier import Outcome as LookupOutcome
from gateway.admission import Admission
from gateway.answer import Answer, Outcome, hit_stages, lookup_message, tier_name, with_lookups
from gateway.costs import Costs
from gateway.departures import Departure, Departures, Reader
from gateway.errors import NotFound, Refused
from gateway.forward import Forwarder
from gateway.generation import Completed, Generation, Generations, Planned, Settled, Step, result_message
from gateway.history import History
from gateway.ledger import Ledger
from gateway.links import Links, Url
from gateway.live import sound_in
from gateway.look_alikes import LookAlikes
from gateway.peers import Names
from gateway.plan import Plan
from gateway.reasons import Hints, Seen, seen, why_not_served, with_reasons
from gateway.savings import Savings
from gateway.wire import Reply
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import Result, Stored


@dataclass
class Visit:
    """What the transport knows of a request."""

    principal: Principal
    method: str
    parent: Context | None  # the caller's trace
    set_cache_status: Callable[[str], None]
    started_ns: int = field(default_factory=time.time_ns)
    started: float = field(default_factory=time.perf_counter)
    left: Callable[[], float | None] = lambda: None  # seconds until the caller's deadline, if there is one
    warming: bool = False  # nobody asks: it is made ahead
    traced: bool = False  # it has a span
    answer: Answer | None = None


class Resolver:
    def __init__(
        self,
        tiers: Tiers,
        forwarder: Forwarder,
        admission: Admission,
        flights: Flights[object, Step],
        generations: Generations,
        departures: Departures,
        names: Names,
        look_alikes: LookAlikes,
        tracing: Tracing,
        ledger: Ledger,
        history: History,
        costs: Costs,
        savings: Savings,
        *,
        heartbeat: float,
        links: Links | None = None,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._memory = tiers.memory
        self._memory_tally = tiers.memory_tally
        self._hierarchy = tiers.below_memory
        self._bans = tiers.bans
        self._forwarder = forwarder
        self._admission = admission
        self._flights = flights
        self._errands: Errands[object, tuple[Found, Reply | None]] = Errands()
        self._listening: Errands[tuple[Address, Digest], Reply] = Errands()
        self._generations = generations
        self._departures = departures
        self._names = names
        self._look_alikes = look_alikes
        self._tracing = tracing
        self._heartbeat = heartbeat
        self._links = links
        self._clock = clock
        self._tenants: WeakKeyDictionary[Flight[Step], str] = WeakKeyDictionary()  # for whom each was begun
        self._leaders: WeakKeyDictionary[Flight[Step], Span] = WeakKeyDictionary()
        self._ledger = ledger
        self._savings = savings
        self._history = history
        self._costs = costs
        tiers.orders.on_order(self._obey)

    async def resolve(self, plan: Plan, visit: Visit) -> AsyncGenerator[bytes]:
        """Responses in wire form, the result in the last. Raises Refused."""
        with ExitStack() as departing:
            reader = departing.enter_context(self._departures.one(_read_key(plan)))
            reply, lookups, missed = await self._look_up(plan, reader)
            if reply is None and (near := await self._look_alikes.stand_in(plan)) is not None:
                plan = near
                reader = departing.enter_context(self._departures.one(_read_key(plan)))
                reply, lookups, missed = await self._look_up(plan, reader)
            self._look_alikes.remember(plan)
            if reply is not None and not self._comes_by_url_soon(plan, reply):
                if plan.live:
                    reply = await self._sounding(reply)
                reader.takes(self._hit(plan, visit, reply, lookups))
                del reply  # it is the reader's to let go of
                for message in reader:
                    yield message
                return
        if not plan.policy.generate:
            raise NotFound("NOT_CACHED", field="cache_policy.mode")
        span = self._begin_span(plan, visit, lookups)
        try:
            await self._admit(plan, visit)
            generation = self._join(plan, visit, lookups, missed, span)
            plan = generation.plan  # which holds no picture: only the leader's task needs one
            try:
                async with aclosing(generation.events(to_result=True)) as responses:
                    async for response in responses:
                        yield response
            finally:
                if generation.flight.ended:
                    self._generations.finished(generation.flight)
        except Refused as refused:
            span.set_status(StatusCode.ERROR, refused.reason)
            raise
        finally:
            span.end()

    def at_hand(self, plan: Plan, visit: Visit) -> Iterator[bytes] | None:
        """The responses of a hit in memory. None, with nothing noted, if there is none: then `resolve` it."""
        if not plan.policy.read:
            return None
        reply: Reply | None = self._memory.peek(Key.of_wire(plan.address))  # one hit is one use
        if reply is None or self._comes_by_url_soon(plan, reply) or (plan.live and reply.sound is None):
            return None
        self._look_alikes.used(plan)
        reply, lookup = self._in_memory(plan)
        return self._hit(plan, visit, reply, (lookup,)) if reply is not None else None

    def watch(self, name: str, from_sequence: int, principal: Principal) -> AsyncGenerator[bytes]:
        """The responses of a generation under way, to the very last. Raises NotFound."""
        return self._generations.find(name, principal).events(max(0, from_sequence - 1), to_result=False)

    def cancel(self, name: str, principal: Principal) -> bool:
        """Give up one caller's interest; the work ends if nobody else has any. False if the result is there already,
        which then stays as it is. Raises NotFound.
        """
        generation = self._generations.find(name, principal)
        flight = generation.flight
        if any(isinstance(step, Completed) for step in flight.events[-2:]):
            return False
        generation.cancelled = True
        sharing = self._generations.of(flight)
        # Who dropped a stream may come back within the grace. A result that is being stored has a follower of its own.
        deserted = all(each.cancelled for each in sharing)
        if deserted and not flight.ended and flight.followers <= sum(each.streams for each in sharing):
            self._forwarder.abandon(flight)
            self._flights.cancel(flight)
        flight.wake()
        return True

    async def _obey(self, order: Order | None) -> Gone:
        """What is under way may be made from what is banned now: it goes on for those who wait, and nobody joins it."""
        if isinstance(order, Ban):
            self._flights.part()
        return await self._generations.let_go(self._bans)

    def just_made(self, artifact: Digest, namespaces: Collection[str]) -> Reply | None:
        """An artifact that was made here lately and may still be on its way to the tiers."""
        made = self._generations.artifact(artifact, namespaces)
        return None if made is None or self._bans.forbid(made.record) else made

    async def _look_up(self, plan: Plan, reader: Reader) -> tuple[Reply | None, Sequence[Lookup], Seen]:
        if not plan.policy.read:
            return None, (), Seen()
        reply, lookup = self._in_memory(plan)
        if reply is not None:
            return reply, (lookup,), Seen()
        found, reply = await self._errands.share(_read_key(plan), partial(self._fetch, plan, reader.departure))
        lookups = (lookup, *found.lookups)
        if reply is not None:
            return reply, lookups, Seen()
        missed = seen(plan, found)
        if self._memory.peek(Key.of_wire(plan.address)) is None:
            return None, lookups, missed
        reply, lookup = self._in_memory(plan)  # a flight has landed meanwhile
        return reply, (*lookups, lookup), missed

    async def _sounding(self, reply: Reply) -> Reply:
        """The same reply with its samples, where they can be had: looked for once, and held with it in memory."""
        if reply.sound is not None:
            return reply
        record = reply.record
        return await self._listening.share((record.address, record.output.digest), partial(self._listen, reply))

    async def _listen(self, reply: Reply) -> Reply:
        output = reply.record.output
        sound = await sound_in(output.media_type, output.digest.size, reply.read)
        if sound is None:
            return reply
        held: Reply | None = self._memory.peek(Key.of_wire(reply.record.address))
        if held is not None and _are_same(held, reply) and not self._hold(replace(held, sound=sound)):
            self._hold(held)  # with its samples it is too much
        return replace(reply, sound=sound)

    async def _fetch(self, plan: Plan, departure: Departure) -> tuple[Found, Reply | None]:
        with departure.being_read():
            found = await self._hierarchy.fetch(
                plan.address, plan.description.final.ttl, max_age=plan.policy.max_age, reserve=departure.reserve
            )
            if found.record is None or found.data is None:
                departure.found_nothing()
                return found, None
            reply = Reply.of(found.record, found.data, random_weights=plan.description.random_weights)
            self._hold(reply)
            return replace(found, data=None), reply

    def _in_memory(self, plan: Plan) -> tuple[Reply | None, Lookup]:
        started_ns, start = time.time_ns(), time.perf_counter()
        reply: Reply | None = self._memory.held(Key.of_wire(plan.address))
        if reply is not None:
            reply = self._still_good(plan, reply)
        missed = LookupOutcome.MISS if self._memory.on else LookupOutcome.OFF
        outcome = missed if reply is None else LookupOutcome.HIT
        lookup = Lookup(TierName.L1, outcome, None, started_ns, time.perf_counter() - start)
        self._memory_tally.count(lookup, reply.weight if reply is not None else 0)
        return reply, lookup

    def _still_good(self, plan: Plan, reply: Reply) -> Reply | None:
        now, max_age = self._clock(), plan.policy.max_age
        if now >= reply.record.expires_at or self._bans.forbid(reply.record):
            return None
        if max_age is not None and now - reply.record.made_at > max_age:
            return None
        touched = self._hierarchy.touch(reply.record)
        if touched is not reply.record:
            reply = replace(reply, record=touched)
            self._hold(reply)
        return reply

    def _hold(self, reply: Reply) -> bool:
        record = reply.record
        if self._bans.forbid(record):  # while it was on its way here
            return False
        return self._memory.hold(
            Key.of_wire(record.address),
            reply,
            reply.weight,
            record.ttl,
            hard_expiry=record.expires_at,
            cost=record.total_device_seconds,
        )

    def _hit(self, plan: Plan, visit: Visit, reply: Reply, lookups: Sequence[Lookup]) -> Iterator[bytes]:
        tier = lookups[-1].tier
        stored = Stored.STATE_DURABLE if reply.durable else Stored.STATE_PENDING
        stages, same = _told_of_hits(plan, reply, tier, stored)
        answer = Answer(
            Outcome.HIT,
            reply.record,
            plan.address,
            lookups,
            stages,
            tier,
            stand_ins=plan.stand_ins,
            folded=plan.folded,
            # They leave as soon as this is written down.
            first_audio=time.perf_counter() - visit.started if plan.live and reply.sound is not None else None,
        )
        span = None
        if self._tracing.wants(visit.parent, time.perf_counter() - visit.started):
            span = self._begin_span(plan, visit, lookups)
            answer.describe(span)
            span.end()
        self._answered(plan.namespaces[Scope.TENANT], visit, answer)
        self._history.hit(plan)
        if not reply.durable:
            self._heal(plan, reply)
        if reply.durable and (url_of := self._url_of(plan)) and (url := url_of(reply.record)):
            result = result_message(plan, answer, reply, span, Stored.STATE_DURABLE, url)
            return reply.messages(result.SerializeToString(), live=plan.live, chunks=False)
        own = Result(
            report=pb.CacheReport(lookups=map(lookup_message, lookups)),
            trace_id=trace_id_of(span),
            first_audio_seconds=answer.first_audio,
        )
        return reply.messages(same, own.SerializeToString(), live=plan.live, chunks=plan.in_chunks)

    def _url_of(self, plan: Plan) -> Callable[[Record], Url | None] | None:
        """Makes URLs for the caller, if that is how the file is wanted and can be had."""
        if not plan.by_url or self._links is None:
            return None
        return partial(self._links.url_of, tenant=plan.namespaces[Scope.TENANT])

    def _comes_by_url_soon(self, plan: Plan, reply: Reply) -> bool:
        """It is still being stored for somebody who is here: whoever wants a URL waits with them."""
        return not reply.durable and self._url_of(plan) is not None and self._flights.get(_flight_key(plan)) is not None

    async def _admit(self, plan: Plan, visit: Visit) -> None:
        """Raises Refused, unless this joins what is under way."""
        if self._flights.get(_flight_key(plan)) is None:
            self._check_place(plan)
            await self._admission.check_deadline(plan, visit.left)

    def _check_place(self, plan: Plan) -> None:
        self._admission.check_place(plan, (self._tenants[flight] for flight in self._flights))

    def _join(self, plan: Plan, visit: Visit, lookups: Sequence[Lookup], missed: Seen, span: Span) -> Generation:
        key = _flight_key(plan)
        if self._flights.get(key) is None:
            self._check_place(plan)

        async def lead(flight: Flight[Step]) -> None:
            generate = self._tracing.child(span, "reprise.generate")
            bind(generate)  # for what is logged in this task
            with ExitStack() as interest:
                interest.callback(generate.end)
                interest.callback(self._generations.finished, flight)

                def fill(done: Completed) -> None:
                    self._fill(done)
                    interest.enter_context(flight.following())  # until it is stored, whoever else is there

                await self._forwarder.lead(flight, plan, generate, fill)
                self._settle(plan, flight.events)

        tenant = plan.namespaces[Scope.TENANT]
        flight, led = self._flights.join(key, lead)
        if led:
            self._leaders[flight] = span
            self._tenants[flight] = tenant
        elif (leader := self._leaders.get(flight)) is not None:
            span.add_link(leader.get_span_context())
            span.set_attribute("reprise.flight.leader_trace_id", trace_id_of(leader))
        generation = Generation(
            plan=plan.without_media(),
            principal=visit.principal,
            flight=flight,
            led=led,
            lookups=lookups,
            span=span,
            answered=lambda answer: self._answered(tenant, visit, answer, span),
            compose=self._completed,
            name=self._names.make(),
            heartbeat=self._heartbeat,
            past=self._history.recall(plan),
            missed=missed,
            sounding=self._sounding,
            waited=lambda: time.perf_counter() - visit.started,
            url_of=self._url_of(plan) if plan.policy.store else None,
        )
        self._generations.add(generation)
        return generation

    def _fill(self, done: Completed) -> None:
        plan = done.plan
        if plan.policy.store:
            self._hold(done.reply)
        if not done.joined and any(stage.outcome == pb.STAGE_OUTCOME_RUN for stage in done.stages):
            self._ledger.generated()
        self._costs.learn_all(plan.description, plan.parameters, done.stages)

    def _settle(self, plan: Plan, events: Sequence[Step]) -> None:
        match events:
            case [*_, Completed(reply), Settled(stored)] if plan.policy.store:
                if stored.state == Stored.STATE_DURABLE:
                    self._settled(reply)

    def _heal(self, plan: Plan, reply: Reply) -> None:
        """It lies in Redis or here alone, unless it is on its way: the object store is to have it as well."""
        if not plan.description.final.cached or self._flights.get(_flight_key(plan)) is not None:
            return
        if (healing := self._hierarchy.heal(reply.record, lambda: reply.data)) is not None:
            healing.add_done_callback(lambda durable: self._settled(reply) if durable.result() else None)

    def _settled(self, reply: Reply) -> None:
        held: Reply | None = self._memory.peek(Key.of_wire(reply.record.address))  # nobody asks for it
        if held is not None and _are_same(held, reply):
            self._hold(held.settled())

    def _completed(self, generation: Generation, done: Completed) -> Answer:
        plan = generation.plan.as_made(done.plan)
        final = done.stages[-1] if done.stages else pb.StageReport()
        if all(stage.outcome != pb.STAGE_OUTCOME_RUN for stage in done.stages):
            outcome = Outcome.HIT  # the worker knew the result by another spelling, or was faster than our lookup
        elif not generation.led or done.joined:
            outcome = Outcome.COALESCED
        elif not (plan.policy.reuse or plan.policy.store):
            outcome = Outcome.BYPASS
        else:
            outcome = Outcome.MISS
        tier = tier_name(final.tier) if outcome is Outcome.HIT else None
        past, now = generation.past, self._clock()
        reason = why_not_served(plan, generation.missed, past, now)
        planned = next((step for step in generation.flight.events if isinstance(step, Planned)), Planned(()))
        hints = Hints(reason, planned.reasons)
        stages = with_lookups(with_reasons(plan, done.stages, hints, past, now), planned.lookups)
        nearest = past.nearest()
        self._history.answered(plan, past, done.stages, ran=outcome in (Outcome.MISS, Outcome.BYPASS))
        record = done.reply.record
        return Answer(
            outcome,
            record,
            record.address,
            generation.lookups,
            stages,
            tier,
            reason=reason,
            nearest=nearest,
            stand_ins=done.plan.stand_ins,
            folded=plan.folded,
            first_audio=generation.first_audio,
        )

    def _answered(self, tenant: str, visit: Visit, answer: Answer, span: Span | None = None) -> None:
        visit.answer = answer
        visit.set_cache_status(answer.cache_status(self._clock()))
        if visit.warming:
            self._ledger.warmed(answer)
        else:
            self._ledger.enter(visit.method, answer, time.perf_counter() - visit.started)
        self._savings.enter(tenant, answer, warming=visit.warming)
        if span is not None and span.is_recording():  # it has ended if the caller dropped the stream
            answer.describe(span)

    def _begin_span(self, plan: Plan, visit: Visit, lookups: Sequence[Lookup]) -> Span:
        visit.traced = True
        span = self._tracing.begin(
            visit.method,
            parent=visit.parent,
            started_ns=visit.started_ns,
            attributes={
                "rpc.system.name": "grpc",
                "rpc.method": visit.method,
                "reprise.model": plan.description.model,
                "reprise.address": str(plan.address),
            },
            kind=SpanKind.SERVER,
        )
        self._tracing.lookups(span, lookups)
        bind(span)  # for what is logged in this call's task, and for its errors
        return span


def _are_same(one: Reply, other: Reply) -> bool:
    """Whether both are the same artifact as it came in, whatever is known of it by now."""
    return one.last is other.last


def _read_key(plan: Plan) -> object:
    """Requests with this in common can share one look at the tiers."""
    return plan.address, plan.policy.max_age


def _flight_key(plan: Plan) -> object:
    """Requests with this in common can share one generation."""
    # What is made ahead has a flight of its own: who asks for the same meanwhile joins its run at the worker, and so
    # tells the worker that somebody waits for it.
    return plan.address, plan.policy.reuse, plan.policy.store, plan.policy.max_age, plan.idle


def _told_of_hits(
    plan: Plan, reply: Reply, tier: TierName, stored: Stored.State
) -> tuple[Sequence[pb.StageReport], bytes]:
    """What the result says at every hit alike, encoded once: all but how the tiers were asked, and the trace."""
    alike = (plan.seed, plan.policy.store, *plan.addresses, tier, *plan.stand_ins.items(), plan.folded)
    told = reply.told.get(alike)
    if told is None:
        stages = hit_stages(plan.stages, reply.record, tier)
        answer = Answer(
            Outcome.HIT,
            reply.record,
            plan.address,
            (),
            stages,
            tier,
            stand_ins=plan.stand_ins,
            folded=plan.folded,
        )
        told = stages, result_message(plan, answer, reply, None, stored).SerializeToString()
        reply.told.clear()  # one is what a reply has room for
        reply.told[alike] = told
    return told
