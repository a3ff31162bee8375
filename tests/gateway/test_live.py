"""Samples cut from finished files: block by block, wherever they lie in the file, and of no file but ours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.live import Sound, block_of, can_be_heard, sound_in
from gateway.wire import CHUNK_BYTES, Reply
from reprise.v1.media_pb2 import (
    Chunk,
    GenerationEvent,
    Result,
    Samples,
    SoundHeader,
    SynthesizeSpeechResponse,
)
from tests.cache.helpers import record_of
from tests.gateway.speech import flac, wav


def pcm_of(samples: int) -> bytes:
    return (np.arange(samples) * 7 % 65536 - 32768).astype("<i2").tobytes()


async def sound_of(file: bytes, media_type: str = "audio/wav") -> Sound | None:
    return await sound_in(media_type, len(file), lambda start, stop: file[start:stop])


def reply_of(file: bytes, sound: Sound | None) -> Reply:
    return replace(Reply.of(record_of(file), file, random_weights=False), sound=sound)


@given(st.integers(1, 48_000), st.integers(0, 100_000), st.integers(0, 110_000))
@example(8000, 4000, 4000)
@example(8000, 4001, 4000)
@example(3, 5, 2)
def test_blocks_are_counted_from_the_first_sample(rate: int, samples: int, heard: int) -> None:
    """From wherever one goes on, they end where they would have ended; all of them are what was not heard."""
    size, told = block_of(rate), list(Sound(rate, samples).blocks(heard))

    assert [*range(heard, samples)] == [place for begin, end in told for place in range(begin, end)]
    assert all(end == samples or end % size == 0 for _, end in told)
    assert all(0 < end - begin <= size for begin, end in told)


@pytest.mark.parametrize(
    ("kind", "samples"),
    [("wav", 0), *((kind, samples) for kind in ("wav", "flac") for samples in (1, 1000, CHUNK_BYTES + 3))],
)
async def test_samples_come_out_as_they_went_in(kind: str, samples: int) -> None:
    """Of a WAV they lie in the file and weigh nothing; of a FLAC beside it."""
    pcm = pcm_of(samples)
    file = wav(pcm, 11_025) if kind == "wav" else flac(pcm, 11_025)
    sound = await sound_of(file, f"audio/{kind}")
    assert sound is not None
    reply = reply_of(file, sound)
    blocks = list(reply.heard())

    assert (11_025, samples) == (sound.sample_rate, sound.samples)
    assert pcm == b"".join(block for _, block in blocks)
    assert [2756 * number for number in range(len(blocks))] == [offset for offset, _ in blocks]
    assert (len(pcm) if kind == "flac" else 0) == reply.weight - reply_of(file, None).weight
    assert pcm[20:30] == reply.samples(10, 15) or samples < 15
    assert b"" == reply.samples(samples, samples + 100)


async def test_what_is_no_plain_wav_is_decoded_or_left_alone() -> None:
    """Chunks before the samples are passed over; of a wrong type or a file that is cut off there is no sound."""
    pcm = pcm_of(100)
    plain = wav(pcm, 8000)
    noted = plain[:36] + b"LIST\4\0\0\0INFO" + plain[36:]
    noted = noted[:4] + (len(noted) - 8).to_bytes(4, "little") + noted[8:]
    sound = await sound_of(noted)
    assert sound is not None
    assert pcm == b"".join(block for _, block in reply_of(noted, sound).heard())
    for file, media_type in (
        (plain[:-10], "audio/wav"),
        (plain[:20], "audio/wav"),
        (b"OggS" + bytes(100), "audio/ogg"),
        (plain, "video/mp4"),
        (b"", "audio/wav"),
        (b"fLaC" + bytes(100), "audio/flac"),
    ):
        assert await sound_of(file, media_type) is None


@pytest.mark.parametrize("samples", [0, 1, 4001, CHUNK_BYTES])
@pytest.mark.parametrize("chunks", [True, False])
@pytest.mark.parametrize("heard", [True, False])
async def test_a_reply_with_samples_is_the_messages(samples: int, chunks: bool, heard: bool) -> None:
    """What is written by hand is what protobuf would have built: header, samples, chunks, the result in the last."""
    pcm = pcm_of(samples)
    file = wav(pcm, 8000)
    result = Result(media_type="audio/wav", seed=7)
    reply = reply_of(file, await sound_of(file))
    expected = []
    if heard:
        expected.append(GenerationEvent(sound=SoundHeader(sample_rate=8000)))
        for at in range(0, samples, 2000):
            block = pcm[2 * at : 2 * (at + 2000)]
            expected.append(GenerationEvent(samples=Samples(offset=at, pcm=block)))
    pieces = [file[at : at + CHUNK_BYTES] for at in range(0, len(file), CHUNK_BYTES)] if chunks else []
    expected += [
        GenerationEvent(chunk=Chunk(offset=number * CHUNK_BYTES, data=piece)) for number, piece in enumerate(pieces)
    ]
    if not chunks:
        expected.append(GenerationEvent())
    expected[-1].result.CopyFrom(result)
    for number, event in enumerate(expected, start=1):
        event.sequence = number

    told = reply.messages(result.SerializeToString(), live=heard, chunks=chunks)
    assert expected == [SynthesizeSpeechResponse.FromString(message).event for message in told]


def test_only_what_keeps_its_samples_is_heard() -> None:
    """Ogg does not; a model whose format cannot be chosen is taken at its word."""
    assert [True, True, False, True] == [
        can_be_heard(parameters) for parameters in ({"format": "wav"}, {"format": "flac"}, {"format": "ogg"}, {})
    ]
