"""Near: the same picture is recognised when it was coded or scaled anew, and no other is ever taken for it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from cache.near import MOST_DISTANCE, Look, distance, likeness, look_of
from tests.bench.near import EDITED, SAME, dark_frames, edits, look, look_alikes, mistaken, photographs

COFFEE = photographs()["coffee"]


def test_a_look_does_not_change() -> None:
    """The hash of a known picture, pinned: looks of one gateway must mean the same to another."""
    rows = bytes(value for y in range(32) for x in range(48) for value in (x * 5, y * 7, (x * y) % 256))
    seen = look_of(48, 32, rows)

    assert (48, 32, 64 * 64 * 3) == (seen.width, seen.height, len(seen.thumbnail))
    assert "b6db6d9bddb3bb377777cee7bdeffbcfef9f9f3ffe7ff9ffafffffffffffffff" == f"{seen.hash:064x}"


def test_a_picture_is_like_itself() -> None:
    """At no distance, with no difference."""
    seen = look(COFFEE)
    alike = likeness(seen, seen, 0)

    assert alike is not None
    assert (0, 0.0) == (alike.distance, alike.difference)


def test_most_of_what_was_coded_or_scaled_anew_is_recognised() -> None:
    """Two thirds at least of real photographs, whatever the coding; none with more than the bound of difference."""
    rows = {row.name: row for row in edits(SAME)}

    assert 42 == rows["JPEG 90"].tried
    assert all(row.taken >= 28 for name, row in rows.items() if name != "half, JPEG 75")
    assert all(0 < row.largest <= 2 for row in rows.values())


def test_what_was_edited_is_told_apart() -> None:
    """A hash takes a captioned picture for the picture; its pixels do not lie. What escapes is smaller than a cell."""
    rows = {row.name: row for row in edits(EDITED)}
    escaped = {name: row.taken for name, row in rows.items() if row.taken}

    assert 42 == rows["a caption"].same_hash
    assert {"brighter by 3 %", "centre blurred", "one digit of 18 pixels"} >= escaped.keys()
    assert max(escaped.values()) <= 3


def test_look_alikes_are_never_mistaken() -> None:
    """Not one pair of different pictures is taken for one, though thousands have the hash of another."""
    rows = list(mistaken(look_alikes(0.3)))

    assert {row.name: 0 for row in rows} == {row.name: row.taken for row in rows}
    assert sum(row.same_hash for row in rows) > 200
    assert sum(row.tried for row in rows) > 12_000


@pytest.mark.parametrize(
    "image", [Image.new("RGB", (64, 64), "red"), Image.linear_gradient("L").convert("RGB"), *dark_frames(2)]
)
def test_pictures_without_detail_are_like_nothing(image: Image.Image) -> None:
    """Not even like themselves: there is nothing in them by which to tell."""
    assert likeness(look(image), look(image)) is None


@pytest.mark.parametrize(
    ("size", "alike"),
    [
        ((600, 400), True),
        ((300, 200), True),
        ((451, 301), True),  # three quarters, rounded either way
        ((450, 300), True),
        ((299, 199), False),  # less than half
        ((280, 187), False),
        ((600, 397), False),
        ((400, 400), False),
        ((400, 600), False),
    ],
)
def test_sizes_must_be_of_one_shape_and_not_too_far_apart(size: tuple[int, int], alike: bool) -> None:
    """The same sides, or both scaled by one factor down to a half; a squeezed picture is another one."""
    assert alike is (likeness(look(COFFEE), look(COFFEE.resize(size, Image.Resampling.LANCZOS))) is not None)


def test_each_bound_is_one() -> None:
    """The hash's, the whole parts' and the single cells': what exceeds any of them is another picture."""
    seen = look(COFFEE)
    assert likeness(seen, replace(seen, hash=seen.hash ^ 0b111), 3) is not None
    assert likeness(seen, replace(seen, hash=seen.hash ^ 0b1111), 3) is None
    assert likeness(seen, replace(seen, hash=seen.hash ^ (1 << MOST_DISTANCE + 1) - 1), 256) is None
    assert likeness(seen, _shifted(seen, range(64 * 64), 2)) is not None
    assert likeness(seen, _shifted(seen, range(64 * 64), 3)) is None
    assert likeness(seen, _shifted(seen, [2080], 6)) is not None
    assert likeness(seen, _shifted(seen, [2080], 7)) is None


def _shifted(seen: Look, cells: range | list[int], by: int) -> Look:
    """The same look with the colours of these cells moved by so many levels."""
    thumbnail = bytearray(seen.thumbnail)
    for cell in cells:
        for band in range(3):
            value = thumbnail[3 * cell + band]
            thumbnail[3 * cell + band] = value + by if value < 128 else value - by
    return replace(seen, thumbnail=bytes(thumbnail))


@given(st.integers(0, 2**16), st.sampled_from(sorted(SAME)))
def test_likeness_has_no_direction(seed: int, how: str) -> None:
    """Whichever was there first, two pictures are as alike."""
    image = random.Random(seed).choice(list(photographs().values())).resize((96, 64))
    one, other = look(image), look(SAME[how](image.filter(ImageFilter.GaussianBlur(1))))

    assert likeness(one, other) == likeness(other, one)
    assert distance(one, other) == distance(other, one) <= 256
