"""A worker's engine for tests: everything real, and a model whose timing the test decides.

The model computes with torch like any other, in five stages of the usual shape. Its stages wait at gates that a test
may close, and its texts mean the same in any case and spacing, so that two spellings can meet.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from cache.accesses import AccessLog
from cache.build import Tiers, build_tiers
from cache.description import HOUR, Description, Parameter, Scalar, Scope, Stage
from cache.digest import Digest
from cache.keys import Address, Principal, addresses, content_ids, namespaces
from cache.picture import picture_identity
from cache.purge import records
from cache.record import Record
from cache.settings import CacheSettings, L1Settings, L2Settings, L3Settings, TelemetrySettings
from cache.telemetry import Tracing
from inference.device import Device, DeviceThread, HostDevice
from inference.engine import Engine
from inference.errors import Refused
from inference.metrics import WorkerMetrics
from inference.models.base import Artifact, Call, Model, Output
from inference.pool import Pool
from inference.workshop import Workshop
from reprise.v1 import common_pb2 as pb
from reprise.v1.inference_pb2 import Finished, RunRequest, RunResponse
from reprise.v1.inference_pb2 import Picture as PictureMessage
from reprise.v1.media_pb2 import GenerationEvent, Stored

SECRET = bytes(range(32))
ALICE = Principal("acme", "alice", "s1")
STEPS = 4
MORE_THAN_THERE_IS = 2**50  # bytes; no machine's allocator grants them
PATIENCE = 20.0  # seconds that a test waits for something that should come at once


class Gate:
    """A point that a stage passes. Open until a test closes it."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._reached = threading.Semaphore(0)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        if not self._open.is_set():
            self._reached.release()
            assert self._open.wait(PATIENCE), "a gate was never opened"

    async def reached(self) -> None:
        """Once for every time that a stage came to stand before the closed gate."""
        assert await asyncio.to_thread(self._reached.acquire, timeout=PATIENCE), "no stage came to the gate"


class GatedModel:
    """text -> ids -> states; picture -> moments; both -> latents in steps -> a file."""

    def __init__(self, name: str = "gated") -> None:
        self.description = describe(name)
        self.device = torch.device("cpu")
        self.runs: Counter[str] = Counter()
        self.gates = {stage.name: Gate() for stage in self.description.stages}  # passed before the stage's work
        self.step_gate = Gate()  # passed before each step of denoise is told
        self.trouble: dict[str, list[Callable[[], object]]] = {}  # for the next runs of a stage, by stage
        self.previews = 0
        self.modules = [torch.nn.Linear(3, 2)]  # 8 numbers, of no use but to weigh something

    def open_gates(self) -> None:
        for gate in (*self.gates.values(), self.step_gate):
            gate.open()

    def run(self, stage: str, call: Call) -> Output:
        self.runs[stage] += 1
        self.gates[stage].pass_through()
        if self.trouble.get(stage):
            self.trouble[stage].pop(0)()
        return {
            "tokens": self._tokens,
            "text": self._text,
            "moments": self._moments,
            "denoise": self._denoise,
            "video": self._video,
        }[stage](call)

    def _tokens(self, call: Call) -> Output:
        words = str(call.parameters["text"]).lower().split()
        return {"ids": torch.tensor([[sum(word.encode()) for word in words]])}

    def _text(self, call: Call) -> Output:
        ids = call.upstream["tokens"]["ids"].float()  # [1, words]
        return {"embeds": torch.stack([ids.sin(), ids.cos()], dim=-1)}

    def _moments(self, call: Call) -> Output:
        pixels = torch.frombuffer(bytearray(call.media["image"].tobytes()), dtype=torch.uint8).float()
        return {"parameters": torch.stack([pixels.mean(), pixels.std()]).reshape(1, 2)}

    def _denoise(self, call: Call) -> Output:
        generator = torch.Generator().manual_seed(int(call.parameters["seed"]))
        latents = torch.randn(1, 3, 8, 8, generator=generator)
        towards = call.upstream["text"]["embeds"].mean() + call.upstream["moments"]["parameters"].mean()
        for done in range(1, STEPS + 1):
            latents = latents + (towards - latents) / STEPS
            self.step_gate.pass_through()
            call.step(done, STEPS)
            if call.preview is not None:
                self.previews += 1
                call.preview(Image.new("RGB", (8, 8), (done, 0, 0)))
        return {"latents": latents}

    def _video(self, call: Call) -> Output:
        latents = call.upstream["latents"]["latents"]
        once = int(call.parameters["fps"]).to_bytes(4, "big") + latents.numpy().tobytes()
        size = int(call.parameters["size"])
        return Artifact((once * (size // len(once) + 1))[:size], "video/test")


def describe(name: str) -> Description:
    def stage(kind: str, scope: Scope = Scope.TENANT, **declared: object) -> Stage:
        return Stage.model_validate(
            {"name": kind, "kind": kind, "fingerprint": f"{kind}/1", "scope": scope, "ttl": HOUR, **declared}
        )

    return Description(
        model=name,
        revision="1",
        family="gated",
        task="animate_image",
        random_weights=True,
        parameters=(
            Parameter(name="prompt", kind="text"),
            Parameter(name="seed", kind="int", default=42),
            Parameter(name="strength", kind="float", default=1.0),
            Parameter(name="fps", kind="int", default=8),
            Parameter(name="size", kind="int", default=1000),
        ),
        stages=(
            stage("tokens", Scope.USER, parameters={"text": "prompt"}, canonicalises=True, cached=False),
            stage("text", Scope.USER, upstream={"tokens": "tokens"}, pooled=True),
            stage("moments", Scope.SHARED, media=("image",), pooled=True),
            stage(
                "denoise",
                parameters={"seed": "seed", "strength": "strength"},
                upstream={"text": "text", "moments": "moments"},
            ),
            stage("video", parameters={"fps": "fps", "size": "size"}, upstream={"latents": "denoise"}),
        ),
        affinity="moments",
    )


@dataclass(frozen=True)
class Pixels:
    """A picture of one colour."""

    colour: int = 7
    width: int = 8
    height: int = 4

    def message(self, *, with_pixels: bool = True) -> PictureMessage:
        rgb = bytes([self.colour, 0, 255 - self.colour]) * (self.width * self.height)
        identity = picture_identity(self.width, self.height, rgb)
        return PictureMessage(identity=identity, width=self.width, height=self.height, rgb=rgb if with_pixels else b"")


def ask(
    description: Description,
    *,
    picture: Pixels = Pixels(),  # immutable
    with_pixels: bool = True,
    near: Pixels | None = None,
    principal: Principal = ALICE,
    follower: str = "",
    reuse_nothing: bool = False,
    store_nothing: bool = False,
    replace: bool = False,
    max_age: float | None = None,
    idle: Sequence[str] = (),
    must_run: bool = False,
    idle_priority: bool = False,
    **parameters: Scalar,
) -> RunRequest:
    """A request as a gateway would make it; `near` is the picture whose encodings stand in."""
    complete = {each.name: parameters.get(each.name, each.default) for each in description.parameters}
    complete["prompt"] = parameters.get("prompt", "a cat")
    known = {name: value for name, value in complete.items() if value is not None}
    image = picture.message(with_pixels=with_pixels)
    spaces = namespaces(SECRET, principal)
    instead = {"image": near.message().identity} if near is not None else {}
    image.near_identity = instead.get("image", "")
    ids = content_ids(description, known, {"image": image.identity}, instead=instead)
    return RunRequest(
        model=description.model,
        revision=description.revision,
        parameters={name: value_message(value) for name, value in known.items()},
        pictures={"image": image},
        namespaces={scope.value: space for scope, space in spaces.items()},
        addresses={name: str(address) for name, address in addresses(description, ids, spaces, instead).items()},
        follower=follower,
        reuse_nothing=reuse_nothing,
        store_nothing=store_nothing,
        replace=replace,
        max_age=max_age,
        idle=idle,
        must_run=must_run,
        idle_priority=idle_priority,
    )


def value_message(value: Scalar) -> pb.ParameterValue:
    match value:
        case str():
            return pb.ParameterValue(text_value=value)
        case float():
            return pb.ParameterValue(float_value=value)
        case _:
            return pb.ParameterValue(int_value=value)


@dataclass
class Heard:
    """What one follower was told."""

    responses: list[RunResponse] = field(default_factory=list)

    @property
    def events(self) -> list[GenerationEvent]:
        return [response.event for response in self.responses if response.HasField("event")]

    @property
    def data(self) -> bytes:
        return b"".join(event.chunk.data for event in self.events if event.HasField("chunk"))

    @property
    def positions(self) -> list[int]:
        return [event.queued.position for event in self.events if event.HasField("queued")]

    @property
    def steps(self) -> list[tuple[str, int]]:
        return [(e.progress.stage, e.progress.step) for e in self.events if e.HasField("progress")]

    @property
    def elsewhere(self) -> list[str]:
        """The workers it was sent to."""
        return [response.elsewhere.worker for response in self.responses if response.HasField("elsewhere")]

    @property
    def finished(self) -> Finished:
        (finished,) = (response.finished for response in self.responses if response.HasField("finished"))
        return finished

    @property
    def record(self) -> Record:
        return Record.from_bytes(self.finished.record)

    @property
    def alias(self) -> Record:
        return Record.from_bytes(self.finished.alias)

    @property
    def stages(self) -> dict[str, tuple[str, str]]:
        """Outcome and tier of each stage."""
        return {
            report.stage: (
                pb.StageOutcome.Name(report.outcome).removeprefix("STAGE_OUTCOME_"),
                pb.Tier.Name(report.tier).removeprefix("TIER_"),
            )
            for report in self.finished.stages
        }

    @property
    def stored(self) -> str:
        return Stored.State.Name(self.responses[-1].stored.state).removeprefix("STATE_")


class Bench:
    """An engine with its model and tiers, and the verbs a gateway has."""

    def __init__(
        self,
        engine: Engine,
        tiers: Tiers,
        folder: Path,
        spans: InMemorySpanExporter,
        registry: CollectorRegistry,
    ) -> None:
        self.engine = engine
        self.tiers = tiers
        self.folder = folder
        self._spans = spans
        self._registry = registry
        self._heard: dict[asyncio.Task[Heard], Heard] = {}

    @property
    def model(self) -> GatedModel:
        (model,) = self.engine.models.values()
        assert isinstance(model, GatedModel)
        return model

    @property
    def shop(self) -> Workshop:
        return self.engine.shop

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._spans.get_finished_spans())

    def ask(self, **wanted: object) -> RunRequest:
        request: RunRequest = ask(self.model.description, **wanted)  # type: ignore[arg-type]  # checked by the callee
        return request

    def told(self, metric: str) -> float | None:
        """What the metrics page says of `reprise_` and this."""
        return self._registry.get_sample_value(f"reprise_{metric}")

    async def run(self, **wanted: object) -> Heard:
        """One follower from the beginning to the end."""
        heard = Heard()
        await self._follow(self.ask(**wanted), heard)
        return heard

    def begin(self, **wanted: object) -> Following:
        """A follower in a task of its own, without pixels unless they are asked for."""
        return self.begin_request(self.ask(**wanted))

    def begin_request(self, request: RunRequest) -> Following:
        heard = Heard()
        return Following(asyncio.create_task(self._follow(request, heard)), heard)

    async def idle(self) -> None:
        """Wait until no run is under way."""
        await until(lambda: not self.engine.under_way and not self.shop.turns.busy)

    def stored(self, kind: str) -> set[str]:
        """Names of the entries of a kind ("r" or "b") in the durable tier."""
        return {path.name for path in (self.folder / kind).rglob("*") if path.is_file()}

    def forget_memory(self) -> None:
        """As after a restart: nothing is left in the pool and in L1."""
        self.shop.pool.clear()
        self.tiers.memory.entries.clear()

    def lose_blob(self, digest: Digest) -> None:
        (path,) = (self.folder / "b").rglob(digest.hex)
        path.unlink()

    async def record_at(self, address: str) -> Record | None:
        found = await self.tiers.below_memory.fetch(Address.parse(address), HOUR)
        return found.record

    async def records(self, namespace: str) -> list[Record]:
        """All that the durable tier has of a namespace."""
        return [record async for record in records(self.tiers, namespace)]

    async def _follow(self, request: RunRequest, heard: Heard) -> None:
        plan = await self.engine.plan(request)
        async with aclosing(self.engine.run(plan)) as responses:
            async for response in responses:
                heard.responses.append(response)
        await self.tiers.writer.drain(PATIENCE)  # a result is durable before all outputs on the way to it are


@dataclass(eq=False)
class Following:
    """A follower under way."""

    task: asyncio.Task[None]
    heard: Heard

    async def end(self) -> Heard:
        async with asyncio.timeout(PATIENCE):
            await self.task
        return self.heard

    async def refusal(self) -> Refused:
        try:
            await self.end()
        except Refused as refused:
            return refused
        raise AssertionError("not refused")

    async def leave(self) -> None:
        """As a client that hangs up."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def hears(self, seen: Callable[[Heard], bool]) -> None:
        """Wait until this follower has heard something."""
        await until(lambda: seen(self.heard) or self.task.done())
        assert seen(self.heard), self.heard


async def until(seen: Callable[[], bool]) -> None:
    """Let everything else go on until something holds."""
    async with asyncio.timeout(PATIENCE):
        while not seen():  # noqa: ASYNC110  # what is waited for announces nothing
            await asyncio.sleep(0)


async def refusal_of(run: Awaitable[object]) -> Refused:
    try:
        await run
    except Refused as refused:
        return refused
    raise AssertionError("not refused")


def cache_settings(folder: Path, *, redis: str = "", memory: int = 64 * 1024 * 1024) -> CacheSettings:
    return CacheSettings(
        secret=SecretStr(SECRET.hex()),
        l1=L1Settings(max_bytes=memory),
        l2=L2Settings(enabled=bool(redis), url=SecretStr(redis or "redis://unused")),
        l3=L3Settings(url=f"file://{folder}"),
    )


@asynccontextmanager
async def open_bench(
    folder: Path,
    *,
    model: Model | None = None,
    redis: str = "",
    memory: int = 64 * 1024 * 1024,
    device: Device | None = None,
    pool_bytes: int = 1024 * 1024,
    pool_entries: int | None = None,
    host_bytes: int = 0,
    queue: int = 64,
    grace: float = 60.0,
    spill_after: int | None = 1,
    accesses: AccessLog | None = None,
) -> AsyncIterator[Bench]:
    """An engine over a folder as L3, with Redis as L2 if an address is given. Gates are opened at the end."""
    registry = CollectorRegistry()
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    used = model or GatedModel()
    where = device or HostDevice()
    async with await asyncio.to_thread(
        build_tiers, cache_settings(folder, redis=redis, memory=memory), registry
    ) as tiers:
        with _thread(where, "device") as computing, _thread(where, "beside", beside=True) as beside:
            shop = Workshop(
                computing,
                beside,
                Pool(max_bytes=pool_bytes, max_entries=pool_entries),
                tiers.through_memory,
                WorkerMetrics(registry),
                Tracing(TelemetrySettings(), provider.get_tracer("test")),
                host=Pool(max_bytes=host_bytes),
                queue=queue,
                execution={"device": "cpu"},
                bans=tiers.bans,
                accesses=accesses,
            )
            await shop.measure_memory()
            await shop.size_pool()
            engine = Engine({used.description.model: used}, shop, grace=grace, spill_after=spill_after)
            tiers.orders.on_order(engine.obey)
            try:
                yield Bench(engine, tiers, folder, spans, registry)
            finally:
                if isinstance(used, GatedModel):
                    used.open_gates()
                await engine.drain(PATIENCE)
                engine.close()


@contextmanager
def _thread(where: Device, name: str, *, beside: bool = False) -> Iterator[DeviceThread]:
    thread = DeviceThread(where, name, beside=beside)
    try:
        yield thread
    finally:
        thread.close()


def run_out_of_memory() -> None:
    torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
