"""Generation: one caller's interest in a flight, under a name of its own.

Callers who ask for the same thing share a flight and its events. What differs between them (the name, the report, the
trace) is composed for each as the event passes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.trace import Span

from cache.bans import Bans
from cache.bounded import Bounded
from cache.digest import Digest as ArtifactDigest
from cache.flight import Deserted, Flight
from cache.keys import Principal
from cache.record import Record
from cache.sweep import Gone, sweep
from cache.telemetry import trace_id_of
from cache.tier import Lookup
from gateway.answer import Answer
from gateway.errors import Cancelled, NotFound, Unavailable
from gateway.history import Past
from gateway.links import Url
from gateway.plan import Plan
from gateway.reasons import Seen
from gateway.wire import Reply, chunk_event, event_response, samples_event, sound_event
from reprise.v1.common_pb2 import Digest, StageReport
from reprise.v1.media_pb2 import Accepted, GenerationEvent, Result, Stored

_OVERHEAD = 4096  # bytes charged to every flight, so that many small ones are not free


@dataclass(frozen=True, slots=True)
class Planned:
    """The leader knows what to expect of each stage."""

    stages: Sequence[StageReport]
    reasons: Mapping[str, Seen] = field(default_factory=dict)  # of stages that no tier had
    lookups: Mapping[str, Sequence[Lookup]] = field(default_factory=dict)  # for stages' outputs


@dataclass(frozen=True, slots=True)
class Tuned:
    """What live sound is made of is known."""

    sample_rate: int  # samples per second


@dataclass(frozen=True, slots=True)
class Heard:
    """Samples as they are made, for those who listen. They follow on each other, and on what they are made of."""

    offset: int  # samples before these
    pcm: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.pcm) // 2


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk of the artifact, as a field of an event. All of them come right before it is completed."""

    chunk: bytes | memoryview  # of the reply that completes it: the log holds no bytes of its own


@dataclass(frozen=True, slots=True)
class Completed:
    """The artifact is there."""

    reply: Reply
    stages: Sequence[StageReport]
    joined: bool  # another gateway had begun it
    plan: Plan  # as it ran, without media: it may rest on fewer near-duplicates than was planned, or on a newer model


@dataclass(frozen=True, slots=True)
class Settled:
    """Whether the artifact is durable is known."""

    stored: Stored


# Bytes are a response that is the same for everybody.
Step: TypeAlias = bytes | Planned | Tuned | Heard | Piece | Completed | Settled


@dataclass(frozen=True, slots=True)
class _Linked:
    """To a caller who wants a URL: the artifact is there and durable, and this is where."""

    completed: Completed
    url: Url


@dataclass(eq=False)
class Generation:
    plan: Plan
    principal: Principal
    flight: Flight[Step]
    led: bool  # this caller's request began it
    lookups: Sequence[Lookup]
    span: Span
    answered: Callable[[Answer], None]
    compose: Callable[[Generation, Completed], Answer]
    name: str
    heartbeat: float  # seconds of silence after which a caller is told that work goes on
    past: Past  # what this caller asked before
    missed: Seen  # what the tiers said when they were asked for the result
    sounding: Callable[[Reply], Awaitable[Reply]]  # gives a reply with its samples, where they can be had
    waited: Callable[[], float]  # seconds since the request came
    url_of: Callable[[Record], Url | None] | None = None  # for a caller who wants a URL instead of chunks
    streams: int = 0
    cancelled: bool = False
    first_audio: float | None = None  # seconds from the request to the first samples that its caller was told
    answer: Answer | None = None  # given once, however often it is watched

    async def events(self, start: int = 0, *, to_result: bool) -> AsyncGenerator[bytes]:
        """Responses from event `start` on, up to the result or to the very end. Raises what ended the flight."""
        self.streams += 1
        sequence = told = start  # steps seen, and the last one that the caller was told of
        ear = _Ear(self.flight.events[:start]) if self.plan.live else None
        try:
            with self.flight.following(), _Heart(self.flight, self.heartbeat) as heart:
                while True:
                    async with aclosing(
                        self.flight.follow(sequence, until=lambda: self.cancelled or heart.due)
                    ) as steps:
                        async for step in steps:
                            sequence += 1
                            if isinstance(step, Completed):
                                await self.past.known()
                            if ear is not None and self._ends_sound(sequence):
                                for response in await self._rest_of_sound(ear, sequence, told):
                                    yield response
                                    heart.rest()
                            for told, news in self._news(step, sequence, start, ear):
                                yield self._response(news, told)
                                heart.rest()
                                if to_result and isinstance(news, Completed | _Linked):
                                    return
                    if self.cancelled or not heart.due:
                        break
                    heart.rest()
                    yield event_response(GenerationEvent(sequence=told))
        except Deserted as error:
            raise Cancelled(reason="ABANDONED") from error
        finally:
            self.streams -= 1
        if self.cancelled:
            raise Cancelled

    def _news(self, step: Step, sequence: int, start: int, ear: _Ear | None) -> Iterator[tuple[int, Step | _Linked]]:
        """What the caller is told at this step, by its place in the log.

        Who wants a URL hears of the artifact when it is known whether it is durable: its URL, or all that was held.
        """
        match step:
            case Tuned() | Heard():
                if ear is not None:
                    ear.hear(step)
                    yield sequence, step
            case Piece() if not self.plan.in_chunks:
                return
            case Piece() | Completed() if self.url_of is not None:
                return
            case Settled(stored) if self.url_of is not None:
                *before, completed = self.flight.events[: sequence - 1]
                assert isinstance(completed, Completed)  # noqa: S101  # as everybody publishes
                url = self.url_of(completed.reply.record) if stored.state == Stored.STATE_DURABLE else None
                if url is not None:
                    yield sequence, _Linked(completed, url)
                    return
                first = len(before) - sum(isinstance(each, Piece) for each in before)
                for place in range(max(first, start), sequence):
                    yield place + 1, self.flight.events[place]
            case _:
                yield sequence, step

    def _response(self, step: Step | _Linked, sequence: int) -> bytes:
        match step:
            case bytes():
                return step
            case Piece(chunk):
                return chunk_event(sequence, chunk)
            case Tuned(sample_rate):
                return sound_event(sequence, sample_rate)
            case Heard(offset, pcm):
                return self._samples(sequence, offset, pcm)
            case Planned():
                accepted = Accepted(name=self.name, seed=self.plan.seed, stages=step.stages)
                return event_response(GenerationEvent(sequence=sequence, accepted=accepted))
            case Completed():
                result = self._result(step, Stored.STATE_PENDING)
                return event_response(GenerationEvent(sequence=sequence, result=result))
            case _Linked(completed, url):
                result = self._result(completed, Stored.STATE_DURABLE, url)
                return event_response(GenerationEvent(sequence=sequence, result=result, stored=result.stored))
            case Settled():
                return event_response(GenerationEvent(sequence=sequence, stored=step.stored))

    def _ends_sound(self, sequence: int) -> bool:
        """Whether this step is the first that comes of the finished artifact."""
        before, step = self.flight.events[max(0, sequence - 2) : sequence][:-1], self.flight.events[sequence - 1]
        return isinstance(step, Piece | Completed) and not (before and isinstance(before[-1], Piece))

    async def _rest_of_sound(self, ear: _Ear, sequence: int, told: int) -> Iterator[bytes]:
        """What this stream has not told of the sound, cut from the finished file. These have no place in the log, and
        the number of the event before. Raises Unavailable if the file is not what was heard.
        """
        completed = next(step for step in self.flight.events[sequence - 1 :] if isinstance(step, Completed))
        reply = await self.sounding(completed.reply)
        if reply.sound is None:
            return iter(())
        sample_rate = reply.sound.sample_rate
        if not self._was_heard(reply, sample_rate):
            raise Unavailable("SOUND_CHANGED")
        samples = (self._samples(told, offset, pcm) for offset, pcm in reply.heard(ear.end))
        return samples if ear.tuned else chain((sound_event(told, sample_rate),), samples)

    def _was_heard(self, reply: Reply, sample_rate: int) -> bool:
        """Whether all that was told live is in the file, in its place. It is not where one worker began, and another
        one, whose numerics differ, has made the file.
        """
        return all(
            step.sample_rate == sample_rate
            if isinstance(step, Tuned)
            else step.pcm == reply.samples(step.offset, step.end)
            for step in self.flight.events
            if isinstance(step, Tuned | Heard)
        )

    def _samples(self, sequence: int, offset: int, pcm: bytes | memoryview) -> bytes:
        if self.first_audio is None:
            self.first_audio = self.waited()
        return samples_event(sequence, offset, pcm)

    def _result(self, completed: Completed, stored: Stored.State, url: Url | None = None) -> Result:
        if self.answer is None:
            self.answer = self.compose(self, completed)
            self.answered(self.answer)
        return result_message(self.plan, self.answer, completed.reply, self.span, stored, url)


class _Ear:
    """What one stream has told of live sound, and before it another one that it goes on from."""

    def __init__(self, before: Sequence[Step]) -> None:
        self.tuned = False
        self.end = 0  # samples
        for step in before:
            self.hear(step)

    def hear(self, step: Step) -> None:
        match step:
            case Tuned():
                self.tuned = True
            case Heard():
                self.end = step.end


class _Heart:
    """Notices when a flight has been silent for `interval` seconds, and wakes its followers to say so."""

    def __init__(self, flight: Flight[Step], interval: float) -> None:
        self.due = False
        self._flight = flight
        self._interval = interval
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> _Heart:
        self.rest()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def rest(self) -> None:
        """Something was said: silence begins anew."""
        self.__exit__()
        self.due = False
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._beat)

    def _beat(self) -> None:
        self.due = True
        self._flight.wake()


class Generations:
    """Generations by name, for Watch and Cancel. Finished ones are kept for `linger` seconds and within `max_bytes`."""

    def __init__(self, *, linger: float, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._linger = linger
        self._clock = clock
        self._by_name: dict[str, Generation] = {}
        self._by_flight: dict[Flight[Step], list[Generation]] = {}
        # By their ids: a key is remembered for some time after its entry has gone, and a flight is all that it heard.
        self._finished: Bounded[int, Flight[Step]] = Bounded(
            max_bytes=max_bytes, on_removal=lambda _id, flight, _cause: self._forget(flight)
        )

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, generation: Generation) -> None:
        self._by_name[generation.name] = generation
        self._by_flight.setdefault(generation.flight, []).append(generation)

    def finished(self, flight: Flight[Step]) -> None:
        """The flight has landed: from now on it is kept as long as there is time and room."""
        if id(flight) in self._finished or flight not in self._by_flight:
            return
        now = self._clock()
        if not self._finished.put(id(flight), flight, weight=_weight(flight), now=now, ttl=self._linger):
            self._forget(flight)
        asyncio.get_running_loop().call_later(self._linger + 0.1, self._forget_overdue)

    def find(self, name: str, principal: Principal) -> Generation:
        """Raises NotFound also for somebody else's: its existence is nobody's business."""
        self._forget_overdue()
        generation = self._by_name.get(name)
        if generation is None or (generation.principal.tenant, generation.principal.user) != (
            principal.tenant,
            principal.user,
        ):
            raise NotFound("GENERATION_UNKNOWN")
        return generation

    def of(self, flight: Flight[Step]) -> list[Generation]:
        """Everybody's interest in one flight."""
        return self._by_flight.get(flight, [])

    def artifact(self, digest: ArtifactDigest, namespaces: Collection[str]) -> Reply | None:
        """A result in one of these namespaces that was made lately, stored or not yet."""
        for flight in self._by_flight:
            for step in flight.events[-2:]:  # after the artifact comes only whether it is stored
                if isinstance(step, Completed) and step.reply.record.output.digest == digest:
                    if step.reply.record.address.namespace in namespaces:
                        return step.reply
        return None

    async def let_go(self, bans: Bans) -> Gone:
        """Forget finished generations of what is banned."""
        return await sweep(self._finished, lambda _, flight: any(bans.forbid(record) for record in _records(flight)))

    def _forget_overdue(self) -> None:
        self._finished.expire(self._clock())

    def _forget(self, flight: Flight[Step]) -> None:
        for generation in self._by_flight.pop(flight, []):
            del self._by_name[generation.name]


def _records(flight: Flight[Step]) -> list[Record]:
    return [step.reply.record for step in flight.events[-2:] if isinstance(step, Completed)]


def _weight(flight: Flight[Step]) -> int:
    """Bytes that the log of a flight holds."""
    return _OVERHEAD + sum(map(_weight_of, flight.events))


def _weight_of(step: Step) -> int:
    match step:
        case bytes():
            return len(step)
        case Heard(_, pcm):
            return len(pcm)
        case Completed():
            return step.reply.weight
        case _:
            return 0


def result_message(
    plan: Plan, answer: Answer, reply: Reply, span: Span | None, stored: Stored.State, url: Url | None = None
) -> Result:
    record = answer.record
    if not plan.policy.store and stored == Stored.STATE_PENDING:
        stored = Stored.STATE_NOT_STORED
    return Result(
        artifact=Digest(hex=record.output.digest.hex, size=record.output.digest.size),
        media_type=record.output.media_type,
        report=answer.report(),
        seed=plan.seed,
        trace_id=trace_id_of(span),
        random_weights=reply.random_weights,
        stored=Stored(state=stored),
        url=url.text if url is not None else "",
        url_expires_at=Timestamp(seconds=url.expires_at) if url is not None else None,
        first_audio_seconds=answer.first_audio,
    )
