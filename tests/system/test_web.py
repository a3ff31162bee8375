"""By grpc-web through Envoy: two gateways, two workers, a JavaScript client in Node, and the playground in Chromium.

One stack serves the file; its tests run in order in one process and each asks for something of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import subprocess
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import grpc
import pytest
import skimage.data
from PIL import Image

from gateway.client import Client
from gateway.stack import Stack
from gateway.stack.local import compose
from gateway.stack.ports import free_port
from gateway.status import explain_error
from reprise.v1 import inference_pb2
from reprise.v1.inference_pb2_grpc import InferenceServiceStub
from reprise.v1.media_pb2 import AnimateImageRequest, SynthesizeSpeechRequest, UploadRequest
from reprise.v1.media_pb2_grpc import MediaServiceStub
from tests import browsers
from tests.gateway.recordings import voice as recorded
from tests.gateway.recordings import wav
from tests.servers import leashed

pytestmark = pytest.mark.timeout(300)

SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 4, "num_inference_steps": 3}
SLOW = {"width": 128, "height": 128, "numFrames": 16, "numInferenceSteps": 30}
GATEWAYS = ("gateway", "gateway-2")
PAGE = "http://localhost:3000"  # an origin the edge knows


@pytest.fixture(scope="module")
def node() -> str:
    return browsers.node()


@pytest.fixture(scope="module")
def stack(node: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Envoy before two gateways with two workers: what a browser meets."""
    data = tmp_path_factory.mktemp("web")
    parts = compose(data, port=free_port(), gateways=2, workers=2, web_port=free_port())
    with leashed(data) as stack:
        stack.up(parts)
        yield stack


@pytest.fixture
def edge(stack: Stack) -> str:
    return stack.part("envoy").part.address


@pytest.fixture
async def client(edge: str) -> AsyncIterator[Client]:
    """Plain gRPC through the same port of Envoy."""
    async with Client(edge) as client:
        yield client


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "cat.png"
    Image.fromarray(skimage.data.chelsea()).save(path)
    return path


def request(photo: Path, **changes: Any) -> AnimateImageRequest:
    return AnimateImageRequest(**{"image": photo.read_bytes(), "prompt": "a cat walks", **SMALL, **changes})


class Told:
    """The JavaScript client at work: what it tells, line by line, as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.lines: list[dict[str, Any]] = []

    def until(self, key: str) -> dict[str, Any]:
        """The next line that has this key."""
        assert self._process.stdout is not None
        for text in self._process.stdout:
            self.lines.append(json.loads(text))
            if key in self.lines[-1]:
                return self.lines[-1]
        raise AssertionError(f"ended without {key!r}: {self.lines}")

    def rest(self) -> list[dict[str, Any]]:
        """Everything, when it has ended."""
        with suppress(AssertionError):
            self.until("there is no such key")
        return self.lines

    def all(self, key: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if key in line]


@contextmanager
def javascript(node: str, edge: str, *words: str) -> Iterator[Told]:
    command = [node, str(browsers.WEB / "client.mjs"), f"http://{edge}", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Told(process)
        finally:
            process.kill()


def whole(node: str, edge: str, *words: str) -> list[dict[str, Any]]:
    with javascript(node, edge, *words) as told:
        return told.rest()


def animate(photo: Path, **fields: Any) -> tuple[str, ...]:
    small = {"width": 64, "height": 64, "numFrames": 4, "numInferenceSteps": 3, "prompt": "a cat walks"}
    return "animate", str(photo), json.dumps({**small, **fields})


async def test_progress_arrives_while_the_work_is_under_way(
    stack: Stack, node: str, edge: str, client: Client, photo: Path, tmp_path: Path
) -> None:
    """Nothing between worker and browser holds events back, and the file is the one a Python client gets."""
    out = tmp_path / "out.mp4"
    slow = {"width": 128, "height": 128, "numFrames": 8, "numInferenceSteps": 12, "seed": 1}
    with javascript(node, edge, *animate(photo, **slow), str(out)) as told:
        accepted, first = told.until("accepted"), told.until("progress")
        async with Client(stack.part("gateway").part.address) as gateway:
            still_running = [worker.busy for worker in (await gateway.stats()).workers]
        result, end = told.until("result"), told.until("sha256")
    python = {"width": 128, "height": 128, "num_frames": 8, "num_inference_steps": 12, "seed": 1}
    media = await client.animate(request(photo, **python))

    steps = [line["ms"] for line in told.all("progress")]
    assert any(still_running)
    assert list(range(1, 13)) == [line["step"] for line in told.all("progress") if line["progress"] == "denoise"]
    assert accepted["ms"] <= first["ms"] < result["ms"]
    assert steps[-1] - steps[0] > 0.2 * (result["ms"] - accepted["ms"])
    assert told.all("preview")
    assert media.data == out.read_bytes()
    assert hashlib.sha256(media.data).hexdigest() == end["sha256"]


async def test_a_hit_is_told_in_the_trailers_too(node: str, edge: str, client: Client, photo: Path) -> None:
    """What a browser may read of an answer holds the RFC 9211 line."""
    await client.animate(request(photo, seed=2))
    told = whole(node, edge, *animate(photo, seed=2))

    assert ["reprise; hit"] == [line["cache-status"][:12] for line in told if "cache-status" in line]


def test_an_error_names_the_field(node: str, edge: str, photo: Path) -> None:
    """The details of an error reach JavaScript: its reason, the field, and what to change."""
    [refused] = whole(node, edge, *animate(photo, width=7))

    assert ("InvalidArgument", "width") == (refused["error"]["code"], refused["error"]["field"])
    assert refused["error"]["reason"]
    assert "a multiple of 8" in refused["error"]["message"]


async def test_a_dropped_stream_is_watched_to_its_end(node: str, edge: str, photo: Path, tmp_path: Path) -> None:
    """Hanging up ends no work: Watch goes on at the next event, up to `stored`."""
    out = tmp_path / "out.mp4"
    fields = {"seed": 3, "numInferenceSteps": 12}
    left = whole(node, edge, *animate(photo, **fields), "--abort-at", "3")
    name = left[0]["accepted"]
    rest = whole(node, edge, "watch", name, "4", str(out))
    async with Client(edge) as client:
        media = await client.animate(request(photo, seed=3, num_inference_steps=12))

    assert "Canceled" == left[-1]["error"]["code"]
    sequence = [line["sequence"] for line in rest if "sequence" in line]
    assert list(range(4, 4 + len(sequence))) == sequence
    assert "stored" in rest[-2]
    assert media.data == out.read_bytes()


def test_a_cancelled_generation_stops(node: str, edge: str, photo: Path) -> None:
    """Cancel ends the work for everybody's good: who still follows is told so."""
    with javascript(node, edge, *animate(photo, **SLOW, seed=4)) as told:
        name = told.until("accepted")["accepted"]
        told.until("progress")
        cancelled = whole(node, edge, "cancel", name)
        end = told.until("error")

    assert name == cancelled[0]["cancelled"]
    assert "Canceled" == end["error"]["code"]
    assert not told.all("result")


async def test_a_broken_stream_heals(stack: Stack, node: str, edge: str, photo: Path) -> None:
    """An Envoy that dies under a stream costs a pause: the client picks up where it broke."""
    with javascript(node, edge, *animate(photo, seed=5, numInferenceSteps=12, numFrames=16)) as told:
        name = told.until("accepted")["accepted"]
        told.until("progress")
        stack.part("envoy").kill()
        stack.start("envoy")
        end = told.until("sha256")
    async with Client(edge) as client:
        media = await client.animate(request(photo, seed=5, num_inference_steps=12, num_frames=16))

    assert {name} == {line["resumed"] for line in told.all("resumed")}
    sequence = [line["sequence"] for line in told.all("sequence")]
    assert list(range(1, 1 + len(sequence))) == sequence
    assert hashlib.sha256(media.data).hexdigest() == end["sha256"]


async def test_what_every_gateway_forgot_is_asked_again(stack: Stack, node: str, edge: str, photo: Path) -> None:
    """With both gateways killed and back, a fresh request is made again with the seed it was told: one generation.

    Whether that joins it or finds it done, which has no name any more, depends on how long the gateways were away.
    """
    before = await generations(stack)
    slow = {**SLOW, "cachePolicy": {"fresh": True}}
    with javascript(node, edge, *animate(photo, **slow), "--timeout", "90000") as told:
        told.until("progress")
        for name in GATEWAYS:
            stack.part(name).kill()
        for name in GATEWAYS:
            stack.start(name)
        told.until("sha256")

    assert {""} == {line["resumed"] for line in told.all("resumed")} - {told.all("accepted")[0]["accepted"]}
    assert 1 == await generations(stack) - before


async def test_speech_that_is_asked_for_again_is_heard_once(stack: Stack, node: str, edge: str, tmp_path: Path) -> None:
    """With both gateways killed and back, sound goes on where it was: no sample is missing, none comes twice."""
    voice, out = tmp_path / "voice.wav", tmp_path / "out.wav"
    voice.write_bytes(wav(recorded(2.0)))
    fields = {"text": " ".join(f"Train {n} has left, and nobody saw it." for n in range(30)), "live": True, "seed": 7}
    words = ("speak", str(voice), json.dumps(fields), str(out), "--timeout", "90000")
    with javascript(node, edge, *words) as told:
        told.until("samples")
        for name in GATEWAYS:
            stack.part(name).kill()
        for name in GATEWAYS:
            stack.start(name)
        end = told.until("sha256")

    assert "" in {line["resumed"] for line in told.all("resumed")}
    heard = told.all("samples")
    assert [0, *accumulate(line["samples"] for line in heard)][:-1] == [line["offset"] for line in heard]
    with wave.open(str(out), "rb") as file:
        assert hashlib.sha256(file.readframes(file.getnframes())).hexdigest() == end["heard"]


async def test_workers_that_are_away_for_a_moment_are_waited_for(
    stack: Stack, node: str, edge: str, photo: Path
) -> None:
    """Within its deadline the client asks again as often as the gateway says; without time to wait it is told."""
    for worker in ("worker-1", "worker-2"):
        stack.part(worker).kill()
    try:
        with javascript(node, edge, *animate(photo, seed=8), "--timeout", "90000") as told:
            told.until("resumed")
            hurried = whole(node, edge, *animate(photo, seed=9), "--timeout", "1000")
            stack.start("worker-1")
            told.until("sha256")
    finally:
        for worker in ("worker-1", "worker-2"):
            stack.start(worker)

    assert "NO_WORKER" == hurried[-1]["error"]["reason"]
    assert 1 == len(told.all("result"))


async def generations(stack: Stack) -> int:
    """How many the workers have begun."""
    count = 0
    for worker in ("worker-1", "worker-2"):
        async with grpc.aio.insecure_channel(stack.part(worker).part.address) as channel:
            told = await InferenceServiceStub(channel).Status(inference_pb2.StatusRequest(), timeout=5.0).read()
            assert isinstance(told, inference_pb2.StatusResponse)
            count += told.generations
    return count


async def test_a_stopped_gateway_leaves_the_rotation(stack: Stack, client: Client, photo: Path) -> None:
    """Both gateways serve; while one of them stops, is away and comes back, no request fails."""
    await client.animate(request(photo, seed=6))
    before = await answers(stack)
    for _ in range(20):
        await client.animate(request(photo, seed=6))
    after = await answers(stack)

    changes = asyncio.create_task(asyncio.to_thread(stack.restart, "gateway-2"))
    served = 0
    while not changes.done():
        await client.animate(request(photo, seed=6))
        served += 1
    await changes

    assert all(later > earlier for earlier, later in zip(before, after, strict=True))
    assert served


async def answers(stack: Stack) -> list[int]:
    """How many requests each gateway has answered."""
    counted = []
    for name in GATEWAYS:
        async with Client(stack.part(name).part.address) as client:
            counted.append(sum(each.count for each in (await client.stats()).requests))
    return counted


async def test_a_picture_of_full_size_passes(client: Client, edge: str, tmp_path: Path) -> None:
    """Up to 16 MiB; what is larger is refused as the contract says."""
    picture = tmp_path / "large.png"
    Image.effect_noise((2350, 2350), 100).convert("RGB").save(picture, compress_level=0)
    content = picture.read_bytes()
    uploaded = await client.upload(content)
    async with grpc.aio.insecure_channel(edge) as channel:  # our own client does not even send it
        too_large = UploadRequest(content=content + bytes(16 * 1024**2 - len(content) + 1))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await MediaServiceStub(channel).Upload(too_large)

    assert 15 * 1024**2 < len(content) < 16 * 1024**2
    assert (2350, 2350) == (uploaded.width, uploaded.height)
    problem = explain_error(refused.value)
    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "PICTURE_TOO_LARGE") == (problem.code, problem.reason)


def ask(edge: str, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
    """An HTTP request as a browser makes it, its body an empty message."""
    connection = http.client.HTTPConnection(edge, timeout=10.0)
    try:
        body = bytes(5) if method == "POST" else None
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return connection.getresponse()
    finally:
        connection.close()


def test_pages_of_known_origins_may_ask(edge: str) -> None:
    """The browser's question before the request is answered for them, and for nobody else."""
    wanted = "content-type,x-grpc-web,grpc-timeout,authorization"
    asked = {"access_control_request_method": "POST", "access_control_request_headers": wanted}
    path = "/reprise.v1.MediaService/AnimateImage"
    known = ask(edge, "OPTIONS", path, origin=PAGE, **asked)
    unknown = ask(edge, "OPTIONS", path, origin="https://elsewhere.example", **asked)
    answer = ask(edge, "POST", path, origin=PAGE, content_type="application/grpc-web+proto")

    assert (200, PAGE) == (known.status, known.headers["access-control-allow-origin"])
    assert "POST" in known.headers["access-control-allow-methods"]
    assert set(wanted.split(",")) <= set(known.headers["access-control-allow-headers"].split(","))
    assert unknown.headers["access-control-allow-origin"] is None
    readable = set(answer.headers["access-control-expose-headers"].split(","))
    assert {
        "grpc-status",
        "grpc-message",
        "grpc-status-details-bin",
        "grpc-retry-pushback-ms",
        "cache-status",
    } <= readable


@pytest.mark.parametrize(
    "path",
    [
        "/reprise.v1.InferenceService/Describe",
        "/reprise.v1.MediaService/../reprise.v1.InferenceService/Describe",
        "//reprise.v1.InferenceService/Describe",
    ],
)
async def test_workers_cannot_be_reached(edge: str, path: str) -> None:
    """The internal service is not there, however its name is spelled."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with grpc.aio.insecure_channel(edge) as channel:
            await InferenceServiceStub(channel).Describe(inference_pb2.DescribeRequest())

    assert grpc.StatusCode.UNIMPLEMENTED == refused.value.code()
    assert 404 == ask(edge, "POST", path).status


def visit(script: str, node: str, edge: str, file: Path, folder: Path) -> dict[str, Any]:
    """What a person saw who did at the page what the script says, with this file; see there."""
    port = edge.rpartition(":")[2]
    done = subprocess.run(
        [
            *(node, str(Path(__file__).with_name(script)), browsers.browser()),
            *(f"http://localhost:{port}/?gateway=http://{edge}", str(file), str(folder)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert 0 == done.returncode, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_the_playground_animates_a_picture(node: str, edge: str, photo: Path, tmp_path: Path) -> None:
    """In a browser, from another origin than the gateways': progress, the video, a hit, an error, a cancellation."""
    seen = visit("playground.mjs", node, edge, photo, tmp_path)

    assert [f"denoise: {step} of 8" for step in range(1, 9)] == [said for said in seen["steps"] if "denoise" in said]
    assert ("miss", "run", "run") == (
        seen["first"]["outcome"],
        seen["first"]["stages"]["denoise"],
        seen["first"]["stages"]["video"],
    )
    assert seen["second"]["outcome"].startswith("hit")
    assert "run" not in seen["second"]["stages"].values()
    assert (256, 160) == (seen["second"]["width"], seen["second"]["height"])
    assert seen["second"]["notice"]  # of random weights
    assert "a multiple of 8" in seen["problem"]
    assert "Cancelled" == seen["cancelled"]
    assert [] == seen["complaints"]
    for screenshot in ("during.png", "after.png"):
        assert colours(tmp_path / screenshot) > 1000  # of a photograph and a video, not of an empty page


LINE, LAMP, OTHER_LAMP, LAUGH = (
    "The rain had stopped, and the street was quiet.",
    "A lamp went out above the bridge.",
    "A lamp went out behind the old bridge.",
    "Then somebody laughed.",
)
REUSED, SPOKEN = (15, 123, 83), (168, 84, 8)  # the page's colours, where it is light


async def test_the_playground_speaks_a_text(node: str, edge: str, client: Client, tmp_path: Path) -> None:
    """A person chooses a voice, hears a paragraph while it is made, the same again, one sentence of it edited; is told
    what is impossible; cancels; records the voice and does not listen; has a file that cannot be heard while it is
    made; is told where no microphone is to be had.
    """
    voice, sample = tmp_path / "voice.wav", wav(recorded(2.5))
    voice.write_bytes(sample)
    seen = await asyncio.to_thread(visit, "speaking.mjs", node, edge, voice, tmp_path)
    first, second, edited, own, ogg = (seen[name] for name in ("first", "second", "edited", "own", "ogg"))

    assert ("#speak", "Choose or record a voice first.") == (seen["hash"], seen["voiceless"])
    assert ("voice.wav, 2.5 s", 2.5) == (seen["voice"], seen["replay"])
    steps = [said.partition(",")[0] for said in seen["steps"] if said.startswith("Sentence")]
    # What comes faster than the page is drawn is not seen on it.
    assert [f"Sentence {number} of 3" for number in (1, 2, 3) if f"Sentence {number} of 3" in steps] == list(
        dict.fromkeys(steps)
    )
    assert steps

    assert ("miss", "run") == (first["outcome"], first["stages"]["latents"]["became"])
    assert "after" in first["facts"]["first sound"]
    with wave.open(str(tmp_path / "saved.wav"), "rb") as saved:
        assert (tmp_path / "heard.s16").read_bytes() == saved.readframes(saved.getnframes())
        assert [saved.getframerate()] == first["heard"]["rates"]
    assert first["heard"]["overlap"] < 1e-6

    assert second["outcome"].startswith("hit")
    assert "run" not in {stage["became"] for stage in second["stages"].values()}
    assert first["pieces"] == second["pieces"]  # a hit is heard as well

    assert "run for 1 of 3 sentences" in edited["stages"]["latents"]["words"]
    assert "2 of 3 sentences reused" in edited["stages"]["waveform"]["words"]
    assert edited["wave"].endswith(": sentence 1 reused, sentence 2 spoken, sentence 3 reused")
    assert ["reused", "run", "reused"] == [kind for kind, _ in edited["sentences"]]
    begun = [0.0, *accumulate([await seconds(client, sample, each) for each in (LINE, OTHER_LAMP)])]
    assert [pytest.approx(each, abs=0.5) for each in begun] == [where for _, where in edited["sentences"]]
    assert min(shown(tmp_path / "edited.png", colour) for colour in (REUSED, SPOKEN)) > 2000

    assert "at least one letter or digit" in seen["problem"]
    assert ("Cancelled", False) == (seen["cancelled"], seen["stillSounds"])
    assert seen["recorded"].startswith("recorded.webm, 2.")
    assert ("miss", "run", 0) == (own["outcome"], own["stages"]["voice"]["became"], own["pieces"])
    assert ("spared", "run", 0) == (ogg["stages"]["latents"]["became"], ogg["stages"]["file"]["became"], ogg["pieces"])
    assert "https or localhost only" in seen["elsewhere"]["why"]
    assert not seen["elsewhere"]["mayRecord"]
    assert ({"animate"}, 0, []) == (set(seen["modes"]), seen["overflow"], seen["complaints"])


async def seconds(client: Client, voice: bytes, text: str) -> float:
    """How long a sentence is."""
    request = SynthesizeSpeechRequest(voice=voice, text=text, seed=1)
    with wave.open(BytesIO((await client.speak(request)).data), "rb") as file:
        return file.getnframes() / file.getframerate()


def shown(picture: Path, colour: tuple[int, int, int]) -> int:
    """How many pixels have this colour."""
    found = Image.open(picture).convert("RGB").getcolors(2**24)
    return next((count for count, each in found or () if each == colour), 0)


def colours(picture: Path) -> int:
    found = Image.open(picture).convert("RGB").getcolors(2**24)
    return len(found or ())
