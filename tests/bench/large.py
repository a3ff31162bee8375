"""`python -m tests.bench.large`: what large media cost everybody else at a gateway.

Two questions. Twenty callers send pictures of 20 million pixels and 14 MB at once: how long does the gateway's event
loop stand still, and how long do health checks wait? Fifty readers take the first MiB of a file of 15 MiB and then
nothing: how much memory do they hold, and is a reader at full speed as fast as before?

The gateway is a process of its own with real tiers; the worker is the scripted one of the tests. Checks are made by a
process of their own, too: the callers here are busy themselves.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import grpc
import numpy as np
import psutil
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from rich.console import Console
from rich.table import Table

from gateway.stack.ports import free_port
from reprise.v1 import common_pb2 as pb
from reprise.v1 import media_pb2 as media
from reprise.v1.media_pb2_grpc import MediaServiceStub
from tests.bench.rig import serving

MIB = 1024 * 1024
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
_EVERY = 0.01  # seconds between two checks


class Waits(NamedTuple):
    """What others noticed of a crowd."""

    what: str
    seconds: float  # until the last one was answered
    refused: int
    checks: int
    longest_check: float  # seconds
    lag: str  # the bucket that the longest standstill is in


def photograph(size: tuple[int, int], quality: int) -> bytes:
    """A JPEG file that does not compress well."""
    grain = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grain).save(buffer, "JPEG", quality=quality, subsampling=2)
    return buffer.getvalue()


async def check(address: str, until: Path) -> None:
    """Ask for health until a file is gone, once at least, and tell how often and how long it took at most."""
    took: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while not took or until.exists():  # noqa: ASYNC240
            began = time.perf_counter()
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=60.0)
            took.append(time.perf_counter() - began)
            await asyncio.sleep(_EVERY)
    print(json.dumps({"checks": len(took), "longest": max(took)}))  # noqa: T201


@contextmanager
def probed(address: str, folder: Path) -> Iterator[dict[str, Any]]:
    """What a process that asks for health all the while has noticed, once the block is over."""
    told: dict[str, Any] = {}
    until = folder / "probing"
    until.touch()
    command = [sys.executable, "-m", "tests.bench.large", "--probe", address, "--until", str(until)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        time.sleep(1.0)  # it starts
        yield told
    finally:
        until.unlink()
        out, _ = process.communicate(timeout=90.0)
    told |= json.loads(out)


class Gateway(NamedTuple):
    """The measured one."""

    address: str
    pid: int
    metrics: int

    def lags(self) -> dict[float, float]:
        """How many looks found the loop at most so late, by seconds."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics") as page:
            text = page.read().decode()
        return {
            float(bound): float(count)
            for bound, count in re.findall(r'event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', text)
        }

    @property
    def memory(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)


def _latest(before: dict[float, float], after: dict[float, float]) -> str:
    """The bucket of the longest standstill in between."""
    bounds = sorted(after)
    for low, high in reversed([*zip([0.0, *bounds[:-1]], bounds, strict=True)]):
        if after[high] - before[high] > after.get(low, 0.0) - before.get(low, 0.0):
            return f"{low * 1000:.0f} to {high * 1000:.0f} ms"
    return "none"


async def crowd(gateway: Gateway, what: str, calls: Sequence[Any], folder: Path) -> Waits:
    before = await asyncio.to_thread(gateway.lags)
    with probed(gateway.address, folder) as noticed:
        began = time.perf_counter()
        results = await asyncio.gather(*(call() for call in calls), return_exceptions=True)
        seconds = time.perf_counter() - began
    refused = sum(isinstance(result, grpc.aio.AioRpcError) for result in results)
    if others := [
        each for each in results if isinstance(each, Exception) and not isinstance(each, grpc.aio.AioRpcError)
    ]:
        raise others[0]
    late = _latest(before, await asyncio.to_thread(gateway.lags))
    return Waits(what, seconds, refused, noticed["checks"], noticed["longest"], late)


@asynccontextmanager
async def stubs(address: str, count: int) -> AsyncIterator[list[Any]]:
    """So many callers, each with a connection of its own."""
    channels = [grpc.aio.insecure_channel(address, options=_OPTIONS) for _ in range(count)]
    try:
        yield [MediaServiceStub(channel) for channel in channels]
    finally:
        for channel in channels:
            await channel.close()


async def crowds(gateway: Gateway, folder: Path, callers: int, file: bytes) -> list[Waits]:
    files = [file + str(number).encode() for number in range(3 * callers)]  # what follows a picture is not looked at
    async with stubs(gateway.address, callers) as many:

        def upload(index: int) -> Any:
            return lambda: many[index].Upload(media.UploadRequest(content=files[index]))

        def animate(index: int, offset: int) -> Any:
            async def ask() -> None:
                request = media.AnimateImageRequest(image=files[offset + index], prompt=f"cat {offset + index}")
                async for _ in many[index].AnimateImage(request):
                    pass

            return ask

        sizes = f"{callers} x {len(file) / 1e6:.0f} MB"
        return [
            await crowd(gateway, f"uploads, {sizes}", [upload(index) for index in range(callers)], folder),
            await crowd(gateway, f"requests, {sizes}", [animate(index, callers) for index in range(callers)], folder),
        ]


class Held(NamedTuple):
    """What readers that stand still cost."""

    what: str
    each: float  # MiB of the gateway's memory
    speed: float  # MiB/s of a reader at full speed, with nobody beside it


async def readers(gateways: Sequence[Gateway], count: int, size: int) -> list[Held]:
    """Each way in a gateway of its own, because a process keeps the memory that it once had."""
    found = []
    ways = ("hit", "Download, just made", "Download, from the tiers")
    for number, (what, gateway) in enumerate(zip(ways, gateways[1:], strict=True)):
        maker = gateways[0] if what.endswith("tiers") else gateway
        found.append(await _readers(maker, gateway, what, f"file {number}", count, size))
    return found


async def _readers(maker: Gateway, gateway: Gateway, what: str, prompt: str, count: int, size: int) -> Held:
    request = media.AnimateImageRequest(image=photograph((64, 64), 80), prompt=prompt)
    request.extra["size"].CopyFrom(pb.ParameterValue(int_value=size))
    async with stubs(maker.address, 1) as (one,):
        artifact = None
        async for response in one.AnimateImage(request):
            if response.event.HasField("result"):
                artifact = response.event.result.artifact
    assert artifact is not None

    def download(stub: Any) -> Any:
        return stub.Download(media.DownloadRequest(artifact=artifact))

    def hit(stub: Any) -> Any:
        return stub.AnimateImage(request)

    begin = hit if what == "hit" else download
    await _there(gateway, begin)
    speed = await _speed(gateway, begin, size)
    return Held(what, await _stand_still(gateway, begin, count), speed)


async def _there(gateway: Gateway, begin: Any) -> None:
    """Wait until it is in the tiers."""
    async with stubs(gateway.address, 1) as (one,), asyncio.timeout(10.0):
        while True:
            try:
                async for _ in begin(one):
                    pass
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                await asyncio.sleep(0.05)
            else:
                return


async def _speed(gateway: Gateway, begin: Any, size: int) -> float:
    rates = []
    async with stubs(gateway.address, 1) as (one,):
        for _ in range(20):
            began = time.perf_counter()
            async for _ in begin(one):
                pass
            rates.append(size / MIB / (time.perf_counter() - began))
    return float(np.median(rates))


async def _stand_still(gateway: Gateway, begin: Any, count: int) -> float:
    before = gateway.memory
    async with stubs(gateway.address, count) as many:
        calls = [begin(stub) for stub in many]
        for call in calls:
            taken = 0
            async for message in call:
                taken += message.ByteSize()
                if taken >= MIB:
                    break
        await asyncio.sleep(2.0)  # whatever is on its way arrives
        held = gateway.memory - before
        for call in calls:
            call.cancel()
    await asyncio.sleep(0.5)
    return held / count / MIB


async def measure(
    folder: Path, callers: int, sides: tuple[int, int], only: str = "", still: int = 50, size: int = 15 * MIB
) -> tuple[list[Waits], list[Held]]:
    """What a crowd of `callers` costs, and `still` readers of `size` bytes that stand still."""
    names = ["gateway", "of-hits", "of-downloads", "of-tiers"]
    metrics = [free_port() for _ in names]
    own = {name: {"REPRISE_TELEMETRY__METRICS_PORT": str(port)} for name, port in zip(names, metrics, strict=True)}
    with serving(folder, gateways=names, step_seconds=0.05, environment=own) as up:
        pids = [up.gateways.part(name).pid for name in names]
        gateways = list(map(Gateway, up.addresses, pids, metrics))
        file = await asyncio.to_thread(photograph, sides, 82)
        held = await readers(gateways, still, size) if only != "crowds" else []
        waits = await crowds(gateways[0], folder, callers, file) if only != "readers" else []
    return waits, held


@click.command()
@click.option("--callers", default=20, show_default=True)
@click.option("--sides", default=(5000, 4000), type=(int, int), show_default=True, help="Of the picture, in pixels.")
@click.option("--only", default="", type=click.Choice(["", "crowds", "readers"]))
@click.option("--probe", default="", hidden=True)
@click.option("--until", default="", hidden=True)
def main(callers: int, sides: tuple[int, int], only: str, probe: str, until: str) -> None:
    """Measure, and tell."""
    if probe:
        uvloop.run(check(probe, Path(until)))
        return
    with tempfile.TemporaryDirectory(prefix="reprise-large-") as folder:
        waits, held = uvloop.run(measure(Path(folder), callers, sides, only))
    console = Console()
    if waits:
        table = Table("at once", "seconds", "refused", "checks", "longest check", "loop stood still")
        for each in waits:
            longest = f"{each.longest_check * 1000:.0f} ms"
            table.add_row(each.what, f"{each.seconds:.1f}", str(each.refused), str(each.checks), longest, each.lag)
        console.print(table)
    if held:
        table = Table("50 that stand still", "MiB each", "one at full speed")
        for every in held:
            table.add_row(every.what, f"{every.each:.2f}", f"{every.speed:.0f} MiB/s")
        console.print(table)


if __name__ == "__main__":
    main()
