"""Large messages: what is cut out is what a parser would have found, and nobody waits for more than one of them."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidField
from gateway.large import AT_ONCE, Counter, opened
from reprise.v1.common_pb2 import Digest
from reprise.v1.media_pb2 import AnimateImageRequest, UploadRequest

FIELDS: dict[str, bytes] = {
    "image": AnimateImageRequest(image=b"a picture").SerializeToString(),
    "empty image": b"\x12\x00",
    "digest": AnimateImageRequest(image_digest=Digest(hex="0a", size=1)).SerializeToString(),
    "prompt": AnimateImageRequest(prompt="a cat").SerializeToString(),
    "numbers": AnimateImageRequest(width=8, guidance_scale=2.5, seed=2**53 - 1).SerializeToString(),
    "unknown": b"\xf8\x07\x01\xfd\x07\0\0\0\0\xfa\x07\x02ab",
    "image as a number": b"\x10\x07",
    "group": b"\xfb\x07\xfc\x07",
    "end of nothing": b"\xfc\x07",
    "half a tag": b"\x80",
    "longer than there is": b"\x12\x7fabc",
    "no field": b"\x02\x00",
    "not UTF-8": b"\x22\x01\xff",
}


@given(st.lists(st.sampled_from(sorted(FIELDS)), max_size=6))
@settings(max_examples=1000)
def test_it_is_opened_as_a_parser_would(names: list[str]) -> None:
    """Any fields in any order, the picture twice, or overruled by a digest; what is no message is refused by both."""
    message = b"".join(FIELDS[name] for name in names)
    expected = AnimateImageRequest()
    try:
        expected.ParseFromString(message)
    except Exception:  # noqa: BLE001  # whatever the library makes of it
        with pytest.raises(InvalidField):
            opened(AnimateImageRequest, message, "image")
        return
    image = expected.image if expected.WhichOneof("picture") == "image" else None
    if image is not None:
        expected.ClearField("image")

    assert (expected, image) == opened(AnimateImageRequest, message, "image")


def test_a_field_without_a_choice_is_cut_out_too() -> None:
    assert (UploadRequest(), b"a file") == opened(UploadRequest, b"\x0a\x06a file", "content")
    assert (UploadRequest(), b"") == opened(UploadRequest, b"", "content")


async def test_large_ones_are_opened_one_after_the_other() -> None:
    """Between two of them whoever is ready has a turn; small ones wait for nobody."""
    counter, log = Counter(), list[str]()
    large = AnimateImageRequest(image=bytes(AT_ONCE)).SerializeToString()

    async def take(name: str, message: bytes) -> None:
        await counter.open(AnimateImageRequest, message, "image")
        log.append(name)

    async def others() -> None:
        for _ in range(20):
            log.append("others")
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(take("large", large))
        group.create_task(take("small", FIELDS["image"]))
        group.create_task(others())

    assert "small" == log[0]
    assert 5 == log.count("large")
    assert all("large" != other for one, other in pairwise(log) if one == "large")
