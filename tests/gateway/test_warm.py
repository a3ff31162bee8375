"""Warming: results are made before they are asked, at nobody's expense, and it is told what that earned."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis import Redis

from gateway.client import Client
from gateway.identity import hash_key
from gateway.stack.redis import flush
from gateway.tasks import favourite_of
from reprise.v1 import cache_pb2 as pb
from reprise.v1 import common_pb2 as common
from reprise.v1.cache_pb2 import InvalidateRequest
from tests.gateway.worker import BAD_FRAMES, WHOLE_COST, ScriptedWorker
from tests.gateway.world import PICTURE, Desk, World, ask, eventually, outcome, picture, problem_of

CANARY = "A Canary that nobody may read"  # the scripted worker stores texts in lower case


def favourites(*prompts: str, tenant: str = "", user: str = "") -> list[pb.Favourite]:
    return [favourite_of(ask(prompt), tenant, user) for prompt in prompts]


async def warm(client: Client, *wanted: pb.Favourite, **said: Any) -> list[pb.WarmResponse]:
    async with asyncio.timeout(10.0):
        return [response async for response in client.warm(pb.WarmRequest(favourites=wanted, **said))]


def outcomes(responses: list[pb.WarmResponse]) -> list[str]:
    """What became of each, in order."""
    return [
        pb.WarmOutcome.Name(response.warmed.outcome).removeprefix("WARM_OUTCOME_").lower()
        for response in responses
        if response.HasField("warmed")
    ]


@pytest.fixture
async def worker(world: World) -> ScriptedWorker:
    return await world.worker()


@pytest.fixture
async def desk(world: World, worker: ScriptedWorker) -> Desk:
    return await world.desk(worker)


async def test_what_was_made_ahead_is_a_hit(desk: Desk, worker: ScriptedWorker) -> None:
    """Each is made once, at idle priority, with progress on the way; who asks for it then does not wait."""
    responses = await warm(desk.client, *favourites("a cat", "a dog", "a cat"))

    assert ["made", "made", "there"] == outcomes(responses)
    assert [(0, 3), (1, 3), (2, 3), (3, 3), (3, 3)] == [(each.done, each.of) for each in responses]
    summary = responses[-1].summary
    assert (2, 1, 0) == (summary.made, summary.there, summary.refused)
    assert [True, True] == [request.idle_priority for request in worker.requests]
    media = await desk.animate("a dog")
    assert "hit from L1" == outcome(media)
    assert media.report.address == responses[2].warmed.address
    assert 2 == worker.generations
    await desk.animate("a cow")
    assert not worker.requests[-1].idle_priority


async def test_warming_is_no_answer_and_what_it_earns_is_told(desk: Desk, world: World, worker: ScriptedWorker) -> None:
    """The hit rate is that of callers; device time is spent; later hits are on the account of what was made ahead, in a
    gateway that has not made it, too.
    """
    await warm(desk.client, *favourites("a cat", "a dog"))
    stats = await desk.client.stats()
    assert [] == list(stats.requests)
    spent = (await desk.client.savings()).warm.device_seconds_spent
    assert stats.device_seconds_spent == spent == 2 * WHOLE_COST - 0.5  # the picture was encoded once
    assert 0.5 == stats.device_seconds_saved
    await warm(desk.client, *favourites("a cat", "a dog"))
    assert 0.5 == (await desk.client.stats()).device_seconds_saved  # nobody asked, and nothing was made

    other = await world.desk(worker)
    for each in (desk, other, other):
        assert outcome(await each.animate()).startswith("hit from")
    earned, others = (await desk.client.savings()).warm, (await other.client.savings()).warm
    assert (2, 1, 1, WHOLE_COST) == (earned.made, earned.used, earned.hits, earned.device_seconds_saved)
    assert (0, 1, 2, 2 * WHOLE_COST) == (others.made, others.used, others.hits, others.device_seconds_saved)
    assert 2.0 == await other.metric("reprise_warm_hits_total")
    assert 2 * WHOLE_COST == await other.metric("reprise_warm_device_seconds_saved_total")
    await desk.animate("a cow")
    await desk.animate("a cow")
    assert 1 == (await desk.client.savings()).warm.hits


async def test_a_budget_is_kept(desk: Desk, worker: ScriptedWorker) -> None:
    """What would exceed it is left out, by estimates of what such work has cost; what is there needs no budget."""
    await desk.stored(await desk.animate("known"))
    responses = await warm(desk.client, *favourites("one", "two", "three", "known"), budget_device_seconds=9.5)

    assert ["made", "made", "over_budget", "there"] == outcomes(responses)
    estimates = [each.warmed.estimated_seconds for each in responses[1:3]]
    assert estimates == [each.warmed.device_seconds for each in responses[1:3]] == [4.5, 4.5]
    assert 9.0 == responses[-1].device_seconds_spent
    assert 3 == worker.generations


async def test_without_an_estimate_one_is_tried(desk: Desk, worker: ScriptedWorker) -> None:
    """Of work that was never seen nobody knows what it costs: the first run uses the budget up, and no other runs."""
    responses = await warm(desk.client, *favourites("one", "two", "one"), budget_device_seconds=1.0)

    assert ["made", "over_budget", "over_budget"] == outcomes(responses)  # though the last is there by now
    assert not responses[1].warmed.HasField("estimated_seconds")
    assert (1, 2) == (responses[-1].summary.made, responses[-1].summary.over_budget)
    assert 1 == worker.generations


async def test_who_asks_meanwhile_shares_the_run_and_lifts_it(desk: Desk, worker: ScriptedWorker) -> None:
    """One generation; the worker hears of somebody who waits."""
    gate = worker.hold("step")
    warming = asyncio.create_task(warm(desk.client, *favourites("a cat")))
    await gate.reached.wait()
    asking = desk.follow("a cat")
    await asking.seen("queued")
    gate.open()

    assert "coalesced" == outcome(await asking.media())
    assert ["made"] == outcomes(await warming)
    assert [True, False] == [request.idle_priority for request in worker.requests]
    assert 1 == worker.generations


async def test_what_is_being_made_already_is_joined(desk: Desk, worker: ScriptedWorker) -> None:
    """It costs the budget nothing."""
    gate = worker.hold("step")
    asking = desk.follow("a cat")
    await gate.reached.wait()
    warming = asyncio.create_task(warm(desk.client, *favourites("a cat"), budget_device_seconds=1.0))
    await eventually(lambda: asyncio.sleep(0, len(worker.requests)), wanted=lambda count: count == 2)
    gate.open()

    assert "miss" == outcome(await asking.media())
    responses = await warming
    assert (["joined"], 0.0) == (outcomes(responses), responses[-1].device_seconds_spent)
    assert 1 == worker.generations


async def test_one_that_is_wrong_holds_up_nobody(desk: Desk, worker: ScriptedWorker) -> None:
    """Its outcome names reason and field, whether we refuse it or the worker; the others are made."""
    wrong = pb.Favourite(animate_image=ask(num_frames=65))
    nobody = pb.Favourite(animate_image=ask(), user="ann")
    empty = pb.Favourite()
    worker.refusals = [BAD_FRAMES]
    responses = await warm(desk.client, wrong, nobody, empty, *favourites("refused below", "a cat"))

    assert ["refused"] * 4 + ["made"] == outcomes(responses)
    told = [(each.warmed.reason, each.warmed.field) for each in responses if each.HasField("warmed")]
    assert [
        ("VALUE_OUT_OF_RANGE", "num_frames"),
        ("FIELD_INVALID", "tenant"),
        ("FIELD_INVALID", "animate_image"),
        ("FIELD_INVALID", "num_frames"),
        ("", ""),
    ] == told


async def test_policies_of_a_favourite_do_not_stand_in_its_way(desk: Desk, worker: ScriptedWorker) -> None:
    """It is made to be found: variety and bypass are for those who ask; its labels hold."""
    policy = {"mode": common.CachePolicy.MODE_BYPASS, "no_store": True, "labels": ["spring"]}
    made = await warm(desk.client, pb.Favourite(animate_image=ask(policy=policy)))
    assert ["made"] == outcomes(made)
    assert "hit from L1" == outcome(await desk.animate())
    async for response in desk.client.invalidate(InvalidateRequest(label="spring")):
        gone = response.receipt.outputs
    assert gone > 0


async def test_leaving_ends_it(world: World, worker: ScriptedWorker) -> None:
    """What waits is given up after the grace, nothing more is begun, and there is room for another."""
    desk = await world.desk(worker)
    gate = worker.hold("begin")
    warming = asyncio.create_task(warm(desk.client, *favourites("one", "two")))
    await gate.reached.wait()
    warming.cancel()
    await asyncio.gather(warming, return_exceptions=True)
    await eventually(lambda: asyncio.sleep(0, worker.following), wanted=lambda count: count == 0)
    gate.open()
    assert ["made"] == outcomes(await warm(desk.client, *favourites("three")))
    assert 2 == len(worker.requests)


async def test_a_long_run_gives_signs_of_life(world: World, worker: ScriptedWorker) -> None:
    """The stream is never silent for longer than any other."""
    desk = await world.desk(worker, heartbeat=0.05)
    gate = worker.hold("step")
    seen: list[pb.WarmResponse] = []

    async def follow() -> None:
        async for response in desk.client.warm(pb.WarmRequest(favourites=favourites("a cat"))):
            seen.append(response)
            if len(seen) == 3:
                gate.open()

    async with asyncio.timeout(10.0):
        await follow()
    assert [0, 0, 0] == [each.done for each in seen[:3]]
    assert [False] * 3 == [each.HasField("warmed") for each in seen[:3]]


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({}, "favourites"),
        ({"favourites": [pb.Favourite()] * 1001}, "favourites"),
        ({"favourites": favourites("x"), "budget_device_seconds": -1.0}, "budget_device_seconds"),
        ({"favourites": favourites("x"), "budget_device_seconds": float("nan")}, "budget_device_seconds"),
        ({"frequent": True, "tenant": "a\nb"}, "tenant"),
        ({"frequent": True, "most": 1001}, "most"),
    ],
    ids=["nothing", "many", "negative", "nan", "tenant", "most"],
)
async def test_what_cannot_be_meant_is_refused(world: World, said: dict[str, Any], field: str) -> None:
    """Naming the field, before anything is made."""
    desk = await world.desk()

    async def all_of_it() -> None:
        async for _ in desk.client.warm(pb.WarmRequest(**said)):
            pass

    problem = await problem_of(all_of_it())
    assert (grpc.StatusCode.INVALID_ARGUMENT, field) == (problem.code, problem.field)


async def test_only_so_many_at_once(desk: Desk, worker: ScriptedWorker) -> None:
    """One more is told to come again."""
    gate = worker.hold("step")
    under_way = [asyncio.create_task(warm(desk.client, *favourites(f"{number}"))) for number in range(4)]
    await eventually(lambda: asyncio.sleep(0, len(worker.requests)), wanted=lambda count: count == 4)

    problem = await problem_of(warm(desk.client, *favourites("more")))

    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, True) == (problem.code, bool(problem.retry_after))
    gate.open()
    assert [["made"]] * 4 == [outcomes(await each) for each in under_way]


# On whose behalf.


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys.yaml"
    file.write_text(
        f"- {{key_sha256: {hash_key('op')!r}, tenant: ops, user: op, operator: true}}\n"
        f"- {{key_sha256: {hash_key('ann')!r}, tenant: a, user: ann}}\n"
        f"- {{key_sha256: {hash_key('bob')!r}, tenant: b, user: bob}}\n"
    )
    return file


async def test_it_is_made_for_whom_it_says(world: World, worker: ScriptedWorker, keys: Path) -> None:
    """A tenant's users find it, nobody else; it goes with whatever is purged of its user. Only operators may."""
    desk = await world.desk(worker, identity={"mode": "api_keys", "file": keys}, api_key="op")
    ann, bob = await desk.connect(api_key="ann"), await desk.connect(api_key="bob")
    await warm(desk.client, *favourites("a cat", tenant="a", user="zoe"))

    assert "hit from L1" == outcome(await ann.animate(ask()))
    assert "miss" == outcome(await bob.animate(ask()))
    async for _ in desk.client.invalidate(InvalidateRequest(tenant="a", user="zoe")):
        pass
    assert "miss" == outcome(await ann.animate(ask()))
    for refused in (warm(ann, *favourites("x")), ann.savings()):
        assert grpc.StatusCode.PERMISSION_DENIED == (await problem_of(refused)).code


# What is frequent.


REPLAYABLE = {"replayable": True}


def blobs(world: World, content: bytes) -> list[Path]:
    """Files of the object store in which these bytes can be read."""
    folder = Path(world.cache.l3.url.removeprefix("file://"))
    found = []
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # half written, and renamed by now
            if file.is_file() and content in file.read_bytes():
                found.append(file)
    return found


async def kept(world: World, content: bytes, count: int) -> list[Path]:
    return await eventually(lambda: asyncio.to_thread(blobs, world, content), wanted=lambda found: len(found) == count)


async def test_what_is_asked_often_is_made_again(world: World, worker: ScriptedWorker) -> None:
    """By any gateway, the most frequent first, once it is gone; what was asked once or may not be kept is not."""
    one, two = [await world.desk(worker, replay={"enabled": True}) for _ in range(2)]
    for prompt, times in (("Often", 4), ("Twice", 2), ("Once", 1)):
        for number in range(times):
            await (one, two)[number % 2].animate(prompt, policy=REPLAYABLE)
    for _ in range(3):
        await one.animate("Not to be kept")
    for _ in range(3):
        await one.animate("Kept nowhere", policy={**REPLAYABLE, "no_store": True})
    await eventually(lambda: warm(one.client, frequent=True), wanted=lambda said: 2 == len(outcomes(said)))
    assert [[]] * 3 == [await asyncio.to_thread(blobs, world, text) for text in (b"Once", b"Not to be", b"Kept no")]
    async for _ in two.client.invalidate(InvalidateRequest(model="small")):
        pass
    before = worker.generations

    responses = await warm(two.client, frequent=True)

    assert ["made", "made"] == outcomes(responses)
    assert before + 2 == worker.generations
    assert ["hit from L2"] * 2 == [outcome(await one.animate(prompt)) for prompt in ("Twice", "Often")]
    first = await one.animate("Often")
    assert first.report.address == responses[1].warmed.address
    assert ["there"] == outcomes(await warm(one.client, frequent=True, most=1))


async def test_an_uploaded_picture_is_kept_with_its_request(world: World, worker: ScriptedWorker) -> None:
    """What is named by a digest can be made long after the upload is forgotten."""
    desk = await world.desk(worker, replay={"enabled": True})
    uploaded = await desk.client.upload(picture(77))
    for _ in range(2):
        await desk.animate("Uploaded", image_digest=uploaded.digest, policy=REPLAYABLE)
    (blob,) = await kept(world, b"Uploaded", 1)
    assert picture(77) in await asyncio.to_thread(blob.read_bytes)


@pytest.mark.parametrize(
    "section",
    [{}, {"enabled": False, "models": ["small"]}, {"enabled": True}, {"enabled": True, "tenants": ["other"]}],
    ids=["default", "off", "not asked", "of others"],
)
async def test_nothing_is_kept_unless_it_is_wanted(
    world: World, worker: ScriptedWorker, section: dict[str, Any]
) -> None:
    """Not by default, not where it is off, not what was not said to be replayable."""
    desk = await world.desk(worker, replay=section)
    asked = {} if section.get("enabled") else REPLAYABLE
    for _ in range(3):
        await desk.animate(CANARY, policy=asked)
    marked = await world.desk(worker, replay={"enabled": True})
    for _ in range(2):
        await marked.animate("The last one", policy=REPLAYABLE)
    await kept(world, b"The last one", 1)
    assert [] == await asyncio.to_thread(blobs, world, CANARY.encode())


@pytest.mark.parametrize("section", [{"models": ["small"]}, {"tenants": ["local"]}], ids=["model", "tenant"])
async def test_operators_may_have_all_kept(world: World, worker: ScriptedWorker, section: dict[str, Any]) -> None:
    """For a model or a tenant, without a word in the request; `no_store` still keeps one out."""
    desk = await world.desk(worker, replay={"enabled": True, **section})
    for _ in range(2):
        await desk.animate("Secret", policy={"no_store": True})
        await desk.animate("Common")
    await kept(world, b"Common", 1)
    assert [] == await asyncio.to_thread(blobs, world, b"Secret")


@pytest.mark.parametrize(
    "said",
    [{"picture": PICTURE}, {"tenant": "local", "user": "local"}, {"tenant": "local"}, {"label": "spring"}],
    ids=lambda said: "-".join(said),
)
async def test_a_purge_takes_what_is_kept_along(world: World, worker: ScriptedWorker, said: dict[str, Any]) -> None:
    """By picture, user, tenant or label; what is asked again afterwards is kept again."""
    desk = await world.desk(worker, replay={"enabled": True})
    policy = {**REPLAYABLE, "labels": ["spring"]}
    for _ in range(2):
        await desk.animate(CANARY, policy=policy)
    await kept(world, CANARY.encode(), 1)

    async for _ in desk.client.invalidate(InvalidateRequest(**said)):
        pass

    assert [] == await asyncio.to_thread(blobs, world, CANARY.encode())
    assert [] == outcomes(await warm(desk.client, frequent=True))
    for _ in range(2):
        await desk.animate(CANARY, policy=policy)
    await eventually(lambda: warm(desk.client, frequent=True), wanted=lambda said: ["there"] == outcomes(said))


async def test_counts_go_with_their_tenant(world: World, worker: ScriptedWorker) -> None:
    """They say nothing of anybody, and are nobody's any more."""
    desk = await world.desk(worker, replay={"enabled": True})

    def groups() -> list[bytes]:
        with Redis.from_url(world.cache.l2.url.get_secret_value()) as raw:
            return [key for key in raw.keys("f/*") if isinstance(key, bytes)]

    await desk.animate(CANARY, policy=REPLAYABLE)
    await eventually(lambda: asyncio.to_thread(groups))
    for tenant, left in (("other", 1), ("local", 0)):
        async for _ in desk.client.invalidate(InvalidateRequest(tenant=tenant)):
            pass
        assert left == len(await asyncio.to_thread(groups))


async def test_what_is_kept_is_read_nowhere_else(world: World, worker: ScriptedWorker) -> None:
    """Not in a name, key, count, span or metric; and it cannot be downloaded, not even by its own caller."""
    desk = await world.desk(worker, replay={"enabled": True})
    for _ in range(2):
        await desk.animate(CANARY, policy=REPLAYABLE)
    (blob,) = await kept(world, CANARY.encode(), 1)
    await warm(desk.client, frequent=True)

    def in_redis() -> list[bytes]:
        with Redis.from_url(world.cache.l2.url.get_secret_value()) as raw:
            keys = [key for key in raw.keys("*") if isinstance(key, bytes)]
            return [key for key in keys if CANARY.encode() in key + (raw.dump(key) or b"")]

    (key,) = await asyncio.to_thread(in_redis)
    assert key.decode() == blob.relative_to(world.cache.l3.url.removeprefix("file://")).as_posix()
    told = [str(span.attributes) + span.name for span in desk.spans]
    told += [str(metric) for metric in desk.registry.collect()]
    assert not any(CANARY in text or "local" in text for text in told if "127.0.0.1" not in text)
    size = len(await asyncio.to_thread(blob.read_bytes))
    for guess in range(size - 80, size):
        digest = common.Digest(hex=blob.name, size=guess)
        assert "ARTIFACT_UNKNOWN" == (await problem_of(desk.client.download(digest))).reason


async def test_with_counts_gone_nothing_is_frequent(world: World, worker: ScriptedWorker) -> None:
    """Redis forgets, and what is kept waits to be asked again; without Redis it is said that nobody knows."""
    desk = await world.desk(worker, replay={"enabled": True})
    for _ in range(2):
        await desk.animate(CANARY, policy=REPLAYABLE)
    await kept(world, CANARY.encode(), 1)
    await asyncio.to_thread(flush, int(world.cache.l2.url.get_secret_value().rpartition(":")[2].partition("/")[0]))
    assert [] == outcomes(await warm(desk.client, frequent=True))
    without = await world.desk(worker, cache=world.only("l1", "l3"))
    problem = await problem_of(warm(without.client, frequent=True))
    assert (grpc.StatusCode.UNAVAILABLE, "STORE_UNREACHABLE") == (problem.code, problem.reason)
