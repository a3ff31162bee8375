"""CUDA: the one file that knows an accelerator. On torch's build for a processor only `there` may be called.

What travels goes through a few pinned buffers that are made once: pinning memory costs more than copying it, and what
is pinned is lost to the rest of the machine. So an entry in host memory costs its own bytes and no more, and it moves
at the speed of a copy in host memory, which its size (kilobytes to some megabytes) makes a matter of a millisecond.

Order. A copy runs on the stream of the thread that asks for it, beside the computing one, and its buffers are used
again only after its event. `bring_in` returns after the last event, so whoever is handed the tensors may use them on
any stream; and the computing stream is told to the allocator, which otherwise gave their memory away to the copying
stream while a computation that was only queued may still read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from threading import local

import torch

from inference.device import MIB, Memory
from inference.models.base import Tensors

_BUFFER = 16 * MIB  # bytes; larger tensors travel in pieces
_BUFFERS = 2  # while one is on its way, the other is filled


def there() -> bool:
    return torch.cuda.is_available()


def generator_state(place: torch.device) -> torch.Tensor:
    """The state of the device's global generator."""
    return torch.cuda.get_rng_state(place)


class CudaDevice:
    """One accelerator. Raises ValueError if there is none of this name."""

    separate = True

    def __init__(self, name: str = "cuda") -> None:
        index = torch.device(name).index or 0
        if not there() or index >= torch.cuda.device_count():
            raise ValueError(f"there is no device {name} on this machine")
        torch.cuda.set_device(index)
        self.place = torch.device("cuda", index)
        self.kind = f"cuda {torch.cuda.get_device_name(self.place)}"
        self._of_thread = local()  # what must not be shared between threads: a stream, and buffers on their way

    def memory(self) -> Memory:
        free, total = torch.cuda.mem_get_info(self.place)
        used = torch.cuda.memory_allocated(self.place)
        return Memory(free + torch.cuda.memory_reserved(self.place) - used, total, used)

    def begin_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.place)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.place)

    def bring_in(self, tensors: Tensors) -> Tensors:
        here = {name: tensor if self._has(tensor) else self._brought_in(tensor) for name, tensor in tensors.items()}
        self.finish()
        return here

    def take_out(self, tensors: Tensors) -> Tensors:
        return {name: self._taken_out(tensor) if self._has(tensor) else tensor for name, tensor in tensors.items()}

    def give_back_unused(self) -> None:
        torch.cuda.empty_cache()

    def aside(self) -> AbstractContextManager[object]:
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = torch.cuda.Stream(self.place)  # type: ignore[no-untyped-call]  # of torch
        return torch.cuda.stream(self._of_thread.stream)

    def finish(self) -> None:
        torch.cuda.current_stream(self.place).synchronize()

    def _has(self, tensor: torch.Tensor) -> bool:
        return tensor.device == self.place

    def _brought_in(self, tensor: torch.Tensor) -> torch.Tensor:
        target = torch.empty_like(tensor, device=self.place)
        for source, piece in _pieces(tensor, target):
            buffer, event = self._next_buffer()
            staged = buffer[: source.numel()]
            staged.copy_(source)
            piece.copy_(staged, non_blocking=True)
            event.record()
        target.record_stream(torch.cuda.default_stream(self.place))
        return target

    def _taken_out(self, tensor: torch.Tensor) -> torch.Tensor:
        target = torch.empty_like(tensor, device="cpu")
        on_the_way: list[tuple[torch.Tensor, torch.Tensor, torch.cuda.Event]] = []
        for source, piece in _pieces(tensor, target):
            if len(on_the_way) == _BUFFERS:
                _arrive(*on_the_way.pop(0))  # or its buffer would be filled again before it was read
            buffer, event = self._next_buffer()
            staged = buffer[: source.numel()]
            staged.copy_(source, non_blocking=True)
            event.record()
            on_the_way.append((piece, staged, event))
        for arriving in on_the_way:
            _arrive(*arriving)
        return target

    def _next_buffer(self) -> tuple[torch.Tensor, torch.cuda.Event]:
        """A pinned buffer that nothing is using any more, and the event that says so the next time."""
        if not hasattr(self._of_thread, "buffers"):
            self._of_thread.buffers = [_pinned() for _ in range(_BUFFERS)]
        buffers: list[tuple[torch.Tensor, torch.cuda.Event]] = self._of_thread.buffers
        buffer, event = buffers.pop(0)
        event.synchronize()
        buffers.append((buffer, event))
        return buffer, event


def _pinned() -> tuple[torch.Tensor, torch.cuda.Event]:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # of torch
    return torch.empty(_BUFFER, dtype=torch.uint8, pin_memory=True), event


def _arrive(target: torch.Tensor, staged: torch.Tensor, event: torch.cuda.Event) -> None:
    event.synchronize()
    target.copy_(staged)


def _pieces(source: torch.Tensor, target: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same bytes of both, as many at a time as a buffer holds."""
    one, other = (tensor.reshape(-1).view(torch.uint8) for tensor in (source, target))
    for start in range(0, one.numel(), _BUFFER):
        yield one[start : start + _BUFFER], other[start : start + _BUFFER]
