"""Forward: a miss goes to the worker that is its home, and what comes back is believed only after a look at it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from weakref import WeakSet

import grpc
import structlog
from opentelemetry.trace import Span, StatusCode

from cache.clock import steady
from cache.crashes import ENOUGH
from cache.description import Description, Scalar
from cache.digest import Digest
from cache.flight import Flight
from cache.hierarchy import Found, Hierarchy
from cache.record import NotARecord, Record
from cache.shares import shares
from cache.telemetry import Tracing
from cache.tier import Lookup, TierName
from gateway.answer import tier_message
from gateway.arrivals import Arrival, Arrivals
from gateway.costs import Costs
from gateway.errors import Internal, Overloaded, Unavailable
from gateway.generation import Completed, Heard, Piece, Planned, Settled, Step, Tuned
from gateway.live import can_be_heard
from gateway.plan import Plan, after_canonical
from gateway.quarantine import Quarantine
from gateway.reasons import Seen, seen
from gateway.status import explain_error, from_upstream
from gateway.wire import Reply, event_response
from gateway.workers import Fleet, Worker, WorkerSilent
from reprise.v1 import common_pb2 as pb
from reprise.v1.inference_pb2 import Elsewhere, Finished, ForeseeResponse, RunRequest, RunResponse
from reprise.v1.media_pb2 import GenerationEvent, Stored

_NO_WORKER_RETRY = 2.0  # seconds
_PLANNED_ANEW = 2  # times at most that a generation is
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Artifact:
    """What a worker delivered, verified."""

    canonical: Record
    own: Record  # as found under the address of the request as it was written
    reply: Reply  # the only copy of its bytes


class _NearGone(Exception):
    """The encodings of a near-duplicate that a plan counts on are not there any more."""


class _ModelChanged(Exception):
    """No worker serves a plan's model as it was when the plan was made."""


@dataclass(slots=True)
class _Run:
    """One generation on its way, wherever it runs."""

    flight: Flight[Step]
    plan: Plan
    records: Mapping[str, tuple[Record, TierName]]
    span: Span
    fill: Callable[[Completed], None]
    arrival: Arrival
    with_media: bool
    begun: str = ""  # the process of a worker where it has the device
    told: bool = False  # whether the worker where it was sent last has said anything of it
    lost: int = 0  # workers that died before they did
    tuned: bool = False
    heard: int = 0  # samples

    @property
    def suspicious(self) -> bool:
        """Whether the worker may have been at it: what is known to wait is not."""
        return bool(self.begun) or not self.told

    def request(self, costs: Costs, *, idle: Sequence[str] = (), must_run: bool = False) -> RunRequest:
        return _run_request(self.plan, self.records, costs, idle=idle, must_run=must_run)

    async def contents(self) -> dict[str, bytes]:
        return await _contents(self.plan) if self.with_media else {}

    def sent(self) -> None:
        """It is on its way to a worker, and what was running before is dropped again if nobody follows it."""
        self.told = False
        if self.begun:
            self.begun = ""
            self.flight.wait_again()

    def begin(self, process: str) -> None:
        """It has the device there, and goes on if nobody follows it: somebody must hear what becomes of the worker."""
        self.begun = process
        self.flight.goes_on = True

    def hear(self, event: GenerationEvent) -> None:
        """Publish samples that were made. What is made again by another worker is not told again."""
        if event.HasField("sound") and not self.tuned:
            self.tuned = True
            self.flight.publish(Tuned(event.sound.sample_rate))
        new = event.samples.pcm[2 * max(0, self.heard - event.samples.offset) :]
        if self.tuned and new and event.samples.offset <= self.heard:
            self.flight.publish(Heard(self.heard, new))
            self.heard += len(new) // 2


class Forwarder:
    """Leads flights: one call of `lead` is one generation, wherever it runs."""

    def __init__(
        self,
        hierarchy: Hierarchy,
        fleet: Fleet,
        costs: Costs,
        tracing: Tracing,
        arrivals: Arrivals,
        quarantine: Quarantine,
        plan_anew: Callable[[Plan], Awaitable[Plan]],
        *,
        patience: float,
        max_media_bytes: int,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._hierarchy = hierarchy
        self._fleet = fleet
        self._costs = costs
        self._tracing = tracing
        self._plan_anew = plan_anew
        self._patience = patience
        self._max_media_bytes = max_media_bytes
        self._media_bytes = 0  # of decoded media on their way to workers
        self._arrivals = arrivals
        self._quarantine = quarantine
        self._clock = clock
        self._abandoned: WeakSet[Flight[Step]] = WeakSet()
        self._attendances: dict[Flight[Step], _Attendance] = {}

    def attend(self, flight: Flight[Step]) -> None:
        """Nobody follows this flight any more, or somebody does again: whoever runs it should know."""
        if (attendance := self._attendances.get(flight)) is not None:
            attendance.tell()

    def abandon(self, flight: Flight[Step]) -> None:
        """The flight is about to be cancelled because its callers said so, not because they are gone."""
        self._abandoned.add(flight)

    async def lead(self, flight: Flight[Step], plan: Plan, span: Span, fill: Callable[[Completed], None]) -> None:
        """Publish everything that happens to this generation until its artifact is stored or given up.

        `fill` is told of the artifact before anybody else. Raises Refused, or the worker's refusal translated.
        """

        def completed(done: Completed) -> None:
            made = [stage.stage for stage in done.stages if stage.outcome == pb.STAGE_OUTCOME_RUN]
            self._hierarchy.expect(done.plan.addresses[name] for name in made if name in done.plan.addresses)
            fill(done)

        with self._arrivals.one() as arrival, ExitStack() as end:
            end.callback(self._abandoned.discard, flight)
            records, reasons, lookups = await known_encodings(self._hierarchy, plan, self._clock())
            flight.publish(Planned(expected_stages(plan, records), reasons, lookups))
            run = _Run(flight, plan, records, span, completed, arrival, with_media=_reads_media(plan, records))
            changes = 0
            while True:
                try:
                    artifact = await self._run_somewhere(run)
                    break
                except _NearGone:
                    plan = plan.with_stand_ins({})
                except _ModelChanged:
                    if (changes := changes + 1) > _PLANNED_ANEW:
                        raise Unavailable("WORKER_CHANGED") from None
                    plan = await self._plan_anew(plan)
                records, *_ = await known_encodings(self._hierarchy, plan, self._clock())
                run = replace(run, plan=plan, records=records, with_media=_reads_media(plan, records))
            if artifact is not None:
                # The worker went before it could say that the artifact is stored: what we hold, we store.
                flight.publish(Settled(await self._store(artifact, plan)))

    async def foresee(
        self, plan: Plan, records: Mapping[str, tuple[Record, TierName]], *, within: float | None = None
    ) -> ForeseeResponse | None:
        """What the plan's home would reuse and run; if that would wait for longer, only whether there is a result.
        None: no worker can say. Raises Refused, as a run would.
        """
        worker = self._fleet.home(plan.description.model, plan.description.revision, plan.affinity)
        if worker is None:
            return None
        try:
            foreseen = await worker.foresee(_run_request(plan, records, self._costs), within=within)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise from_upstream(error) from error
            _log.warning("worker foresees nothing", worker=worker.address, code=error.code().name)
            return None
        _name_tiers(foreseen.stages, records)
        known = {stage.name for stage in plan.stages if not stage.each}
        if [stage.stage for stage in foreseen.stages] != [stage.name for stage in plan.stages]:
            raise Internal("WORKER_STAGES_DIFFER")
        return foreseen if known <= foreseen.addresses.keys() else None

    async def _run_somewhere(self, run: _Run) -> _Artifact | None:
        """The artifact if it still needs storing, None if a worker has seen to that."""
        borrowed = run.plan.stand_ins.keys()
        if any(set(stage.media) & borrowed and stage.name not in run.records for stage in run.plan.stages):
            raise _NearGone
        failed: list[Worker] = []
        changed = False
        description = run.plan.description
        while True:
            home = self._fleet.home(description.model, description.revision, run.plan.affinity, without=failed)
            if home is None:
                if changed:
                    raise _ModelChanged
                raise Unavailable("NO_WORKER", retry_after=_NO_WORKER_RETRY)
            try:
                with self._room_for_media(run):
                    return await self._run_at(home, run, failed)
            except WorkerSilent:
                _log.warning("worker silent, trying another", worker=home.address)
                failed.append(home)
            except grpc.aio.AioRpcError as error:
                reason = explain_error(error).reason
                if reason == "MEDIA_NEEDED" and not run.with_media:
                    run.with_media = True
                elif reason == "NEAR_GONE" and run.plan.stand_ins:
                    raise _NearGone from None
                elif reason == "PLAN_DIFFERS" and await _has_changed(home, description):
                    _log.info("worker changed, trying another", worker=home.address)
                    changed = True
                    failed.append(home)
                elif error.code() is grpc.StatusCode.UNAVAILABLE:
                    _log.warning("worker lost, trying another", worker=home.address)
                    failed.append(home)
                else:
                    raise from_upstream(error) from error

    async def _run_at(self, home: Worker, run: _Run, failed: Collection[Worker]) -> _Artifact | None:
        """At a plan's home, or at the worker that the home has left it to."""
        description = run.plan.description
        idle = self._fleet.idle(description.model, description.revision, run.plan.affinity, without=[home, *failed])
        async with self._sent(home, run, run.request(self._costs, idle=idle)) as told:
            if not isinstance(told, Elsewhere):
                return told
            # As long as this stream is open, the home sends everybody who asks for the same to the same worker.
            other = self._fleet.find(told.worker)
            try:
                if other is not None and not other.silent and other not in failed:
                    return await self._run_here(other, run)
            except WorkerSilent:
                pass
            except grpc.aio.AioRpcError as error:
                if not _another_may(error):
                    raise
        _log.warning("worker lost, coming back to the home", worker=told.worker, home=home.address)
        return await self._run_here(home, run)

    async def _run_here(self, worker: Worker, run: _Run) -> _Artifact | None:
        async with self._sent(worker, run, run.request(self._costs, must_run=True)) as told:
            if isinstance(told, Elsewhere):
                raise Internal("WORKER_SENT_AWAY")
            return told

    @contextmanager
    def _room_for_media(self, run: _Run) -> Iterator[None]:
        """Decoded media are held until they are sent, and may be wanted again by another worker. Raises Overloaded."""
        plan = run.plan
        sent = [medium for name, medium in plan.media.items() if run.with_media and name not in plan.stand_ins]
        size = sum(medium.weight for medium in sent)
        if size and self._media_bytes and self._media_bytes + size > self._max_media_bytes:
            raise Overloaded("GATEWAY_BUSY")
        self._media_bytes += size
        try:
            yield
        finally:
            self._media_bytes -= size

    @asynccontextmanager
    async def _sent(
        self, worker: Worker, run: _Run, request: RunRequest
    ) -> AsyncIterator[_Artifact | Elsewhere | None]:
        """What a worker has to tell of a run in the end; the stream to it stays open for as long as the block lasts.

        The artifact if it still needs storing, None if the worker has seen to that, or who else has the run. Raises
        Quarantined.
        """
        self._quarantine.check(run.plan.address)
        run.sent()
        contents = await run.contents()
        process = worker.process
        span = self._tracing.child(run.span, "reprise.worker", {"server.address": worker.address})
        call = worker.run(request, contents, span, patience=self._patience)
        self._attendances[run.flight] = attendance = _Attendance(worker, request.follower, run.flight)
        reading = asyncio.create_task(_read(worker, call, run, span, attendance.tell))
        try:
            try:
                told = await asyncio.shield(reading)
            except grpc.aio.AioRpcError as error:
                if run.suspicious and _is_cut_off(error) and await worker.has_died(run.begun or process):
                    self._blame(run)
                raise
            if isinstance(told, Elsewhere):
                span.set_attribute("reprise.worker.elsewhere", told.worker)
            yield told
        except asyncio.CancelledError:
            if run.flight in self._abandoned and not reading.done():
                # While our stream is open: once it is closed, the worker does not know this follower any more.
                await worker.abandon(request.follower)
            raise
        finally:
            call.cancel()
            reading.cancel()
            attendance.close()
            if self._attendances.get(run.flight) is attendance:
                del self._attendances[run.flight]
            await asyncio.gather(reading, return_exceptions=True)
            span.end()

    def _blame(self, run: _Run) -> None:
        """A worker died where this run was. Raises Unavailable if that was so twice before it came to the device: then
        what is not told apart from it may be why, and it is not accused; but it must not go on from worker to worker.
        """
        if run.begun:
            self._quarantine.suspect(run.plan.address, run.begun)
            return
        run.lost += 1
        if run.lost >= ENOUGH:
            raise Unavailable("WORKERS_DIED", retry_after=_NO_WORKER_RETRY)

    async def _store(self, artifact: _Artifact, plan: Plan) -> Stored:
        if not plan.policy.store:
            return Stored(state=Stored.STATE_NOT_STORED)
        aliases = [artifact.own] if artifact.own is not artifact.canonical else []
        durable = await self._hierarchy.commit(
            artifact.canonical, artifact.reply.data, aliases=aliases, replace=plan.policy.replaces
        )
        return Stored(state=Stored.STATE_DURABLE if await durable else Stored.STATE_NOT_STORED)


class _Attendance:
    """Keeps a worker told whether anybody waits for a run: the state of the moment, one message after the other.

    Told whenever that changes, and again with whatever the worker says of the run if it did not know it by then.
    """

    def __init__(self, worker: Worker, follower: str, flight: Flight[Step]) -> None:
        self._worker = worker
        self._follower = follower
        self._flight = flight
        self._told = True
        self._telling: asyncio.Task[None] | None = None

    def tell(self) -> None:
        if not self._is_told and (self._telling is None or self._telling.done()):
            self._telling = asyncio.create_task(self._tell())

    def close(self) -> None:
        if self._telling is not None:
            self._telling.cancel()

    @property
    def _is_told(self) -> bool:
        return self._told == (self._flight.followers > 0)

    async def _tell(self) -> None:
        heard = True
        while heard and not self._is_told:
            waiting = self._flight.followers > 0
            if heard := await self._worker.attend(self._follower, waiting=waiting):
                self._told = waiting


async def known_encodings(
    hierarchy: Hierarchy, plan: Plan, now: float
) -> tuple[dict[str, tuple[Record, TierName]], dict[str, Seen], dict[str, list[Lookup]]]:
    """What the tiers hold of the stages before the result that a gateway can name, by stage; what they said of those
    that they do not hold; and what asking took.
    """
    if not plan.policy.reuse:
        return {}, {}, {}
    stages = plan.reachable
    asked = await hierarchy.ask_many([(plan.addresses[stage.name], stage.ttl) for stage in stages])
    by_stage = {stage.name: asked[plan.addresses[stage.name]] for stage in stages}
    lookups = shares({stage: found.lookups for stage, found in by_stage.items()})
    return *sift(plan, by_stage, now), lookups


async def _read(
    worker: Worker,
    call: grpc.aio.StreamStreamCall[RunRequest, RunResponse],
    run: _Run,
    span: Span,
    heard: Callable[[], None],
) -> _Artifact | Elsewhere | None:
    """Publish what a worker tells, to its end or until it says who else has the run (see `Forwarder._sent`).

    `heard` is called whenever it says something.
    """
    flight = run.flight
    chunks: list[bytes] = []
    artifact: _Artifact | None = None
    run.arrival.begin()
    call.add_done_callback(lambda _: run.arrival.look_again())
    try:
        async for message in call:
            heard()
            run.told = True
            if message.HasField("begun"):
                run.begin(message.begun.process)
            elif message.HasField("finished"):
                run.arrival.end()
                artifact = await _verified(message.finished, chunks, run.plan)
                completed = _completed(artifact.reply, message.finished, run.plan, run.records)
                run.fill(completed)
                _publish(flight, completed)
            elif message.HasField("stored"):
                flight.publish(Settled(message.stored))
                return None
            elif message.HasField("elsewhere"):
                return message.elsewhere
            elif message.event.HasField("chunk"):
                await run.arrival.take(len(message.event.chunk.data), lost=call.done)
                chunks.append(message.event.chunk.data)
            elif message.event.HasField("sound") or message.event.HasField("samples"):
                if can_be_heard(run.plan.parameters):
                    run.hear(message.event)
            elif message.HasField("event"):
                message.event.sequence = len(flight.events) + 1
                flight.publish(event_response(message.event))
    except grpc.aio.AioRpcError as error:
        span.set_status(StatusCode.ERROR, error.code().name)
        if artifact is None:
            raise
    except asyncio.CancelledError:
        if not worker.gave_up(call):
            raise
        span.set_status(StatusCode.ERROR, "silent")
        if artifact is None:
            raise WorkerSilent from None
    if artifact is None:
        raise Internal("WORKER_ENDED_EARLY")
    return artifact


def expected_stages(plan: Plan, records: Mapping[str, tuple[Record, TierName]]) -> list[pb.StageReport]:
    """What the tiers let expect of each stage. Nothing is said of stages that only the worker can name."""
    reports = []
    for stage in plan.stages:
        report = pb.StageReport(stage=stage.name)
        if stage.name in records:
            record, tier = records[stage.name]
            report = pb.StageReport(
                stage=stage.name,
                outcome=pb.STAGE_OUTCOME_REUSED,
                tier=tier_message(tier),
                device_seconds=record.device_seconds,
            )
        elif not after_canonical(plan.description, stage.name):
            report.outcome = pb.STAGE_OUTCOME_RUN
        reports.append(report)
    return reports


def sift(
    plan: Plan, asked: Mapping[str, Found], now: float
) -> tuple[dict[str, tuple[Record, TierName]], dict[str, Seen]]:
    """Of what was found for stages, what this plan may reuse; and what the tiers said of the rest."""
    records: dict[str, tuple[Record, TierName]] = {}
    reasons: dict[str, Seen] = {}
    for stage, found in asked.items():
        if found.record is not None and found.tier is not None and plan.policy.young_enough(found.record, now):
            records[stage] = found.record, found.tier
        else:
            reasons[stage] = seen(plan, found)
    return records, reasons


def _reads_media(plan: Plan, records: Mapping[str, object]) -> bool:
    return any(stage.media and stage.name not in records for stage in plan.stages)


async def _has_changed(worker: Worker, since: Description) -> bool:
    await worker.describe()
    return worker.descriptions.get(since.model) != since


def _another_may(error: grpc.aio.AioRpcError) -> bool:
    """Whether a worker's refusal is about itself and not about the run."""
    problem = explain_error(error)
    full = problem.code is grpc.StatusCode.RESOURCE_EXHAUSTED and problem.retry_after is not None
    return full or problem.code is grpc.StatusCode.UNAVAILABLE or problem.reason == "PLAN_DIFFERS"


def _is_cut_off(error: grpc.aio.AioRpcError) -> bool:
    """Whether a stream ended without a word of the worker's."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and not explain_error(error).reason


def _run_request(
    plan: Plan,
    records: Mapping[str, tuple[Record, TierName]],
    costs: Costs,
    *,
    idle: Sequence[str] = (),
    must_run: bool = False,
) -> RunRequest:
    request = RunRequest(
        model=plan.description.model,
        revision=plan.description.revision,
        parameters={name: _parameter(value) for name, value in plan.parameters.items()},
        namespaces={scope.value: namespace for scope, namespace in plan.namespaces.items()},
        addresses={stage: str(address) for stage, address in plan.addresses.items()},
        records={stage: record.to_bytes() for stage, (record, _) in records.items()},
        reuse_nothing=not plan.policy.reuse,
        store_nothing=not plan.policy.store,
        replace=plan.policy.replaces,
        follower=secrets.token_hex(16),
        max_age=plan.policy.max_age,
        tags=plan.tags,
        idle=idle,
        must_run=must_run,
        idle_priority=plan.idle,
        estimates=costs.estimates(plan.description, plan.stages, plan.parameters),
    )
    for name, medium in plan.media.items():
        medium.put_into(request, name)
        if (stand_in := plan.stand_ins.get(name)) is not None:
            request.pictures[name].near_identity = stand_in.identity
    return request


async def _contents(plan: Plan) -> dict[str, bytes]:
    """What travels beside a plan, by name. No pixels of a picture whose encodings are to be another's."""
    return {name: await medium.let_go() for name, medium in plan.media.items() if name not in plan.stand_ins}


def _parameter(value: Scalar) -> pb.ParameterValue:
    match value:
        case str():
            return pb.ParameterValue(text_value=value)
        case float():
            return pb.ParameterValue(float_value=value)
        case _:
            return pb.ParameterValue(int_value=value)


async def _verified(finished: Finished, chunks: list[bytes], plan: Plan) -> _Artifact:
    """Takes the chunks: the reply has their bytes, and is held for as long as they are being stored."""
    address = plan.address
    try:
        canonical = Record.from_bytes(finished.record)
        own = Record.from_bytes(finished.alias or finished.record, address)
    except NotARecord as error:
        raise Internal("WORKER_RECORD_INVALID") from error
    # What is stored for a tenant stays in its namespace, whatever a worker says.
    if str(canonical.address) != finished.canonical_address or canonical.address.namespace != address.namespace:
        raise Internal("WORKER_RECORD_INVALID")
    if canonical.output.digest != await Digest.of_any_size(*chunks) or own.output.digest != canonical.output.digest:
        raise Internal("WORKER_BYTES_DIFFER")
    reply = Reply.of(replace(own, pending=True), *chunks, random_weights=plan.description.random_weights)
    chunks.clear()
    return _Artifact(canonical, own, reply)


def _completed(
    reply: Reply, finished: Finished, plan: Plan, records: Mapping[str, tuple[Record, TierName]]
) -> Completed:
    _name_tiers(finished.stages, records)
    stages = [stage for stage in finished.stages if stage.stage in plan.addresses]
    return Completed(reply, stages, finished.joined, plan.without_media())


def _name_tiers(stages: Iterable[pb.StageReport], records: Mapping[str, tuple[Record, TierName]]) -> None:
    for stage in stages:
        if stage.outcome == pb.STAGE_OUTCOME_REUSED and not stage.tier and stage.stage in records:
            stage.tier = tier_message(records[stage.stage][1])  # it came inside the record that we had found


def _publish(flight: Flight[Step], completed: Completed) -> None:
    for chunk in completed.reply.chunks:
        flight.publish(Piece(chunk))
    flight.publish(completed)
