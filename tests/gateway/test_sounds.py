"""Sounds: one identity for one set of samples, and limits that a recording must keep."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cache.description import Recording
from gateway.errors import InvalidField, TooLarge
from gateway.sounds import Sound, check, decode, is_sound, samples_of
from gateway.tracks import ANY
from tests.gateway.recordings import KINDS, LIMITS, as_ffmpeg_reads, chunk, flac, voice, wav, written
from tests.gateway.world import PICTURE

VOICE = voice()


def identity_of(data: bytes) -> str:
    return decode(data).identity


def refusal_of(data: bytes, limits: Recording = LIMITS) -> InvalidField:
    with pytest.raises(InvalidField) as caught:
        check(decode(data, limits).facts, limits)
    assert "voice" == caught.value.field
    return caught.value


def reason_of(data: bytes, limits: Recording = LIMITS) -> str:
    return refusal_of(data, limits).reason


def of_24_bits(samples: NDArray[np.int16]) -> NDArray[np.uint8]:
    wide = samples.astype("<i4") << 8
    return wide.view(np.uint8).reshape(-1, 4)[:, :3]


# One identity for one set of samples


def test_a_sound_is_its_samples() -> None:
    """What comes out of a file is the rate and the samples that went into it, and what follows from these."""
    sound = decode(wav(VOICE))

    assert VOICE.tobytes() == sound.pcm
    assert Sound.of(24_000, VOICE.tobytes()) == sound
    assert (24_000, 12_000, 0.5) == (sound.facts.sample_rate, sound.facts.samples, sound.facts.seconds)
    assert (np.abs(VOICE).max() / 32_768, 0.0) == (sound.facts.peak, sound.facts.clipped)


def test_identities_do_not_change() -> None:
    """The identity of a known sound is the one that stored entries were named by."""
    sound = Sound.of(24_000, bytes(480))

    assert "b466b5439ae81f098232ca18d64343d06bb1e5f00d8f520a9483ff2c7066bef3" == sound.identity


@pytest.mark.parametrize(
    "data",
    [
        wav(VOICE),
        wav(VOICE, extensible=True),
        wav(VOICE, extra=chunk(b"LIST", b"INFOICMT\x06\0\0\0hello\0") + chunk(b"odd ", b"123")),
        wav(VOICE) + chunk(b"id3 ", b"whatever"),
        wav(of_24_bits(VOICE)),
        wav(of_24_bits(VOICE), extensible=True),
        wav(VOICE.astype("<i4") << 16),
        wav(VOICE.astype("<f4") / 32_768, kind=3),
        wav(VOICE.astype("<f4") / 32_768, kind=3, extensible=True),
        wav(VOICE.astype("<f8") / 32_768, kind=3),
        wav(np.stack([VOICE, VOICE], axis=1)),
        wav(np.stack([VOICE, VOICE], axis=1).astype("<f4") / 32_768, kind=3),
        flac(VOICE),
        flac(VOICE, channels=2),
        written(VOICE, "wav", "pcm_s24le", channels=2),
    ],
    ids=[
        *("16 bits", "extensible", "more chunks", "notes behind", "24 bits", "24 bits, extensible", "32 bits"),
        *("floats", "floats, extensible", "doubles", "twice", "floats, twice", "FLAC", "FLAC, twice", "FFmpeg's"),
    ],
)
def test_containers_and_notes_make_no_difference(data: bytes) -> None:
    """Every lossless way to write the same samples gives the same identity."""
    assert Sound.of(24_000, VOICE.tobytes()).identity == identity_of(data)


@given(st.lists(st.integers(-32_768, 32_767), min_size=1, max_size=300), st.integers(8_000, 96_000))
def test_floats_are_the_numbers_they_were_made_of(values: list[int], rate: int) -> None:
    """Every 16-bit sample comes back from its float and its double, and from FLAC."""
    samples = np.array(values, "<i2")
    floats = [wav(samples.astype(kind) / 32_768, rate, kind=3) for kind in ("<f4", "<f8")]

    assert [samples.tobytes()] * 3 == [decode(each).pcm for each in (wav(samples, rate), *floats)]


@given(st.lists(st.tuples(*[st.floats(-1.5, 1.5, width=32)] * 2), min_size=1, max_size=100))
def test_the_mean_of_two_channels_is_rounded_once(values: list[tuple[float, float]]) -> None:
    """To the nearest sample, halves to even ones, and not beyond full scale."""
    pairs = np.array(values, "<f4")
    exact = pairs.astype(np.float64).mean(axis=1) * 32_768
    expected = [min(32_767, max(-32_768, round(value))) for value in exact.tolist()]

    assert expected == np.frombuffer(decode(wav(pairs, kind=3)).pcm, "<i2").tolist()


@pytest.mark.parametrize(
    "other",
    [
        wav(VOICE, 24_001),
        wav(VOICE[:-1]),
        wav(VOICE + (np.arange(VOICE.size) == 5).astype("<i2")),
        wav(np.stack([VOICE, np.zeros_like(VOICE)], axis=1)),
        wav(voice(seed=1)),
    ],
    ids=["rate", "shorter", "one bit", "one side", "somebody else"],
)
def test_what_sounds_otherwise_is_another_sound(other: bytes) -> None:
    """One sample, one bit or the rate make the difference."""
    assert identity_of(wav(VOICE)) != identity_of(other)


def test_eight_bits_are_centred() -> None:
    """The middle of unsigned samples is silence."""
    sound = decode(wav(np.array([0, 128, 129, 255], np.uint8)))

    assert [-32_768, 0, 256, 32_512] == np.frombuffer(sound.pcm, "<i2").tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_sounds_as_ffmpeg_reads_it(kind: str) -> None:
    """Sample by sample, though none of FFmpeg's readers is used: from the first one on, to where the recording ends.

    It may end before what FFmpeg gives, which for some leaves the silence in that fills a last packet.
    """
    rate, expected = as_ffmpeg_reads(KINDS[kind])
    sound = decode(KINDS[kind])
    samples = np.frombuffer(sound.pcm, "<i2")

    assert rate == sound.facts.sample_rate
    assert 0 <= expected.size - samples.size <= 1_024
    assert np.array_equal(samples, np.rint(expected[: samples.size]).clip(-32_768, 32_767))


@pytest.mark.parametrize(
    "kind", sorted(set(KINDS) - {"vorbis", "m4a in fragments", "chromium's webm", "chromium's mp4"})
)
def test_what_a_coder_adds_is_not_in_the_recording(kind: str) -> None:
    """Coders of packets begin late and fill the last one up; what comes out is as long as what went in."""
    assert 0.5 == decode(KINDS[kind]).facts.seconds


def test_a_part_that_is_shown_is_all_there_is() -> None:
    """What a person has cut off in an M4A without coding it anew is not heard, and not in the identity."""
    whole = KINDS["m4a"]
    edit = whole.index(b"elst") + 12
    assert 500 == int.from_bytes(whole[edit : edit + 4], "big")  # of a thousand units a second
    part = decode(whole[:edit] + (200).to_bytes(4, "big") + whole[edit + 4 :])

    assert 0.2 == pytest.approx(part.facts.seconds, abs=0.0011)
    assert decode(whole).pcm.startswith(part.pcm)


# What a model needs


def test_what_keeps_the_limits_is_taken() -> None:
    """The bounds themselves are allowed."""
    for seconds in (0.2, 2.0):
        check(decode(wav(voice(seconds, 16_000), 16_000), LIMITS).facts, LIMITS)


UNSUITABLE: dict[str, tuple[bytes, str, str]] = {
    "too long": (wav(voice(2.1)), "SOUND_TOO_LONG", "at most 2 seconds"),
    "too long, FLAC": (flac(voice(2.1)), "SOUND_TOO_LONG", "at most 2 seconds"),
    "too long, MP3": (written(voice(2.1), "mp3", "libmp3lame"), "SOUND_TOO_LONG", "at most 2 seconds"),
    "too long, WebM": (written(voice(2.1, 48_000), "webm", "libopus", 48_000), "SOUND_TOO_LONG", "at most 2 seconds"),
    "too short": (wav(voice(0.1)), "SOUND_TOO_SHORT", "at least 0.2 seconds"),
    "empty": (wav(VOICE[:0]), "SOUND_TOO_SHORT", "at least 0.2 seconds"),
    "few samples": (wav(voice(rate=8_000), 8_000), "SOUND_SAMPLE_RATE", "16,000 to 96,000"),
    "many samples": (wav(voice(rate=192_000), 192_000), "SOUND_SAMPLE_RATE", "16,000 to 96,000"),
    "silent": (wav(np.zeros_like(VOICE)), "SOUND_SILENT", "louder"),
    "next to silent": (wav((np.sign(VOICE) * 2).astype("<i2")), "SOUND_SILENT", "louder"),
    "not floats": (wav(VOICE.astype("<f4"), kind=3), "SOUND_CLIPPED", "lower level"),
    "overdriven": (wav((VOICE.astype("<i4") * 9).clip(-32_768, 32_767).astype("<i2")), "SOUND_CLIPPED", "lower level"),
    "no numbers": (wav(np.full(12_000, np.nan, "<f4"), kind=3), "SOUND_NOT_FINITE", "finite"),
    "infinite": (
        wav(np.where(np.arange(12_000) == 7, np.inf, 0.1).astype("<f8"), kind=3),
        "SOUND_NOT_FINITE",
        "finite",
    ),
    "huge numbers": (wav(np.full(12_000, 1e300, "<f8"), kind=3), "SOUND_CLIPPED", "lower level"),
    "three channels": (wav(np.stack([VOICE] * 3, axis=1)), "SOUND_CHANNELS", "one channel or two"),
    "nothing": (b"", "SOUND_FORMAT", "WAV"),
    "a text": (b"hello", "SOUND_FORMAT", "WAV"),
    "a picture": (PICTURE, "SOUND_FORMAT", "WAV"),
    "mu-law": (written(VOICE, "wav", "pcm_mulaw"), "SOUND_FORMAT", "WAV (PCM)"),
    "another extension": (
        wav(VOICE, extensible=True).replace(bytes.fromhex("800000aa"), bytes(4)),
        "SOUND_FORMAT",
        "WAV (PCM)",
    ),
    "AIFF": (written(VOICE, "aiff", "pcm_s16be"), "SOUND_FORMAT", "WAV (PCM)"),
    "bare AAC": (written(VOICE, "adts", "aac"), "SOUND_FORMAT", "WAV (PCM)"),
    "FLAC in Ogg": (written(VOICE, "ogg", "flac"), "SOUND_FORMAT", "WAV (PCM)"),
    "ALAC": (written(VOICE, "mp4", "alac"), "SOUND_FORMAT", "WAV (PCM)"),
    "PCM in Matroska": (written(VOICE, "matroska", "pcm_s16le"), "SOUND_FORMAT", "WAV (PCM)"),
}


@pytest.mark.parametrize("case", UNSUITABLE)
def test_what_does_not_suit_is_refused_in_words(case: str) -> None:
    """The error says what to change, and names the field."""
    data, reason, words = UNSUITABLE[case]
    refusal = refusal_of(data)

    assert reason == refusal.reason
    assert words in refusal.message


def test_a_file_over_the_bound_is_refused_unread() -> None:
    """Whatever it holds."""
    with pytest.raises(TooLarge) as caught:
        decode(bytes(16 * 1024 * 1024 + 1))
    assert ("voice", "SOUND_TOO_LARGE") == (caught.value.field, caught.value.reason)


def test_the_reading_of_floats_as_integers_would_be_noticed() -> None:
    """A float file is read as floats: taken for small whole numbers, its samples would be next to silence."""
    assert 0.29 < decode(wav(VOICE.astype("<f4") / 32_768, kind=3)).facts.peak < 0.31


# What is a sound at all


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_is_known_by_its_first_bytes(kind: str) -> None:
    """Of every kind that is read, also behind notes."""
    assert is_sound(KINDS[kind][:64])
    assert is_sound(b"ID3\x04\0\0\0\0\0\x05notes" + KINDS["mp3"])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "GIF"])
def test_pictures_are_no_sounds(kind: str) -> None:
    """Not those either that come in the same boxes as M4A, or the same chunks as WAV."""
    buffer = BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, kind)

    assert not is_sound(buffer.getvalue())
    assert not is_sound(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


# Our own files


@given(st.lists(st.integers(-32_768, 32_767), min_size=1, max_size=5_000), st.integers(8_000, 48_000))
def test_finished_files_give_back_what_was_put_in(values: list[int], rate: int) -> None:
    """Clipped, silent or short as it may be."""
    samples = np.array(values, "<i2")
    given_back = [
        samples_of(wav(samples, rate), "audio/wav"),
        samples_of(written(samples, "wav", "pcm_s16le", rate), "audio/wav"),
        samples_of(flac(samples, rate), "audio/flac"),
    ]

    assert [(rate, samples.tobytes())] * 3 == given_back


def test_a_long_finished_file_is_given_back_whole() -> None:
    """What is made here may be longer than what may be sent here."""
    samples = np.tile(voice(1.0, 8_000), 400)

    assert (8_000, samples.tobytes()) == samples_of(wav(samples, 8_000), "audio/wav")
    assert ANY.max_seconds < samples.size / 8_000


@pytest.mark.parametrize(
    ("data", "media_type"), [(KINDS["opus"], "audio/ogg"), (KINDS["wav"][:-1], "audio/wav"), (b"", "audio/flac")]
)
def test_files_that_do_not_hold_their_samples_are_a_fault(data: bytes, media_type: str) -> None:
    """Samples are never made up."""
    with pytest.raises(ValueError, match=r"audio/ogg|no file of ours"):
        samples_of(data, media_type)
