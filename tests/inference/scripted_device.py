"""A device with as much memory as a test gives it, whose copies take as long as the test says, and which fails on cue.

Its tensors are real ones of the processor. What is on it is counted by storage, from when it is brought in or adopted
until nobody refers to it any more, so what a worker forgets to let go of is found out as on a real card.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from PIL import Image

from inference.device import Memory
from inference.models.base import Artifact, Call, Output, Tensors
from tests.inference.worker_fixtures import Gate, GatedModel


@dataclass
class Clock:
    """Time that passes when something takes some."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def out_of_memory() -> None:
    """Trouble on cue, for a device or a stage."""
    raise torch.OutOfMemoryError("on cue")


@dataclass(eq=False)
class ScriptedDevice:
    """`capacity` in bytes; copies run at `bytes_per_second` by `clock`, and are noted in `moves`."""

    capacity: int = 2**40
    bytes_per_second: float = float("inf")
    clock: Clock = field(default_factory=Clock)
    place = torch.device("cpu")
    kind = "scripted"
    separate = True

    def __post_init__(self) -> None:
        self.moves: list[tuple[str, int]] = []  # ("in" or "out", bytes), in the order in which they ended
        self.way_in, self.way_out = Gate(), Gate()  # passed before each copy
        self.trouble: dict[str, list[Callable[[], object]]] = {"in": [], "out": []}  # of the next copies
        self.most_used = 0
        self._held: dict[int, int] = {}  # bytes by storage
        self._working = 0
        self._peak = 0
        self._lock = threading.RLock()

    @property
    def used(self) -> int:
        with self._lock:
            return sum(self._held.values()) + self._working

    def memory(self) -> Memory:
        return Memory(self.capacity - self.used, self.capacity, self.used)

    def begin_peak(self) -> None:
        self._peak = self.used

    def peak(self) -> int:
        return self._peak

    def bring_in(self, tensors: Tensors) -> Tensors:
        if all(self.has(tensor) for tensor in tensors.values()):
            return tensors
        self._pass("in", self.way_in, tensors)
        brought = self.adopt({name: tensor.clone() for name, tensor in tensors.items()})
        self.moves.append(("in", _bytes(tensors)))
        return brought

    def take_out(self, tensors: Tensors) -> Tensors:
        assert all(self.has(tensor) for tensor in tensors.values()), "what leaves the device must be on it"
        self._pass("out", self.way_out, tensors)
        self.moves.append(("out", _bytes(tensors)))
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def give_back_unused(self) -> None: ...

    def aside(self) -> AbstractContextManager[object]:
        return nullcontext()

    def finish(self) -> None: ...

    def has(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._held

    def adopt(self, tensors: Tensors) -> Tensors:
        """These tensors are on the device from now on. Raises OutOfMemoryError."""
        for tensor in tensors.values():
            storage = tensor.untyped_storage()
            key = storage._cdata
            with self._lock:
                self._claim(tensor.nbytes)
                self._held[key] = tensor.nbytes
            weakref.finalize(storage, self._held.pop, key, None)
        return tensors

    @contextmanager
    def working(self, size: int) -> Iterator[None]:
        """A computation that needs so many bytes for itself. Raises OutOfMemoryError."""
        with self._lock:
            self._claim(size)
            self._working += size
        try:
            yield
        finally:
            self._working -= size

    def _claim(self, size: int) -> None:
        if self.used + size > self.capacity:
            raise torch.OutOfMemoryError(f"{self.used} of {self.capacity} bytes are taken, {size} were wanted")
        self._peak = max(self._peak, self.used + size)
        self.most_used = max(self.most_used, self.used + size)

    def _pass(self, way: str, gate: Gate, tensors: Tensors) -> None:
        gate.pass_through()
        if self.trouble[way]:
            self.trouble[way].pop(0)()
        self.clock.now += _bytes(tensors) / self.bytes_per_second


class HungryModel(GatedModel):
    """A gated model whose stages need memory of a scripted device, and whose inputs must be there."""

    def __init__(self, device: ScriptedDevice, needs: dict[str, int] | None = None) -> None:
        super().__init__()
        self.where = device
        self.needs = needs or {}  # bytes that a stage works with, by stage

    def run(self, stage: str, call: Call) -> Output:
        read = [tensor for tensors in call.upstream.values() for tensor in tensors.values()]
        assert all(self.where.has(tensor) for tensor in read), f"{stage} reads what is not on the device"
        with self.where.working(self.needs.get(stage, 0)):
            output = super().run(stage, call)
        return output if isinstance(output, Artifact) else self.where.adopt(output)


class WideModel(HungryModel):
    """Its picture encodings take a kilobyte, so that they count beside what runs need."""

    def _moments(self, call: Call) -> Output:
        image: Image.Image = call.media["image"]
        shade = torch.tensor(bytearray(image.tobytes()), dtype=torch.uint8).float().mean()
        return {"parameters": shade.repeat(256).reshape(1, 256)}


def _bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
