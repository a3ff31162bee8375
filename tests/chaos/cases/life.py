"""L: the life of a deployment. It is brought up and renewed part by part, while callers are there."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import obstore

from gateway.stack import Part
from tests.chaos.beside import Door, beside, one_more
from tests.chaos.case import Scene, case
from tests.chaos.cases.steps import BOTH_WAYS, Running, everybody, loaded, stored
from tests.chaos.clients import Callers, Heard, Oracle
from tests.chaos.history import fault_of
from tests.chaos.world import GATEWAYS, OBJECTS, ONE, OURS, REDIS, TWO, WORKERS, World, until

_STEPS = 50  # of a generation that is under way while something goes and comes


@case(
    "L1 rolling",
    fault="every process in turn is told to end (SIGTERM) and started again, under load: gateways, workers, Redis, "
    "the object store",
    promise="no failed request, no lost generation: whatever was asked for meanwhile is stored, and asked again a hit; "
    "who asks while the object store is away has the result, is told if it is not durable, and who asks again has it "
    "stored",
    share=True,
)
async def rolling(scene: Scene) -> None:
    world, callers, sheet = scene.world, scene.callers, scene.sheet
    hot, count, heard = await stored(scene, 4), scene.size(4, 2), list[Heard]()
    async with await loaded(scene, hot, clients=scene.size(4, 2)):
        for name in (*OURS, REDIS, OBJECTS) if scene.full else (TWO, REDIS):
            wishes = scene.wishes(count, steps=scene.size(_STEPS, _STEPS // 5))
            running = [Running(scene, wish, *BOTH_WAYS[number % 2], stored=True) for number, wish in enumerate(wishes)]
            await asyncio.gather(*(each.until(lambda event: event.HasField("accepted")) for each in running))
            with scene.during(f"{name} is restarted"):
                await world.restart(name)
            told = await everybody(running)
            await world.all_healthy()
            heard += told
            if name == OBJECTS:
                await _make_good(scene, told)
    await callers.reconnect()
    again = [await callers.ask(each.wish, gateway) for each in heard for gateway in GATEWAYS]
    found = sum(each.outcome == "hit" for each in again)
    sheet.exactly(f"hits of {len(again)} afterwards, through both gateways", found, len(again))
    lost = [fault for each in heard if (fault := await fault_of(world.store(), each.address, each.digest))]
    sheet.exactly(f"of {len(heard)} results, not in the object store", len(lost), 0)
    scene.judge_answers()


async def _make_good(scene: Scene, told: Sequence[Heard]) -> None:
    """Who was told that a result is not durable asks for it again, until that is stored and said."""
    refused = [each for each in told if not each.durable]
    scene.sheet.tell(f"of {len(told)} results, not durable for want of the object store", len(refused))

    async def durable() -> bool:
        heard = [await scene.callers.ask(each.wish, ONE, stored=True) for each in refused]
        return all(each.durable for each in heard)

    if refused:
        scene.sheet.at_most("until what was not durable is, by being asked for", await until(durable), 20.0, "s")


@case(
    "L2 missing",
    fault="gateways and workers are started while something is not there: the object store, both stores, all workers",
    promise="they start, serve what can be served, and say what is missing (breaker, statistics, doctor); "
    "it is used once it is there",
)
async def missing(scene: Scene) -> None:
    world = scene.world
    hot = await stored(scene, 2)
    await _without(scene, [OBJECTS], "the object store", {"objects"})
    await _without(scene, [OBJECTS, REDIS], "both stores", {"objects", "redis"})
    async with _without_workers(scene):
        told = [await scene.callers.ask(wish, gateway) for wish in hot for gateway in GATEWAYS]
        scene.sheet.exactly("all workers: hits of what is stored", _count(told, "hit"), len(told))
        sick = sum(not worker.healthy for worker in (await world.stats(ONE)).workers)
        scene.sheet.exactly("all workers: not healthy in the statistics", sick, len(WORKERS))
        found = {name.partition(" ")[0] for name in await _failing(world)}
        scene.sheet.exactly("all workers: doctor says it of", ", ".join(sorted(found)), "worker")
        # Somebody waits for a video that nobody can make, until there is a worker.
        (wish,) = scene.wishes(1)
        waiting = Running(scene, wish, ONE, TWO, stored=True)
    heard = await waiting.task
    scene.sheet.exactly("all workers: who waited has a result", heard.outcome != "failed", promised=True)
    scene.judge_answers()


@asynccontextmanager
async def _without_workers(scene: Scene) -> AsyncIterator[None]:
    """Gateways are started while no worker is there; at the end workers are."""
    world = scene.world
    with scene.during("all workers are missing"):
        for worker in WORKERS:
            await world.kill(worker)
        for gateway in GATEWAYS:
            await world.restart(gateway)
        yield
        for worker in WORKERS:
            await asyncio.to_thread(world.stack.start, worker)
    await world.all_healthy()


async def _without(scene: Scene, servers: Sequence[str], what: str, named: set[str]) -> None:
    """All of ours are started while these are not there."""
    world, callers, sheet = scene.world, scene.callers, scene.sheet
    with scene.during(f"{what} missing"):
        for server in servers:
            await world.kill(server)
        for name in OURS:
            await world.restart(name)
        await world.all_healthy()
        cold = scene.wishes(2)
        made = [await callers.ask(wish, gateway) for wish, gateway in zip(cold, GATEWAYS, strict=True)]
        again = [await callers.ask(wish, gateway) for wish, gateway in zip(cold, GATEWAYS, strict=True)]
        sheet.exactly(f"{what}: results made", _count(made, "failed"), 0)
        sheet.exactly(f"{what}: hits of them afterwards", _count(again, "hit"), 2)
        await callers.all(scene.wishes(8), ONE)  # until the breaker is open
        opened = (await world.metrics(ONE))["reprise_cache_breaker_open", "l3"]
        sheet.exactly(f"{what}: breaker open, as the metric says", int(opened), 1)
        found = {name.partition(" ")[0] for name in await _failing(world)}
        sheet.exactly(f"{what}: doctor says it of", ", ".join(sorted(found)), ", ".join(sorted(named)))
        for server in servers:
            await world.start(server)

    async def durable() -> bool:
        (wish,) = scene.wishes(1)
        return (await callers.ask(wish, ONE, stored=True)).durable

    sheet.at_most(f"{what}: until results are durable", await until(durable), 20.0, "s")
    await world.healed()


async def _failing(world: World) -> list[str]:
    """What doctor says is wrong."""
    part = world.parts[ONE]
    file = part.command[part.command.index("--config") + 1]
    asking = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", "doctor", "--config", file, "--json"),
        cwd=part.folder,
        env={**os.environ, **part.environment},
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await asking.communicate()
    return [each["name"] for each in json.loads(told) if each["state"] == "fail"]


OLDER, NEWER = "gateway-older", "gateway-newer"


@case(
    "L3 versions",
    fault="a gateway and a worker of another version (the number of all that is stored and told is another one) run "
    "beside those of this one, on the same stores, and both gateways know all workers",
    promise="neither takes what the other has left for its own, nor removes it; each has its own workers; no failed "
    "request, no wrong bytes",
    share=True,
)
async def versions(scene: Scene) -> None:
    world, callers, sheet, count = scene.world, scene.callers, scene.sheet, scene.size(8, 3)
    hot = await stored(scene, count)
    before = await _names(world)
    async with _beside(world) as door:
        # The other version's oracle is its own: it names the same bytes, by other addresses.
        async with Callers(door, Oracle()) as others:
            with scene.during("another version is there"):
                newer = [await others.ask(wish, NEWER, stored=True) for wish in hot]
                again = [await others.ask(wish, NEWER) for wish in hot]
                older = [await others.ask(wish, OLDER) for wish in hot]
                fresh = await others.all(scene.wishes(count), OLDER, stored=True)
                one = await callers.all(hot, ONE)
        first = {each.wish: each.digest for each in callers.log}
        sheet.exactly("misses of the newer one in what the older one stored", _count(newer, "miss"), count)
        sheet.exactly("hits of the newer one in what it stored itself", _count(again, "hit"), count)
        sheet.exactly("hits of the older ones in theirs", _count([*older, *one], "hit"), 2 * count)
        sheet.exactly("new ones that the older one had made, at workers of its own", _count(fresh, "miss"), count)
        same = sum(each.digest == first[each.wish] for each in (*newer, *again, *older))
        sheet.exactly(f"of {3 * count} answers, the same bytes", same, 3 * count)
        shared = {each.address for each in newer} & {each.address for each in (*older, *one)}
        sheet.exactly("addresses in common", len(shared), 0)
        sheet.exactly("entries of the older one, gone", len(before - await _names(world)), 0)
    scene.judge_answers([*callers.log, *others.log])


def _count(heard: Sequence[Heard], outcome: str) -> int:
    return sum(each.outcome == outcome for each in heard)


async def _names(world: World) -> set[str]:
    return {
        entry["path"]
        for prefix in ("r/", "b/", "models/")
        for page in obstore.list(world.store(), prefix)
        for entry in page
    }


@asynccontextmanager
async def _beside(world: World) -> AsyncIterator[Door]:
    """One more gateway of this version, a gateway and a worker of the next one; where the gateways are."""
    newer = one_more(world, WORKERS[0], "worker-newer")
    told = json.dumps([newer.address, *(f"unix:{worker}.sock" for worker in WORKERS)])
    gateways = [one_more(world, ONE, name, environment={"REPRISE_GATEWAY__WORKERS": told}) for name in (OLDER, NEWER)]
    async with beside(world, _of_another(newer), gateways[0], _of_another(gateways[1])) as (_, door):
        yield door


def _of_another(part: Part) -> Part:
    """The part, of another version."""
    at = part.command.index("-m") + 1
    return replace(part, command=(*part.command[:at], "tests.chaos.another", *part.command[at:]))
