"""Sounds: recordings as a model hears them, and what models say as samples of 16 bits, paced and in a file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from cache.parts import part_name
from inference import pacing, sound_files
from inference.models.base import Artifact, Call, Sound, Tensors

_FULL_SCALE = 32768  # of 16-bit samples


def heard(sound: Sound, sample_rate: int) -> npt.NDArray[np.float32]:
    """A recording at the rate of a model: samples [n] in -1..1."""
    return pacing.resampled(
        sound.pcm.numpy().astype(np.float32) / np.float32(_FULL_SCALE), sound.sample_rate, sample_rate
    )


def to_pcm(samples: torch.Tensor) -> torch.Tensor:
    """Samples in -1..1 as int16, the nearest there is."""
    return (samples * _FULL_SCALE).round().clamp(-_FULL_SCALE, _FULL_SCALE - 1).to(torch.int16)


def finished(call: Call) -> Artifact:
    """The file of all sentences, in their order: of "pcm" as `Pacing` gives it, in a container and at a rate."""
    pieces = [call.upstream[part_name("pcm", place)]["pcm"] for place in range(len(call.upstream))]
    sample_rate, container = int(call.parameters["sample_rate"]), str(call.parameters["format"])
    return sound_files.encode(torch.cat(pieces).cpu().numpy(), sample_rate, container)


class Pacing:
    """Samples at another speed and rate."""

    def __init__(self, pace: pacing.Pace, device: torch.device) -> None:
        self._pace = pace
        self._device = device

    def feed(self, piece: Tensors) -> Iterator[Tensors]:
        yield from self._given(self._pace.feed(piece["pcm"].cpu().numpy()))

    def end(self) -> Iterator[Tensors]:
        yield from self._given(self._pace.end())

    def _given(self, samples: pacing.Samples) -> Iterator[Tensors]:
        if len(samples):
            yield {"pcm": torch.from_numpy(np.ascontiguousarray(samples)).to(self._device)}
