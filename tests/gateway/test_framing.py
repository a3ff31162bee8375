"""Framing: what a request cuts out is a picture like any other; what is not in the picture is refused by its field."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gateway.blueprint import Box
from gateway.darkroom import Darkroom
from gateway.errors import InvalidField
from gateway.framing import WHOLE, Framing
from gateway.pictures import decode
from reprise.v1 import media_pb2
from tests.gateway.test_pictures import WHOLE_FILES, file_of, noise
from tests.gateway.world import World, ask, outcome, problem_of, stages

PHOTO = noise((40, 30))
FILE = file_of(PHOTO)


def framed(**fields: int) -> Framing:
    return Framing.of(media_pb2.Framing(**fields))


@given(
    st.integers(0, 32), st.integers(0, 22), st.integers(8, 40), st.integers(8, 30), st.sampled_from([0, 90, 180, 270])
)
def test_cut_here_or_before_it_is_the_same_picture(left: int, top: int, width: int, height: int, rotation: int) -> None:
    """A box is cut out and turned clockwise exactly as a lossless editor does it, or is refused."""
    framing = framed(left=left, top=top, width=width, height=height, rotation=rotation)
    if left + width > 40 or top + height > 30:
        with pytest.raises(InvalidField, match="upright picture"):
            decode(FILE, framing)
        return
    done_before = PHOTO.crop((left, top, left + width, top + height)).rotate(-rotation, expand=True)

    assert decode(file_of(done_before)) == decode(FILE, framing)


def test_nothing_said_means_the_whole_picture() -> None:
    """As does a box around all of it; a turn alone is a turn."""
    assert WHOLE == framed()
    assert decode(FILE) == decode(FILE, framed()) == decode(FILE, framed(width=40, height=30))
    assert decode(file_of(PHOTO.transpose(Image.Transpose.ROTATE_270))) == decode(FILE, framed(rotation=90))


def test_boxes_are_in_the_upright_picture() -> None:
    """What a camera noted about its orientation is applied first: boxes are where people see them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = PHOTO.transpose(Image.Transpose.ROTATE_270)
    box = {"left": 3, "top": 20, "width": 12, "height": 15}

    assert decode(file_of(upright.crop((3, 20, 15, 35)))) == decode(file_of(PHOTO, exif=exif), framed(**box))


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"rotation": 45}, "framing.rotation", "0, 90, 180 or 270"),
        ({"rotation": 360}, "framing.rotation", "0, 90, 180 or 270"),
        ({"left": 3}, "framing.width", "at least 8"),
        ({"width": 20}, "framing.height", "at least 8"),
        ({"width": 20, "height": 7}, "framing.height", "at least 8"),
        ({"left": 40, "width": 8, "height": 8}, "framing.left", "whose width is 40"),
        ({"left": 33, "width": 8, "height": 8}, "framing.width", "whose width is 40"),
        ({"top": 30, "width": 8, "height": 8}, "framing.top", "whose height is 30"),
        ({"width": 8, "height": 31}, "framing.height", "whose height is 30"),
        ({"left": 2**32 - 1, "width": 2**32 - 1, "height": 8}, "framing.left", "whose width is 40"),
    ],
)
def test_what_is_not_in_the_picture_is_refused_by_its_field(fields: dict[str, int], field: str, words: str) -> None:
    """The caller is told which number to change, and what it may be."""
    with pytest.raises(InvalidField, match=words) as caught:
        decode(FILE, framed(**fields))
    assert field == caught.value.field


async def test_framings_of_one_file_are_remembered_apart() -> None:
    """A file seen whole is another picture when it is seen in part, and each is decoded once."""
    with Darkroom() as darkroom:
        framings = [WHOLE, Framing(Box(0, 0, 10, 10)), Framing(Box(0, 0, 10, 10), 90), Framing(None, 180)]
        sources = [await darkroom.identify("ns", FILE, framing) for framing in framings * 2]
        await asyncio.gather(*[darkroom.identify("ns", WHOLE_FILES["png"], framing) for framing in framings[:2] * 9])

        assert 4 == len({source.identity for source in sources})
        assert 6 == darkroom.decoded
        again = await darkroom.identify("ns", FILE, framings[2])
        assert (10, 10, again.identity) == (again.width, again.height, (await again.pixels()).identity)


async def test_a_part_of_a_picture_is_asked_for(world: World) -> None:
    """Through a gateway: a part is another request than the whole, and the same as the part sent by itself."""
    worker = await world.worker()
    desk = await world.desk(worker)
    box = {"left": 4, "top": 2, "width": 20, "height": 16, "rotation": 90}
    part = file_of(PHOTO.crop((4, 2, 24, 18)).transpose(Image.Transpose.ROTATE_270))
    whole = await desk.animate(image=FILE)
    asked = await desk.animate(image=FILE, framing=box)
    sent = await desk.animate(image=part)
    uploaded = await desk.client.upload(FILE)
    named = await desk.animate(image_digest=uploaded.digest, framing=box)

    assert ["miss", "miss", "hit from L1", "hit from L1"] == [outcome(each) for each in (whole, asked, sent, named)]
    assert "run" == stages(asked.report.stages)["picture"]
    assert (16, 20) == (worker.requests[1].pictures["image"].width, worker.requests[1].pictures["image"].height)
    assert asked.data == sent.data == named.data != whole.data


@pytest.mark.parametrize("framing", [{"rotation": 1}, {"left": 1}, {"left": 100, "width": 8, "height": 8}])
async def test_a_wrong_part_is_refused_before_any_device_works(world: World, framing: dict[str, Any]) -> None:
    """INVALID_ARGUMENT with the field; no plan is made."""
    worker = await world.worker()
    desk = await world.desk(worker)
    problem = await problem_of(desk.client.animate(ask(framing=framing)))

    assert "INVALID_ARGUMENT" == problem.code.name
    assert (problem.field or "").startswith("framing.")
    assert [] == worker.requests
