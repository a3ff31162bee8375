"""Blueprint: what a file says of its picture before anything is decoded, and the bounds it must keep."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Literal, NamedTuple, TypeAlias

from PIL import Image

from gateway.errors import InvalidField

FIELD = "image"
FORMATS = "PNG, JPEG, WebP, HEIC or AVIF"
MIB = 1024 * 1024
LARGEST_FILE = 16 * MIB  # bytes
LARGEST_PROFILE = 4 * MIB  # bytes of a colour profile; those of printing machines have two
MOST_PIXELS = 20_000_000
SMALLEST_SIDE = 8  # pixels
MOST_SEGMENTS = 65_536  # of a file; walking more costs a reader more than decoding a picture

Reason: TypeAlias = Literal[
    "PICTURE_FORMAT",
    "PICTURE_UNREADABLE",
    "PICTURE_TRUNCATED",
    "PICTURE_TOO_MANY_PIXELS",
    "PICTURE_TOO_SMALL",
    "PICTURE_ANIMATED",
    "PICTURE_MODE",
]
_WORDS: dict[Reason, str] = {
    "PICTURE_FORMAT": f"must be a {FORMATS} file",
    "PICTURE_UNREADABLE": "must be an intact picture; this file is damaged or uses an unusual feature: save it anew",
    "PICTURE_TRUNCATED": "must be a whole file; the end of this one is missing",
    "PICTURE_TOO_MANY_PIXELS": f"must have at most {MOST_PIXELS:,} pixels; scale it down",
    "PICTURE_TOO_SMALL": f"must be at least {SMALLEST_SIDE} pixels wide and high",
    "PICTURE_ANIMATED": "must have exactly one frame; send one frame of the animation",
    "PICTURE_MODE": "must have 8 bits per channel; save it as 8-bit RGB or greyscale",
}


def refused(reason: Reason) -> InvalidField:
    return InvalidField(FIELD, _WORDS[reason], reason=reason)


class Box(NamedTuple):
    """A part of a picture, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


class Blueprint(NamedTuple):
    """How to make the picture that a file shows."""

    open: Callable[[BytesIO], Image.Image]
    width: int  # of what the decoder gives
    height: int
    orientation: int  # as EXIF counts them: 1 is upright
    pixels: bytes  # the file without what makes no pixels
    profile: bytes = b""  # what its colours mean, as an ICC profile; empty: sRGB
    shown: Box | None = None  # the part of it that the file says is the picture, before it is turned
