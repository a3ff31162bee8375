"""Job: the work of one run. Answer from the tiers, or wait for the device, run what is missing, and store what it made.

A job writes the log of one flight, whoever follows it. It can be cancelled while it looks and while it waits; once it
has the device it goes on to the end, because a result that is nearly there is worth more than the time it still takes,
unless its followers have given it up (`stop`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any, TypeVar

from opentelemetry.trace import Span, StatusCode

from cache.description import Stage
from cache.digest import Digest
from cache.flight import Flight
from cache.hierarchy import Found
from cache.keys import Address
from cache.parts import whole_name
from cache.record import INLINE_LIMIT, Record
from cache.record import Output as Stored
from cache.tier import Lookup, TierName
from inference import tensors
from inference.chain import Go, Made, Watch, chained
from inference.costs import Costs
from inference.errors import Abandoned, Fault, Refused
from inference.events import Event, EventLog, Outcome
from inference.inputs import Inputs
from inference.lineage import Lineage
from inference.meaning import Meaning
from inference.models.base import Artifact, Cancelled, Tensors
from inference.plan import Plan
from inference.pool import Hot
from inference.reports import lookup_message, not_needed_report, reports_of, reused_report, run_report
from inference.status import report_fault
from inference.teller import Teller
from inference.turns import Ticket
from inference.workshop import Workshop
from reprise.v1 import common_pb2 as pb

TENSORS_TYPE = "application/vnd.safetensors"
_T = TypeVar("_T")


class Job:
    """One run. `aliases` are the addresses its followers asked at, as far as they are known when it is stored.

    `on_shared` hears of addresses whose outputs other workers can find from now on.
    """

    def __init__(
        self,
        shop: Workshop,
        plan: Plan,
        meaning: Meaning,
        span: Span,
        on_shared: Callable[[Iterable[Address]], None] = lambda addresses: None,
    ) -> None:
        self.aliases: set[Address] = set()
        self.stop = threading.Event()  # nobody wants the result any more: running work ends at its next step
        self.answered = False  # its followers have their answer, so nobody waits for it
        self.span = span
        self.encodings = {
            meaning.addresses[stage.name]
            for stage in meaning.stages
            if stage.media and stage.cached and not plan.store_nothing and stage.name not in plan.records
        }  # of media, that other runs may read and only this one may be about to make
        self._on_shared = on_shared
        self._ticket = Ticket(idle=plan.idle_priority, whose=plan.tenant)
        self._shop = shop
        self._plan = plan
        self._meaning = meaning
        self._final = meaning.final
        self._address = meaning.addresses[self._final.name]
        self._began = shop.clock()  # when what it makes began to be made
        self._lookups: Sequence[Lookup] = ()  # for the result
        self._spent: dict[str, float] = {}  # device seconds of the stages that ran
        self._watch = Watch(shop.device.device)  # of the go that is under way
        self._costs = Costs(meaning.made_of, meaning.outputs)

    def waits_for(self, other: Job) -> bool:
        """Whether the other run may be about to encode a picture or a voice that this one reads."""
        return not self.encodings.isdisjoint(other.encodings)

    @property
    def idle(self) -> bool:
        """Whether nobody waits for the result."""
        return self._ticket.idle

    def lift(self) -> None:
        """Somebody waits for the result."""
        self._shop.turns.lift(self._ticket)

    def sink(self) -> bool:
        """Nobody waits for the result any more. False if there is no room for more such runs."""
        return self._shop.turns.sink(self._ticket)

    async def lead(self, flight: Flight[Event]) -> None:
        """Do the work, tell it to the flight's followers, and stay until the result is durable or given up.

        Raises Refused.
        """
        log = EventLog(flight)
        try:
            durable = await self._answer_from_tiers(log) or await self._generate(flight, log)
        finally:
            self.answered = True
        log.stored(await durable)

    async def _answer_from_tiers(self, log: EventLog) -> asyncio.Future[bool] | None:
        if self._plan.reuse_nothing or not self._final.cached:
            return None
        found = await self._shop.hierarchy.fetch(self._address, self._final.ttl, max_age=self._plan.max_age)
        self._shop.tracing.lookups(self.span, found.lookups)
        self._lookups = found.lookups
        if found.record is None or found.data is None:
            return None
        self.span.set_attribute("reprise.run.outcome", "hit")
        log.chunks(found.data)
        aliases = self._other_addresses()
        durable = await self._heal(found, found.record, found.data, aliases)
        log.finished(Outcome(found.record, found.data, self._reports_of_hit(found), aliases))
        return durable

    async def _heal(
        self, found: Found, record: Record, data: bytes, aliases: frozenset[Address]
    ) -> asyncio.Future[bool]:
        """Store a hit where it is missing: under the addresses it was asked at, and in the durable tier if it came from
        before it.
        """
        if self._plan.store_nothing or (found.tier is TierName.L3 and not aliases):
            return _settled(found.tier is TierName.L3)
        return await self._shop.hierarchy.commit(
            record, data, aliases=[record.alias(address) for address in aliases], replace=self._plan.replace
        )

    async def _generate(self, flight: Flight[Event], log: EventLog) -> asyncio.Future[bool]:
        with Inputs(self._shop, self._plan, self._meaning, self.span) as inputs:
            await inputs.find()
            self._share_what_is_found(inputs)
            self._ticket.seconds = self._plan.seconds_of(inputs.work().run)
            try:
                async with asyncio.TaskGroup() as group, AsyncExitStack() as device:
                    near = group.create_task(inputs.bring_near())
                    with self._waiting(inputs):
                        await device.enter_async_context(self._shop.turns.turn(log.queued, self._ticket))
                        await near
                    flight.goes_on = True
                    return await _finish(self._run(inputs, log))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None

    def _share_what_is_found(self, inputs: Inputs) -> None:
        missing = {self._meaning.addresses[stage.name] for stage in inputs.work().run}
        self._on_shared(self.encodings - missing)

    @contextmanager
    def _waiting(self, inputs: Inputs) -> Iterator[None]:
        span = self._shop.tracing.child(self.span, "worker.queue")
        try:
            yield
        finally:
            inputs.begin()
            span.end()

    async def _run(self, inputs: Inputs, log: EventLog) -> asyncio.Future[bool]:
        self._began = self._shop.clock()
        log.begun(self._shop.process)
        await inputs.find()  # again, for those that had the device meanwhile may have made what was missing
        await log.heard()  # for if this process dies of what comes now, nobody can be told any more
        outputs = await inputs.gather()
        work = inputs.work()
        self._costs.know(inputs.records, [stage.name for stage in work.reuse])
        self._lineage = Lineage(self._plan, self._meaning)
        for stage in work.reuse:
            self._lineage.find(stage, inputs.records[stage.name])
            self._shop.needed(stage, inputs.records[stage.name])
        self.span.set_attribute("reprise.run.outcome", "run")
        self._shop.begin_generation()
        teller = Teller(self._plan, self._meaning, log, self.stop)
        await self._tell_what_is_there(work.reuse, outputs, teller)
        *chains, last = chained(work.run)
        last_read = {
            name: at for at, chain in enumerate((*chains, last)) for stage in chain for name in stage.upstream.values()
        }
        for at, chain in enumerate(chains):
            for stage, made in zip(chain, await self._run_chain(chain, outputs, teller), strict=True):
                assert not isinstance(made.output, Artifact)  # noqa: S101  # the go has seen to that
                outputs[stage.name] = made.output
                await self._keep(stage, made, inputs)
            for name in [name for name in outputs if last_read.get(name, -1) <= at]:
                del outputs[name]
            inputs.keep_only(outputs)
        (made,) = await self._run_chain(last, outputs, teller)
        assert isinstance(made.output, Artifact)  # noqa: S101  # likewise
        await self._shop.end_generation()
        return await self._deliver(made, made.output, inputs, log)

    async def _tell_what_is_there(self, reuse: Iterable[Stage], outputs: Mapping[str, Tensors], teller: Teller) -> None:
        for stage in reuse:
            if stage.live:
                await self._shop.compute(teller.live, stage, outputs[stage.name])
                teller.end(stage)

    async def _run_chain(
        self, chain: Sequence[Stage], outputs: Mapping[str, Tensors], teller: Teller
    ) -> Sequence[Made]:
        if self.stop.is_set():
            raise Abandoned
        with ExitStack() as open_spans:
            spans = {stage.name: open_spans.enter_context(self._span_of(stage)) for stage in chain}
            try:
                (all_made, seconds), _ = await self._shop.compute(self._go, chain, outputs, teller)
            except Cancelled:
                raise Abandoned from None
            except Refused as refused:
                self._failing(spans).set_status(StatusCode.ERROR, refused.reason)
                raise
            except Exception as error:  # noqa: BLE001  # whatever a model raises is its fault, and one sentence
                report_fault(error, stage=whole_name(self._watch.at), model=self._plan.description.model)
                self._failing(spans).set_status(StatusCode.ERROR)
                raise Fault from None
            for stage in chain:
                self._account(stage, seconds[stage.name], spans[stage.name])
                teller.end(stage)
        return all_made

    def _go(
        self, chain: Sequence[Stage], outputs: Mapping[str, Tensors], teller: Teller
    ) -> tuple[list[Made], Mapping[str, float]]:
        """In the device's thread: what the stages gave, and the seconds of each."""
        self._watch = Watch(self._shop.device.device)
        teller.begin()
        return Go(self._plan, chain, outputs, self._watch, teller).run(), self._watch.seconds

    @contextmanager
    def _span_of(self, stage: Stage) -> Iterator[Span]:
        part = self._meaning.parts.get(stage.name)
        span = self._shop.tracing.child(
            self.span,
            f"stage.{whole_name(stage.name)}",
            {"reprise.stage.outcome": "run"} | ({"reprise.stage.part": part.place + 1} if part is not None else {}),
        )
        try:
            yield span
        finally:
            span.end()

    def _failing(self, spans: Mapping[str, Span]) -> Span:
        return spans.get(self._watch.at) or next(iter(spans.values()))

    def _account(self, stage: Stage, seconds: float, span: Span) -> None:
        span.set_attribute("reprise.device_seconds", seconds)
        self._shop.metrics.stage_seconds.labels(whole_name(stage.name)).observe(seconds)
        self._spent[stage.name] = seconds
        self._costs.spend(stage.name, seconds)
        self._lineage.make(stage)

    async def _keep(self, stage: Stage, made: Made, inputs: Inputs) -> None:
        """Store a stage's output for other runs: in the pool, and in the tiers behind us."""
        if not stage.cached or self._plan.store_nothing or isinstance(made.output, Artifact):
            return
        data, digest = await self._shop.beside.run(_pack, made.output)
        record = self._record(stage, made, Stored(digest, TENSORS_TYPE, _inline(data)))
        self._shop.needed(stage, record)
        if stage.pooled:
            await self._shop.stock.keep(Hot(made.output, made.weight, record))
        durable = await self._shop.hierarchy.commit(
            record, data, replace=self._plan.replace or stage.name in inputs.gone
        )
        if record.address in self.encodings:
            durable.add_done_callback(lambda _: self._on_shared({record.address}))

    async def _deliver(self, made: Made, artifact: Artifact, inputs: Inputs, log: EventLog) -> asyncio.Future[bool]:
        log.chunks(artifact.data)
        digest = await self._shop.beside.run(Digest.of, artifact.data)
        # Never inlined: an artifact is also asked for by its digest alone, for a download or by URL.
        record = self._record(self._final, made, Stored(digest, artifact.media_type))
        aliases = self._other_addresses()
        durable = _settled(False)
        if self._final.cached and not self._plan.store_nothing:
            durable = await self._shop.hierarchy.commit(
                record,
                artifact.data,
                aliases=[record.alias(address) for address in aliases],
                replace=self._plan.replace,
            )
        log.finished(Outcome(record, artifact.data, self._reports(inputs), aliases))
        return durable

    def _record(self, stage: Stage, made: Made, output: Stored) -> Record:
        now = self._shop.clock()
        description = self._plan.description
        self._lineage.name(stage, output.digest)
        return Record(
            address=self._meaning.addresses[stage.name],
            model=description.model,
            revision=description.revision,
            stage=whole_name(stage.name),
            fingerprint=stage.fingerprint,
            output=output,
            device_seconds=self._spent[stage.name],
            total_device_seconds=self._costs.total(stage.name),
            made_at=self._began,
            touched_at=now,
            ttl=stage.ttl,
            expires_at=self._began + stage.max_age,
            upstream=self._lineage.names(stage),
            tags=tuple(sorted(self._lineage.of(stage) | self._plan.tags)),
            execution={**self._shop.execution, "dtype": " ".join(made.types)},
        )

    def _other_addresses(self) -> frozenset[Address]:
        return frozenset(self.aliases - {self._address})

    # Reports.

    def _reports(self, inputs: Inputs) -> tuple[pb.StageReport, ...]:
        def ran(stage: Stage) -> pb.StageReport:
            return told(stage, run_report(stage, inputs.reasons.get(stage.name), self._spent.get(stage.name, 0.0)))

        def reused(stage: Stage) -> pb.StageReport:
            return told(stage, reused_report(stage, inputs.records[stage.name], inputs.tiers.get(stage.name)))

        def told(stage: Stage, report: pb.StageReport) -> pb.StageReport:
            report.lookups.extend(map(lookup_message, inputs.lookups.get(stage.name, ())))
            return report

        reports = reports_of(self._plan.stages, self._meaning, inputs.work(), ran, reused)
        reports[-1].lookups.extend(map(lookup_message, self._lookups))
        return tuple(reports)

    def _reports_of_hit(self, found: Found) -> tuple[pb.StageReport, ...]:
        assert found.record is not None  # noqa: S101  # a hit has one
        before = map(not_needed_report, self._plan.stages[:-1])
        final = reused_report(self._final, found.record, found.tier)
        final.lookups.extend(map(lookup_message, self._lookups))
        return (*before, final)


async def _finish(work: Coroutine[Any, Any, _T]) -> _T:
    """Await work to its end, even if this task is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if task.cancelled() or current is None:
                raise
            current.uncancel()
    return task.result()


def _settled(durable: bool) -> asyncio.Future[bool]:
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    future.set_result(durable)
    return future


def _pack(output: Tensors) -> tuple[bytes, Digest]:
    data = tensors.to_bytes(output)
    return data, Digest.of(data)


def _inline(data: bytes) -> bytes | None:
    return data if len(data) <= INLINE_LIMIT else None
