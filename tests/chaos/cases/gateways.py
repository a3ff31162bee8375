"""G: what becomes of callers when a gateway goes. Another one takes them, and finds the run where it is."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import grpc

from gateway.status import Problem
from tests.chaos.case import Scene, case
from tests.chaos.cases.steps import Running, counting, early, everybody
from tests.chaos.clients import PATIENCE
from tests.chaos.world import GATEWAYS, ONE, TWO, until

_STEPS = 100


@case(
    "G1",
    fault="a gateway is told to end (SIGTERM) with 20 streams under way",
    promise="all of them end well, then the process, with status 0",
)
async def told_to_end(scene: Scene) -> None:
    world, sheet = scene.world, scene.sheet
    running = [Running(scene, wish, ONE) for wish in scene.wishes(scene.size(20, 6), steps=20)]
    await asyncio.gather(*(each.until(lambda event: event.HasField("accepted")) for each in running))
    with scene.during(f"{ONE} is told to end"):
        _tell(scene, ONE)
        heard = await everybody(running)
        await until(lambda: _ended(scene, ONE))
    sheet.exactly("retries by callers", sum(each.retries for each in heard), 0)
    sheet.exactly("it ended with status 0", world.stack.part(ONE).exit_status == 0, promised=True)
    scene.judge_answers()
    await world.start(ONE)


@case(
    "G2",
    fault="the gateway that leads is killed (SIGKILL), again and again",
    promise="callers go to the other one and join the run at its worker: one generation, no failed request",
    share=True,
)
async def killed(scene: Scene) -> None:
    world, sheet, rounds = scene.world, scene.sheet, scene.size(6, 1)
    generations = await counting(scene)
    for number in range(rounds):
        (wish,) = scene.wishes(1, steps=scene.size(_STEPS, _STEPS // 2))
        leader, other = GATEWAYS[number % 2], GATEWAYS[1 - number % 2]
        await scene.callers.reconnect()
        running = [Running(scene, wish, leader, other) for _ in range(3)]
        await asyncio.gather(*(each.until(early) for each in running))
        with scene.during(f"{leader} is gone"):
            await world.kill(leader)
            await everybody(running)
            await world.start(leader)
    sheet.exactly(f"generations of {rounds}", await generations.count(), rounds)
    moved = sum(each.retries > 0 for each in scene.callers.log)
    sheet.at_least("callers that asked the other one", moved, 3 * rounds)
    scene.judge_answers()


@case(
    "G3",
    fault="a gateway is told twice to end with streams under way",
    promise="it ends at once; callers that know another one go on there, others are told when to ask again; the "
    "run ends and is stored",
)
async def told_twice(scene: Scene) -> None:
    world, callers, sheet = scene.world, scene.callers, scene.sheet
    (wish,) = scene.wishes(1, steps=_STEPS)
    generations = await counting(scene)
    running = [Running(scene, wish, ONE, TWO) for _ in range(3)]
    alone, problems = callers.client(ONE), list[Problem]()
    last = asyncio.create_task(
        alone.animate(wish.request(), on_retry=lambda problem, seconds: problems.append(problem), deadline=PATIENCE)
    )
    await asyncio.gather(*(each.until(early) for each in running))
    with scene.during(f"{ONE} is told twice"):
        began = time.monotonic()
        _tell(scene, ONE)
        await asyncio.sleep(1.0)  # between two signals, so that they are two
        _tell(scene, ONE)
        await until(lambda: _ended(scene, ONE))
        sheet.at_most("until it has ended", time.monotonic() - began, 10.0, "s")
        await everybody(running)
        await world.start(ONE)
    last.cancel()
    await asyncio.gather(last, return_exceptions=True)
    cut = problems[0] if problems else None
    told = cut.code if cut is not None else grpc.StatusCode.OK
    sheet.exactly("what the one heard that knows no other gateway", told.name, "UNAVAILABLE")
    sheet.exactly("it was told when to ask again", cut is not None and cut.retry_after is not None, promised=True)
    sheet.exactly("the result was stored", (await callers.ask(wish, TWO)).outcome == "hit", promised=True)
    sheet.exactly("generations", await generations.count(), 1)
    scene.judge_answers()


def _tell(scene: Scene, name: str) -> None:
    os.kill(scene.world.pid(name), signal.SIGTERM)


async def _ended(scene: Scene, name: str) -> bool:
    return not scene.world.stack.part(name).alive()
