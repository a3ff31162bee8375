"""A home that leaves a run to another worker: the gateway goes there, and equal requests meet whoever sent them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from gateway import workers as module
from reprise.v1.inference_pb2 import StatusResponse
from tests.gateway import worker as scripted
from tests.gateway.worker import Refusal, ScriptedWorker, family
from tests.gateway.world import World, ask, eventually, kinds, outcome, problem_of


async def idle_workers(world: World, count: int) -> list[ScriptedWorker]:
    """Workers that say they have nothing to do, and leave what is new to the first other one that a plan names."""
    workers = [await world.worker() for _ in range(count)]
    for worker in workers:
        worker.queued = lambda stream: 0
        worker.hands_over = True
    return workers


async def home_of(workers: Sequence[ScriptedWorker]) -> ScriptedWorker:
    """The worker that was asked first."""

    async def look() -> ScriptedWorker | None:
        return next((worker for worker in workers if worker.requests and not worker.requests[0].must_run), None)

    home = await eventually(look)
    assert home is not None
    return home


async def _now(value: object) -> bool:
    return bool(value)


def generations(workers: Sequence[ScriptedWorker]) -> int:
    return sum(worker.generations for worker in workers)


async def test_a_run_goes_where_its_home_says(world: World) -> None:
    """One stream without a gap, one generation, and the trace says who had it; the home hears when it is over."""
    workers = await idle_workers(world, 2)
    desk = await world.desk(*workers)
    follower = desk.follow()
    media = await follower.media()
    assert "durable" == await desk.stored(media)
    home = await home_of(workers)
    (other,) = [worker for worker in workers if worker is not home]

    assert ("miss", 1) == (outcome(media), other.generations)
    assert (1, 1, 0) == (len(home.requests), len(other.requests), home.generations)
    assert ([other.address], False) == (list(home.requests[0].idle), home.requests[0].must_run)
    assert ([], True) == (list(other.requests[0].idle), other.requests[0].must_run)
    assert home.requests[0].follower != other.requests[0].follower
    assert list(range(1, len(follower.events) + 1)) == [event.sequence for event in follower.events]
    assert ["chunk", "result"] == kinds(follower.events)[-2:]

    async def told() -> list[tuple[object, object]]:
        spans = [span.attributes or {} for span in desk.spans if span.name == "reprise.worker"]
        return [(each.get("server.address"), each.get("reprise.worker.elsewhere")) for each in spans]

    spans = await eventually(told, wanted=lambda spans: len(spans) == 2)
    assert {(home.address, other.address), (other.address, None)} == set(spans)
    (note,) = home.notes._notes.values()
    await eventually(lambda: _now(note.closed))


async def test_two_gateways_that_disagree_on_who_is_idle_meet(world: World) -> None:
    """Each names another worker; both end where the home sent the first, and both see its progress."""
    workers = await idle_workers(world, 3)
    probe = await world.desk(*workers)
    await probe.stored(await probe.animate("a probe"))
    home = await home_of(workers)
    one, two = [worker for worker in workers if worker is not home]
    for worker in workers:
        worker.requests.clear()
    one.queued, two.queued = (lambda stream: 9 * (stream != 1)), (lambda stream: 9 * (stream != 2))
    first, second = await world.desk(*workers), await world.desk(*workers)
    gates = [worker.hold("step") for worker in workers]
    followers = [first.follow()]
    await followers[0].seen("queued")
    followers += [second.follow(), first.follow(), second.follow()]
    await asyncio.gather(*(follower.seen("queued") for follower in followers))
    named = [list(request.idle) for request in home.requests]
    for gate in gates:
        gate.open()
    media = [await follower.media() for follower in followers]

    assert [[one.address], [two.address]] == named
    assert (2, 0) == (len(one.requests), len(two.requests))
    assert 2 == generations(workers)  # one of them the probe
    assert 1 == len({each.data for each in media})
    assert all({"progress", "preview"} <= set(kinds(follower.events)) for follower in followers)


async def test_who_knows_nobody_idle_is_sent_along(world: World) -> None:
    """A gateway that thinks everybody is busy still meets what another one began elsewhere."""
    workers = await idle_workers(world, 2)
    for worker in workers:
        worker.queued = lambda stream: 9 * (stream != 0)
    first, second = await world.desk(*workers), await world.desk(*workers)
    gates = [worker.hold("step") for worker in workers]
    leader = first.follow()
    await leader.seen("queued")
    joiner = second.follow()
    await joiner.seen("queued")
    for gate in gates:
        gate.open()
    assert ["miss", "coalesced"] == [outcome(await follower.media()) for follower in (leader, joiner)]
    home = await home_of(workers)
    assert [1, 0] == [len(request.idle) for request in home.requests]
    assert 1 == generations(workers)


@pytest.mark.parametrize(
    "refusal",
    [scripted.UNAVAILABLE, scripted.QUEUE_FULL, scripted.PLAN_DIFFERS],
    ids=["unavailable", "queue full", "plan differs"],
)
async def test_a_run_that_the_other_worker_refuses_comes_home(world: World, refusal: Refusal) -> None:
    """The home must run it then, and does."""
    workers = await idle_workers(world, 2)
    desk = await world.desk(*workers)
    for worker in workers:
        gate = worker.hold("refuse")
        gate.open()
    home = await home_of_next(world, workers)
    (other,) = [worker for worker in workers if worker is not home]
    other.refusals = [refusal]
    media = await desk.animate()

    assert "miss" == outcome(media)
    assert [False, True] == [request.must_run for request in home.requests]
    assert (1, 0) == (home.generations, other.generations)


async def home_of_next(world: World, workers: Sequence[ScriptedWorker]) -> ScriptedWorker:
    """Who is asked first for requests on the usual picture; what was learned leaves no trace."""
    desk = await world.desk(*workers)
    await desk.stored(await desk.animate("a probe", policy={"mode": 3, "no_store": True}))
    home = await home_of(workers)
    for worker in workers:
        worker.requests.clear()
        worker.generations = 0
    await desk.close()
    return home


@pytest.mark.parametrize("when", ["before it began", "in the middle"])
async def test_a_run_whose_other_worker_dies_comes_home(world: World, when: str) -> None:
    """Through both gateways; it is generated once more, and nobody sees an error."""
    workers = await idle_workers(world, 2)
    home = await home_of_next(world, workers)
    (other,) = [worker for worker in workers if worker is not home]
    first, second = await world.desk(*workers), await world.desk(*workers)
    gate = other.hold("begin" if when == "before it began" else "step")
    followers = [first.follow(), second.follow()]
    await eventually(lambda: _now(other.following == 2))
    await gate.reached.wait()
    await other.die()
    media = [await follower.media() for follower in followers]

    assert ["coalesced", "miss"] == sorted(outcome(each) for each in media)
    assert 1 == len({each.data for each in media})
    assert (1, 0) == (home.generations, other.generations)
    assert 2 == sum(request.must_run for request in home.requests)


async def test_a_run_whose_other_worker_hangs_comes_home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its silence, while its connection still stands."""
    monkeypatch.setattr(module, "_SIGN_OF_LIFE", 0.5)
    workers = await idle_workers(world, 2)
    for worker in workers:
        worker.speaks_every = 0.05
    home = await home_of_next(world, workers)
    (other,) = [worker for worker in workers if worker is not home]
    desk = await world.desk(*workers)
    other.hold("step")
    follower = desk.follow()
    await follower.seen("queued")
    other.speaks_every = None
    assert "miss" == outcome(await follower.media())
    assert (1, 0) == (home.generations, other.generations)
    assert [False, True] == [request.must_run for request in home.requests]


async def test_a_run_elsewhere_does_not_need_its_home(world: World) -> None:
    """The home dies meanwhile: the run goes on, and the caller hears nothing of it."""
    workers = await idle_workers(world, 2)
    desk = await world.desk(*workers)
    home = await home_of_next(world, workers)
    (other,) = [worker for worker in workers if worker is not home]
    gate = other.hold("step")
    follower = desk.follow()
    await follower.seen("queued")
    await home.die()
    await desk.sees(1)
    gate.open()

    media = await follower.media()
    assert ("miss", "durable") == (outcome(media), await desk.stored(media))
    assert (1, 1) == (len(other.requests), other.generations)


async def test_with_both_gone_another_one_does_it(world: World) -> None:
    """First the worker that had the run, then its home: a third one is left."""
    workers = await idle_workers(world, 3)
    home = await home_of_next(world, workers)
    desk = await world.desk(*workers)
    gates = {worker.address: worker.hold("step") for worker in workers}
    follower = desk.follow()
    await follower.seen("queued")
    other = next(worker for worker in workers if worker.requests and worker is not home)
    (third,) = [worker for worker in workers if worker not in (home, other)]
    third.hands_over = False
    gates[third.address].open()
    await other.die()
    await gates[home.address].reached.wait()
    await home.die()

    assert "miss" == outcome(await follower.media())
    assert 1 == generations(workers) == third.generations


async def test_a_worker_this_gateway_does_not_know_is_not_gone_to(world: World) -> None:
    """The home has it then, although it had left it to that worker for somebody else."""
    workers = await idle_workers(world, 2)
    home = await home_of_next(world, workers)
    (other,) = [worker for worker in workers if worker is not home]
    both, one = await world.desk(*workers), await world.desk(home)
    gate = other.hold("step")
    there = both.follow()
    await there.seen("queued")
    here = await one.animate()
    gate.open()

    assert here.data == (await there.media()).data
    assert [False, False, True] == [request.must_run for request in home.requests]


async def test_pixels_are_sent_along_when_they_are_needed(world: World) -> None:
    """The other worker cannot read the stored encoding: the plan goes the same way again, with the pixels."""
    workers = await idle_workers(world, 2)
    home = await home_of_next(world, workers)
    (other,) = [worker for worker in workers if worker is not home]
    first = await world.desk(*workers)
    await first.stored(await first.animate())
    desk = await world.desk(*workers)
    other.refusals = [scripted.MEDIA_NEEDED]
    media = await desk.animate("a dog")

    assert "miss" == outcome(media)
    assert [b"", b""] == [bytes(each.requests[1].pictures["image"].rgb) for each in (home, other)]
    assert [16 * 16 * 3] * 2 == [len(each.requests[2].pictures["image"].rgb) for each in (home, other)]


async def test_what_the_other_worker_says_of_the_request_is_final(world: World) -> None:
    """A bad input is as bad at home: nobody is asked again."""
    workers = await idle_workers(world, 2)
    home = await home_of_next(world, workers)
    (other,) = [worker for worker in workers if worker is not home]
    desk = await world.desk(*workers)
    gate = other.hold("refuse")
    gate.open()
    other.refusals = [scripted.BAD_FRAMES]
    problem = await problem_of(desk.client.animate(ask()))
    assert (grpc.StatusCode.INVALID_ARGUMENT, "num_frames") == (problem.code, problem.field)
    assert (1, 1) == (len(home.requests), len(other.requests))


async def test_a_caller_that_cancels_is_heard_where_the_run_is(world: World) -> None:
    """The worker that has it is told; the home's stream, which was open until then, is closed."""
    workers = await idle_workers(world, 2)
    home = await home_of_next(world, workers)
    (other,) = [worker for worker in workers if worker is not home]
    desk = await world.desk(*workers)
    other.hold("step")
    follower = desk.follow()
    await follower.seen("queued")
    (note,) = [note for note in home.notes._notes.values() if note.streams]
    await desk.client.cancel(await follower.name())
    assert "CANCELLED_BY_CALLER" == (await problem_of(follower.task)).reason

    await eventually(lambda: _now(other.abandoned))
    assert ([other.requests[0].follower], []) == (other.abandoned, home.abandoned)
    await eventually(lambda: _now(note.closed))


async def test_only_those_that_could_begin_at_once_are_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the home, not the busy, not those that drain or serve another revision, and no more than a few."""
    monkeypatch.setattr(module, "_IDLE_NAMED", 2)
    workers = await idle_workers(world, 7)
    home = await home_of_next(world, workers)
    others = [worker for worker in workers if worker is not home]
    home.hands_over = False
    busy, draining, other, *idle = others
    busy.queued = lambda stream: 1
    busy.say(StatusResponse.STATE_READY)
    draining.say(StatusResponse.STATE_DRAINING)
    other.descriptions = {"small": family(revision="r2")}
    desk = await world.desk(*(worker.address for worker in workers), revisions={"small": "r1"})
    await desk.sees(6)
    await desk.animate()
    named = list(home.requests[0].idle)
    assert 2 == len(named) == len(set(named) & {worker.address for worker in idle})
