"""Sound files that are cut off, damaged or made to harm: a sound or an error of ours, at once and in little memory."""

from __future__ import annotations

import random
import resource
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import chain
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidField
from gateway.sound_files import _ogg_checksum
from gateway.sounds import decode
from gateway.tracks import ANY
from tests.gateway.recordings import KINDS, LIMITS, chunk, flac, riff, several, voice, wav, written

MIB = 1024 * 1024
REASONS = {
    f"voice: SOUND_{reason}": reason
    for reason in (
        *("FORMAT", "UNREADABLE", "TRUNCATED", "TOO_LONG"),
        *("SAMPLE_RATE", "NOT_FINITE", "CHANNELS", "SEVERAL_STREAMS"),
    )
}


def outcome(data: bytes) -> str:
    """What becomes of a file: a sound, or why not."""
    try:
        sound = decode(data)
    except InvalidField as refusal:
        reason = f"{refusal.field}: {refusal.reason}"
        return REASONS[reason]
    assert sound.facts.samples * 2 == len(sound.pcm) <= ANY.max_seconds * sound.facts.sample_rate * 2
    return "sound"


def small(kind: str) -> bytes:
    """A file of this kind of a few thousand bytes."""
    return {"wav": wav(voice(0.05)), "flac": flac(voice(0.05)), "vorbis": KINDS["vorbis"]}.get(kind, KINDS[kind])


# What is missing


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_off_is_noticed(kind: str) -> None:
    """At whatever byte. One that was written as it was recorded may end wherever a packet does, and so may MP3."""
    data = small(kind)
    step = max(1, len(data) // 4_000)
    outcomes = {outcome(data[:end]) for end in range(0, len(data), step)}

    assert outcomes <= {"TRUNCATED", "FORMAT", "UNREADABLE", "sound"}
    assert "TRUNCATED" in outcomes
    if kind in ("wav", "vorbis", "m4a", "m4a with opus", "webm"):
        assert "sound" not in outcomes
    assert "sound" == outcome(data)


def test_an_mp3_that_says_how_long_it_is_is_believed() -> None:
    """Its first frame counts the others: a file that ends after any of them is not whole."""
    data = KINDS["mp3"]
    frames = [at for at in range(len(data)) if data.startswith(b"\xff\xf3", at)]

    assert 10 < len(frames)
    assert {"TRUNCATED"} == {outcome(data[:at]) for at in frames[2:]}


def test_a_flac_that_lost_a_frame_is_noticed() -> None:
    """Though each of the others is whole, the sound is shorter than the file says."""
    data = flac(voice(1.0))
    frames = [at for at in range(len(data)) if data.startswith(b"\xff\xf8", at) and at > 8_000]

    assert "TRUNCATED" == outcome(data[: frames[1]] + data[frames[2] :])


def test_an_ogg_that_lost_a_page_is_noticed() -> None:
    """Pages are numbered."""
    data = written(voice(rate=48_000), "ogg", "libopus", 48_000, page_duration="20000")
    pages = [at for at in range(len(data)) if data.startswith(b"OggS", at)]

    assert "UNREADABLE" == outcome(data[: pages[5]] + data[pages[6] :])


def test_an_m4a_whose_tables_leave_samples_out_is_noticed() -> None:
    """One of them says how many there are, another where."""
    data = KINDS["m4a"]
    at = data.index(b"stsc") + 16
    per_chunk = int.from_bytes(data[at : at + 4], "big")

    assert "UNREADABLE" == outcome(data[:at] + (per_chunk - 1).to_bytes(4, "big") + data[at + 4 :])


def test_a_recorder_that_was_still_writing_is_no_fault() -> None:
    """A WAV that was written to a pipe does not know its length, and ends where the file ends."""
    data = bytearray(wav(voice()))
    data[4:8] = data[40:44] = b"\xff" * 4

    assert decode(wav(voice())).identity == decode(bytes(data)).identity


# What is damaged


@pytest.mark.parametrize("kind", ["opus", "vorbis"])
def test_no_byte_of_an_ogg_can_change_unnoticed(kind: str) -> None:
    """Every page has a checksum."""
    data = KINDS[kind]
    chosen = random.Random(1).sample(range(len(data)), 1_000)

    assert "sound" not in {outcome(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]) for at in chosen}


def test_no_byte_of_a_flacs_sound_can_change_unnoticed() -> None:
    """Every frame has a checksum, and the file says how many samples there are."""
    data = flac(voice(0.3))
    chosen = random.Random(1).sample(range(data.index(b"\xff\xf8"), len(data)), 1_000)

    assert "sound" not in {outcome(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]) for at in chosen}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_only_ever_meet_our_errors(kind: str) -> None:
    """Thousands of files with a few bytes changed, most of them near the start; none takes long."""
    data, chance = small(kind), random.Random(kind)
    longest = 0.0
    for _ in range(1_500):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 4, 8))):
            near = min(len(data), 400) if chance.random() < 0.5 else len(data)
            at = chance.randrange(near)
            damaged[at] = chance.choice((0, 255, damaged[at] ^ 1 << chance.randrange(8), chance.randrange(256)))
        start = time.thread_time()
        outcome(bytes(damaged))
        longest = max(longest, time.thread_time() - start)

    assert longest < 2.0


@given(st.sampled_from(sorted(KINDS)), st.data())
@settings(max_examples=300)
def test_rearranged_files_only_ever_meet_our_errors(kind: str, data: st.DataObject) -> None:
    """A file with a piece of another cut in, or a piece of its own cut out."""
    whole, other = small(kind), small(data.draw(st.sampled_from(sorted(KINDS))))
    start = data.draw(st.integers(0, len(whole)))
    piece = other[data.draw(st.integers(0, len(other))) :][: data.draw(st.integers(0, 64))]

    outcome(whole[:start] + piece + whole[start + data.draw(st.integers(0, 64)) :])


STARTS = [b"RIFF\xff\0\0\0WAVEfmt ", b"fLaC", b"OggS", b"ID3\4\0\0", b"\xff\xfb\x90\0", b"\x1a\x45\xdf\xa3", b""]


@given(
    st.sampled_from([*STARTS, b"\0\0\0\x10ftypM4A \0\0\0\0", b"\0\0\0\x10ftypisom\0\0\0\0\0\0\1\0moov"]),
    st.binary(max_size=300),
)
@settings(max_examples=500)
def test_random_bytes_only_ever_meet_our_errors(start: bytes, junk: bytes) -> None:
    """Whatever follows the beginning of a format."""
    outcome(start + junk)


# What is made to harm


@contextmanager
def little() -> Iterator[None]:
    """Fails a test that makes the process need more memory than it ever did by more than this, for however short."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kilobytes


def of_unknown_length(data: bytes) -> bytes:
    """A FLAC file that does not say how many samples it has."""
    return data[:21] + bytes([data[21] & 0xF0]) + bytes(4) + data[26:]


@pytest.fixture(scope="module")
def hours() -> bytes:
    """An hour and a half of silence, in a few hundred kilobytes."""
    buffer = BytesIO()
    with av.open(buffer, "w", format="flac") as file:
        stream: Any = file.add_stream("flac", rate=24_000, layout="mono")
        minute = av.AudioFrame.from_ndarray(np.zeros((1, 60 * 24_000), "<i2"), format="s16", layout="mono")
        minute.sample_rate = 24_000
        fitting = av.AudioResampler("s16", "mono", 24_000, stream.codec_context.frame_size or 4_608)
        for _ in range(90):
            minute.pts = None
            for frame in fitting.resample(minute):
                file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("honest", [True, False])
def test_hours_in_a_small_file_are_not_unpacked(hours: bytes, honest: bool) -> None:
    """What says how long it is is refused for that; of what does not, no more is decoded than would be allowed."""
    assert len(hours) < MIB
    with little():
        assert "TOO_LONG" == outcome(hours if honest else of_unknown_length(hours))


def test_a_header_that_says_less_than_there_is_gains_nothing(hours: bytes) -> None:
    """A second, it says."""
    lie = hours[:21] + bytes([hours[21] & 0xF0]) + (24_000).to_bytes(4, "big") + hours[26:]
    with little():
        assert "TOO_LONG" == outcome(lie)


def test_no_more_is_decoded_than_the_limits_allow(hours: bytes) -> None:
    """Those of the model, which are tighter than what may be uploaded."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidField, match="at most 2 seconds"):
            decode(of_unknown_length(hours), LIMITS)
        assert tracemalloc.get_traced_memory()[1] < len(hours) + MIB
    finally:
        tracemalloc.stop()


def atom(kind: bytes, *content: bytes) -> bytes:
    inside = b"".join(content)
    return struct.pack(">I4s", len(inside) + 8, kind) + inside


def m4a_of(*, sizes: bytes, per_chunk: int, starts: Sequence[int], lengths: bytes = bytes(8)) -> bytes:
    """An M4A whose tables say this of its packets, and nothing of what else it is is wrong."""
    data = KINDS["m4a"]
    start = data.index(b"stsd") - 4
    description = data[start : start + int.from_bytes(data[start : start + 4], "big")]
    table = atom(
        b"stbl",
        description,
        atom(b"stts", lengths),
        atom(b"stsc", struct.pack(">IIIII", 0, 1, 1, per_chunk, 1)),
        atom(b"stsz", sizes),
        atom(b"stco", struct.pack(f">II{len(starts)}I", 0, len(starts), *starts)),
    )
    media = atom(
        b"mdia",
        atom(b"mdhd", struct.pack(">IIII", 0, 0, 0, 48_000)),
        atom(b"hdlr", bytes(8) + b"soun"),
        atom(b"minf", table),
    )
    movie = atom(
        b"moov",
        atom(b"mvhd", struct.pack(">IIII", 0, 0, 0, 1_000)),
        atom(b"trak", atom(b"tkhd", struct.pack(">IIII", 0, 0, 0, 1)), media),
    )
    return atom(b"ftyp", b"M4A \0\0\0\0") + movie + atom(b"mdat", bytes(100_000))


def same_size(size: int, count: int) -> bytes:
    return struct.pack(">III", 0, size, count)


def empty_pages() -> bytes:
    pages = (struct.pack("<4sBBqIIIB", b"OggS", 0, 2 * (not number), 0, 7, number, 0, 0) for number in range(200_000))
    return b"".join(each[:22] + struct.pack("<I", _ogg_checksum(each)) + each[26:] for each in pages)


def webm_of(elements: bytes) -> bytes:
    """What a browser writes up to its first cluster, and then these."""
    data = KINDS["chromium's webm"]
    return data[: data.index(b"\x1f\x43\xb6\x75")] + b"\x1f\x43\xb6\x75\x01" + b"\xff" * 7 + elements


HUGE = 2**32 - 1
HARM: dict[str, tuple[Callable[[], bytes], str]] = {
    "a WAV of four gigabytes": (lambda: wav(voice())[:40] + struct.pack("<I", HUGE - 1), "TRUNCATED"),
    "a WAV of many chunks": (lambda: riff(chunk(b"JUNK", b"") * 200_000), "UNREADABLE"),
    "a WAV of no channels": (lambda: wav(voice())[:22] + b"\0\0" + wav(voice())[24:], "UNREADABLE"),
    "a WAV of no rate": (lambda: wav(voice())[:24] + bytes(4) + wav(voice())[28:], "UNREADABLE"),
    "a FLAC of many notes": (lambda: KINDS["flac"][:42] + b"\x04\0\0\0" * 200_000, "UNREADABLE"),
    "a FLAC without a beginning": (lambda: KINDS["flac"][:42] + b"\x84\0\0\0" + b"\xff" * 8 * MIB, "TRUNCATED"),
    "notes without an end": (lambda: b"ID3\4\0\0\x7f\x7f\x7f\x7f" + KINDS["mp3"], "TRUNCATED"),
    "notes after notes": (lambda: b"ID3\4\0\0\0\0\0\0" * 1_000_000 + KINDS["mp3"], "FORMAT"),
    "an MP3 of an hour": (lambda: (b"\xff\xf3\x14\xc4" + bytes(20)) * 150_000, "TOO_LONG"),
    "an Ogg of empty pages": (empty_pages, "TOO_LONG"),
    "an M4A of endless samples": (
        lambda: m4a_of(sizes=same_size(1, HUGE), per_chunk=HUGE, starts=[1_000]),
        "TRUNCATED",
    ),
    "an M4A of empty samples": (lambda: m4a_of(sizes=bytes(8) + b"\xff" * 4, per_chunk=HUGE, starts=[9]), "UNREADABLE"),
    "an M4A of samples that are not listed": (
        lambda: m4a_of(sizes=same_size(1, HUGE), per_chunk=1, starts=[1_000]),
        "UNREADABLE",
    ),
    "an M4A of countless lengths": (
        lambda: m4a_of(sizes=same_size(1, 1), per_chunk=1, starts=[1_000], lengths=struct.pack(">II", 0, HUGE)),
        "TOO_LONG",
    ),
    "an M4A that lasts for ever": (
        lambda: m4a_of(sizes=same_size(1, 1), per_chunk=1, starts=[1_000], lengths=struct.pack(">IIII", 0, 1, HUGE, 9)),
        "TOO_LONG",
    ),
    "an M4A of the same again and again": (
        lambda: m4a_of(sizes=same_size(50_000, 100_000), per_chunk=1, starts=[20_000] * 100_000),
        "UNREADABLE",
    ),
    "boxes after boxes": (lambda: atom(b"ftyp", b"M4A ") + atom(b"moov", atom(b"free") * 100_000), "UNREADABLE"),
    "a WebM of countless elements": (lambda: webm_of(b"\xec\x80" * 1_000_000), "UNREADABLE"),
    "a WebM of countless blocks": (lambda: webm_of(b"\xa3\x84\x81\0\0\0" * 200_000), "TOO_LONG"),
    "a WebM of long packets": (lambda: webm_of(b"\xa3\x86\x81\0\0\0\x1b\x06" * 100_000), "TOO_LONG"),
}


@pytest.mark.parametrize("case", HARM)
def test_what_is_made_to_harm_is_refused_at_once(case: str) -> None:
    """However much a file says that it holds."""
    make, expected = HARM[case]
    data = make()
    start = time.thread_time()
    with little():
        assert expected == outcome(data)
    assert time.thread_time() - start < 4.0


# What is not one recording


@pytest.mark.parametrize(
    "data",
    [
        several("ogg", "libopus", "libopus"),
        KINDS["opus"] + KINDS["opus"],
        several("ipod", "aac", "aac"),
        several("mp4", "aac", "mpeg4"),
        several("mp4", "mpeg4"),
        several("webm", "libopus", "libopus"),
        several("webm", "libopus", "libvpx"),
        several("webm", "libvpx"),
    ],
    ids=[
        "two in Ogg",
        "one after another",
        "two in M4A",
        "a film",
        "a silent film",
        "two in WebM",
        "WebM",
        "silent WebM",
    ],
)
def test_one_recording_at_a_time(data: bytes) -> None:
    """Which of two tracks would be meant nobody knows, and a film is no recording."""
    assert "SEVERAL_STREAMS" == outcome(data)


def test_all_of_these_are_read_here() -> None:
    """What tests of this file take for damage is none."""
    assert {"sound"} == set(map(outcome, chain(KINDS.values(), map(small, KINDS))))
