"""What it costs when something dies: real processes, killed at moments that events choose, and generations counted.

Two gateways, two workers, a Redis and an S3 server serve the file; its tests run in order in one process, each kills
something and starts it again, and each asks for something of its own.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from gateway.client import Client, Media
from gateway.stack import Stack
from gateway.stack.local import compose
from gateway.stack.ports import free_port
from reprise.v1 import common_pb2 as pb
from reprise.v1.inference_pb2 import StatusRequest, StatusResponse
from reprise.v1.inference_pb2_grpc import InferenceServiceStub
from reprise.v1.media_pb2 import AnimateImageRequest, GenerationEvent, Stored
from tests.servers import leashed

pytestmark = pytest.mark.timeout(300)

STEPS = 12
SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 8, "num_inference_steps": STEPS}
ONE, TWO = "gateway", "gateway-2"
WORKERS = ("worker-1", "worker-2")
PATIENCE = 90.0  # seconds
Moment = Callable[[GenerationEvent], bool]


def queued(event: GenerationEvent) -> bool:
    return event.HasField("queued")


def early(event: GenerationEvent) -> bool:
    return event.progress.stage == "denoise" and event.progress.step >= 1


def late(event: GenerationEvent) -> bool:
    return event.progress.stage == "denoise" and event.progress.step >= STEPS - 4


def answered(event: GenerationEvent) -> bool:
    """The result is there; that it is stored has not been said."""
    return event.HasField("result")


MOMENTS: tuple[Moment, ...] = (queued, early, late, answered)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    data = tmp_path_factory.mktemp("stack")
    with leashed(data) as stack:
        parts = compose(data, port=free_port(), gateways=2, workers=2)
        one_thread = {"REPRISE_WORKER__THREADS": "1", "OMP_NUM_THREADS": "1"}  # several workers share a small machine
        stack.up([replace(part, environment={**part.environment, **one_thread}) for part in parts])
        yield stack


@pytest.fixture(scope="module")
def photo() -> bytes:
    buffer = io.BytesIO()
    Image.effect_mandelbrot((96, 80), (-2.0, -1.2, 0.8, 1.2), 60).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


class Caller:
    """Somebody who wants a video, and what they hear until they have it, over all tries."""

    def __init__(self, stack: Stack, *gateways: str, image: bytes, **wanted: Any) -> None:
        self.events: list[GenerationEvent] = []
        self.retries = 0
        self._news = asyncio.Event()
        address = ",".join(stack.part(name).part.address for name in gateways)
        request = AnimateImageRequest(**{"image": image, "prompt": "a cat walks", **SMALL, **wanted})
        self.task = asyncio.create_task(self._animate(address, request))

    async def _animate(self, address: str, request: AnimateImageRequest) -> Media:
        async with Client(address) as client:
            return await client.animate(
                request, on_event=self._hear, on_retry=lambda problem, seconds: self._again(), deadline=PATIENCE
            )

    def _hear(self, event: GenerationEvent) -> None:
        self.events.append(event)
        self._news.set()

    def _again(self) -> None:
        self.retries += 1

    async def until(self, moment: Moment) -> None:
        async with asyncio.timeout(PATIENCE):
            while not any(map(moment, self.events)):
                self._news.clear()
                await self._news.wait()

    @property
    def steps(self) -> list[int]:
        return [event.progress.step for event in self.events if event.progress.stage == "denoise"]


async def everybody(*callers: Caller) -> list[Media]:
    """What they have in the end: whole, and the same for all."""
    media = await asyncio.gather(*(caller.task for caller in callers))
    assert 1 == len({each.data for each in media})
    assert all(each.result.artifact.size == len(each.data) for each in media)
    return list(media)


async def status(stack: Stack, worker: str) -> StatusResponse | None:
    """What a worker says of itself; None if it is not there."""
    async with grpc.aio.insecure_channel(stack.part(worker).part.address) as channel:
        try:
            told = await InferenceServiceStub(channel).Status(StatusRequest(), timeout=5.0).read()
        except grpc.aio.AioRpcError:
            return None
    return told if isinstance(told, StatusResponse) else None


class Count:
    """Generations that workers have begun since this began; those of one that died meanwhile are in `lost`."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._before: Counter[str] = Counter()

    async def begin(self) -> None:
        self._before = await self._now()

    async def __call__(self) -> Counter[str]:
        """By worker; of the one that was killed nothing is known."""
        return +(await self._now() - self._before)

    async def _now(self) -> Counter[str]:
        told = {worker: await status(self._stack, worker) for worker in WORKERS}
        return Counter({worker: each.generations for worker, each in told.items() if each is not None})


@pytest.fixture
async def count(stack: Stack) -> Count:
    count = Count(stack)
    await count.begin()
    return count


async def busy_worker(stack: Stack) -> str:
    """The one that has a run."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for worker in WORKERS:
                told = await status(stack, worker)
                if told is not None and told.busy:
                    return worker


@asynccontextmanager
async def killed(stack: Stack, name: str) -> AsyncIterator[None]:
    """As by the kernel; at the end it is there again, and known to be."""
    await asyncio.to_thread(stack.part(name).kill)
    try:
        yield
    finally:
        await asyncio.to_thread(stack.start, name)
        for gateway in (ONE, TWO):
            async with Client(stack.part(gateway).part.address) as client, asyncio.timeout(PATIENCE):
                while not all(worker.healthy for worker in (await client.stats()).workers):
                    pass


@asynccontextmanager
async def line_before(stack: Stack, photo: bytes, moment: Moment, seed: int) -> AsyncIterator[list[Caller]]:
    """For those who are to wait: somebody else's run, led by the second gateway, which keeps the home's device."""
    callers = []
    if moment is queued:
        callers.append(Caller(stack, TWO, image=photo, seed=1000 + seed, num_inference_steps=3 * STEPS))
        await callers[0].until(early)
    yield callers
    await asyncio.gather(*(caller.task for caller in callers))


async def test_identical_requests_through_both_gateways_cost_one_generation(
    stack: Stack, photo: bytes, count: Count
) -> None:
    """Thirty-two at once, cold, with Redis killed before: one generation, and the same bytes for all."""
    async with killed(stack, "redis"):
        await everybody(*(Caller(stack, gateway, image=photo, seed=1) for gateway in (ONE, TWO) * 16))
        assert 1 == (await count()).total()


async def test_followers_at_the_other_gateway_see_the_same(stack: Stack, photo: bytes, count: Count) -> None:
    """Progress and previews as the leader does; who comes late hears first what was told before."""
    wanted: dict[str, Any] = {"image": photo, "seed": 2, "num_inference_steps": 4 * STEPS}
    leader = Caller(stack, ONE, **wanted)
    await leader.until(early)
    follower = Caller(stack, TWO, **wanted)
    await leader.until(lambda event: event.progress.step >= STEPS)
    late_ones = [Caller(stack, ONE, **wanted), Caller(stack, TWO, **wanted)]
    media = await everybody(leader, follower, *late_ones)

    assert 1 == (await count()).total()
    assert pb.OUTCOME_MISS == media[0].report.outcome
    assert [pb.OUTCOME_COALESCED] * 3 == [each.report.outcome for each in media[1:]]
    for caller in (leader, follower, *late_ones):
        assert list(range(1, 4 * STEPS + 1)) == caller.steps
    assert media[0].previews
    assert all(media[0].previews == each.previews for each in media)


async def test_runs_on_one_picture_use_both_workers_and_equal_ones_meet(
    stack: Stack, photo: bytes, count: Count
) -> None:
    """Four different ones at once, each through both gateways: four generations, and not all at the picture's home."""
    seeds = range(30, 34)
    callers = {seed: [Caller(stack, gateway, image=photo, seed=seed) for gateway in (ONE, TWO)] for seed in seeds}
    for each in callers.values():
        await everybody(*each)
    counted = await count()
    assert (4, 2) == (counted.total(), len(counted))


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_killed_gateway_costs_nothing(stack: Stack, photo: bytes, count: Count, moment: Moment) -> None:
    """Its callers ask the other one, which joins the run at its worker: no second generation, no error."""
    seed = 40 + MOMENTS.index(moment)
    async with line_before(stack, photo, moment, seed) as before:
        callers = [Caller(stack, ONE, TWO, image=photo, seed=seed) for _ in range(3)]
        await callers[0].until(moment)
        async with killed(stack, ONE):
            await everybody(*callers)
    assert 1 + len(before) == (await count()).total()
    assert moment is answered or all(caller.retries for caller in callers)


@pytest.mark.parametrize("moment", MOMENTS[:3])
async def test_a_killed_worker_costs_one_more_generation(
    stack: Stack, photo: bytes, count: Count, moment: Moment
) -> None:
    """Its run begins anew at the other worker, once for callers of both gateways, and nobody asks again."""
    seed = 50 + MOMENTS.index(moment)
    async with line_before(stack, photo, moment, seed) as before:
        callers = [Caller(stack, gateway, image=photo, seed=seed) for gateway in (ONE, TWO)]
        await asyncio.gather(*(caller.until(lambda event: queued(event) or early(event)) for caller in callers))
        victim = await busy_worker(stack)
        await asyncio.gather(*(caller.until(moment) for caller in callers))
        async with killed(stack, victim):
            await everybody(*callers)
            await asyncio.gather(*(caller.task for caller in before))
            assert 1 + len(before) == (await count()).total()
    assert [0, 0] == [caller.retries for caller in callers]


async def test_a_worker_killed_after_its_result_costs_nothing(stack: Stack, photo: bytes, count: Count) -> None:
    """The gateway has the artifact: it stores it itself, and whoever asks next has a hit."""
    caller = Caller(stack, ONE, image=photo, seed=60)
    await caller.until(early)
    victim = await busy_worker(stack)
    await caller.until(answered)
    async with killed(stack, victim):
        (media,) = await everybody(caller)
        async with Client(stack.part(ONE).part.address) as client:
            assert Stored.STATE_DURABLE == await client.until_stored(media)
        again = await Caller(stack, TWO, image=photo, seed=60).task
        assert (pb.OUTCOME_HIT, media.data) == (again.report.outcome, again.data)
        assert 0 == (await count()).total()


async def test_a_killed_caller_is_missed_by_nobody(stack: Stack, photo: bytes, count: Count, tmp_path: Path) -> None:
    """The one who began it dies in the middle: those who follow it see no change, here and at the other gateway."""
    file = tmp_path / "cat.png"
    file.write_bytes(photo)
    options = ["--width", "64", "--height", "64", "--frames", "8", "--steps", str(2 * STEPS), "--seed", "70"]
    words = ["animate", str(file), "-p", "a cat walks", "-o", str(tmp_path / "out"), *options]
    dying = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", *words, "--address", stack.part(ONE).part.address),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert dying.stdout is not None
        async with asyncio.timeout(PATIENCE):
            async for line in dying.stdout:
                if b"denoise" in line:
                    break
            else:
                raise AssertionError("it ended before its first step")
        wanted: dict[str, Any] = {"image": photo, "seed": 70, "num_inference_steps": 2 * STEPS}
        others = [Caller(stack, gateway, **wanted) for gateway in (ONE, TWO)]
        await asyncio.gather(*(other.until(early) for other in others))
    finally:
        dying.kill()
        await dying.wait()
    await everybody(*others)

    assert 1 == (await count()).total()
    assert [0, 0] == [other.retries for other in others]
    assert all(list(range(1, 2 * STEPS + 1)) == other.steps for other in others)
