"""L: the life of a deployment. It is brought up and renewed part by part, while callers are there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from reprise.v1 import common_pb2 as pb
from tests.chaos.case import Scene, case
from tests.chaos.cases.steps import BOTH_WAYS, Running, everybody, loaded, stored
from tests.chaos.clients import Heard
from tests.chaos.history import fault_of
from tests.chaos.world import GATEWAYS, OBJECTS, ONE, OURS, REDIS, TWO

_STEPS = 50  # of a generation that is under way while something goes and comes


@case(
    "L1 rolling",
    fault="every process in turn is told to end (SIGTERM) and started again, under load: gateways, workers, Redis, "
    "the object store",
    promise="no failed request, no lost generation: whatever was asked for meanwhile is stored, and asked again a hit; "
    "who asks while the object store is away has the result, and is told if it is not durable",
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
    """Who was told that a result is not durable may have it made again."""
    refused = [each for each in told if not each.durable]
    scene.sheet.tell(f"of {len(told)} results, not durable for want of the object store", len(refused))
    for each in refused:
        await scene.callers.ask(each.wish, ONE, stored=True, mode=pb.CachePolicy.MODE_REFRESH)
