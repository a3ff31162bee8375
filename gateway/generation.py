"""Generation: one caller's interest in a flight, under a name of its own.

Callers who ask for the same thing share a flight and its events. What differs between them (the name, the report, the
trace) is composed for each as the event passes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from opentelemetry.trace import Span

from cache.bounded import Bounded
from cache.digest import Digest as ArtifactDigest
from cache.flight import Deserted, Flight
from cache.keys import Principal
from cache.telemetry import trace_id_of
from cache.tier import Lookup
from gateway.answer import Answer
from gateway.errors import Cancelled, NotFound
from gateway.plan import Plan, StandIn
from gateway.wire import Reply, event_response
from reprise.v1.common_pb2 import Digest, StageReport
from reprise.v1.media_pb2 import Accepted, GenerationEvent, Result, Stored

_OVERHEAD = 4096  # bytes charged to every flight, so that many small ones are not free


@dataclass(frozen=True, slots=True)
class Planned:
    """The leader knows what to expect of each stage."""

    stages: Sequence[StageReport]


@dataclass(frozen=True, slots=True)
class Completed:
    """The artifact is there."""

    reply: Reply
    stages: Sequence[StageReport]
    joined: bool  # another gateway had begun it
    stand_ins: Mapping[str, StandIn]  # by medium: what it rests on, which may be less than was planned


@dataclass(frozen=True, slots=True)
class Settled:
    """Whether the artifact is durable is known."""

    stored: Stored


Step: TypeAlias = bytes | Planned | Completed | Settled  # bytes: a response that is the same for everybody


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
    streams: int = 0
    cancelled: bool = False
    answer: Answer | None = None  # given once, however often it is watched

    async def events(self, start: int = 0, *, to_result: bool) -> AsyncGenerator[bytes]:
        """Responses from event `start` on, up to the result or to the very end. Raises what ended the flight."""
        self.streams += 1
        sequence = start
        try:
            with self.flight.following(), _Heart(self.flight, self.heartbeat) as heart:
                while True:
                    async with aclosing(
                        self.flight.follow(sequence, until=lambda: self.cancelled or heart.due)
                    ) as steps:
                        async for step in steps:
                            sequence += 1
                            yield self._response(step, sequence)
                            if to_result and isinstance(step, Completed):
                                return
                            heart.rest()
                    if self.cancelled or not heart.due:
                        break
                    heart.rest()
                    yield event_response(GenerationEvent(sequence=sequence))
        except Deserted as error:
            raise Cancelled(reason="ABANDONED") from error
        finally:
            self.streams -= 1
        if self.cancelled:
            raise Cancelled

    def _response(self, step: Step, sequence: int) -> bytes:
        match step:
            case bytes():
                return step
            case Planned():
                accepted = Accepted(name=self.name, seed=self.plan.seed, stages=step.stages)
                return event_response(GenerationEvent(sequence=sequence, accepted=accepted))
            case Completed():
                if self.answer is None:
                    self.answer = self.compose(self, step)
                    self.answered(self.answer)
                result = result_message(self.plan, self.answer, step.reply, self.span, Stored.STATE_PENDING)
                return event_response(GenerationEvent(sequence=sequence, result=result))
            case Settled():
                return event_response(GenerationEvent(sequence=sequence, stored=step.stored))


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
        self._finished: Bounded[Flight[Step], None] = Bounded(
            max_bytes=max_bytes, on_removal=lambda flight, _value, _cause: self._forget(flight)
        )

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, generation: Generation) -> None:
        self._by_name[generation.name] = generation
        self._by_flight.setdefault(generation.flight, []).append(generation)

    def finished(self, flight: Flight[Step]) -> None:
        """The flight has landed: from now on it is kept as long as there is time and room."""
        if flight in self._finished or flight not in self._by_flight:
            return
        now = self._clock()
        if not self._finished.put(flight, None, weight=_weight(flight), now=now, ttl=self._linger):
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

    def artifact(self, digest: ArtifactDigest, principal: Principal) -> Reply | None:
        """A result of the caller's tenant that was made lately, stored or not yet."""
        for flight, generations in self._by_flight.items():
            for step in flight.events[-2:]:  # after the artifact comes only whether it is stored
                if isinstance(step, Completed) and step.reply.record.output.digest == digest:
                    if any(generation.principal.tenant == principal.tenant for generation in generations):
                        return step.reply
        return None

    def _forget_overdue(self) -> None:
        self._finished.expire(self._clock())

    def _forget(self, flight: Flight[Step]) -> None:
        for generation in self._by_flight.pop(flight, []):
            del self._by_name[generation.name]


def _weight(flight: Flight[Step]) -> int:
    """Bytes that the log of a flight holds."""
    return _OVERHEAD + sum(
        len(step) if isinstance(step, bytes) else step.reply.weight
        for step in flight.events
        if isinstance(step, bytes | Completed)
    )


def result_message(plan: Plan, answer: Answer, reply: Reply, span: Span | None, stored: Stored.State) -> Result:
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
    )
