"""Picture files: what a PNG, JPEG or WebP file says of its picture, read from its segments before anything is decoded.

This takes the size, the kind of pixels and the orientation, and keeps the segments that make pixels and nothing else.
What is animated, cut off or not 8-bit is refused here, before any memory is taken. Pillow then decodes what was kept:
none of its parsers for profiles, comments and EXIF ever runs, and no file makes it allocate a canvas by being opened.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Literal, NamedTuple, TypeAlias

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from gateway.errors import InvalidField

FIELD = "image"
MIB = 1024 * 1024
LARGEST_FILE = 16 * MIB  # bytes
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
    "PICTURE_FORMAT": "must be a PNG, JPEG or WebP file",
    "PICTURE_UNREADABLE": "must be an intact picture; this file is damaged or uses an unusual feature: save it anew",
    "PICTURE_TRUNCATED": "must be a whole file; the end of this one is missing",
    "PICTURE_TOO_MANY_PIXELS": f"must have at most {MOST_PIXELS:,} pixels; scale it down",
    "PICTURE_TOO_SMALL": f"must be at least {SMALLEST_SIDE} pixels wide and high",
    "PICTURE_ANIMATED": "must have exactly one frame; send one frame of the animation",
    "PICTURE_MODE": "must have 8 bits per channel; save it as 8-bit RGB or greyscale",
}


def refused(reason: Reason) -> InvalidField:
    return InvalidField(FIELD, _WORDS[reason], reason=reason)


class Blueprint(NamedTuple):
    """What a file says of its picture before anything is decoded."""

    open: Callable[[BytesIO], Image.Image]
    width: int
    height: int
    orientation: int  # as EXIF counts them: 1 is upright
    pixels: bytes  # the file without what makes no pixels


def read(data: bytes) -> Blueprint:
    try:
        if data.startswith(_PNG):
            return _read_png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _read_jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _read_webp(data)
    except (struct.error, IndexError):  # a segment too short for what it should hold
        raise refused("PICTURE_UNREADABLE") from None
    raise refused("PICTURE_FORMAT")


_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def _read_png(data: bytes) -> Blueprint:
    kept, orientation = [_PNG], 1
    for kind, content, start, end in _png_chunks(data):
        if kind in _PNG_PIXELS:
            kept.append(data[start:end])
        elif kind == b"acTL":
            raise refused("PICTURE_ANIMATED")
        elif kind == b"eXIf":
            orientation = _orientation(data[content : end - 4])
        elif not kind[0] & 0x20:  # a capital first: nobody may show the picture without understanding this chunk
            raise refused("PICTURE_UNREADABLE")
    if len(kept) < 2 or kept[1][4:8] != b"IHDR":
        raise refused("PICTURE_UNREADABLE")
    width, height, depth = struct.unpack_from(">IIB", kept[1], 8)
    if depth > 8:
        raise refused("PICTURE_MODE")
    return Blueprint(PngImageFile, width, height, orientation, b"".join(kept))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Kind, start of content, start and end of each chunk: length, kind, content, checksum. The last one is IEND."""
    start = len(_PNG)
    for _ in range(MOST_SEGMENTS):
        if len(data) < start + 12:
            raise refused("PICTURE_TRUNCATED")
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if len(data) < end:
            raise refused("PICTURE_TRUNCATED")
        yield kind, start + 8, start, end
        if kind == b"IEND":
            return
        start = end
    raise refused("PICTURE_UNREADABLE")


_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment
_JPEG_END, _JPEG_SCAN, _JPEG_EXIF = 0xD9, 0xDA, 0xE1
# JFIF (APP0) and Adobe (APP14) say how colours are coded. Other applications' segments and comments make no pixels.
_JPEG_ASIDE = frozenset(range(0xE1, 0xF0)) - {0xEE} | {0xFE}


def _read_jpeg(data: bytes) -> Blueprint:
    kept, size, orientation, scan = [b"\xff\xd8"], None, None, 0
    for marker, content, end in _jpeg_segments(data):
        if marker == _JPEG_SCAN:
            scan = content
            break
        if marker in _JPEG_FRAMES and size is None:
            precision, height, width = struct.unpack_from(">BHH", data, content + 2)
            if precision != 8:
                raise refused("PICTURE_MODE")
            size = (width, height)
        elif marker == _JPEG_EXIF and orientation is None and data[content + 2 : content + 8] == b"Exif\0\0":
            orientation = _orientation(data[content + 8 : end])
        if marker not in _JPEG_ASIDE:
            kept.append(bytes((0xFF, marker)) + data[content:end])
    if size is None:
        raise refused("PICTURE_UNREADABLE")
    if data.rfind(b"\xff\xd9", scan) < 0:
        raise refused("PICTURE_TRUNCATED")
    # More pictures may follow the first in one file: previews and gain maps of cameras. They are not what is shown.
    return Blueprint(JpegImageFile, *size, orientation or 1, b"".join([*kept, b"\xff\xda", data[scan:]]))


_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment up to the first scan's. A segment begins with its length."""
    position = 2
    for _ in range(MOST_SEGMENTS):
        match = _JPEG_MARKER.search(data, position)
        if match is None:
            raise refused("PICTURE_TRUNCATED")
        marker, position = match[1][0], match.end()
        if marker in _JPEG_BARE:
            continue
        if marker == _JPEG_END:
            raise refused("PICTURE_UNREADABLE")
        if len(data) < position + 2:
            raise refused("PICTURE_TRUNCATED")
        (length,) = struct.unpack_from(">H", data, position)
        end = position + max(length, 2)
        if len(data) < end:
            raise refused("PICTURE_TRUNCATED")
        yield marker, position, end
        position = end
    raise refused("PICTURE_UNREADABLE")


def _read_webp(data: bytes) -> Blueprint:
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if len(data) < end:
        raise refused("PICTURE_TRUNCATED")
    size, orientation = None, 1
    for kind, content, length in _webp_chunks(data, end):
        if kind in (b"ANIM", b"ANMF"):
            raise refused("PICTURE_ANIMATED")
        if kind == b"EXIF":
            orientation = _orientation(data[content : content + length].removeprefix(b"Exif\0\0"))
        elif size is None:
            size = _webp_size(kind, data, content)
    if size is None:
        raise refused("PICTURE_UNREADABLE")
    return Blueprint(WebPImageFile, *size, orientation, data[:end])


def _webp_chunks(data: bytes, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start of content and its length, of each chunk."""
    position = 12
    for _ in range(MOST_SEGMENTS):
        if position >= end:
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        if position + 8 + length > end:
            raise refused("PICTURE_TRUNCATED")
        yield kind, position + 8, length
        position += 8 + length + length % 2
    raise refused("PICTURE_UNREADABLE")


def _webp_size(kind: bytes, data: bytes, content: int) -> tuple[int, int] | None:
    """Width and height, if this is a chunk that tells them: the canvas, or a lossy or lossless picture."""
    if kind == b"VP8X":
        canvas = struct.unpack_from("<HBHB", data, content + 4)
        return 1 + canvas[0] + (canvas[1] << 16), 1 + canvas[2] + (canvas[3] << 16)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, content + 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, content + 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


_TIFF_ORIENTATION, _TIFF_SHORT = 0x0112, 3


def _orientation(tiff: bytes) -> int:
    """Orientation in an EXIF block, 1 to 8. Upright if it says nothing, or nothing that can be understood."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for number in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * number)
            if tag == _TIFF_ORIENTATION and kind == _TIFF_SHORT:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # as for every program that shows the picture, broken metadata is no metadata
    return 1
