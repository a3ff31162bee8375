"""Track: what a file says of its sound before anything is decoded, and the bounds it must keep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

from cache.description import Recording
from gateway.blueprint import LARGEST_FILE, MIB
from gateway.errors import InvalidField, TooLarge

FIELD = "voice"
FORMATS = "WAV (PCM), FLAC, Ogg (Opus or Vorbis), MP3, M4A (AAC or Opus) or WebM (Opus)"
ANY = Recording(min_seconds=0.1, max_seconds=300.0, min_sample_rate=8_000)  # what some model may take
HIGHEST_RATE = 96_000  # samples per second
MOST_CHANNELS = 2
MOST_CLIPPED = 0.01  # of all samples; those of the loudest honest recording are fewer by far
LEAST_PEAK = 0.001  # of full scale; that is 60 dB below it
MOST_PACKETS = 131_072  # of a file: five minutes in the shortest ones there are, of 2.5 ms

Reason: TypeAlias = Literal[
    "SOUND_FORMAT",
    "SOUND_UNREADABLE",
    "SOUND_TRUNCATED",
    "SOUND_TOO_LONG",
    "SOUND_TOO_SHORT",
    "SOUND_SAMPLE_RATE",
    "SOUND_SILENT",
    "SOUND_CLIPPED",
    "SOUND_NOT_FINITE",
    "SOUND_CHANNELS",
    "SOUND_SEVERAL_STREAMS",
]
_WORDS: dict[Reason, str] = {
    "SOUND_FORMAT": f"must be a {FORMATS} file",
    "SOUND_UNREADABLE": "must be an intact recording; this file is damaged or uses an unusual feature: save it anew",
    "SOUND_TRUNCATED": "must be a whole file; a part of this one is missing",
    "SOUND_TOO_LONG": "must last at most {0.max_seconds:g} seconds; cut it",
    "SOUND_TOO_SHORT": "must last at least {0.min_seconds:g} seconds; record more",
    "SOUND_SAMPLE_RATE": f"must have {{0.min_sample_rate:,}} to {HIGHEST_RATE:,} samples per second; record it so",
    "SOUND_SILENT": "must be heard; this recording is silent, or nearly so: record it louder",
    "SOUND_CLIPPED": "must not be clipped; this recording is at full scale too often: record it at a lower level",
    "SOUND_NOT_FINITE": "must have finite samples; this file has others: save it anew, with 16 bits a sample",
    "SOUND_CHANNELS": "must have one channel or two; mix it down",
    "SOUND_SEVERAL_STREAMS": "must have one audio track and no film; save that track alone",
}


def refused(reason: Reason, limits: Recording = ANY) -> InvalidField:
    return InvalidField(FIELD, _WORDS[reason].format(limits), reason=reason)


def too_large() -> TooLarge:
    return TooLarge(FIELD, f"must be a file of at most {LARGEST_FILE // MIB} MiB", reason="SOUND_TOO_LARGE")


class Track(NamedTuple):
    """How to make the sound that a file holds."""

    codec: str  # as FFmpeg names the decoder
    setup: bytes  # what the decoder must know before the first packet
    channels: int
    sample_rate: int  # samples per second
    packets: Iterable[bytes]  # coded, in order
    scale: int  # of `skip` and `length`: units per second
    skip: int = 0  # at the start, what is the coder's and not the recording's
    length: int | None = None  # of the recording after that; None: the file does not say
    exact: bool = False  # lossless: it must be as long as it says
    unparsed: bool = False  # packets are pieces of a stream, which the decoder must take apart itself
