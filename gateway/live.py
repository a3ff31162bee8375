"""Live: speech as it is heard, in blocks of a quarter of a second.

A worker tells samples as they are made. Whatever a listener has not heard when the file is there is cut from the file
itself: of a hit that is all of it. Files of these formats hold the very samples that were made, and blocks are counted
from the first sample, so what is heard is the same at every time and for everybody, block by block.
"""

from __future__ import annotations

import asyncio
import wave
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO

from cache.description import Scalar
from gateway.sounds import samples_of

FORMATS = ("wav", "flac")  # of files that hold the samples they were made of
_BLOCKS = 4  # in a second
_WIDTH = 2  # bytes of a sample
_HEAD = 4096  # bytes at the beginning of a WAV that tell where its samples are


@dataclass(frozen=True, slots=True)
class Sound:
    """The samples of a finished file: in the file itself, or beside it where they had to be decoded."""

    sample_rate: int  # samples per second
    samples: int
    start: int = 0  # byte of the file at which they begin
    pcm: bytes | None = None  # None: they lie in the file

    @property
    def weight(self) -> int:
        return len(self.pcm or b"")

    def blocks(self, heard: int = 0) -> Iterator[tuple[int, int]]:
        """First and last sample (exclusive) of each block, from what was `heard` on."""
        size = block_of(self.sample_rate)
        while heard < self.samples:
            end = min(heard // size * size + size, self.samples)
            yield heard, end
            heard = end


def can_be_heard(parameters: Mapping[str, Scalar]) -> bool:
    """Whether the file that is asked for will hold the samples that are made."""
    return parameters.get("format", FORMATS[0]) in FORMATS


def block_of(sample_rate: int) -> int:
    """Samples of a block."""
    return max(1, sample_rate // _BLOCKS)


async def sound_in(media_type: str, size: int, read: Callable[[int, int], bytes]) -> Sound | None:
    """The sound of a file of `size` bytes, any part of which can be read. None: its samples cannot be had.

    A FLAC is decoded in a thread.
    """
    if media_type == "audio/wav" and (sound := _in_wav(read(0, min(size, _HEAD)), size)) is not None:
        return sound
    try:
        sample_rate, pcm = await asyncio.to_thread(samples_of, read(0, size), media_type)
    except ValueError:
        return None
    return Sound(sample_rate, len(pcm) // _WIDTH, pcm=pcm)


def _in_wav(head: bytes, size: int) -> Sound | None:
    """Where the samples are in a WAV whose samples need no decoding. None: in any other."""
    file = BytesIO(head)
    try:
        with wave.open(file) as opened:
            form = opened.getcomptype(), opened.getnchannels(), opened.getsampwidth()
            sound = Sound(opened.getframerate(), opened.getnframes(), start=file.tell())
    except (wave.Error, EOFError):
        return None
    whole = sound.start + sound.samples * _WIDTH <= size
    return sound if form == ("NONE", 1, _WIDTH) and whole and sound.sample_rate > 0 else None
