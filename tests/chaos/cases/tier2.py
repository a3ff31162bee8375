"""R: what Redis does to us. It is a cache of a cache: without it everything is there, a little later."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager

from reprise.v1 import common_pb2 as pb
from tests.chaos.case import Scene, case
from tests.chaos.cases.steps import (
    FAILURES,
    counting,
    failed_lookups,
    judge_waits,
    loaded,
    stored,
)
from tests.chaos.proxy import Fault
from tests.chaos.world import GATEWAYS, ONE, REDIS, TWO, until

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
        await world.mended()


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
        await world.mended()
