"""The whole stack as a user starts it: real Redis, real S3 server, two workers with the small real model, a gateway.

One stack serves the file; its tests run in order in one process and each asks for something of its own.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from gateway.client import Client, Media
from gateway.stack import AlreadyRunning, Stack
from gateway.stack.local import compose
from gateway.stack.ports import free_port
from gateway.stack.redis import flush
from gateway.status import explain_error
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import DELIVERY_URL, AnimateImageRequest, GenerationEvent, Stored
from tests.servers import leashed

pytestmark = pytest.mark.timeout(300)

SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 4, "num_inference_steps": 3}
IMAGE_STAGES = {"vision", "moments"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    data = tmp_path_factory.mktemp("stack")
    with leashed(data) as stack:
        stack.up(compose(data, port=free_port(), workers=2))
        yield stack


@pytest.fixture
def address(stack: Stack) -> str:
    return stack.part("gateway").part.address


@pytest.fixture
async def client(address: str) -> AsyncIterator[Client]:
    async with Client(address) as client:
        yield client


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.effect_mandelbrot((96, 80), (-2.0, -1.2, 0.8, 1.2), 60).convert("RGB").save(path)
    return path


def request(photo: Path, **changes: Any) -> AnimateImageRequest:
    return AnimateImageRequest(**{"image": photo.read_bytes(), "prompt": "a cat walks", **SMALL, **changes})


def stages(media: Media, outcome: pb.StageOutcome) -> set[str]:
    return {stage.stage for stage in media.report.stages if stage.outcome == outcome}


def ran(media: Media) -> set[str]:
    return stages(media, pb.STAGE_OUTCOME_RUN)


async def durable(client: Client, media: Media) -> Media:
    assert Stored.STATE_DURABLE == await client.until_stored(media)
    return media


async def test_the_same_request_is_answered_from_l1_then_l2_then_l3(stack: Stack, address: str, photo: Path) -> None:
    """An identical request runs no stage, whichever tier is the fastest that still holds its answer."""
    answers = []
    async with Client(address) as client:
        cold = await durable(client, await client.animate(request(photo)))
        answers.append(await client.animate(request(photo)))
    await asyncio.to_thread(stack.restart, "gateway")
    async with Client(address) as client:
        answers.append(await client.animate(request(photo)))
    await asyncio.to_thread(stack.stop, "gateway")
    flush(stack.part("redis").part.port, stack.part("redis").part.folder)
    await asyncio.to_thread(stack.start, "gateway")
    async with Client(address) as client:
        answers.append(await client.animate(request(photo)))

    assert pb.OUTCOME_MISS == cold.report.outcome
    assert [pb.TIER_L1, pb.TIER_L2, pb.TIER_L3] == [answer.report.tier for answer in answers]
    assert [set()] * 3 == [ran(answer) for answer in answers]
    assert [cold.data] * 3 == [answer.data for answer in answers]


async def test_only_what_a_change_touches_is_run_again(client: Client, photo: Path) -> None:
    """Another prompt runs no image stage, another format does not denoise, another width encodes the picture anew."""
    await client.animate(request(photo, seed=5))
    prompt = await client.animate(request(photo, seed=5, prompt="snow falls"))
    format_ = await client.animate(request(photo, seed=5, format="webm"))
    width = await client.animate(request(photo, seed=5, width=96))

    assert not ran(prompt) & IMAGE_STAGES
    assert {"text", "denoise", "video"} <= ran(prompt)
    assert {"video"} == ran(format_) - {"tokens", "negative_tokens"}
    assert "video/webm" == format_.result.media_type
    assert ran(width) >= IMAGE_STAGES | {"denoise", "video"}


async def test_a_video_is_had_by_url(client: Client, photo: Path) -> None:
    """However small it is, made just now or found, with the bytes that come inline."""
    made = await client.animate(request(photo, seed=8, delivery=DELIVERY_URL))
    found = await client.animate(request(photo, seed=8, delivery=DELIVERY_URL))
    inline = await client.animate(request(photo, seed=8))

    assert [pb.OUTCOME_MISS, pb.OUTCOME_HIT] == [made.report.outcome, found.report.outcome]
    assert (True, b"", b"") == (bool(made.url and found.url), made.data, found.data)
    assert inline.data == await client.fetch(made) == await client.fetch(found)
    assert inline.data == await client.download(made.result.artifact)


async def test_two_spellings_with_one_meaning_are_one_result(client: Client, photo: Path) -> None:
    """A prompt that differs in letters the model does not tell apart costs no second generation."""
    first = await durable(client, await client.animate(request(photo, seed=6, prompt="a dog runs")))
    second = await client.animate(request(photo, seed=6, prompt="A  Dog RUNS"))

    assert pb.OUTCOME_HIT == second.report.outcome
    assert first.data == second.data


async def test_what_is_explained_is_what_happens(client: Client, photo: Path) -> None:
    """Change by change: the stages, reasons and differing fields told beforehand are those of the report; for all the
    asking nothing is generated. After a few runs the cost of the next one is known within a factor.
    """
    base = {"seed": 31, "prompt": "a bird sings"}
    await durable(client, await client.animate(request(photo, **base)))
    changes: list[dict[str, Any]] = [
        {},
        {"prompt": "A  Bird SINGS"},
        {"prompt": "a bird sleeps"},
        {"seed": 32},
        {"num_frames": 3},
        {"guidance_scale": 7.0},
        {"playback_fps": 12},
        {"format": "webm"},
        {"width": 96},
        {"prompt": "a bird flies", "num_inference_steps": 4},
    ]
    for change in changes:
        asked = request(photo, **{**base, **change})
        generations = (await client.stats()).generations
        explained = await client.explain(asked)
        assert generations == (await client.stats()).generations
        media = await durable(client, await client.animate(asked))

        def told(report: pb.CacheReport) -> list[tuple[str, int, int]]:
            return [(stage.stage, stage.outcome, stage.reason) for stage in report.stages]

        assert told(explained.report) == told(media.report), change
        assert explained.report.outcome == media.report.outcome, change
        if media.report.reason:
            assert explained.report.nearest == media.report.nearest
            assert sorted(change) == list(media.report.nearest.differing)
        if "denoise" in ran(media):
            (estimate,) = (stage for stage in explained.report.stages if stage.stage == "denoise")
            assert estimate.estimated
            assert estimate.device_seconds > 0


async def test_sixteen_at_once_cost_one_generation(client: Client, photo: Path) -> None:
    """Identical requests that arrive together share one generation, and all get the same video."""
    before = (await client.stats()).generations
    everybody = await asyncio.gather(*(client.animate(request(photo, seed=7)) for _ in range(16)))

    assert 1 == (await client.stats()).generations - before
    assert 1 == len({media.data for media in everybody})
    assert 15 == sum(media.report.outcome == pb.OUTCOME_COALESCED for media in everybody)


async def test_progress_arrives_in_order_and_without_gaps(client: Client, photo: Path) -> None:
    """The first event names the generation, steps of a stage count up, the result is the last."""
    events: list[GenerationEvent] = []
    await client.animate(request(photo, seed=18), on_event=events.append)

    assert events[0].accepted.name
    assert list(range(1, len(events) + 1)) == [event.sequence for event in events]
    steps = [event.progress.step for event in events if event.progress.stage == "denoise"]
    assert [1, 2, 3] == steps
    assert events[-1].HasField("result")


async def test_a_dead_worker_costs_no_request(stack: Stack, client: Client, photo: Path) -> None:
    """A worker that is killed while it generates is replaced by the other one, and the caller sees no error."""
    started = asyncio.Event()

    def notice(event: GenerationEvent) -> None:
        if event.HasField("progress"):
            started.set()

    slow = request(photo, seed=9, num_frames=8, width=128, height=128, num_inference_steps=20)
    generation = asyncio.create_task(client.animate(slow, on_event=notice))
    await started.wait()
    busy: list[str] = []
    while not busy:  # the gateway hears of it a moment later
        busy = [worker.address for worker in (await client.stats()).workers if worker.busy]
    victim = next(part.part.name for part in stack.running() if part.part.address == busy[0])
    await asyncio.to_thread(stack.part(victim).kill)
    media = await generation
    await asyncio.to_thread(stack.start, victim)

    assert pb.OUTCOME_MISS == media.report.outcome
    assert "denoise" in ran(media)


async def test_hits_are_served_with_every_worker_gone(stack: Stack, client: Client, photo: Path) -> None:
    """Without any worker what is stored is still answered, and what is not is refused with when to retry."""
    await durable(client, await client.animate(request(photo, seed=10)))
    for worker in ("worker-1", "worker-2"):
        await asyncio.to_thread(stack.stop, worker)
    await asyncio.to_thread(stack.restart, "gateway")
    try:
        hit = await client.animate(request(photo, seed=10))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.animate(request(photo, seed=11))
    finally:
        for worker in ("worker-1", "worker-2"):
            await asyncio.to_thread(stack.start, worker)

    assert pb.OUTCOME_HIT == hit.report.outcome
    problem = explain_error(refused.value)
    assert (grpc.StatusCode.UNAVAILABLE, "NO_WORKER") == (problem.code, problem.reason)
    assert problem.retry_after


async def test_an_upload_is_named_by_its_digest(client: Client, photo: Path) -> None:
    """A picture that was uploaded once need not be sent again, and is the same picture."""
    uploaded = await client.upload(request(photo).image)
    by_digest = AnimateImageRequest(image_digest=uploaded.digest, prompt="a cat walks", seed=12, **SMALL)
    first = await durable(client, await client.animate(by_digest))
    again = await client.animate(request(photo, seed=12))

    assert pb.OUTCOME_HIT == again.report.outcome
    assert first.data == again.data
    assert first.data[100:] == await client.download(first.result.artifact, offset=100)


def test_the_gateway_never_loads_torch(stack: Stack, photo: Path, address: str) -> None:
    """After having served everything above, the gateway's process has no torch in its memory."""
    pid = stack.part("gateway").pid
    maps = Path(f"/proc/{pid}/maps").read_text()

    assert "libtorch" not in maps
    assert "libtorch" in Path(f"/proc/{stack.part('worker-1').pid}/maps").read_text()


def test_the_command_line_animates_explains_and_traces(stack: Stack, address: str, photo: Path, tmp_path: Path) -> None:
    """`reprise animate` writes the file and names a trace that `reprise trace` draws down to the worker's stages."""
    out = tmp_path / "cat.mp4"
    options = ["--width", "64", "--height", "64", "--frames", "4", "--steps", "3", "--seed", "13"]
    told = reprise("animate", str(photo), "-p", "rain", "-o", str(out), *options, "--address", address, "--durable")
    trace_id = told.split("trace ")[1].split()[0]
    reprise("animate", str(photo), "-p", "rain", "-o", str(out), *options, "--address", address)  # lets spans arrive
    drawn = reprise("trace", trace_id, "--data", str(stack.data))

    assert out.stat().st_size > 0
    assert "miss" in told
    assert "stored: durable" in told
    for span in ("cache.l1", "cache.l2", "cache.l3", "worker.run", "stage.denoise"):
        assert span in drawn, span
    assert "hit rate" in reprise("stats", "--address", address)


def test_bad_input_is_told_in_a_sentence(address: str, tmp_path: Path) -> None:
    """A file that is no picture is refused with the field and what to change, and without a traceback."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    refused = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "animate", str(broken), "-p", "x", "--address", address],
        capture_output=True,
        text=True,
        check=False,
    )

    assert 1 == refused.returncode
    assert "PICTURE: must be a PNG, JPEG, WebP, HEIC or AVIF file" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_second_stack_in_one_place_is_refused(stack: Stack) -> None:
    """`up` on a data folder whose stack runs says what runs instead of starting it twice."""
    with pytest.raises(AlreadyRunning):
        stack.up(compose(stack.data, port=free_port(), workers=1))


def reprise(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin"},
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout
