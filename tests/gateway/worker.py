"""A worker whose timing a test scripts: a real gRPC server with the real contract, whose stages are tiny computations.

What it computes is a pure function of what it is asked, what it stores goes to real tiers, and what it counts is what
tests are about: `requests` (plans received), `generations` (runs that computed anything) and `ran` (stages). A test
makes it stop at a point with `hold`, waits until it is there, and lets it go on.

    describe    a question what it serves has come
    arrived     a plan has come, nothing was told of it yet
    begin       a run has started, nothing was looked up yet
    step        before every step of the denoising
    sentence    before every sentence that has to be made
    block       before every quarter of a second of speech is told
    finished    everything was computed and stored behind; chunks have not been sent
    stored      the result was sent; whether it is durable has not
    refuse      a plan is about to be refused as `refusals` says
    foresee     a question what a run would do has come
    abandon     a follower has said that it is not coming back
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from cache import tags
from cache.bans import Ban
from cache.build import build_tiers
from cache.catalogue import Catalogue
from cache.description import Description, Parameter, Recording, Scalar, Scope, Stage, When
from cache.digest import Digest
from cache.flight import Deserted, Flight, Flights
from cache.hierarchy import Hierarchy
from cache.keys import Address, Principal, addresses, ancestors, content_ids, depends_on, namespace
from cache.news import News
from cache.orders import Order
from cache.parts import part_name, unfold, whole_name
from cache.record import INLINE_LIMIT, Output, Record
from cache.settings import CacheSettings
from cache.sweep import Gone
from cache.tier import TierName
from cache.work import Work, divide
from inference.arrival import arrive
from inference.errors import QueueFull
from inference.handover import Note, Notes
from inference.turns import Ticket, Turns
from reprise.v1 import common_pb2 as common
from reprise.v1 import inference_pb2 as pb
from reprise.v1 import media_pb2 as media
from reprise.v1.inference_pb2_grpc import InferenceServiceServicer, add_InferenceServiceServicer_to_server
from tests.gateway import speech

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
PIECE = 300_000  # bytes of a chunk as this worker sends it: not what its gateway will send
COSTS = {"tokens": 0.0, "text": 0.25, "negative_tokens": 0.0, "picture": 0.5, "denoise": 4.0, "render": 0.25}
WHOLE_COST = 5.0  # device seconds of all stages
COSTS |= {"voice": 0.5, "prefix": 0.25, "latents": 2.0, "waveform": 0.5, "pace": 0.0, "file": 0.25}
_TIERS = {TierName.L1: common.TIER_L1, TierName.L2: common.TIER_L2, TierName.L3: common.TIER_L3}


def family(model: str = "small", revision: str = "r1", **changes: Any) -> Description:
    """Text is canonicalised (case and spaces do not matter) and embedded, a picture is encoded, both become a clip."""
    return Description(
        model=model,
        revision=revision,
        family="scripted",
        task=changes.pop("task", "animate_image"),
        random_weights=True,
        parameters=(
            Parameter(name="prompt", kind="text", max_length=100),
            Parameter(name="negative_prompt", kind="text", default=""),
            Parameter(name="guidance_scale", kind="float", default=9.0, minimum=1.0, maximum=30.0),
            Parameter(name="num_frames", kind="int", default=16, minimum=1, maximum=64, unit="frames"),
            Parameter(name="num_inference_steps", kind="int", default=2, minimum=1, maximum=100),
            Parameter(name="playback_fps", kind="int", default=8, minimum=1, maximum=60),
            Parameter(name="seed", kind="int", default=0, minimum=0, maximum=2**53 - 1),
            Parameter(name="size", kind="int", default=1000, minimum=0, maximum=2**26, extra=True),  # of the file
            Parameter(name="eta", kind="float", default=0.0, minimum=0.0, maximum=1.0, extra=True),
        ),
        stages=(
            _stage("tokens", parameters={"text": "prompt"}, canonicalises=True, scope=Scope.USER),
            _stage("text", upstream={"tokens": "tokens"}, scope=Scope.USER),
            _stage(
                "negative_tokens",
                kind="tokens",
                parameters={"text": "negative_prompt"},
                canonicalises=True,
                scope=Scope.USER,
                when=When(parameter="guidance_scale", above=1.0),
            ),
            _stage("picture", media=("image",), scope=Scope.SHARED),
            _stage(
                "denoise",
                parameters={
                    "guidance": "guidance_scale",
                    "frames": "num_frames",
                    "steps": "num_inference_steps",
                    "seed": "seed",
                    "eta": "eta",
                },
                upstream={"text": "text", "negative": "negative_tokens", "picture": "picture"},
            ),
            _stage("render", parameters={"fps": "playback_fps", "size": "size"}, upstream={"latents": "denoise"}),
        ),
        affinity="picture",
    )


def speaker(model: str = "speaker", revision: str = "r1", **changes: Any) -> Description:
    """A voice is encoded; every sentence is made on its own, is heard as it is made, and becomes a part of a file."""
    return Description(
        model=model,
        revision=revision,
        family="scripted",
        task="synthesize_speech",
        random_weights=True,
        parameters=(
            Parameter(name="text", kind="text", max_length=300, spoken=True, refuses=("<|", "|>")),
            Parameter(name="instruction", kind="text", default="", max_length=100),
            Parameter(name="pronunciations", kind="text", default="", max_length=200),
            Parameter(name="speed", kind="float", default=1.0, minimum=0.5, maximum=2.0),
            Parameter(name="sample_rate", kind="int", default=8000, minimum=4000, maximum=48000),
            Parameter(name="format", kind="choice", default="wav", choices=("wav", "flac", "ogg")),
            Parameter(name="seed", kind="int", default=0, minimum=0, maximum=2**53 - 1),
            Parameter(name="temperature", kind="float", default=0.7, minimum=0.0, maximum=2.0, extra=True),
        ),
        recordings={"voice": Recording(min_seconds=0.5, max_seconds=5.0, min_sample_rate=8000)},
        stages=(
            _stage("voice", media=("voice",)),
            _stage("prefix", upstream={"voice": "voice"}),
            _stage(
                "tokens",
                parameters={"text": "text", "pronunciations": "pronunciations"},
                canonicalises=True,
                cached=False,
                scope=Scope.USER,
            ),
            _stage(
                "latents",
                each="tokens",
                parameters={"instruction": "instruction", "seed": "seed", "temperature": "temperature"},
                upstream={"prefix": "prefix", "tokens": "tokens"},
            ),
            _stage("waveform", each="tokens", follows="latents", upstream={"latents": "latents"}),
            _stage(
                "pace",
                each="tokens",
                follows="waveform",
                live=True,
                cached=False,
                parameters={"speed": "speed", "sample_rate": "sample_rate"},
                upstream={"waveform": "waveform"},
            ),
            _stage("file", parameters={"format": "format", "sample_rate": "sample_rate"}, upstream={"pcm": "pace"}),
        ),
        affinity="voice",
        **changes,
    )


def _stage(name: str, **changes: Any) -> Stage:
    fields: dict[str, Any] = {"name": name, "kind": name, "scope": Scope.TENANT, "ttl": 600.0} | changes
    return Stage(fingerprint=f"{fields['kind']}-1", **fields)


@dataclass
class Gate:
    """A point where work stops until the test opens it. `reached` is set by the first run that gets there."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    def open(self) -> None:
        self.opened.set()


class Refusal(Exception):
    """An error of the contract, as a worker tells it."""

    def __init__(self, code: grpc.StatusCode, reason: str, *, retry_after: int | None = None, field: str = "") -> None:
        super().__init__(reason)
        details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain="reprise")]
        if retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromSeconds(retry_after)
            details.append(retry)
        if field:
            violation = error_details_pb2.BadRequest.FieldViolation(field=field, description="secret words")
            details.append(error_details_pb2.BadRequest(field_violations=[violation]))
        self.status = status_pb2.Status(code=code.value[0], message=reason)
        for detail in details:
            self.status.details.add().Pack(detail)


UNAVAILABLE = Refusal(grpc.StatusCode.UNAVAILABLE, "DRAINING")
PLAN_DIFFERS = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "PLAN_DIFFERS")
MEDIA_NEEDED = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "MEDIA_NEEDED")
NEAR_GONE = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "NEAR_GONE")
QUEUE_FULL = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=7)
DEVICE_MEMORY = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "DEVICE_MEMORY")
BAD_FRAMES = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INPUT_INVALID", field="num_frames")


class ScriptedWorker(InferenceServiceServicer):
    """See the module. Made by `open_worker`."""

    def __init__(self, hierarchy: Hierarchy, descriptions: Mapping[str, Description], started_at: float) -> None:
        self.descriptions = dict(descriptions)
        self.started_at = started_at
        self.address = ""
        self.dead = False
        self.requests: list[pb.RunRequest] = []
        self.metadata: list[dict[str, Any]] = []  # of each plan received
        self.generations = 0
        self.ran: Counter[str] = Counter()
        self.abandoned: list[str] = []  # followers
        self.deaf = 0  # of these it hears so many as if it knew no such follower
        self.attended: list[tuple[str, bool]] = []  # followers, and whether anybody waits for them
        self.ended = News()  # announced whenever a run ends, however
        self.cancelled = 0  # runs that were ended before they were done
        self.described = 0
        self.foreseen = 0  # questions what a run would do
        self.blind: Refusal | None = None  # the answer to all of them
        self.refusals: list[Refusal] = []  # of the next plans, one each
        self.twist: Callable[[pb.Finished], None] = lambda finished: None  # to lie about a result
        self.twist_bytes: Callable[[bytes], bytes] = lambda data: data
        self.twist_samples: Callable[[bytes], bytes] = lambda pcm: pcm
        self.speaks_every: float | None = None  # seconds between signs of life; None: only on a change
        self.silent_end = False  # end streams before they say `finished`
        self.queued: Callable[[int], int] = lambda stream: 3  # what each stream of Status is told, counted from 0
        self.hands_over = False  # new runs go to the first idle worker they name
        self.notes: Notes[object] = Notes(grace=60.0)
        self.turns: Turns | None = None  # before the denoising; None: everybody at once (see `line_up`)
        self.queue_seconds = 0.0  # that it says a run would wait, where it has no line
        self.costs: Mapping[str, float] = COSTS
        self.step_seconds = 0.0  # that every step, and every block of speech, lasts
        self.inlines = False  # keep small outputs inside their records, as workers with devices do
        self.hierarchy = hierarchy
        self.catalogue: Catalogue | None = None
        self._flights: Flights[object, pb.RunResponse] = Flights(grace=60.0)
        self._followers: dict[str, Flight[pb.RunResponse]] = {}
        self._waiting: dict[str, bool] = {}  # whether anybody waits for what a follower follows
        self._jobs: WeakKeyDictionary[Flight[pb.RunResponse], _Job] = WeakKeyDictionary()
        self._gates: dict[str, Gate] = {}
        self._watchers = 0
        self._state = pb.StatusResponse.STATE_READY
        self._status = News()
        self._server: grpc.aio.Server | None = None

    # What a test does with it.

    @property
    def process(self) -> str:
        return f"{self.address} {self.started_at}"

    def hold(self, point: str) -> Gate:
        """Stop every run at this point from now on."""
        self._gates[point] = Gate()
        return self._gates[point]

    def line_up(self, limit: int, *, share: float = 1.0) -> None:
        """Denoise one run at a time, as a worker with one device does."""
        self.turns = Turns(limit, self._status.announce, share=share)

    def say(self, state: pb.StatusResponse.State) -> None:
        self._state = state
        self._status.announce()

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024)]
        )
        add_InferenceServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        await self._server.start()

    async def publish(self) -> None:
        """Put the descriptions into the catalogue, for gateways that never saw this worker."""
        assert self.catalogue is not None
        for description in self.descriptions.values():
            await self.catalogue.publish(description)

    async def die(self) -> None:
        """Break every stream; refuse connections."""
        self.dead = True
        if self._server is not None:
            await self._server.stop(0)
        await self._flights.drain(0)

    async def obey(self, order: Order | None) -> Gone:
        """Like a worker: what is under way is joined by nobody once something was banned."""
        if isinstance(order, Ban):
            self._flights.part()
        return Gone()

    @property
    def following(self) -> int:
        """How many streams follow a run."""
        return len(self._followers)

    # The contract.

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        self.described += 1
        await self.at("describe")
        return pb.DescribeResponse(
            descriptions=[description.to_bytes() for description in self.descriptions.values()],
            worker=self.address,
            started_at=self.started_at,
            process=self.process,
        )

    async def Status(self, request: pb.StatusRequest, context: Context) -> AsyncIterator[pb.StatusResponse]:
        stream = self._watchers
        self._watchers += 1
        while True:
            status = pb.StatusResponse(
                state=self._state,
                queued=self.queued(stream),
                queue_seconds=self.queue_seconds,
                pool_bytes=5,
                pool_entries=1,
            )
            if (turns := self.turns) is not None:
                status.queued, status.busy, status.queue_seconds = turns.waiting, turns.busy, turns.seconds
            yield status
            with suppress(TimeoutError):
                async with asyncio.timeout(self.speaks_every):
                    await self._status.wait()

    async def Abandon(self, request: pb.AbandonRequest, context: Context) -> pb.AbandonResponse:
        self.abandoned.append(request.follower)
        await self.at("abandon")
        flight = self._followers.get(request.follower)
        if flight is None:
            await _abort(context, Refusal(grpc.StatusCode.NOT_FOUND, "RUN_UNKNOWN"))
        elif flight.followers <= 1:
            self._flights.cancel(flight)
        return pb.AbandonResponse()

    async def Attend(self, request: pb.AttendRequest, context: Context) -> pb.AttendResponse:
        self.attended.append((request.follower, request.waiting))
        flight = self._followers.get(request.follower)
        self.deaf -= 1
        if flight is None or self.deaf >= 0:
            await _abort(context, Refusal(grpc.StatusCode.NOT_FOUND, "RUN_UNKNOWN"))
        else:
            self._waiting[request.follower] = request.waiting
            self._rank(flight)
        return pb.AttendResponse()

    def _rank(self, flight: Flight[pb.RunResponse]) -> None:
        """Those that somebody waits for go first."""
        if self.turns is not None:
            wanted = any(self._waiting[name] for name, other in self._followers.items() if other is flight)
            (self.turns.lift if wanted else self.turns.sink)(self._jobs[flight].ticket)

    async def Foresee(self, request: pb.ForeseeRequest, context: Context) -> pb.ForeseeResponse:
        self.foreseen += 1
        await self.at("foresee")
        try:
            if self.blind is not None:
                raise self.blind
            return await _Job(self, request.run).foresee(request.within if request.HasField("within") else None)
        except Refusal as refusal:
            await _abort(context, refusal)
            raise AssertionError("abort raises") from refusal

    async def Run(
        self, request_iterator: AsyncIterator[pb.RunRequest], context: Context
    ) -> AsyncIterator[pb.RunResponse]:
        request, contents = await arrive(request_iterator)
        for name, content in contents.items():
            if name in request.sounds:
                request.sounds[name].pcm = content
            else:
                request.pictures[name].rgb = content
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        await self.at("arrived")
        if self.refusals:
            await self.at("refuse")
            await _abort(context, self.refusals.pop(0))
        try:
            job = _Job(self, request)
        except Refusal as refusal:
            await _abort(context, refusal)
        key = job.key
        if (note := self._note(key, request)) is not None:
            with self.notes.telling(note):
                yield pb.RunResponse(elsewhere=pb.Elsewhere(worker=note.worker))
                await self.notes.until_closed()
            return
        flight, led = self._flights.join(key, job.lead)
        if led:
            self._jobs[flight] = job
        self._followers[request.follower] = flight
        self._waiting[request.follower] = not request.idle_priority
        self._rank(flight)
        try:
            with flight.following():
                async for response in flight.follow():
                    if response.HasField("finished"):
                        if self.silent_end:
                            return
                        response = pb.RunResponse(finished=job.told(response.finished, joined=not led))
                        self.twist(response.finished)
                    yield response
        except Refusal as refusal:
            await _abort(context, refusal)
        except Deserted:
            await _abort(context, Refusal(grpc.StatusCode.CANCELLED, "ABANDONED"))
        finally:
            del self._followers[request.follower], self._waiting[request.follower]
            self._rank(flight)

    def _note(self, key: object, request: pb.RunRequest) -> Note[object] | None:
        """Whether another worker has this run, or is to have it from now on."""
        if request.must_run:
            self.notes.forget(key)
        elif self._flights.get(key) is None:
            if (note := self.notes.find(key)) is not None:
                return note
            if self.hands_over and request.idle:
                return self.notes.write(key, request.idle[0])
        return None

    def has(self, key: object) -> bool:
        """Whether a run is under way for this."""
        return self._flights.get(key) is not None

    async def at(self, point: str) -> None:
        if gate := self._gates.get(point):
            gate.reached.set()
            await gate.opened.wait()


class _Job:
    """One plan, understood as the contract asks: its addresses are checked, canonical ones are computed."""

    def __init__(self, worker: ScriptedWorker, request: pb.RunRequest) -> None:
        self.worker = worker
        self.request = request
        description = worker.descriptions.get(request.model)
        if description is None or description.revision != request.revision:
            raise PLAN_DIFFERS
        self.parameters = {name: _scalar(value) for name, value in request.parameters.items()}
        self.media = {name: picture.identity for name, picture in request.pictures.items()}
        self.media |= {name: sound.identity for name, sound in request.sounds.items()}
        self.instead = {name: each.near_identity for name, each in request.pictures.items() if each.near_identity}
        self.namespaces = {Scope(scope): namespace for scope, namespace in request.namespaces.items()}
        self.whole = self.description = description
        self.own = self._addresses({})
        if {stage: str(address) for stage, address in self.own.items()} != dict(request.addresses):
            raise PLAN_DIFFERS
        self.tokens: dict[str, bytes] = {}
        self.order: dict[str, list[int]] = {}  # which sentence stands at each place of a text
        for stage in description.active(self.parameters):
            if stage.canonicalises:
                self._understand(stage)
        self.description = description.model_copy(update={"stages": unfold(description.stages, self.order)})
        self.stages = self.description.active(self.parameters)
        self.addresses = self._addresses({name: Digest.of(tokens) for name, tokens in self.tokens.items()})
        self.reports: dict[str, common.StageReport] = {}
        self.began = 0.0
        self.ticket = Ticket(whose=self.namespaces[Scope.TENANT])  # for the device
        self._had: dict[str, tuple[bytes, Record]] = {}

    def _understand(self, stage: Stage) -> None:
        """Case and spaces do not matter. A text that is made sentence by sentence falls apart at full stops."""
        said = [str(self.parameters[name]) for name in stage.parameters.values()]
        tokens = " ".join("\0".join(said).lower().split())
        self.tokens[stage.name] = tokens.encode()
        if any(other.each == stage.name for other in self.whole.stages):
            text, _, marks = tokens.partition("\0")
            sentences = [sentence.strip() for sentence in text.split(".") if sentence.strip()]
            numbers = {sentence: number for number, sentence in enumerate(dict.fromkeys(sentences))}
            self.order[stage.name] = [numbers[sentence] for sentence in sentences]
            self.tokens |= {
                part_name(stage.name, number): f"{sentence}\0{marks}".encode() for sentence, number in numbers.items()
            }

    def _addresses(self, canonical: Mapping[str, Digest]) -> dict[str, Address]:
        ids = content_ids(self.description, self.parameters, self.media, canonical, self.instead)
        return addresses(self.description, ids, self.namespaces, self.instead)

    @property
    def key(self) -> object:
        """What equal runs have in common."""
        request = self.request
        final = self.addresses[self.description.final.name]
        return final, request.reuse_nothing, request.store_nothing, request.max_age

    def seconds_of(self, run: Iterable[Stage]) -> float | None:
        """That these stages should take on the device, by the plan."""
        known = [self.request.estimates.get(whole_name(stage.name)) for stage in run]
        return sum(each for each in known if each is not None) if None not in known else None

    async def lead(self, flight: Flight[pb.RunResponse]) -> None:
        worker, final = self.worker, self.description.final
        try:
            await worker.at("begin")
            self.began = time.time()
            flight.publish(_event(queued=media.Queued(position=0)))
            data, record = await self._have(final, flight)
            own = self.own[final.name]
            aliases = [record.alias(own)] if own != record.address else []
            if any(report.outcome == common.STAGE_OUTCOME_RUN for report in self.reports.values()):
                worker.generations += 1
            durable: asyncio.Future[bool] | None = None
            if not self.request.store_nothing:
                durable = await worker.hierarchy.commit(record, data, aliases=aliases, replace=self.request.replace)
            await worker.at("finished")
            data = worker.twist_bytes(data)
            for offset in range(0, len(data), PIECE):
                flight.publish(_event(chunk=media.Chunk(offset=offset, data=data[offset : offset + PIECE])))
            finished = pb.Finished(
                record=record.to_bytes(),
                stages=self._told_reports(),
                canonical_address=str(record.address),
            )
            flight.publish(pb.RunResponse(finished=finished))
            await worker.at("stored")
            state = media.Stored.STATE_NOT_STORED
            if durable is not None and await durable:
                state = media.Stored.STATE_DURABLE
            flight.publish(pb.RunResponse(stored=media.Stored(state=state)))
        except asyncio.CancelledError:
            worker.cancelled += 1
            raise
        finally:
            worker.ended.announce()

    async def foresee(self, within: float | None) -> pb.ForeseeResponse:
        known: dict[str, common.StageReport] = {}
        turns = self.worker.turns
        wait = turns.wait_of(self.ticket) if turns is not None else self.worker.queue_seconds
        late = within is not None and wait > within
        if not self.request.reuse_nothing:
            result = self.description.final.name
            names = {address: name for name, address in self.addresses.items() if not late or name == result}
            for address, found in (await self.worker.hierarchy.peek_many(list(names))).items():
                too_old = self.request.HasField("max_age") and found.record is not None
                if found.record is None or found.tier is None:
                    continue
                if too_old and time.time() - found.record.made_at > self.request.max_age:
                    continue
                known[names[address]] = common.StageReport(
                    stage=names[address],
                    outcome=common.STAGE_OUTCOME_REUSED,
                    tier=_TIERS[found.tier],
                    device_seconds=found.record.device_seconds,
                )
        final = self.description.final.name
        work = Work((), (self.description.final,)) if final in known else divide(self.stages, (), known)
        for stage in work.run:
            self.reports[stage.name] = common.StageReport(stage=stage.name, outcome=common.STAGE_OUTCOME_RUN)
        self.reports |= {stage.name: known[stage.name] for stage in work.reuse}
        where = {stage.name: stage.name for stage in self.whole.active(self.parameters) if not stage.each}
        for stage in self.whole.stages:
            for place, name in enumerate(self._names(stage) if stage.each else ()):
                where[part_name(stage.name, place)] = name
        self.ticket.seconds = self.seconds_of(work.run) if not late else None
        return pb.ForeseeResponse(
            stages=self._told_reports(),
            addresses={told: str(self.addresses[name]) for told, name in where.items()},
            under_way=self.worker.has(self.key),
            wait_seconds=wait,
            run_seconds=self.ticket.seconds or 0.0,
        )

    def told(self, finished: pb.Finished, *, joined: bool) -> pb.Finished:
        """The end of a run as the follower with this plan hears of it: its own spelling has an address of its own."""
        record, own = Record.from_bytes(finished.record), self.own[self.description.final.name]
        told = pb.Finished(joined=joined, alias=record.alias(own).to_bytes() if own != record.address else b"")
        told.MergeFrom(finished)
        return told

    async def _have(self, stage: Stage, flight: Flight[pb.RunResponse]) -> tuple[bytes, Record]:
        """A stage's output, from the tiers or computed after what it needs; what is said again is not made again."""
        if stage.name not in self._had:
            self._had[stage.name] = await self._fetched(stage) or await self._made(stage, flight)
        return self._had[stage.name]

    async def _fetched(self, stage: Stage) -> tuple[bytes, Record] | None:
        if self.request.reuse_nothing or not stage.cached:
            return None
        max_age = self.request.max_age if self.request.HasField("max_age") else None
        found = await self.worker.hierarchy.fetch(self.addresses[stage.name], stage.ttl, max_age=max_age)
        if found.record is None or found.data is None or found.tier is None:
            return None
        self.reports[stage.name] = common.StageReport(
            stage=stage.name,
            outcome=common.STAGE_OUTCOME_REUSED,
            tier=_TIERS[found.tier],
            device_seconds=found.record.device_seconds,
        )
        return found.data, found.record

    async def _made(self, stage: Stage, flight: Flight[pb.RunResponse]) -> tuple[bytes, Record]:
        upstream, live = [], _Live(self, flight)
        for name in stage.upstream.values():
            if name in self.addresses:
                data, _ = await self._have(self.description.stage(name), flight)
                upstream.append(data)
                if self.whole.stage(whole_name(name)).live:
                    await live.hear(data)
        await live.end()
        return await self._run(stage, upstream, flight)

    async def _run(self, stage: Stage, upstream: list[bytes], flight: Flight[pb.RunResponse]) -> tuple[bytes, Record]:
        if self.instead.keys() & set(stage.media):
            raise NEAR_GONE
        if any(not (self.request.pictures[name].rgb or self.request.sounds[name].pcm) for name in stage.media):
            raise MEDIA_NEEDED
        whole = whole_name(stage.name)
        if whole == "latents":
            await self.worker.at("sentence")
            part = self._names(self.whole.stage(whole)).index(stage.name) + 1
            parts = len(self._names(self.whole.stage(whole)))
            flight.publish(_event(progress=media.Progress(stage=whole, step=1, steps=1, part=part, parts=parts)))
        if stage.name == "denoise":
            async with self._turn(stage):
                flight.publish(pb.RunResponse(begun=pb.Begun(process=self.worker.process)))
                await flight.told(patience=20.0)
                steps = int(self.parameters["num_inference_steps"])
                for step in range(1, steps + 1):
                    await self.worker.at("step")
                    if self.worker.step_seconds:
                        await asyncio.sleep(self.worker.step_seconds)
                    flight.publish(_event(progress=media.Progress(stage=stage.name, step=step, steps=steps)))
                flight.publish(_event(preview=media.Preview(image=b"jpeg", step=steps)))
        address = self.addresses[stage.name]
        data = self._compute(stage, upstream)
        self.worker.ran[whole] += 1
        self.reports[stage.name] = common.StageReport(
            stage=stage.name, outcome=common.STAGE_OUTCOME_RUN, device_seconds=self.worker.costs[whole]
        )
        inline = data if self.worker.inlines and len(data) <= INLINE_LIMIT else None
        media_type = self._media_type() if stage is self.description.final else "application/test"
        record = Record(
            address=address,
            model=self.description.model,
            revision=self.description.revision,
            stage=whole,
            fingerprint=stage.fingerprint,
            output=Output(Digest.of(data), media_type, inline),
            device_seconds=self.worker.costs[whole],
            total_device_seconds=self._whole_cost() if stage is self.description.final else self.worker.costs[whole],
            made_at=self.began,
            touched_at=time.time(),
            ttl=stage.ttl,
            expires_at=self.began + stage.max_age,
            tags=self._tags(stage),
        )
        if stage.cached and stage is not self.description.final and not self.request.store_nothing:
            await self.worker.hierarchy.commit(record, data, replace=self.request.replace)
        return data, record

    @asynccontextmanager
    async def _turn(self, stage: Stage) -> AsyncIterator[None]:
        """The device, where there is a line for it."""
        if (turns := self.worker.turns) is None:
            yield
            return
        try:
            self.ticket.seconds = self.seconds_of([stage])
            async with turns.turn(lambda position: None, self.ticket):
                yield
        except QueueFull as full:
            raise Refusal(full.code, full.reason, retry_after=round(full.retry_after or 0.0)) from full

    def _tags(self, stage: Stage) -> tuple[str, ...]:
        before = ancestors(self.description, stage.name) & self.addresses.keys()
        media = depends_on(self.description, stage) & self.media.keys()
        return (
            tags.of_tenant(self.namespaces[Scope.TENANT]),
            tags.of_user(self.namespaces[Scope.USER]),
            *self.request.tags,
            *(tags.of_media(self.media[name]) for name in media),
            *(tags.of_ancestor(self.addresses[name].content_id) for name in before),
            *map(tags.of_stage, {whole_name(name) for name in before}),
        )

    def _compute(self, stage: Stage, upstream: list[bytes]) -> bytes:
        if stage.name in self.tokens:
            return self.tokens[stage.name]
        match whole_name(stage.name):
            case "waveform":
                return speech.waveform(upstream[0])
            case "pace":
                return speech.paced(upstream[0], float(self.parameters["speed"]), int(self.parameters["sample_rate"]))
            case "file":
                pcm, rate = b"".join(upstream), int(self.parameters["sample_rate"])
                return speech.file(pcm, rate, str(self.parameters["format"]))
        parts = [stage.kind, *(str(self.parameters[name]) for name in stage.parameters.values())]
        parts += [self.media[name] for name in stage.media]
        seed = Digest.of("\0".join([*parts, *(Digest.of(each).hex for each in upstream)]).encode()).hex.encode()
        size = int(self.parameters["size"]) if stage is self.description.final else 100
        return (seed * (size // len(seed) + 1))[:size]

    def _media_type(self) -> str:
        return f"audio/{self.parameters['format']}" if self.whole.task == "synthesize_speech" else "video/mp4"

    def _whole_cost(self) -> float:
        return sum(self.worker.costs.get(whole_name(stage.name), 0.0) for stage in self.stages)

    def _names(self, stage: Stage) -> list[str]:
        """What a stage is called in this run, at each place of its text; once, if it has none."""
        return [part_name(stage.name, number) for number in self.order[stage.each]] if stage.each else [stage.name]

    def _told_reports(self) -> list[common.StageReport]:
        return [
            speech.folded(stage.name, self._names(stage), self.reports)
            if stage.each
            else self.reports.get(stage.name) or speech.not_needed(stage.name)
            for stage in self.whole.active(self.parameters)
        ]


class _Live:
    """Tells sound in quarters of a second, wherever sentences end."""

    def __init__(self, job: _Job, flight: Flight[pb.RunResponse]) -> None:
        self._job = job
        self._flight = flight
        self._pcm = b""
        self._told = 0  # bytes

    async def hear(self, pcm: bytes) -> None:
        rate = int(self._job.parameters["sample_rate"])
        if not self._told and not self._pcm:
            self._flight.publish(_event(sound=media.SoundHeader(sample_rate=rate)))
        self._pcm += pcm
        while len(self._pcm) - self._told >= rate // 4 * 2:
            await self._tell(rate // 4 * 2)

    async def end(self) -> None:
        if self._pcm[self._told :]:
            await self._tell(len(self._pcm) - self._told)

    async def _tell(self, size: int) -> None:
        await self._job.worker.at("block")
        if self._job.worker.step_seconds:
            await asyncio.sleep(self._job.worker.step_seconds)
        block = self._job.worker.twist_samples(self._pcm[self._told : self._told + size])
        self._flight.publish(_event(samples=media.Samples(offset=self._told // 2, pcm=block)))
        self._told += size


def _event(**step: Any) -> pb.RunResponse:
    return pb.RunResponse(event=media.GenerationEvent(**step))


def _scalar(value: common.ParameterValue) -> Scalar:
    member = value.WhichOneof("value")
    assert member is not None
    scalar: Scalar = getattr(value, member)
    return scalar


async def _abort(context: Context, refusal: Refusal) -> None:
    status = rpc_status.to_status(refusal.status)
    await context.abort(status.code, status.details, status.trailing_metadata)


@asynccontextmanager
async def open_worker(
    settings: CacheSettings, *descriptions: Description, started_at: float = 1.0, port: int = 0
) -> AsyncIterator[ScriptedWorker]:
    """A worker that serves these models (by default `family()`) and keeps what it makes in these tiers."""
    built = await asyncio.to_thread(build_tiers, settings, CollectorRegistry(), process="scripted")
    async with built as tiers:
        models = {description.model: description for description in descriptions or (family(),)}
        worker = ScriptedWorker(tiers.below_memory, models, started_at)
        tiers.orders.on_order(worker.obey)
        if tiers.objects is not None:
            shared = namespace(settings.secret_bytes, Scope.SHARED, Principal(""))
            worker.catalogue = Catalogue(tiers.objects, tiers.below_memory, shared)
        await worker.start(port)
        try:
            yield worker
        finally:
            await worker.die()
