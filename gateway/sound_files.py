"""Sound files: what a file says of its sound, read from its segments before anything is decoded.

This takes the coding, the rate, the channels and the length, and the packets that make sound and nothing else. What is
cut off, has several streams or is no sound is refused here, before any memory is taken. A decoder gets coded packets
only: no demuxer of FFmpeg ever runs, which would parse notes, pictures and indexes of any size, open what a file refers
to, and guess what it is. WAV, FLAC, Ogg and MP3 are read here; M4A and WebM, which are made of boxes, in `sound_boxes`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from gateway.blueprint import MOST_SEGMENTS
from gateway.sound_boxes import is_m4a, read_m4a, read_webm
from gateway.tracks import MOST_PACKETS, Track, refused
from gateway.xiph import opus_track, vorbis_track

_BLOCK = 65_536  # bytes of a stream that has no packets of its own


def read(data: bytes) -> Track:
    """Raises InvalidField."""
    try:
        start = _tags_before(data)
        if start > len(data):
            raise refused("SOUND_TRUNCATED")
        rest = data[start:] if start else data
        if rest.startswith(b"fLaC"):
            return _read_flac(rest)
        if _mp3_header(rest, 0) is not None:
            return _read_mp3(rest)
        if _is_wav(data):
            return _read_wav(data)
        if data.startswith(b"OggS"):
            return _read_ogg(data)
        if is_m4a(data):
            return read_m4a(data)
        if data.startswith(_WEBM):
            return read_webm(data)
    except (struct.error, IndexError):  # a segment too short for what it should hold
        raise refused("SOUND_UNREADABLE") from None
    raise refused("SOUND_FORMAT")


def is_sound(data: bytes) -> bool:
    """Whether a file begins as those do that are read here, whatever follows."""
    start = data.startswith((b"fLaC", b"OggS", b"ID3", _WEBM)) or _is_wav(data) or is_m4a(data)
    return start or _mp3_header(data, 0) is not None


_WEBM = b"\x1a\x45\xdf\xa3"


def _is_wav(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE"


# WAV


_PCM = {
    (1, 8): "pcm_u8",
    (1, 16): "pcm_s16le",
    (1, 24): "pcm_s24le",
    (1, 32): "pcm_s32le",
    (3, 32): "pcm_f32le",
    (3, 64): "pcm_f64le",
}
_EXTENSIBLE, _EXTENSION = 0xFFFE, bytes.fromhex("000000001000800000aa00389b71")  # of every kind with a short number
_UNKNOWN = 0xFFFF_FFFF  # the length of what was still being written


def _read_wav(data: bytes) -> Track:
    form = b""
    for kind, start, end in _wav_chunks(data):
        if kind == b"fmt " and not form:
            form = data[start:end]
        elif kind == b"data":
            return _wav_track(form, data, start, end)
    raise refused("SOUND_TRUNCATED")


def _wav_track(form: bytes, data: bytes, start: int, end: int) -> Track:
    kind, channels, rate, _, width, bits = struct.unpack_from("<HHIIHH", form)
    if kind == _EXTENSIBLE:
        (kind,), extension = struct.unpack_from("<H", form, 24), form[26:40]
        if extension != _EXTENSION:
            raise refused("SOUND_FORMAT")
    codec = _PCM.get((kind, bits))
    if codec is None:
        raise refused("SOUND_FORMAT")
    if not rate or not channels or width != channels * bits // 8:
        raise refused("SOUND_UNREADABLE")
    length = (end - start) // width
    end, step = start + length * width, _BLOCK * width
    packets = (data[at : min(at + step, end)] for at in range(start, end, step))
    return Track(codec, b"", channels, rate, packets, rate, length=length, exact=True)


def _wav_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk."""
    position = 12
    for _ in range(MOST_SEGMENTS):
        if position >= len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        start = position + 8
        end = len(data) if (kind, length) == (b"data", _UNKNOWN) else start + length
        if end > len(data):
            raise refused("SOUND_TRUNCATED")
        yield kind, start, end
        position = end + length % 2
    raise refused("SOUND_UNREADABLE")


# FLAC


def _read_flac(data: bytes) -> Track:
    position, stream = 4, b""
    for _ in range(MOST_SEGMENTS):
        head, size = data[position], int.from_bytes(data[position + 1 : position + 4], "big")
        position += 4 + size
        if position > len(data):
            raise refused("SOUND_TRUNCATED")
        if not stream:
            if head & 127 or size != 34:
                raise refused("SOUND_UNREADABLE")
            stream = data[position - size : position]
        if head & 128:
            break
    else:
        raise refused("SOUND_UNREADABLE")
    packed = int.from_bytes(stream[10:18], "big")  # 20 bits of rate, 3 of channels, 5 of depth, 36 of length
    rate, channels, length = packed >> 44, (packed >> 41 & 7) + 1, packed & (1 << 36) - 1
    if not rate:
        raise refused("SOUND_UNREADABLE")
    packets = (data[at : at + _BLOCK] for at in range(position, len(data), _BLOCK))
    return Track("flac", stream, channels, rate, packets, rate, length=length or None, exact=True, unparsed=True)


# Ogg


class _Page(NamedTuple):
    flags: int
    granule: int  # -1: no packet ends here
    sizes: bytes  # of its segments
    body: bytes


_CONTINUED, _FIRST = 1, 2
_OPUS, _VORBIS = b"OpusHead", b"\x01vorbis"
_PAGE = struct.Struct("<4sBBqIIIB")


def _read_ogg(data: bytes) -> Track:
    packets: list[bytes] = []
    pending: list[bytes] = []
    last = 0
    for page in _ogg_pages(data):
        if bool(page.flags & _CONTINUED) != bool(pending):
            raise refused("SOUND_UNREADABLE")
        start = at = 0
        for size in page.sizes:
            at += size
            if size < 255:
                packets.append(b"".join((*pending, page.body[start:at])))
                pending, start = [], at
        if start < at:
            pending.append(page.body[start:at])
        if page.granule >= 0:
            last = page.granule
        if len(packets) > MOST_PACKETS:
            raise refused("SOUND_TOO_LONG")
    if pending:
        raise refused("SOUND_TRUNCATED")
    if packets[0].startswith(_OPUS):
        return opus_track(packets[0], packets[2:], end=last)  # the second one holds notes
    if packets[0].startswith(_VORBIS):
        return vorbis_track(packets, end=last)
    raise refused("SOUND_FORMAT")


def _ogg_pages(data: bytes) -> Iterator[_Page]:
    """The pages of the one stream in a file, each as it was written."""
    position, stream = 0, None
    for number in range(MOST_PACKETS):
        if position == len(data):
            return
        if len(data) < position + _PAGE.size:
            raise refused("SOUND_TRUNCATED")
        magic, version, flags, granule, serial, sequence, checksum, count = _PAGE.unpack_from(data, position)
        if magic != b"OggS" or version:
            raise refused("SOUND_UNREADABLE")
        start = position + _PAGE.size + count
        sizes = data[position + _PAGE.size : start]
        end = start + sum(sizes)
        if end > len(data):
            raise refused("SOUND_TRUNCATED")
        if stream is None:
            stream = serial
        if serial != stream or (number and flags & _FIRST):
            raise refused("SOUND_SEVERAL_STREAMS")
        if sequence != number or checksum != _ogg_checksum(data[position:end]):
            raise refused("SOUND_UNREADABLE")
        yield _Page(flags, granule, sizes, data[start:end])
        position = end
    raise refused("SOUND_TOO_LONG")


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> int:
    """Ogg's own: the polynomial of zlib's, with the bits the other way round, from 0 to 0. Its place counts as 0."""
    mirrored = zlib.crc32((page[:22] + bytes(4) + page[26:]).translate(_MIRRORED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRRORED), "big")


# MP3


class _Frame(NamedTuple):
    version: int  # 3: MPEG-1, 2: MPEG-2, 0: 2.5
    rate: int
    channels: int
    size: int  # bytes
    samples: int


_MP3_KILOBITS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES = (44_100, 48_000, 32_000)
_MP3_DELAY = 529  # samples that every decoder is behind
_MP3_TAG_AFTER = re.compile(rb"TAG|APETAGEX|LYRICSBEGIN|ID3|\0*$")


def _tags_before(data: bytes) -> int:
    """Where the sound begins in a file that may have ID3 tags in front."""
    position = 0
    while data[position : position + 3] == b"ID3" and len(data) >= position + 10:
        flags, *sizes = data[position + 5 : position + 10]
        size = 0
        for byte in sizes:
            size = size << 7 | byte & 0x7F
        position += 10 + size + (10 if flags & 0x10 else 0)
    return position


def _mp3_header(data: bytes, at: int) -> _Frame | None:
    """The frame whose header stands here, if one does."""
    if len(data) < at + 4 or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:  # eleven ones, and layer III
        return None
    version, bits, mode = data[at + 1] >> 3 & 3, data[at + 2], data[at + 3] >> 6
    bitrate, rate = bits >> 4, bits >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return None
    kilobits, per_second = _MP3_KILOBITS[3 if version == 3 else 2][bitrate], _MP3_RATES[rate] >> (2, 0, 1, 0)[version]
    size = (144_000 if version == 3 else 72_000) * kilobits // per_second + (bits >> 1 & 1)
    return _Frame(version, per_second, 1 if mode == 3 else 2, size, 1152 if version == 3 else 576)


def _read_mp3(data: bytes) -> Track:
    frames: list[bytes] = []
    first = _mp3_header(data, 0)
    position = 0
    while first is not None and position < len(data):
        frame = _mp3_header(data, position)
        if frame is None:
            if _MP3_TAG_AFTER.match(data, position):
                break
            raise refused("SOUND_TRUNCATED" if len(data) < position + 4 else "SOUND_UNREADABLE")
        if (frame.version, frame.rate) != (first.version, first.rate):
            raise refused("SOUND_UNREADABLE")
        if position + frame.size > len(data):
            raise refused("SOUND_TRUNCATED")
        frames.append(data[position : position + frame.size])
        position += frame.size
        if len(frames) > MOST_PACKETS:
            raise refused("SOUND_TOO_LONG")
    if first is None:
        raise refused("SOUND_UNREADABLE")
    notes = _mp3_notes(frames[0], first)
    if notes is None:
        return Track(
            "mp3float", b"", first.channels, first.rate, frames, first.rate, length=len(frames) * first.samples
        )
    del frames[0]
    if notes.frames > len(frames):
        raise refused("SOUND_TRUNCATED")
    length = max(0, len(frames) * first.samples - notes.before - notes.after)
    skip = notes.before + _MP3_DELAY if notes.before or notes.after else 0
    return Track("mp3float", b"", first.channels, first.rate, frames, first.rate, skip, length)


class _Notes(NamedTuple):
    """What the first frame says of the others, if it holds no sound."""

    frames: int
    before: int = 0  # samples that the coder has put before the sound, and after it
    after: int = 0


def _mp3_notes(frame: bytes, header: _Frame) -> _Notes | None:
    if frame[36:40] == b"VBRI":
        return _Notes(int.from_bytes(frame[50:54], "big"))
    at = 4 + {(3, 2): 32, (3, 1): 17}.get((header.version, header.channels), 17 if header.channels == 2 else 9)
    if frame[at : at + 4] not in (b"Xing", b"Info"):
        return None
    (flags,) = struct.unpack_from(">I", frame, at + 4)
    frames = int.from_bytes(frame[at + 8 : at + 12], "big") if flags & 1 else 0
    at += 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    if frame[at : at + 4] not in (b"LAME", b"Lavf", b"Lavc"):
        return _Notes(frames)
    packed = int.from_bytes(frame[at + 21 : at + 24], "big")
    return _Notes(frames, packed >> 12, packed & 0xFFF)
