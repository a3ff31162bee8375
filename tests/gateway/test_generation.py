"""One caller's interest in work that others may share: its name, its stream, its end."""

from __future__ import annotations

import asyncio
import secrets
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from cache.flight import Flight
from cache.keys import Principal
from gateway.errors import NotFound
from gateway.generation import Generation, Generations
from gateway.identity import hash_key
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import DELIVERY_URL, GenerationEvent, Stored
from tests.cache.helpers import Clock
from tests.gateway.world import MIB, Desk, Follower, World, ask, eventually, kinds, outcome, problem_of

LONG = 3600.0  # seconds; a grace that no test waits for


async def watched(desk: Desk, name: str, start: int = 0) -> list[GenerationEvent]:
    """Everything from an event on, to the end of the stream."""
    async with asyncio.timeout(10):
        return [event async for event in desk.client.watch(name, start)]


async def watch(desk: Desk, name: str) -> None:
    await watched(desk, name)


# Watching.


async def test_a_dropped_stream_is_picked_up_again(world: World) -> None:
    """Watching from the next event on gives what was missed, goes on to the result, and ends with stored."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, grace=LONG)
    follower = desk.follow(num_inference_steps=2)
    last = await follower.seen("queued")
    await follower.leave()
    watching = asyncio.create_task(watched(desk, await follower.name(), last.sequence + 1))
    gate.open()
    events = await watching

    assert ["progress", "progress", "preview", "chunk", "result", "stored"] == kinds(events)
    assert list(range(3, 9)) == [event.sequence for event in events]
    assert Stored.STATE_DURABLE == events[-1].stored.state
    assert (1, 0) == (worker.generations, worker.cancelled)


async def test_a_finished_generation_can_be_watched_for_a_while(world: World) -> None:
    """All of it, from the first event on, however often; its answer counts once."""
    worker = await world.worker()
    desk = await world.desk(worker)
    follower = desk.follow()
    await desk.stored(await follower.media())
    again = [await watched(desk, await follower.name(), start) for start in (0, 1)]

    assert [[*kinds(follower.events), "stored"]] * 2 == [kinds(events) for events in again]
    assert follower.events == again[0][:-1]
    assert [1] == [each.count for each in (await desk.client.stats()).requests]


async def test_watching_beyond_the_present_waits_for_it(world: World) -> None:
    """A first event that is yet to come is the first that is sent."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker)
    follower = desk.follow(num_inference_steps=2)
    await follower.seen("queued")
    watching = asyncio.create_task(watched(desk, await follower.name(), 6))
    gate.open()
    await follower.media()

    assert ["chunk", "result", "stored"] == kinds(await watching)


async def test_somebody_elses_generation_does_not_exist(world: World, tmp_path: Path) -> None:
    """Watch and Cancel say NOT_FOUND for a foreign name in the same words as for one that never was."""
    keys = tmp_path / "keys.yaml"
    people = {"ann": "a", "abe": "a", "bob": "b"}
    keys.write_text("\n".join(f"- {{key_sha256: {hash_key(u)!r}, tenant: {t}, user: {u}}}" for u, t in people.items()))
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, identity={"mode": "api_keys", "file": keys})
    ann, *others = [await desk.connect(api_key=user) for user in people]
    follower = desk.follow(client=ann)
    name = await follower.name()
    for other in others:
        for call in (other.cancel(name), anext(other.watch(name)), other.cancel("nonsense")):
            problem = await problem_of(call)
            assert (grpc.StatusCode.NOT_FOUND, "GENERATION_UNKNOWN") == (problem.code, problem.reason)
    gate.open()
    assert "miss" == outcome(await follower.media())


async def _now(value: object) -> bool:
    return bool(value)


# Leaving.


async def test_who_returns_within_the_grace_finds_the_work_going_on(world: World) -> None:
    """The only caller leaves and asks again: the same run answers, and nothing was cancelled."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, grace=LONG)
    first = desk.follow()
    await first.seen("queued")
    await first.leave()
    second = desk.follow()
    await second.seen("queued")
    gate.open()

    assert "coalesced" == outcome(await second.media())
    assert (1, 1, 0, []) == (len(worker.requests), worker.generations, worker.cancelled, worker.abandoned)


async def test_a_worker_knows_whether_anybody_waits(world: World) -> None:
    """It is told when the last caller has left, or was too late, and when one is back; not who else comes and goes."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, grace=LONG)
    first, second = Follower(desk.client, ask(), deadline=1.0), desk.follow()
    await asyncio.gather(first.seen("queued"), second.seen("queued"))
    await second.leave()
    await problem_of(first.task)
    (follower,) = [request.follower for request in worker.requests]
    await eventually(lambda: _now(worker.attended == [(follower, False)]))
    third = desk.follow()
    await eventually(lambda: _now(worker.attended == [(follower, False), (follower, True)]))
    fourth = desk.follow()
    await fourth.seen("queued")
    await third.leave()
    gate.open()

    assert "coalesced" == outcome(await fourth.media())
    assert 2 == len(worker.attended)


async def test_a_worker_that_has_not_heard_is_told_again(world: World) -> None:
    """Who left before the worker knew of the run is mentioned once it says something of it."""
    worker = await world.worker()
    gate = worker.hold("begin")
    worker.deaf = 1
    desk = await world.desk(worker, grace=LONG)
    follower = desk.follow()
    await gate.reached.wait()
    await follower.leave()
    await eventually(lambda: _now(len(worker.attended) == 1))
    held = worker.hold("step")
    gate.open()
    await held.reached.wait()
    await eventually(lambda: _now(len(worker.attended) == 2))
    held.open()
    assert [False, False] == [waiting for _, waiting in worker.attended]


async def test_work_that_nobody_wants_any_more_is_let_go(world: World) -> None:
    """The grace over, the worker's stream is closed without a word, and a new request is a plan of its own."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, grace=0.0)
    follower = desk.follow()
    await follower.seen("queued")
    await follower.leave()
    await eventually(lambda: _now(not worker.following))
    assert [] == worker.abandoned
    problem = await problem_of(watch(desk, await follower.name()))
    assert (grpc.StatusCode.CANCELLED, "ABANDONED") == (problem.code, problem.reason)
    returned = desk.follow()
    await returned.seen("queued")
    gate.open()
    assert "coalesced" == outcome(await returned.media())  # with what the worker did not stop
    assert (2, 1) == (len(worker.requests), worker.generations)


async def test_a_result_is_stored_although_everybody_has_left(world: World) -> None:
    """From the result on the grace does not count: the flight stays until the artifact is durable."""
    worker = await world.worker()
    gate = worker.hold("stored")
    desk = await world.desk(worker, grace=0.0)
    media = await desk.animate()
    await eventually(lambda: _now(gate.reached.is_set()))
    watching = asyncio.create_task(watched(desk, media.name, media.last_sequence + 1))
    gate.open()

    assert ["stored"] == kinds(await watching)


async def test_a_deadline_ends_the_stream_and_not_the_work(world: World) -> None:
    """The caller hears DEADLINE_EXCEEDED and can watch the generation further."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, grace=LONG)
    follower = Follower(desk.client, ask(), deadline=0.3)
    name = await follower.name()
    assert grpc.StatusCode.DEADLINE_EXCEEDED == (await problem_of(follower.task)).code
    watching = asyncio.create_task(watched(desk, name))
    gate.open()
    assert "stored" == kinds(await watching)[-1]


# Cancelling.


async def test_cancelling_the_only_interest_ends_the_work(world: World) -> None:
    """The caller's stream ends with CANCELLED, the worker is told, and its run stops."""
    worker = await world.worker()
    worker.hold("step")
    desk = await world.desk(worker, grace=LONG)
    follower = desk.follow()
    await follower.seen("queued")
    await desk.client.cancel(await follower.name())
    problem = await problem_of(follower.task)

    assert (grpc.StatusCode.CANCELLED, "CANCELLED_BY_CALLER") == (problem.code, problem.reason)
    await eventually(lambda: _now(worker.cancelled))
    assert [worker.requests[0].follower] == worker.abandoned


async def test_cancelling_leaves_the_others_alone(world: World) -> None:
    """The leader cancels: only its own stream ends, and whoever joined gets the result."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, grace=LONG)
    leader = desk.follow()
    await leader.seen("queued")
    follower = desk.follow()
    await follower.seen("queued")
    await desk.client.cancel(await leader.name())
    assert grpc.StatusCode.CANCELLED == (await problem_of(leader.task)).code
    problem = await problem_of(watch(desk, await leader.name()))
    assert "CANCELLED_BY_CALLER" == problem.reason
    gate.open()

    assert "coalesced" == outcome(await follower.media())
    assert ([], 0) == (worker.abandoned, worker.cancelled)


async def test_who_dropped_a_stream_keeps_an_interest_when_another_cancels(world: World) -> None:
    """Within the grace of a dropped stream, somebody else's Cancel does not end the work."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, grace=LONG)
    dropped, cancelled = desk.follow(), desk.follow()
    await asyncio.gather(dropped.seen("queued"), cancelled.seen("queued"))
    await dropped.leave()
    await desk.client.cancel(await cancelled.name())
    assert grpc.StatusCode.CANCELLED == (await problem_of(cancelled.task)).code
    watching = asyncio.create_task(watched(desk, await dropped.name()))
    gate.open()

    assert "stored" == kinds(await watching)[-1]
    assert [] == worker.abandoned


async def test_the_last_one_who_cancels_ends_the_work(world: World) -> None:
    """Two callers share a run; when both have cancelled it stops."""
    worker = await world.worker()
    worker.hold("step")
    desk = await world.desk(worker, grace=LONG)
    followers = [desk.follow(), desk.follow()]
    for follower in followers:
        await follower.seen("queued")
        await desk.client.cancel(await follower.name())
    assert {grpc.StatusCode.CANCELLED} == {(await problem_of(follower.task)).code for follower in followers}
    await eventually(lambda: _now(worker.cancelled))
    assert 1 == len(worker.abandoned)


async def test_a_request_after_a_cancel_begins_anew(world: World) -> None:
    """While the cancelled work is being told to stop nobody joins it: an equal request gets a run of its own."""
    worker = await world.worker()
    gate = worker.hold("step")
    telling = worker.hold("abandon")
    desk = await world.desk(worker, grace=LONG)
    first = desk.follow()
    await first.seen("queued")
    await desk.client.cancel(await first.name())
    await telling.reached.wait()
    second = desk.follow()
    await eventually(lambda: _now(len(worker.requests) == 2))
    telling.open()
    gate.open()

    assert (await second.media()).data
    assert grpc.StatusCode.CANCELLED == (await problem_of(first.task)).code


async def test_cancelling_what_is_finished_changes_nothing(world: World) -> None:
    """The result was delivered and stays stored; while it is still being stored, that goes on too."""
    worker = await world.worker()
    gate = worker.hold("stored")
    desk = await world.desk(worker, grace=0.0)
    media = await desk.animate()
    await desk.client.cancel(media.name)
    gate.open()
    await eventually(lambda: _now(not worker.following))
    assert ([], 0) == (worker.abandoned, worker.cancelled)
    assert "hit from L1" == outcome(await desk.animate())


async def test_silent_work_shows_signs_of_life(world: World) -> None:
    """While nothing happens a stream repeats the last sequence, and then goes on where it was."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, heartbeat=0.01)
    follower = desk.follow()
    await follower.seen("queued")
    await eventually(lambda: _now("" in kinds(follower.events)[1:]))
    gate.open()
    await follower.media()

    told = [event for event, kind in zip(follower.events, kinds(follower.events), strict=True) if kind]
    assert list(range(1, 1 + len(told))) == [event.sequence for event in told]
    beat = kinds(follower.events).index("", 1)
    assert follower.events[beat - 1].sequence == follower.events[beat].sequence


# Names.


def generation(flight: Flight[Any], *, tenant: str = "t", user: str = "u") -> Generation:
    fields: dict[str, Any] = dict.fromkeys(
        ("plan", "span", "answered", "compose", "past", "missed", "sounding", "waited")
    )
    fields |= {"name": secrets.token_hex(8), "heartbeat": 15.0}
    return Generation(**fields, principal=Principal(tenant, user), flight=flight, led=True, lookups=())


async def test_a_finished_generation_is_forgotten_in_time() -> None:
    """It is found for `linger` seconds after its end; one that goes on is found as long as it does."""
    clock = Clock()
    generations = Generations(linger=60.0, max_bytes=1 << 20, clock=clock)
    flights = [Flight[Any](lambda flight: None), Flight[Any](lambda flight: None)]
    finished, running = map(generation, flights)
    generations.add(finished)
    generations.add(running)
    principal = Principal("t", "u", "another session")
    clock.advance(1000.0)
    assert finished is generations.find(finished.name, principal)
    flights[0].end()
    generations.finished(flights[0])
    generations.finished(flights[0])
    clock.advance(59.0)
    assert finished is generations.find(finished.name, principal)
    clock.advance(60.0)
    assert running is generations.find(running.name, principal)
    with pytest.raises(NotFound):
        generations.find(finished.name, principal)
    assert 1 == len(generations)


async def test_finished_generations_are_kept_within_their_bytes() -> None:
    """The oldest make room for younger ones, and one that is larger than the room is not kept at all."""
    generations = Generations(linger=60.0, max_bytes=20_000, clock=Clock())
    flights = [Flight[Any](lambda flight: None) for _ in range(4)]
    known = [generation(flight) for flight in flights]
    for flight, each, size in zip(flights, known, (1000, 1000, 9000, 90_000), strict=True):
        generations.add(each)
        flight.publish(bytes(size))
        flight.end()
        generations.finished(flight)

    found = []
    for each in known:
        with suppress(NotFound):
            found.append(generations.find(each.name, each.principal))
    assert known[1:3] == found
    assert 2 == len(generations)


async def test_what_has_to_make_room_leaves_memory_at_once() -> None:
    """And not when its time would have come: however much is made in that time, it is bounded."""
    generations = Generations(linger=60.0, max_bytes=20_000, clock=Clock())

    def finish() -> weakref.ref[Flight[Any]]:
        flight = Flight[Any](lambda flight: None)
        generations.add(generation(flight))
        flight.publish(bytes(12_000))
        flight.end()
        generations.finished(flight)
        return weakref.ref(flight)

    first, second = finish(), finish()
    assert first() is None
    assert second() is not None


# By URL.


async def test_a_url_comes_when_the_artifact_is_durable(world: World) -> None:
    """All else as it happens, no chunks, and the result only with the word that it is stored; asked again, at once."""
    worker = await world.worker()
    gate = worker.hold("stored")
    desk = await world.desk(worker, http_port=0, heartbeat=0.01)
    follower = desk.follow(delivery=DELIVERY_URL, num_inference_steps=2)
    await follower.seen("preview")
    seen = len(follower.events)
    await eventually(lambda: _now(len(follower.events) > seen + 2))  # signs of life, while it is held back
    gate.open()
    media = await follower.media()
    again = await desk.animate(delivery=DELIVERY_URL, num_inference_steps=2)

    told = [kind for kind in kinds(follower.events) if kind]
    assert ["accepted", "queued", "progress", "progress", "preview", "result+stored"] == told
    assert sorted(event.sequence for event in follower.events) == [event.sequence for event in follower.events]
    assert (b"", Stored.STATE_DURABLE, "miss") == (media.data, media.result.stored.state, outcome(media))
    assert (media.url, "hit from L1", b"") == (again.url, outcome(again), again.data)
    assert [] == await watched(desk, media.name, media.last_sequence + 1)


async def test_who_drops_a_stream_that_waits_for_a_url_picks_it_up(world: World) -> None:
    """From the event after the last it has seen, signs of life included; also through another gateway."""
    worker = await world.worker()
    gate = worker.hold("stored")
    desk, other = [await world.desk(worker, http_port=0, heartbeat=0.01, grace=LONG) for _ in range(2)]
    follower = desk.follow(delivery=DELIVERY_URL)
    await follower.seen("preview")
    seen = len(follower.events)
    await eventually(lambda: _now(len(follower.events) > seen + 2))
    await follower.leave()
    watching = asyncio.create_task(watched(other, await follower.name(), follower.events[-1].sequence + 1))
    gate.open()
    events = await watching

    assert ["result+stored"] == [kind for kind in kinds(events) if kind]
    assert events[-1].result.url.startswith(f"http://127.0.0.1:{desk.gateway.http_port}/artifacts/")


async def test_who_drops_a_stream_loses_nothing_that_was_held_back(world: World) -> None:
    """If it cannot be stored after all, the pieces come to who picks the stream up."""
    worker = await world.worker()
    worker.hierarchy = (await world.tiers(world.only("l1"))).below_memory
    gate = worker.hold("stored")
    desk = await world.desk(worker, http_port=0, heartbeat=0.01, grace=LONG)
    inline, follower = desk.follow(), desk.follow(delivery=DELIVERY_URL)
    made = await inline.media()
    seen = len(follower.events)
    await eventually(lambda: _now(len(follower.events) > seen + 2))
    await follower.leave()
    watching = asyncio.create_task(watched(desk, await follower.name(), follower.events[-1].sequence + 1))
    gate.open()
    events = [event for event in await watching if event.ListFields()[1:]]  # without signs of life

    assert ["chunk", "result", "stored"] == kinds(events)
    assert made.data == events[0].chunk.data


async def test_what_cannot_be_stored_comes_inline(world: World) -> None:
    """When no tier took it the pieces come after all, then the result without a URL; Watch tells the same."""
    worker = await world.worker()
    worker.hierarchy = (await world.tiers(world.only("l1"))).below_memory
    desk = await world.desk(worker, http_port=0)
    follower = desk.follow(delivery=DELIVERY_URL, extra={"size": 2 * MIB + 5})
    media = await follower.media()
    again = await watched(desk, media.name)

    assert ["preview", "chunk", "chunk", "chunk", "result"] == kinds(follower.events)[-5:]
    assert list(range(1, len(follower.events) + 1)) == [event.sequence for event in follower.events]
    assert ("", 2 * MIB + 5, "not_stored") == (media.url, len(media.data), await desk.stored(media))
    assert [*follower.events] == again[:-1]
    assert Stored.STATE_NOT_STORED == again[-1].stored.state


@pytest.mark.parametrize(
    "policy", [{"no_store": True}, {"mode": pb.CachePolicy.MODE_BYPASS}], ids=["no-store", "bypass"]
)
async def test_what_must_not_be_stored_comes_inline(world: World, policy: dict[str, Any]) -> None:
    """Nobody waits for a storing that is not going to happen."""
    worker = await world.worker()
    worker.hold("stored")
    desk = await world.desk(worker, http_port=0)
    media = await desk.animate(delivery=DELIVERY_URL, policy=policy)
    assert ("", 1000) == (media.url, len(media.data))


async def test_without_http_everything_comes_inline(world: World) -> None:
    """Unless others serve it: then the URL begins with the one that is configured."""
    worker = await world.worker()
    desk, elsewhere = await world.desk(worker), await world.desk(worker, public_url="https://media.example.com/")
    made = await desk.animate(delivery=DELIVERY_URL)
    await desk.stored(made)
    hit = await elsewhere.animate(delivery=DELIVERY_URL)

    assert ("", 1000) == (made.url, len(made.data))
    assert ("hit from L2", b"") == (outcome(hit), hit.data)
    assert hit.url.startswith(f"https://media.example.com/artifacts/{hit.result.artifact.hex}/")


async def test_each_follower_gets_its_artifact_its_own_way(world: World) -> None:
    """One generation, one caller with chunks at once and one with a URL once it is stored."""
    worker = await world.worker()
    gate, stored = worker.hold("step"), worker.hold("stored")
    desk = await world.desk(worker, http_port=0)
    inline, by_url = desk.follow(), desk.follow(delivery=DELIVERY_URL)
    await inline.seen("queued")
    await by_url.seen("queued")
    gate.open()
    first = await inline.media()
    late = desk.follow(delivery=DELIVERY_URL)  # finds it in memory, on its way to the tiers
    await late.seen("accepted")
    stored.open()
    second, third = await by_url.media(), await late.media()

    assert (1, 1000, b"", b"") == (worker.generations, len(first.data), second.data, third.data)
    assert second.url == third.url != ""
    assert "" == first.url


async def test_who_finds_it_neither_stored_nor_under_way_gets_it_inline(world: World) -> None:
    """In memory alone, and with nobody left who stores it, it has no URL."""
    worker = await world.worker()
    worker.hierarchy = (await world.tiers(world.only("l1"))).below_memory
    desk = await world.desk(worker, http_port=0)
    made = await desk.animate()
    await desk.stored(made)
    hit = await desk.animate(delivery=DELIVERY_URL)
    assert ("hit from L1", "", made.data) == (outcome(hit), hit.url, hit.data)


async def test_by_url_a_worker_that_dies_before_it_stored_costs_nothing(world: World) -> None:
    """The gateway stores what it holds, and then there is the URL."""
    worker = await world.worker()
    worker.hold("stored")
    desk = await world.desk(worker, http_port=0)
    inline, follower = desk.follow(), desk.follow(delivery=DELIVERY_URL)
    await inline.media()  # the gateway has it
    await worker.die()
    media = await follower.media()
    assert (True, 1) == (bool(media.url), worker.generations)
