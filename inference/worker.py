"""Worker: one inference process put together, opened and closed. The only file that names concrete parts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from cache.accesses import access_log
from cache.build import Tiers, build_tiers
from cache.catalogue import Catalogue
from cache.description import Description, Scope
from cache.errors import TierError
from cache.keys import Address, Principal, namespace
from cache.lag import LoopLag
from cache.settings import SettingsError
from cache.telemetry import Telemetry
from cache.value import policy_named
from inference import models
from inference.device import MIB, Device, DeviceThread, HostDevice, Memory, execution, free_unused, open_device
from inference.engine import Engine
from inference.favourites import Favourites
from inference.metrics import WorkerMetrics
from inference.models.base import Model
from inference.pool import Pool
from inference.rehearsal import rehearse
from inference.retention import decide
from inference.server import InferenceServicer, Server
from inference.settings import ModelSettings, WorkerSection, WorkerSettings
from inference.workshop import Workshop

_STREAMS_END = 5.0  # seconds that streams get to carry away what is already told
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds between tries to publish a description
_POOL_ON_HOST = 256 * MIB  # where the device's memory is the host's, and nobody says how much of it to take
_HOST_POOL = 1024 * MIB  # where it is not
_log = structlog.get_logger(__name__)


class Worker:
    """A worker that serves. `port` is the one it listens on."""

    def __init__(self, server: Server, engine: Engine, *, drain: float) -> None:
        self.port = server.port
        self.engine = engine
        self._server = server
        self._drain = drain

    async def leave(self) -> None:
        """Say so first, then let what runs end, its results stored and told."""
        self.engine.stop_accepting()
        await self._server.announce_end()
        await self.engine.drain(self._drain)
        await self._server.stop(_STREAMS_END)


@asynccontextmanager
async def open_worker(settings: WorkerSettings, telemetry: Telemetry) -> AsyncIterator[Worker]:
    """A worker that listens at once, and serves from the moment its models are loaded.

    Raises SettingsError for a device or a model that is not there.
    """
    section = settings.worker
    async with AsyncExitStack() as stack:
        servicer = InferenceServicer(section.name)
        server = Server(servicer, f"{section.host}:{section.port}", reflect=section.reflection)
        await server.start()
        stack.push_async_callback(server.stop, 0)
        # In a thread, because opening a folder that is a tier takes a look at everything in it.
        tiers = await asyncio.to_thread(build_tiers, settings.cache, telemetry.registry, process=section.name)
        await stack.enter_async_context(tiers)
        await stack.enter_async_context(LoopLag(telemetry.registry))
        device, beside = await _open_device(section, stack)
        loaded = await _load_models(section.models, device)
        memory = await device.run(device.device.memory)
        shop = Workshop(
            device,
            beside,
            pool_of(section, _pool_bytes(section, memory)),
            tiers.through_memory,
            WorkerMetrics(telemetry.registry),
            telemetry.tracing,
            host=Pool(max_bytes=_host_pool_bytes(section, device.device)),
            queue=section.queue,
            tenant_share=section.tenant_share,
            execution=await device.run(execution, device.device),
            bans=tiers.bans,
            news=servicer.news,
            accesses=await stack.enter_async_context(
                access_log(settings.telemetry.accesses_folder, section.name, "stage", settings.cache.secret_bytes)
            ),
        )
        await shop.measure_memory()
        await shop.size_pool()
        engine = Engine(loaded, shop, grace=section.grace, spill_after=section.spill_after)
        stack.callback(engine.close)
        tiers.orders.on_order(engine.obey)
        shared = namespace(settings.cache.secret_bytes, Scope.SHARED, Principal(""))
        wanted = map(Address.parse, section.favourites)
        favourites = Favourites(shop, loaded, wanted, tiers.orders.pins, shared=shared)
        tiers.orders.on_order(favourites.obey)
        descriptions = [model.description for model in loaded.values()]
        for work in (_publish_all(tiers, shared, descriptions), favourites.keep()):
            stack.push_async_callback(_end, asyncio.create_task(work))
        await server.open(engine)
        _log.info("serving", address=f"{section.host}:{server.port}", models=sorted(loaded), device=device.device.kind)
        yield Worker(server, engine, drain=section.drain)


async def serve(settings: WorkerSettings) -> None:
    """Serve until told to stop; a second signal stops at once, whatever runs."""
    telemetry = Telemetry.start(settings.telemetry, service="reprise-worker", instance=settings.worker.name)
    try:
        serving = asyncio.Event()
        told = _listen_for_signals(serving)
        async with open_worker(settings, telemetry) as worker:
            serving.set()
            await told.wait()
            _log.info("draining")
            await worker.leave()
    finally:
        telemetry.stop()


def _listen_for_signals(serving: asyncio.Event) -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT, if it comes when there is something to end in an orderly way."""
    told = asyncio.Event()

    def hear(number: int) -> None:
        if told.is_set() or not serving.is_set():
            os._exit(128 + number)  # what runs in the device's thread cannot be interrupted, and an exit would wait
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, hear, number)
    return told


async def _open_device(section: WorkerSection, stack: AsyncExitStack) -> tuple[DeviceThread, DeviceThread]:
    # Torch keeps the number of threads for each thread of ours, so the one that computes is the one that chooses.
    device = DeviceThread(HostDevice(), "device")
    stack.callback(device.close)
    try:
        device.device = await device.run(open_device, section.device, section.threads)
    except ValueError as error:
        raise SettingsError(f"worker.device: {error}") from error
    beside = DeviceThread(device.device, "beside", beside=True)
    stack.callback(beside.close)
    return device, beside


def pool_of(section: WorkerSection, max_bytes: int) -> Pool:
    """A pool of so many bytes that chooses and refuses as the settings say."""
    return Pool(
        max_bytes=max_bytes,
        max_entries=section.pool_entries,
        max_share=section.pool_share,
        policy=policy_named(section.pool_policy, max_bytes=max_bytes, max_entries=section.pool_entries),
    )


async def _load_models(wanted: Iterable[ModelSettings], device: DeviceThread) -> dict[str, Model]:
    loaded: dict[str, Model] = {}
    for model in wanted:
        _log.info("loading", model=model.name)
        try:
            opened = await device.run(
                models.load,
                model.source,
                name=model.name,
                device=str(device.device.place),
                dtype=model.dtype,
                checkout=model.checkout,
            )
            opened.description = decide(opened.description, model.stages)
            loaded[model.name] = opened
        except ValueError as error:
            raise SettingsError(f"worker.models: {model.name}: {error}") from error
        await device.run(_rehearse, opened, device.device)
    return loaded


def _rehearse(model: Model, device: Device) -> None:
    try:
        rehearse(model, device)
    except Exception:  # noqa: BLE001  # what callers ask for may work all the same, and if not, they are told
        _log.warning("rehearsal failed", model=model.description.model, exc_info=True)
    free_unused(device)


def _pool_bytes(section: WorkerSection, memory: Memory) -> int:
    """The most that the pool may take. The workshop bounds it further by what is left beside the models' runs."""
    if section.pool_bytes is not None:
        return section.pool_bytes
    return memory.total or _POOL_ON_HOST


def _host_pool_bytes(section: WorkerSection, device: Device) -> int:
    if section.host_pool_bytes is not None:
        return section.host_pool_bytes
    return _HOST_POOL if device.separate else 0


async def _publish_all(tiers: Tiers, shared: str, descriptions: Iterable[Description]) -> None:
    """Make descriptions known to gateways that start while no worker is there. Keeps trying."""
    if tiers.objects is None:
        return
    catalogue = Catalogue(tiers.objects, tiers.below_memory, shared)
    await asyncio.gather(*(publish(catalogue, description) for description in descriptions))


async def publish(
    catalogue: Catalogue, description: Description, *, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Publish a description, however long the store cannot be reached."""
    seconds = _FIRST_PAUSE
    while True:
        try:
            await catalogue.publish(description)
        except TierError as error:
            _log.warning("description not published", model=description.model, error=str(error))
            await pause(seconds)
            seconds = min(2 * seconds, _LONGEST_PAUSE)
        else:
            return


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
