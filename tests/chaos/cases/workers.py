"""I: what workers do to us. Another one can do what one of them began; nothing of a first try is kept."""

from __future__ import annotations

import asyncio
import time

from tests.chaos.case import Scene, case
from tests.chaos.cases.steps import Running, busy_worker, counting, early, everybody, loaded, stored
from tests.chaos.world import GATEWAYS, ONE, TWO, WORKERS

_STEPS = 100  # of a generation that takes seconds
_MOVE = 5.0  # seconds until a run is at another worker
_SLOWER = 3.0  # times as long as usual it may take there, on a machine that is not ours alone
_SIGNS_OF_LIFE = 15.0  # seconds without one, after which a worker is given up


@case(
    "I1",
    fault="the worker of a run is killed in the middle, again and again",
    promise="its run begins anew at the other one; no failed request, no retry, one more generation each; nothing of "
    "the first try is kept",
)
async def killed(scene: Scene) -> None:
    world, callers, sheet = scene.world, scene.callers, scene.sheet
    usual = await _usual(scene)
    for _ in range(scene.size(3, 1)):
        (wish,) = scene.wishes(1, steps=_STEPS)
        running = [Running(scene, wish, gateway, stored=gateway == ONE) for gateway in GATEWAYS]
        await asyncio.gather(*(each.until(early) for each in running))
        victim = await busy_worker(scene)
        generations = await counting(scene)
        with scene.during(f"{victim} is gone"):
            async with world.gone(victim):
                began = time.monotonic()
                heard = await everybody(running)
                last = max(each.ended for each in heard)
                sheet.at_most("from the kill to the answer", last - began, round(_MOVE + _SLOWER * usual, 1), "s")
                sheet.exactly("generations at the one that is left", await generations.count(), 1)
                sheet.exactly("retries by callers", sum(each.retries for each in heard), 0)
                again = [await callers.ask(wish, gateway) for gateway in GATEWAYS]
                sheet.exactly("hits afterwards", sum(each.outcome == "hit" for each in again), 2)
    scene.judge_answers()


async def _usual(scene: Scene) -> float:
    """Seconds that such a generation takes while nothing is wrong."""
    heard = await scene.callers.ask(scene.wishes(1, steps=_STEPS)[0], ONE)
    scene.sheet.tell("usual generation", heard.seconds, "s")
    return heard.seconds


@case(
    "I2",
    fault="the worker of a run hangs (SIGSTOP)",
    promise="it is given up when it misses three signs of life (15 s); then as I1",
)
async def hangs(scene: Scene) -> None:
    world, callers, sheet = scene.world, scene.callers, scene.sheet
    usual = await _usual(scene)
    (wish,) = scene.wishes(1, steps=_STEPS)
    generations = await counting(scene)
    running = [Running(scene, wish, gateway) for gateway in GATEWAYS]
    await asyncio.gather(*(each.until(early) for each in running))
    victim = await busy_worker(scene)
    with scene.during(f"{victim} hangs"):
        async with world.hung(victim):
            began = time.monotonic()
            heard = await everybody(running)
            last = max(each.ended for each in heard)
            bound = _SIGNS_OF_LIFE + _MOVE + _SLOWER * usual
            sheet.at_most("from the hang to the answer", last - began, round(bound, 1), "s")
            others = [
                await callers.ask(each, gateway) for each, gateway in zip(scene.wishes(4), GATEWAYS * 2, strict=True)
            ]
            sheet.exactly("answers while it hangs", sum(each.outcome != "failed" for each in others), 4)
    await world.healed()
    await world.until_at_rest()
    sheet.exactly("retries by callers", sum(each.retries for each in heard), 0)
    # The run itself twice; the others once, or twice where the one that hangs had taken them.
    sheet.at_most("generations", await generations.count(), 2 + 2 * len(others))
    scene.judge_answers()


@case(
    "I3",
    fault="workers are restarted one after the other (SIGTERM) under load",
    promise="no failed request, no lost generation: what runs ends, what waits moves",
)
async def restarted(scene: Scene) -> None:
    world, callers, sheet = scene.world, scene.callers, scene.sheet
    hot, count, made = await stored(scene, 4), scene.size(8, 4), []
    async with await loaded(scene, hot, clients=scene.size(4, 2)):
        for worker in WORKERS:
            wishes = scene.wishes(count, steps=_STEPS // 3)
            running = [Running(scene, wish, GATEWAYS[number % 2], stored=True) for number, wish in enumerate(wishes)]
            await asyncio.gather(*(each.until(lambda event: event.HasField("accepted")) for each in running))
            with scene.during(f"{worker} is restarted"):
                await world.restart(worker)
            heard = await everybody(running)
            made += wishes
            sheet.exactly(f"{worker}: of {count} results, durable", sum(each.durable for each in heard), count)
            await world.all_healthy()
    again = await callers.all(made, TWO)
    sheet.exactly(f"hits of {len(made)} afterwards", sum(each.outcome == "hit" for each in again), len(made))
    scene.judge_answers()
