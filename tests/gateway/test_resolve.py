"""The path of a request through a real gateway: tiers, flights, policies, and who may see what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from cache.hierarchy import Found, Hierarchy
from cache.keys import Address, Key
from cache.settings import CacheSettings
from cache.value import GreedyDualSizeFrequency
from gateway.client import Media
from gateway.identity import hash_key
from gateway.stack.redis import flush
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import GenerationEvent, Stored
from reprise.v1.media_pb2_grpc import MediaServiceStub
from tests.gateway.worker import WHOLE_COST, family
from tests.gateway.world import (
    MIB,
    Desk,
    World,
    ask,
    eventually,
    kinds,
    open_world,
    outcome,
    picture,
    problem_of,
    stages,
)
from tests.servers import S3

USE, REFRESH, BYPASS, ONLY = (
    pb.CachePolicy.MODE_USE,
    pb.CachePolicy.MODE_REFRESH,
    pb.CachePolicy.MODE_BYPASS,
    pb.CachePolicy.MODE_ONLY_IF_CACHED,
)
EVERYTHING_RAN = dict.fromkeys(("tokens", "text", "negative_tokens", "picture", "denoise", "render"), "run")
NOTHING_RAN = dict.fromkeys(("tokens", "text", "negative_tokens", "picture", "denoise"), "not_needed")


@pytest.fixture
async def on_s3(redis_url: str, s3: S3) -> AsyncIterator[World]:
    async with open_world(redis_url, s3) as world:
        yield world


def redis_port(cache: CacheSettings) -> int:
    return int(cache.l2.url.get_secret_value().rpartition(":")[2].partition("/")[0])


# From tier to tier.


async def test_a_cold_request_is_generated_and_told_step_by_step(world: World) -> None:
    """Events are numbered without gaps, chunks come before the result, and the report says that every stage ran."""
    worker = await world.worker()
    desk = await world.desk(worker)
    follower = desk.follow(num_inference_steps=3, extra={"size": 2 * MIB + 1})
    media = await follower.media()

    events = ["accepted", "queued", "progress", "progress", "progress", "preview", "chunk", "chunk", "chunk", "result"]
    assert events == kinds(follower.events)
    assert list(range(1, 11)) == [event.sequence for event in follower.events]
    assert [MIB, MIB, 1] == [len(event.chunk.data) for event in follower.events if event.HasField("chunk")]
    assert [1, 2, 3] == [event.progress.step for event in follower.events if event.HasField("progress")]
    assert 2 * MIB + 1 == len(media.data) == media.result.artifact.size
    assert "miss" == outcome(media)
    assert EVERYTHING_RAN == stages(media.report.stages)
    assert (WHOLE_COST, 0.0) == (media.report.device_seconds_spent, media.report.device_seconds_saved)
    assert [pb.TIER_L1, pb.TIER_L2, pb.TIER_L3] == [lookup.tier for lookup in media.report.lookups]
    assert "reprise; fwd=uri-miss; detail=new" == media.cache_status
    assert (True, 42, "video/mp4") == (media.result.random_weights, media.result.seed, media.result.media_type)
    assert "durable" == await desk.stored(media)


async def test_what_is_expected_of_each_stage_is_said_first(world: World) -> None:
    """With a stored picture encoding the plan says reused, and nothing of stages that only a worker can name."""
    worker = await world.worker()
    first = await world.desk(worker)
    await first.stored(await first.animate("a cat"))
    desk = await world.desk(worker)  # the first one remembers for a second that these stages were not there
    follower = desk.follow("a dog")
    media = await follower.media()

    expected = {"tokens": "run", "text": "unspecified", "negative_tokens": "reused", "picture": "reused"}
    accepted = (await follower.seen("accepted")).accepted
    assert expected | {"denoise": "unspecified", "render": "unspecified"} == stages(accepted.stages)
    ran = {"tokens": "run", "text": "run", "negative_tokens": "reused", "picture": "reused"}
    assert ran | {"denoise": "run", "render": "run"} == stages(media.report.stages)
    assert 4.5 == media.report.device_seconds_spent
    assert 0.5 == media.report.device_seconds_saved


@pytest.mark.parametrize(("size", "messages"), [(0, 1), (1000, 1), (MIB, 1), (MIB + 1, 2), (3 * MIB + 7, 4)])
async def test_a_hit_is_as_few_messages_as_its_size_allows(world: World, size: int, messages: int) -> None:
    """One event with everything up to 1 MiB, else one for each MiB, the result in the last; the bytes are the same."""
    worker = await world.worker()
    desk = await world.desk(worker)
    made = await desk.animate(extra={"size": size})
    follower = desk.follow(extra={"size": size})
    media = await follower.media()

    assert ["chunk"] * (messages - 1) + ["chunk+result"] == kinds(follower.events)
    assert list(range(1, messages + 1)) == [event.sequence for event in follower.events]
    assert made.data == media.data
    assert size == len(media.data)
    assert ("hit from L1", 1) == (outcome(media), worker.generations)


async def test_equal_requests_at_once_are_one_lookup(world: World) -> None:
    """Twenty callers of what only Redis has read its record and its blob once between them."""
    worker = await world.worker()
    first, desk = await world.desk(worker), await world.desk(worker)
    await first.stored(await first.animate())
    media = await asyncio.gather(*(desk.animate() for _ in range(20)))

    assert "hit from L2" in {outcome(each) for each in media} <= {"hit from L1", "hit from L2"}  # some come later
    assert 2.0 == await desk.metric("reprise_cache_lookups_total", tier="l2", outcome="hit")


async def test_a_hit_tells_of_itself_and_not_of_the_hit_before(world: World) -> None:
    """One entry in memory, asked for with what may differ: the tier it comes from, whether it is stored, the seed."""
    seeded = family()
    numbers = {role: name for role, name in seeded.stage("denoise").parameters.items() if name != "seed"}
    unseeded = [
        each.model_copy(update={"parameters": numbers}) if each.name == "denoise" else each for each in seeded.stages
    ]
    worker = await world.worker(seeded.model_copy(update={"stages": tuple(unseeded)}))
    first, other = await world.desk(worker), await world.desk(worker)
    storing = worker.hold("stored")
    made = await first.animate(seed=1)
    told = [await first.animate(seed=2)]
    unstored = await first.animate(seed=2, policy={"no_store": True})
    storing.open()
    await first.stored(made)
    told += [await first.animate(seed=seed) for seed in (2, 3)]
    told += [await other.animate(seed=3) for _ in range(2)]

    assert 1 == worker.generations
    tiers = ["hit from L1"] * 3 + ["hit from L2", "hit from L1"]
    assert tiers == [outcome(each) for each in told] == [f"hit from {_tier_of_final(each)}" for each in told]
    assert [2, 2, 3, 3, 3] == [each.result.seed for each in told]
    assert [1, 1, 1, 2, 1] == [len(each.report.lookups) for each in told]
    assert Stored.STATE_NOT_STORED == unstored.result.stored.state  # for all this caller knows
    assert [Stored.STATE_PENDING] + [Stored.STATE_DURABLE] * 4 == [each.result.stored.state for each in told]


def _tier_of_final(media: Media) -> str:
    return pb.Tier.Name(media.report.stages[-1].tier).removeprefix("TIER_")


async def test_each_tier_answers_when_those_before_it_cannot(world: World) -> None:
    """L1; from another gateway L2; with Redis flushed L3, which also brings it back to L2."""
    worker = await world.worker()
    first = await world.desk(worker)
    made = await first.animate()
    assert "durable" == await first.stored(made)
    assert "hit from L1" == outcome(again := await first.animate())
    assert made.data == again.data
    assert again.cache_status.startswith("reprise; hit; ttl=")
    assert again.cache_status.endswith("detail=l1")
    assert NOTHING_RAN | {"render": "reused"} == stages(again.report.stages)
    assert (0.0, WHOLE_COST) == (again.report.device_seconds_spent, again.report.device_seconds_saved)

    second = await world.desk(worker)
    assert "hit from L2" == outcome(media := await second.animate())
    assert made.data == media.data
    assert media.cache_status.endswith("detail=l2")

    await asyncio.to_thread(flush, redis_port(world.cache))
    third = await world.desk(worker)
    assert "hit from L3" == outcome(media := await third.animate())
    assert made.data == media.data
    assert media.cache_status.endswith("detail=l3")
    await eventually(lambda: third.metric("reprise_write_behind", what="written"), wanted=lambda count: count >= 2)

    fourth = await world.desk(worker)
    assert "hit from L2" == outcome(media := await fourth.animate())
    assert made.data == media.data
    assert (1, 1) == (worker.generations, len(worker.requests))


async def test_what_is_too_large_for_redis_comes_from_the_object_store(on_s3: World) -> None:
    """Of a file over 1 MiB Redis has the record and S3 the bytes: L3 gave it, and the bytes are the same."""
    worker = await on_s3.worker()
    first = await on_s3.desk(worker)
    made = await first.animate(extra={"size": 2 * MIB})
    assert "durable" == await first.stored(made)
    second = await on_s3.desk(worker)
    media = await second.animate(extra={"size": 2 * MIB})

    assert made.data == media.data
    assert "hit from L3" == outcome(media)
    hit_and_hit = [(pb.TIER_L1, pb.LOOKUP_OUTCOME_MISS), (pb.TIER_L2, pb.LOOKUP_OUTCOME_HIT)]
    hit_and_hit.append((pb.TIER_L3, pb.LOOKUP_OUTCOME_HIT))
    assert hit_and_hit == [(lookup.tier, lookup.outcome) for lookup in media.report.lookups]


async def test_other_spellings_of_a_prompt_are_one_result(world: World) -> None:
    """A worker knows that case and spaces do not matter; from then on the gateway answers that spelling itself."""
    worker = await world.worker()
    desk = await world.desk(worker)
    made = await desk.animate("a cat")
    await desk.stored(made)
    spelled = await desk.animate("A   CAT")
    assert ("hit from L2", 1, 2) == (outcome(spelled), worker.generations, len(worker.requests))
    assert made.data == spelled.data
    assert "hit from L1" == outcome(await desk.animate("A   CAT"))
    assert 2 == len(worker.requests)


async def test_a_result_that_is_not_durable_yet_is_not_called_durable(world: World) -> None:
    """A hit in memory says pending while the commit is under way, and durable from then on."""
    worker = await world.worker()
    gate = worker.hold("stored")
    desk = await world.desk(worker)
    made = await desk.animate()
    early = await desk.animate()
    assert ("hit from L1", "pending") == (outcome(early), await desk.stored(early))
    gate.open()
    assert "durable" == await desk.stored(made)

    async def late() -> str:
        return await desk.stored(await desk.animate())

    assert "durable" == await eventually(late, wanted=lambda state: state != "pending")


# Together.


@pytest.mark.parametrize("crowd", [16, 64])
async def test_equal_requests_at_once_are_one_generation(world: World, crowd: int) -> None:
    """One plan reaches the worker; one caller is told miss, all others coalesced; all get the same bytes."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker)
    followers = [desk.follow() for _ in range(crowd)]
    names = {await follower.name() for follower in followers}
    gate.open()
    media = [await follower.media() for follower in followers]

    assert crowd == len(names)
    assert 1 == len(worker.requests) == worker.generations
    assert ["coalesced"] * (crowd - 1) + ["miss"] == sorted(outcome(each) for each in media)
    assert 1 == len({each.data for each in media})
    collapsed = [each.cache_status for each in media if outcome(each) == "coalesced"]
    assert ["reprise; fwd=uri-miss; collapsed"] * (crowd - 1) == collapsed
    assert WHOLE_COST == sum(each.report.device_seconds_spent for each in media)


async def test_who_comes_late_sees_everything(world: World) -> None:
    """Somebody who joins in the middle gets what was produced so far, under a name of their own, and then follows."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker)
    early = desk.follow()
    await early.seen("queued")
    late = desk.follow()
    await late.seen("queued")
    gate.open()
    await asyncio.gather(early.media(), late.media())

    assert await early.name() != await late.name()
    assert kinds(early.events) == kinds(late.events)
    assert [event.sequence for event in early.events] == [event.sequence for event in late.events]


async def test_gateways_meet_at_the_worker(world: World) -> None:
    """Equal requests at two gateways are one generation; the one that joined says so."""
    worker = await world.worker()
    gate = worker.hold("step")
    first, second = await world.desk(worker), await world.desk(worker)
    leader = first.follow()
    await leader.seen("queued")
    joiner = second.follow()
    await joiner.seen("queued")
    gate.open()

    assert ["miss", "coalesced"] == [outcome(await leader.media()), outcome(await joiner.media())]
    assert (2, 1) == (len(worker.requests), worker.generations)


async def test_a_caller_that_leaves_takes_nobody_along(world: World) -> None:
    """The leader drops its stream; those who joined it get the result of the same run."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker)
    leader = desk.follow()
    await leader.seen("queued")
    follower = desk.follow()
    await follower.seen("queued")
    await leader.leave()
    gate.open()

    assert "coalesced" == outcome(await follower.media())
    assert (1, 0) == (worker.generations, worker.cancelled)


async def test_a_flight_that_lands_while_another_request_looks_answers_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that found nothing in the slow tiers looks into memory again before it asks a worker."""
    worker = await world.worker()
    gate = worker.hold("finished")
    desk = await world.desk(worker)
    first = desk.follow()
    await gate.reached.wait()
    fetch, looked, look_on = Hierarchy.fetch, asyncio.Event(), asyncio.Event()

    async def slow_fetch(self: Hierarchy, address: Address, ttl: float, **how: Any) -> Found:
        found = await fetch(self, address, ttl, **how)
        looked.set()
        await look_on.wait()
        return Found(found.lookups[:0])

    monkeypatch.setattr(Hierarchy, "fetch", slow_fetch)
    second = desk.follow()
    await looked.wait()
    gate.open()
    assert "durable" == await desk.stored(await first.media())
    look_on.set()

    assert "hit from L1" == outcome(await second.media())
    assert 1 == len(worker.requests)


# Policies.


async def test_refresh_runs_everything_again_and_replaces(world: World) -> None:
    """Whatever is stored, every stage runs; what it made is what is served from then on."""
    worker = await world.worker()
    desk = await world.desk(worker)
    old = await desk.animate()
    new = await desk.animate(policy={"mode": REFRESH})

    assert ("miss", EVERYTHING_RAN, 2) == (outcome(new), stages(new.report.stages), worker.generations)
    assert "durable" == await desk.stored(new)
    other = await world.desk(worker)
    for hit in (await desk.animate(), await other.animate()):
        assert outcome(hit).startswith("hit")
        assert new.report.made_at.ToNanoseconds() == hit.report.made_at.ToNanoseconds()
    assert new.report.made_at.ToNanoseconds() > old.report.made_at.ToNanoseconds()


async def test_bypass_neither_reads_nor_writes(world: World) -> None:
    """A bypassing request is generated although its result is stored, stores nothing, and says so."""
    worker = await world.worker()
    desk = await world.desk(worker)
    media = await desk.animate(policy={"mode": BYPASS})
    assert ("bypass", "reprise; fwd=request") == (outcome(media), media.cache_status)
    assert "not_stored" == await desk.stored(media)
    assert [] == list(media.report.lookups)
    assert "miss" == outcome(await desk.animate())
    assert EVERYTHING_RAN == stages((await desk.animate(policy={"mode": BYPASS})).report.stages)
    assert 3 == worker.generations


async def test_bypass_does_not_meet_others(world: World) -> None:
    """A bypassing request does not join an equal one that is under way, nor is it joined."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker)
    followers = [desk.follow(), desk.follow(policy={"mode": BYPASS}), desk.follow(policy={"no_store": True})]
    for follower in followers:
        await follower.seen("queued")
    gate.open()

    assert ["miss", "bypass", "miss"] == [outcome(await follower.media()) for follower in followers]
    assert 3 == len(worker.requests)


async def test_only_if_cached_never_generates(world: World) -> None:
    """What is stored is served; what is not is NOT_FOUND, also while it is being generated."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker)
    only = ask(policy={"mode": ONLY})
    under_way = desk.follow()
    await under_way.seen("queued")
    problem = await problem_of(desk.client.animate(only))
    assert (grpc.StatusCode.NOT_FOUND, "NOT_CACHED") == (problem.code, problem.reason)
    gate.open()
    await under_way.media()
    assert "hit from L1" == outcome(await desk.client.animate(only))
    assert 1 == len(worker.requests)


async def test_no_store_leaves_nothing_behind(world: World) -> None:
    """The result is delivered and kept nowhere, at no stage; what was stored before is still used."""
    worker = await world.worker()
    desk = await world.desk(worker)
    media = await desk.animate(policy={"no_store": True})
    assert ("miss", "not_stored") == (outcome(media), await desk.stored(media))
    again = await desk.animate()
    assert ("miss", EVERYTHING_RAN) == (outcome(again), stages(again.report.stages))
    assert "hit from L1" == outcome(await desk.animate(policy={"no_store": True}))


async def test_max_age_refuses_what_is_older(world: World) -> None:
    """A result older than the request allows is made again, with stages that are young enough, and replaces the old."""
    worker = await world.worker()
    desk = await world.desk(worker)
    old = await desk.animate()
    await desk.stored(old)
    assert "hit from L1" == outcome(await desk.animate(policy={"max_age": Duration(seconds=60)}))
    other = await world.desk(worker)  # the first one remembers for a second that no stage was there
    new = await other.animate(policy={"max_age": Duration(nanos=1)})

    assert ("miss", EVERYTHING_RAN) == (outcome(new), stages(new.report.stages))
    assert b"" != worker.requests[-1].pictures["image"].rgb
    assert {} == dict(worker.requests[-1].records)
    assert 1e-9 == worker.requests[-1].max_age
    hit = await other.animate()
    assert new.report.made_at.ToNanoseconds() == hit.report.made_at.ToNanoseconds()
    assert old.report.made_at.ToNanoseconds() < hit.report.made_at.ToNanoseconds()


async def test_a_fresh_result_can_be_had_again_by_its_seed(world: World) -> None:
    """Variety draws a seed and returns it; asking with that seed is a hit; asking for variety again is another one."""
    worker = await world.worker()
    desk = await world.desk(worker)
    follower = desk.follow(policy={"fresh": True})
    fresh = await follower.media()
    assert fresh.result.seed == (await follower.seen("accepted")).accepted.seed
    other = await desk.animate(policy={"fresh": True})
    assert fresh.result.seed != other.result.seed
    again = await desk.animate(seed=fresh.result.seed)
    assert ("hit from L1", fresh.data, 2) == (outcome(again), again.data, worker.generations)


async def test_an_omitted_seed_is_the_deployments(world: World) -> None:
    """Leaving the seed out and giving the default one are the same request."""
    worker = await world.worker()
    desk = await world.desk(worker, default_seed=7)
    assert 7 == (await desk.animate()).result.seed
    assert "hit from L1" == outcome(await desk.animate(seed=7))


async def test_a_tenant_may_have_variety_by_default(world: World, tmp_path: Path) -> None:
    """Creative use is fresh, customer service cached; whoever names a seed or a mode gets what it says."""
    keys = tmp_path / "keys.yaml"
    people = {"ann": "studio", "bob": "service"}
    keys.write_text("\n".join(f"- {{key_sha256: {hash_key(u)!r}, tenant: {t}, user: {u}}}" for u, t in people.items()))
    worker = await world.worker()
    policies = [{"tenant": "studio", "fresh": True}, {"model": "small", "mode": "bypass"}, {"tenant": "service"}]
    desk = await world.desk(worker, identity={"mode": "api_keys", "file": keys}, policies=policies)
    ann, bob = [await desk.connect(api_key=user) for user in people]

    varied = [(await ann.animate(ask())).result.seed for _ in range(3)]
    assert (3, 3) == (len(set(varied)), worker.generations)
    use = {"mode": pb.CachePolicy.MODE_USE}
    assert ["miss", "hit from L1"] == [outcome(await ann.animate(ask(policy=use))) for _ in range(2)]
    assert "hit from L1" == outcome(await ann.animate(ask(seed=varied[0])))
    assert ["miss", "hit from L1"] == [outcome(await bob.animate(ask())) for _ in range(2)]


async def test_a_model_may_have_a_policy_by_default(world: World) -> None:
    """Also the one that a request does not name, because it is the only one there is."""
    worker = await world.worker()
    desk = await world.desk(worker, policies=[{"model": "small", "mode": "bypass"}])
    assert ["bypass", "bypass"] == [outcome(await desk.animate()) for _ in range(2)]


# Tenants.


async def test_tenants_never_see_each_others_results(world: World, tmp_path: Path) -> None:
    """The same request by two tenants is two generations, at two addresses; users of one tenant share results."""
    keys = tmp_path / "keys.yaml"
    people = [("ann", "a"), ("abe", "a"), ("bob", "b")]
    lines = [f"- {{key_sha256: {hash_key(user)!r}, tenant: {tenant}, user: {user}}}" for user, tenant in people]
    keys.write_text("\n".join(lines))
    worker = await world.worker()
    desk = await world.desk(worker, identity={"mode": "api_keys", "file": keys})
    ann, abe, bob = [await desk.connect(api_key=user) for user, _ in people]

    made = await ann.animate(ask())
    foreign = await bob.animate(ask())
    assert ["miss", "miss"] == [outcome(made), outcome(foreign)]
    assert made.report.address != foreign.report.address
    assert made.report.address.partition("/")[2] == foreign.report.address.partition("/")[2]
    assert "hit from L1" == outcome(await abe.animate(ask()))
    other = await world.desk(worker, identity={"mode": "api_keys", "file": keys})
    stranger = await other.connect(api_key="bob")
    assert "hit from L2" == outcome(hit := await stranger.animate(ask()))
    assert foreign.report.address == hit.report.address
    assert 2 == worker.generations
    namespaces = [dict(request.namespaces) for request in worker.requests]
    assert namespaces[0]["shared"] == namespaces[1]["shared"]
    assert set(namespaces[0].values()) & set(namespaces[1].values()) == {namespaces[0]["shared"]}
    assert not any("ann" in str(request) or "bob" in str(request) for request in worker.requests)


async def test_equal_requests_of_two_tenants_do_not_meet_in_flight(world: World) -> None:
    """With the identity in headers that a proxy sets, requests of two tenants at once are two runs."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, identity={"mode": "header"})
    async with grpc.aio.insecure_channel(desk.address) as channel:
        stub = MediaServiceStub(channel)

        async def animate(tenant: str) -> list[GenerationEvent]:
            call = stub.AnimateImage(ask(), metadata=(("x-reprise-tenant", tenant),), wait_for_ready=True)
            return [response.event async for response in call]

        problem = await problem_of(anext(aiter(stub.AnimateImage(ask()))))
        assert grpc.StatusCode.UNAUTHENTICATED == problem.code
        runs = [asyncio.create_task(animate(tenant)) for tenant in ("a", "b")]
        await eventually(lambda: _now(len(worker.requests) == 2))
        gate.open()
        results = [(await run)[-1].result for run in runs]

    assert [pb.OUTCOME_MISS, pb.OUTCOME_MISS] == [result.report.outcome for result in results]
    assert 2 == worker.generations


async def _now(value: bool) -> bool:
    return value


# Bounds.


async def test_too_many_pixels_at_once_are_refused(world: World) -> None:
    """Pictures on their way to workers are bounded in bytes; one alone always passes, and room comes back."""
    worker = await world.worker()
    desk = await world.desk(worker, max_pixel_bytes=1)
    gate = worker.hold("step")
    first = desk.follow("one", image=picture(1))
    await first.seen("queued")
    problem = await problem_of(desk.client.animate(ask("two", image=picture(2))))
    gate.open()
    await desk.stored(await first.media())

    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "GATEWAY_BUSY") == (problem.code, problem.reason)
    assert "miss" == outcome(await desk.animate("two", image=picture(2)))


async def test_too_many_generations_at_once_are_refused(world: World) -> None:
    """Over the bound a new generation is refused with a time to retry; joining one and hits are not."""
    worker = await world.worker()
    desk = await world.desk(worker, max_generations=2)
    await desk.stored(await desk.animate("known"))
    gate = worker.hold("step")
    running = [desk.follow("one"), desk.follow("two")]
    for follower in running:
        await follower.seen("queued")
    problem = await problem_of(desk.client.animate(ask("three")))
    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "GATEWAY_BUSY", 1.0) == (
        problem.code,
        problem.reason,
        problem.retry_after,
    )
    running.append(desk.follow("one"))
    await running[-1].seen("queued")
    assert "hit from L1" == outcome(await desk.animate("known"))
    gate.open()
    assert ["miss", "miss", "coalesced"] == [outcome(await follower.media()) for follower in running]


async def test_another_picture_is_another_result(world: World) -> None:
    """Requests that differ in the picture alone share the text and nothing after it."""
    worker = await world.worker()
    desk: Desk = await world.desk(worker)
    first = await desk.animate()
    second = await desk.animate(image=picture(200))

    assert first.data != second.data
    ran = stages(second.report.stages)
    assert ("reused", "run", "run") == (ran["text"], ran["picture"], ran["denoise"])


async def test_one_hit_in_memory_is_one_use(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Understood anew or remembered, and before that looking for what is not there yet is none."""
    used: list[Key] = []
    accessed = GreedyDualSizeFrequency.accessed

    def note(policy: GreedyDualSizeFrequency[Key], key: Key) -> None:
        used.append(key)
        accessed(policy, key)

    monkeypatch.setattr(GreedyDualSizeFrequency, "accessed", note)
    desk = await world.desk(await world.worker())
    await desk.stored(await desk.animate())
    assert [] == [key for key in used if key.kind == "w"]

    assert ["hit from L1"] * 2 == [outcome(await desk.animate()) for _ in range(2)]  # the same message
    assert "hit from L1" == outcome(await desk.animate(num_frames=16))
    assert 3 == len([key for key in used if key.kind == "w"])
