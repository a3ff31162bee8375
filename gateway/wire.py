"""Wire form: replies as the bytes that go out, so that a hit copies its media once and builds no message for it.

Protobuf concatenates: the encoding of a message is the encodings of its fields one after the other. A chunk is encoded
as a field of GenerationEvent when it enters L1; each request's own fields are appended to it, and the whole is framed
as the one field `event` that AnimateImageResponse, WatchResponse and their like have in common. A test holds this
against the generated classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cache.record import Record
from gateway.live import Sound
from reprise.v1.common_pb2 import StageReport
from reprise.v1.media_pb2 import GenerationEvent, SoundHeader

CHUNK_BYTES = 1024 * 1024
_TOLD = 2048  # bytes that what was told with a reply takes at most
_LENGTH_DELIMITED = 2


def tag(field: int) -> bytes:
    """What a field of bytes or a message begins with."""
    return varint(field << 3 | _LENGTH_DELIMITED)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_EVENT = tag(1)  # of every response with a stream of events
_CHUNK = tag(GenerationEvent.CHUNK_FIELD_NUMBER)
_SAMPLES = tag(GenerationEvent.SAMPLES_FIELD_NUMBER)
_RESULT = tag(GenerationEvent.RESULT_FIELD_NUMBER)
_SEQUENCE = bytes([GenerationEvent.SEQUENCE_FIELD_NUMBER << 3])
_OFFSET, _DATA = b"\x08", tag(2)  # of a chunk, and of samples
_WIDTH = 2  # bytes of a sample


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished artifact, ready to be sent: its record, and the responses of a hit.

    Only the last response tells of the request. All before it are whole, and go out as they are.
    """

    record: Record
    before: tuple[bytes, ...]  # responses with a chunk each
    last: bytes  # the last chunk, as a field of an event
    random_weights: bool
    sound: Sound | None = None  # of speech that somebody listened to: where its samples are
    told: dict[object, tuple[Sequence[StageReport], bytes]] = field(
        init=False, compare=False, repr=False, default_factory=dict
    )

    @classmethod
    def of(cls, record: Record, *pieces: bytes, random_weights: bool) -> Reply:
        """`pieces` are the artifact, however it was cut. Every byte is copied once: to where it goes out from."""
        before, chunk = list[bytes](), list[bytes | memoryview]()
        for number, part in enumerate(_cut(pieces)):
            if number:
                before.append(response(_sequence(number), *chunk))
            chunk = [*_parts(_CHUNK, number * CHUNK_BYTES, *part)]
        return cls(record, tuple(before), b"".join(chunk), random_weights)

    @property
    def durable(self) -> bool:
        """As far as is known."""
        return not self.record.pending

    def settled(self) -> Reply:
        """The same, known to be durable."""
        return replace(self, record=self.record.settled())

    @property
    def weight(self) -> int:
        beside = len(self.record.output.inline or b"") + (self.sound.weight if self.sound is not None else 0)
        return sum(map(len, self.before)) + len(self.last) + beside + _TOLD

    @property
    def chunks(self) -> Iterator[bytes | memoryview]:
        """Every chunk as an encoded field of an event."""
        yield from map(_chunk_of, self.before)
        yield self.last

    @property
    def data(self) -> bytes:
        """The artifact itself, out of its encoding."""
        return self.read(0, self.record.output.digest.size)

    def read(self, start: int, stop: int) -> bytes:
        return b"".join(self.pieces(start, stop))

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        """The artifact's bytes from `start` to `stop`, as views of its chunks: nothing is copied."""
        size = self.record.output.digest.size
        for offset, chunk in zip(range(0, size, CHUNK_BYTES), self.chunks, strict=False):  # an empty one has no bytes
            data = memoryview(chunk)[-min(CHUNK_BYTES, size - offset) :]  # they are what an encoded chunk ends with
            if piece := data[max(0, start - offset) : max(0, stop - offset)]:
                yield piece

    def samples(self, begin: int, end: int) -> bytes | memoryview:
        """Samples from one to another of the sound of this reply, or as many as there are; nothing if it has none."""
        if self.sound is None:
            return b""
        start, stop = (self.sound.start + min(each, self.sound.samples) * _WIDTH for each in (begin, end))
        if self.sound.pcm is not None:
            return memoryview(self.sound.pcm)[start:stop]
        pieces = list(self.pieces(start, stop))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def heard(self, since: int = 0) -> Iterator[tuple[int, bytes | memoryview]]:
        """The samples from `since` on, block by block: how many there are before each, and their bytes."""
        for begin, end in self.sound.blocks(since) if self.sound is not None else ():
            yield begin, self.samples(begin, end)

    def messages(self, *result: bytes, live: bool = False, chunks: bool = True) -> Iterator[bytes]:
        """The responses that answer a hit: samples if they are listened to, the file unless it is not wanted, and the
        result in the last, whose encoded parts add up.
        """
        parts = [piece for part in result for piece in (_RESULT, varint(len(part)), part)]
        sequence = 0
        if live and self.sound is not None:
            sequence = 1
            yield sound_event(sequence, self.sound.sample_rate)
            for offset, pcm in self.heard():
                yield samples_event(sequence := sequence + 1, offset, pcm)
        if chunks and sequence:  # chunks before the last are numbered, and no longer right
            for chunk in map(_chunk_of, self.before):
                yield chunk_event(sequence := sequence + 1, chunk)
        elif chunks:
            yield from self.before
            sequence = len(self.before)
        yield response(_sequence(sequence + 1), *((self.last,) if chunks else ()), *parts)


def chunk_event(sequence: int, chunk: bytes | memoryview) -> bytes:
    """A response whose event is this chunk field."""
    return response(_sequence(sequence), chunk)


def sound_event(sequence: int, sample_rate: int) -> bytes:
    return event_response(GenerationEvent(sequence=sequence, sound=SoundHeader(sample_rate=sample_rate)))


def samples_event(sequence: int, offset: int, pcm: bytes | memoryview) -> bytes:
    """A response whose event is these samples."""
    return response(_sequence(sequence), *_parts(_SAMPLES, offset, pcm))


def event_response(event: GenerationEvent) -> bytes:
    return response(event.SerializeToString())


def response(*fields: bytes | memoryview) -> bytes:
    """A response whose event has these encoded fields."""
    return b"".join((_EVENT, varint(sum(map(len, fields))), *fields))


def serialize(message: Any) -> bytes:
    """Response serializer of every method: what is in wire form already passes."""
    if type(message) is bytes:
        return message
    encoded: bytes = message.SerializeToString()
    return encoded


def _cut(pieces: Iterable[bytes]) -> Iterator[list[memoryview]]:
    """The bytes of each chunk, as views. There is always one; the last has what is left."""
    part, room = list[memoryview](), CHUNK_BYTES
    for piece in pieces:
        rest = memoryview(piece)
        while len(rest) > room:
            yield [*part, rest[:room]]
            part, rest, room = [], rest[room:], CHUNK_BYTES
        part.append(rest)
        room -= len(rest)
    yield part


def _parts(tag: bytes, offset: int, *data: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    """An encoded chunk, or samples: both are an offset and bytes."""
    size = sum(map(len, data))
    inside = b"".join((_OFFSET + varint(offset) if offset else b"", _DATA, varint(size)))
    return tag, varint(len(inside) + size), inside, *data


def _sequence(number: int) -> bytes:
    return _SEQUENCE + varint(number)


def _chunk_of(message: bytes) -> memoryview:
    """The chunk field of a response that `chunk_event` has made."""
    inside = _after_varint(message, len(_EVENT))
    return memoryview(message)[_after_varint(message, inside + len(_SEQUENCE)) :]


def _after_varint(data: bytes, at: int) -> int:
    while data[at] > 0x7F:
        at += 1
    return at + 1
