"""Events: what the followers of a run hear, numbered from 1. The flight keeps them for those who come later."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, TypeAlias

from PIL import Image

from cache.flight import Flight
from cache.keys import Address
from cache.record import Record
from inference.handover import Note
from reprise.v1.common_pb2 import StageReport
from reprise.v1.inference_pb2 import Begun, Finished, RunResponse
from reprise.v1.media_pb2 import Chunk, GenerationEvent, Preview, Progress, Queued, Samples, SoundHeader, Stored

CHUNK_BYTES = 1024 * 1024
_PREVIEW_PIXELS = 256  # of the longer side
_HEARD_WITHIN = 0.5  # seconds; a connection that is slower than that must not keep a device waiting


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run, before it is put in the words of each follower."""

    record: Record  # at the canonical address
    data: bytes
    stages: tuple[StageReport, ...]
    aliases: frozenset[Address]  # further addresses under which it is being stored

    def told(self, address: Address, *, joined: bool) -> RunResponse:
        """To a follower whose request, as written, has this address."""
        return RunResponse(
            finished=Finished(
                record=self.record.to_bytes(),
                stages=self.stages,
                canonical_address=str(self.record.address),
                alias=self.record.alias(address).to_bytes() if address != self.record.address else b"",
                joined=joined,
            )
        )


Event: TypeAlias = "RunResponse | Outcome | Note[Any]"


class EventLog:
    """Writes a flight's events. All methods belong to the event loop's thread."""

    def __init__(self, flight: Flight[Event]) -> None:
        self._flight = flight
        self._count = 0

    @property
    def read(self) -> bool:
        """Whether anybody follows now."""
        return self._flight.followers > 0

    def queued(self, position: int) -> None:
        self._publish(GenerationEvent(queued=Queued(position=position)))

    def begun(self, process: str) -> None:
        """It has the device of this process."""
        self._flight.publish(RunResponse(begun=Begun(process=process)))

    async def heard(self) -> None:
        """Wait until what was told so far has left this process, if anybody follows and takes it."""
        await self._flight.told(patience=_HEARD_WITHIN)

    def progress(self, stage: str, step: int, steps: int, part: int = 0, parts: int = 0) -> None:
        """`part` counts from 1; 0 where the stage has no parts."""
        progress = Progress(stage=stage, step=step, steps=steps, part=part, parts=parts)
        self._publish(GenerationEvent(progress=progress))

    def preview(self, jpeg: bytes, step: int) -> None:
        self._publish(GenerationEvent(preview=Preview(image=jpeg, step=step)))

    def sound(self, sample_rate: int) -> None:
        self._publish(GenerationEvent(sound=SoundHeader(sample_rate=sample_rate)))

    def samples(self, offset: int, pcm: bytes) -> None:
        """`offset` counts samples."""
        self._publish(GenerationEvent(samples=Samples(offset=offset, pcm=pcm)))

    def chunks(self, data: bytes) -> None:
        for offset in range(0, len(data), CHUNK_BYTES):
            self._publish(GenerationEvent(chunk=Chunk(offset=offset, data=data[offset : offset + CHUNK_BYTES])))

    def finished(self, outcome: Outcome) -> None:
        self._flight.publish(outcome)

    def stored(self, durable: bool) -> None:
        state = Stored.STATE_DURABLE if durable else Stored.STATE_NOT_STORED
        self._flight.publish(RunResponse(stored=Stored(state=state)))

    def _publish(self, event: GenerationEvent) -> None:
        self._count += 1
        event.sequence = self._count
        self._flight.publish(RunResponse(event=event))


def jpeg(image: Image.Image) -> bytes:
    """A small JPEG of a picture."""
    small = image.convert("RGB")
    small.thumbnail((_PREVIEW_PIXELS, _PREVIEW_PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
