"""S: what the object store does to us. Results last there; without it they are made and delivered all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import obstore
from obstore.store import S3Store

from cache.envelope import unseal
from cache.keys import Address, Key
from cache.record import Record
from reprise.v1 import common_pb2 as pb
from tests.chaos.case import CannotBeHad, Scene, case
from tests.chaos.cases.planting import Shelf, judge_planted, records_of
from tests.chaos.cases.steps import counting, judge_waits, stored
from tests.chaos.clients import Heard
from tests.chaos.history import fault_of
from tests.chaos.proxy import Fault
from tests.chaos.world import GATEWAYS, OBJECTS, ONE, TWO, until

BUDGET = 500.0  # ms until the first byte of a look


@case(
    "S1 hang",
    fault="the object store hangs (SIGSTOP), Redis is empty",
    promise="0.5 s more for each look of the first answers, then nothing but a probe a second; results are delivered",
)
async def hangs(scene: Scene) -> None:
    await _without_store(scene, "the store hangs", scene.world.hung(OBJECTS))


@case(
    "S1 down",
    fault="the object store is killed, Redis is empty",
    promise="as S1 hang, without the half second",
)
async def down(scene: Scene) -> None:
    await _without_store(scene, "the store is gone", scene.world.gone(OBJECTS))


@case(
    "S1 503",
    fault="the object store answers 503 to everything, Redis is empty",
    promise="as S1 down",
    share=True,
)
async def refuses(scene: Scene) -> None:
    links = scene.world.links.named(OBJECTS)
    await _without_store(scene, "503", scene.world.broken(links, Fault(status=503)))


async def _without_store(scene: Scene, what: str, fault: AbstractAsyncContextManager[None]) -> None:
    world, callers = scene.world, scene.callers
    count = scene.size(16, 6)
    async with world.without_memory():
        await world.forget_redis()
        await stored(scene, 1)  # the encodings of the picture
        usual = await callers.all(scene.wishes(scene.size(8, 4)), ONE)
        await world.until_at_rest()
        await world.forget_redis()
        generations = await counting(scene)
        with scene.during(what):
            async with fault:
                heard = await callers.all(scene.wishes(count), ONE)
                opened = (await world.metrics(ONE))["reprise_cache_breaker_open", "l3"]
        scene.judge_answers(heard)
        scene.sheet.exactly(f"generations of {count}", await generations.count(), count)
        free = sum(each.lookups.get("l3") == "skipped" for each in heard)
        scene.sheet.at_least("answers that did not wait for the store any more", free, 1)
        scene.sheet.exactly("breaker open, as the metric says", int(opened), 1)
        # A miss looks for its result, at the gateway, and for its encodings, at the worker, whose breaker is its own.
        judge_waits(scene, heard, usual, "l3", before=6 * BUDGET, after=BUDGET, what="miss", paying=None)
        took = await until(lambda: _takes_writes(scene))
        scene.sheet.at_most("until results are durable again", took * 1000, 5000, "ms")
        await world.healed()


@case(
    "S2",
    fault="every answer of the object store breaks off in the middle",
    promise="a miss; never a part of an artifact; one generation each",
    share=True,
)
async def truncates(scene: Scene) -> None:
    await _unreadable(scene, "answers break off", Fault(halve=True))


@case(
    "S3",
    fault="bits turn on the way from the object store; stored objects are torn, pickles, others' values",
    promise="a miss each, counted, removed and made anew",
)
async def corrupts(scene: Scene) -> None:
    await _unreadable(scene, "bits turn", Fault(flip=300))
    world = scene.world
    async with world.without_memory():
        hot = await stored(scene, scene.size(4, 2))
        with scene.during("planted"):
            await judge_planted(scene, _shelf(scene), hot)
    scene.judge_answers()


async def _unreadable(scene: Scene, what: str, fault: Fault) -> None:
    """Each is asked for twice while nothing can be read from the store, and Redis is empty."""
    world, callers = scene.world, scene.callers
    count = scene.size(8, 3)
    links = world.links.named(OBJECTS)
    async with world.without_memory():
        hot = await stored(scene, count)
        await world.forget_redis()
        generations = await counting(scene)
        before = await asyncio.to_thread(world.links.counts)
        with scene.during(what):
            async with world.broken(links, fault):
                heard = [*await callers.all(hot, ONE), *await callers.all(hot, TWO)]
        after = await asyncio.to_thread(world.links.counts)
        await world.healed()
        scene.judge_answers(heard)
        broken = sum(after[link].broken - before[link].broken for link in links)
        scene.sheet.at_least("answers of the store that were broken", broken, 1)
        scene.sheet.at_most(f"generations of {count}", await generations.count(), count)


def _shelf(scene: Scene) -> Shelf:
    store = scene.world.store()

    async def get(key: Key) -> bytes | None:
        try:
            return bytes(await (await obstore.get_async(store, str(key))).bytes_async())
        except FileNotFoundError:
            return None

    async def put(key: Key, value: bytes) -> object:
        return await obstore.put_async(store, str(key), value)

    return Shelf(pb.TIER_L3, get, put, scene.world.forget_redis)


@case(
    "S4",
    fault="objects are missing that records in Redis and in the store name",
    promise="one generation, the record made good, no error",
    share=True,
)
async def lacks_objects(scene: Scene) -> None:
    world, callers, count = scene.world, scene.callers, scene.size(6, 3)
    async with world.without_memory():
        hot = await stored(scene, count)
        blobs = [str(each.blob) for each in (await records_of(scene, hot)).values()]
        generations = await counting(scene)
        with scene.during("objects are missing"):
            await obstore.delete_async(world.store(), blobs)
            async with world.redis() as redis:
                await redis.unlink(*blobs)
            first = [await callers.ask(wish, GATEWAYS[number % 2], stored=True) for number, wish in enumerate(hot)]
            scene.sheet.exactly(f"generations of {count} whose bytes were gone", await generations.count(), count)
        again = [*await callers.all(hot, ONE), *await callers.all(hot, TWO)]
    scene.judge_answers([*first, *again])
    scene.sheet.exactly("hits afterwards", sum(each.outcome == "hit" for each in again), 2 * count)
    there = [await _is_there(world.store(), blob) for blob in blobs]
    scene.sheet.exactly("objects that are there again", sum(there), count)


async def _is_there(store: S3Store, name: str) -> bool:
    try:
        await obstore.head_async(store, name)
    except FileNotFoundError:
        return False
    return True


@case(
    "S5",
    fault="the object store's disk is full: PUT fails after the generation, reads go on",
    promise="the caller gets the result and is told that it is not stored; no record without its bytes; reads go on",
)
async def disk_full(scene: Scene) -> None:
    world, callers, disks = scene.world, scene.callers, scene.world.disks
    if disks is None:
        raise CannotBeHad("file systems of its own (unshare and mount)")
    count = scene.size(8, 3)
    async with world.without_memory():
        hot = await stored(scene, 6)
        generations = await counting(scene)
        with scene.during("the disk is full"):
            await asyncio.to_thread(disks.fill, world.disk(OBJECTS))
            cold = await callers.at_once(scene.wishes(count), ONE, stored=True)
            await world.forget_redis()
            hits = await callers.all(hot, ONE)
            dangling = await _without_bytes(world.store(), cold)
            lost = [each for each in cold if each.durable and await fault_of(world.store(), each.address, each.digest)]
            await asyncio.to_thread(disks.empty, world.disk(OBJECTS))
        scene.judge_answers([*cold, *hits])
        scene.sheet.exactly(f"generations of {count}", await generations.count(), count)
        # A block that was begun may have room for one more.
        scene.sheet.at_least("results that were not called durable", sum(not each.durable for each in cold), 1)
        scene.sheet.exactly("results that were called durable and are not", len(lost), 0)
        scene.sheet.exactly(f"records without their bytes, of {count}", dangling, 0)
        scene.sheet.exactly("hits of what is stored", sum(each.outcome == "hit" for each in hits), len(hot))
        await world.healed()
        await until(lambda: _takes_writes(scene))
        again = await callers.all(scene.wishes(2), ONE, stored=True)
        scene.sheet.exactly("durable again, of 2", sum(each.durable for each in again), 2)


async def _takes_writes(scene: Scene) -> bool:
    return (await scene.callers.ask(scene.wishes(1)[0], ONE, stored=True)).durable


async def _without_bytes(store: S3Store, heard: Sequence[Heard]) -> int:
    """How many of these have a record whose bytes are not there."""
    found = 0
    for each in heard:
        key = Key.of_record(Address.parse(each.address))
        try:
            stored = bytes(await (await obstore.get_async(store, str(key))).bytes_async())
        except FileNotFoundError:
            continue
        record = Record.from_bytes(unseal(key, stored))
        blob = Key.of_blob(key.namespace, record.output.digest)
        found += record.output.inline is None and not await _is_there(store, str(blob))
    return found
