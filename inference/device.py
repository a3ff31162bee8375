"""Device: where models compute, and the threads in which torch works, so that it never does so on the event loop.

A device has one thread that computes, so whatever runs there has the device to itself. Beside it work threads that
only move and prepare things (inputs towards the device, outputs off it, text to ids); on an accelerator each of these
has a stream of its own, so that it does not wait for what the computing thread has queued.

Everything that is particular to an accelerator is behind `Device`; `inference/cuda.py` is the only file that knows one.
"""

from __future__ import annotations

import asyncio
import gc
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import ParamSpec, Protocol, TypeVar

import torch

from inference.models.base import Tensors

P = ParamSpec("P")
T = TypeVar("T")

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a device in bytes. Zeros where the device is the host."""

    free: int = 0  # what torch could still take, its own reserve included
    total: int = 0
    used: int = 0  # by tensors of this process


class Device(Protocol):
    """A device's memory, and the ways in and out of it. All methods block, and belong into a device's threads."""

    place: torch.device
    kind: str  # for people and records: "cuda NVIDIA H100 80GB HBM3"
    separate: bool  # its memory is not the host's

    def memory(self) -> Memory: ...

    def begin_peak(self) -> None:
        """Forget the peak so far: what `peak` tells begins now."""
        ...

    def peak(self) -> int:
        """The most bytes that tensors of this process took at one time since `begin_peak`."""
        ...

    def bring_in(self, tensors: Tensors) -> Tensors:
        """Contiguous tensors of host memory, on the device: there in full, whichever thread uses them next.

        What is on the device already is given back as it is.
        """
        ...

    def take_out(self, tensors: Tensors) -> Tensors:
        """Contiguous tensors of the device in host memory, there in full. On the host itself: the same tensors."""
        ...

    def give_back_unused(self) -> None:
        """Hand memory that no tensor needs back to the device."""
        ...

    def aside(self) -> AbstractContextManager[object]:
        """While it is open, the calling thread does not wait for what the computing thread has queued."""
        ...

    def finish(self) -> None:
        """Wait until everything that the calling thread has queued is done."""
        ...


class HostDevice:
    """The processor: a device whose memory is the host's, so that nothing has to be moved."""

    place = torch.device("cpu")
    separate = False

    def __init__(self) -> None:
        self.kind = f"cpu {platform.machine()}"

    def memory(self) -> Memory:
        return Memory()

    def begin_peak(self) -> None: ...

    def peak(self) -> int:
        return 0

    def bring_in(self, tensors: Tensors) -> Tensors:
        return tensors

    def take_out(self, tensors: Tensors) -> Tensors:
        return tensors

    def give_back_unused(self) -> None: ...

    def aside(self) -> AbstractContextManager[object]:
        return nullcontext()

    def finish(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Timed:
    """What a call on a device cost: seconds of the device, and bytes above what was in use when it began."""

    seconds: float
    bytes: int


class DeviceThread:
    """One thread that works with a device, one call after the other."""

    def __init__(self, device: Device, name: str, *, beside: bool = False) -> None:
        self.device = device
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._beside = beside

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns, complete in the device's memory. A caller that leaves does not stop it."""
        return (await self.timed(function, *args, **kwargs))[0]

    async def timed(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
        """Likewise, and the seconds it took, waiting for its turn not included."""
        result, cost = await self.measured(function, *args, **kwargs)
        return result, cost.seconds

    async def measured(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, Timed]:
        """Likewise, and all that it cost. Bytes are those of the whole process: of what runs beside, too."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: self._measured(lambda: function(*args, **kwargs)))

    def close(self) -> None:
        """Take no more calls; one that runs is left to end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _measured(self, function: Callable[[], T]) -> tuple[T, Timed]:
        device = self.device
        if self._beside:
            with device.aside():
                start = time.perf_counter()
                result = function()
                device.finish()
                return result, Timed(time.perf_counter() - start, 0)
        device.finish()
        device.begin_peak()
        before, start = device.memory().used, time.perf_counter()
        result = function()
        # What was only queued on the stream is not done: it would be counted for the next, and be used too early.
        device.finish()
        return result, Timed(time.perf_counter() - start, max(0, device.peak() - before))


# What follows blocks, and belongs into a device's threads.


def open_device(wanted: str, threads: int = 0) -> Device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` means here, with torch's number of threads set.

    Raises ValueError for an accelerator that is not there.
    """
    if threads:
        torch.set_num_threads(threads)
    if wanted == "cpu":
        return HostDevice()
    from inference import cuda  # which builds on this file

    if wanted == "auto" and not cuda.there():
        return HostDevice()
    return cuda.CudaDevice("cuda" if wanted == "auto" else wanted)


def free_unused(device: Device) -> None:
    """Give back what nothing refers to any more. What a failed computation held may hang in reference cycles."""
    gc.collect()
    device.give_back_unused()


def out_of_memory(error: BaseException) -> bool:
    """Whether a computation failed for want of memory. A CPU's allocator has no exception type of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def execution(device: Device) -> dict[str, str]:
    """What a computation here may depend on beyond its fingerprint. Recorded with every output, part of no key."""
    libraries = ("torch", "diffusers", "transformers", "av")
    return {
        "device": device.kind,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "batch": "1",
        **{library: version(library) for library in libraries},
    }
