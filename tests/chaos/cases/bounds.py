"""B and M1: how much there may be of everything, for ever. Memory has bounds that hold whatever comes."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from blake3 import blake3

from cache.news import News
from gateway.client import Client
from gateway.status import explain_error
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import AnimateImageRequest
from tests.bench.large import stubs
from tests.bench.rig import serving
from tests.chaos.case import Scene, case
from tests.chaos.clients import photo
from tests.chaos.limits import MemoryLimit, NoLimits, resident_peak

MIB = 1024 * 1024
_LIMIT = 400 * MIB
_FILE = 8 * MIB
_CALLERS, _SLOW = 8, 2
_SMALL = {  # what a gateway of so little memory is configured to
    "REPRISE_CACHE__L1__MAX_BYTES": str(48 * MIB),
    "REPRISE_CACHE__WRITE_BEHIND__MAX_BYTES": str(32 * MIB),
    "REPRISE_GATEWAY__LINGER_BYTES": str(16 * MIB),
    "REPRISE_GATEWAY__MAX_UNSTORED_BYTES": str(48 * MIB),
    "REPRISE_GATEWAY__MAX_DEPARTING_BYTES": str(32 * MIB),
}
_GREEDY = {  # what it had better not be configured to
    "REPRISE_CACHE__L1__MAX_BYTES": str(2048 * MIB),
    "REPRISE_CACHE__L1__MAX_ENTRIES": "10000",
}


@case(
    "B1 keys",
    fault="a million different requests, of as many callers, with as many pictures",
    promise="memory, its ghosts, what is known to be absent, history and looks stay within their bounds",
    share=True,
)
async def many_keys(scene: Scene) -> None:
    sheet, count = scene.sheet, scene.size(1_000_000, 10_000)
    remembering = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos.keys", str(count)), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await remembering.communicate()
    found = json.loads(told)
    sheet.tell("entries in memory", found["entries"])
    sheet.at_most("bytes in memory", found["bytes"], found["max_bytes"])
    sheet.at_most("looks of pictures", found["looks"], found["max_looks"])
    sheet.at_least("looks of pictures, as many as fit", found["looks"], min(count, found["max_looks"]) * 0.9)
    grown = (found["resident"] - found["resident_half"]) / MIB
    if scene.full:  # by then everything is full
        sheet.at_most("MiB that the second half added", grown, 64)
    sheet.tell("MiB resident", found["resident"] / MIB)


@case(
    "B2 large files",
    fault="a gateway of 400 MiB: 2 GiB of different files of 8 MiB, made, and read again from the object store, "
    "by 8 callers at once, of whom 2 stand still again and again",
    promise="it stays within its memory; nobody fails, and every file is right",
    share=True,
)
async def large_files(scene: Scene) -> None:
    sheet, count = scene.sheet, scene.size(250, 30)
    with ExitStack() as ending:
        limit = None
        try:
            limit = ending.enter_context(MemoryLimit(_LIMIT))
        except NoLimits as lack:
            sheet.tell("no limit by the kernel, only what it has counted", str(lack))
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="reprise-chaos-")))
        up = ending.enter_context(
            serving(
                folder,
                gateways=["gateway"],
                step_seconds=0.0,
                environment={"gateway": _SMALL},
                commands={"gateway": limit.command} if limit else {},
            )
        )
        pid = up.gateways.part("gateway").pid
        readers = _Readers()
        async with stubs(up.addresses[0], _CALLERS) as many:
            await readers.share_out(many, count)
            await readers.share_out(many, count)  # they come from the object store now
        sheet.exactly("failed requests", ", ".join(sorted(readers.failed)) or "none", "none")
        sheet.tell("told to ask again because they stood still", readers.sent_away)
        sheet.exactly("wrong files, also when asked again", readers.wrong, 0)
        sheet.exactly("different files", len(set(readers.digests.values())), count)
        if limit:
            sheet.exactly("kills by the kernel", limit.kills, 0)
            sheet.tell("MiB charged at its peak", limit.peak / MIB)
        sheet.at_most("MiB resident at its peak", resident_peak(pid) / MIB, _LIMIT / MIB)


@case(
    "M1 memory pressure",
    fault="a gateway of 400 MiB whose L1 alone may have 2 GiB: hits of different files of 8 MiB until it would be full",
    promise="it is not killed: L1 gives way; nobody who asks for a hit fails, and it is as before afterwards",
    share=True,
)
async def memory_pressure(scene: Scene) -> None:
    sheet, count = scene.sheet, scene.size(250, 50)  # the share is as large as all its memory
    with ExitStack() as ending:
        limit, environment = None, {**_SMALL, **_GREEDY}
        try:
            limit = ending.enter_context(MemoryLimit(_LIMIT))
        except NoLimits as lack:
            sheet.tell("no limit by the kernel, but by the setting", str(lack))
            environment["REPRISE_GATEWAY__MAX_MEMORY_BYTES"] = str(_LIMIT)
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="reprise-chaos-")))
        up = ending.enter_context(
            serving(
                folder,
                gateways=["maker", "gateway"],
                step_seconds=0.0,
                environment={"gateway": environment},
                commands={"gateway": limit.command} if limit else {},
            )
        )
        pid = up.gateways.part("gateway").pid
        readers = _Readers()
        readers.digests = await _made(up.addresses[0], count)
        async with stubs(up.addresses[1], _CALLERS) as many, Client(up.addresses[1]) as client:
            for _ in range(2):
                await readers.share_out(many, count)
            told = await client.stats()
            again = [await client.animate(_wish(0)) for _ in range(2)]
            new = await client.animate(_wish(count))
        sheet.exactly("failed hits", ", ".join(sorted(readers.failed)) or "none", "none")
        sheet.exactly("wrong files", readers.wrong, 0)
        sheet.exactly("generations for what is cached", told.generations, 0)
        (l1,) = (tier for tier in told.tiers if tier.tier == pb.TIER_L1)
        sheet.at_least("entries that L1 gave up", l1.evictions, 1)
        sheet.tell("MiB that are left in it", l1.bytes / MIB)
        sheet.exactly("afterwards a hit is one of L1", again[1].report.tier == pb.TIER_L1, promised=True)
        sheet.exactly("and a miss is made", new.report.outcome == pb.OUTCOME_MISS, promised=True)
        if limit:
            sheet.exactly("kills by the kernel", limit.kills, 0)
            sheet.tell("MiB charged at its peak", limit.peak / MIB)
        sheet.tell("MiB resident at its peak", resident_peak(pid) / MIB)  # the programs' own files among them


async def _made(address: str, count: int) -> dict[int, str]:
    """So many files in the object store: their digests."""
    digests, numbers = dict[int, str](), iter(range(count))

    async def make(client: Client) -> None:
        for number in numbers:
            made = await client.animate(_wish(number))
            await client.until_stored(made)
            digests[number] = made.result.artifact.hex

    async with Client(address) as client:
        await asyncio.gather(*(make(client) for _ in range(_CALLERS)))
    return digests


def _wish(number: int) -> AnimateImageRequest:
    request = AnimateImageRequest(image=photo(0), prompt=f"file {number}")
    request.extra["size"].CopyFrom(pb.ParameterValue(int_value=_FILE))
    return request


class _Readers:
    """Callers who share out files. The slow ones stop in the middle of each until others have had two more. Where that
    takes long and somebody waits for the room, they may be told to ask again, and do.
    """

    def __init__(self) -> None:
        self.digests: dict[int, str] = {}  # of what came first, by file
        self.failed: list[str] = []
        self.wrong = 0
        self.sent_away = 0
        self._had = 0
        self._quick = 0  # who still reads
        self._news = News()

    async def share_out(self, stubs: Sequence[Any], count: int) -> None:
        """All at once, each the next of so many files as soon as it has had one."""
        numbers, self._quick = iter(range(count)), len(stubs) - _SLOW
        await asyncio.gather(*(self._read(stub, numbers, slow=place < _SLOW) for place, stub in enumerate(stubs)))

    async def _read(self, stub: Any, numbers: Iterable[int], *, slow: bool) -> None:
        for number in numbers:
            try:
                if not await self._file(stub, number, slow=slow):
                    self.sent_away += 1
                    assert await self._file(stub, number, slow=False)
            except grpc.aio.AioRpcError as error:
                self.failed.append(error.code().name)
            self._had += 1
            self._news.announce()
        self._quick -= not slow
        self._news.announce()

    async def _file(self, stub: Any, number: int, *, slow: bool) -> bool:
        """Whether it came, to a slow one too."""
        data, named, stood_still = blake3(), "", False
        try:
            async for response in stub.AnimateImage(_wish(number)):
                event = response.event
                data.update(event.chunk.data)
                named = event.result.artifact.hex or named
                if slow and not stood_still and event.HasField("chunk"):
                    stood_still = True
                    await self._others(2)
        except grpc.aio.AioRpcError as error:
            if stood_still and explain_error(error).reason == "GATEWAY_BUSY":
                return False
            raise
        digest = data.hexdigest()
        self.wrong += not digest == named == self.digests.setdefault(number, digest)
        return True

    async def _others(self, more: int) -> None:
        wanted = self._had + more
        while self._had < wanted and self._quick:
            await self._news.wait()
