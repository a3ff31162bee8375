"""Job: the work of one run. Answer from the tiers, or wait for the device, run what is missing, and store what it made.

A job writes the log of one flight, whoever follows it. It can be cancelled while it looks and while it waits; once it
has the device it goes on to the end, because a result that is nearly there is worth more than the time it still takes,
unless its followers have given it up (`stop`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from opentelemetry.trace import Span, StatusCode
from PIL import Image

from cache import tags
from cache.description import Stage
from cache.digest import Digest
from cache.flight import Flight
from cache.hierarchy import Found
from cache.keys import Address
from cache.record import INLINE_LIMIT, Record
from cache.record import Output as Stored
from cache.tier import Lookup, TierName
from inference import tensors
from inference.errors import Abandoned, Fault, Refused
from inference.events import Event, EventLog, Outcome, jpeg
from inference.inputs import Inputs
from inference.models.base import Artifact, Cancelled, Tensors
from inference.plan import Meaning, Plan, call_for
from inference.pool import Hot, compact
from inference.reports import lookup_message, not_needed_report, reason_message, reused_report
from inference.status import report_fault
from inference.turns import Ticket
from inference.workshop import Workshop
from reprise.v1 import common_pb2 as pb

TENSORS_TYPE = "application/vnd.safetensors"
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Made:
    """What a stage gave, on the device if it is tensors."""

    output: Tensors | Artifact
    weight: int  # bytes of the device's memory
    types: tuple[str, ...]  # of the numbers it was computed with and from
    device_seconds: float


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
            for stage in plan.stages
            if stage.media and stage.cached and not plan.store_nothing and stage.name not in plan.records
        }  # of pictures, that other runs may read and only this one may be about to make
        self._on_shared = on_shared
        self._ticket = Ticket(idle=plan.idle_priority)
        self._shop = shop
        self._plan = plan
        self._meaning = meaning
        self._final = plan.description.final
        self._address = meaning.addresses[self._final.name]
        self._began = shop.clock()  # when what it makes began to be made
        # By stage: tags that whatever is made of its output gets.
        self._lineage = {name: frozenset({tags.of_ancestor(digest.hex)}) for name, digest in meaning.digests.items()}
        self._lookups: Sequence[Lookup] = ()  # for the result
        self._spent: dict[str, float] = {}  # device seconds of the stages that ran
        self._totals = dict.fromkeys(meaning.outputs, 0.0)  # with everything upstream, by stage

    def waits_for(self, other: Job) -> bool:
        """Whether the other run may be about to encode a picture that this one reads."""
        return not self.encodings.isdisjoint(other.encodings)

    @property
    def idle(self) -> bool:
        """Whether nobody waits for the result."""
        return self._ticket.idle

    def lift(self) -> None:
        """Somebody waits for the result."""
        self._shop.turns.lift(self._ticket)

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
        await inputs.find()  # again, for those that had the device meanwhile may have made what was missing
        outputs = await inputs.gather()
        work = inputs.work()
        for stage in work.reuse:
            self._totals[stage.name] = inputs.records[stage.name].total_device_seconds
            self._lineage[stage.name] = _inherited(inputs.records[stage.name]) | self._media(stage)
            self._shop.needed(stage, inputs.records[stage.name])
        self.span.set_attribute("reprise.run.outcome", "run")
        self._shop.begin_generation()
        for position, stage in enumerate(work.run[:-1], start=1):
            made = await self._run_stage(stage, outputs, log)
            assert not isinstance(made.output, Artifact)  # noqa: S101  # `_compute` has seen to that
            outputs[stage.name] = made.output
            await self._keep(stage, made, inputs)
            needed = {name for later in work.run[position:] for name in self._upstream(later)}
            for name in outputs.keys() - needed:
                del outputs[name]
            inputs.keep_only(needed)
        made = await self._run_stage(self._final, outputs, log)
        assert isinstance(made.output, Artifact)  # noqa: S101  # likewise
        await self._shop.end_generation()
        return await self._deliver(made, made.output, inputs, log)

    async def _run_stage(self, stage: Stage, outputs: dict[str, Tensors], log: EventLog) -> _Made:
        if self.stop.is_set():
            raise Abandoned
        span = self._shop.tracing.child(self.span, f"stage.{stage.name}", {"reprise.stage.outcome": "run"})
        loop = asyncio.get_running_loop()
        try:
            (output, weight, types), seconds = await self._shop.compute(self._compute, stage, outputs, log, loop)
        except Cancelled:
            raise Abandoned from None
        except Refused as refused:
            span.set_status(StatusCode.ERROR, refused.reason)
            raise
        except Exception as error:  # noqa: BLE001  # whatever a model raises is its fault, and one sentence
            report_fault(error, stage=stage.name, model=self._plan.description.model)
            span.set_status(StatusCode.ERROR)
            raise Fault from None
        else:
            span.set_attribute("reprise.device_seconds", seconds)
        finally:
            span.end()
        self._shop.metrics.stage_seconds.labels(stage.name).observe(seconds)
        self._spent[stage.name] = seconds
        self._lineage[stage.name] = self._ancestry(stage)
        self._totals[stage.name] = seconds + sum(self._totals[name] for name in self._upstream(stage))
        return _Made(output, weight, types, seconds)

    def _compute(
        self, stage: Stage, outputs: dict[str, Tensors], log: EventLog, loop: asyncio.AbstractEventLoop
    ) -> tuple[Tensors | Artifact, int, tuple[str, ...]]:
        """In the device's thread: the stage's output, compact, its weight, and the types it was computed in."""
        done_so_far = 0

        def step(done: int, of: int) -> None:
            nonlocal done_so_far
            if self.stop.is_set():
                raise Cancelled
            done_so_far = done
            loop.call_soon_threadsafe(log.progress, stage.name, done, of)

        def preview(image: Image.Image) -> None:
            if log.read:
                loop.call_soon_threadsafe(log.preview, jpeg(image), done_so_far)

        call = call_for(self._plan, stage, outputs, step=step, preview=preview)
        output = self._plan.model.run(stage.name, call)
        if isinstance(output, Artifact) is not (stage is self._final):
            raise TypeError("the last stage makes an artifact, and no other does")
        read = [tensor for upstream in call.upstream.values() for tensor in upstream.values()]
        if isinstance(output, Artifact):
            return output, 0, _types(read)
        own, weight = compact(output)
        return own, weight, _types([*read, *own.values()])

    async def _keep(self, stage: Stage, made: _Made, inputs: Inputs) -> None:
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

    async def _deliver(self, made: _Made, artifact: Artifact, inputs: Inputs, log: EventLog) -> asyncio.Future[bool]:
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

    def _record(self, stage: Stage, made: _Made, output: Stored) -> Record:
        now = self._shop.clock()
        description = self._plan.description
        self._lineage[stage.name] |= {tags.of_ancestor(output.digest.hex)}
        return Record(
            address=self._meaning.addresses[stage.name],
            model=description.model,
            revision=description.revision,
            stage=stage.name,
            fingerprint=stage.fingerprint,
            output=output,
            device_seconds=made.device_seconds,
            total_device_seconds=self._totals[stage.name],
            made_at=self._began,
            touched_at=now,
            ttl=stage.ttl,
            expires_at=self._began + stage.max_age,
            upstream={role: self._name_of(name) for role, name in self._upstream_roles(stage)},
            tags=tuple(sorted(self._ancestry(stage) | self._plan.tags)),
            execution={**self._shop.execution, "dtype": " ".join(made.types)},
        )

    def _other_addresses(self) -> frozenset[Address]:
        return frozenset(self.aliases - {self._address})

    def _name_of(self, stage: str) -> str:
        digest = self._meaning.digests.get(stage)
        return digest.hex if digest is not None else self._meaning.ids[stage]

    def _ancestry(self, stage: Stage) -> frozenset[str]:
        """Tags that say of what a stage's output is made, at whatever distance."""
        made_of = self._upstream(stage)
        names = frozenset(tags.of_ancestor(self._meaning.ids[name]) for name in made_of)
        stages = frozenset(map(tags.of_stage, made_of))
        return self._media(stage).union(names, stages, *(self._lineage[name] for name in made_of))

    def _media(self, stage: Stage) -> frozenset[str]:
        pictures = [self._plan.pictures[name] for name in stage.media]
        return frozenset(
            tags.of_media(identity)
            for picture in pictures
            for identity in (picture.identity, picture.part_of)
            if identity
        )

    def _upstream_roles(self, stage: Stage) -> list[tuple[str, str]]:
        return [(role, name) for role, name in stage.upstream.items() if name in self._meaning.ids]

    def _upstream(self, stage: Stage) -> set[str]:
        return {name for _, name in self._upstream_roles(stage)}

    # Reports.

    def _reports(self, inputs: Inputs) -> tuple[pb.StageReport, ...]:
        reused = {stage.name for stage in inputs.work().reuse}
        ran = [stage for stage in self._plan.stages if stage.name in self._spent]
        read = {name for stage in ran for name in self._upstream(stage)}
        reports = []
        for stage in self._plan.stages:
            report = not_needed_report(stage)
            if stage.name in self._spent or (stage.name in self._meaning.outputs and stage.name in read):
                report.outcome = pb.STAGE_OUTCOME_RUN
                report.device_seconds = self._spent.get(stage.name, 0.0)
                report.reason = reason_message(inputs.reasons.get(stage.name))
            elif stage.name in reused:
                report = reused_report(stage, inputs.records[stage.name], inputs.tiers.get(stage.name))
            report.lookups.extend(map(lookup_message, inputs.lookups.get(stage.name, ())))
            reports.append(report)
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


def _inherited(record: Record) -> frozenset[str]:
    """Tags for what is made of this output: its own name, and all that it was made of."""
    made_of = {tag for tag in record.tags if tags.is_lineage(tag)}
    return frozenset(made_of | {tags.of_ancestor(record.output.digest.hex)})


def _settled(durable: bool) -> asyncio.Future[bool]:
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    future.set_result(durable)
    return future


def _pack(output: Tensors) -> tuple[bytes, Digest]:
    data = tensors.to_bytes(output)
    return data, Digest.of(data)


def _inline(data: bytes) -> bytes | None:
    return data if len(data) <= INLINE_LIMIT else None


def _types(numbers: list[Any]) -> tuple[str, ...]:
    return tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in numbers if tensor.is_floating_point()}))
