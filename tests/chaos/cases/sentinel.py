"""R9: Redis fails over. A pair of servers and a sentinel of the case's own, and a gateway that asks the sentinel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from gateway.stack import Part, Stack, redis
from gateway.stack.ports import LOOPBACK, free_port
from gateway.stack.redis import find_server, password_file
from tests.chaos.beside import one_more
from tests.chaos.case import Scene, case
from tests.chaos.cases.steps import counting, stored
from tests.chaos.clients import Callers, Load
from tests.chaos.world import ONE, REDIS, World, until
from tests.servers import leashed

THIRD = "gateway-3"
_SENTINEL = """\
port {port}
bind {host}
dir {folder}
sentinel monitor cache {host} {master} 1
sentinel auth-user cache operator
sentinel auth-pass cache {password}
sentinel down-after-milliseconds cache 500
sentinel failover-timeout cache 3000
"""
_REPLICA = "\nreplicaof {host} {master}\n"
_LOGIN = "\nmasteruser operator\nmasterauth {password}\nrepl-diskless-sync-delay 0\n"


@case(
    "R9",
    fault="Redis fails over: the master is killed, a sentinel makes its replica the master, the old one comes back",
    promise="lookups are misses until the new one is known; what was lost comes from the object store; none fails",
)
async def fails_over(scene: Scene) -> None:
    sheet, count = scene.sheet, scene.size(6, 3)
    hot = await stored(scene, 4)
    async with _behind_sentinel(scene.world) as (stack, address):
        async with Callers(lambda *names: address, scene.callers.oracle) as callers:

            async def used() -> bool:
                return (await callers.ask(hot[0], THIRD)).lookups.get("l2") == "hit"

            await until(used)
            generations = await counting(scene)
            async with Load(callers, hot, [(THIRD,)], clients=4, pause=0.05):
                await asyncio.sleep(1.0)
                with scene.during("failover"):
                    began = time.monotonic()
                    await asyncio.to_thread(stack.part("redis-a").kill)
                    cold = await callers.at_once(scene.wishes(count), THIRD, stored=True)
                    await until(used)
                    took = time.monotonic() - began
                await asyncio.to_thread(stack.start, "redis-a")
                await asyncio.sleep(scene.size(3, 1))  # it becomes a replica, which takes no writes
                more = await callers.at_once(scene.wishes(count), THIRD, stored=True)
            again = [await callers.ask(each.wish, THIRD) for each in (*cold, *more)]
            made = await generations.count()
        scene.callers.log.extend(callers.log)
    scene.judge_answers()
    sheet.at_most("until Redis is used again", took, 15.0, "s")
    sheet.exactly(f"generations of {2 * count} cold ones", made, 2 * count)
    sheet.exactly("hits of them afterwards", sum(each.outcome == "hit" for each in again), 2 * count)


@asynccontextmanager
async def _behind_sentinel(world: World) -> AsyncIterator[tuple[Stack, str]]:
    """A pair, a sentinel and a gateway without memory of its own; the gateway's address."""
    data = world.stack.data / "sentinel"
    master, replica = _server(world, data, "redis-a"), _server(world, data, "redis-b")
    password = password_file(world.parts[REDIS].folder, "operator").read_text()
    for part in (master, replica):
        with (part.folder / "redis.conf").open("a") as settings:
            settings.write(_LOGIN.format(password=password))
    with (replica.folder / "redis.conf").open("a") as settings:
        settings.write(_REPLICA.format(host=LOOPBACK, master=master.port))
    port, file = free_port(), data / "sentinel.conf"
    file.write_text(_SENTINEL.format(port=port, host=LOOPBACK, folder=data, master=master.port, password=password))
    line = (str(find_server()), str(file), "--sentinel")
    sentinel = Part("sentinel", line, f"{LOOPBACK}:{port}", "redis", data / "sentinel.log", data)
    with leashed(data) as stack:
        where = {
            "REPRISE_CACHE__L1__ENABLED": "false",
            "REPRISE_CACHE__L2__URL": f"redis+sentinel://{sentinel.address}/0?service=cache",
        }
        gateway = one_more(world, ONE, THIRD, environment=where)
        await asyncio.to_thread(stack.up, [master, replica, sentinel, gateway])
        try:
            yield stack, gateway.address
        finally:
            await asyncio.to_thread(stack.part(THIRD).kill)
            await asyncio.to_thread(stack.down)


def _server(world: World, data: Path, name: str) -> Part:
    """A Redis with the users of the world's own."""
    folder = data / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in world.parts[REDIS].folder.glob("*.password"):
        (folder / file.name).write_text(file.read_text())
    return replace(redis.redis(free_port(), folder, data / f"{name}.log", users=True), name=name, grace=0.0)
