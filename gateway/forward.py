"""Forward: a miss goes to the worker that is its home, and what comes back is believed only after a look at it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakSet

import grpc
import structlog
from opentelemetry.trace import Span, StatusCode

from cache.description import Description, Scalar
from cache.digest import Digest
from cache.flight import Flight
from cache.hierarchy import Hierarchy
from cache.keys import Address
from cache.record import NotARecord, Record
from cache.telemetry import Tracing
from cache.tier import TierName
from gateway.answer import tier_message
from gateway.errors import Internal, Overloaded, Unavailable
from gateway.generation import Completed, Planned, Settled, Step
from gateway.plan import Plan
from gateway.status import explain_error, from_upstream
from gateway.wire import Reply, chunk_event, event_response
from gateway.workers import Fleet, Worker, WorkerSilent
from reprise.v1 import common_pb2 as pb
from reprise.v1.inference_pb2 import Finished, Picture, RunRequest, RunResponse
from reprise.v1.media_pb2 import Stored

_NO_WORKER_RETRY = 2.0  # seconds
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Artifact:
    """What a worker delivered, verified."""

    canonical: Record
    own: Record  # as found under the address of the request as it was written
    data: bytes


class _NearGone(Exception):
    """The encodings of a near-duplicate that a plan counts on are not there any more."""


class Forwarder:
    """Leads flights: one call of `lead` is one generation, wherever it runs."""

    def __init__(
        self,
        hierarchy: Hierarchy,
        fleet: Fleet,
        tracing: Tracing,
        *,
        patience: float,
        max_pixels: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._hierarchy = hierarchy
        self._fleet = fleet
        self._tracing = tracing
        self._patience = patience
        self._max_pixels = max_pixels
        self._pixels = 0  # bytes of decoded pictures on their way to workers
        self._clock = clock
        self._abandoned: WeakSet[Flight[Step]] = WeakSet()

    def abandon(self, flight: Flight[Step]) -> None:
        """The flight is about to be cancelled because its callers said so, not because they are gone."""
        self._abandoned.add(flight)

    async def lead(self, flight: Flight[Step], plan: Plan, span: Span, fill: Callable[[Completed], None]) -> None:
        """Publish everything that happens to this generation until its artifact is stored or given up.

        `fill` is told of the artifact before anybody else. Raises Refused, or the worker's refusal translated.
        """

        def completed(done: Completed) -> None:
            made = [stage.stage for stage in done.stages if stage.outcome == pb.STAGE_OUTCOME_RUN]
            self._hierarchy.expect(plan.addresses[name] for name in made if name in plan.addresses)
            fill(done)

        try:
            records = await known_encodings(self._hierarchy, plan, self._clock())
            flight.publish(Planned(expected_stages(plan, records)))
            try:
                artifact = await self._run_somewhere(flight, plan, records, span, completed)
            except _NearGone:
                plan = plan.with_stand_ins({})
                records = await known_encodings(self._hierarchy, plan, self._clock())
                artifact = await self._run_somewhere(flight, plan, records, span, completed)
            if artifact is not None:
                # The worker went before it could say that the artifact is stored: what we hold, we store.
                flight.publish(Settled(await self._store(artifact, plan)))
        finally:
            self._abandoned.discard(flight)

    async def _run_somewhere(
        self,
        flight: Flight[Step],
        plan: Plan,
        records: Mapping[str, tuple[Record, TierName]],
        span: Span,
        fill: Callable[[Completed], None],
    ) -> _Artifact | None:
        description = plan.description
        failed: list[Worker] = []
        if any(set(stage.media) & plan.stand_ins.keys() and stage.name not in records for stage in plan.stages):
            raise _NearGone
        with_pixels = _reads_media(plan, records)
        while True:
            worker = self._fleet.home(description.model, description.revision, plan.affinity, without=failed)
            if worker is None:
                raise Unavailable("NO_WORKER", retry_after=_NO_WORKER_RETRY)
            try:
                with self._room_for_pixels(plan, with_pixels):
                    request = await _run_request(plan, records, with_pixels=with_pixels)
                    return await self._run_on(worker, request, flight, plan, records, span, fill)
            except WorkerSilent:
                _log.warning("worker silent, trying another", worker=worker.address)
                failed.append(worker)
            except grpc.aio.AioRpcError as error:
                reason = explain_error(error).reason
                if reason == "MEDIA_NEEDED" and not with_pixels:
                    with_pixels = True
                elif reason == "NEAR_GONE" and plan.stand_ins:
                    raise _NearGone from None
                elif error.code() is grpc.StatusCode.UNAVAILABLE:
                    _log.warning("worker lost, trying another", worker=worker.address)
                    failed.append(worker)
                else:
                    raise from_upstream(error) from error

    @contextmanager
    def _room_for_pixels(self, plan: Plan, with_pixels: bool) -> Iterator[None]:
        """A run's request lives as long as the run, and its pictures are most of it. Raises Overloaded."""
        sources = [source for name, source in plan.media.items() if with_pixels and name not in plan.stand_ins]
        size = sum(source.width * source.height * 3 for source in sources)
        if size and self._pixels and self._pixels + size > self._max_pixels:
            raise Overloaded("GATEWAY_BUSY")
        self._pixels += size
        try:
            yield
        finally:
            self._pixels -= size

    async def _run_on(
        self,
        worker: Worker,
        request: RunRequest,
        flight: Flight[Step],
        plan: Plan,
        records: Mapping[str, tuple[Record, TierName]],
        parent: Span,
        fill: Callable[[Completed], None],
    ) -> _Artifact | None:
        """The artifact if it still needs storing, None if the worker has seen to that."""
        span = self._tracing.child(parent, "reprise.worker", {"server.address": worker.address})
        call = worker.run(request, span, patience=self._patience)
        reading = asyncio.create_task(_read(worker, call, flight, plan, records, span, fill))
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            if flight in self._abandoned:
                # While our stream is open: once it is closed, the worker does not know this follower any more.
                await worker.abandon(request.follower)
            raise
        finally:
            call.cancel()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            span.end()

    async def _store(self, artifact: _Artifact, plan: Plan) -> Stored:
        if not plan.policy.store:
            return Stored(state=Stored.STATE_NOT_STORED)
        aliases = [artifact.own] if artifact.own is not artifact.canonical else []
        durable = await self._hierarchy.commit(
            artifact.canonical, artifact.data, aliases=aliases, replace=plan.policy.replaces
        )
        return Stored(state=Stored.STATE_DURABLE if await durable else Stored.STATE_NOT_STORED)


async def known_encodings(hierarchy: Hierarchy, plan: Plan, now: float) -> dict[str, tuple[Record, TierName]]:
    """What the tiers hold of the stages before the result that a gateway can name, by stage."""
    if not plan.policy.reuse:
        return {}
    description = plan.description
    reachable = {
        plan.addresses[stage.name]: stage
        for stage in plan.stages
        if stage.cached and stage is not description.final and not _after_canonical(description, stage.name)
    }
    found = await hierarchy.find_many([(address, stage.ttl) for address, stage in reachable.items()])
    oldest = 0.0 if plan.policy.max_age is None else now - plan.policy.max_age
    return {reachable[address].name: known for address, known in found.items() if known[0].made_at >= oldest}


async def _read(
    worker: Worker,
    call: grpc.aio.UnaryStreamCall[RunRequest, RunResponse],
    flight: Flight[Step],
    plan: Plan,
    records: Mapping[str, tuple[Record, TierName]],
    span: Span,
    fill: Callable[[Completed], None],
) -> _Artifact | None:
    """Publish what a worker tells. The artifact if it still needs storing, None if the worker has seen to that."""
    chunks: list[bytes] = []
    artifact: _Artifact | None = None
    try:
        async for message in call:
            if message.HasField("finished"):
                artifact = await _verified(message.finished, b"".join(chunks), plan.address)
                completed = _completed(artifact, message.finished, plan, records)
                fill(completed)
                _publish(flight, completed)
            elif message.HasField("stored"):
                flight.publish(Settled(message.stored))
                return None
            elif message.event.HasField("chunk"):
                chunks.append(message.event.chunk.data)
            else:
                message.event.sequence = len(flight.events) + 1
                flight.publish(event_response(message.event))
    except grpc.aio.AioRpcError as error:
        span.set_status(StatusCode.ERROR, error.code().name)
        if artifact is None:
            raise
    except asyncio.CancelledError:
        if not worker.silent:
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
        elif not _after_canonical(plan.description, stage.name):
            report.outcome = pb.STAGE_OUTCOME_RUN
        reports.append(report)
    return reports


def _after_canonical(description: Description, name: str) -> bool:
    upstream = description.stage(name).upstream.values()
    return any(description.stage(each).canonicalises or _after_canonical(description, each) for each in upstream)


def _reads_media(plan: Plan, records: Mapping[str, object]) -> bool:
    return any(stage.media and stage.name not in records for stage in plan.stages)


async def _run_request(plan: Plan, records: Mapping[str, tuple[Record, TierName]], *, with_pixels: bool) -> RunRequest:
    return RunRequest(
        model=plan.description.model,
        revision=plan.description.revision,
        parameters={name: _parameter(value) for name, value in plan.parameters.items()},
        pictures={name: await _picture(plan, name, with_pixels) for name in plan.media},
        namespaces={scope.value: namespace for scope, namespace in plan.namespaces.items()},
        addresses={stage: str(address) for stage, address in plan.addresses.items()},
        records={stage: record.to_bytes() for stage, (record, _) in records.items()},
        reuse_nothing=not plan.policy.reuse,
        store_nothing=not plan.policy.store,
        replace=plan.policy.replaces,
        follower=secrets.token_hex(16),
        max_age=plan.policy.max_age,
    )


def _parameter(value: Scalar) -> pb.ParameterValue:
    match value:
        case str():
            return pb.ParameterValue(text_value=value)
        case float():
            return pb.ParameterValue(float_value=value)
        case _:
            return pb.ParameterValue(int_value=value)


async def _picture(plan: Plan, name: str, with_pixels: bool) -> Picture:
    source, stand_in = plan.media[name], plan.stand_ins.get(name)
    if stand_in is not None:  # without pixels in any case: none are to be encoded under another's name
        identity = stand_in.identity
        return Picture(identity=source.identity, width=source.width, height=source.height, near_identity=identity)
    if not with_pixels:
        return Picture(identity=source.identity, width=source.width, height=source.height)
    picture = await source.pixels()
    source.release()
    return Picture(identity=picture.identity, width=picture.width, height=picture.height, rgb=picture.rgb)


async def _verified(finished: Finished, data: bytes, address: Address) -> _Artifact:
    try:
        canonical = Record.from_bytes(finished.record)
        own = Record.from_bytes(finished.alias or finished.record, address)
    except NotARecord as error:
        raise Internal("WORKER_RECORD_INVALID") from error
    # What is stored for a tenant stays in its namespace, whatever a worker says.
    if str(canonical.address) != finished.canonical_address or canonical.address.namespace != address.namespace:
        raise Internal("WORKER_RECORD_INVALID")
    if canonical.output.digest != await Digest.of_any_size(data) or own.output.digest != canonical.output.digest:
        raise Internal("WORKER_BYTES_DIFFER")
    return _Artifact(canonical, own, data)


def _completed(
    artifact: _Artifact, finished: Finished, plan: Plan, records: Mapping[str, tuple[Record, TierName]]
) -> Completed:
    reply = Reply.of(artifact.own, artifact.data, random_weights=plan.description.random_weights, durable=False)
    for stage in finished.stages:
        if stage.outcome == pb.STAGE_OUTCOME_REUSED and not stage.tier and stage.stage in records:
            stage.tier = tier_message(records[stage.stage][1])  # it came inside the record that we had found
    return Completed(reply, list(finished.stages), finished.joined, plan.stand_ins)


def _publish(flight: Flight[Step], completed: Completed) -> None:
    for chunk in completed.reply.chunks:
        flight.publish(chunk_event(len(flight.events) + 1, chunk))
    flight.publish(completed)
