"""Speed and rate of samples, by their sound and to the sample."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import numpy as np
import numpy.typing as npt
import pytest

from inference.pacing import Pace, resampled

RATE = 24_000
CHANGES = [(1.0, 16_000), (1.0, 48_000), (0.5, RATE), (2.0, RATE), (1.37, 22_050), (0.77, 44_100)]
Pcm = npt.NDArray[np.int16]


def tone(frequency: float, seconds: float, rate: int = RATE) -> Pcm:
    time = np.arange(round(seconds * rate)) / rate
    made: Pcm = (10_000 * np.sin(2 * np.pi * frequency * time)).astype(np.int16)
    return made


def noise(samples: int, seed: int = 0) -> Pcm:
    """Like speech in that it comes and goes."""
    draw = np.random.default_rng(seed)
    loudness = np.abs(np.sin(np.arange(samples) / 2000)) * 8000
    made: Pcm = (draw.normal(0, 1, samples) * loudness).clip(-32768, 32767).astype(np.int16)
    return made


def paced(pcm: Pcm, speed: float, sample_rate: int, cuts: Iterator[int] | None = None) -> Pcm:
    pace = Pace(RATE, speed=speed, sample_rate=sample_rate)
    pieces = []
    while len(pcm):
        count = next(cuts) if cuts is not None else len(pcm)
        pieces.append(pace.feed(pcm[:count]))
        pcm = pcm[count:]
    return np.concatenate([*pieces, pace.end()])


def loudest(pcm: Pcm, rate: int) -> float:
    """The frequency there is most of, in Hz."""
    return float(np.abs(np.fft.rfft(pcm * np.hanning(len(pcm)))).argmax() * rate / len(pcm))


def test_nothing_to_change_changes_nothing() -> None:
    """At its own speed and rate every sample is the same, and comes at once."""
    pace = Pace(RATE, sample_rate=RATE)
    assert np.array_equal(pace.feed(noise(1000)), noise(1000))
    assert len(pace.end()) == 0


@pytest.mark.parametrize(("speed", "sample_rate"), CHANGES)
@pytest.mark.parametrize("samples", [0, 1, 100, 1920, 2048, 50_000])
def test_as_much_comes_out_as_the_arithmetic_says(samples: int, speed: float, sample_rate: int) -> None:
    """To the sample, for a moment as for a sentence."""
    assert len(paced(noise(samples), speed, sample_rate)) == round(samples * sample_rate / RATE / speed)


@pytest.mark.parametrize(("speed", "sample_rate"), CHANGES)
def test_what_comes_out_does_not_depend_on_the_portions(speed: float, sample_rate: int) -> None:
    """At once, sample by sample, or in any portions: equal bits, this time and the next."""
    whole = paced(noise(9000), speed, sample_rate)
    assert np.array_equal(paced(noise(9000), speed, sample_rate), whole)
    assert np.array_equal(paced(noise(9000), speed, sample_rate, repeat(1)), whole)
    assert np.array_equal(paced(noise(9000), speed, sample_rate, iter([1, 2047, 2048, 3, 9000])), whole)


@pytest.mark.parametrize(("speed", "sample_rate"), CHANGES)
def test_the_pitch_stays(speed: float, sample_rate: int) -> None:
    """A tone is the same tone, shorter or longer and at another rate, and as loud."""
    changed = paced(tone(440, 2.0), speed, sample_rate)
    assert loudest(changed, sample_rate) == pytest.approx(440, abs=3)
    middle = changed[len(changed) // 4 : -len(changed) // 4].astype(float)
    assert middle.std() == pytest.approx(10_000 / 2**0.5, rel=0.05)


@pytest.mark.parametrize(("speed", "sample_rate"), CHANGES)
def test_the_end_is_said_too(speed: float, sample_rate: int) -> None:
    """What comes last is heard last, as loud as before, and not lost in a filter."""
    quiet_then_loud = np.concatenate([np.zeros(RATE, np.int16), tone(440, 0.5)])
    changed = paced(quiet_then_loud, speed, sample_rate).astype(float)
    loud = round(0.5 * sample_rate / speed)
    assert np.abs(changed[: -loud - loud // 4]).max() < 500
    assert changed[-loud // 10 :].std() > 0.7 * 10_000 / 2**0.5


def test_sound_comes_before_its_end() -> None:
    """Of a second of speech, most comes while it is fed."""
    for speed, sample_rate in CHANGES:
        pace = Pace(RATE, speed=speed, sample_rate=sample_rate)
        at_once = sum(len(pace.feed(noise(2048))) for _ in range(12))
        assert at_once > 0.7 * 12 * 2048 * sample_rate / RATE / speed


def test_what_a_rate_cannot_hold_is_taken_away() -> None:
    """A tone above half of the new rate leaves silence, and no other tone."""
    high = (0.5 * np.sin(2 * np.pi * 7000 * np.arange(48_000) / 48_000)).astype(np.float32)
    lower = resampled(high, 48_000, 8000)
    assert lower.dtype == np.float32
    assert len(lower) == 8000
    assert np.abs(lower[200:-200]).max() < 0.005
    assert np.abs(resampled(high, 48_000, 24_000)[200:-200]).max() == pytest.approx(0.5, rel=0.01)
