"""HEIC files made box by box, so that a test can say anything in them: real HEVC pictures in a container of our own.

Written after ISO/IEC 23008-12 and on purpose without a line of the reader under test.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
from PIL import Image

Property = tuple[bytes, bytes]


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def full(kind: bytes, content: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags) + content)


def ispe(width: int, height: int) -> Property:
    return b"ispe", struct.pack(">III", 0, width, height)


def irot(quarters: int) -> Property:
    return b"irot", bytes([quarters])


def imir(axis: int) -> Property:
    return b"imir", bytes([axis])


def clap(width: int, height: int, across: Fraction, down: Fraction) -> Property:
    """A clean aperture of this size, whose centre is so far from the picture's."""
    numbers = [width, 1, height, 1, across.numerator, across.denominator, down.numerator, down.denominator]
    return b"clap", struct.pack(">IIIIiIiI", *numbers)


@dataclass
class Item:
    number: int
    kind: bytes
    data: bytes
    properties: Sequence[Property] = ()
    inside: bool = False  # in `idat`, not in `mdat`
    essential: frozenset[bytes] = frozenset({b"hvcC", b"av1C"})
    references: dict[bytes, list[int]] = field(default_factory=dict)


def coded(number: int, image: Image.Image, *more: Property, depth: int = 8, repeat: int = 1) -> Item:
    """A coded picture as an item; `repeat` times the same picture in its data."""
    sets, slices = hevc(image.tobytes(), image.size, depth)
    data = b"".join(struct.pack(">I", len(nal)) + nal for _ in range(repeat) for nal in slices)
    return Item(number, b"hvc1", data, [(b"hvcC", configuration(sets, depth)), ispe(*image.size), *more])


def grid(number: int, tiles: Sequence[Item], columns: int, size: tuple[int, int], *more: Property) -> Item:
    """A picture made of tiles, row by row."""
    rows = len(tiles) // columns
    data = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *size)
    references = {b"dimg": [tile.number for tile in tiles]}
    return Item(number, b"grid", data, [ispe(*size), *more], inside=True, references=references)


def heif(items: Sequence[Item], primary: int = 1, *, brands: bytes = b"heicmif1heic", more: bytes = b"") -> bytes:
    """A file of these items; `more` are boxes behind the others."""
    store: list[Property] = []
    for item in items:
        store += [each for each in item.properties if each not in store]
    rules = b""
    for item in items:
        marks = [store.index(each) + 1 | (0x80 if each[0] in item.essential else 0) for each in item.properties]
        rules += struct.pack(">HB", item.number, len(marks)) + bytes(marks)
    entries = b"".join(full(b"infe", struct.pack(">HH4s", i.number, 0, i.kind) + b"\0", version=2) for i in items)
    references = b"".join(
        box(kind, struct.pack(f">HH{len(to)}H", item.number, len(to), *to))
        for item in items
        for kind, to in item.references.items()
    )
    fixed = (
        full(b"hdlr", b"\0\0\0\0pict" + bytes(13))
        + full(b"pitm", struct.pack(">H", primary))
        + full(b"iinf", struct.pack(">H", len(items)) + entries)
        + box(
            b"iprp",
            box(b"ipco", b"".join(box(*each) for each in store)) + full(b"ipma", struct.pack(">I", len(items)) + rules),
        )
        + (full(b"iref", references) if references else b"")
        + box(b"idat", b"".join(item.data for item in items if item.inside))
    )
    start = box(b"ftyp", brands[:4] + bytes(4) + brands[4:])

    def places(offset: int) -> bytes:
        entries, inside = b"", 0
        for item in items:
            at = inside if item.inside else offset
            entries += struct.pack(">HHHHII", item.number, int(item.inside), 0, 1, at, len(item.data))
            inside, offset = inside + len(item.data) * item.inside, offset + len(item.data) * (not item.inside)
        return full(b"iloc", struct.pack(">HH", 0x4400, len(items)) + entries, version=1)

    before = len(start) + len(full(b"meta", fixed + places(0))) + 8
    media = b"".join(item.data for item in items if not item.inside)
    return start + full(b"meta", fixed + places(before)) + box(b"mdat", media) + more


@lru_cache(maxsize=64)
def hevc(rgb: bytes, size: tuple[int, int], depth: int = 8) -> tuple[list[bytes], list[bytes]]:
    """A picture coded as HEVC: its parameter sets, and its slices."""
    context = av.CodecContext.create("libx265", "w")
    context.width, context.height = size
    context.pix_fmt = {8: "yuv420p", 10: "yuv420p10le"}[depth]
    context.time_base = Fraction(1, 1)
    context.options = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=1:info=0:crf=12:pools=1"}
    pixels = np.frombuffer(rgb, np.uint8).reshape(size[1], size[0], 3)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=context.pix_fmt)
    frame.pts = 0
    stream = b"".join(bytes(packet) for packet in (*context.encode(frame), *context.encode(None)))
    nals = [nal.rstrip(b"\0") for nal in stream.split(b"\0\0\1") if nal.strip(b"\0")]
    return [nal for nal in nals if kind_of(nal) in (32, 33, 34)], [nal for nal in nals if kind_of(nal) < 32]


def kind_of(nal: bytes) -> int:
    return nal[0] >> 1 & 63


def configuration(sets: Sequence[bytes], depth: int = 8) -> bytes:
    """`hvcC`: what a decoder is told before the picture."""
    header = next(nal for nal in sets if kind_of(nal) == 33)
    profile = header[3:15].replace(b"\0\0\3", b"\0\0")[:12].ljust(12, b"\0")
    start = bytes([1]) + profile + b"\xf0\0\xfc\xfd" + bytes([0xF8 | depth - 8, 0xF8 | depth - 8]) + b"\0\0\x0f"
    arrays = b"".join(bytes([0x80 | kind_of(nal)]) + struct.pack(">HH", 1, len(nal)) + nal for nal in sets)
    return start + bytes([len(sets)]) + arrays
