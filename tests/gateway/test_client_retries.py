"""The client when something dies: what it asks again, how long it waits, and what it never asks twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_status import rpc_status

from cache.description import LONGEST_AGE
from gateway.budget import RetryBudget
from gateway.client import Client
from gateway.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidField,
    NotFound,
    Overloaded,
    Refused,
    Unavailable,
)
from gateway.stack.ports import free_port
from gateway.status import Problem, status_of
from reprise.v1.common_pb2 import CachePolicy, Digest
from reprise.v1.media_pb2 import (
    DELIVERY_NONE,
    Accepted,
    AnimateImageRequest,
    AnimateImageResponse,
    CancelRequest,
    CancelResponse,
    Chunk,
    GenerationEvent,
    Preview,
    Progress,
    Result,
    Samples,
    SoundHeader,
    Stored,
    SynthesizeSpeechRequest,
    WatchRequest,
)
from tests.gateway.world import World, ask, eventually, kinds, outcome, problem_of, say

ACCEPTED = GenerationEvent(sequence=1, accepted=Accepted(name="n", seed=77))
PROGRESS = GenerationEvent(sequence=2, progress=Progress(stage="denoise", step=1, steps=2))
PREVIEW = GenerationEvent(sequence=3, preview=Preview(image=b"rough"))
PIECE = GenerationEvent(sequence=4, chunk=Chunk(data=b"abc"))
RESULT = GenerationEvent(sequence=5, result=Result(stored=Stored(state=Stored.STATE_PENDING)))
STORED = GenerationEvent(sequence=6, stored=Stored(state=Stored.STATE_DURABLE))
WHOLE = (ACCEPTED, PROGRESS, PREVIEW, PIECE, RESULT)

LOST = grpc.StatusCode.UNAVAILABLE  # as the transport says it: without a reason
NO_WORKER = Unavailable("NO_WORKER", retry_after=2.0)


@dataclass
class Gateway:
    """One that answers each call as the next of its acts says: events, and how the stream ends."""

    acts: list[tuple[Sequence[GenerationEvent], Refused | grpc.StatusCode | None]] = field(default_factory=list)
    asked: list[AnimateImageRequest | SynthesizeSpeechRequest | WatchRequest | CancelRequest] = field(
        default_factory=list
    )
    left: list[float | None] = field(default_factory=list)  # of the deadline, for each call
    address: str = ""

    def then(self, *events: GenerationEvent, ends: Refused | grpc.StatusCode | None = None) -> Gateway:
        self.acts.append((events, ends))
        return self

    async def play(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        self.asked.append(request)
        self.left.append(context.time_remaining())
        events, ending = self.acts.pop(0)
        for event in events:
            yield AnimateImageResponse(event=event)  # a WatchResponse has the same encoding
        match ending:
            case Refused():
                status = rpc_status.to_status(status_of(ending))
                await context.abort(status.code, status.details, status.trailing_metadata)
            case grpc.StatusCode():
                await context.abort(ending, "lost")

    async def cancel(self, request: CancelRequest, context: Any) -> CancelResponse:
        self.asked.append(request)
        return CancelResponse()


@dataclass
class Time:
    """A clock that only sleeping moves."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@asynccontextmanager
async def serving(*gateways: Gateway) -> AsyncIterator[None]:
    servers = []
    for gateway in gateways:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers: dict[str, Any] = {
            "AnimateImage": grpc.unary_stream_rpc_method_handler(
                gateway.play, AnimateImageRequest.FromString, AnimateImageResponse.SerializeToString
            ),
            "SynthesizeSpeech": grpc.unary_stream_rpc_method_handler(
                gateway.play, SynthesizeSpeechRequest.FromString, AnimateImageResponse.SerializeToString
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                gateway.play, WatchRequest.FromString, AnimateImageResponse.SerializeToString
            ),
            "Cancel": grpc.unary_unary_rpc_method_handler(
                gateway.cancel, CancelRequest.FromString, CancelResponse.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("reprise.v1.MediaService", handlers),))
        gateway.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        servers.append(server)
    try:
        yield
    finally:
        for server in servers:
            await server.stop(0)


def client_of(
    *addresses: str,
    time: Time,
    tries: int = 4,
    budget: RetryBudget | None = None,
    chance: Callable[[], float] = lambda: 0.0,
) -> Client:
    return Client(",".join(addresses), tries=tries, budget=budget, sleep=time.sleep, clock=time.clock, chance=chance)


@asynccontextmanager
async def meeting(gateway: Gateway, **options: Any) -> AsyncIterator[tuple[Client, Time]]:
    time = Time()
    async with serving(gateway), client_of(gateway.address, time=time, **options) as client:
        yield client, time


# What is asked again.


@pytest.mark.parametrize(
    "ending",
    [
        LOST,
        grpc.StatusCode.CANCELLED,
        None,
        NO_WORKER,
        Unavailable("NEVER_DESCRIBED"),
        Unavailable("WORKER_CHANGED"),
        Overloaded("QUEUE_FULL"),
        Overloaded("GATEWAY_BUSY"),
    ],
    ids=lambda ending: getattr(ending, "reason", getattr(ending, "name", "no result")),
)
async def test_what_another_try_can_avoid_is_not_told(ending: Refused | grpc.StatusCode | None) -> None:
    """The request is made again, and the answer is the whole second one and nothing of the first."""
    gateway = Gateway().then(ACCEPTED, PREVIEW, PIECE, ends=ending).then(*WHOLE)
    events: list[GenerationEvent] = []
    retries: list[tuple[Problem, float]] = []
    async with meeting(gateway) as (client, time):
        media = await client.animate(
            ask(), on_event=events.append, on_retry=lambda problem, seconds: retries.append((problem, seconds))
        )
    assert (b"abc", "n", [b"rough"], 5) == (media.data, media.name, media.previews, media.last_sequence)
    assert [ACCEPTED, PREVIEW, PIECE, *WHOLE] == events
    assert [ask(), ask()] == gateway.asked
    assert time.slept == [seconds for _, seconds in retries]
    assert getattr(ending, "reason", "") == retries[0][0].reason


@pytest.mark.parametrize(
    "ending",
    [
        InvalidField("prompt", "must be given"),
        NotFound("NOT_CACHED"),
        Cancelled(),
        DeadlineExceeded(),
        Overloaded("DEVICE_MEMORY", retry_after=None),
        Internal(),
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
    ],
    ids=lambda ending: getattr(ending, "reason", getattr(ending, "name", "")),
)
async def test_what_another_try_cannot_help_is_told_at_once(ending: Refused | grpc.StatusCode) -> None:
    """Once asked, once refused, whatever the deadline."""
    gateway = Gateway().then(ACCEPTED, ends=ending)
    async with meeting(gateway) as (client, time):
        problem = await problem_of(client.animate(ask(), deadline=60.0))
    assert getattr(ending, "code", ending) == problem.code
    assert (1, []) == (len(gateway.asked), time.slept)


async def test_a_result_that_was_heard_is_kept() -> None:
    """A stream that breaks after its result is complete; nothing is asked again."""
    gateway = Gateway().then(*WHOLE, ends=LOST)
    async with meeting(gateway) as (client, _):
        assert b"abc" == (await client.animate(ask())).data
    assert 1 == len(gateway.asked)


async def test_variety_is_drawn_once() -> None:
    """A fresh request that was told its seed asks for that seed; one that was told nothing asks for a fresh one."""
    fresh = ask(policy={"fresh": True, "no_store": True})
    gateway = Gateway().then(ends=LOST).then(ACCEPTED, ends=LOST).then(*WHOLE)
    async with meeting(gateway) as (client, _):
        await client.animate(fresh)
    again = ask(seed=77, policy={"no_store": True})
    assert [fresh, fresh, again] == gateway.asked
    assert fresh.cache_policy.fresh


# Sound.


SOUND = GenerationEvent(sequence=2, sound=SoundHeader(sample_rate=8000))
PCM = bytes(range(250)) * 4


def samples(begin: int, end: int, sequence: int = 3) -> GenerationEvent:
    return GenerationEvent(sequence=sequence, samples=Samples(offset=begin, pcm=PCM[2 * begin : 2 * end]))


def told(events: list[GenerationEvent]) -> list[tuple[int, bytes]]:
    return [(event.samples.offset, event.samples.pcm) for event in events if event.HasField("samples")]


async def test_sound_goes_on_where_it_was() -> None:
    """After a retry no sample is told twice, however the second try cuts them; the header is told once."""
    gateway = Gateway().then(ACCEPTED, SOUND, samples(0, 100), samples(100, 200), ends=LOST)
    gateway.then(ACCEPTED, SOUND, samples(0, 150), ends=NO_WORKER)
    gateway.then(SOUND, samples(0, 150), samples(150, 300), samples(300, 500), PIECE, RESULT)
    events: list[GenerationEvent] = []
    async with meeting(gateway) as (client, _):
        media = await client.speak(say(live=True), on_event=events.append)

    assert [(0, 100), (100, 200), (200, 300), (300, 500)] == [
        (offset, offset + len(pcm) // 2) for offset, pcm in told(events)
    ]
    assert PCM == b"".join(pcm for _, pcm in told(events))
    assert (1, b"abc") == (kinds(events).count("sound"), media.data)
    assert [say(live=True)] * 3 == gateway.asked


async def test_sound_that_changed_begins_anew() -> None:
    """Only where the service says so, which is told as the reason of the retry."""
    gateway = Gateway().then(ACCEPTED, SOUND, samples(0, 100), ends=Unavailable("SOUND_CHANGED"))
    gateway.then(SOUND, samples(0, 500), RESULT)
    events: list[GenerationEvent] = []
    reasons: list[str] = []
    async with meeting(gateway) as (client, _):
        await client.speak(
            say(live=True), on_event=events.append, on_retry=lambda problem, _: reasons.append(problem.reason)
        )

    assert (["SOUND_CHANGED"], 2) == (reasons, kinds(events).count("sound"))
    assert [(0, PCM[:200]), (0, PCM)] == told(events)


async def test_watched_sound_is_not_told_twice() -> None:
    """What is cut from a finished file has the number of the event before it, and comes again after a break."""
    time, one, two = Time(), Gateway(), Gateway()
    one.then(ACCEPTED, SOUND, samples(0, 100), samples(100, 200), ends=LOST)
    two.then(samples(100, 200), samples(200, 500), PIECE, RESULT, STORED)
    events: list[GenerationEvent] = []
    async with serving(one, two), client_of(one.address, two.address, time=time) as client:
        await client.rejoin("n", on_event=events.append)

    assert PCM == b"".join(pcm for _, pcm in told(events))
    assert [("n", 4)] == [(each.name, each.from_sequence) for each in two.asked]  # type: ignore[union-attr]


async def test_fresh_speech_is_drawn_once() -> None:
    """As a fresh video is."""
    gateway = Gateway().then(ACCEPTED, ends=LOST).then(RESULT)
    async with meeting(gateway) as (client, _):
        await client.speak(say(policy={"fresh": True}))
    assert [say(policy={"fresh": True}), say(seed=77, policy={"fresh": False})] == gateway.asked


# For how long.


async def test_pauses_grow_and_are_spread() -> None:
    """From a fifth of a second on, twice as long each time up to 5 s, and somewhere between a half and all of that."""
    gateway = Gateway()
    for _ in range(7):
        gateway.then(ends=LOST)
    async with meeting(gateway, tries=7, chance=lambda: 1.0) as (client, time):
        await problem_of(client.animate(ask()))
    assert [0.2, 0.4, 0.8, 1.6, 3.2, 5.0] == pytest.approx(time.slept)
    gateway = Gateway().then(ends=LOST).then(*WHOLE)
    async with meeting(gateway, chance=lambda: 0.0) as (client, time):
        await client.animate(ask())
    assert [0.1] == pytest.approx(time.slept)


async def test_a_gateway_says_how_long_to_wait() -> None:
    """Never less than it asks for, and not everybody at once."""
    for chance, expected in ((0.0, 2.0), (1.0, 2.5)):
        gateway = Gateway().then(ends=NO_WORKER).then(*WHOLE)
        async with meeting(gateway, chance=lambda chance=chance: chance) as (client, time):
            await client.animate(ask())
        assert [expected] == pytest.approx(time.slept)


async def test_without_a_deadline_tries_are_counted() -> None:
    """The last refusal is told."""
    gateway = Gateway().then(ends=LOST).then(ACCEPTED, PROGRESS, ends=LOST).then(ends=NO_WORKER)
    async with meeting(gateway, tries=3) as (client, _):
        assert "NO_WORKER" == (await problem_of(client.animate(ask()))).reason
    assert (3, []) == (len(gateway.asked), gateway.acts)


async def test_with_a_deadline_it_is_the_bound() -> None:
    """However often it takes; each try has what is left; what cannot be waited for is told before."""
    gateway = Gateway()
    for _ in range(9):
        gateway.then(ACCEPTED, ends=NO_WORKER)
    async with meeting(gateway, tries=2) as (client, time):
        assert "NO_WORKER" == (await problem_of(client.animate(ask(), deadline=9.0))).reason
    assert [2.0] * 4 == time.slept
    assert [9, 7, 5, 3, 1] == [round(left) for left in gateway.left if left is not None]


# A budget of tries.


async def test_a_client_that_is_mostly_refused_stops_asking_again() -> None:
    """Its requests share a budget: when half of it is gone, each is made once, whatever its own tries or deadline."""
    gateway = Gateway()
    for _ in range(9):
        gateway.then(ends=Overloaded("QUEUE_FULL"))
    async with meeting(gateway, budget=RetryBudget(8.0)) as (client, _):
        for _ in range(2):
            await problem_of(client.animate(ask(), deadline=60.0))
        assert 5 == len(gateway.asked)  # four times, the last without another try; then once
        await problem_of(client.animate(ask(), deadline=60.0))
    assert 6 == len(gateway.asked)


async def test_answers_give_tries_back() -> None:
    """A tenth of one each, up to the whole budget and no further."""
    gateway, budget = Gateway(), RetryBudget(4.0, ratio=0.5)
    for _ in range(3):
        gateway.then(ends=Overloaded("QUEUE_FULL"))
    for _ in range(4):
        gateway.then(*WHOLE)
    gateway.then(ends=LOST).then(*WHOLE)
    async with meeting(gateway, budget=budget) as (client, time):
        assert "QUEUE_FULL" == (await problem_of(client.animate(ask()))).reason
        assert "QUEUE_FULL" == (await problem_of(client.animate(ask()))).reason
        assert (3, 1) == (len(gateway.asked), len(time.slept))
        for _ in range(4):
            await client.animate(ask())
        assert 3.0 == budget.tokens
        with pytest.raises(grpc.aio.AioRpcError):
            await client.animate(ask())
        for _ in range(9):
            budget.succeeded()
    assert 4.0 == budget.tokens


async def test_what_is_the_requests_own_fault_costs_no_tries() -> None:
    """Nothing that another try could not help is counted."""
    gateway, budget = Gateway().then(ends=InvalidField("prompt", "must be given")), RetryBudget(4.0)
    async with meeting(gateway, budget=budget) as (client, _):
        await problem_of(client.animate(ask()))
    assert 4.0 == budget.tokens


async def test_many_streams_of_a_gateway_that_dies_are_all_made_again() -> None:
    """In good times a budget has room for a bad moment."""
    gateway = Gateway()
    for _ in range(40):
        gateway.then(ACCEPTED, ends=LOST)
    for _ in range(40):
        gateway.then(*WHOLE)
    async with meeting(gateway) as (client, _):
        media = await asyncio.gather(*(client.animate(ask()) for _ in range(40)))
    assert [b"abc"] * 40 == [each.data for each in media]


async def test_clients_may_share_a_budget() -> None:
    """What one of them uses up, the other has no more."""
    gateway, budget, time = Gateway(), RetryBudget(4.0), Time()
    for _ in range(3):
        gateway.then(ends=Overloaded("QUEUE_FULL"))
    async with serving(gateway), client_of(gateway.address, time=time, budget=budget) as one:
        await problem_of(one.animate(ask()))
        async with client_of(gateway.address, time=time, budget=budget) as other:
            await problem_of(other.animate(ask()))
    assert 3 == len(gateway.asked)


# Several gateways.


async def test_a_dead_gateway_is_passed_over() -> None:
    """The next one is asked, and stays the one to ask; calls beside each other turn away from it once."""
    time, alive = Time(), Gateway()
    for _ in range(3):
        alive.then(*WHOLE)
    nobody = f"127.0.0.1:{free_port()}"
    async with serving(alive), client_of(nobody, f" {alive.address}", time=time) as client:
        everybody = await asyncio.gather(*(client.animate(ask()) for _ in range(2)))
        before = len(time.slept)
        await client.animate(ask())
        await client.cancel("n")
    assert [b"abc"] * 2 == [media.data for media in everybody]
    assert (4, 2, 2) == (len(alive.asked), before, len(time.slept))


async def test_calls_without_a_stream_find_a_living_gateway_too() -> None:
    """Each is asked once; with none left, that is told."""
    time, alive = Time(), Gateway()
    nobody = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    async with serving(alive), client_of(nobody[0], alive.address, time=time) as client:
        await client.cancel("n")
    async with client_of(*nobody, time=time) as client:
        assert LOST == (await problem_of(client.cancel("n"))).code
    assert (1, 2) == (len(alive.asked), len(time.slept))


# Names.


async def test_a_watched_stream_is_picked_up_where_it_broke() -> None:
    """At another gateway, from the next event on; progress renews patience; nothing is heard twice."""
    time, one, two = Time(), Gateway(), Gateway()
    one.then(ACCEPTED, PROGRESS, ends=LOST).then(PIECE, RESULT, STORED)
    two.then(PREVIEW, ends=LOST)
    events: list[GenerationEvent] = []
    async with serving(one, two), client_of(one.address, two.address, time=time, tries=2) as client:
        media = await client.rejoin("n", on_event=events.append)
    assert [1, 2, 3, 4, 5, 6] == [event.sequence for event in events]
    assert [("n", 0), ("n", 4)] == [(each.name, each.from_sequence) for each in one.asked]  # type: ignore[union-attr]
    assert [("n", 3)] == [(each.name, each.from_sequence) for each in two.asked]  # type: ignore[union-attr]
    assert (b"abc", Stored.STATE_DURABLE) == (media.data, media.result.stored.state)


async def test_what_ended_a_generation_is_not_watched_again() -> None:
    """Its error is told as it is, also where asking for the media again would help."""
    gateway = Gateway().then(ACCEPTED, ends=NO_WORKER)
    async with meeting(gateway) as (client, _):
        assert "NO_WORKER" == (await problem_of(client.rejoin("n"))).reason


async def test_a_name_whose_gateway_is_gone() -> None:
    """Before the result it is an error; after it the artifact is had, and whether it is durable stays unknown."""
    gone = NotFound("GENERATION_UNKNOWN")
    gateway = Gateway().then(ACCEPTED, ends=LOST).then(ends=gone)
    async with meeting(gateway) as (client, _):
        assert "GENERATION_UNKNOWN" == (await problem_of(client.rejoin("n"))).reason
        gateway.then(*WHOLE, ends=LOST).then(ends=gone)
        media = await client.rejoin("n")
        assert (b"abc", Stored.STATE_PENDING) == (media.data, media.result.stored.state)
        gateway.then(ends=gone)
        assert Stored.STATE_PENDING == await client.until_stored(media)
        gateway.then(ends=Internal())
        assert grpc.StatusCode.INTERNAL == (await problem_of(client.until_stored(media))).code


# Hits that are not durable yet.


def hit(state: Stored.State, hexadecimal: str = "ab") -> GenerationEvent:
    result = Result(artifact=Digest(hex=hexadecimal, size=3), seed=77, stored=Stored(state=state))
    return GenerationEvent(sequence=1, chunk=Chunk(data=b"abc"), result=result)


HIT, STORED_HIT = hit(Stored.STATE_PENDING), hit(Stored.STATE_DURABLE)
NOT_CACHED = NotFound("NOT_CACHED")


async def test_a_hit_is_asked_for_again_until_it_is_durable() -> None:
    """Without its bytes, and so that nothing is made for it."""
    request = say(live=True)
    gateway = Gateway().then(HIT).then(HIT).then(STORED_HIT)
    async with meeting(gateway) as (client, time):
        media = await client.speak(request)
        assert Stored.STATE_DURABLE == await client.until_stored(media, request)
    assert [0.2, 0.4] == time.slept
    for again in gateway.asked[1:]:
        assert isinstance(again, SynthesizeSpeechRequest)
        assert (DELIVERY_NONE, False) == (again.delivery, again.live)
        assert CachePolicy.MODE_ONLY_IF_CACHED == again.cache_policy.mode
        assert (request.text, request.voice) == (again.text, again.voice)


async def test_a_hit_that_nobody_stores_is_not_asked_for_for_ever() -> None:
    gateway = Gateway().then(HIT)
    for _ in range(100):
        gateway.then(HIT)
    async with meeting(gateway) as (client, time):
        media = await client.animate(ask())
        assert Stored.STATE_PENDING == await client.until_stored(media, ask(), patience=20.0)
    assert 10.0 < time.now < 20.0
    assert len(gateway.asked) < 10


async def test_a_hit_that_is_gone_was_not_stored() -> None:
    """Once patience is over: until then somebody may be about to store it."""
    gateway = Gateway().then(HIT)
    for _ in range(100):
        gateway.then(ends=NOT_CACHED)
    async with meeting(gateway) as (client, time):
        media = await client.animate(ask())
        assert Stored.STATE_NOT_STORED == await client.until_stored(media, ask(), patience=20.0)
    assert 10.0 < time.now < 20.0


async def test_a_hit_that_the_next_gateway_does_not_have_yet_is_asked_for_again() -> None:
    """A large one is nowhere but at its gateway until the object store has it."""
    gateway = Gateway().then(HIT).then(ends=NOT_CACHED).then(ends=NOT_CACHED).then(STORED_HIT)
    async with meeting(gateway) as (client, _):
        media = await client.animate(ask())
        assert Stored.STATE_DURABLE == await client.until_stored(media, ask())


async def test_a_hit_that_one_gateway_has_is_not_called_lost_for_another_that_has_it_not() -> None:
    gateway = Gateway().then(HIT)
    for _ in range(50):
        gateway.then(HIT).then(ends=NOT_CACHED)
    async with meeting(gateway) as (client, _):
        media = await client.animate(ask())
        for patience in (20.0, 25.0):  # whoever of them is the last to be asked
            assert Stored.STATE_PENDING == await client.until_stored(media, ask(), patience=patience)


async def test_another_artifact_tells_nothing_of_a_hit() -> None:
    """The one that is being replaced may be durable; that says nothing of the new one."""
    gateway = Gateway().then(HIT)
    for _ in range(100):
        gateway.then(hit(Stored.STATE_DURABLE, "cd"))
    async with meeting(gateway) as (client, _):
        media = await client.animate(ask())
        assert Stored.STATE_NOT_STORED == await client.until_stored(media, ask(), patience=20.0)
        gateway.acts.insert(1, ([STORED_HIT], None))
        assert Stored.STATE_DURABLE == await client.until_stored(media, ask(), patience=20.0)


@pytest.mark.parametrize(
    "ending",
    [LOST, NO_WORKER, DeadlineExceeded(), None],
    ids=lambda ending: getattr(ending, "reason", getattr(ending, "name", "no result")),
)
async def test_a_gateway_that_goes_leaves_it_unknown_whether_a_hit_is_stored(
    ending: Refused | grpc.StatusCode | None,
) -> None:
    gateway = Gateway().then(HIT)
    for _ in range(100):
        gateway.then(ends=ending)
    async with meeting(gateway) as (client, _):
        media = await client.animate(ask())
        assert Stored.STATE_PENDING == await client.until_stored(media, ask(), patience=20.0)


async def test_what_was_made_at_a_gateway_that_died_is_not_known_to_be_stored() -> None:
    """Whoever has the media has it: it is no error that nobody is there to be asked."""
    gateway = Gateway().then(*WHOLE)
    for _ in range(100):
        gateway.then(ends=LOST)
    async with meeting(gateway) as (client, _):
        media = await client.animate(ask())
        assert Stored.STATE_PENDING == await client.until_stored(media)
        assert Stored.STATE_PENDING == await client.until_stored(media, ask(), patience=20.0)


async def test_what_else_goes_wrong_with_a_hit_is_told() -> None:
    gateway = Gateway().then(HIT).then(ends=Internal())
    async with meeting(gateway) as (client, _):
        media = await client.animate(ask())
        assert grpc.StatusCode.INTERNAL == (await problem_of(client.until_stored(media, ask()))).code


async def test_a_hit_is_never_too_old_to_be_asked_for_its_state_and_has_its_own_seed() -> None:
    """Also where the deployment's own policy is to draw one, or to serve nothing that old."""
    gateway = Gateway().then(HIT).then(STORED_HIT)
    async with meeting(gateway) as (client, _):
        request = ask(policy={"max_age": Duration(seconds=1)})
        assert Stored.STATE_DURABLE == await client.until_stored(await client.animate(request), request)
    again = gateway.asked[-1]
    assert isinstance(again, AnimateImageRequest)
    assert (LONGEST_AGE, 77) == (again.cache_policy.max_age.ToSeconds(), again.seed)
    assert 1 == request.cache_policy.max_age.ToSeconds()


async def test_a_model_that_draws_nothing_is_given_no_seed() -> None:
    """It would refuse one."""
    gateway = Gateway()
    for event in (HIT, STORED_HIT):
        unseeded = GenerationEvent.FromString(event.SerializeToString())
        unseeded.result.seed = 0
        gateway.then(unseeded)
    async with meeting(gateway) as (client, _):
        assert Stored.STATE_DURABLE == await client.until_stored(await client.animate(ask()), ask())
    again = gateway.asked[-1]
    assert isinstance(again, AnimateImageRequest)
    assert not again.HasField("seed")


async def test_what_was_made_at_a_gateway_that_is_gone_is_asked_for_with_the_seed_that_was_drawn() -> None:
    """Nobody can be told by name any more; what is held of it tells."""
    request = ask(policy={"fresh": True})
    made = GenerationEvent(sequence=5, result=HIT.result)
    gateway = Gateway().then(ACCEPTED, PIECE, made).then(ends=NotFound("GENERATION_UNKNOWN")).then(STORED_HIT)
    async with meeting(gateway) as (client, _):
        media = await client.animate(request)
        assert Stored.STATE_DURABLE == await client.until_stored(media, request)
    again = gateway.asked[-1]
    assert isinstance(again, AnimateImageRequest)
    assert (77, False) == (again.seed, again.cache_policy.fresh)


# Real gateways.


async def test_a_gateway_that_goes_takes_nobody_with_it(world: World) -> None:
    """Its callers ask the other one, which joins the run at the worker: one generation, and the same bytes for all."""
    worker = await world.worker()
    gate = worker.hold("step")
    going, staying = await world.desk(worker, grace=60.0), await world.desk(worker, grace=60.0)
    events: list[GenerationEvent] = []
    async with Client(f"{going.address},{staying.address}") as client:
        callers = [asyncio.create_task(client.animate(ask(), on_event=events.append)) for _ in range(3)]
        await gate.reached.wait()
        await eventually(lambda: _now(kinds(events).count("accepted") == 3))
        other = staying.follow()
        await other.seen("queued")
        await going.close()
        await eventually(lambda: _now(kinds(events).count("accepted") == 6))
        gate.open()
        media = [*(await asyncio.gather(*callers)), await other.media()]
    assert (1, 1) == (worker.generations, len({each.data for each in media}))
    assert ["coalesced"] * 4 == sorted(outcome(each) for each in media)


async def _now(value: object) -> bool:
    return bool(value)


async def test_a_worker_that_is_missed_for_a_moment_is_waited_for(world: World) -> None:
    """The refusal says when to come back, and whoever does is served."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await desk.animate("a dog")
    await worker.die()
    await desk.sees(0)
    retries: list[Problem] = []

    async def pause(seconds: float) -> None:
        await worker.start(int(worker.address.rpartition(":")[2]))
        await desk.sees(1)

    async with Client(desk.address, sleep=pause) as client:
        media = await client.animate(ask(), on_retry=lambda problem, seconds: retries.append(problem))
    assert ("miss", ["NO_WORKER"]) == (outcome(media), [problem.reason for problem in retries])
