"""I5: a request that workers die of. It takes two with it, and nobody else with them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

from gateway.stack import Part, Stack
from tests.chaos.beside import beside, one_more
from tests.chaos.case import Scene, case
from tests.chaos.clients import Callers, Heard, Oracle
from tests.chaos.poisoned import SEED
from tests.chaos.world import ONE, TWO, WORKERS, until

_GATEWAYS = ("gateway-a", "gateway-b")
_ENOUGH = 2  # workers that may die of it


@case(
    "I5",
    fault="a request that aborts the worker which runs it, among others that wait, at three workers and two gateways; "
    "asked for again and again, at both, and at one that starts later",
    promise="two workers die and no more: its callers are told FAILED_PRECONDITION, at once from then on; nobody else "
    "fails, what waited beside it is made by whoever is left",
    share=True,
)
async def poison(scene: Scene) -> None:
    world, sheet = scene.world, scene.sheet
    (deadly,) = scene.wishes(1)
    harmless = scene.wishes(scene.size(12, 4))
    workers = [_poisoned(one_more(world, WORKERS[0], f"worker-{name}"), deadly.seed) for name in "abc"]
    told = {"REPRISE_GATEWAY__WORKERS": json.dumps([worker.address for worker in workers])}
    gateways = [one_more(world, like, name, environment=told) for like, name in zip((ONE, TWO), _GATEWAYS, strict=True)]
    late = one_more(world, ONE, "gateway-late", environment=told)
    async with beside(world, *workers, *gateways) as (stack, door), Callers(door, Oracle()) as callers:
        with scene.during("a request kills workers"):
            asking = [callers.ask(deadly, gateway) for gateway in _GATEWAYS]
            beside_it = [callers.ask(wish, _GATEWAYS[number % 2]) for number, wish in enumerate(harmless)]
            first, second, *others = await asyncio.gather(*asking, *beside_it)
            again = [await callers.ask(deadly, gateway) for gateway in _GATEWAYS * 2]
            async with beside(world, late) as (_, late_door), Callers(late_door, Oracle()) as latecomers:
                again.append(await latecomers.ask(deadly, late.name))
        sheet.exactly("workers that died", await _dead(stack, workers), _ENOUGH)
        sheet.exactly("what its callers were told", _told([first, second, *again]), "FAILED_PRECONDITION QUARANTINED")
        sheet.at_most("to be told so again", max(each.seconds for each in again) * 1000, 500, "ms")
        sheet.exactly("requests that it brought down beside it", sum(each.outcome == "failed" for each in others), 0)
        after = await callers.ask(replace(deadly, seed=next(scene.seeds)), _GATEWAYS[0])
        sheet.exactly("the same with another seed", after.outcome, "miss")
    scene.judge_answers([*others, after])


def _poisoned(worker: Part, seed: int) -> Part:
    at = worker.command.index("-m") + 1
    command = (*worker.command[:at], "tests.chaos.poisoned", *worker.command[at:])
    return replace(worker, command=command, environment={**worker.environment, SEED: str(seed)})


async def _dead(stack: Stack, workers: list[Part]) -> int:
    """How many are, once that does not change any more: a dying process writes its core first."""

    async def dead() -> bool:
        return sum(not stack.part(worker.name).alive() for worker in workers) >= _ENOUGH

    await until(dead)
    return sum(not stack.part(worker.name).alive() for worker in workers)


def _told(heard: list[Heard]) -> str:
    return ", ".join(sorted({f"{each.problem.code.name} {each.problem.reason}" for each in heard if each.problem}))
