"""Tensors as bytes: safetensors and nothing else, so that reading an entry can never run code.

Equal tensors have equal bytes: contiguous, in host memory, in their own type, sorted, without metadata.
"""

from __future__ import annotations

import safetensors
import safetensors.torch
import torch

from inference.models.base import Tensors

_ALIGNMENT = 64  # bytes: where torch puts whatever it makes on a processor


def to_bytes(tensors: Tensors) -> bytes:
    """One safetensors file of these tensors, whatever their device, strides and storage. Raises ValueError for none."""
    if not tensors:
        raise ValueError("no tensors to write")
    data: bytes = safetensors.torch.save({name: _on_host(tensor) for name, tensor in tensors.items()})
    return data


def from_bytes(data: bytes, device: torch.device | str = "cpu") -> Tensors:
    """The tensors of one file, contiguous and on `device`, where a stage that had just made them could have put them.

    Raises ValueError unless the bytes are one whole safetensors file: a header that fits, offsets without gap or
    overlap that reach the very end, known types, and at least one tensor.
    """
    try:
        tensors: Tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a type torch has no name for
        raise ValueError("not a safetensors file") from error
    if not tensors:
        raise ValueError("a file without tensors")
    return {name: _as_if_made(tensor.to(device)) for name, tensor in tensors.items()}


def _as_if_made(tensor: torch.Tensor) -> torch.Tensor:
    # The file's reader puts tensors at any multiple of 16. A library may sum in another order from there: MKL reserves
    # that for all types, and does it with doubles at other offsets.
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    # A copy even where it is contiguous already, because the format refuses two names for one storage.
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
