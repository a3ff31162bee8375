"""Pictures: from an uploaded file to pixels, and to the identity those pixels have.

Two files are the same picture when they show the same pixels: the container, its compression and its metadata do not
count, the orientation a camera noted down is applied, and transparency is laid on white. What comes out is 8-bit RGB.

A file is read in two steps. First our own reader walks its segments: it takes the size, the kind of pixels and the
orientation, and keeps the segments that make pixels and nothing else. What is too large, animated or not 8-bit is
refused here, before any memory is taken. Only then does Pillow decode what was kept. So none of its parsers for
profiles, comments and EXIF ever runs, and nothing depends on its global settings.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from types import TracebackType
from typing import Literal, NamedTuple, Self, TypeAlias

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cache.digest import Digest
from cache.encoding import hash_of
from gateway.errors import Internal, InvalidField, Overloaded, TooLarge

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


@dataclass(frozen=True, slots=True)
class Picture:
    """Decoded pixels: 8-bit RGB rows from the top, `height * width * 3` bytes, under the identity they have."""

    identity: str
    width: int
    height: int
    rgb: bytes = field(repr=False)

    @classmethod
    def of(cls, width: int, height: int, rgb: bytes) -> Picture:
        # The size is hashed beside the pixels: the same bytes are another picture when the rows are longer.
        pixels = Digest.of(rgb).hex
        identity = hash_of("picture", {"mode": "RGB", "width": width, "height": height, "pixels": pixels})
        return cls(identity, width, height, rgb)


def decode(data: bytes) -> Picture:
    """The picture in a file. Blocking and pure. Raises TooLarge and InvalidField, both for the field `image`."""
    if len(data) > LARGEST_FILE:
        raise _too_large()
    blueprint = _read(data)
    if blueprint.width * blueprint.height > MOST_PIXELS:
        raise _refused("PICTURE_TOO_MANY_PIXELS")
    if min(blueprint.width, blueprint.height) < SMALLEST_SIDE:
        raise _refused("PICTURE_TOO_SMALL")
    image = _develop(blueprint)
    return Picture.of(image.width, image.height, image.tobytes())


def _refused(reason: Reason) -> InvalidField:
    return InvalidField(FIELD, _WORDS[reason], reason=reason)


def _too_large() -> TooLarge:
    return TooLarge(FIELD, f"must be a file of at most {LARGEST_FILE // MIB} MiB", reason="PICTURE_TOO_LARGE")


# First step: our own reader.


class _Blueprint(NamedTuple):
    """What a file says of its picture before anything is decoded."""

    open: Callable[[BytesIO], Image.Image]
    width: int
    height: int
    orientation: int  # as EXIF counts them: 1 is upright
    pixels: bytes  # the file without what makes no pixels


def _read(data: bytes) -> _Blueprint:
    try:
        if data.startswith(_PNG):
            return _read_png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _read_jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _read_webp(data)
    except (struct.error, IndexError):  # a segment too short for what it should hold
        raise _refused("PICTURE_UNREADABLE") from None
    raise _refused("PICTURE_FORMAT")


_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def _read_png(data: bytes) -> _Blueprint:
    kept, orientation = [_PNG], 1
    for kind, content, start, end in _png_chunks(data):
        if kind in _PNG_PIXELS:
            kept.append(data[start:end])
        elif kind == b"acTL":
            raise _refused("PICTURE_ANIMATED")
        elif kind == b"eXIf":
            orientation = _orientation(data[content : end - 4])
        elif not kind[0] & 0x20:  # a capital first: nobody may show the picture without understanding this chunk
            raise _refused("PICTURE_UNREADABLE")
    if len(kept) < 2 or kept[1][4:8] != b"IHDR":
        raise _refused("PICTURE_UNREADABLE")
    width, height, depth = struct.unpack_from(">IIB", kept[1], 8)
    if depth > 8:
        raise _refused("PICTURE_MODE")
    return _Blueprint(PngImageFile, width, height, orientation, b"".join(kept))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Kind, start of content, start and end of each chunk: length, kind, content, checksum. The last one is IEND."""
    start = len(_PNG)
    for _ in range(MOST_SEGMENTS):
        if len(data) < start + 12:
            raise _refused("PICTURE_TRUNCATED")
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if len(data) < end:
            raise _refused("PICTURE_TRUNCATED")
        yield kind, start + 8, start, end
        if kind == b"IEND":
            return
        start = end
    raise _refused("PICTURE_UNREADABLE")


_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment
_JPEG_END, _JPEG_SCAN, _JPEG_EXIF = 0xD9, 0xDA, 0xE1
# JFIF (APP0) and Adobe (APP14) say how colours are coded. Other applications' segments and comments make no pixels.
_JPEG_ASIDE = frozenset(range(0xE1, 0xF0)) - {0xEE} | {0xFE}


def _read_jpeg(data: bytes) -> _Blueprint:
    kept, size, orientation, scan = [b"\xff\xd8"], None, None, 0
    for marker, content, end in _jpeg_segments(data):
        if marker == _JPEG_SCAN:
            scan = content
            break
        if marker in _JPEG_FRAMES and size is None:
            precision, height, width = struct.unpack_from(">BHH", data, content + 2)
            if precision != 8:
                raise _refused("PICTURE_MODE")
            size = (width, height)
        elif marker == _JPEG_EXIF and orientation is None and data[content + 2 : content + 8] == b"Exif\0\0":
            orientation = _orientation(data[content + 8 : end])
        if marker not in _JPEG_ASIDE:
            kept.append(bytes((0xFF, marker)) + data[content:end])
    if size is None:
        raise _refused("PICTURE_UNREADABLE")
    if data.rfind(b"\xff\xd9", scan) < 0:
        raise _refused("PICTURE_TRUNCATED")
    # More pictures may follow the first in one file: previews and gain maps of cameras. They are not what is shown.
    return _Blueprint(JpegImageFile, *size, orientation or 1, b"".join([*kept, b"\xff\xda", data[scan:]]))


_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment up to the first scan's. A segment begins with its length."""
    position = 2
    for _ in range(MOST_SEGMENTS):
        match = _JPEG_MARKER.search(data, position)
        if match is None:
            raise _refused("PICTURE_TRUNCATED")
        marker, position = match[1][0], match.end()
        if marker in _JPEG_BARE:
            continue
        if marker == _JPEG_END:
            raise _refused("PICTURE_UNREADABLE")
        if len(data) < position + 2:
            raise _refused("PICTURE_TRUNCATED")
        (length,) = struct.unpack_from(">H", data, position)
        end = position + max(length, 2)
        if len(data) < end:
            raise _refused("PICTURE_TRUNCATED")
        yield marker, position, end
        position = end
    raise _refused("PICTURE_UNREADABLE")


def _read_webp(data: bytes) -> _Blueprint:
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if len(data) < end:
        raise _refused("PICTURE_TRUNCATED")
    size, orientation = None, 1
    for kind, content, length in _webp_chunks(data, end):
        if kind in (b"ANIM", b"ANMF"):
            raise _refused("PICTURE_ANIMATED")
        if kind == b"EXIF":
            orientation = _orientation(data[content : content + length].removeprefix(b"Exif\0\0"))
        elif size is None:
            size = _webp_size(kind, data, content)
    if size is None:
        raise _refused("PICTURE_UNREADABLE")
    return _Blueprint(WebPImageFile, *size, orientation, data[:end])


def _webp_chunks(data: bytes, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start of content and its length, of each chunk."""
    position = 12
    for _ in range(MOST_SEGMENTS):
        if position >= end:
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        if position + 8 + length > end:
            raise _refused("PICTURE_TRUNCATED")
        yield kind, position + 8, length
        position += 8 + length + length % 2
    raise _refused("PICTURE_UNREADABLE")


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


# Second step: Pillow.

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"})


def _develop(blueprint: _Blueprint) -> Image.Image:
    """The upright RGB image a file was kept of."""
    try:
        return _upright(_opaque(_load(blueprint)), blueprint.orientation)
    except InvalidField:
        raise
    except MemoryError:
        raise Overloaded("GATEWAY_BUSY") from None
    except Exception as error:  # noqa: BLE001  # Pillow raises nearly anything for bytes made to break it
        raise _refused("PICTURE_TRUNCATED" if "truncated" in str(error) else "PICTURE_UNREADABLE") from None


def _load(blueprint: _Blueprint) -> Image.Image:
    image = blueprint.open(BytesIO(blueprint.pixels))
    # A file may give several sizes. What was allowed is the one that was read first, and no other is decoded.
    if image.size != (blueprint.width, blueprint.height):
        raise _refused("PICTURE_UNREADABLE")
    if image.mode not in _MODES:
        raise _refused("PICTURE_MODE")
    image.load()
    return image


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    paint = image.convert("RGBA")
    paper = Image.new("RGB", paint.size, "white")
    paper.paste(paint, mask=paint)
    return paper


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


# Where the gateway meets them.

_Place: TypeAlias = tuple[str, Digest]  # namespace and digest of the file


class _Known(NamedTuple):
    identity: str
    width: int
    height: int


class Source:
    """A picture known by its identity, whose pixels can be had when a worker needs them.

    It holds the pixels only if they had to be decoded to identify it. Let go of it once the worker has them.
    """

    def __init__(
        self, file: Digest, known: _Known, picture: Picture | None, develop: Callable[[], Awaitable[Picture]]
    ) -> None:
        self.file = file
        self.identity, self.width, self.height = known
        self._picture = picture
        self._develop = develop

    async def pixels(self) -> Picture:
        """The picture itself. Raises what fetching its file raises, and Internal if the file has changed meanwhile."""
        picture = self._picture or await self._develop()
        if picture.identity != self.identity:
            raise Internal("PICTURE_DIFFERS")
        return picture


class Darkroom:
    """Identifies uploaded pictures, decoding each but once while it is remembered.

    Decoding runs in a few threads of its own. A caller that leaves does not free its thread before it is done, so that
    asking and leaving again and again cannot make more of them. At most `most_waiting` files wait or are decoded at
    once; equal files of one namespace at the same time are one. What is remembered is remembered per namespace: how
    long an answer takes must not tell what others have uploaded.
    """

    def __init__(self, *, threads: int = 2, most_waiting: int = 64, most_remembered: int = 16_384) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="darkroom")
        self._most_waiting = most_waiting
        self._most_remembered = most_remembered
        self._remembered: OrderedDict[_Place, _Known] = OrderedDict()
        self._developing: dict[_Place, asyncio.Future[Picture]] = {}
        self.developed = 0  # files decoded since the start

    async def identify(self, namespace: str, raw: bytes) -> Source:
        """The picture in this file. Raises TooLarge, InvalidField, Overloaded."""
        if len(raw) > LARGEST_FILE:
            raise _too_large()

        async def given() -> bytes:
            return raw

        return await self.recognise(namespace, await _digest_of(raw), given)

    async def recognise(self, namespace: str, file: Digest, fetch: Callable[[], Awaitable[bytes]]) -> Source:
        """The picture in the file of this digest; `fetch` gets the file if it must be decoded.

        Raises what `identify` and `fetch` raise.
        """
        place = (namespace, file)
        develop = partial(self._picture, place, fetch)
        if known := self._recall(place):
            return Source(file, known, None, develop)
        picture = await develop()
        return Source(file, _Known(picture.identity, picture.width, picture.height), picture, develop)

    def close(self) -> None:
        """Gives the threads back. Files that still wait are not decoded any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _picture(self, place: _Place, fetch: Callable[[], Awaitable[bytes]]) -> Picture:
        under_way = self._developing.get(place)
        if under_way is None:
            raw = await fetch()
            under_way = self._developing.get(place) or self._begin(place, raw)
        return await asyncio.shield(under_way)

    def _begin(self, place: _Place, raw: bytes) -> asyncio.Future[Picture]:
        if len(self._developing) >= self._most_waiting:
            raise Overloaded("GATEWAY_BUSY")
        under_way = asyncio.get_running_loop().run_in_executor(self._threads, decode, raw)
        self._developing[place] = under_way
        under_way.add_done_callback(partial(self._end, place))
        return under_way

    def _end(self, place: _Place, done: asyncio.Future[Picture]) -> None:
        del self._developing[place]
        if done.cancelled():
            return
        self.developed += 1
        if done.exception() is None:  # asking marks it as seen, also when every caller has left
            picture = done.result()
            self._remember(place, _Known(picture.identity, picture.width, picture.height))

    def _recall(self, place: _Place) -> _Known | None:
        known = self._remembered.get(place)
        if known is not None:
            self._remembered.move_to_end(place)
        return known

    def _remember(self, place: _Place, known: _Known) -> None:
        self._remembered[place] = known
        self._remembered.move_to_end(place)
        while len(self._remembered) > self._most_remembered:
            self._remembered.popitem(last=False)


async def _digest_of(raw: bytes) -> Digest:
    if len(raw) > MIB:  # more than a millisecond's work
        return await asyncio.to_thread(Digest.of, raw)
    return Digest.of(raw)
