"""Outputs of components as files and back: the same classes, numbers, types and strides."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKLOutput
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers.modeling_outputs import BaseModelOutputWithPooling

from inference import forms

CPU = torch.device("cpu")


def through(output: Any) -> Any:
    return forms.from_bytes(forms.to_bytes(output, CPU), CPU)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool],
    ids=str,
)
def test_numbers_come_back(dtype: torch.dtype) -> None:
    """Bits and type of a tensor are as they were, NaN and infinity too."""
    tensor = noise(3, 5, dtype=dtype)
    if dtype.is_floating_point:
        tensor[0, 0], tensor[0, 1] = torch.nan, torch.inf

    found = through(tensor)

    assert dtype == found.dtype
    assert torch.equal(tensor.view(torch.uint8), found.view(torch.uint8))


@pytest.mark.parametrize(
    "tensor",
    [
        noise(1, 8, 4, 6).to(memory_format=torch.channels_last),
        noise(5, 3).T,
        noise(4, 9)[:, 2:5],
        noise(7)[::2],
        noise(3, 0),
        torch.tensor(1.5),
        noise(1, 1, 4).expand(1, 1, 4),
    ],
    ids=["channels last", "transposed", "narrowed", "stepped", "empty", "single", "not really repeated"],
)
def test_strides_come_back(tensor: torch.Tensor) -> None:
    """How numbers lie in memory changes later sums, so it is kept."""
    found = through(tensor)

    assert tensor.stride() == found.stride()
    assert torch.equal(tensor, found)


def test_nesting_comes_back() -> None:
    """Tuples, lists, mappings and plain values, each as what it was."""
    output = (noise(2), [None, True, 1, 1.5, "text"], {"inner": (noise(3),)})

    first, plain, mapping = through(output)

    assert torch.equal(output[0], first)
    assert [None, True, 1, 1.5, "text"] == plain
    assert isinstance(plain[1], bool)
    assert torch.equal(noise(3), mapping["inner"][0])


def test_output_classes_come_back() -> None:
    """Fields by name and by position, absent ones absent."""
    output = BaseModelOutputWithPooling(last_hidden_state=noise(2), hidden_states=(noise(3), noise(4)))

    found = through(output)

    assert BaseModelOutputWithPooling is type(found)
    assert ["last_hidden_state", "hidden_states"] == list(found.keys())
    assert found.pooler_output is None
    assert torch.equal(output.hidden_states[1], found[-1][1])


def test_a_distribution_comes_back_and_no_sample() -> None:
    """What a VAE returns draws the same from the same generator; only its parameters were stored."""
    output = AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(noise(1, 8, 4, 4)))

    data = forms.to_bytes(output, CPU)
    found = forms.from_bytes(data, CPU)

    drawn, again = (one.latent_dist.sample(torch.Generator().manual_seed(1)) for one in (output, found))
    assert AutoencoderKLOutput is type(found)
    assert torch.equal(drawn, again)
    assert [(1, 8, 4, 4)] == [tuple(tensor.shape) for tensor in safetensors.torch.load(data).values()]


def test_a_tensor_that_is_there_twice_is_stored_once() -> None:
    """And is one tensor again afterwards."""
    tensor = noise(1000)

    first, second = through((tensor, tensor))

    assert first is second
    assert len(forms.to_bytes((tensor, tensor), CPU)) < 1.5 * tensor.nbytes


def test_what_comes_back_is_ones_own() -> None:
    """Changing one result changes no other, and not what is stored."""
    data = forms.to_bytes(noise(4), CPU)

    forms.from_bytes(data, CPU).zero_()

    assert torch.equal(noise(4), forms.from_bytes(data, CPU))


def _with_more() -> Any:
    output = BaseModelOutputWithPooling(last_hidden_state=noise(1))
    output["more"] = noise(1)
    return output


def _local() -> Any:
    class Local(AutoencoderKLOutput):  # type: ignore[misc]
        pass

    return Local(latent_dist=noise(1))


@pytest.mark.parametrize(
    "output",
    [
        lambda: object(),
        lambda: "no tensors at all",
        lambda: (noise(1), object()),
        lambda: {1: noise(1)},
        lambda: noise(1, 4).expand(3, 4),
        lambda: noise(4).to_sparse(),
        lambda: torch.empty(4, device="meta"),
        _with_more,
        _local,
    ],
    ids=["object", "none", "inner object", "keys", "repeated", "sparse", "elsewhere", "extra fields", "local class"],
)
def test_what_would_not_come_back_is_refused(output: Callable[[], Any]) -> None:
    """Nothing is stored that could only be read back as something similar."""
    with pytest.raises(forms.NotStorable):
        forms.to_bytes(output(), CPU)


def _file(form: object) -> bytes:
    data: bytes = safetensors.torch.save({"0": noise(4)}, metadata={"form": json.dumps(form)})
    return data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no file",
        safetensors.torch.save({"0": noise(4)}),
        _file("text"),
        _file({"tensor": "1", "strides": [1]}),
        _file({"tensor": "0", "strides": [1, 1]}),
        _file({"tensor": "0", "strides": [0]}),
        _file({"class": ["os", "system"], "fields": {}}),
        _file({"class": ["subprocess", "Popen"], "fields": {"args": {"value": "true"}}}),
        _file({"class": ["inference.forms", "NotStorable"], "fields": {}}),
        _file({"class": ["no.such.module", "Output"], "fields": {}}),
        _file({"class": [AutoencoderKLOutput.__module__, "AutoencoderKLOutput"], "fields": {"wrong": {"value": 1}}}),
        _file({"gaussian": {"value": 1}, "deterministic": False}),
    ],
    ids=range(13),
)
def test_other_files_are_refused(data: bytes) -> None:
    """A file that was not written here is a ValueError, whatever it names; nothing named in it is run or imported."""
    with pytest.raises(ValueError):  # noqa: PT011 - each says something else
        forms.from_bytes(data, CPU)
