"""Wire form: replies as the bytes that go out, so that a hit copies its media once and builds no message for it.

Protobuf concatenates: the encoding of a message is the encodings of its fields one after the other. A chunk is encoded
as a field of GenerationEvent when it enters L1; each request's own fields are appended to it, and the whole is framed
as the one field `event` that AnimateImageResponse, WatchResponse and their like have in common. A test holds this
against the generated classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cache.record import Record
from reprise.v1.media_pb2 import GenerationEvent, Result

CHUNK_BYTES = 1024 * 1024
_LENGTH_DELIMITED = 2


def _tag(field: int) -> bytes:
    return bytes([field << 3 | _LENGTH_DELIMITED])


_EVENT = _tag(1)  # of every response with a stream of events
_CHUNK = _tag(GenerationEvent.CHUNK_FIELD_NUMBER)
_RESULT = _tag(GenerationEvent.RESULT_FIELD_NUMBER)
_SEQUENCE = bytes([GenerationEvent.SEQUENCE_FIELD_NUMBER << 3])
_OFFSET, _DATA = b"\x08", _tag(2)


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished artifact, ready to be sent: its record and its chunks as encoded fields of an event."""

    record: Record
    chunks: tuple[bytes, ...]
    random_weights: bool
    durable: bool  # as far as is known

    @classmethod
    def of(cls, record: Record, data: bytes, *, random_weights: bool, durable: bool) -> Reply:
        offsets = range(0, len(data), CHUNK_BYTES) if data else [0]
        chunks = tuple(chunk_field(offset, data[offset : offset + CHUNK_BYTES]) for offset in offsets)
        return cls(record, chunks, random_weights, durable)

    @property
    def weight(self) -> int:
        return sum(map(len, self.chunks)) + len(self.record.output.inline or b"")

    @property
    def data(self) -> bytes:
        """The artifact itself, out of its encoding."""
        return b"".join(self.pieces(0, self.record.output.digest.size))

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        """The artifact's bytes from `start` to `stop`, as views of its chunks: nothing is copied."""
        size = self.record.output.digest.size
        for offset, chunk in zip(range(0, size, CHUNK_BYTES), self.chunks, strict=False):  # an empty one has no bytes
            data = memoryview(chunk)[-min(CHUNK_BYTES, size - offset) :]  # they are what an encoded chunk ends with
            if piece := data[max(0, start - offset) : max(0, stop - offset)]:
                yield piece

    def messages(self, result: Result) -> Iterator[bytes]:
        """The responses that answer a hit: one per chunk, the result in the last."""
        *before, last = self.chunks
        sequence = 0
        for sequence, chunk in enumerate(before, start=1):
            yield response(_sequence(sequence), chunk)
        encoded = result.SerializeToString()
        yield response(_sequence(sequence + 1), last, _RESULT, varint(len(encoded)), encoded)


def chunk_field(offset: int, data: bytes) -> bytes:
    """`GenerationEvent.chunk`, encoded."""
    inside = b"".join((_OFFSET + varint(offset) if offset else b"", _DATA, varint(len(data)) if data else b"\x00"))
    return b"".join((_CHUNK, varint(len(inside) + len(data)), inside, data))


def chunk_event(sequence: int, chunk: bytes) -> bytes:
    """A response whose event is this chunk field."""
    return response(_sequence(sequence), chunk)


def event_response(event: GenerationEvent) -> bytes:
    return response(event.SerializeToString())


def response(*fields: bytes) -> bytes:
    """A response whose event has these encoded fields."""
    return b"".join((_EVENT, varint(sum(map(len, fields))), *fields))


def serialize(message: Any) -> bytes:
    """Response serializer of every method: what is in wire form already passes."""
    if type(message) is bytes:
        return message
    encoded: bytes = message.SerializeToString()
    return encoded


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _sequence(number: int) -> bytes:
    return _SEQUENCE + varint(number)
