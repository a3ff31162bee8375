"""What operators learn of a gateway: counts that agree with what happened."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc

from cache.keys import Key
from cache.settings import CacheSettings
from gateway.identity import hash_key
from gateway.stack import Stack
from reprise.v1 import common_pb2 as pb
from reprise.v1.cache_pb2 import StatsResponse
from tests import servers
from tests.cache.helpers import record_of
from tests.gateway.worker import WHOLE_COST
from tests.gateway.world import World, open_world, problem_of


def lookups(stats: StatsResponse) -> dict[str, dict[str, int]]:
    return {
        pb.Tier.Name(tier.tier): {pb.LookupOutcome.Name(each.outcome)[15:]: each.count for each in tier.lookups}
        for tier in stats.tiers
    }


async def test_counts_agree_with_what_happened(world: World) -> None:
    """Answers, lookups, device time, writes and workers; the same numbers stand in the metrics."""
    worker = await world.worker()
    desk = await world.desk(worker)
    gate = worker.hold("step")
    followers = [desk.follow() for _ in range(3)]
    for follower in followers:
        await follower.seen("queued")
    gate.open()
    media = [await follower.media() for follower in followers]
    await desk.stored(media[0])
    await desk.animate()
    await desk.animate()
    stats = await desk.client.stats()

    counts = {pb.Outcome.Name(each.outcome)[8:]: each.count for each in stats.requests}
    assert {"MISS": 1, "COALESCED": 2, "HIT": 2} == counts
    assert (1, WHOLE_COST, 4 * WHOLE_COST) == (
        stats.generations,
        stats.device_seconds_spent,
        stats.device_seconds_saved,
    )
    asked = lookups(stats)
    assert {"MISS": 3, "HIT": 2} == asked["TIER_L1"]
    assert 3 <= asked["TIER_L2"]["MISS"]
    assert 3 <= asked["TIER_L3"]["MISS"]
    assert 2.0 == await desk.metric("reprise_cache_lookups_total", tier="l1", outcome="hit")
    method = "reprise.v1.MediaService/AnimateImage"
    assert 2.0 == await desk.metric("reprise_answers_total", method=method, outcome="coalesced", tier="")
    assert 2.0 == await desk.metric("reprise_answer_seconds_count", method=method, outcome="hit")
    assert 1.0 == await desk.metric("reprise_generations_total")
    memory, redis, objects = stats.tiers
    assert (1, 1000 < memory.bytes < 4096) == (memory.entries, True)
    assert desk.registry.get_sample_value("reprise_cache_bytes", {"tier": "l1"}) == memory.bytes
    assert redis.entries > 0
    assert ("closed", "closed", "") == (redis.breaker, objects.breaker, memory.breaker)
    assert 0.0 < objects.p50_seconds <= objects.p99_seconds
    (seen,) = stats.workers
    assert (worker.address, True, ["small"], 3, 5) == (
        seen.address,
        seen.healthy,
        list(seen.models),
        seen.queued,
        seen.pool_bytes,
    )
    assert stats.uptime_seconds > 0.0


async def test_a_fresh_gateway_has_empty_books(world: World) -> None:
    """Nothing has happened, and nothing divides by it."""
    stats = await (await world.desk()).client.stats()
    assert ([], 0, 0.0, []) == (
        list(stats.requests),
        stats.generations,
        stats.device_seconds_saved,
        list(stats.workers),
    )
    assert {"TIER_L1": {}, "TIER_L2": {}, "TIER_L3": {}} == lookups(stats)


async def test_a_tier_that_rests_is_said_to(breakable_redis: Stack, tmp_path: Path) -> None:
    """With Redis gone its breaker opens after a few failures and its sizes are left out; the rest is there."""
    async with open_world(servers.redis_url(breakable_redis), tmp_path / "objects", strict=True) as world:
        restful = world.cache.breaker.model_copy(update={"rest": 60.0})
        cache: CacheSettings = world.cache.model_copy(update={"breaker": restful})
        worker = await world.worker()
        desk = await world.desk(worker, cache=cache)
        await asyncio.to_thread(breakable_redis.part("redis").kill)
        for number in range(6):
            await desk.animate(f"a cat {number}")
        _, redis, _ = (await desk.client.stats()).tiers
        assert ("open", False) == (redis.breaker, redis.HasField("entries"))
        asked = lookups(await desk.client.stats())["TIER_L2"]
        assert asked["SKIPPED"] > 0
        assert 6 == len(worker.requests)


async def test_an_entry_is_inspected_by_the_address_of_its_report(world: World) -> None:
    """Where it lies and what it says, under its canonical address and under its own; the blob beside it."""
    desk = await world.desk(await world.worker())
    made = await desk.animate("A  cat")
    await desk.stored(made)
    found = await desk.client.inspect(made.report.address)

    assert ("record", made.report.address) == (found.kind, f"{found.namespace}/{found.hex}")
    assert {1: 1, 2: 1, 3: 1} == {copy.tier: copy.outcome for copy in found.copies}  # all hits
    record = found.record
    assert ("small", "r1", "render", "render-1", "video/mp4", False) == (
        record.model,
        record.revision,
        record.stage,
        record.fingerprint,
        record.media_type,
        record.inlined,
    )
    assert (0.25, WHOLE_COST, 600, 1000) == (
        record.device_seconds,
        record.total_device_seconds,
        record.ttl.seconds,
        record.artifact.size,
    )
    assert made.report.made_at == record.made_at
    assert 24 * 3600 == round(record.expires_at.ToNanoseconds() / 1e9 - record.made_at.ToNanoseconds() / 1e9)
    canonical = (
        await desk.client.inspect(f"r/{found.namespace}/{record.canonical[33:35]}/{record.canonical[33:]}")
    ).record
    assert (record.artifact, "") == (canonical.artifact, canonical.canonical)
    blob = await desk.client.inspect(f"b/{found.namespace}/{record.artifact.hex[:2]}/{record.artifact.hex}")
    assert ("blob", False, 1000) == (blob.kind, blob.HasField("record"), blob.copies[-1].bytes)


async def test_times_that_no_message_can_tell_are_told_as_far_as_they_go(world: World) -> None:
    """A record that somebody wrote with times beyond all calendars is no fault of ours."""
    desk, tiers = await world.desk(), await world.tiers(world.only("l3"))
    record = replace(record_of(b"clip"), made_at=-1e300, touched_at=1e300, ttl=1e300, expires_at=1e300)
    await tiers.shared[-1].put(Key.of_record(record.address), record.to_bytes(), 60.0)
    found = (await desk.client.inspect(str(record.address))).record
    assert (0, 9999) == (found.made_at.seconds, found.expires_at.ToDatetime().year)


async def test_what_cannot_be_inspected_is_refused(world: World) -> None:
    """What is no key names the three forms; what lies nowhere is NOT_FOUND."""
    desk = await world.desk()
    problem = await problem_of(desk.client.inspect("cat.png"))
    assert (grpc.StatusCode.INVALID_ARGUMENT, "key") == (problem.code, problem.field)
    assert "b/<namespace>/<aa>/<hex>" in problem.message
    problem = await problem_of(desk.client.inspect(f"{'0' * 32}/{'0' * 64}"))
    assert (grpc.StatusCode.NOT_FOUND, "ENTRY_UNKNOWN") == (problem.code, problem.reason)


async def test_only_operators_may_ask(world: World, tmp_path: Path) -> None:
    """Others are told so; who has no key is not even that."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        f"- {{key_sha256: {hash_key('op')!r}, tenant: t, user: op, operator: true}}\n"
        f"- {{key_sha256: {hash_key('ann')!r}, tenant: t, user: ann}}"
    )
    desk = await world.desk(identity={"mode": "api_keys", "file": keys})
    assert (await (await desk.connect(api_key="op")).stats()).uptime_seconds > 0
    ann = await desk.connect(api_key="ann")
    for asked in (ann.stats(), ann.inspect("cat.png")):
        problem = await problem_of(asked)
        assert (grpc.StatusCode.PERMISSION_DENIED, "OPERATORS_ONLY") == (problem.code, problem.reason)
    assert grpc.StatusCode.UNAUTHENTICATED == (await problem_of(desk.client.stats())).code
