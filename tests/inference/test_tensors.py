from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch

from inference import tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.float8_e4m3fn])
def test_a_tensor_comes_back_with_its_bits_type_and_shape(dtype: torch.dtype) -> None:
    """Writing and reading keeps every bit, in the type the model computes in."""
    written = (torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(1)) * 10).to(dtype)
    read = tensors.from_bytes(tensors.to_bytes({"latents": written}))["latents"]
    assert (read.dtype, read.shape) == (written.dtype, written.shape)
    assert torch.equal(read.view(torch.uint8), written.view(torch.uint8))


def test_strides_storage_and_order_leave_no_trace() -> None:
    """Equal values have equal bytes, whatever they are views of and in whatever order they are named."""
    values = torch.arange(120.0).reshape(1, 4, 5, 6)
    view = values.to(memory_format=torch.channels_last)
    part = torch.stack([values, values])[1]
    shared = tensors.to_bytes({"a": values, "b": values})
    assert tensors.to_bytes({"b": view, "a": part}) == shared
    assert all(tensor.is_contiguous() for tensor in tensors.from_bytes(shared).values())


def test_what_is_read_lies_where_torch_would_have_put_it() -> None:
    """A tensor from a file begins on a boundary of 64 bytes, as a fresh one does: from elsewhere, sums may differ."""
    written = [tensors.to_bytes({"a": torch.zeros(size), "b": torch.zeros(3)}) for size in (3, 100, 2**12, 2**20) * 8]
    read = [tensor for data in written for tensor in tensors.from_bytes(data).values()]
    assert {tensor.data_ptr() % 64 for tensor in read} == {0}


def test_a_part_of_a_large_tensor_is_written_alone() -> None:
    """A view costs its own bytes and not those of the storage behind it."""
    assert len(tensors.to_bytes({"row": torch.zeros(1000, 1000)[3]})) < 8192


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "cut off": lambda data: data[:-1],
    "padded": lambda data: data + b"\0",
    "endless header": lambda data: b"\xff" * 8 + data[8:],
    "unknown type": lambda data: data.replace(b"F32", b"X32"),
    "gap": lambda data: data.replace(b"[0,8]", b"[0,4]"),
    "pickle": lambda data: pickle.dumps({"a": [1.0, 2.0]}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_anything_but_one_whole_file_is_refused(damage: str) -> None:
    """Truncated, padded, relabelled or pickled bytes are a ValueError and never tensors."""
    data = tensors.to_bytes({"a": torch.tensor([1.0, 2.0])})
    with pytest.raises(ValueError, match="not a safetensors file"):
        tensors.from_bytes(DAMAGES[damage](data))


def test_nothing_is_not_an_output() -> None:
    """A stage's output has at least one tensor, on the way out and on the way in."""
    with pytest.raises(ValueError, match="no tensors"):
        tensors.to_bytes({})
    empty = b'{"__metadata__":{}}     '
    with pytest.raises(ValueError, match="without tensors"):
        tensors.from_bytes(len(empty).to_bytes(8, "little") + empty)
