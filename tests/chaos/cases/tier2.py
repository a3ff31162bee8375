"""R: what Redis does to us. It is a cache of a cache: without it everything is there, a little later."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from redis.asyncio import Redis

from cache.keys import Key
from reprise.v1 import common_pb2 as pb
from tests.chaos.case import CannotBeHad, Scene, case
from tests.chaos.cases.planting import Shelf, judge_planted
from tests.chaos.cases.steps import FAILURES, counting, failed_lookups, judge_waits, loaded, stored
from tests.chaos.proxy import Fault
from tests.chaos.world import FEW_CONNECTIONS, GATEWAYS, ONE, REDIS, TWO, until

BUDGET = 50.0  # ms that a lookup in Redis may take
_CLIENTS = 8
_PROBES = 1.0  # a second, of each breaker


@case(
    "R1",
    fault="Redis is not there when both gateways start",
    promise="they start and serve hits from the object store and misses; Redis is used once it is there",
)
async def not_there_at_the_start(scene: Scene) -> None:
    world, callers, sheet = scene.world, scene.callers, scene.sheet
    async with world.without_memory():
        hot = await stored(scene, 2)
        with scene.during("Redis is not there"):
            await world.kill(REDIS)
            for gateway in GATEWAYS:
                await world.restart(gateway)
            await world.all_healthy()
            generations = await counting(scene)
            cold = scene.wishes(2)
            for wish, door in zip(cold, GATEWAYS, strict=True):
                await callers.ask(wish, door, stored=True)
            sheet.exactly("generations of 2 cold ones through 2 gateways", await generations.count(), 2)
            again = [await callers.ask(wish, door) for wish in hot for door in GATEWAYS]
            sheet.exactly("hits of 2 stored ones", sum(each.outcome == "hit" for each in again), 4)
            await world.start(REDIS)

        async def used() -> bool:
            return (await callers.ask(hot[0], ONE)).lookups.get("l2") in ("hit", "miss")

        sheet.at_most("until Redis is used again", await until(used) * 1000, 5000, "ms")
    scene.judge_answers()


@case(
    "R2",
    fault="Redis is killed under load",
    promise="each lookup that was cut off is a miss; breakers open after 5 failures; no failed request",
    share=True,
)
async def killed(scene: Scene) -> None:
    await _under_load(scene, "Redis is killed", scene.world.gone(REDIS))


@case(
    "R3",
    fault="Redis hangs (SIGSTOP)",
    promise="50 ms more for the first answers, then nothing but a probe a second; no failed request",
    share=True,
)
async def hangs(scene: Scene) -> None:
    await _one_by_one(scene, "Redis hangs", scene.world.hung(REDIS))


@case(
    "R3 under load",
    fault="Redis hangs (SIGSTOP) under load",
    promise="as R3; one generation of each cold one",
)
async def hangs_under_load(scene: Scene) -> None:
    await _under_load(scene, "Redis hangs", scene.world.hung(REDIS))


@case("R4", fault="Redis answers 2 s late", promise="as R3")
async def late(scene: Scene) -> None:
    links = scene.world.links.named(REDIS)
    await _one_by_one(scene, "2 s late", scene.world.broken(links, Fault(latency=2.0)))


async def _one_by_one(scene: Scene, what: str, fault: AbstractAsyncContextManager[None]) -> None:
    world, callers = scene.world, scene.callers
    async with world.without_memory():
        hot = await stored(scene, 4)
        usual = await callers.all(hot * scene.size(25, 5), ONE)
        count = scene.size(800, 40)
        with scene.during(what):
            async with fault:
                heard = await callers.all([hot[number % len(hot)] for number in range(count)], ONE)
        scene.judge_answers(heard)
        scene.sheet.exactly("hits", sum(each.outcome == "hit" for each in heard), count)
        # One probe may be under way when the wait begins, and the object store has to answer besides.
        judge_waits(scene, heard, usual, "l2", before=2 * BUDGET, after=25.0, what="hit")
        await world.healed()


async def _under_load(scene: Scene, what: str, fault: AbstractAsyncContextManager[None]) -> None:
    world, callers = scene.world, scene.callers
    seconds, count = scene.size(10, 2), scene.size(12, 3)
    async with world.without_memory():
        hot = await stored(scene, 4)
        generations, before = await counting(scene), await failed_lookups(scene, pb.TIER_L2)
        async with await loaded(scene, hot, clients=_CLIENTS):
            await asyncio.sleep(scene.size(3, 1))
            began = time.monotonic()
            with scene.during(what):
                async with fault:
                    await callers.at_once(scene.wishes(count), ONE, TWO)
                    await asyncio.sleep(max(0.0, seconds - (time.monotonic() - began)))
            broken = time.monotonic() - began
            await asyncio.sleep(scene.size(3, 1))
        scene.judge_answers()
        scene.sheet.exactly(f"generations of {count} cold ones", await generations.count(), count)
        # Whoever had asked already when the breaker opened is told late; one asks while it is half open.
        bound = FAILURES + 2 * (_CLIENTS + count) + _PROBES * broken
        for gateway, failed in (await failed_lookups(scene, pb.TIER_L2)).items():
            scene.sheet.at_most(f"{gateway}: lookups that failed", failed - before[gateway], round(bound, 1))
        await world.healed()


@case(
    "R5",
    fault="bits turn on the way from Redis; other entries' values, old schemas, pickles, torn and huge ones lie in it",
    promise="each is a miss, is counted, and goes or is made good; nothing is executed; no wrong answer",
    share=True,
)
async def wrong_data(scene: Scene) -> None:
    world, callers = scene.world, scene.callers
    async with world.without_memory():
        hot = await stored(scene, scene.size(8, 3))
        links = world.links.named(REDIS)
        with scene.during("bits turn"):
            async with world.broken(links, Fault(flip=500)):
                await callers.all(hot * scene.size(20, 4), ONE)
                await callers.all(hot * scene.size(20, 4), TWO)
        counts = await asyncio.to_thread(world.links.counts)
        scene.sheet.at_least("bits turned", sum(counts[link].broken for link in links), 1)
        await world.healed()
        await callers.all(hot, ONE)
        await world.until_at_rest()
        async with world.redis() as redis:
            with scene.during("planted"):
                await judge_planted(scene, _shelf(redis), hot)
    scene.judge_answers()


def _shelf(redis: Redis) -> Shelf:
    async def get(key: Key) -> bytes | None:
        value: Any = await redis.get(str(key))
        return None if value is None else bytes(value)

    async def put(key: Key, value: bytes) -> object:
        return await redis.set(str(key), value, px=600_000)

    async def nothing() -> None:
        """L1 is off: it is asked."""

    return Shelf(pb.TIER_L2, get, put, nothing)


@case(
    "R6",
    fault="Redis is full (maxmemory, noeviction): it refuses writes with OOM",
    promise="writes are given up and counted, and not tried over and over; reads go on as hits",
)
async def full(scene: Scene) -> None:
    async with scene.world.redis() as redis:
        usual = await redis.config_get("maxmemory*")
        try:

            async def fill() -> None:
                await redis.config_set("maxmemory-policy", "noeviction")
                await redis.config_set("maxmemory", "1")

            await _takes_no_writes(scene, redis, fill)
        finally:
            for name in ("maxmemory", "maxmemory-policy"):
                await redis.config_set(name, str(usual[name]))


@case("R7", fault="Redis's disk is full: it refuses writes with MISCONF", promise="as R6")
async def disk_full(scene: Scene) -> None:
    disks, disk = scene.world.disks, scene.world.disk(REDIS)
    if disks is None:
        raise CannotBeHad("file systems of its own (unshare and mount)")
    async with scene.world.redis() as redis:
        try:

            async def fill() -> None:
                await asyncio.to_thread(disks.fill, disk)
                await redis.config_set("stop-writes-on-bgsave-error", "yes")
                assert await _saved(redis) == "err"

            await _takes_no_writes(scene, redis, fill)
        finally:
            await asyncio.to_thread(disks.empty, disk)
            await redis.config_set("stop-writes-on-bgsave-error", "no")
            assert await _saved(redis) == "ok"


async def _saved(redis: Redis) -> str:
    """Have it write its snapshot, and say how that ended."""
    await redis.bgsave()

    async def done() -> bool:
        return not (await redis.info("persistence"))["rdb_bgsave_in_progress"]

    await until(done)
    return str((await redis.info("persistence"))["rdb_last_bgsave_status"])


async def _takes_no_writes(scene: Scene, redis: Redis, fill: Callable[[], Awaitable[None]]) -> None:
    world, callers = scene.world, scene.callers
    count = scene.size(10, 3)
    async with world.without_memory():
        hot = await stored(scene, scene.size(9, 3))
        generations = await counting(scene)
        with scene.during("takes no writes"):
            await fill()
            before = await _refused(redis)
            # Twice what is new: the second time it is in the object store alone.
            await callers.all(scene.wishes(count), ONE, stored=True)
            hits = [*await callers.all(hot * 10, ONE), *await callers.all(hot * 10, TWO)]
            refused = await _refused(redis) - before
        scene.judge_answers()
        scene.sheet.exactly(f"generations of {count} cold ones", await generations.count(), count)
        from_redis = sum(each.tier == "l2" for each in hits)
        scene.sheet.exactly(f"of {len(hits)} hits, those that did not come from Redis", len(hits) - from_redis, 0)
        scene.sheet.at_least("writes that Redis refused", refused, 1)
        scene.sheet.at_most("writes that Redis refused, for each generation", refused / count, 40)


async def _refused(redis: Redis) -> int:
    """Commands that were refused. GETEX is one for its refreshing, and is asked again as GET: that is reading."""
    told: dict[str, dict[str, int]] = await redis.info("commandstats")
    return sum(each["rejected_calls"] for name, each in told.items() if name != "cmdstat_getex")


@case(
    "R8",
    fault="Redis evicts what was just stored (maxmemory, allkeys-lfu, far too small)",
    promise="what is gone comes from the object store; nothing is generated twice",
)
async def evicts(scene: Scene) -> None:
    world, count = scene.world, scene.size(40, 10)
    async with world.redis() as redis, world.without_memory():
        usual = await redis.config_get("maxmemory*")
        await world.forget_redis()
        generations = await counting(scene)
        try:
            with scene.during("far too small"):
                used = int((await redis.info("memory"))["used_memory"])
                await redis.config_set("maxmemory", str(used + 100 * 1024))
                before = int((await redis.info("stats"))["evicted_keys"])
                wishes = scene.wishes(count)
                async with await loaded(scene, wishes, clients=_CLIENTS):
                    await asyncio.sleep(scene.size(12, 4))
                evicted = int((await redis.info("stats"))["evicted_keys"]) - before
        finally:
            await redis.config_set("maxmemory", str(usual["maxmemory"]))
        scene.sheet.at_least("entries evicted", evicted, 1)
        scene.sheet.exactly(f"generations of {count}", await generations.count(), count)
    scene.judge_answers()


@case(
    "R10",
    fault="100 callers at once, 8 connections to Redis, each answer 10 ms late",
    promise="who gets no connection within the budget has a miss there and an answer from below; no error",
)
async def no_connection_left(scene: Scene) -> None:
    world, callers = scene.world, scene.callers
    count = scene.size(100, 40)
    async with world.without_memory():
        hot = await stored(scene, count)
        await callers.at_once(hot[:FEW_CONNECTIONS], TWO)  # all connections are made
        await world.healed()
        with scene.during("10 ms late"):
            async with world.broken(world.links.named(REDIS), Fault(latency=0.01)):
                heard = await callers.at_once(hot, TWO)
        await world.healed()
    scene.judge_answers(heard)
    scene.sheet.exactly("hits", sum(each.outcome == "hit" for each in heard), count)
    answers = Counter(each.lookups.get("l2", "none") for each in heard)
    for outcome in ("hit", "timeout", "skipped", "error"):
        scene.sheet.tell(f"lookups in Redis: {outcome}", answers[outcome])
