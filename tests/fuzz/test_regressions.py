"""What fuzzing and reading for it have found: each input as it was, or the few lines that write it."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from cache.aio import PlainSerializer
from cache.catalogue import pointer_to
from gateway import pictures, sounds
from gateway.errors import InvalidField, NotFound
from gateway.identity import KeyFileError, read_keys
from gateway.peers import Names
from gateway.plan import Policy
from gateway.validate import complete, given_fields
from inference import forms, tensors
from reprise.v1.common_pb2 import CachePolicy, ParameterValue
from reprise.v1.media_pb2 import AnimateImageRequest
from tests.gateway.heif import box, full
from tests.gateway.recordings import written
from tests.gateway.worker import family

MIB = 1024 * 1024


@contextmanager
def within(seconds: float, memory: float) -> Iterator[None]:
    """Less processor time than this, and less memory in MiB that Python knows of at once."""
    tracemalloc.start()
    began = time.thread_time()
    try:
        yield
        spent, peak = time.thread_time() - began, tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()
    assert spent < seconds
    assert peak < memory


def refusal_of(data: bytes) -> str:
    with pytest.raises(InvalidField) as caught:
        pictures.decode(data)
    return caught.value.reason


# What lies in the tiers


@pytest.mark.parametrize("key", [b"\x80", b"\x90", b"\xc7\x0c\xff" + bytes(12)], ids=["mapping", "list", "time"])
def test_a_mapping_by_what_cannot_be_a_key_is_a_miss(key: bytes) -> None:
    """It is nothing that was written here."""
    loaded = PlainSerializer().loads(b"\x81" + key + b"\xc0")
    assert loaded is None or list(loaded.values()) == [None]


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"hex": ' * 50_000, b'{"hex": "", "size": 1e999}', b"\xff"])
def test_what_names_no_description_is_none(data: bytes) -> None:
    """However deep it is nested."""
    assert pointer_to(data) is None


@pytest.mark.parametrize("strides", [[2**40, 1], [2**70, 1], [-1, 1], [1e9, 1], "ab"])
def test_a_tensor_laid_out_over_more_than_there_is_is_refused(strides: Any) -> None:
    """Strides are read from the file, and memory is taken by them."""
    whole = forms.to_bytes(torch.zeros(2, 3), torch.device("cpu"))
    form = f'{{"tensor": "0", "strides": {strides if isinstance(strides, list) else [strides]}}}'.replace("'", '"')
    held = tensors.from_bytes(whole)
    data = _with_form(held["0"], form)
    with pytest.raises(ValueError, match="form of an output"):
        forms.from_bytes(data, torch.device("cpu"))


def _with_form(tensor: torch.Tensor, form: str) -> bytes:
    data: bytes = safetensors.torch.save({"0": tensor}, metadata={"form": form})
    return data


def test_a_tensor_that_lies_scattered_is_not_stored() -> None:
    """What could not be read back is not written either; a slice of a larger one is."""
    scattered = torch.zeros(1000, 1000)[:, :1]
    with pytest.raises(forms.NotStorable):
        forms.to_bytes(scattered, torch.device("cpu"))
    slice_ = torch.arange(100.0).reshape(10, 10)[:, :5]
    again = forms.from_bytes(forms.to_bytes(slice_, torch.device("cpu")), torch.device("cpu"))
    assert (slice_.stride(), True) == (again.stride(), torch.equal(slice_, again))


# Pictures


def heic(iloc: bytes, ipma: bytes = b"") -> bytes:
    entry = full(b"infe", struct.pack(">HH4s", 1, 0, b"hvc1") + b"\0", version=2)
    properties = box(b"iprp", box(b"ipco", box(b"free", b"")) + ipma)
    known = full(b"pitm", struct.pack(">H", 1)) + full(b"iinf", struct.pack(">H", 1) + entry)
    return box(b"ftyp", b"heic" + bytes(4) + b"heic") + full(b"meta", known + iloc + properties)


def test_places_that_take_no_bytes_to_tell_are_counted() -> None:
    """Of items that there are, and of others: 400 bytes kept a reader busy for two seconds, and took 200 MiB."""
    there = b"".join(struct.pack(">HHHH", 1, 1, 0, 65_535) for _ in range(40))
    elsewhere = b"".join(struct.pack(">HHH", 9, 0, 65_535) for _ in range(40))
    with within(seconds=0.5, memory=16):
        assert "PICTURE_UNREADABLE" == refusal_of(heic(full(b"iloc", struct.pack(">HH", 0, 40) + there, version=1)))
        assert "PICTURE_UNREADABLE" == refusal_of(heic(full(b"iloc", struct.pack(">HH", 0, 40) + elsewhere)))


def test_properties_of_one_item_are_counted() -> None:
    """They are looked through for every reference to it."""
    rules = b"".join(struct.pack(">HB", 1, 255) + b"\1" * 255 for _ in range(2_000))
    ipma = full(b"ipma", struct.pack(">I", 2_000) + rules)
    with within(seconds=0.5, memory=16):
        assert "PICTURE_UNREADABLE" == refusal_of(heic(full(b"iloc", bytes(4)), ipma))


def test_units_of_an_av1_picture_are_counted() -> None:
    """Each takes two bytes to write, and a hundred to remember."""
    configuration = (b"av1C", b"\x81\0\0\0")
    data = b"\x12\0" * MIB
    entry = full(b"infe", struct.pack(">HH4s", 1, 0, b"av01") + b"\0", version=2)
    size = (b"ispe", struct.pack(">III", 0, 64, 64))
    store = box(b"ipco", box(*configuration) + box(*size))
    ipma = full(b"ipma", struct.pack(">IHBBB", 1, 1, 2, 0x81, 2))
    known = full(b"pitm", struct.pack(">H", 1)) + full(b"iinf", struct.pack(">H", 1) + entry)
    inside = full(b"iloc", struct.pack(">HHHHHHII", 0x4400, 1, 1, 1, 0, 1, 0, len(data)), version=1)
    meta = full(b"meta", known + inside + box(b"iprp", store + ipma) + box(b"idat", data))
    with within(seconds=0.5, memory=24):
        assert "PICTURE_UNREADABLE" == refusal_of(box(b"ftyp", b"avif" + bytes(4) + b"avif") + meta)


def test_scans_of_a_jpeg_are_counted() -> None:
    """Each passes over the whole picture: 16 MiB of empty ones would have taken an hour."""
    buffer = BytesIO()
    Image.new("RGB", (2000, 2000)).save(buffer, "JPEG", progressive=True, quality=10)
    whole = buffer.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    assert pictures.decode(whole[:-2] + last * 10 + b"\xff\xd9").width == 2000
    with within(seconds=0.5, memory=16):
        assert "PICTURE_UNREADABLE" == refusal_of(whole[:-2] + last * 1_000 + b"\xff\xd9")


# Recordings


def test_sound_that_is_skipped_is_not_kept() -> None:
    """However long a file says that what it skips is."""
    file = bytearray(written(np.zeros(48_000 * 60, np.int16), "ipod", "aac", 48_000))
    edits = file.index(b"elst")
    struct.pack_into(">Ii", file, edits + 12, 100, 2**31 - 1)
    with within(seconds=5, memory=2):
        assert 0 == sounds.decode(bytes(file)).facts.samples


# Requests


def test_a_name_of_millions_of_letters_is_unknown_at_once() -> None:
    """It is looked at on the event loop."""
    name = "A" * 16 * MIB
    with within(seconds=0.25, memory=1), pytest.raises(NotFound):
        Names(bytes(32), "localhost:1").home_of(name)


def test_millions_of_extra_parameters_are_refused_unread() -> None:
    extra = {str(number): ParameterValue(int_value=1) for number in range(100_000)}
    request = AnimateImageRequest(prompt="a cat", extra=extra)
    with within(seconds=0.25, memory=1), pytest.raises(InvalidField) as caught:
        given_fields(request)
    assert ("extra", "must be at most 256 of them") == (caught.value.field, caught.value.message)


def test_millions_of_labels_are_refused_unread() -> None:
    policy = CachePolicy(labels=["a"] * 500_000)
    with within(seconds=0.25, memory=1), pytest.raises(InvalidField, match="at most 8"):
        Policy.of(policy)


def test_a_text_of_millions_of_characters_is_refused_unread() -> None:
    """White space around it included, which is otherwise no part of it."""
    text, description = " " * 64 * MIB + "a cat", family()
    with within(seconds=0.25, memory=1), pytest.raises(InvalidField) as caught:
        complete(description, {"prompt": text}, {})
    assert "TEXT_TOO_LONG" == caught.value.reason


# Keys


@pytest.mark.parametrize("value", ["!!bool cat", "!!int ''", "!!timestamp cat", "!!float ''", "{[1]: 2}"])
def test_a_file_of_keys_that_is_tagged_wrong_is_told_so(value: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"- key_sha256: {value}\n")
    with pytest.raises(KeyFileError, match="not YAML"):
        read_keys(file)


def test_a_file_of_keys_that_is_nested_too_deep_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("[" * 5_000)
    with pytest.raises(KeyFileError, match="not YAML"):
        read_keys(file)
