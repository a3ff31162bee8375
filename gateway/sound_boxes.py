"""Sound boxes: what an M4A or WebM file says of its sound, read from its boxes before anything is decoded.

Both are trees of boxes, and both may be written while the recording goes on: M4A (ISO/IEC 14496-12) in fragments, WebM
(RFC 9559) in clusters whose length nobody knew. Of either the one sound track is taken: its coding, and where its
packets are. What they say of the number and size of packets is believed only as far as the bytes are there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.tracks import MOST_PACKETS, Track, refused
from gateway.xiph import OPUS_RATE, opus_track

_MOST_BOXES = 16_384  # of one level


# M4A


_M4A = frozenset({b"M4A ", b"M4B ", b"mp41", b"mp42", b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"dash"})


def is_m4a(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _M4A


class _Box(NamedTuple):
    kind: bytes
    begin: int  # of its head, in the file
    start: int  # of its content
    end: int


@dataclass
class _Sound:
    """The one sound track of a file, as far as it was read."""

    number: int
    scale: int  # units of time per second
    setup: bytes
    coding: tuple[int, int] | None  # channels and samples per second, of AAC; None: Opus
    skip: int = 0
    shown: int | None = None  # units after `skip` that are meant to be heard
    length: int = 0  # units there are, but for fragments
    taken: int = 0  # bytes
    packets: list[bytes] = field(default_factory=list)

    def take(self, data: bytes, start: int, size: int) -> None:
        self.taken += size
        if start + size > len(data):
            raise refused("SOUND_TRUNCATED")
        if self.taken > len(data):  # the same bytes again and again
            raise refused("SOUND_UNREADABLE")
        if len(self.packets) >= MOST_PACKETS:
            raise refused("SOUND_TOO_LONG")
        self.packets.append(data[start : start + size])


def read_m4a(data: bytes) -> Track:
    """Raises InvalidField; struct.error and IndexError where a box is too short for what it should hold."""
    sound: _Sound | None = None
    usual: dict[int, int] = {}
    fragments = False
    for box in _boxes(data, 0, len(data)):
        if box.kind == b"moov" and sound is None:
            sound = _movie(data, box)
            usual = _usual(data, box)
        elif box.kind == b"moof":
            if sound is None:
                raise refused("SOUND_UNREADABLE")
            _fragment(data, box, sound, usual.get(sound.number, 0))
            fragments = True
    if sound is None:
        raise refused("SOUND_TRUNCATED")
    if sound.coding is None:
        end = None if sound.shown is None else (sound.skip + sound.shown) * OPUS_RATE // sound.scale
        return opus_track(sound.setup, sound.packets, end=end)
    channels, rate = sound.coding
    # How long fragments say that they last is what the clock of a recorder said.
    ends = [sound.skip + sound.shown] if sound.shown is not None else []
    ends += [sound.length] if sound.length and not fragments else []
    length = max(0, min(ends) - sound.skip) if ends else None
    return Track("aac", sound.setup, channels, rate, sound.packets, sound.scale, sound.skip, length)


def _boxes(data: bytes, start: int, end: int) -> Iterator[_Box]:
    for _ in range(_MOST_BOXES):
        if start == end:
            return
        if start + 8 > end:
            raise refused("SOUND_TRUNCATED")
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, start + 8), 16
        elif size == 0:
            size = end - start
        if size < head:
            raise refused("SOUND_UNREADABLE")
        if start + size > end:
            raise refused("SOUND_TRUNCATED")
        yield _Box(kind, start, start + head, start + size)
        start += size
    raise refused("SOUND_UNREADABLE")


def _inside(data: bytes, box: _Box, *path: bytes) -> _Box:
    """The first box at the end of this path."""
    for kind in path:
        found = next((each for each in _boxes(data, box.start, box.end) if each.kind == kind), None)
        if found is None:
            raise refused("SOUND_UNREADABLE")
        box = found
    return box


def _all(data: bytes, box: _Box, kind: bytes) -> list[_Box]:
    return [each for each in _boxes(data, box.start, box.end) if each.kind == kind]


def _number(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise refused("SOUND_UNREADABLE")
    return int.from_bytes(data[at : at + size], "big")


def _movie(data: bytes, moov: _Box) -> _Sound:
    tracks = _all(data, moov, b"trak")
    kinds = [data[(handler := _inside(data, each, b"mdia", b"hdlr")).start + 8 : handler.start + 12] for each in tracks]
    if kinds.count(b"soun") != 1 or b"vide" in kinds:
        raise refused("SOUND_SEVERAL_STREAMS" if kinds else "SOUND_UNREADABLE")
    track = tracks[kinds.index(b"soun")]
    table = _inside(data, track, b"mdia", b"minf", b"stbl")
    scale = _scale(data, _inside(data, track, b"mdia", b"mdhd"))
    sound = _Sound(_of_track(data, track), scale, *_coding(data, _inside(data, table, b"stsd")))
    _edit(data, track, sound, _scale(data, _inside(data, moov, b"mvhd")))
    _samples(data, table, sound)
    return sound


def _of_track(data: bytes, track: _Box) -> int:
    head = _inside(data, track, b"tkhd")
    return _number(data, head.start + (20 if data[head.start] else 12), 4)


def _scale(data: bytes, head: _Box) -> int:
    """Units per second, in a header of a movie or of its media."""
    scale = _number(data, head.start + (20 if data[head.start] else 12), 4)
    if not scale:
        raise refused("SOUND_UNREADABLE")
    return scale


def _coding(data: bytes, stsd: _Box) -> tuple[bytes, tuple[int, int] | None]:
    """What a decoder must know, and what of that we must (see `_Sound`), of a stream in the clear."""
    if _number(data, stsd.start + 4, 4) != 1:
        raise refused("SOUND_UNREADABLE")
    entry = next(_boxes(data, stsd.start + 8, stsd.end))
    inside = entry._replace(start=entry.start + 28)
    if entry.kind == b"Opus":
        return _opus_head(data, _inside(data, inside, b"dOps")), None
    if entry.kind != b"mp4a":
        raise refused("SOUND_FORMAT")
    setup = _aac_setup(data, _inside(data, inside, b"esds"))
    return setup, _aac_coding(setup)


def _opus_head(data: bytes, box: _Box) -> bytes:
    """The head that an Opus stream has everywhere else, of the same in another order of bytes."""
    version, channels, *numbers, mapping = struct.unpack_from(">BBHIhB", data, box.start)
    if version:
        raise refused("SOUND_UNREADABLE")
    return struct.pack("<8sBBHIhB", b"OpusHead", 1, channels, *numbers, mapping)


_DESCRIPTORS = {3: 3, 4: 13}  # kind -> bytes before what is inside
_SETUP = 5
_AAC = 0x40  # as MPEG-4 counts kinds of streams


def _aac_setup(data: bytes, esds: _Box) -> bytes:
    at = esds.start + 4
    while at < esds.end:
        kind, size, at = data[at], 0, at + 1
        for _ in range(4):
            byte, at = data[at], at + 1
            size = size << 7 | byte & 0x7F
            if byte < 0x80:
                break
        if kind == _SETUP:
            return data[at : min(at + size, esds.end)]
        if kind not in _DESCRIPTORS or (kind == 3 and data[at + 2] >> 5) or (kind == 4 and data[at] != _AAC):
            break
        at += _DESCRIPTORS[kind]
    raise refused("SOUND_FORMAT")


_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)
_PLAIN, _DOUBLED = 2, (5, 29)  # low complexity; with twice its rate, made up of notes on what was left out


def _aac_coding(setup: bytes) -> tuple[int, int]:
    """Channels and samples per second (ISO/IEC 14496-3, 1.6.2.1)."""
    bits, left = int.from_bytes(setup[:8].ljust(8, b"\0"), "big"), 64

    def take(count: int) -> int:
        nonlocal left
        left -= count
        return bits >> left & (1 << count) - 1

    def rate() -> int:
        index = take(4)
        return take(24) if index == 15 else _RATES[index]

    kind, own, channels = take(5), rate(), take(4)
    if kind in _DOUBLED:
        own = rate()
    elif kind != _PLAIN:
        raise refused("SOUND_FORMAT")
    if not own:
        raise refused("SOUND_UNREADABLE")
    return channels or 8, own  # 0: there is a list of them, which one or two do not need


def _edit(data: bytes, track: _Box, sound: _Sound, movie_scale: int) -> None:
    """What of the track is meant to be heard: all but what the coder added, or what a person has cut out."""
    for edits in _all(data, track, b"edts"):
        box = _inside(data, edits, b"elst")
        entry = ">qqhh" if data[box.start] == 1 else ">iihh"
        width = struct.calcsize(entry)
        places = range(box.start + 8, box.start + 8 + width * _count(data, box, width), width)
        shown = [struct.unpack_from(entry, data, place) for place in places]
        shown = [each for each in shown if each[1] >= 0]  # others are pauses before the sound begins
        if len(shown) > 1 or any(each[2] != 1 for each in shown):
            raise refused("SOUND_UNREADABLE")
        for length, skip, _, _ in shown:
            sound.skip = skip
            if length > 0:  # in units of the movie, which are coarser: the last one may have been begun
                sound.shown = -(-(length + 1) * sound.scale // movie_scale)


def _samples(data: bytes, table: _Box, sound: _Sound) -> None:
    """Take the samples, as these boxes call packets, that the movie itself lists."""
    times, runs, sizes = (_inside(data, table, kind) for kind in (b"stts", b"stsc", b"stsz"))
    for index in range(_count(data, times, 8)):
        count, length = struct.unpack_from(">II", data, times.start + 8 + 8 * index)
        sound.length += count * length
    constant, count = struct.unpack_from(">II", data, sizes.start + 4)
    if not constant and count > (sizes.end - sizes.start - 12) // 4:
        raise refused("SOUND_UNREADABLE")
    starts = _chunk_starts(data, table)
    firsts = [struct.unpack_from(">II", data, runs.start + 8 + 12 * i) for i in range(_count(data, runs, 12))]
    index = 0
    for position, (first, per_chunk) in enumerate(firsts):
        until = firsts[position + 1][0] if position + 1 < len(firsts) else len(starts) + 1
        if not 0 < first <= until <= len(starts) + 1:
            raise refused("SOUND_UNREADABLE")
        for at in starts[first - 1 : until - 1]:
            for _ in range(min(per_chunk, count - index)):
                size = constant or _number(data, sizes.start + 12 + 4 * index, 4)
                sound.take(data, at, size)
                at += size
                index += 1
    if index < count:
        raise refused("SOUND_UNREADABLE")


def _chunk_starts(data: bytes, table: _Box) -> Sequence[int]:
    for kind, width, code in ((b"stco", 4, "I"), (b"co64", 8, "Q")):
        for box in _all(data, table, kind):
            return struct.unpack_from(f">{_count(data, box, width)}{code}", data, box.start + 8)
    raise refused("SOUND_UNREADABLE")


def _count(data: bytes, box: _Box, width: int) -> int:
    """How many entries of this width a table has: as many as it says, if they are there."""
    count = _number(data, box.start + 4, 4)
    if count > MOST_PACKETS:
        raise refused("SOUND_TOO_LONG")
    if count > (box.end - box.start - 8) // width:
        raise refused("SOUND_UNREADABLE")
    return count


def _usual(data: bytes, moov: _Box) -> dict[int, int]:
    """Bytes of a fragment's samples where it says nothing itself, by track."""
    return {
        _number(data, trex.start + 4, 4): _number(data, trex.start + 16, 4)
        for extends in _all(data, moov, b"mvex")
        for trex in _all(data, extends, b"trex")
    }


def _fragment(data: bytes, moof: _Box, sound: _Sound, usual: int) -> None:
    for part in _all(data, moof, b"traf"):
        head = _inside(data, part, b"tfhd")
        flags, track = struct.unpack_from(">II", data, head.start)
        if track != sound.number:
            continue
        at, base, size = head.start + 8, moof.begin, usual
        if flags & 0x1:
            base, at = _number(data, at, 8), at + 8
        at += 4 * (flags & 0xA).bit_count()
        if flags & 0x10:
            size = _number(data, at, 4)
        here = base
        for run in _all(data, part, b"trun"):
            here = _run(data, run, sound, here, base, size)


def _run(data: bytes, trun: _Box, sound: _Sound, here: int, base: int, size: int) -> int:
    """Take the samples of one run, which begins `here` or at an offset from `base`; where it ends."""
    flags, count = struct.unpack_from(">II", data, trun.start)
    at = trun.start + 8
    if flags & 0x1:
        here, at = base + struct.unpack_from(">i", data, at)[0], at + 4
    at += 4 * (flags >> 2 & 1)
    width, own = 4 * (flags & 0xF00).bit_count(), flags & 0x200
    if here < 0 or count > MOST_PACKETS or count * width > trun.end - at:
        raise refused("SOUND_UNREADABLE")
    at += 4 * (flags >> 8 & 1)
    for index in range(count):
        each = _number(data, at + index * width, 4) if own else size
        sound.take(data, here, each)
        here += each
    return here


# WebM


_SEGMENT, _CLUSTER, _GROUP = 0x18538067, 0x1F43B675, 0xA0  # what is looked into as it comes
_TRACKS, _ENTRY, _BLOCK, _SIMPLE_BLOCK, _PADDING = 0x1654AE6B, 0xAE, 0xA1, 0xA3, 0x75A2
_NUMBER, _KIND, _CODEC, _PRIVATE, _ENCODINGS = 0xD7, 0x83, 0x86, 0x63A2, 0x6D80
_AUDIO = 2
_MOST_ELEMENTS = 4 * MOST_PACKETS


class _Element(NamedTuple):
    kind: int
    start: int
    end: int


def read_webm(data: bytes) -> Track:
    """Raises InvalidField; IndexError where an element is too short for what it should hold."""
    head, number = b"", -1
    packets: list[bytes] = []
    padding = 0
    for kind, start, end in _elements(data, 0, len(data), within=(_SEGMENT, _CLUSTER, _GROUP)):
        if kind == _TRACKS and not head:
            head, number = _webm_track(data, start, end)
        elif kind in (_BLOCK, _SIMPLE_BLOCK):
            track, at = _varint(data, start)
            if at + 3 > end:
                raise refused("SOUND_UNREADABLE")
            if not head or data[at + 2] & 0x06:  # several packets in one block
                raise refused("SOUND_UNREADABLE")
            if track == number:
                packets.append(data[at + 3 : end])
            if len(packets) > MOST_PACKETS:
                raise refused("SOUND_TOO_LONG")
        elif kind == _PADDING:
            nanoseconds = int.from_bytes(data[start:end], "big", signed=True)
            padding = max(0, nanoseconds) * OPUS_RATE // 1_000_000_000
    if not head:
        raise refused("SOUND_TRUNCATED")
    return opus_track(head, packets, padding=padding)


def _webm_track(data: bytes, start: int, end: int) -> tuple[bytes, int]:
    """What the decoder must know, and the number, of the only track."""
    entries = [
        {element.kind: data[element.start : element.end] for element in _elements(data, entry.start, entry.end)}
        for entry in _elements(data, start, end)
        if entry.kind == _ENTRY
    ]
    if len(entries) != 1 or int.from_bytes(entries[0].get(_KIND, b""), "big") != _AUDIO:
        raise refused("SOUND_SEVERAL_STREAMS")
    (entry,) = entries
    if entry.get(_CODEC, b"").rstrip(b"\0") != b"A_OPUS":
        raise refused("SOUND_FORMAT")
    if _ENCODINGS in entry or not entry.get(_PRIVATE):  # packed or encrypted
        raise refused("SOUND_UNREADABLE")
    return entry[_PRIVATE], int.from_bytes(entry.get(_NUMBER, b""), "big")


def _elements(data: bytes, start: int, end: int, within: Sequence[int] = ()) -> Iterator[_Element]:
    """The elements from `start` to `end`, and those within elements of these kinds, whose own end does not matter."""
    for _ in range(_MOST_ELEMENTS):
        if start == end:
            return
        if start > end or not data[start]:
            raise refused("SOUND_UNREADABLE")
        kind_size = 9 - data[start].bit_length()
        kind, at = int.from_bytes(data[start : start + kind_size], "big"), start + kind_size
        if at >= end or not data[at]:
            raise refused("SOUND_TRUNCATED" if at >= end else "SOUND_UNREADABLE")
        size, start = _varint(data, at)
        endless = size == (1 << 7 * (start - at)) - 1
        if start > end or (start + size > end and not endless):
            raise refused("SOUND_TRUNCATED")
        if kind in within:
            continue
        if endless:
            raise refused("SOUND_UNREADABLE")
        yield _Element(kind, start, start + size)
        start += size
    raise refused("SOUND_UNREADABLE")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number whose first byte says how long it is, and where it ends."""
    width = 9 - data[at].bit_length()
    if width > 8:
        raise refused("SOUND_UNREADABLE")
    return int.from_bytes(data[at : at + width], "big") & (1 << 7 * width) - 1, at + width
