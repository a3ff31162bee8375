"""Device: the threads in which torch works, so that it never does so on the event loop.

A device has one thread that computes, so whatever runs there has the device to itself. Beside it work threads that
only move and prepare things (inputs towards the device, outputs off it, text to ids); on an accelerator each of these
has a stream of its own, so that it does not wait for what the computing thread has queued.
"""

from __future__ import annotations

import asyncio
import gc
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a device in bytes. Zeros where the device is the host."""

    free: int = 0
    total: int = 0


class DeviceThread:
    """One thread that works with a device, one call after the other."""

    def __init__(self, device: torch.device, name: str, *, beside: bool = False) -> None:
        self.device = device
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._beside = beside
        self._stream: torch.cuda.Stream | None = None

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns, complete in the device's memory. A caller that leaves does not stop it."""
        return (await self.timed(function, *args, **kwargs))[0]

    async def timed(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
        """Likewise, and the seconds it took, waiting for its turn not included."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: self._measured(lambda: function(*args, **kwargs)))

    def close(self) -> None:
        """Take no more calls; one that runs is left to end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _measured(self, function: Callable[[], T]) -> tuple[T, float]:
        with self._own_stream():
            self._synchronize()
            start = time.perf_counter()
            result = function()
            # What was only queued on the stream is not done: it would be counted for the next, and be used too early.
            self._synchronize()
            return result, time.perf_counter() - start

    def _own_stream(self) -> torch.cuda.StreamContext | nullcontext[None]:
        if not self._beside or self.device.type != "cuda":
            return nullcontext()
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # of torch
        return torch.cuda.stream(self._stream)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


# What follows blocks, and belongs into a device's threads.


def choose(wanted: str, threads: int = 0) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` means here, with torch's number of threads set.

    Raises ValueError for an accelerator that is not there.
    """
    if threads:
        torch.set_num_threads(threads)
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type != "cuda":
        return device
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise ValueError(f"there is no device {wanted} on this machine")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def memory(device: torch.device) -> Memory:
    """What torch could still take, its own reserve included, and what there is."""
    if device.type != "cuda":
        return Memory()
    free, total = torch.cuda.mem_get_info(device)
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Memory(free + reserve, total)


def default_pool_bytes(device: torch.device) -> int:
    """2 GiB on an accelerator, but no more than a quarter of what is free once models are loaded; 256 MiB on a CPU."""
    if device.type != "cuda":
        return 256 * MIB
    return min(2048 * MIB, memory(device).free // 4)


def free_unused(device: torch.device) -> None:
    """Give back what nothing refers to any more. What a failed computation held may hang in reference cycles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether a computation failed for want of memory. A CPU's allocator has no exception type of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def execution(device: torch.device) -> dict[str, str]:
    """What a computation here may depend on beyond its fingerprint. Recorded with every output, part of no key."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    libraries = ("torch", "diffusers", "transformers", "av")
    return {
        "device": f"{device.type} {name}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "batch": "1",
        **{library: version(library) for library in libraries},
    }
