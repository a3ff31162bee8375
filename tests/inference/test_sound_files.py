"""Finished files of sound: what is in them, and that it is always the same."""

from __future__ import annotations

import io

import av
import numpy as np
import numpy.typing as npt
import pytest

from inference import sound_files

Pcm = npt.NDArray[np.int16]
LOSSLESS = ("wav", "flac")


def speech(seconds: float, rate: int) -> Pcm:
    """A voiced sound that comes and goes."""
    time = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 8))
    return (6000 * buzz * np.sin(2 * np.pi * 2 * time) ** 2).astype(np.int16)


def played(data: bytes) -> tuple[int, npt.NDArray[np.float64]]:
    """The rate, and the samples in -1..1."""
    with av.open(io.BytesIO(data), "r") as file:
        frames = [frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)]
        samples = np.concatenate(frames)
        scale = 32768 if samples.dtype == np.int16 else 1
        return file.streams.audio[0].rate, samples.astype(float) / scale


@pytest.mark.parametrize("rate", [8000, 22_050, 24_000, 48_000])
@pytest.mark.parametrize("container", LOSSLESS)
def test_every_sample_is_played_as_it_was(container: str, rate: int) -> None:
    """Lossless files hold exactly the samples, at their rate."""
    pcm = np.concatenate([speech(1.234, rate), np.array([-32768, 32767, 0, 1], np.int16)])
    heard_rate, heard = played(sound_files.encode(pcm, rate, container).data)
    assert heard_rate == rate
    assert np.array_equal(heard * 32768, pcm)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 24_000, 44_100, 48_000])
def test_opus_sounds_like_it_and_is_small(rate: int) -> None:
    """It plays for as long, nearly as it was, whatever rate it was made at, and takes a few kilobytes for a second."""
    pcm = speech(2.0, rate)
    data = sound_files.encode(pcm, rate, "ogg").data
    heard_rate, heard = played(data)
    assert heard_rate == 48_000
    assert len(heard) == 2 * 48_000
    assert len(data) < 2 * 7000
    meant = np.interp(np.arange(len(heard)) / 48_000, np.arange(len(pcm)) / rate, pcm / 32768)
    assert np.corrcoef(heard, meant)[0, 1] > 0.99


@pytest.mark.parametrize("container", sound_files.CONTAINERS)
def test_equal_samples_give_equal_bytes(container: str) -> None:
    """A file's bytes follow from its samples, rate and container alone."""
    first = sound_files.encode(speech(1.0, 24_000), 24_000, container)
    assert sound_files.encode(speech(1.0, 24_000), 24_000, container) == first
    assert sound_files.encode(speech(1.1, 24_000), 24_000, container) != first


@pytest.mark.parametrize(("container", "beginning"), [("wav", b"RIFF"), ("flac", b"fLaC"), ("ogg", b"OggS")])
def test_files_are_of_the_type_they_say(container: str, beginning: bytes) -> None:
    """The media type is the one browsers know the container by."""
    artifact = sound_files.encode(speech(0.1, 24_000), 24_000, container)
    assert artifact.media_type == f"audio/{container}"
    assert artifact.data.startswith(beginning)


def test_a_wav_is_its_samples_behind_a_plain_header() -> None:
    """44 bytes say what they are, so that any reader finds them."""
    pcm = speech(0.5, 24_000)
    assert sound_files.encode(pcm, 24_000, "wav").data[44:] == pcm.astype("<i2").tobytes()


def test_no_samples_are_no_file() -> None:
    """Nothing to play is a mistake of the caller."""
    with pytest.raises(ValueError, match="no samples"):
        sound_files.encode(np.zeros(0, np.int16), 24_000, "wav")
