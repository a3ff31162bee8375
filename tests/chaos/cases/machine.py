"""M: what the machine does to us that we run on: its clock is set."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from gateway.client import Media
from gateway.stack.ports import free_port
from reprise.v1.media_pb2 import DELIVERY_URL, AnimateImageRequest
from tests.chaos.beside import beside, one_more
from tests.chaos.case import CannotBeHad, Scene, case
from tests.chaos.cases.steps import Running, counting, early, everybody, stored
from tests.chaos.clients import PATIENCE, Callers, Heard, Wish
from tests.chaos.clock import NoClock, SetClock
from tests.chaos.world import ONE, faults_in, metrics_at, until

HOUR = 3600
_SET = "gateway-set"  # whose clock is set
_URL_LIFETIME = 300  # seconds, by the settings


@case(
    "M3",
    fault="the clock of a gateway jumps three hours ahead, then three behind, while it runs (libfaketime)",
    promise="hits stay hits, in memory too; runs under way end well; URLs live as long as ever; nobody fails; where "
    "the object store refuses a wrong clock, it is done without, and used again once the clock is right",
    share=True,
)
async def clock_jumps(scene: Scene) -> None:
    count, cold = scene.size(16, 4), list[Heard]()
    async with _gateway_of_set_clock(scene) as there:
        for hours in (3, -3):
            cold += await _judge_a_jump(there, hours, count)
        await there.set(0)
        await until(there.reads_objects)
        again = await there.scene.callers.all([each.wish for each in cold], _SET)
        there.judge_log()
    again += await scene.callers.all([each.wish for each in cold], ONE)
    hits = sum(each.outcome == "hit" for each in again)
    scene.sheet.exactly(f"of {len(again)} answers, hits of what was made meanwhile", hits, len(again))
    scene.judge_answers()


async def _judge_a_jump(there: _There, hours: int, count: int) -> list[Heard]:
    """What was made while the clock was wrong."""
    scene, sheet, jump = there.scene, there.scene.sheet, f"{hours:+} h"
    hot = await stored(there.others, count)
    deep = await stored(there.others, 2)  # of which this gateway's memory knows nothing, and soon Redis
    await scene.callers.all(hot, _SET)
    media = await there.file_by_url(hot[0])
    (wish,) = scene.wishes(1, steps=scene.size(150, 50))
    running = Running(scene, wish, _SET, stored=True)
    await running.until(early)
    with scene.during(jump):
        await there.set(hours * HOUR)
        sheet.tell(f"{jump}: a run was under way", not running.task.done())
        generations = await counting(scene)
        found = await scene.callers.all([*hot, *hot], _SET)
        in_memory = sum(each.lookups == {"l1": "hit"} for each in found)
        sheet.exactly(f"{jump}: of {2 * count} answers, hits in its memory", in_memory, 2 * count)
        await there.judge_urls(jump, media, await there.file_by_url(hot[1]))
        cold = await scene.callers.at_once(scene.wishes(count), _SET, stored=True)
        cold += await everybody([running])
        sheet.exactly(f"{jump}: of {count + 1} made meanwhile, durable", sum(each.durable for each in cold), count + 1)
        await scene.world.forget_redis()
        lower = await scene.callers.all(deep, _SET)
        sheet.tell(
            f"{jump}: what the object store says", _counted(each.lookups.get("l3", "not asked") for each in lower)
        )
        sheet.tell(f"{jump}: what only the object store has", _counted(each.outcome for each in lower))
        sheet.exactly(f"{jump}: generations of {count} new ones", await generations.count(), count)
    return cold


@dataclass(frozen=True)
class _There:
    """A gateway whose clock can be set, beside the world's own, and its callers."""

    scene: Scene  # in which those who ask are its own
    others: Scene  # in which they ask the world's gateways
    clock: SetClock
    metrics: int
    log_before: int

    async def set(self, seconds: float) -> None:
        """The clock, and wait until that process has seen it."""
        self.clock.set(seconds)
        await until(partial(self._stands, seconds))

    async def _stands(self, seconds: float) -> bool:
        told = await metrics_at(self.metrics)
        return abs(told["reprise_clock_offset_seconds",] - seconds) < 60.0

    async def reads_objects(self) -> bool:
        """Whether its breaker has closed; a lookup finds out."""
        (wish,) = self.scene.wishes(1)
        await self.scene.callers.ask(wish, _SET)
        return not (await metrics_at(self.metrics))["reprise_cache_breaker_open", "l3"]

    async def file_by_url(self, wish: Wish) -> Media:
        request = AnimateImageRequest()
        request.CopyFrom(wish.request())
        request.delivery = DELIVERY_URL
        return await self.scene.callers.client(_SET).animate(request, deadline=PATIENCE)

    async def judge_urls(self, jump: str, before: Media, now: Media) -> None:
        """One from before the jump, and one of now: good, and no longer than others."""
        client = self.scene.callers.client(_SET)
        files = [await client.fetch(each) for each in (before, now)]  # verified
        self.scene.sheet.exactly(f"{jump}: files by URL, of one from before and one of now", len(files), 2)
        left = now.result.url_expires_at.seconds - time.time()
        self.scene.sheet.at_most(f"{jump}: seconds until that of now expires", left, _URL_LIFETIME)

    def judge_log(self) -> None:
        faults = faults_in(self.scene.world.parts[ONE].log.with_name(f"{_SET}.log"), self.log_before)
        self.scene.sheet.exactly("faults of its own in the log", "; ".join(faults) or "none", "none")


@asynccontextmanager
async def _gateway_of_set_clock(scene: Scene) -> AsyncIterator[_There]:
    world = scene.world
    clock, metrics = SetClock(world.stack.data / "clock"), free_port()
    clock.set(0)
    try:
        part = one_more(world, ONE, _SET, metrics=metrics, environment=clock.environment)
    except NoClock as lack:
        raise CannotBeHad(str(lack)) from lack
    log_before = part.log.stat().st_size if part.log.exists() else 0
    async with beside(world, part) as (_, door), Callers(door, scene.callers.oracle) as callers:
        try:
            yield _There(replace(scene, callers=callers), scene, clock, metrics, log_before)
        finally:
            scene.callers.log.extend(callers.log)


def _counted(told: Iterable[str]) -> str:
    return ", ".join(f"{each}: {count}" for each, count in sorted(Counter(told).items()))
