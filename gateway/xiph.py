"""Xiph: what Opus and Vorbis streams say of themselves, in whatever container their packets came."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from gateway.tracks import Track, refused

OPUS_RATE = 48_000  # what every Opus decoder gives, whatever was recorded


def opus_track(head: bytes, packets: Sequence[bytes], *, end: int | None = None, padding: int = 0) -> Track:
    """Of a stream that begins with `head`. `end` is where the last packet's sound ends, `padding` how much of it the
    coder added, both in samples and with what is skipped.
    """
    magic, version, channels, skip, _, _, mapping = struct.unpack_from("<8sBBHIhB", head)
    if magic != b"OpusHead" or version >> 4 or not channels:
        raise refused("SOUND_UNREADABLE")
    if mapping:  # for more than two
        raise refused("SOUND_CHANNELS")
    there = sum(map(_opus_samples, packets)) - padding
    length = max(0, (there if end is None else min(there, end)) - skip)  # the decoder skips by itself
    return Track("opus", head, channels, OPUS_RATE, packets, OPUS_RATE, length=length)


def _opus_samples(packet: bytes) -> int:
    """How long a packet sounds (RFC 6716, 3.1)."""
    if not packet:
        return 0
    kind, count = packet[0] >> 3, packet[0] & 3
    if kind < 12:
        frame = (480, 960, 1920, 2880)[kind & 3]
    elif kind < 16:
        frame = 480 << (kind & 1)
    else:
        frame = 120 << (kind & 3)
    return frame * (packet[1] & 63 if count == 3 else min(count, 1) + 1)


def vorbis_track(packets: Sequence[bytes], *, end: int) -> Track:
    """The first three packets say what the decoder must know; the sound ends at sample `end`."""
    if len(packets) < 3:
        raise refused("SOUND_TRUNCATED")
    head, notes, books = packets[:3]
    _, version, channels, rate = struct.unpack_from("<7sIBI", head)
    if version or not channels or not rate:
        raise refused("SOUND_UNREADABLE")
    sizes = b"".join(bytes([255] * (len(each) // 255)) + bytes([len(each) % 255]) for each in (head, notes))
    return Track("vorbis", b"\x02" + sizes + head + notes + books, channels, rate, packets[3:], rate, length=end)
