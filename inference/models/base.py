"""The contract of a model family: a description, and a function per stage that obeys it.

A family is a list of named stages. Each stage's function sees the parameters, media and upstream outputs that its
declaration names and nothing else, so that a declaration that forgets one cannot work by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from PIL import Image

from cache.description import Description, Scalar

Tensors: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sound:
    """A recording as its identity knows it."""

    pcm: torch.Tensor  # int16 [samples], on the host
    sample_rate: int  # samples per second


@dataclass(frozen=True)
class Artifact:
    """A finished media file."""

    data: bytes
    media_type: str


Output: TypeAlias = Tensors | Artifact


class Cancelled(Exception):
    """Raised inside a stage by `Call.step` and `Call.piece` once nobody wants its output any more."""


@dataclass(frozen=True)
class Call:
    """What one run of a stage is given. Keys are the roles and names that the stage declares."""

    parameters: Mapping[str, Scalar]
    media: Mapping[str, Image.Image]  # RGB, 8 bits a channel
    upstream: Mapping[str, Tensors]  # on the model's device
    step: Callable[[int, int], None] = lambda done, of: None  # progress, after every step; raises Cancelled
    preview: Callable[[Image.Image], None] | None = None  # a small picture of the work so far; None: nobody looks
    sounds: Mapping[str, Sound] = field(default_factory=dict)
    # Told of output as it is made, by a stage that is followed: pieces that joined are what it returns, or none at all.
    piece: Callable[[Tensors], None] = lambda piece: None


class Following(Protocol):
    """A stage that takes another one's output in pieces. Its own output is its pieces, one after the other: they depend
    on what it was fed altogether, and not on how that was cut.
    """

    def feed(self, piece: Tensors) -> Iterator[Tensors]:
        """What it makes of all that it has by now, as far as it was not given before."""
        ...

    def end(self) -> Iterator[Tensors]:
        """What it makes of the rest."""
        ...


class Model(Protocol):
    """A loaded model. Not safe for concurrent use: one device thread owns it."""

    description: Description
    device: torch.device

    @property
    def modules(self) -> Iterable[torch.nn.Module]:
        """What holds its weights."""
        ...

    def run(self, stage: str, call: Call) -> Output:
        """The stage's output, its tensors contiguous and on `device`. Raises Cancelled from within `call.step` and
        `call.piece`.

        A stage for whose parts others run gives "order" (int64 [places], the number of the part at each) and of every
        part, under the names that these read, "NAME[number]". Where it cannot take what was written, it raises
        InvalidInput.
        """
        ...


class Streamed(Model, Protocol):
    """A model some of whose stages follow others."""

    def follow(self, stage: str, call: Call) -> Following:
        """Begins a stage that declares `follows`, which is never `run`. What it follows is not in `call` but is fed, in
        pieces or as a whole. Tensors and pieces join along their first dimension, all of them. Pieces of a stage that
        is heard live are {"pcm": int16 [samples]}, at the rate that is its parameter "sample_rate".
        """
        ...


def weight_of(modules: Iterable[torch.nn.Module]) -> int:
    """Bytes of parameters and buffers; what several modules share is counted once."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
