"""The contract of a model family: a description, and a function per stage that obeys it.

A family is a list of named stages. Each stage's function sees the parameters, media and upstream outputs that its
declaration names and nothing else, so that a declaration that forgets one cannot work by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from PIL import Image

from cache.description import Description, Scalar

Tensors: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Artifact:
    """A finished media file."""

    data: bytes
    media_type: str


Output: TypeAlias = Tensors | Artifact


class Cancelled(Exception):
    """Raised inside a stage by `Call.step` once nobody wants its output any more."""


@dataclass(frozen=True)
class Call:
    """What one run of a stage is given. Keys are the roles and names that the stage declares."""

    parameters: Mapping[str, Scalar]
    media: Mapping[str, Image.Image]  # RGB, 8 bits a channel
    upstream: Mapping[str, Tensors]  # on the model's device
    step: Callable[[int, int], None] = lambda done, of: None  # progress, after every step; raises Cancelled
    preview: Callable[[Image.Image], None] | None = None  # a small picture of the work so far; None: nobody looks


class Model(Protocol):
    """A loaded model. Not safe for concurrent use: one device thread owns it."""

    description: Description
    device: torch.device

    @property
    def modules(self) -> Iterable[torch.nn.Module]:
        """What holds its weights."""
        ...

    def run(self, stage: str, call: Call) -> Output:
        """The stage's output, its tensors contiguous and on `device`. Raises Cancelled from within `call.step`."""
        ...


def weight_of(modules: Iterable[torch.nn.Module]) -> int:
    """Bytes of parameters and buffers; what several modules share is counted once."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
