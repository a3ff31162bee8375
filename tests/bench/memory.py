"""Memory measured: `python -m tests.bench.memory [--device cuda --size true]`. Tries on one picture, with and without
the cache: what encoding costs, what a run costs, and how much memory it takes at its peak, beside the library's own
call, which knows no stages.

By default the small model on whatever device there is. `--size true` makes the model at its true size, in half
precision on an accelerator, with random weights made on the device: times and bytes are those of a real checkpoint,
the video is noise. Everything runs through a worker's own engine, over tiers in a folder.

Peaks are bytes of tensors beside the models' weights. An accelerator's allocator tells them; on a processor every
tensor that an operation makes is counted from when it is made until nothing refers to its storage.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
import weakref
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from cache.build import build_tiers
from cache.settings import TelemetrySettings
from cache.telemetry import Telemetry
from inference.device import MIB, Device, DeviceThread, open_device
from inference.engine import Engine
from inference.metrics import WorkerMetrics
from inference.models.base import Call, Model, Output, weight_of
from inference.models.i2vgen_xl import I2VGenXL
from inference.pool import Pool
from inference.workshop import Workshop
from tests.bench.models import model_of
from tests.inference.worker_fixtures import Heard, Pixels, ask, cache_settings

_OF_THE_PICTURE = ("vision", "moments")
_ENCODERS = ("tokens", "text", "negative_tokens", "negative_text", *_OF_THE_PICTURE)
_MOVED = 64 * MIB  # bytes that travel at a time where overlap is measured


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """Counts the bytes of what operations make, for as long as somebody refers to it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def ignore(self, modules: Iterable[torch.nn.Module]) -> None:
        """Weights are there before anything is made, and operations give out views of them."""
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self._known.add(tensor.untyped_storage()._cdata)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self._note, made)
        return made

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class CountedModel:
    """A model whose operations are counted."""

    def __init__(self, model: Model, counting: Counting) -> None:
        self.description = model.description
        self.device = model.device
        self._model = model
        self._counting = counting

    @property
    def modules(self) -> Iterable[torch.nn.Module]:
        return self._model.modules

    def run(self, stage: str, call: Call) -> Output:
        with self._counting:
            return self._model.run(stage, call)


class Watch:
    """The highest peak of all computations since the last look, in bytes beside the weights."""

    def __init__(self, device: Device, counting: Counting) -> None:
        self._device = device
        self._counting = counting
        self.weights = device.memory().used  # 0 where the device is the host: it does not count its tensors
        self._highest = 0
        if device.separate:
            peak = device.peak

            def noted() -> int:
                self._highest = max(self._highest, reached := peak())
                return reached

            device.peak = noted  # type: ignore[method-assign]  # which a thread asks for after every computation

    def look(self) -> int:
        if not self._device.separate:
            highest, self._counting.peak = self._counting.peak, self._counting.now
            return highest
        highest, self._highest = self._highest, 0
        return highest - self.weights


@dataclass(frozen=True)
class Try:
    """One run: seconds of the device, and bytes beside the weights."""

    encoding: float
    picture: float  # of that, what encoding the picture took
    total: float
    peak: int
    encoded: bool


@dataclass(frozen=True)
class Bench:
    engine: Engine
    watch: Watch
    model: I2VGenXL
    counting: Counting
    asked: dict[str, int]

    async def run(self, prompt: str, picture: Pixels, *, cached: bool) -> Try:
        wanted: dict[str, Any] = {"prompt": prompt, "picture": picture, **self.asked}
        request = ask(self.model.description, reuse_nothing=not cached, store_nothing=not cached, **wanted)
        heard = Heard()
        self.watch.look()
        async for response in self.engine.run(await self.engine.plan(request)):
            heard.responses.append(response)
        spent = {
            each.stage: each.device_seconds for each in heard.finished.stages if heard.stages[each.stage][0] == "RUN"
        }
        encoding, encoding_it = (sum(spent.get(stage, 0.0) for stage in each) for each in (_ENCODERS, _OF_THE_PICTURE))
        return Try(encoding, encoding_it, sum(spent.values()), self.watch.look(), "moments" in spent)

    async def library(self, prompt: str, picture: Pixels) -> int:
        """Bytes that the library's own call takes at its peak, beside the weights."""
        known = {parameter.name: parameter.default for parameter in self.model.description.parameters}
        names = ("negative_prompt", "width", "height", "num_frames", "num_inference_steps", "guidance_scale")
        wanted = {name: self.asked.get(name, known[name]) for name in names}
        image = Image.frombytes("RGB", (picture.width, picture.height), picture.message().rgb)

        def call() -> None:
            with self.counting if not self.engine.shop.device.device.separate else nullcontext():
                self.model.pipeline(prompt=prompt, image=image, generator=torch.Generator().manual_seed(42), **wanted)

        self.model.pipeline.set_progress_bar_config(disable=True)
        self.watch.look()
        await self.engine.shop.device.run(call)
        return self.watch.look()


@asynccontextmanager
async def standing(device: Device, options: argparse.Namespace, folder: Path) -> AsyncIterator[Bench]:
    """An engine with its model on the device, as a worker has it."""
    registry, counting = CollectorRegistry(), Counting()
    telemetry = Telemetry.start(TelemetrySettings(), service="bench", instance="bench")
    computing, beside = DeviceThread(device, "device"), DeviceThread(device, "beside", beside=True)
    try:
        loaded = await computing.run(model_of, options.size, folder / "model", device.place)
        model: Model = loaded if device.separate else CountedModel(loaded, counting)
        counting.ignore(loaded.modules)
        watch = await computing.run(Watch, device, counting)
        most = (await computing.run(device.memory)).total or 256 * MIB
        async with await asyncio.to_thread(build_tiers, cache_settings(folder / "l3"), registry) as tiers:
            shop = Workshop(
                computing,
                beside,
                Pool(max_bytes=most, max_entries=10),
                tiers.through_memory,
                WorkerMetrics(registry),
                telemetry.tracing,
                host=Pool(max_bytes=1024 * MIB if device.separate else 0),
                queue=64,
                execution={"device": device.kind},
            )
            await shop.measure_memory()
            await shop.size_pool()
            engine = Engine({model.description.model: model}, shop, grace=1.0)
            try:
                yield Bench(engine, watch, loaded, counting, asked(options))
            finally:
                await engine.drain(10.0)
                engine.close()
    finally:
        computing.close()
        beside.close()
        telemetry.stop()


def asked(options: argparse.Namespace) -> dict[str, int]:
    wanted = {
        "width": options.width,
        "height": options.height,
        "num_frames": options.frames,
        "num_inference_steps": options.steps,
    }
    return {name: value for name, value in wanted.items() if value is not None}


@dataclass(frozen=True)
class Told:
    """Of as many prompts on one picture: without the cache, with it, and the peak of the library's own call."""

    without: list[Try]
    cached: list[Try]
    library: int


async def tries(bench: Bench, count: int) -> Told:
    """The first run of all only warms up."""
    picture = Pixels(colour=90, width=640, height=480)
    await bench.run("warming up", picture, cached=False)
    prompts = [f"try number {number}" for number in range(count)]
    library = await bench.library(prompts[0], picture)
    without = [await bench.run(prompt, picture, cached=False) for prompt in prompts]
    return Told(without, [await bench.run(prompt, picture, cached=True) for prompt in prompts], library)


@dataclass(frozen=True)
class Overlap:
    """Seconds of computing alone, of copying alone, and of both at once; and the bytes that were copied."""

    computing: float
    copying: float
    both: float
    bytes: int

    @property
    def hidden(self) -> float:
        """The share of the shorter one that the longer one hides."""
        return (self.computing + self.copying - self.both) / min(self.computing, self.copying)


async def overlap(device: Device) -> Overlap | None:
    """Copies towards the device beside a computation. None where nothing has to be moved."""
    if not device.separate:
        return None
    computing, beside = DeviceThread(device, "device"), DeviceThread(device, "beside", beside=True)
    try:
        load = {"t": torch.zeros(_MOVED, dtype=torch.uint8)}
        matrix = torch.randn(4096, 4096, device=device.place, dtype=torch.float16)

        def compute() -> None:
            made = matrix
            for _ in range(400):
                made = torch.tanh(made @ matrix)

        def copy() -> None:
            for _ in range(16):
                device.bring_in(load)

        for thread, work in ((computing, compute), (beside, copy)):
            await thread.run(work)  # the first time is another time
        _, computed = await computing.timed(compute)
        _, copied = await beside.timed(copy)
        start = time.perf_counter()
        await asyncio.gather(computing.run(compute), beside.run(copy))
        return Overlap(computed, copied, time.perf_counter() - start, 16 * _MOVED)
    finally:
        computing.close()
        beside.close()


def tell(out: Console, told: Told, overlapped: Overlap | None) -> None:
    without, cached = told.without, told.cached
    table = Table("try", "encoding s", "total s", "peak MiB", "encoded", box=None)
    for name, runs in (("without", without), ("cached", cached)):
        for number, each in enumerate(runs, start=1):
            table.add_row(
                f"{name} {number}",
                f"{each.encoding:.4f}",
                f"{each.total:.3f}",
                f"{each.peak / MIB:.2f}",
                "yes" if each.encoded else "no",
            )
    out.print(table)
    for name, take in (("encoding", lambda each: each.encoding), ("total", lambda each: each.total)):
        one, other = sum(map(take, without)), sum(map(take, cached))
        out.print(f"{name}: {one:.3f} s without, {other:.3f} s cached: {other / one:.0%}")
    share = statistics.median(each.encoding / each.total for each in without)
    out.print(f"encoding is {share:.1%} of a run; the picture was encoded {sum(each.encoded for each in cached)} times")
    peaks = [max(each.peak for each in runs) / MIB for runs in (without, cached)]
    out.print(
        f"peak beside the weights: {told.library / MIB:.2f} MiB by the library's own call, "
        f"{peaks[0]:.2f} MiB without, {peaks[1]:.2f} MiB cached"
    )
    if overlapped is None:
        out.print("overlap: nothing to move on this device")
    else:
        rate = overlapped.bytes / overlapped.copying / 1e9
        out.print(
            f"overlap: {overlapped.computing:.3f} s computing, {overlapped.copying:.3f} s copying ({rate:.1f} GB/s), "
            f"{overlapped.both:.3f} s both at once: {overlapped.hidden:.0%} hidden"
        )


async def measure(options: argparse.Namespace, out: Console) -> Told:
    device = await asyncio.to_thread(open_device, options.device, options.threads)
    with tempfile.TemporaryDirectory() as folder:
        async with standing(device, options, Path(folder)) as bench:
            weights = weight_of(bench.model.modules) / MIB
            out.print(f"{device.kind}, {options.size} model, torch {torch.__version__}, {weights:.0f} MiB of weights")
            told = await tries(bench, options.tries)
    tell(out, told, await overlap(device))
    return told


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--size", choices=("small", "true"), default="small")
    arguments.add_argument("--threads", type=int, default=0)
    arguments.add_argument("--tries", type=int, default=5)
    for name in ("width", "height", "frames", "steps"):
        arguments.add_argument(f"--{name}", type=int)
    return arguments


if __name__ == "__main__":
    asyncio.run(measure(parser().parse_args(), Console()))
