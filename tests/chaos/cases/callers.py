"""C, H, M, N: what callers do to us, crowds of them, large files, and a network that is cut in two."""

from __future__ import annotations

import asyncio
import io
import random
import sys
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import DownloadRequest, DownloadResponse
from reprise.v1.media_pb2_grpc import MediaServiceStub
from tests.chaos.case import Scene, case
from tests.chaos.cases.steps import Running, busy_worker, counting, early, stored
from tests.chaos.proxy import Fault
from tests.chaos.world import GATEWAYS, ONE, OURS, REDIS, TWO, WORKERS

MIB = 1024 * 1024


@case(
    "C1",
    fault="half of the callers leave, at random moments; then the only one of a run that has the device",
    promise="those who stay are served; nothing is left behind; a run that nobody waits for ends and is stored",
    share=True,
)
async def leave(scene: Scene) -> None:
    world, callers, sheet = scene.world, scene.callers, scene.sheet
    crowd, wishes = scene.size(2000, 100), scene.wishes(scene.size(40, 5))
    # A crowd of which nobody leaves: all connections are made.
    usual = scene.wishes(len(wishes))
    await asyncio.gather(*(callers.ask(usual[n % len(usual)], GATEWAYS[n // len(usual) % 2]) for n in range(crowd)))
    await world.until_at_rest()
    before = {name: world.resources(name) for name in OURS}
    generations, chance = await counting(scene), random.Random("leave")
    asking = [
        asyncio.create_task(callers.ask(wishes[number % len(wishes)], GATEWAYS[number // len(wishes) % 2]))
        for number in range(crowd)
    ]
    with scene.during("callers leave"):
        leaving = sorted((chance.uniform(0.0, scene.size(6, 2)), number) for number in range(0, crowd, 2))
        began = time.monotonic()
        for moment, number in leaving:
            await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
            asking[number].cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    left = sum(each.outcome == "left" for each in callers.log)
    sheet.at_least("callers who left", left, 1)
    failed = [each for each in callers.log if each.outcome == "failed"]
    sheet.exactly("failed requests of those who stayed", len(failed), 0)
    sheet.exactly("wrong answers", sum(bool(each.wrong) for each in callers.log), 0)
    await world.until_at_rest()
    sheet.at_most(f"generations of {len(wishes)}", await generations.count(), len(wishes))
    (alone,) = scene.wishes(1, steps=scene.size(100, 40))
    only = Running(scene, alone, ONE)
    await only.until(early)
    only.task.cancel()
    await asyncio.gather(only.task, return_exceptions=True)
    await world.until_at_rest()
    found = await callers.ask(alone, TWO)
    await world.until_at_rest()  # what it found below goes up behind it
    sheet.exactly("a run that nobody waited for: found afterwards", found.outcome == "hit", promised=True)
    waiting = [status for worker in WORKERS if (status := await world.status(worker)) is not None]
    sheet.exactly("runs left behind", sum(status.queued + status.busy for status in waiting), 0)
    unwritten = [(await world.stats(gateway)).write_behind.entries for gateway in GATEWAYS]
    sheet.exactly("writes left behind", sum(unwritten), 0)
    more = {name: world.resources(name).files - before[name].files for name in OURS}
    # Pools of connections may be fuller than before, and are bounded; of those who left there are more than that.
    sheet.at_most(f"connections and files more than before ({more})", max(more.values()), 40)


@case(
    "C2",
    fault="50 callers read the first MiB of 15 and then nothing",
    promise="at most 1 MiB of memory for each; others are served meanwhile",
)
async def read_slowly(scene: Scene) -> None:
    world, callers, sheet = scene.world, scene.callers, scene.sheet
    count, size = scene.size(50, 10), 15 * MIB
    (hot,) = await stored(scene, 1)
    await world.restart(ONE)  # so that what it holds is what is asked of it now
    await world.all_healthy()
    await callers.reconnect()
    await callers.ask(hot, ONE)
    file = (await callers.client(ONE).upload(await asyncio.to_thread(large_picture, size))).digest
    await callers.client(ONE).download(file)  # it is in memory, once
    async with AsyncExitStack() as readers:
        with scene.during("they read no more"):
            await _stalled(scene, readers, file, count)  # what memory is free already is used up by these
            before = await _settled(scene)
            await _stalled(scene, readers, file, count)
            heard = await callers.all([hot] * 20, ONE)
            held = (await _settled(scene) - before) / MIB
    scene.judge_answers(heard)
    sheet.at_most(f"MiB of memory for each of {count}", held / count, 1.0)
    sheet.exactly("hits of others meanwhile", sum(each.outcome == "hit" for each in heard), 20)


async def _settled(scene: Scene) -> int:
    """Resident bytes of the first gateway, once they have stayed the same for a while."""
    await scene.world.until_at_rest()
    known, same = scene.world.resources(ONE).bytes, 0
    while same < 10:
        await asyncio.sleep(0.1)
        now = scene.world.resources(ONE).bytes
        known, same = now, same + 1 if abs(now - known) < MIB else 0
    return known


async def _stalled(scene: Scene, readers: AsyncExitStack, file: pb.Digest, count: int) -> None:
    """Callers who read the first MiB of a file and then nothing, until `readers` ends."""
    for _ in range(count):
        channel = await readers.enter_async_context(
            grpc.aio.insecure_channel(scene.world.door(ONE), options=(("grpc.use_local_subchannel_pool", 1),))
        )
        reading = MediaServiceStub(channel).Download(DownloadRequest(artifact=file))
        readers.callback(reading.cancel)
        read = 0
        while read < MIB:
            message = await reading.read()
            assert isinstance(message, DownloadResponse)
            read += len(message.chunk.data)


@case(
    "C3",
    fault="callers whose deadlines are shorter than the generation takes (1 ms to 300 ms)",
    promise="DEADLINE_EXCEEDED in time, and nothing is begun for them: what such work takes is known",
)
async def are_in_a_hurry(scene: Scene) -> None:
    callers, sheet = scene.callers, scene.sheet
    known, wish = scene.wishes(2, steps=150)
    await callers.ask(known, ONE)
    generations, began = await counting(scene), time.monotonic()
    with scene.during("deadlines too short"):
        heard = await asyncio.gather(
            *(callers.ask(wish, ONE, deadline=seconds) for seconds in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3))
        )
    took = time.monotonic() - began
    codes = {each.problem.code.name if each.problem else each.outcome for each in heard}
    sheet.exactly("all were told so", codes == {"DEADLINE_EXCEEDED"}, promised=True)
    sheet.at_most("the last one knew", took * 1000, 1500, "ms")
    await scene.world.until_at_rest()
    sheet.exactly("generations that were begun for them", await generations.count(), 0)
    again = await callers.ask(wish, TWO)
    sheet.exactly("who has the time gets it", again.outcome, "miss")
    sheet.exactly("wrong answers", sum(bool(each.wrong) for each in callers.log), 0)


@case(
    "H1",
    fault="1,000 identical requests at once, cold, through both gateways",
    promise="one generation, 1,000 equal answers",
    share=True,
)
async def crowd(scene: Scene) -> None:
    await _crowd(scene, nullcontext())


@case("H1 without Redis", fault="1,000 identical requests at once, cold, Redis killed", promise="as H1")
async def crowd_without_redis(scene: Scene) -> None:
    await _crowd(scene, scene.world.gone(REDIS))


async def _crowd(scene: Scene, fault: AbstractAsyncContextManager[None]) -> None:
    count, callers = scene.size(1000, 200), scene.callers
    (wish,) = scene.wishes(1)
    generations, began = await counting(scene), time.monotonic()
    with scene.during("a crowd"):
        async with fault:
            began = time.monotonic()
            heard = await asyncio.gather(*(callers.ask(wish, GATEWAYS[number % 2]) for number in range(count)))
            took = time.monotonic() - began
            made = await generations.count()
    scene.judge_answers(heard)
    scene.sheet.exactly(f"generations of {count}", made, 1)
    scene.sheet.exactly("different answers", len({each.digest for each in heard}), 1)
    scene.sheet.tell("the last one had it after", took, "s")


@case(
    "M4",
    fault="twenty pictures of 20 million pixels are hashed and decoded at once",
    promise="the loop stands still for less than 500 ms: health checks are answered all the time",
)
async def large_files(scene: Scene) -> None:
    world, sheet, count = scene.world, scene.sheet, scene.size(20, 4)
    file = world.stack.data / "large"
    file.write_bytes(await asyncio.to_thread(large_picture, 15 * MIB))
    with scene.during("large pictures"):
        # In a process of its own, because sending them keeps a loop busy, and here a loop is watched.
        sending = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.sender", world.door(ONE), str(file), str(count)),
            stdout=asyncio.subprocess.PIPE,
        )
        waits = []
        async with grpc.aio.insecure_channel(world.door(ONE)) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            told = asyncio.create_task(sending.communicate())
            while not told.done():
                began = time.monotonic()
                await health.Check(health_pb2.HealthCheckRequest(), timeout=30.0)
                waits.append(time.monotonic() - began)
                await asyncio.sleep(0.02)
        taken, _ = await told
    sheet.exactly(f"pictures of {count} that were looked for", int(taken or b"0"), count)
    sheet.tell("megabytes uploaded", count * file.stat().st_size / 1e6)
    sheet.tell("health checks answered meanwhile", len(waits))
    sheet.at_most("longest wait for one", max(waits) * 1000, 500, "ms")


def large_picture(size: int) -> bytes:
    """A JPEG of 20 million pixels and about so many bytes; noise in its blocks makes it that large."""
    noise = np.random.default_rng(4).integers(0, 256, (4000, 5000), dtype=np.uint8)
    for quality in (90, 85, 80, 75, 70, 60, 50, 40, 30, 20):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= size:
            return buffer.getvalue()
    raise AssertionError("noise is too large")


@case(
    "N1",
    fault="one gateway cannot reach Redis, nor the worker where equal requests meet; the other one can",
    promise="no failed request; at most one generation on each side; one digest for each address",
)
async def cut_in_two(scene: Scene) -> None:
    world, callers, sheet = scene.world, scene.callers, scene.sheet
    hot = await stored(scene, 2)
    probe = Running(scene, scene.wishes(1, steps=100)[0], ONE)
    await probe.until(early)
    home = await busy_worker(scene)
    await probe.task
    count = scene.size(6, 3)
    links = [f"{ONE} to {REDIS}", f"{ONE} to {home}"]
    generations, known = await counting(scene), len(callers.log)
    with scene.during("cut in two"):
        async with world.broken(links, Fault(hang=True)):
            cold = scene.wishes(count)
            await asyncio.gather(
                *(callers.ask(wish, gateway) for wish in cold for gateway in GATEWAYS),
                *(callers.ask(wish, gateway) for wish in hot for gateway in GATEWAYS),
            )
    heard = callers.log[known:]
    await world.healed()
    await world.until_at_rest()
    scene.judge_answers(heard)
    sheet.tell("longest answer", max(each.seconds for each in heard), "s")
    sheet.at_most(f"generations of {count} on two sides", await generations.count(), 2 * count)
    digests: dict[str, set[str]] = {}
    for each in heard:
        digests.setdefault(each.address, set()).add(each.digest)
    sheet.exactly("addresses with two digests", sum(len(each) > 1 for each in digests.values()), 0)
