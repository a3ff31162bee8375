"""Picture boxes: what a HEIC or AVIF file says of its picture, read from its boxes before anything is decoded.

Such a file (ISO/IEC 23008-12) is a small database: items (coded pictures, grids of them, notes), their properties, and
references among them. What is shown is the primary item: one coded picture, or a grid of tiles, and perhaps another
such picture for its alpha. Those alone are taken, checked, and written into a new file for the decoder: it never sees
thumbnails, depth maps, profiles, notes, or anything else that it would parse. The sizes that the coded pictures claim
in their own headers are compared with the sizes that were allowed, because those headers are what a decoder allocates
by; and each coded picture must be one picture, because its decoder would decode as many as there are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import NamedTuple

from pi_heif import HeifImageFile
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile

from gateway.blueprint import LARGEST_FILE, LARGEST_PROFILE, MOST_PIXELS, Blueprint, Box, refused

_MOST_BOXES = 16_384  # of a file
_MOST_ITEMS = 4_096
_MOST_TILES = 1_024
_MOST_EXTENTS = 16_384  # of all items: each may be told in no bytes at all
_MOST_PROPERTIES = 256  # of one item, which are looked through again and again
_MOST_UNITS = 4_096  # of one coded picture's stream
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
_AVIF = frozenset({b"avif", b"avis"})
_GRID = b"grid"
_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
_KEPT = frozenset({b"ispe", b"pixi", b"hvcC", b"av1C", b"auxC", b"colr"})
_MOVING = frozenset({b"clap", b"irot", b"imir"})  # what we do ourselves, in this order
_CODED_SLACK = 64  # pixels by which a coded picture may be larger than what is cut out of it: one block


def read_boxes(data: bytes) -> Blueprint:
    """Raises InvalidField; struct.error and IndexError where a box is too short for what it should hold."""
    document = _document(data)
    primary = document.item(document.primary)
    alpha = document.alpha_of(primary)
    tiles = {each.number: document.tiles_of(each) for each in (primary, alpha) if each is not None}
    kept = {tile.number: tile for each in tiles.values() for tile in each} | {n: document.item(n) for n in tiles}
    coding = _CODINGS.get(next(iter(kept.values())).kind)
    if coding is None:
        raise refused("PICTURE_UNREADABLE")
    for item in kept.values():
        _check(item, coding, document)
    shown, orientation = _movement(primary)
    pixels = _written(primary, alpha, list(kept.values()), tiles, coding.brand)
    return Blueprint(coding.open, *primary.size, orientation, pixels, _profile(primary), shown)


@dataclass
class _Item:
    number: int
    kind: bytes = b""
    extents: list[tuple[bytes, int, int]] = field(default_factory=list)  # where it is: bytes, start, length
    properties: list[tuple[bytes, bytes, bool]] = field(default_factory=list)  # kind, content, essential

    @property
    def data(self) -> bytes:
        parts = []
        for source, start, length in self.extents:
            if start + length > len(source):
                raise refused("PICTURE_TRUNCATED")
            parts.append(source[start : start + length])
        return b"".join(parts)

    @property
    def size(self) -> tuple[int, int]:
        width, height = struct.unpack_from(">II", self.only(b"ispe"), 4)
        return width, height

    def only(self, kind: bytes) -> bytes:
        """The content of the one property of this kind."""
        found = [content for each, content, _ in self.properties if each == kind]
        if len(found) != 1:
            raise refused("PICTURE_UNREADABLE")
        return found[0]


@dataclass
class _Document:
    brands: frozenset[bytes]
    primary: int
    items: dict[int, _Item]
    references: list[tuple[bytes, int, list[int]]]  # kind, from, to

    def item(self, number: int) -> _Item:
        if number not in self.items:
            raise refused("PICTURE_UNREADABLE")
        return self.items[number]

    def alpha_of(self, shown: _Item) -> _Item | None:
        for kind, number, targets in self.references:
            if kind == b"prem":
                raise refused("PICTURE_UNREADABLE")  # colours that were multiplied by their alpha
            if kind == b"auxl" and shown.number in targets:
                item = self.item(number)
                names = [content[4:].partition(b"\0")[0] for each, content, _ in item.properties if each == b"auxC"]
                if names and names[0] in _ALPHA:
                    return item
        return None

    def tiles_of(self, item: _Item) -> list[_Item]:
        if item.kind != _GRID:
            return []
        numbers = [n for kind, number, to in self.references if (kind, number) == (b"dimg", item.number) for n in to]
        tiles = [self.item(number) for number in numbers]
        _, flags, rows, columns = struct.unpack_from(">BBBB", item.data)
        size = struct.unpack_from(">II" if flags & 1 else ">HH", item.data, 4)
        count = (rows + 1) * (columns + 1)
        if len(tiles) != count or len(set(numbers)) != count or count > _MOST_TILES or size != item.size:
            raise refused("PICTURE_UNREADABLE")
        width, height = tiles[0].size
        covers = width * (columns + 1) >= size[0] and height * (rows + 1) >= size[1]
        if not covers or any(tile.size != (width, height) or tile.kind == _GRID for tile in tiles):
            raise refused("PICTURE_UNREADABLE")
        if width * height * count > 2 * MOST_PIXELS:
            raise refused("PICTURE_TOO_MANY_PIXELS")
        return tiles


class _Coding(NamedTuple):
    kind: bytes  # of items
    configuration: bytes
    brand: bytes
    open: Callable[[BytesIO], Image.Image]
    look: Callable[[bytes, bytes], tuple[int, int]]  # configuration and data -> size it is coded in


def _check(item: _Item, coding: _Coding, document: _Document) -> None:
    """Whether the decoder would find in this item what its properties promise."""
    for kind, content, essential in item.properties:
        if essential and kind not in _KEPT | _MOVING:
            raise refused("PICTURE_UNREADABLE")
        if kind == b"pixi" and any(depth > 8 for depth in content[5 : 5 + content[4]]):
            raise refused("PICTURE_MODE")
    if item.number != document.primary and any(kind in _MOVING for kind, _, _ in item.properties):
        # An alpha that is turned with its picture says so itself. One that is turned otherwise does not fit it.
        if _movement(item) != _movement(document.item(document.primary)):
            raise refused("PICTURE_UNREADABLE")
    width, height = item.size
    if width * height > MOST_PIXELS:
        raise refused("PICTURE_TOO_MANY_PIXELS")
    if item.kind == _GRID:
        return
    if item.kind != coding.kind:
        raise refused("PICTURE_UNREADABLE")
    coded = coding.look(item.only(coding.configuration), item.data)
    if not (width <= coded[0] <= width + _CODED_SLACK and height <= coded[1] <= height + _CODED_SLACK):
        raise refused("PICTURE_UNREADABLE")


# Rotation in quarters against the clock, and then mirroring (0: top to bottom, 1: left to right) -> as EXIF counts.
_ORIENTATIONS = {
    (0, None): 1,
    (1, None): 8,
    (2, None): 3,
    (3, None): 6,
    (0, 0): 4,
    (1, 0): 5,
    (2, 0): 2,
    (3, 0): 7,
    (0, 1): 2,
    (1, 1): 7,
    (2, 1): 4,
    (3, 1): 5,
}


def _movement(item: _Item) -> tuple[Box | None, int]:
    """The part of an item that is shown, and how it is turned then."""
    moves = [(kind, content) for kind, content, _ in item.properties if kind in _MOVING]
    kinds = [kind for kind, _ in moves]
    if kinds != [kind for kind in (b"clap", b"irot", b"imir") if kind in kinds]:
        raise refused("PICTURE_UNREADABLE")  # twice, or in an order in which they mean something else
    found = dict(moves)
    turned = found[b"irot"][0] & 3 if b"irot" in found else 0
    mirrored = found[b"imir"][0] & 1 if b"imir" in found else None
    shown = _aperture(found[b"clap"], *item.size) if b"clap" in found else None
    return shown, _ORIENTATIONS[turned, mirrored]


def _aperture(content: bytes, width: int, height: int) -> Box:
    """The box that a clean aperture cuts out: its size, and how far its centre is from the picture's, as fractions."""
    numbers = struct.unpack_from(">IIIIiIiI", content)
    edges = []
    for full, size, below, offset, under in (
        (width, *numbers[:2], *numbers[4:6]),
        (height, *numbers[2:4], *numbers[6:]),
    ):
        if not below or not under or size % below:
            raise refused("PICTURE_UNREADABLE")
        cut = size // below
        start, rest = divmod(2 * offset + (full - cut) * under, 2 * under)
        if rest or cut < 1 or start < 0 or start + cut > full:
            raise refused("PICTURE_UNREADABLE")
        edges.append((start, cut))
    (left, wide), (top, high) = edges
    return Box(left, top, wide, high)


def _profile(item: _Item) -> bytes:
    for kind, content, _ in item.properties:
        if kind == b"colr" and content[:4] in (b"prof", b"rICC") and len(content) <= LARGEST_PROFILE:
            return content[4:]
    return b""


# From bytes to boxes.


def _document(data: bytes) -> _Document:
    brands: frozenset[bytes] = frozenset()
    meta: bytes | None = None
    for kind, content in _boxes(data):
        if kind == b"ftyp":
            brands = frozenset(content[at : at + 4] for at in (0, *range(8, len(content), 4)))
            if not brands & (_HEIC | _AVIF):
                raise refused("PICTURE_FORMAT")
        elif kind == b"moov":
            raise refused("PICTURE_ANIMATED")
        elif kind == b"meta" and meta is None:
            meta = content
    if meta is None:
        raise refused("PICTURE_TRUNCATED" if brands else "PICTURE_FORMAT")
    parts = dict(reversed([*_boxes(meta, 4)]))  # the first of each kind
    if not {b"pitm", b"iinf", b"iloc", b"iprp"} <= parts.keys():
        raise refused("PICTURE_UNREADABLE")
    items = _items(parts[b"iinf"])
    _place(items, parts[b"iloc"], data, parts.get(b"idat", b""))
    _describe(items, parts[b"iprp"])
    primary = _unsigned(parts[b"pitm"], 4, 4 if parts[b"pitm"][0] else 2)
    return _Document(brands, primary, items, [*_references(parts.get(b"iref"))])


def _boxes(data: bytes, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each box from `start` on."""
    for _ in range(_MOST_BOXES):
        if start == len(data):
            return
        if len(data) < start + 8:
            raise refused("PICTURE_TRUNCATED")
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            size, head = _unsigned(data, start + 8, 8), 16
        elif size == 0:
            size = len(data) - start  # to the end
        if size < head:
            raise refused("PICTURE_UNREADABLE")
        if start + size > len(data):
            raise refused("PICTURE_TRUNCATED")
        yield kind, data[start + head : start + size]
        start += size
    raise refused("PICTURE_UNREADABLE")


def _unsigned(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise refused("PICTURE_UNREADABLE")
    return int.from_bytes(data[at : at + size], "big")


def _items(iinf: bytes) -> dict[int, _Item]:
    items: dict[int, _Item] = {}
    for kind, entry in _boxes(iinf, 8 if iinf[0] else 6):
        if kind != b"infe" or entry[0] not in (2, 3) or len(items) >= _MOST_ITEMS:
            raise refused("PICTURE_UNREADABLE")
        wide = 4 if entry[0] == 3 else 2
        number = _unsigned(entry, 4, wide)
        if _unsigned(entry, 4 + wide, 2):
            continue  # protected: there is no key
        items[number] = _Item(number, entry[6 + wide : 10 + wide])
    return items


def _place(items: dict[int, _Item], iloc: bytes, data: bytes, idat: bytes) -> None:
    version = iloc[0]
    sizes = _unsigned(iloc, 4, 2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    wide = 4 if version == 2 else 2
    count, at, taken, extents = _unsigned(iloc, 6, wide), 6 + wide, 0, 0

    def next_number(size: int) -> int:
        nonlocal at
        at += size
        return _unsigned(iloc, at - size, size)

    for _ in range(count):
        item = items.get(next_number(wide), _Item(-1))
        source = {0: data, 1: idat}.get(next_number(2) & 15 if version else 0)
        if next_number(2) or source is None:
            raise refused("PICTURE_UNREADABLE")  # in another file, or in another item
        base, many = next_number(base_size), next_number(2)
        extents += many
        if extents > _MOST_EXTENTS:
            raise refused("PICTURE_UNREADABLE")
        for _ in range(many):
            next_number(index_size)
            start = base + next_number(offset_size)
            length = next_number(length_size) or len(source) - start
            taken += max(0, length) if item.number >= 0 else 0
            if length < 0 or taken > LARGEST_FILE:
                raise refused("PICTURE_UNREADABLE")
            item.extents.append((source, start, length))


def _describe(items: dict[int, _Item], iprp: bytes) -> None:
    store: list[tuple[bytes, bytes]] = []
    for kind, content in _boxes(iprp):
        if kind == b"ipco":
            store = [*_boxes(content)]
        elif kind == b"ipma":
            _associate(items, content, store)


def _associate(items: dict[int, _Item], ipma: bytes, store: Sequence[tuple[bytes, bytes]]) -> None:
    wide, broad = (4 if ipma[0] else 2), ipma[3] & 1
    count, at = _unsigned(ipma, 4, 4), 8
    for _ in range(count):
        item = items.get(_unsigned(ipma, at, wide))
        many = _unsigned(ipma, at + wide, 1)
        at += wide + 1
        for _ in range(many):
            value = _unsigned(ipma, at, 2 if broad else 1)
            at += 2 if broad else 1
            essential, index = divmod(value, 0x8000 if broad else 0x80)
            if index > len(store) or (item is not None and len(item.properties) >= _MOST_PROPERTIES):
                raise refused("PICTURE_UNREADABLE")
            if item is not None and index:
                item.properties.append((*store[index - 1], bool(essential)))


def _references(iref: bytes | None) -> Iterator[tuple[bytes, int, list[int]]]:
    if iref is None:
        return
    wide = 4 if iref[0] else 2
    for kind, content in _boxes(iref, 4):
        count = _unsigned(content, wide, 2)
        if count > _MOST_ITEMS:
            raise refused("PICTURE_UNREADABLE")
        yield kind, _unsigned(content, 0, wide), [_unsigned(content, wide + 2 + n * wide, wide) for n in range(count)]


# From coded pictures to their size.


class _Bits:
    """Bits of a header, the highest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = len(data) * 8

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise refused("PICTURE_UNREADABLE")
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        """A number in the code that both standards use for those of unknown size."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise refused("PICTURE_UNREADABLE")
        return (1 << zeros) - 1 + self.take(zeros)


_NAL_SLICES, _NAL_SIZE = range(32), 33
_LONGEST_HEADER = 4096  # bytes


def _hevc_size(configuration: bytes, data: bytes) -> tuple[int, int]:
    """Of one HEVC picture, whose configuration alone says how large it is."""
    sizes = []
    at = 23
    for _ in range(configuration[22]):
        kind, count = configuration[at] & 63, _unsigned(configuration, at + 1, 2)
        at += 3
        for _ in range(count):
            length = _unsigned(configuration, at, 2)
            if kind == _NAL_SIZE or configuration[at + 2] >> 1 & 63 == _NAL_SIZE:
                sizes.append(_hevc_header(configuration[at + 2 : at + 2 + min(length, _LONGEST_HEADER)]))
            at += 2 + length
    if len(sizes) != 1:
        raise refused("PICTURE_UNREADABLE")
    if 1 != _hevc_pictures(data, (configuration[21] & 3) + 1):
        raise refused("PICTURE_UNREADABLE")
    return sizes[0]


def _hevc_pictures(data: bytes, length_size: int) -> int:
    """How many pictures begin in this stream. A size in it would overrule the configuration's: refused."""
    at = pictures = units = 0
    while at < len(data):
        units += 1
        if units > _MOST_UNITS:
            raise refused("PICTURE_UNREADABLE")
        length = _unsigned(data, at, length_size)
        at += length_size
        if length < 3 or at + length > len(data):
            raise refused("PICTURE_TRUNCATED")
        kind = data[at] >> 1 & 63
        if kind == _NAL_SIZE:
            raise refused("PICTURE_UNREADABLE")
        if kind in _NAL_SLICES and data[at + 2] & 0x80:
            pictures += 1
        at += length
    return pictures


def _hevc_header(header: bytes) -> tuple[int, int]:
    """Width and height in a sequence parameter set (H.265, 7.3.2.2)."""
    bits = _Bits(header[2:].replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 88 + 8)  # nesting, general profile, general level
    present = [bits.take(2) for _ in range(layers)]
    bits.take(2 * (8 - layers) if layers else 0)
    for each in present:
        bits.take((88 if each & 2 else 0) + (8 if each & 1 else 0))
    bits.golomb()
    if bits.golomb() == 3:  # chroma
        bits.take(1)
    width, height = bits.golomb(), bits.golomb()
    if bits.take(1):
        for _ in range(4):
            bits.golomb()  # what is cut off at each side
    if bits.golomb() or bits.golomb():
        raise refused("PICTURE_MODE")
    return width, height


_OBU_SIZE, _OBU_FRAME_HEADER, _OBU_FRAME = 1, 3, 6


def _av1_size(configuration: bytes, data: bytes) -> tuple[int, int]:
    """Of one AV1 picture. Its size may stand in its configuration, must stand in its data, and must be the same."""
    if configuration[2] & 0x40:
        raise refused("PICTURE_MODE")
    sizes, frames = set(), 0
    for kind, content in (*_units(configuration[4:]), *_units(data)):
        if kind == _OBU_SIZE:
            sizes.add(_av1_header(content[:_LONGEST_HEADER]))
        frames += kind in (_OBU_FRAME_HEADER, _OBU_FRAME)
    if len(sizes) != 1 or frames != 1:
        raise refused("PICTURE_UNREADABLE")
    return sizes.pop()


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each unit of an AV1 stream."""
    at = units = 0
    while at < len(data):
        units += 1
        if units > _MOST_UNITS:
            raise refused("PICTURE_UNREADABLE")
        head = data[at]
        at += 2 if head & 4 else 1
        length = len(data) - at
        if head & 2:
            length = 0
            for shift in range(0, 56, 7):
                byte = _unsigned(data, at, 1)
                at += 1
                length |= (byte & 0x7F) << shift
                if not byte & 0x80:
                    break
        if length < 0 or at + length > len(data):
            raise refused("PICTURE_TRUNCATED")
        yield head >> 3 & 15, data[at : at + length]
        at += length


def _av1_header(header: bytes) -> tuple[int, int]:
    """The largest width and height in a sequence header (AV1, 5.5.1)."""
    bits = _Bits(header)
    bits.take(4)
    if bits.take(1):  # reduced, for stills
        bits.take(5)
    else:
        decoder_model = 0
        if bits.take(1):  # timing
            bits.take(64)
            if bits.take(1):
                bits.golomb()
            if bits.take(1):
                decoder_model = bits.take(5) + 1
                bits.take(32 + 5 + 5)
        initial_delay = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if decoder_model and bits.take(1):
                bits.take(2 * decoder_model + 1)
            if initial_delay and bits.take(1):
                bits.take(4)
    wide, high = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(wide) + 1, bits.take(high) + 1


_CODINGS = {
    b"hvc1": _Coding(b"hvc1", b"hvcC", b"heic", HeifImageFile, _hevc_size),
    b"av01": _Coding(b"av01", b"av1C", b"avif", AvifImageFile, _av1_size),
}


# From boxes to bytes.


def _written(
    primary: _Item, alpha: _Item | None, items: Sequence[_Item], tiles: Mapping[int, Sequence[_Item]], brand: bytes
) -> bytes:
    """A file that holds these items and nothing else, upright and whole."""
    numbers = {item.number: number for number, item in enumerate(items, start=1)}
    store: dict[tuple[bytes, bytes], int] = {}  # properties -> index
    entries, rules, references = [], [], []
    for item in items:
        number = numbers[item.number]
        entries.append(_full(b"infe", 2, struct.pack(">HH4s", number, 0, item.kind) + b"\0"))
        kept = [(kind, content) for kind, content, _ in item.properties if _makes_pixels(kind, content)]
        indices = [store.setdefault(each, len(store) + 1) for each in kept]
        rules.append(struct.pack(f">HB{len(indices)}H", number, len(indices), *indices))
        if parts := tiles.get(item.number):
            references.append(_reference(b"dimg", number, [numbers[part.number] for part in parts]))
    if alpha is not None:
        references.append(_reference(b"auxl", numbers[alpha.number], [numbers[primary.number]]))
    contents = [item.data for item in items]
    fixed = [
        _full(b"hdlr", 0, b"\0\0\0\0pict" + bytes(13)),
        _full(b"pitm", 0, struct.pack(">H", numbers[primary.number])),
        _full(b"iinf", 0, struct.pack(">H", len(entries)) + b"".join(entries)),
        _box(
            b"iprp",
            _box(b"ipco", b"".join(_box(*each) for each in store))
            + _full(b"ipma", 0, struct.pack(">I", len(rules)) + b"".join(rules), flags=1),
        ),
        _full(b"iref", 0, b"".join(references)) if references else b"",
    ]
    start = _box(b"ftyp", brand + bytes(4) + b"mif1miaf" + brand)
    before = len(start) + len(_full(b"meta", 0, b"".join((*fixed, _places(contents, 0))))) + 8
    return start + _full(b"meta", 0, b"".join((*fixed, _places(contents, before)))) + _box(b"mdat", b"".join(contents))


def _makes_pixels(kind: bytes, content: bytes) -> bool:
    return kind in _KEPT and (kind != b"colr" or content[:4] == b"nclx")


def _reference(kind: bytes, source: int, targets: Sequence[int]) -> bytes:
    return _box(kind, struct.pack(f">HH{len(targets)}H", source, len(targets), *targets))


def _places(contents: Sequence[bytes], start: int) -> bytes:
    """Where each item is: one after the other from `start` on."""
    places = []
    for number, content in enumerate(contents, start=1):
        places.append(struct.pack(">HHHII", number, 0, 1, start, len(content)))
        start += len(content)
    return _full(b"iloc", 0, struct.pack(">HH", 0x4400, len(places)) + b"".join(places))


def _full(kind: bytes, version: int, content: bytes, *, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags) + content)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content
