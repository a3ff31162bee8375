"""Wire form: what we write by hand is what the generated classes read."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.wire import (
    CHUNK_BYTES,
    Reply,
    chunk_event,
    event_response,
    response,
    serialize,
    varint,
)
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import (
    Accepted,
    AnimateImageResponse,
    Chunk,
    GenerationEvent,
    Progress,
    Result,
    WatchResponse,
)
from tests.cache.helpers import record_of

SIZES = st.sampled_from([0, 1, 2, 126, 127, 128, 129, 16_383, 16_384, CHUNK_BYTES - 1, CHUNK_BYTES])
NUMBERS = st.one_of(st.integers(1, 300), st.integers(1, 2**63))
TEXTS = st.text(max_size=200)


@st.composite
def results(draw: st.DrawFn) -> Result:
    return Result(
        artifact=pb.Digest(hex=draw(TEXTS), size=draw(st.integers(0, 2**64 - 1))),
        media_type=draw(TEXTS),
        seed=draw(st.integers(0, 2**64 - 1)),
        random_weights=draw(st.booleans()),
        report=pb.CacheReport(outcome=pb.OUTCOME_HIT, device_seconds_saved=draw(st.floats(allow_nan=False))),
    )


@settings(deadline=None)  # megabytes at a time, on a machine that may be busy
@given(NUMBERS, st.one_of(st.just(0), NUMBERS), SIZES)
@example(1, 0, 0)
def test_a_chunk_event_is_the_message(sequence: int, offset: int, size: int) -> None:
    """Sequence number, offset and data are read back, whatever their lengths; also by Watch."""
    data = bytes(size)
    wire = chunk_event(sequence, GenerationEvent(chunk=Chunk(offset=offset, data=data)).SerializeToString())
    event = GenerationEvent(sequence=sequence, chunk=Chunk(offset=offset, data=data))
    assert AnimateImageResponse(event=event) == AnimateImageResponse.FromString(wire)
    assert WatchResponse(event=event) == WatchResponse.FromString(wire)


@settings(deadline=None)  # likewise
@given(st.integers(0, 3), st.sampled_from([-1, 0, 1, 5]), results())
def test_a_reply_is_its_chunks_with_the_result_in_the_last(pieces: int, more: int, result: Result) -> None:
    """One response for each MiB, at least one; parsed they are what protobuf would have built."""
    data = bytes(range(256)) * (pieces * CHUNK_BYTES // 256) + bytes(max(more, 0))
    data = data[: len(data) + min(more, 0)]
    reply = Reply.of(record_of(data), data, random_weights=True)
    parts = [data[offset : offset + CHUNK_BYTES] for offset in range(0, len(data), CHUNK_BYTES)] or [b""]
    expected = [
        GenerationEvent(
            sequence=number + 1,
            chunk=Chunk(offset=number * CHUNK_BYTES, data=part),
            result=result if number + 1 == len(parts) else None,
        )
        for number, part in enumerate(parts)
    ]

    report = Result(report=result.report)
    result.ClearField("report")
    told = [part.SerializeToString() for part in (result, report)]
    result.MergeFrom(report)
    read = [AnimateImageResponse.FromString(message).event for message in reply.messages(*told)]
    assert expected == read
    assert data == b"".join(event.chunk.data for event in read)
    assert data == reply.data
    assert 0 <= reply.weight - len(data) < 4096


@given(
    st.one_of(
        st.builds(lambda n, name: GenerationEvent(sequence=n, accepted=Accepted(name=name, seed=n)), NUMBERS, TEXTS),
        st.builds(
            lambda n, step: GenerationEvent(sequence=n, progress=Progress(step=step)), NUMBERS, st.integers(0, 9)
        ),
        st.builds(lambda n, result: GenerationEvent(sequence=n, result=result), NUMBERS, results()),
        st.just(GenerationEvent()),
    )
)
def test_any_event_is_framed_as_its_response(event: GenerationEvent) -> None:
    """Byte for byte what protobuf writes."""
    assert AnimateImageResponse(event=event).SerializeToString() == event_response(event)


@given(st.integers(0, 2**64 - 1))
@example(127)
@example(128)
def test_a_varint_is_protobufs(number: int) -> None:
    """As it stands after the tag of an unsigned field."""
    encoded = pb.Digest(size=number).SerializeToString()
    assert encoded[1:] == (varint(number) if number else b"")


def test_fields_are_merged_as_protobuf_does() -> None:
    """What is appended to an event adds to it: a response of encoded parts is the response of their sum."""
    parts = [GenerationEvent(sequence=3), GenerationEvent(result=Result(seed=4))]
    wire = response(*(part.SerializeToString() for part in parts))
    merged = GenerationEvent(sequence=3, result=Result(seed=4))
    assert AnimateImageResponse(event=merged) == AnimateImageResponse.FromString(wire)


def test_an_inlined_output_counts_too() -> None:
    """A reply weighs what it holds: its chunks, and the copy of a small output inside its record."""
    lean, inlined = (
        Reply.of(record_of(b"1234", inline=inline), b"1234", random_weights=False) for inline in (False, True)
    )
    assert 4 == inlined.weight - lean.weight


@settings(deadline=None)  # likewise
@given(st.integers(0, 2 * CHUNK_BYTES + 9), st.integers(0, 2 * CHUNK_BYTES + 9), st.integers(0, 2 * CHUNK_BYTES + 9))
@example(0, 0, 0)
@example(CHUNK_BYTES, CHUNK_BYTES - 1, CHUNK_BYTES)
@example(2 * CHUNK_BYTES + 1, 0, 2 * CHUNK_BYTES + 1)
def test_any_part_of_a_reply_is_had_without_its_encoding(size: int, start: int, stop: int) -> None:
    """From one byte to another, over the borders of chunks, as views of them."""
    data = (b"0123456789" * (size // 10 + 1))[:size]
    start, stop = sorted((min(start, size), min(stop, size)))
    reply = Reply.of(record_of(data), data, random_weights=True)
    pieces = list(reply.pieces(start, stop))

    assert data[start:stop] == b"".join(pieces)
    assert data == reply.data
    assert all(any(piece.obj is held for held in (*reply.before, reply.last)) for piece in pieces)


def test_wire_form_passes_the_serializer_untouched() -> None:
    """Bytes are the same object; messages are encoded."""
    wire = event_response(GenerationEvent(sequence=1))
    assert wire is serialize(wire)
    assert wire == serialize(AnimateImageResponse(event=GenerationEvent(sequence=1)))
