"""A small deployment in one process: real tiers, scripted workers, real gateways, real clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image
from prometheus_client import CollectorRegistry

from cache.build import Tiers, build_tiers
from cache.description import Description
from cache.settings import CacheSettings, TelemetrySettings
from cache.telemetry import Telemetry
from gateway.client import Client, Media
from gateway.serve import Gateway, open_gateway
from gateway.settings import GatewaySection, GatewaySettings
from gateway.stack import Bucket
from gateway.status import Problem, explain_error
from gateway.tasks import Request
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import (
    AnimateImageRequest,
    GenerationEvent,
    Pronunciation,
    Stored,
    SynthesizeSpeechRequest,
)
from tests.gateway.speech import VOICE
from tests.gateway.worker import ScriptedWorker, open_worker
from tests.servers import S3

SECRET = "5e" * 32
MIB = 1024 * 1024
_PATIENCE = 20.0  # seconds until something that should have happened elsewhere has not
_T = TypeVar("_T")


def picture(shade: int = 0, size: tuple[int, int] = (16, 16)) -> bytes:
    """A PNG file; each shade is another picture."""
    buffer = BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = picture()


def ask(prompt: str = "a cat", **fields: Any) -> AnimateImageRequest:
    """A request; `policy` and `extra` are given as plain values."""
    extra = {name: pb.ParameterValue(int_value=value) for name, value in fields.pop("extra", {}).items()}
    policy = pb.CachePolicy(**fields.pop("policy", {}))
    source = {} if "image_digest" in fields else {"image": fields.pop("image", PICTURE)}
    return AnimateImageRequest(prompt=prompt, extra=extra, cache_policy=policy, **source, **fields)


def say(text: str = "A cat. A dog.", **fields: Any) -> SynthesizeSpeechRequest:
    """A request for speech, likewise; `pronounced` maps words to marks."""
    extra = {name: pb.ParameterValue(float_value=value) for name, value in fields.pop("extra", {}).items()}
    policy = pb.CachePolicy(**fields.pop("policy", {}))
    marks = [Pronunciation(word=word, spoken=spoken) for word, spoken in fields.pop("pronounced", {}).items()]
    source = {} if "voice_digest" in fields else {"voice": fields.pop("voice", VOICE)}
    return SynthesizeSpeechRequest(
        text=text, extra=extra, cache_policy=policy, pronunciations=marks, **source, **fields
    )


async def eventually(look: Callable[[], Awaitable[_T]], *, wanted: Callable[[_T], bool] = bool) -> _T:
    """What `look` sees once it is as wanted. For what happens on the other side of a socket."""
    async with asyncio.timeout(_PATIENCE):
        while not wanted(seen := await look()):  # noqa: ASYNC110  # nothing on this side knows when
            await asyncio.sleep(0.005)
    return seen


async def problem_of(call: Awaitable[object]) -> Problem:
    """What a client learns from a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return explain_error(caught.value)


def outcome(media: Media) -> str:
    """How a request was answered, and by which tier if one did: "miss", "hit from L2"."""
    report = media.report
    name = pb.Outcome.Name(report.outcome).removeprefix("OUTCOME_").lower()
    return f"{name} from {pb.Tier.Name(report.tier).removeprefix('TIER_')}" if report.tier else name


def stages(reports: Any) -> dict[str, str]:
    """What became of each stage."""
    return {each.stage: pb.StageOutcome.Name(each.outcome).removeprefix("STAGE_OUTCOME_").lower() for each in reports}


def parts(report: pb.CacheReport) -> dict[str, list[str]]:
    """What became of each sentence at each stage that runs for them one by one."""
    return {
        stage.stage: [pb.StageOutcome.Name(part.outcome).removeprefix("STAGE_OUTCOME_").lower() for part in stage.parts]
        for stage in report.stages
        if stage.parts
    }


class Heard(NamedTuple):
    """Live sound, as one stream of events has told it."""

    rates: list[int]
    blocks: list[tuple[int, bytes]]  # samples before each, and its own

    @property
    def pcm(self) -> bytes:
        return b"".join(pcm for _, pcm in self.blocks)


def heard(events: list[GenerationEvent]) -> Heard:
    return Heard(
        [event.sound.sample_rate for event in events if event.HasField("sound")],
        [(event.samples.offset, event.samples.pcm) for event in events if event.HasField("samples")],
    )


def kinds(events: list[GenerationEvent]) -> list[str]:
    """What each event says, its several fields joined."""
    return ["+".join(name.name for name, _ in event.ListFields() if name.name != "sequence") for event in events]


class Follower:
    """A client's request that is under way, and the events it has seen."""

    def __init__(self, client: Client, request: Request, deadline: float | None = None) -> None:
        self.events: list[GenerationEvent] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(client.make(request, on_event=self._see, deadline=deadline))

    def _see(self, event: GenerationEvent) -> None:
        self.events.append(event)
        self._news.set()

    async def seen(self, kind: str) -> GenerationEvent:
        """The first event of this kind, as soon as it is there."""
        async with asyncio.timeout(_PATIENCE):
            while True:
                for event in self.events:
                    if event.HasField(kind):
                        return event
                self._news.clear()
                await self._news.wait()

    async def name(self) -> str:
        return (await self.seen("accepted")).accepted.name

    async def media(self) -> Media:
        async with asyncio.timeout(_PATIENCE):
            return await self.task

    async def leave(self) -> None:
        """Drop the stream without a word."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@dataclass
class Desk:
    """One gateway, and a client of it that asks once: what it is refused is what tests are about."""

    gateway: Gateway
    client: Client
    registry: CollectorRegistry
    _spans: InMemorySpanExporter
    _stack: AsyncExitStack

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.gateway.port}"

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._spans.get_finished_spans())

    async def animate(self, prompt: str = "a cat", **fields: Any) -> Media:
        async with asyncio.timeout(_PATIENCE):
            return await self.client.animate(ask(prompt, **fields))

    def follow(self, prompt: str = "a cat", *, client: Client | None = None, **fields: Any) -> Follower:
        return Follower(client or self.client, ask(prompt, **fields))

    async def speak(self, text: str = "A cat. A dog.", **fields: Any) -> Media:
        async with asyncio.timeout(_PATIENCE):
            return await self.client.speak(say(text, **fields))

    def listen(self, text: str = "A cat. A dog.", *, client: Client | None = None, **fields: Any) -> Follower:
        """Somebody who hears speech as it is made, unless `live` says otherwise."""
        return Follower(client or self.client, say(text, **{"live": True} | fields))

    async def stored(self, media: Media) -> str:
        async with asyncio.timeout(_PATIENCE):
            return Stored.State.Name(await self.client.until_stored(media)).removeprefix("STATE_").lower()

    async def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def sees(self, workers: int) -> None:
        """Wait until so many workers are healthy for this gateway."""
        await eventually(lambda: self.metric("reprise_workers", state="healthy"), wanted=lambda count: count == workers)

    async def connect(self, *, api_key: str = "", session: str = "") -> Client:
        """One more client."""
        return await self._stack.enter_async_context(Client(self.address, api_key=api_key, session=session, tries=1))

    async def close(self) -> None:
        await self._stack.aclose()


@dataclass
class World:
    """Everything that is up, and goes down with the test."""

    cache: CacheSettings
    _stack: AsyncExitStack
    desks: list[Desk] = field(default_factory=list)

    async def worker(self, *descriptions: Description, started_at: float = 1.0) -> ScriptedWorker:
        return await self._stack.enter_async_context(open_worker(self.cache, *descriptions, started_at=started_at))

    async def desk(
        self,
        *workers: ScriptedWorker | str,
        sample: float = 1.0,
        cache: CacheSettings | None = None,
        api_key: str = "",
        accesses: str = "",
        **section: Any,
    ) -> Desk:
        """A gateway with these workers, seen healthy unless they are mere addresses."""
        addresses = [worker if isinstance(worker, str) else worker.address for worker in workers]
        options: dict[str, Any] = {"port": 0, "grace": 0.0, "drain": 0.0, "workers": addresses} | section
        telemetry_settings = TelemetrySettings(sample_ratio=sample, accesses_folder=accesses)
        settings = GatewaySettings(
            cache=cache or self.cache, gateway=GatewaySection(**options), telemetry=telemetry_settings
        )
        stack = AsyncExitStack()
        await self._stack.enter_async_context(stack)
        spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        stack.callback(provider.shutdown)
        registry = CollectorRegistry()
        telemetry = Telemetry(telemetry_settings, provider, registry)
        gateway = await stack.enter_async_context(open_gateway(settings, telemetry))
        client = await stack.enter_async_context(Client(f"127.0.0.1:{gateway.port}", api_key=api_key, tries=1))
        desk = Desk(gateway, client, registry, spans, stack)
        await desk.sees(sum(isinstance(worker, ScriptedWorker) for worker in workers))
        self.desks.append(desk)
        return desk

    async def tiers(self, settings: CacheSettings) -> Tiers:
        """Tiers of their own for something that is no gateway."""
        built = await asyncio.to_thread(build_tiers, settings, CollectorRegistry())
        return await self._stack.enter_async_context(built)

    def only(self, *tiers: str, **changes: Any) -> CacheSettings:
        """The same tiers without those that are not named."""
        return self.cache.model_copy(
            update={
                name: getattr(self.cache, name).model_copy(update={"enabled": name in tiers, **changes.get(name, {})})
                for name in ("l1", "l2", "l3")
            }
        )


@asynccontextmanager
async def open_world(redis_url: str, objects: Path | Bucket, *, strict: bool = False) -> AsyncIterator[World]:
    """A deployment on this Redis and this object store, with no gateway and no worker yet.

    Its tiers get more time than a real one's, because a busy machine is not what most tests are about.
    """
    l3: dict[str, Any] = {"url": f"file://{objects}"}
    if isinstance(objects, Bucket):
        prefix = objects.prefix if isinstance(objects, S3) else ""
        l3 = {
            "url": f"s3://{objects.bucket}/{prefix}".rstrip("/"),
            "endpoint": objects.endpoint,
            "region": objects.region,
            "access_key": objects.access_key,
            "secret_key": objects.secret_key,
        }
    l2: dict[str, Any] = {"url": redis_url}
    if not strict:
        l2["budget"], l3["stall"] = 2.0, 5.0
    write_behind = {"drain": 0.0} if strict else {}
    settings = {"secret": SECRET, "l2": l2, "l3": l3, "write_behind": write_behind}
    async with AsyncExitStack() as stack:
        yield World(CacheSettings.model_validate(settings), stack)
