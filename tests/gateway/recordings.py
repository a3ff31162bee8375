"""Recordings for tests: samples like a voice's, and files of every kind with them, written by FFmpeg or by hand.

`recorded/` holds what a browser's MediaRecorder wrote (Chromium 156): half a second of a tone, told in pieces.
"""

from __future__ import annotations

import struct
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from cache.description import Recording

LIMITS = Recording(min_seconds=0.2, max_seconds=2.0, min_sample_rate=16_000)
RECORDED = Path(__file__).with_name("recorded")


def voice(seconds: float = 0.5, rate: int = 24_000, *, seed: int = 0, level: float = 0.3) -> NDArray[np.int16]:
    """A hum with harmonics and breath, at most `level` of full scale."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = 110.0 + 10.0 * seed
    hum = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 9))
    breath = np.random.default_rng(seed).standard_normal(time.size) * 0.05
    sound = hum * (1 + np.sin(2 * np.pi * 3 * time)) / 2 + breath
    samples: NDArray[np.int16] = np.rint(sound / np.abs(sound).max() * level * 32_767).astype("<i2")
    return samples


def wav(
    samples: NDArray[Any], rate: int = 24_000, *, kind: int = 1, extra: bytes = b"", extensible: bool = False
) -> bytes:
    """A WAV file of samples [time] or [time, channels], as they are; of 24 bits if they are bytes [..., 3]."""
    wide = samples.dtype == np.uint8 and samples.ndim > 1  # three bytes each
    bits = 24 if wide else samples.dtype.itemsize * 8
    channels = samples.shape[1] if samples.ndim > 1 + wide else 1
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    if extensible:
        guid = struct.pack("<H", kind) + bytes.fromhex("000000001000800000aa00389b71")
        form = struct.pack("<H", 0xFFFE) + form[2:] + struct.pack("<HHI", 22, bits, 0) + guid
    return riff(chunk(b"fmt ", form) + extra + chunk(b"data", samples.tobytes()))


def riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


def chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def written(
    samples: NDArray[np.int16], container: str, codec: str, rate: int = 24_000, *, channels: int = 1, **options: str
) -> bytes:
    """A file that FFmpeg makes of these samples, the same ones in every channel."""
    buffer = BytesIO()
    with av.open(buffer, "w", format=container, options=options) as file:
        file.metadata.update({"title": "about the weather", "artist": "somebody"})
        stream: Any = file.add_stream(codec, rate=rate)
        stream.layout = "stereo" if channels == 2 else "mono"
        stream.codec_context.options = {"strict": "experimental"}  # as FFmpeg calls its coder for Vorbis
        for frame in _frames(stream, samples, rate, channels):
            file.mux(stream.encode(frame))
    return buffer.getvalue()


_FILMS = ("mpeg4", "libvpx")


def several(container: str, *codecs: str) -> bytes:
    """A file with several tracks of half a second each, of sound or of pictures."""
    buffer = BytesIO()
    with av.open(buffer, "w", format=container) as file:
        streams: list[Any] = [file.add_stream(codec, rate=25 if codec in _FILMS else 48_000) for codec in codecs]
        for stream in streams:
            if stream.type == "video":
                stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            else:
                stream.layout = "mono"
        for stream in streams:
            film = [*(av.VideoFrame(32, 32, "yuv420p") for _ in range(12)), None]
            frames = film if stream.type == "video" else _frames(stream, voice(rate=48_000), 48_000, 1)
            for frame in frames:
                file.mux(stream.encode(frame))
    return buffer.getvalue()


def _frames(stream: Any, samples: NDArray[np.int16], rate: int, channels: int) -> list[Any]:
    """What a coder of sound takes, and in the end nothing."""
    layout = "stereo" if channels == 2 else "mono"
    frame = av.AudioFrame.from_ndarray(samples.repeat(channels)[None], format="s16", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    fitting = av.AudioResampler(stream.format, layout, rate, stream.codec_context.frame_size or None)
    return [*fitting.resample(frame), *fitting.resample(None), None]


def flac(samples: NDArray[np.int16], rate: int = 24_000, *, channels: int = 1) -> bytes:
    return written(samples, "flac", "flac", rate, channels=channels)


def as_ffmpeg_reads(data: bytes) -> tuple[int, NDArray[np.float64]]:
    """Samples per second, and the mean of the channels in units of 16 bits, as FFmpeg's own reader has them."""
    scales = {"u8": 256.0, "s16": 1.0, "s32": 2.0**-16, "flt": 2.0**15, "dbl": 2.0**15}
    parts, rate = [], 0
    with av.open(BytesIO(data), "r") as file:
        for frame in file.decode(audio=0):
            rate, channels = frame.sample_rate, len(frame.layout.channels)
            values = frame.to_ndarray().astype(np.float64)
            values = values if frame.format.is_planar else values.reshape(-1, channels).T
            kind = frame.format.name.removesuffix("p")
            parts.append((values - (128.0 if kind == "u8" else 0.0)).mean(axis=0) * scales[kind])
    return rate, np.concatenate(parts)


in_fragments: Any = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "100000"}
KINDS: dict[str, bytes] = {
    "wav": wav(voice()),
    "flac": flac(voice()),
    "opus": written(voice(rate=48_000), "ogg", "libopus", 48_000),
    "vorbis": written(voice(rate=44_100), "ogg", "vorbis", 44_100, channels=2),
    "mp3": written(voice(), "mp3", "libmp3lame"),
    "mp3, 44.1 kHz": written(voice(rate=44_100), "mp3", "libmp3lame", 44_100, channels=2),
    "m4a": written(voice(rate=48_000), "ipod", "aac", 48_000),
    "m4a in fragments": written(voice(rate=48_000), "mp4", "aac", 48_000, **in_fragments),
    "m4a with opus": written(voice(rate=48_000), "mp4", "libopus", 48_000),
    "webm": written(voice(rate=48_000), "webm", "libopus", 48_000),
    "webm written live": written(voice(rate=48_000), "webm", "libopus", 48_000, channels=2, live="1"),
    "chromium's webm": (RECORDED / "chromium.webm").read_bytes(),
    "chromium's mp4": (RECORDED / "chromium.mp4").read_bytes(),
}
