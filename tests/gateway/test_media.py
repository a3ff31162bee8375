"""MediaService at its edges: what is refused before anything is looked up or run, and files up and down."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from cache.digest import Digest
from gateway.identity import hash_key
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import AnimateImageRequest, DownloadRequest, UploadRequest
from reprise.v1.media_pb2_grpc import MediaServiceStub
from tests.gateway.worker import family
from tests.gateway.world import MIB, PICTURE, Desk, World, ask, outcome, picture, problem_of

_OWN_CHANNEL = (("grpc.use_local_subchannel_pool", 1),)


def bomb() -> bytes:
    """A small PNG that says it is 60,000 pixels wide and high."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + PICTURE[33:]


INVALID, EXHAUSTED, MISSING = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.NOT_FOUND,
)
ABSENT = Digest.of(b"never uploaded")
FLOAT = pb.ParameterValue(float_value=float("nan"))
BAD: dict[str, tuple[AnimateImageRequest, grpc.StatusCode, str, str | None]] = {
    "no picture": (AnimateImageRequest(prompt="a cat"), INVALID, "FIELD_INVALID", "image"),
    "empty picture": (ask(image=b""), INVALID, "PICTURE_FORMAT", "image"),
    "no picture format": (ask(image=b"GIF89a" + bytes(100)), INVALID, "PICTURE_FORMAT", "image"),
    "unreadable": (ask(image=PICTURE[:40] + bytes(20) + PICTURE[60:]), INVALID, "PICTURE_UNREADABLE", "image"),
    "truncated": (ask(image=PICTURE[:-20]), INVALID, "PICTURE_TRUNCATED", "image"),
    "bomb": (ask(image=bomb()), INVALID, "PICTURE_TOO_MANY_PIXELS", "image"),
    "over 16 MiB": (ask(image=PICTURE + bytes(16 * MIB + MIB // 2)), EXHAUSTED, "PICTURE_TOO_LARGE", "image"),
    "far over 16 MiB": (ask(image=PICTURE + bytes(40 * MIB)), EXHAUSTED, "PICTURE_TOO_LARGE", "image"),
    "unknown digest": (
        ask(image_digest=pb.Digest(hex=ABSENT.hex, size=ABSENT.size)),
        MISSING,
        "DIGEST_UNKNOWN",
        None,
    ),
    "no digest": (ask(image_digest=pb.Digest(hex="../models")), INVALID, "FIELD_INVALID", "image_digest.hex"),
    "unknown model": (ask(model="nobody"), MISSING, "MODEL_UNKNOWN", "model"),
    "model of another task": (ask(model="speaker"), INVALID, "FIELD_INVALID", "model"),
    "no prompt": (ask(""), INVALID, "VALUE_MISSING", "prompt"),
    "white prompt": (ask(" \n\t "), INVALID, "VALUE_MISSING", "prompt"),
    "long prompt": (ask("a" * 101), INVALID, "TEXT_TOO_LONG", "prompt"),
    "control characters": (ask("a\0b"), INVALID, "TEXT_CHARACTERS", "prompt"),
    "too many frames": (ask(num_frames=65), INVALID, "VALUE_OUT_OF_RANGE", "num_frames"),
    "no frames": (ask(num_frames=0), INVALID, "VALUE_OUT_OF_RANGE", "num_frames"),
    "most frames of all": (ask(num_frames=2**32 - 1), INVALID, "VALUE_OUT_OF_RANGE", "num_frames"),
    "seed beyond": (ask(seed=2**53), INVALID, "VALUE_OUT_OF_RANGE", "seed"),
    "NaN": (ask(guidance_scale=float("nan")), INVALID, "VALUE_NOT_FINITE", "guidance_scale"),
    "infinity": (ask(guidance_scale=float("inf")), INVALID, "VALUE_NOT_FINITE", "guidance_scale"),
    "NaN in extra": (AnimateImageRequest(prompt="a", extra={"eta": FLOAT}), INVALID, "VALUE_NOT_FINITE", "extra.eta"),
    "undeclared": (ask(motion_fps=8), INVALID, "FIELD_UNKNOWN", "motion_fps"),
    "undeclared extra": (ask(extra={"clip_skip": 1}), INVALID, "FIELD_UNKNOWN", "extra.clip_skip"),
    "misplaced": (ask(extra={"num_frames": 8}), INVALID, "FIELD_MISPLACED", "extra.num_frames"),
    "fresh and seed": (ask(seed=1, policy={"fresh": True}), INVALID, "FIELD_INVALID", "seed"),
    "fresh and cached": (
        ask(policy={"fresh": True, "mode": pb.CachePolicy.MODE_ONLY_IF_CACHED}),
        INVALID,
        "FIELD_INVALID",
        "cache_policy.fresh",
    ),
    "a mode of the future": (ask(policy={"mode": 99}), INVALID, "FIELD_INVALID", "cache_policy.mode"),
    "a delivery of the future": (ask(delivery=99), INVALID, "FIELD_INVALID", "delivery"),
    "negative age": (
        ask(policy={"max_age": {"seconds": -1}}),
        INVALID,
        "FIELD_INVALID",
        "cache_policy.max_age",
    ),
}


async def _sent(desk: Desk, request: AnimateImageRequest) -> None:
    """By a client that looks at nothing itself."""
    async with grpc.aio.insecure_channel(desk.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        call: Any = MediaServiceStub(channel).AnimateImage(request)
        async for _ in call:
            pass


# Requests that are refused.


async def test_what_is_wrong_is_said_before_anything_runs(world: World) -> None:
    """Each bad request gets its code, its reason and the field to change; no tier is asked and no worker runs."""
    worker = await world.worker(family(), family("speaker", task="synthesize_speech"))
    desk = await world.desk(worker)
    said = {}
    for case, (request, *_) in BAD.items():
        problem = await problem_of(_sent(desk, request))
        said[case] = (problem.code, problem.reason, problem.field)

    assert {case: tuple(expected) for case, (_, *expected) in BAD.items()} == said
    assert [] == worker.requests
    refused = sum(
        sample.value
        for family in desk.registry.collect()
        for sample in family.samples
        if sample.name == "reprise_refusals_total"
    )
    assert len(BAD) == refused
    assert len(BAD) == sum(span.status.status_code.name == "ERROR" for span in desk.spans)
    assert not any("a cat" in span.to_json() for span in desk.spans)
    assert "miss" == outcome(await desk.animate(num_frames=64))


async def test_what_no_message_may_hold_is_refused_by_its_size(world: World) -> None:
    """A request far over the limit is RESOURCE_EXHAUSTED before it is read, and so without details."""
    desk = await world.desk(await world.worker())
    problem = await problem_of(_sent(desk, ask(image=bytes(65 * MIB))))
    assert (EXHAUSTED, "") == (problem.code, problem.reason)


async def test_a_model_may_be_left_out(world: World) -> None:
    """Without a name it is the task's default, which a deployment may set."""
    worker = await world.worker(family("beta"), family("alpha"), family("aa", task="synthesize_speech"))
    desk = await world.desk(worker)
    await desk.animate()
    other = await world.desk(worker, default_models={"animate_image": "beta"})
    await other.animate("a dog")  # two models of the same stages share their results
    assert ["alpha", "beta"] == [request.model for request in worker.requests]


# Files.


async def test_a_picture_is_uploaded_once_and_named_from_then_on(world: World) -> None:
    """A request by digest is the same request as with the file, also at another gateway; its size is said."""
    worker = await world.worker()
    desk, other = await world.desk(worker), await world.desk(worker)
    content = picture(7, (24, 16))
    uploaded = await desk.client.upload(content)
    named = await other.animate(image_digest=uploaded.digest)
    sent = await desk.animate(image=content)

    assert (Digest.of(content).hex, len(content), 24, 16) == (
        uploaded.digest.hex,
        uploaded.digest.size,
        uploaded.width,
        uploaded.height,
    )
    assert "miss" == outcome(named)
    assert (1, named.data) == (worker.generations, sent.data)
    assert (24, 16) == (worker.requests[0].pictures["image"].width, worker.requests[0].pictures["image"].height)


async def test_what_is_no_picture_is_not_kept(world: World) -> None:
    """Upload refuses what AnimateImage would refuse, and stores nothing of it."""
    desk = await world.desk(await world.worker())
    for content, code in ((PICTURE[:-20], INVALID), (PICTURE + bytes(16 * MIB), EXHAUSTED)):
        assert code == (await problem_of(desk.client._doors[0].media.Upload(UploadRequest(content=content)))).code
        digest = Digest.of(content)
        request = ask(image_digest=pb.Digest(hex=digest.hex, size=digest.size))
        assert "DIGEST_UNKNOWN" == (await problem_of(desk.client.animate(request))).reason


async def test_an_upload_that_cannot_be_stored_says_so(world: World) -> None:
    """UNAVAILABLE with a time to retry, rather than a digest that nobody will find."""
    desk = await world.desk(await world.worker(), cache=world.only("l1"))
    problem = await problem_of(desk.client.upload(PICTURE))
    assert (grpc.StatusCode.UNAVAILABLE, "STORE_UNREACHABLE", 1.0) == (
        problem.code,
        problem.reason,
        problem.retry_after,
    )


@pytest.mark.parametrize("size", [0, 1000, MIB, 2 * MIB + 5])
async def test_an_artifact_is_downloaded_from_any_offset(world: World, size: int) -> None:
    """Its bytes from there on in chunks of 256 KiB, nothing at its very end, OUT_OF_RANGE beyond."""
    worker = await world.worker()
    desk = await world.desk(worker)
    made = await desk.animate(extra={"size": size})
    await desk.stored(made)
    other = await world.desk(worker)
    for offset in sorted({0, size // 3, max(0, size - 1), size}):
        assert made.data[offset:] == await other.client.download(made.result.artifact, offset)
    problem = await problem_of(desk.client.download(made.result.artifact, size + 1))
    assert (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_BEYOND_END", "offset") == (
        problem.code,
        problem.reason,
        problem.field,
    )


async def test_readers_that_stand_still_share_one_copy(world: World) -> None:
    """Of a file that was just made, and of one out of the tiers: twenty readers of 8 MiB hold less than two files."""
    size, readers = 8 * MIB, 20
    worker = await world.worker()
    desk, other = await world.desk(worker), await world.desk(worker)
    made = await desk.animate(extra={"size": size})
    await desk.stored(made)
    for each in (desk, other):
        assert size == len(await each.client.download(made.result.artifact))
        async with AsyncExitStack() as stack:
            tracemalloc.start()
            stack.callback(tracemalloc.stop)
            calls = []
            for _ in range(readers):
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(each.address, options=_OWN_CHANNEL))
                calls.append(MediaServiceStub(channel).Download(DownloadRequest(artifact=made.result.artifact)))
                await calls[-1].read()
            held = tracemalloc.get_traced_memory()[0]
            for call in calls:
                call.cancel()
        assert held < 2 * size


async def test_a_broken_transfer_goes_on_where_it_stopped(world: World) -> None:
    """Chunks carry their offset; what is missing after any of them is had by asking from its end on."""
    desk = await world.desk(await world.worker())
    made = await desk.animate(extra={"size": 2 * MIB + 5})
    await desk.stored(made)
    async with grpc.aio.insecure_channel(desk.address) as channel:
        call = MediaServiceStub(channel).Download(DownloadRequest(artifact=made.result.artifact, offset=3))
        first = (await anext(aiter(call))).chunk
        call.cancel()
    assert (3, MIB // 4) == (first.offset, len(first.data))
    rest = await desk.client.download(made.result.artifact, first.offset + len(first.data))
    assert made.data[3:] == first.data + rest


async def test_an_artifact_can_be_had_before_it_is_stored(world: World) -> None:
    """From the moment its result is told, and also where the policy forbids to store it; by its tenant alone."""
    desk = await world.desk(await world.worker(), cache=world.only("l1"))
    made = await desk.animate(extra={"size": 2 * MIB + 5})
    assert made.data[7:] == await desk.client.download(made.result.artifact, 7)
    other = await world.desk(await world.worker(), cache=world.only("l1"))
    assert "ARTIFACT_UNKNOWN" == (await problem_of(other.client.download(made.result.artifact))).reason


async def test_a_wrong_size_finds_nothing_and_harms_nothing(world: World) -> None:
    """The digest of an artifact with another size is NOT_FOUND; the artifact can still be had."""
    desk = await world.desk(await world.worker())
    made = await desk.animate()
    await desk.stored(made)
    wrong = pb.Digest(hex=made.result.artifact.hex, size=999)
    problem = await problem_of(desk.client.download(wrong))
    assert (MISSING, "ARTIFACT_UNKNOWN") == (problem.code, problem.reason)
    assert made.data == await desk.client.download(made.result.artifact)


async def test_files_are_their_owners(world: World, tmp_path: Path) -> None:
    """An upload is found by its user alone, an artifact by its tenant alone."""
    keys = tmp_path / "keys.yaml"
    people = {"ann": "a", "abe": "a", "bob": "b"}
    keys.write_text("\n".join(f"- {{key_sha256: {hash_key(u)!r}, tenant: {t}, user: {u}}}" for u, t in people.items()))
    worker = await world.worker()
    desk = await world.desk(worker, identity={"mode": "api_keys", "file": keys})
    ann, abe, bob = [await desk.connect(api_key=user) for user in people]
    uploaded = await ann.upload(PICTURE)
    made = await ann.animate(ask(image_digest=uploaded.digest))
    await ann.until_stored(made)

    for other in (abe, bob):
        problem = await problem_of(other.animate(ask(image_digest=uploaded.digest)))
        assert (MISSING, "DIGEST_UNKNOWN") == (problem.code, problem.reason)
    assert made.data == await abe.download(made.result.artifact)
    assert "ARTIFACT_UNKNOWN" == (await problem_of(bob.download(made.result.artifact))).reason
    for client in (desk.client, await desk.connect(api_key="eve")):
        assert grpc.StatusCode.UNAUTHENTICATED == (await problem_of(client.upload(PICTURE))).code
    assert 1 == len(worker.requests)


@pytest.mark.parametrize("fields", [{"hex": "0" * 63}, {"hex": "G" * 64}, {"hex": "A" * 64}, {}])
async def test_what_is_no_digest_is_refused(world: World, fields: dict[str, Any]) -> None:
    """Before any tier is asked for it."""
    desk = await world.desk()
    problem = await problem_of(desk.client.download(pb.Digest(**fields)))
    assert (INVALID, "artifact.hex") == (problem.code, problem.field)


async def test_any_bytes_at_all_are_a_typed_error_at_worst(world: World) -> None:
    """Pictures with random damage are identified or refused with the field; the gateway has no fault."""
    worker = await world.worker()
    desk = await world.desk(worker)
    draw = random.Random(5)
    for _ in range(40):
        content = bytearray(picture(3))
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        try:
            await desk.client.upload(bytes(content))
        except grpc.aio.AioRpcError as error:
            assert INVALID == error.code()  # noqa: PT017  # both ends are allowed
