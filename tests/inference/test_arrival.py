"""Arrival: a plan comes first and its media in pieces; what is put together is what was sent, or nothing is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from inference import arrival
from inference.arrival import arrive
from inference.errors import InvalidInput
from reprise.v1.inference_pb2 import MediaPiece, Picture, RunRequest, Sound


def plan() -> RunRequest:
    return RunRequest(pictures={"image": Picture(identity="a")}, sounds={"voice": Sound(identity="b")})


def piece(name: str, content: bytes) -> RunRequest:
    return RunRequest(piece=MediaPiece(name=name, content=content))


async def on_the_wire(*messages: RunRequest) -> AsyncIterator[RunRequest]:
    for message in messages:
        yield message


async def test_pieces_are_put_together_in_order() -> None:
    """Those of each medium by itself, however they are mixed; a plan may come without any."""
    pieces = [piece("image", b"ab"), piece("voice", b"12"), piece("image", b"cd"), piece("voice", b"3")]
    request, contents = await arrive(on_the_wire(plan(), *pieces))
    alone = await arrive(on_the_wire(plan()))

    assert (plan(), {"image": b"abcd", "voice": b"123"}) == (request, contents)
    assert (plan(), {}) == alone


async def test_what_cannot_be_put_together_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece of something else, more than a worker takes, and a call that says nothing."""
    monkeypatch.setattr(arrival, "MOST_BYTES", 5)
    with pytest.raises(InvalidInput, match="a medium of the plan"):
        await arrive(on_the_wire(plan(), piece("film", b"a")))
    with pytest.raises(InvalidInput, match="at most 5 bytes"):
        await arrive(on_the_wire(plan(), piece("image", b"abc"), piece("voice", b"def")))
    with pytest.raises(InvalidInput, match="carry a plan"):
        await arrive(on_the_wire())
