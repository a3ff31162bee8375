"""What a worker reads of its stages' outputs: safetensors, and how they hang together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput

from inference import forms, tensors
from tests.fuzz.target import Target

_CPU = torch.device("cpu")


def _tensors(data: bytes) -> bool:
    taken = False
    try:
        held = tensors.from_bytes(data)
        assert tensors.from_bytes(tensors.to_bytes(held)).keys() == held.keys()
        taken = True
        forms.from_bytes(data, _CPU)
    except ValueError:
        pass
    return taken


def _files() -> list[bytes]:
    numbers = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    outputs = (
        numbers,
        (numbers, [numbers.to(torch.bfloat16), None, 1.5], {"text": numbers.long()}),
        AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(torch.zeros(1, 4, 2, 2))),
        numbers.T,
    )
    return [tensors.to_bytes({"a": numbers, "b": numbers.half()}), *(forms.to_bytes(each, _CPU) for each in outputs)]


TARGETS: Sequence[Target] = (Target("tensors", _tensors, _files),)
