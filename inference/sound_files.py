"""Sound files: samples to the bytes of a finished file.

Everything is done in memory. Equal samples give equal bytes on one host; across hosts nothing is promised of Opus, as
its encoder chooses its code by the processor.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream

from cache.encoding import Value
from inference import pacing
from inference.models.base import Artifact

CODE_VERSION = 1  # of everything here that shapes the bytes


@dataclass(frozen=True)
class _Container:
    media_type: str
    codec: str
    codec_options: dict[str, str] = field(default_factory=dict)
    rates: tuple[int, ...] = ()  # the only ones its codec has; empty: it has all


CONTAINERS = {
    "wav": _Container("audio/wav", "pcm_s16le"),
    "flac": _Container("audio/flac", "flac", {"compression_level": "5"}),
    "ogg": _Container(
        "audio/ogg",
        "libopus",
        {"b": "32000", "application": "audio", "vbr": "on", "compression_level": "10", "frame_duration": "20"},
        rates=(8000, 12000, 16000, 24000, 48000),
    ),
}


def encode(pcm: npt.NDArray[np.int16], sample_rate: int, container: str) -> Artifact:
    """A file that plays these samples [n], mono, at `sample_rate` samples per second. Opus knows few rates; for others
    it takes the next one up, which loses nothing.

    `container` is a key of `CONTAINERS`. Raises ValueError without samples.
    """
    if not len(pcm):
        raise ValueError("no samples to play")
    kind = CONTAINERS[container]
    rate = next((rate for rate in kind.rates if rate >= sample_rate), sample_rate)
    pace = pacing.Pace(sample_rate, sample_rate=rate)
    samples = np.concatenate([pace.feed(pcm), pace.end()])
    frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
    frame.sample_rate, frame.pts = rate, 0
    buffer = io.BytesIO()
    # Bit exact: no version strings, no random identifiers, no dates.
    with av.open(buffer, "w", format=container, options={"fflags": "+bitexact"}) as file:
        stream = cast("AudioStream", file.add_stream(kind.codec, rate=rate, options=kind.codec_options))
        stream.codec_context.layout, stream.codec_context.format = "mono", "s16"
        stream.codec_context.thread_count = 1
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return Artifact(buffer.getvalue(), kind.media_type)


def versions() -> Value:
    """Versions of everything that shapes the bytes."""
    return {"code": CODE_VERSION, "pacing": pacing.versions()}
