"""Speech for tests: voices as files, and what a scripted worker makes of a text. All of it is a pure function."""

from __future__ import annotations

import wave
from collections.abc import Mapping, Sequence
from io import BytesIO

import av
import numpy as np

from cache.digest import Digest
from reprise.v1 import common_pb2 as pb

RATE = 16_000  # of voices, samples per second
_NATIVE = 8_000  # of the scripted model
RUN, REUSED, NOT_NEEDED = pb.STAGE_OUTCOME_RUN, pb.STAGE_OUTCOME_REUSED, pb.STAGE_OUTCOME_NOT_NEEDED


def voice(pitch: int = 200, seconds: float = 1.0, rate: int = RATE, loudness: float = 0.5) -> bytes:
    """A WAV file; each pitch is another voice."""
    times = np.arange(int(seconds * rate)) / rate
    return wav((np.sin(2 * np.pi * pitch * times) * loudness * 32767).astype("<i2").tobytes(), rate)


def wav(pcm: bytes, rate: int) -> bytes:
    buffer = BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(pcm)
    return buffer.getvalue()


VOICE = voice()


def flac(pcm: bytes, rate: int) -> bytes:
    buffer = BytesIO()
    with av.open(buffer, "w", format="flac") as out:
        stream = out.add_stream("flac", rate=rate)
        stream.layout = "mono"
        stream.format = "s16"
        frame = av.AudioFrame.from_ndarray(np.frombuffer(pcm, "<i2")[None], format="s16", layout="mono")
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    return buffer.getvalue()


def file(pcm: bytes, rate: int, container: str) -> bytes:
    match container:
        case "wav":
            return wav(pcm, rate)
        case "flac":
            return flac(pcm, rate)
    return b"OggS" + Digest.of(pcm).hex.encode()


def samples_in(data: bytes) -> tuple[int, bytes]:
    """Rate and samples of a file, read by another library than the gateway's."""
    with av.open(BytesIO(data), "r") as opened:
        frames = [frame.to_ndarray().tobytes() for frame in opened.decode(audio=0)]
        return opened.streams.audio[0].rate, b"".join(frames)


def waveform(latents: bytes) -> bytes:
    """Between a third of a second and a whole one of noise that is as good as a fingerprint."""
    draw = np.random.default_rng(list(Digest.of(latents).hex.encode()))
    samples = draw.integers(-20_000, 20_000, int(draw.integers(_NATIVE // 3, _NATIVE)))
    return bytes(samples.astype("<i2").tobytes())


def paced(sound: bytes, speed: float, rate: int) -> bytes:
    samples = np.frombuffer(sound, "<i2")
    places = np.arange(int(len(samples) * rate / _NATIVE / speed)) * _NATIVE * speed / rate
    return bytes(samples[places.astype(int).clip(0, len(samples) - 1)].tobytes())


def not_needed(stage: str) -> pb.StageReport:
    return pb.StageReport(stage=stage, outcome=NOT_NEEDED)


def folded(stage: str, names: Sequence[str], reports: Mapping[str, pb.StageReport]) -> pb.StageReport:
    """One report of a stage that runs for every sentence; `names` are those of its parts, by place."""
    parts = []
    for place, name in enumerate(names):
        each = reports.get(name) or not_needed(name)
        again = each.outcome == RUN and name in names[:place]
        parts.append(
            pb.PartReport(outcome=REUSED if again else each.outcome, tier=each.tier, device_seconds=each.device_seconds)
        )
    outcome = next(each for each in (RUN, REUSED, NOT_NEEDED) if any(part.outcome == each for part in parts))
    alike = [part for part in parts if part.outcome == outcome]
    return pb.StageReport(
        stage=stage,
        outcome=outcome,
        tier=max(part.tier for part in alike),
        device_seconds=sum(part.device_seconds for part in alike),
        parts=parts,
    )
