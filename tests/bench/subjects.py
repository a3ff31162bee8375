"""What is measured: each subject is one way to ask, and the process whose processor time it is about.

Preparing a subject asks once and looks at the answer, so that a hit from a tier is one from that tier; while it is
measured, answers that are not of its kind are counted as strays.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from gateway.client import Client
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import AnimateImageRequest, AnimateImageResponse, Stored
from tests.bench.callers import Caller, RawObjects, RawRedis, RunRequests, Seeds
from tests.bench.load import Ask
from tests.bench.rig import GATEWAYS, Rig, with_floors
from tests.gateway.worker import family
from tests.gateway.world import ask as request_of
from tests.gateway.world import eventually, picture

KIB, MIB = 1024, 1024 * 1024
SIZES = (KIB, 64 * KIB, 512 * KIB, 2 * MIB, 20 * MIB)
LARGEST_IN_REDIS = 512 * KIB
MISSED = 64 * KIB  # size of what is generated
CROWD = 64
CLIENTS = (1, 16)
HERE = "here"  # the process that asks
_FEW = 4  # clients, where many would need gigabytes of buffers, or hide what is looked for


@dataclass(frozen=True)
class Subject:
    name: str
    size: int
    server: str  # whose processor time is counted: a part of the rig, or HERE
    ask: Ask
    clients: Sequence[int]
    turn: float = 1.0  # of the time that a turn lasts
    beside: Ask | None = None  # what other clients ask meanwhile
    others: int = 0


class Misplaced(Exception):
    """An answer did not come from where this rig should have it; the message says what was found."""


def clients_for(size: int) -> tuple[int, ...]:
    """One client for the latency of one answer, several for the cost of each."""
    return CLIENTS if size < MIB else (1, _FEW)


@asynccontextmanager
async def prepared(rig: Rig, data: Path, sizes: Sequence[int]) -> AsyncIterator[tuple[Rig, list[Subject]]]:
    """All subjects, every entry where it belongs. Raises Misplaced."""
    async with AsyncExitStack() as stack:
        callers = {name: await stack.enter_async_context(Caller(address)) for name, address in rig.addresses.items()}
        for name in GATEWAYS:
            await _sees_its_worker(rig.addresses[name])
        requests = {size: [_request(size, seed) for seed in range(max(clients_for(size)))] for size in sizes}
        recordings = {
            size: {request: await _placed(rig, callers, request, size) for request in requests[size]} for size in sizes
        }
        rig = stack.enter_context(with_floors(rig, data, recordings))
        for name in rig.addresses.keys() - callers.keys():
            callers[name] = await stack.enter_async_context(Caller(rig.addresses[name]))

        def hit(name: str, server: str, size: int) -> Subject:
            ask = _in_turn(callers[server], requests[size], len(recordings[size][requests[size][0]]))
            return Subject(name, size, server, ask, clients_for(size))

        in_redis = tuple(size for size in sizes if size <= LARGEST_IN_REDIS)
        redis = await stack.enter_async_context(RawRedis(rig.redis_url, in_redis))
        objects = RawObjects(rig.bucket)
        for size in sizes:
            await objects.put(size)
        subjects = []
        for size in sizes:
            subjects += [hit("bare", "bare", size), hit("L1", "gateway", size), hit("naive", f"naive-{size}", size)]
            subjects += [hit("L2" if size in in_redis else "L2+L3", "gateway-l2", size), hit("L3", "gateway-l3", size)]
            if size in in_redis:
                subjects.append(Subject("raw Redis", size, HERE, partial(redis.get, size), clients_for(size)))
            subjects.append(Subject("raw S3", size, HERE, partial(objects.get, size), clients_for(size)))
        subjects.append(hit("L1, traced 1 %", "gateway-traced", sizes[0]))
        subjects += await _with_large_picture(rig, callers["gateway"], min(MISSED, max(sizes)))
        subjects += _misses(rig, callers, requests[sizes[0]][0], sizes[0])
        yield rig, subjects


async def _sees_its_worker(address: str) -> None:
    async with Client(address) as client:
        await eventually(client.stats, wanted=lambda stats: any(worker.healthy for worker in stats.workers))


def _in_turn(caller: Caller, requests: Sequence[bytes], messages: int) -> Ask:
    """Ask for one after the other, so that clients who ask at the same time do not share a lookup."""
    turns = itertools.cycle(requests)

    async def ask() -> None:
        await caller.hit(next(turns), messages)

    return ask


async def _placed(rig: Rig, callers: Mapping[str, Caller], request: bytes, size: int) -> list[bytes]:
    """Have a file made, and every gateway answer with it from the tier it should. The messages of a hit from L1."""
    shared = pb.TIER_L2 if size <= LARGEST_IN_REDIS else pb.TIER_L3
    tiers = {"gateway": pb.TIER_L1, "gateway-traced": shared, "gateway-l2": shared, "gateway-l3": pb.TIER_L3}
    async with Client(rig.addresses["gateway"]) as client:
        made = await client.animate(AnimateImageRequest.FromString(request))
        if await client.until_stored(made) != Stored.STATE_DURABLE:
            raise Misplaced(f"{size} bytes were not stored")
    for name, tier in tiers.items():  # gateway-traced has it in L1 from then on
        last = AnimateImageResponse.FromString((await callers[name].messages(request))[-1])
        if last.event.result.report.tier != tier:
            raise Misplaced(f"{name} had {size} bytes from {pb.Tier.Name(last.event.result.report.tier)}")
    return await callers["gateway"].messages(request)


async def _with_large_picture(rig: Rig, gateway: Caller, size: int) -> list[Subject]:
    """The same hit, asked for with a picture of a megabyte and with the digest of one that was uploaded."""
    noise = io.BytesIO()
    Image.frombytes("RGB", (600, 600), os.urandom(600 * 600 * 3)).save(noise, "PNG")
    file = noise.getvalue()
    async with Client(rig.addresses["gateway"]) as client:
        uploaded = await client.upload(file)
    subjects = []
    for name, source in (("L1, 1 MB picture", {"image": file}), ("L1, by digest", {"image_digest": uploaded.digest})):
        request = request_of("a large picture", extra={"size": size}, **source).SerializeToString()
        await gateway.messages(request)
        count = len(await gateway.messages(request))
        subjects.append(Subject(name, size, "gateway", partial(gateway.hit, request, count), clients_for(size)))
    return subjects


def _misses(rig: Rig, callers: Mapping[str, Caller], cached: bytes, cached_size: int) -> list[Subject]:
    seeds, gateway, worker = Seeds(), callers["gateway"], callers["worker"]
    runs = RunRequests(
        family(), rig.cache.secret_bytes, picture(), {"prompt": _PROMPT, "num_inference_steps": 1, "size": MISSED}
    )

    async def run() -> None:
        await worker.run(runs.with_seed(seeds.next()))

    async def miss() -> None:
        await gateway.miss(_request(MISSED, seeds.next()))

    async def crowd() -> None:
        await gateway.crowd(_request(MISSED, seeds.next()), CROWD)

    idle = partial(gateway.hit, cached, 1)
    return [
        Subject("L1, idle", cached_size, "gateway", idle, (_FEW,)),
        Subject("generation", MISSED, "worker", run, (1,), turn=2.0),
        Subject("miss", MISSED, "gateway", miss, (1,), turn=2.0),
        Subject(f"{CROWD} at once", MISSED, "gateway", crowd, (1,)),
        Subject("L1, beside misses", cached_size, "gateway", idle, (_FEW,), beside=miss, others=_FEW),
    ]


_PROMPT = "a cat"


def _request(size: int, seed: int = 1) -> bytes:
    """A request for a file of this size, with one step that lasts."""
    return request_of(_PROMPT, seed=seed, num_inference_steps=1, extra={"size": size}).SerializeToString()
