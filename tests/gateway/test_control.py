"""What operators order reaches every gateway and worker: entries are invalidated, tiers, models and tenants are off."""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from PIL import Image

from cache.digest import Digest
from gateway.client import Client
from gateway.errors import NotFound
from gateway.identity import hash_key
from gateway.studio import Studio
from gateway.uploads import Uploads
from reprise.v1 import common_pb2 as common
from reprise.v1.cache_pb2 import InvalidateRequest, InvalidateResponse, SwitchRequest
from reprise.v1.media_pb2 import Framing
from tests.gateway.recordings import flac, voice, wav
from tests.gateway.worker import ScriptedWorker
from tests.gateway.world import PICTURE, Desk, World, outcome, picture, problem_of, stages


async def invalidate(client: Client, **said: Any) -> list[InvalidateResponse]:
    async with asyncio.timeout(10.0):
        return [response async for response in client.invalidate(InvalidateRequest(**said))]


async def switch(client: Client, **said: Any) -> list[str]:
    return list((await client.switch(SwitchRequest(**said))).switched_off)


@pytest.fixture
async def worker(world: World) -> ScriptedWorker:
    return await world.worker()


@pytest.fixture
async def desks(world: World, worker: ScriptedWorker) -> tuple[Desk, Desk]:
    """Two gateways of one deployment; the clip of `animate()` is in every tier and in the memory of both."""
    first, second = await world.desk(worker, name="one"), await world.desk(worker, name="two")
    await first.stored(await first.animate())
    await second.animate()
    assert "hit from L1" == outcome(await second.animate())
    return first, second


@pytest.mark.parametrize(
    ("said", "outputs"),
    [
        ({"model": "small"}, 7),
        ({"model": "small", "revision": "r1", "stage": "render"}, 2),
        ({"stage": "picture"}, 4),
        ({"tenant": "local"}, 7),
        ({"tenant": "local", "user": "local"}, 7),
        ({"picture": PICTURE}, 4),
        ({"older_than": Duration()}, 7),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
async def test_what_is_invalidated_is_served_by_no_gateway(
    desks: tuple[Desk, Desk], worker: ScriptedWorker, said: dict[str, Any], outputs: int
) -> None:
    """Told to one gateway it holds in all, though they had it in memory; the receipt says who heard and what went."""
    first, second = desks
    first_response, *_, last = await invalidate(first.client, **said)
    heard, receipt = first_response.heard, last.receipt

    assert (True, 3) == (heard.durable, heard.told)
    assert ["one", "scripted", "two"] == sorted(each.process for each in heard.processes)
    assert outputs == receipt.outputs == last.records_read - (7 - outputs)
    assert {common.TIER_L1, common.TIER_L2, common.TIER_L3} == {removal.tier for removal in receipt.tiers}
    assert [] == list(receipt.unreached)
    assert "miss" == outcome(await second.animate())
    assert 2 == worker.generations
    assert "hit from L1" == outcome(await second.animate())


async def test_what_is_not_meant_stays(desks: tuple[Desk, Desk], worker: ScriptedWorker) -> None:
    """Another picture's purge, another tenant's, another model's touch nothing; nor does a dry run."""
    first, second = desks
    for said in (
        {"picture": picture(200)},
        {"tenant": "other"},
        {"tenant": "local", "user": "other"},
        {"model": "large"},
        {"older_than": Duration(seconds=3600)},
        {"label": "spring"},
        {"digest": "0" * 64},
    ):
        assert 0 == (await invalidate(first.client, **said))[-1].receipt.outputs
    (dry,) = await invalidate(first.client, model="small", dry_run=True)

    assert (7, 7) == (dry.receipt.outputs, dry.records_read)
    assert "hit from L1" == outcome(await first.animate()) == outcome(await second.animate())
    assert 1 == worker.generations


async def test_what_was_made_of_something_goes_with_it(desks: tuple[Desk, Desk], worker: ScriptedWorker) -> None:
    """By the digest of an artifact, as a result names it; by an address, as a report gives it."""
    first, second = desks
    media = await first.animate()

    await invalidate(first.client, digest=media.result.artifact.hex)
    again = await second.animate()
    await invalidate(first.client, digest=again.report.address)
    once_more = await second.animate()

    assert ("miss", "miss") == (outcome(again), outcome(once_more))
    assert "reused" == stages(again.report.stages)["denoise"]


async def test_a_picture_is_known_in_any_file(desks: tuple[Desk, Desk], worker: ScriptedWorker) -> None:
    """What came from it goes whatever container it is named by: it is encoded anew, and its text is not."""
    first, second = desks
    other_file = BytesIO()
    Image.open(BytesIO(PICTURE)).save(other_file, "WEBP", lossless=True)

    await invalidate(first.client, picture=other_file.getvalue())
    again = stages((await second.animate()).report.stages)

    assert ("run", "run", "run", "reused") == (again["picture"], again["denoise"], again["render"], again["text"])


async def test_a_voice_is_known_in_any_file(world: World) -> None:
    """What came from a recording goes by whatever file has its samples, and nobody else's voice goes with it."""
    desk = await world.desk()
    tiers = await world.tiers(world.cache)
    uploads, tenant = Uploads(tiers.below_memory), "7" * 32
    files = [wav(voice(seed=seed)) for seed in range(2)]
    with Studio() as studio:
        for file in files:
            take = await studio.identify(tenant, file)
            await uploads.keep(tenant, tenant, take.file, take.identity, file)

    *_, last = await invalidate(desk.client, recording=flac(voice(seed=0), channels=2))

    assert 1 == last.receipt.outputs
    assert files[1] == await uploads.fetch(tenant, Digest.of(files[1]))
    with pytest.raises(NotFound):
        await uploads.fetch(tenant, Digest.of(files[0]))


async def test_a_part_of_a_picture_goes_with_it(world: World, worker: ScriptedWorker) -> None:
    """What was made of a crop is named by the whole picture too."""
    desk = await world.desk(worker)
    await desk.animate(framing=Framing(width=8, height=8))

    assert worker.requests[0].pictures["image"].part_of == (await _identity(desk, worker))
    assert "" == worker.requests[1].pictures["image"].part_of


async def _identity(desk: Desk, worker: ScriptedWorker) -> str:
    await desk.animate()
    return str(worker.requests[-1].pictures["image"].identity)


async def test_labels_are_what_callers_choose(world: World, worker: ScriptedWorker) -> None:
    """What is asked for with a label goes with it, and can be had again; it is stored in no readable form."""
    desk = await world.desk(worker)
    await desk.stored(await desk.animate(policy={"labels": ["spring", "sale"]}))
    await desk.stored(await desk.animate("a dog", policy={"labels": ["autumn"]}))

    receipt = (await invalidate(desk.client, label="sale"))[-1].receipt

    assert receipt.outputs > 0
    assert "miss" == outcome(await desk.animate())
    assert "hit from L1" == outcome(await desk.animate("a dog"))
    stored = await asyncio.to_thread(_everything_in, Path(world.cache.l3.url.removeprefix("file://")))
    assert b"autumn" not in stored


def _everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


async def test_what_a_user_asked_is_forgotten_with_what_was_made_for_them(desks: tuple[Desk, Desk]) -> None:
    """Why something had to be made is then told as to somebody new; to a purge of less, as it is."""
    first, second = desks
    await invalidate(first.client, model="small")
    assert common.MISS_REASON_INVALIDATED == (await second.animate()).report.reason
    assert (await second.animate("a dog")).report.nearest.differing == ["prompt"]

    await invalidate(first.client, tenant="local", user="local")

    report = (await second.animate("a cow")).report
    assert (common.MISS_REASON_NEW, False) == (report.reason, report.HasField("nearest"))


async def test_an_artifact_that_was_purged_cannot_be_downloaded(desks: tuple[Desk, Desk]) -> None:
    """Neither from where it was made, nor from where it was only read."""
    first, second = desks
    artifact = (await first.animate()).result.artifact
    assert await first.client.download(artifact) == await second.client.download(artifact)

    await invalidate(second.client, picture=PICTURE)

    for desk in desks:
        assert "ARTIFACT_UNKNOWN" == (await problem_of(desk.client.download(artifact))).reason


async def test_what_was_under_way_at_a_purge_cannot_be_downloaded(
    desks: tuple[Desk, Desk], worker: ScriptedWorker
) -> None:
    """Only those who waited for it get its bytes."""
    first, second = desks
    gate = worker.hold("step")
    waiting = first.follow("a dog")
    await gate.reached.wait()
    await invalidate(second.client, picture=PICTURE)
    gate.open()
    artifact = (await waiting.media()).result.artifact

    for desk in desks:
        assert "ARTIFACT_UNKNOWN" == (await problem_of(desk.client.download(artifact))).reason


async def test_work_under_way_is_told_to_those_who_wait_and_kept_for_nobody(
    desks: tuple[Desk, Desk], worker: ScriptedWorker
) -> None:
    """It may be made from what is wrong: who asks later has it made anew, in either gateway."""
    first, second = desks
    gate = worker.hold("step")
    waiting = first.follow("a dog")
    await gate.reached.wait()

    await invalidate(second.client, picture=PICTURE)
    later = second.follow("a dog")
    await later.seen("queued")
    gate.open()
    media = await waiting.media()

    assert "not_stored" == await first.stored(media)
    assert "durable" == await second.stored(await later.media())
    assert 3 == worker.generations
    assert "hit from L2" == outcome(await first.animate("a dog"))


async def test_a_tier_is_switched_off_and_on(desks: tuple[Desk, Desk], worker: ScriptedWorker) -> None:
    """While it is off it is not asked, in any gateway, and stats say so; what it held is there again afterwards."""
    first, second = desks

    assert ["tier l1"] == await switch(first.client, tier=common.TIER_L1)
    media = await second.animate()
    assert "hit from L2" == outcome(media)
    assert common.LOOKUP_OUTCOME_OFF == media.report.lookups[0].outcome
    assert ["tier l1", "tier l2"] == await switch(second.client, tier=common.TIER_L2)
    assert "hit from L3" == outcome(await first.animate())
    assert ["tier l1", "tier l2"] == list((await first.client.stats()).switched_off)
    assert [] == [await switch(first.client, tier=tier, on=True) for tier in (common.TIER_L1, common.TIER_L2)][-1]
    assert "hit from L2" == outcome(await second.animate())
    assert "hit from L1" == outcome(await second.animate())
    assert 1 == worker.generations


async def test_a_model_that_is_off_is_generated_each_time(desks: tuple[Desk, Desk], worker: ScriptedWorker) -> None:
    """Nothing is read and nothing kept for it; switched on, what was there before is there."""
    first, second = desks
    await switch(first.client, model="small")

    media = [await second.animate(), await second.animate(), await first.animate("new")]

    assert ["bypass"] * 3 == [outcome(each) for each in media]
    assert ["not_stored"] * 3 == [await second.stored(each) for each in media]
    only = {"mode": common.CachePolicy.MODE_ONLY_IF_CACHED}
    assert "NOT_CACHED" == (await problem_of(first.animate(policy=only))).reason
    await switch(first.client, model="small", on=True)
    assert "hit from L1" == outcome(await second.animate())
    assert "miss" == outcome(await second.animate("new"))


async def test_a_tenant_is_switched_off_alone(world: World, worker: ScriptedWorker, tmp_path: Path) -> None:
    """Its requests are generated each time, another tenant's are answered from the cache; only operators switch."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        f"- {{key_sha256: {hash_key('op')!r}, tenant: ops, user: op, operator: true}}\n"
        f"- {{key_sha256: {hash_key('ann')!r}, tenant: a, user: ann}}\n"
        f"- {{key_sha256: {hash_key('bob')!r}, tenant: b, user: bob}}\n"
    )
    desk = await world.desk(worker, identity={"mode": "api_keys", "file": keys}, api_key="op")
    ann, bob = await desk.connect(api_key="ann"), await desk.connect(api_key="bob")

    (off,) = await switch(desk.client, tenant="a")
    answers = [outcome(await desk.follow(client=client).media()) for client in (ann, ann, bob, bob)]

    assert ["bypass", "bypass", "miss", "hit from L1"] == answers
    assert off.startswith("tenant ")
    assert " a" != off[-2:]
    for refused in (switch(ann, tenant="b"), invalidate(ann, tenant="b"), ann.pin(f"{'0' * 32}/{'1' * 64}")):
        problem = await problem_of(refused)
        assert (grpc.StatusCode.PERMISSION_DENIED, "OPERATORS_ONLY") == (problem.code, problem.reason)


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({}, "request"),
        ({"dry_run": True}, "request"),
        ({"user": "ann"}, "tenant"),
        ({"digest": "abc"}, "digest"),
        ({"digest": f"{'0' * 32}/{'G' * 64}"}, "digest"),
        ({"picture": b"no picture"}, "image"),
        ({"recording": PICTURE}, "voice"),
        ({"older_than": Duration(seconds=-1)}, "older_than"),
    ],
    ids=["nothing", "dry", "user", "short", "no-hex", "picture", "recording", "future"],
)
async def test_what_cannot_be_meant_is_refused(world: World, said: dict[str, Any], field: str) -> None:
    """Naming the field; nothing is forbidden by it."""
    desk = await world.desk()

    problem = await problem_of(invalidate(desk.client, **said))

    assert (grpc.StatusCode.INVALID_ARGUMENT, field) == (problem.code, problem.field)


@pytest.mark.parametrize("said", [{}, {"tier": common.TIER_POOL}, {"tier": 99}, {"model": ""}, {"tenant": ""}])
async def test_a_switch_needs_a_subject(world: World, said: dict[str, Any]) -> None:
    """One that exists."""
    desk = await world.desk()

    problem = await problem_of(switch(desk.client, **said))

    assert grpc.StatusCode.INVALID_ARGUMENT == problem.code
    assert problem.field in ("subject", "tier")


async def test_what_is_pinned_is_told_to_every_process(desks: tuple[Desk, Desk]) -> None:
    """The later word about an address counts, whichever gateway it was said to."""
    first, second = desks
    one, two = (f"{'0' * 32}/{digit * 64}" for digit in "12")

    assert [one] == list((await first.client.pin(one)).pinned)
    told = await second.client.pin(two)
    assert ([one, two], True) == (list(told.pinned), told.heard.durable)
    assert [two] == list((await first.client.pin(one, on=False)).pinned)
    assert [two] == list((await second.client.pin(one, on=False)).pinned)


async def test_only_addresses_are_pinned(world: World) -> None:
    """Anything else is refused by name."""
    desk = await world.desk()
    for said in ("", "a cat", "0" * 64):
        problem = await problem_of(desk.client.pin(said))
        assert (grpc.StatusCode.INVALID_ARGUMENT, "address") == (problem.code, problem.field)


async def test_labels_have_bounds(world: World) -> None:
    """Not too many, not too long, not empty."""
    desk = await world.desk(await world.worker())

    for labels in (["x"] * 9, ["x" * 65], [""]):
        problem = await problem_of(desk.animate(policy={"labels": labels}))
        assert (grpc.StatusCode.INVALID_ARGUMENT, "cache_policy.labels") == (problem.code, problem.field)
