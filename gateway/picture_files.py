"""Picture files: what a file says of its picture, read from its segments before anything is decoded.

This takes the size, the kind of pixels, the orientation and the colour profile, and keeps the segments that make
pixels and nothing else. What is animated, cut off or not 8-bit is refused here, before any memory is taken. Pillow then
decodes what was kept: none of its parsers for comments and EXIF ever runs, and no file makes it allocate a canvas by
being opened. PNG, JPEG and WebP are read here; HEIC and AVIF, which are made of boxes, in `picture_boxes`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from gateway.blueprint import LARGEST_PROFILE, MOST_SEGMENTS, Blueprint, refused
from gateway.picture_boxes import read_boxes


def read(data: bytes) -> Blueprint:
    try:
        if data.startswith(_PNG):
            return _read_png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _read_jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _read_webp(data)
        if data[4:8] == b"ftyp":
            return read_boxes(data)
    except (struct.error, IndexError):  # a segment too short for what it should hold
        raise refused("PICTURE_UNREADABLE") from None
    raise refused("PICTURE_FORMAT")


_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def _read_png(data: bytes) -> Blueprint:
    kept, orientation, profile = [_PNG], 1, b""
    for kind, content, start, end in _png_chunks(data):
        if kind in _PNG_PIXELS:
            kept.append(data[start:end])
        elif kind == b"acTL":
            raise refused("PICTURE_ANIMATED")
        elif kind == b"eXIf":
            orientation = _orientation(data[content : end - 4])
        elif kind == b"iCCP":
            profile = _unpacked(data[content : end - 4].partition(b"\0")[2][1:])
        elif not kind[0] & 0x20:  # a capital first: nobody may show the picture without understanding this chunk
            raise refused("PICTURE_UNREADABLE")
    if len(kept) < 2 or kept[1][4:8] != b"IHDR":
        raise refused("PICTURE_UNREADABLE")
    width, height, depth = struct.unpack_from(">IIB", kept[1], 8)
    if depth > 8:
        raise refused("PICTURE_MODE")
    return Blueprint(PngImageFile, width, height, orientation, b"".join(kept), profile)


def _unpacked(packed: bytes) -> bytes:
    """A compressed colour profile; nothing if it is damaged, or larger than any honest one."""
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed, LARGEST_PROFILE)
    except zlib.error:
        return b""
    return profile if unpacker.eof else b""


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
# Of a whole file, with the pictures that may follow in it. Each passes over every block of the picture, and a scan that
# says nothing has thirty bytes: a small file could keep a decoder busy for an hour.
_MOST_SCANS = 256
_JPEG_END, _JPEG_SCAN, _JPEG_EXIF, _JPEG_PROFILE = 0xD9, 0xDA, 0xE1, 0xE2
# JFIF (APP0) and Adobe (APP14) say how colours are coded. Other applications' segments and comments make no pixels.
_JPEG_ASIDE = frozenset(range(0xE1, 0xF0)) - {0xEE} | {0xFE}


def _read_jpeg(data: bytes) -> Blueprint:
    kept, size, orientation, scan = [b"\xff\xd8"], None, None, 0
    profile: dict[int, bytes] = {}  # its pieces, by number
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
        elif marker == _JPEG_PROFILE and data[content + 2 : content + 14] == b"ICC_PROFILE\0":
            profile.setdefault(data[content + 14], data[content + 16 : end])
        if marker not in _JPEG_ASIDE:
            kept.append(bytes((0xFF, marker)) + data[content:end])
    if size is None:
        raise refused("PICTURE_UNREADABLE")
    if data.rfind(b"\xff\xd9", scan) < 0:
        raise refused("PICTURE_TRUNCATED")
    if data.count(b"\xff\xda", scan) > _MOST_SCANS:
        raise refused("PICTURE_UNREADABLE")
    # More pictures may follow the first in one file: previews and gain maps of cameras. They are not what is shown.
    pixels = b"".join([*kept, b"\xff\xda", data[scan:]])
    return Blueprint(JpegImageFile, *size, orientation or 1, pixels, b"".join(profile[n] for n in sorted(profile)))


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
    size, orientation, profile = None, 1, b""
    for kind, content, length in _webp_chunks(data, end):
        if kind in (b"ANIM", b"ANMF"):
            raise refused("PICTURE_ANIMATED")
        if kind == b"EXIF":
            orientation = _orientation(data[content : content + length].removeprefix(b"Exif\0\0"))
        elif kind == b"ICCP":
            profile = data[content : content + length]
        elif size is None:
            size = _webp_size(kind, data, content)
    if size is None:
        raise refused("PICTURE_UNREADABLE")
    return Blueprint(WebPImageFile, *size, orientation, data[:end], profile)


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
