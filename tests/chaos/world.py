"""The real stack with its weak points in our hands: two gateways, two workers, Redis and an S3 server.

Every process reaches every server over a link of its own (`proxy.py`), named "gateway-2 to redis" and so on, so that
one of them can be cut off and the others not. Workers have the same address for both gateways, a socket in the folder
each runs in, for by its address they find the one where equal requests meet. Redis and the S3 server lie on small
disks, and there is one more, where this machine allows to make such (`disks.py`). What a case breaks the world mends:
`mended`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import aiohttp
import grpc
import psutil
from obstore.store import S3Store
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from gateway.client import Client
from gateway.stack import Bucket, Part, Stack
from gateway.stack.local import compose
from gateway.stack.objects import bucket_of
from gateway.stack.parts import wait_until
from gateway.stack.ports import LOOPBACK, free_port
from gateway.stack.redis import password_file
from reprise.v1 import common_pb2 as pb
from reprise.v1.cache_pb2 import StatsResponse, SwitchRequest
from reprise.v1.inference_pb2 import StatusRequest, StatusResponse
from reprise.v1.inference_pb2_grpc import InferenceServiceStub
from tests.chaos.disks import Disks, NoDisks
from tests.chaos.proxy import SOUND, Fault, Links
from tests.servers import leashed

ONE, TWO = GATEWAYS = ("gateway", "gateway-2")
WORKERS = ("worker-1", "worker-2")
OURS = (*GATEWAYS, *WORKERS)
REDIS, OBJECTS = "redis", "objects"
LOCAL = "local"  # a disk for what a case brings along
FEW_CONNECTIONS = 8  # that the second gateway has to Redis
PATIENCE = 90.0  # seconds
ONE_THREAD = {"REPRISE_WORKER__THREADS": "1", "OMP_NUM_THREADS": "1"}  # several workers share a small machine
_ROOT = Path(__file__).resolve().parents[2]
_DISK = {REDIS: "96m", OBJECTS: "1500m", LOCAL: "64m"}
Metrics: TypeAlias = dict[tuple[str, ...], float]  # (name, values of its labels...) -> value
_CARRIER = "tokio-rt-worker"
_VOLUME = "-master.volumeSizeLimitMB=8"  # so that a small disk has room for many


@dataclass(frozen=True)
class Resources:
    """What a process holds, as the kernel says."""

    files: int  # descriptors, connections among them
    threads: int
    carriers: int  # those among them that belong to the object store's library
    bytes: int  # resident


class World:
    """What stands, and how it is broken and watched."""

    def __init__(self, stack: Stack, links: Links, disks: Disks | None, metrics: dict[str, int]) -> None:
        self.stack = stack
        self.links = links
        self.disks = disks
        self.parts = {each.part.name: each.part for each in stack.running()}
        self._metrics = metrics  # name of a process -> port
        self._read: dict[str, int] = {}  # name of a process -> bytes of its log that are known

    # How it is reached.

    def door(self, *gateways: str) -> str:
        return ",".join(self.parts[name].address for name in gateways)

    def pid(self, name: str) -> int:
        return self.stack.part(name).pid

    @property
    def bucket(self) -> Bucket:
        return bucket_of(self.parts[OBJECTS])

    def store(self) -> S3Store:
        """The objects, past all links."""
        bucket = self.bucket
        return S3Store(
            bucket.bucket,
            endpoint=bucket.endpoint,
            region=bucket.region,
            access_key_id=bucket.access_key,
            secret_access_key=bucket.secret_key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    def redis(self) -> Redis:
        """Redis as its operator, past all links. Use as an async context manager."""
        part = self.parts[REDIS]
        return Redis(
            host=LOOPBACK,
            port=part.port,
            username="operator",
            password=password_file(part.folder, "operator").read_text(),
            socket_timeout=10.0,
        )

    def disk(self, name: str) -> Path:
        return _disk(self.stack.data, name)

    # How it is broken.

    @asynccontextmanager
    async def gone(self, name: str) -> AsyncIterator[None]:
        """Killed; at the end it is there again, and known to be."""
        await self.kill(name)
        try:
            yield
        finally:
            await self.start(name)

    @asynccontextmanager
    async def hung(self, name: str) -> AsyncIterator[None]:
        await asyncio.to_thread(self.pause, name)
        try:
            yield
        finally:
            self.stack.part(name).resume()

    @asynccontextmanager
    async def broken(self, links: Sequence[str], fault: Fault) -> AsyncIterator[None]:
        await asyncio.to_thread(self.links.break_, links, fault)
        try:
            yield
        finally:
            await asyncio.to_thread(self.links.break_, links, SOUND)

    @asynccontextmanager
    async def without_memory(self) -> AsyncIterator[None]:
        """L1 is off everywhere, so that hits need what lies below it."""
        await self._switch_memory(on=False)
        try:
            yield
        finally:
            await self._switch_memory(on=True)

    async def kill(self, name: str) -> None:
        await asyncio.to_thread(self.stack.part(name).kill)

    async def start(self, name: str) -> None:
        await asyncio.to_thread(self.stack.start, name)
        if name in OURS:
            await self.all_healthy()

    async def restart(self, name: str) -> None:
        await asyncio.to_thread(self.stack.restart, name)

    def pause(self, name: str) -> None:
        running = self.stack.part(name)
        running.pause()
        assert wait_until(lambda: psutil.Process(running.pid).status() == psutil.STATUS_STOPPED, 10.0)

    async def forget_redis(self) -> None:
        async with self.redis() as redis:
            await redis.flushall()

    async def mended(self) -> None:
        """Whatever a case has left broken is whole again, and everybody knows; no tier is off."""
        await self.healed()
        for gateway in GATEWAYS:
            if "tier l1" in (await self.stats(gateway)).switched_off:
                await self._switch_memory(on=True)

    async def healed(self) -> None:
        """Whatever is broken is whole again, and gateways know."""
        async with asyncio.timeout(PATIENCE):
            while True:  # what was told to end may still be at it
                await asyncio.to_thread(self._mend)
                if await self._whole():
                    break
        await until(self._all_closed)

    async def _whole(self) -> bool:
        alive = all(self.stack.part(name).alive() for name in self.parts)
        return alive and all([await self._sees_all(gateway) for gateway in GATEWAYS])

    def _mend(self) -> None:
        self.links.mend()
        for name, part in self.parts.items():
            running = self.stack.part(name)
            running.resume()
            if not running.alive():
                self.stack.start(part.name)
        if self.disks is not None:
            for name in _DISK:
                self.disks.empty(self.disk(name))

    async def _all_closed(self) -> bool:
        """Whether every breaker is; a lookup finds out."""
        for gateway in GATEWAYS:
            async with Client(self.door(gateway)) as client:
                stats = await client.stats()
                if all(tier.breaker in ("", "closed") for tier in stats.tiers):
                    continue
                with suppress(grpc.aio.AioRpcError):  # nobody has such a file
                    await client.download(pb.Digest(hex="0" * 64, size=1))
                return False
        return True

    async def _switch_memory(self, *, on: bool) -> None:
        """Said until everybody has heard it: whoever has just come back may still be connecting."""
        async with Client(self.door(ONE)) as client:

            async def heard() -> bool:
                answer = await client.switch(SwitchRequest(tier=pb.TIER_L1, on=on))
                return {each.process for each in answer.heard.processes} >= set(OURS)

            await until(heard)

    # How it is watched.

    async def all_healthy(self) -> None:
        """Every gateway sees every worker."""
        for gateway in GATEWAYS:
            await until(partial(self._sees_all, gateway))

    async def _sees_all(self, gateway: str) -> bool:
        try:
            return all(worker.healthy for worker in (await self.stats(gateway)).workers)
        except grpc.aio.AioRpcError:
            return False

    async def stats(self, gateway: str) -> StatsResponse:
        async with Client(self.door(gateway)) as client:
            return await client.stats()

    async def status(self, worker: str) -> StatusResponse | None:
        """What a worker says of itself; None if it is not there."""
        async with grpc.aio.insecure_channel(self.door(worker)) as channel:
            try:
                told = await InferenceServiceStub(channel).Status(StatusRequest(), timeout=5.0).read()
            except grpc.aio.AioRpcError:
                return None
        return told if isinstance(told, StatusResponse) else None

    async def generations(self) -> dict[str, int]:
        """How many each worker that is there has begun since its start."""
        told = {worker: await self.status(worker) for worker in WORKERS}
        return {worker: status.generations for worker, status in told.items() if status is not None}

    async def metrics(self, name: str) -> Metrics:
        return await metrics_at(self._metrics[name])

    def resources(self, name: str) -> Resources:
        process = psutil.Process(self.pid(name))
        with process.oneshot():
            threads = _threads(process.pid)
            return Resources(process.num_fds(), len(threads), threads.count(_CARRIER), process.memory_info().rss)

    async def at_rest(self) -> bool:
        """Nothing runs and nothing waits, at any worker or in any gateway's queue of writes."""
        for worker in WORKERS:
            told = await self.status(worker)
            if told is None or told.busy or told.queued:
                return False
        return all([(await self.stats(gateway)).write_behind.entries == 0 for gateway in GATEWAYS])

    async def until_at_rest(self) -> None:
        await until(self.at_rest)

    def begin(self) -> None:
        """What logs say from here on is of the next case."""
        self._read = {name: _size(self.parts[name].log) for name in OURS}

    def faults(self) -> list[str]:
        """What processes of ours have logged as faults of their own since `begin`."""
        found = []
        for name in OURS:
            found += [f"{name}: {line}" for line in faults_in(self.parts[name].log, self._read.get(name, 0))]
        return found


async def metrics_at(port: int) -> Metrics:
    """What the process that serves them there tells Prometheus."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{LOOPBACK}:{port}/metrics", raise_for_status=True) as response,
    ):
        text = await response.text()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def until(holds: Callable[[], Awaitable[bool]], *, seconds: float = PATIENCE) -> float:
    """Look again and again until it does; returns how long that took, in seconds. Raises TimeoutError."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while True:
            if await holds():
                return time.monotonic() - began
            await asyncio.sleep(0.05)


def faults_in(log: Path, known: int = 0) -> list[str]:
    """What a process of ours has logged as a fault of its own, beyond the bytes that are known."""
    text = log.read_bytes()
    lines = text[known if len(text) >= known else 0 :].decode(errors="replace").splitlines()
    return [line for line in lines if is_fault(line)]


def is_fault(line: str) -> bool:
    try:
        said = json.loads(line)
    except ValueError:
        return line.startswith("Traceback")
    return isinstance(said, dict) and said.get("level") in ("error", "critical", "exception")


def _threads(pid: int) -> list[str]:
    """Their names."""
    names = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it ended in this moment
            names.append((thread / "comm").read_text().strip())
    return names


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _disk(data: Path, name: str) -> Path:
    return data / "disks" / name


@contextmanager
def standing(data: Path) -> Iterator[World]:
    """All of it, up and ready; gone at the end, whatever happens."""
    data = data.absolute()
    with ExitStack() as ending:
        stack = ending.enter_context(leashed(data))
        parts = {part.name: part for part in compose(data, port=free_port(), gateways=2, workers=2)}
        disks: Disks | None = None
        try:
            disks = ending.enter_context(Disks({_disk(data, name): size for name, size in _DISK.items()}))
        except NoDisks:
            disks = None
        wanted, metrics = dict[str, tuple[str, str]](), dict[str, int]()
        for name in OURS:
            metrics[name] = free_port()
            parts[name] = _linked(parts, name, wanted, metrics[name])
        if disks is not None:
            for server in (REDIS, OBJECTS):
                parts[server] = _on_disk(disks, parts[server], _disk(data, server))
        links = ending.enter_context(Links(wanted))
        stack.up(list(parts.values()))
        world = World(stack, links, disks, metrics)
        world.begin()
        try:
            yield world
        finally:
            for name in OURS:  # nothing of theirs is kept, and their own ends take seconds
                stack.part(name).kill()


def _linked(parts: dict[str, Part], name: str, links: dict[str, tuple[str, str]], metrics: int) -> Part:
    """A process of ours, which reaches all others over links, noted in `links`."""
    part = parts[name]
    folder = part.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    here = {server: f"{LOOPBACK}:{free_port()}" for server in (REDIS, OBJECTS)}
    links.update({f"{name} to {server}": (address, parts[server].address) for server, address in here.items()})
    environment = {
        "REPRISE_CACHE__L2__URL": f"redis://{here[REDIS]}/0",
        "REPRISE_CACHE__L3__ENDPOINT": f"http://{here[OBJECTS]}",
        "REPRISE_TELEMETRY__METRICS_PORT": str(metrics),
        "REPRISE_TELEMETRY__SAMPLE_RATIO": "0",
        "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "protos")]),
    }
    if name in GATEWAYS:
        for worker in WORKERS:
            links[f"{name} to {worker}"] = (str(folder / f"{worker}.sock"), parts[worker].address)
        environment["REPRISE_GATEWAY__WORKERS"] = json.dumps([f"unix:{worker}.sock" for worker in WORKERS])
    if name == TWO:
        environment["REPRISE_CACHE__L2__CONNECTIONS"] = str(FEW_CONNECTIONS)
    return replace(part, folder=folder, environment={**part.environment, **environment, **ONE_THREAD})


def _on_disk(disks: Disks, part: Part, disk: Path) -> Part:
    if part.name == REDIS:
        return disks.on(part, [*part.command, "--dir", str(disk)])
    command = [f"-dir={disk}" if word == "-dir=." else word for word in part.command]
    return disks.on(part, [_VOLUME if word.startswith("-master.volumeSizeLimitMB") else word for word in command])
