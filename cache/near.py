"""Near: whether two pictures are one and the same, coded or scaled differently.

No perceptual hash can tell that: to each of them a picture made grey, or with a caption added, is the picture. So the
hash only finds candidates, and what is believed is a comparison of pixels: both pictures in 64 by 64 cells, whose
colours must agree on the whole of every part of the picture and in every single cell. The first bounds what coding may
change, the second finds the small thing that was put in. Pictures without detail have nothing that could disagree,
and are like nothing. All of this is integer work of one library on decoded pixels, the same on every machine.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from PIL import Image, ImageChops

HASH_BITS = 256
USUAL_DISTANCE = 8  # bits
MOST_DISTANCE = 16  # further apart nothing is alike
_HASH_SIDE = 16
_SIDE = 64  # cells of a thumbnail, each way
_PARTS = 8  # parts of it in which colours are compared on the whole, each way
_MOST_IN_A_PART = 2.0  # of 255
_MOST_IN_A_CELL = 6.0
_LEAST_DETAIL = 50  # of 100
_MOST_SCALED = 2  # a picture of half the sides has lost what the other one shows
_BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True, slots=True)
class Look:
    """What is kept of a picture to recognise it by: its size in pixels, and how it looks from far away."""

    width: int
    height: int
    hash: int = field(repr=False)  # 256 bits: whether it grows brighter from left to right, in 16 rows of 16 steps
    thumbnail: bytes = field(repr=False)  # 64 rows of 64 RGB cells
    detail: int  # 0 for a plain surface, 44 for the steepest gradient across, 100 for most photographs

    @property
    def weight(self) -> int:
        return len(self.thumbnail) + HASH_BITS // 8


@dataclass(frozen=True, slots=True)
class Likeness:
    """How far apart two pictures are that are taken for one."""

    distance: int  # bits of the hash
    difference: float  # mean of the colours' difference where it is largest, of 255


def look_of(width: int, height: int, rgb: bytes) -> Look:
    """The look of 8-bit RGB rows, `height * width * 3` bytes. Blocking: it reads every pixel."""
    whole = Image.frombytes("RGB", (width, height), rgb)
    thumbnail = whole.resize((_SIDE, _SIDE), _BILINEAR, reducing_gap=3.0)
    grey = thumbnail.convert("L")
    rows = grey.resize((_HASH_SIDE + 1, _HASH_SIDE), _BILINEAR)
    left, right = rows.crop((0, 0, _HASH_SIDE, _HASH_SIDE)), rows.crop((1, 0, _HASH_SIDE + 1, _HASH_SIDE))
    brighter = ImageChops.subtract(right, left).tobytes()
    bits = sum(1 << place for place, step in enumerate(brighter) if step)
    return Look(width, height, bits, thumbnail.tobytes(), _detail(grey))


def distance(one: Look, other: Look) -> int:
    return (one.hash ^ other.hash).bit_count()


def likeness(one: Look, other: Look, most: int = MOST_DISTANCE) -> Likeness | None:
    """How alike two pictures are; None unless they are the same but for their coding and their scale."""
    apart = distance(one, other)
    if apart > min(most, MOST_DISTANCE) or min(one.detail, other.detail) < _LEAST_DETAIL or not _scaled(one, other):
        return None
    difference = ImageChops.difference(_image(one), _image(other))
    if max(map(sum, _pixels(difference))) > 3 * _MOST_IN_A_CELL:
        return None
    parts = [band.convert("F").resize((_PARTS, _PARTS), Image.Resampling.BOX) for band in difference.split()]
    numbers = [struct.unpack(f"{_PARTS**2}f", part.tobytes()) for part in parts]
    largest = max(map(sum, zip(*numbers, strict=True))) / 3
    return Likeness(apart, largest) if largest <= _MOST_IN_A_PART else None


def _scaled(one: Look, other: Look) -> bool:
    """Whether one has the size of the other, or that of the other scaled down, to the pixel."""
    small, large = sorted((one, other), key=lambda look: look.width * look.height)
    if small.width * _MOST_SCALED < large.width - 1 or small.height * _MOST_SCALED < large.height - 1:
        return False
    # Of the sides that this scale gives, each may have been rounded: by less than a pixel.
    return abs(large.width * small.height - small.width * large.height) < max(large.width, large.height)


def _detail(grey: Image.Image) -> int:
    """How much neighbouring cells differ: the measure of quality that PDQ, a hash for photographs, comes with."""
    inner = _SIDE - 1
    total = 0
    for one, other in (
        (grey.crop((0, 0, _SIDE, inner)), grey.crop((0, 1, _SIDE, _SIDE))),
        (grey.crop((0, 0, inner, _SIDE)), grey.crop((1, 0, _SIDE, _SIDE))),
    ):
        counts = ImageChops.difference(one, other).histogram()
        total += sum(100 * step // 255 * count for step, count in enumerate(counts))
    return min(100, total // 90)


def _image(look: Look) -> Image.Image:
    return Image.frombytes("RGB", (_SIDE, _SIDE), look.thumbnail)


def _pixels(image: Image.Image) -> zip[tuple[int, ...]]:
    return zip(*[iter(image.tobytes())] * 3, strict=True)
