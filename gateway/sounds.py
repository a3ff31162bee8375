"""Sounds: from a file with a recording to samples, and to the identity those samples have.

Two files are the same sound when they play the same samples: the container, its compression and its notes do not
count, and two channels count as their mean. What comes out is 16-bit mono at the rate of the recording, rounded once:
a file of floats and one of 16 bits that hold the same are one sound. Nothing is resampled, trimmed or made louder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.codec.context import CodecContext

from cache.description import Recording
from cache.sound import sound_identity
from gateway.blueprint import LARGEST_FILE
from gateway.errors import InvalidField, Overloaded
from gateway.sound_files import is_sound as is_sound
from gateway.sound_files import read
from gateway.tracks import ANY, HIGHEST_RATE, LEAST_PEAK, MOST_CHANNELS, MOST_CLIPPED, Track, refused, too_large


class Facts(NamedTuple):
    """What is known of a sound without its samples, and follows from them."""

    identity: str
    sample_rate: int  # samples per second
    samples: int
    peak: float  # of full scale
    clipped: float  # share of samples at full scale

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


@dataclass(frozen=True, slots=True)
class Sound:
    """Decoded samples, 16-bit little-endian mono, `facts.samples * 2` bytes."""

    facts: Facts
    pcm: bytes = field(repr=False)

    @property
    def identity(self) -> str:
        return self.facts.identity

    @classmethod
    def of(cls, sample_rate: int, pcm: bytes) -> Sound:
        samples = np.frombuffer(pcm, "<i2")
        loudest = max(int(samples.max()), -int(samples.min())) if samples.size else 0
        clipped = int(np.count_nonzero((samples == _HIGHEST) | (samples <= -_HIGHEST))) / max(samples.size, 1)
        identity = sound_identity(sample_rate, samples.size, pcm)
        return cls(Facts(identity, sample_rate, samples.size, loudest / (_HIGHEST + 1), clipped), pcm)


def decode(data: bytes, limits: Recording = ANY) -> Sound:
    """The sound in a file, if that is no longer than these limits allow. Blocking and pure; whether it is as they want
    it otherwise, `check` says. Raises TooLarge and InvalidField, for `voice`.
    """
    if len(data) > LARGEST_FILE:
        raise too_large()
    track = read(data)
    if track.channels > MOST_CHANNELS:
        raise refused("SOUND_CHANNELS")
    if track.sample_rate > HIGHEST_RATE:
        raise refused("SOUND_SAMPLE_RATE", limits)
    if track.length is not None and track.length > limits.max_seconds * track.scale:
        raise refused("SOUND_TOO_LONG", limits)
    return Sound.of(*_decoded(track, limits))


def check(facts: Facts, limits: Recording) -> None:
    """Raises InvalidField for a sound that is not as these limits want it."""
    if not limits.min_sample_rate <= facts.sample_rate <= HIGHEST_RATE:
        raise refused("SOUND_SAMPLE_RATE", limits)
    if facts.seconds > limits.max_seconds:
        raise refused("SOUND_TOO_LONG", limits)
    if facts.seconds < limits.min_seconds:
        raise refused("SOUND_TOO_SHORT", limits)
    if facts.peak < LEAST_PEAK:
        raise refused("SOUND_SILENT")
    if facts.clipped > MOST_CLIPPED:
        raise refused("SOUND_CLIPPED")


_LOSSLESS = frozenset({"audio/wav", "audio/flac"})
_OWN = Recording(min_seconds=1e-9, max_seconds=24 * 3600.0, min_sample_rate=1)


def samples_of(file: bytes, media_type: str) -> tuple[int, bytes]:
    """Samples per second and the samples, 16-bit little-endian mono, of a finished file of ours, as they were put in.

    Blocking. Raises ValueError for a file whose samples are not those it was made of, or that is none of ours.
    """
    if media_type not in _LOSSLESS:
        raise ValueError(f"no samples can be had of {media_type}")
    try:
        return _decoded(read(file), _OWN)
    except InvalidField as error:
        raise ValueError(f"no file of ours: {error.reason}") from error


_HIGHEST = 2**15 - 1
_SCALES = {"u8": 256.0, "s16": 1.0, "s32": 2.0**-16, "flt": 2.0**15, "dbl": 2.0**15}  # to 16 bits


def _decoded(track: Track, limits: Recording) -> tuple[int, bytes]:
    """The rate and the samples, never more of them in memory than the limits allow, and one packet's."""
    try:
        return _Decoding(track, limits).run()
    except (InvalidField, Overloaded):
        raise
    except MemoryError:
        raise Overloaded("GATEWAY_BUSY") from None
    except Exception:  # noqa: BLE001  # decoders raise nearly anything for bytes made to break them
        raise refused("SOUND_UNREADABLE") from None


class _Decoding:
    def __init__(self, track: Track, limits: Recording) -> None:
        self._track = track
        self._limits = limits
        self._rate = 0
        self._have = 0  # samples, with those that are skipped
        self._skip = 0
        self._most = 0
        self._end: int | None = None  # where the recording ends, if the file says so
        self._parts: list[bytes] = []  # of what is not skipped

    def run(self) -> tuple[int, bytes]:
        track, decoder = self._track, _decoder(self._track)
        for packet in track.packets:
            for each in decoder.parse(packet) if track.unparsed else (av.Packet(packet),):
                self._feed(decoder, each)
            if self._end is not None and self._have > self._end and not track.exact:
                break  # what follows is the coder's own
        while track.unparsed and (rest := decoder.parse(None)):
            for each in rest:
                self._feed(decoder, each)
        self._take(decoder.decode(None))
        if track.exact and track.length and self._have != track.length:
            raise refused("SOUND_TRUNCATED" if self._have < track.length else "SOUND_UNREADABLE")
        pcm = b"".join(self._parts)
        return self._rate or track.sample_rate, pcm[: None if self._end is None else 2 * (self._end - self._skip)]

    def _feed(self, decoder: Any, packet: Any) -> None:
        if packet.size:  # without any bytes it would mean the end
            self._take(decoder.decode(packet))

    def _take(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            if not self._rate:
                self._begin(frame.sample_rate)
            elif frame.sample_rate != self._rate:
                raise refused("SOUND_UNREADABLE")
            self._have += frame.samples
            if self._have > self._most:
                raise refused("SOUND_TOO_LONG", self._limits)
            # A file may skip whatever it likes: as much as it has is decoded, and none of it is kept.
            unwanted = max(0, self._skip - (self._have - frame.samples))
            if unwanted < frame.samples:
                self._parts.append(_mono(frame)[2 * unwanted :])

    def _begin(self, rate: int) -> None:
        if not 0 < rate <= HIGHEST_RATE:
            raise refused("SOUND_SAMPLE_RATE", self._limits)
        track = self._track
        self._rate = rate
        self._skip = _scaled(track.skip, rate, track.scale)
        if track.length is not None:
            self._end = self._skip + _scaled(track.length, rate, track.scale)
        self._most = self._skip + int(self._limits.max_seconds * rate) + rate  # a second for what a coder may add


def _scaled(units: int, rate: int, scale: int) -> int:
    return round(Fraction(units * rate, scale))


def _decoder(track: Track) -> Any:
    decoder: Any = CodecContext.create(track.codec, "r")
    decoder.thread_count = 1
    if track.exact:
        decoder.options = {"err_detect": "crccheck+explode"}
    if track.setup:
        decoder.extradata = track.setup
    else:
        decoder.sample_rate = track.sample_rate
        decoder.layout = "stereo" if track.channels == 2 else "mono"
    return decoder


def _mono(frame: av.AudioFrame) -> bytes:
    """The mean of a frame's channels, rounded to 16 bits."""
    channels = len(frame.layout.channels)
    if channels > MOST_CHANNELS:
        raise refused("SOUND_CHANNELS")
    with np.errstate(all="ignore"):  # of what is no number, which is looked for next
        values = frame.to_ndarray().astype(np.float64)
        values = values if frame.format.is_planar else values.reshape(-1, channels).T
        if (kind := frame.format.name.removesuffix("p")) == "u8":
            values -= 128.0
        mean = values.mean(axis=0) * _SCALES[kind]
    if not np.isfinite(mean).all():
        raise refused("SOUND_NOT_FINITE")
    pcm: bytes = np.rint(mean).clip(-_HIGHEST - 1, _HIGHEST).astype("<i2").tobytes()
    return pcm
