"""Requests that workers die of: nothing kills more than two, and nobody else is held to account for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from operator import eq

import grpc
import pytest
from prometheus_client import CollectorRegistry

from cache.bans import Bans
from cache.keys import Address
from cache.orders import Orders
from cache.switches import Switches
from gateway import workers as fleet
from gateway.errors import Quarantined
from gateway.quarantine import Quarantine
from gateway.workers import Worker
from reprise.v1.inference_pb2 import StatusResponse
from tests.cache.helpers import NOW, SECRET, Clock
from tests.gateway.worker import Gate, ScriptedWorker
from tests.gateway.world import Desk, Follower, World, ask, eventually, outcome, problem_of

ONE, TWO = (Address("0" * 32, digit * 64) for digit in "12")


async def three_workers(world: World) -> tuple[list[ScriptedWorker], list[Gate]]:
    """All of them stop before the first step, at which their run has the device."""
    workers = [await world.worker() for _ in range(3)]
    return workers, [worker.hold("step") for worker in workers]


async def has_begun(gates: list[Gate], *, tries: int) -> None:
    """The last of so many tries has come to a worker."""

    async def tried() -> int:
        return sum(gate.reached.is_set() for gate in gates)

    await eventually(tried, wanted=lambda count: count == tries)


async def known(desk: Desk) -> None:
    """The gateway has heard that its run has the device."""

    async def goes_on() -> bool:
        return any(flight.goes_on for flight in desk.gateway._flights)

    await eventually(goes_on)


async def dies_of_it(workers: list[ScriptedWorker], gates: list[Gate], *, tries: int) -> None:
    """The worker that the last of so many tries has come to dies while it runs there."""

    await has_begun(gates, tries=tries)
    reached = [worker for worker, gate in zip(workers, gates, strict=True) if gate.reached.is_set()]
    (last,) = [worker for worker in reached if not worker.dead]
    await last.die()


async def killer(desk: Desk, workers: list[ScriptedWorker], gates: list[Gate]) -> Follower:
    """A request that two of them have died of."""
    follower = desk.follow()
    for tries in (1, 2):
        await dies_of_it(workers, gates, tries=tries)
    return follower


async def test_what_two_workers_died_of_is_not_tried_at_a_third(world: World) -> None:
    """Its caller is told, in the words of the contract; so is who asks again, here or at another gateway, at once."""
    workers, gates = await three_workers(world)
    desk, other = await world.desk(*workers), await world.desk(*workers)
    problem = await problem_of((await killer(desk, workers, gates)).media())
    (alive,) = [worker for worker in workers if not worker.dead]

    async def told() -> float:
        return await other.metric("reprise_quarantined")

    await eventually(told, wanted=lambda count: count == 1)
    again = [await problem_of(each.client.animate(ask())) for each in (desk, other)]
    assert {(grpc.StatusCode.FAILED_PRECONDITION, "QUARANTINED", None)} == {
        (each.code, each.reason, each.retry_after) for each in (problem, *again)
    }
    assert "for 600 s: change the request" in problem.message
    assert [] == alive.requests


async def test_everything_else_is_run_by_who_is_left(world: World) -> None:
    """Another request for the same picture, which has the same home."""
    workers, gates = await three_workers(world)
    desk = await world.desk(*workers)
    await problem_of((await killer(desk, workers, gates)).media())
    for gate in gates:
        gate.open()
    assert "miss" == outcome(await desk.animate("a dog"))


async def test_what_waited_for_the_device_is_not_held_to_account(world: World) -> None:
    """Of two runs at a worker that dies, only the one that had its device may be why."""
    workers, gates = await three_workers(world)
    for worker in workers:
        worker.line_up(8)
    desk = await world.desk(*workers)
    running = desk.follow()
    await has_begun(gates, tries=1)
    waiting = desk.follow("a dog")
    await waiting.seen("queued")
    await dies_of_it(workers, gates, tries=1)
    for gate in gates:
        gate.open()
    assert ["miss", "miss"] == [outcome(await each.media()) for each in (running, waiting)]
    assert 1 == await desk.metric("reprise_runs_lost_total")


async def test_a_new_gateway_knows_what_is_set_apart(world: World) -> None:
    """It stands in the book of orders."""
    workers, gates = await three_workers(world)
    desk = await world.desk(*workers)
    await problem_of((await killer(desk, workers, gates)).media())
    (alive,) = [worker for worker in workers if not worker.dead]

    async def written() -> list[str]:
        tiers = await world.tiers(world.cache)
        assert tiers.objects is not None
        return await tiers.objects.names("o/")

    await eventually(written, wanted=lambda names: len(names) == 2)
    late = await world.desk(alive)
    assert "QUARANTINED" == (await problem_of(late.client.animate(ask()))).reason
    assert [] == alive.requests


async def test_what_is_cached_is_served_though_workers_died_of_it(world: World) -> None:
    """As when it is made anew on purpose."""
    workers, gates = await three_workers(world)
    for gate in gates:
        gate.open()
    desk = await world.desk(*workers)
    await desk.stored(await desk.animate())
    gates = [worker.hold("step") for worker in workers]
    for worker in workers:
        worker.requests.clear()
    anew = desk.follow(policy={"mode": "MODE_REFRESH"})
    for tries in (1, 2):
        await dies_of_it(workers, gates, tries=tries)
    assert "QUARANTINED" == (await problem_of(anew.media())).reason
    assert "hit from L1" == outcome(await desk.animate())


async def test_what_workers_die_of_is_set_apart_though_its_callers_have_left(world: World) -> None:
    """They had less patience than it takes to die of it; each comes back, and one day there would be no worker."""
    workers, gates = await three_workers(world)
    desk = await world.desk(*workers)
    for tries in (1, 2):
        impatient = desk.follow()
        await has_begun(gates, tries=tries)
        await known(desk)
        await impatient.leave()
        await dies_of_it(workers, gates, tries=tries)

        async def lost() -> float:
            return await desk.metric("reprise_runs_lost_total")

        await eventually(lost, wanted=partial(eq, tries))
    assert "QUARANTINED" == (await problem_of(desk.client.animate(ask()))).reason
    assert 2 == sum(worker.dead for worker in workers)


async def test_a_run_that_lost_its_worker_is_not_begun_again_for_nobody(world: World) -> None:
    """The grace is over, here at once, and nobody has come back."""
    workers, gates = await three_workers(world)
    desk = await world.desk(*workers)
    follower = desk.follow()
    await has_begun(gates, tries=1)
    await known(desk)
    await follower.leave()
    await dies_of_it(workers, gates, tries=1)

    async def under_way() -> int:
        return len(desk.gateway._flights)

    await eventually(under_way, wanted=lambda count: count == 0)
    assert 1 == sum(gate.reached.is_set() for gate in gates)


async def test_what_dies_before_it_has_begun_is_accused_by_nobody_and_does_not_go_on(world: World) -> None:
    """It may be anything that was there: its callers are told to ask again, and are served when they do."""
    workers, _ = await three_workers(world)
    desk = await world.desk(*workers)
    arrived = [worker.hold("arrived") for worker in workers]
    follower = desk.follow()
    for tries in (1, 2):
        await dies_of_it(workers, arrived, tries=tries)
    problem = await problem_of(follower.media())
    assert (grpc.StatusCode.UNAVAILABLE, "WORKERS_DIED", 2.0) == (problem.code, problem.reason, problem.retry_after)
    (alive,) = [worker for worker in workers if not worker.dead]
    for gate in (alive.hold("arrived"), alive.hold("step")):
        gate.open()
    assert "miss" == outcome(await desk.animate())
    assert 0 == await desk.metric("reprise_runs_lost_total")


# Who is held to have died.


@asynccontextmanager
async def watched(worker: ScriptedWorker) -> AsyncIterator[Worker]:
    """What a gateway knows of it, once it is ready."""
    seen = Worker(worker.address, lambda: None)
    try:

        async def ready() -> bool:
            return seen.healthy

        await eventually(ready)
        yield seen
    finally:
        await seen.aclose()


async def test_a_worker_that_answers_as_before_has_not_died(world: World) -> None:
    """Streams also end because a connection does."""
    worker = await world.worker()
    async with watched(worker) as seen:
        assert not await seen.has_died(seen.process)


async def test_a_worker_that_is_gone_or_another_one_has_died(world: World) -> None:
    """Nobody listens there any more; or somebody does who started later."""
    worker = await world.worker()
    async with watched(worker) as seen:
        process = seen.process
        worker.started_at += 1
        assert await seen.has_died(process)
        await worker.die()
        assert await seen.has_died(process)


async def test_a_worker_that_said_it_would_go_has_not_died(world: World) -> None:
    """However it ended then: its supervisor may have lost patience."""
    worker = await world.worker()
    async with watched(worker) as seen:
        worker.say(StatusResponse.STATE_DRAINING)

        async def heard() -> bool:
            return not seen.healthy

        await eventually(heard)
        await worker.die()
        assert not await seen.has_died(seen.process)


async def test_a_question_that_is_lost_with_the_connection_is_asked_again(world: World) -> None:
    """It was on its way when the worker died, and says nothing of that."""
    worker = await world.worker()
    async with watched(worker) as seen:
        await worker.die()
        host, _, port = worker.address.partition(":")
        lost = asyncio.Event()

        def lose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()
            lost.set()

        between = await asyncio.start_server(lose, host, int(port))
        asking = asyncio.create_task(seen.has_died(seen.process))
        await lost.wait()
        between.close()
        assert await asking


async def test_a_worker_that_cannot_be_reached_may_live(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in between takes connections, and passes nothing on."""
    monkeypatch.setattr(fleet, "_ASKED_AGAIN", 0.0)
    worker = await world.worker()
    async with watched(worker) as seen:
        await worker.die()
        host, _, port = worker.address.partition(":")
        between = await asyncio.start_server(lambda reader, writer: writer.close(), host, int(port))
        async with between:
            assert not await seen.has_died(seen.process)


async def test_of_a_worker_that_is_silent_nobody_knows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may live behind a network that is cut."""
    monkeypatch.setattr(fleet, "_ANSWERS_WITHIN", 0.05)
    worker = await world.worker()
    async with watched(worker) as seen:
        worker.hold("describe")
        assert not await seen.has_died(seen.process)


# For how long.


def quarantine(orders: Orders, clock: Clock, seconds: float) -> Quarantine:
    return Quarantine(orders, CollectorRegistry(), seconds=seconds, clock=clock)


@asynccontextmanager
async def alone(clock: Clock) -> AsyncIterator[Orders]:
    async with Orders(
        None, None, process="one", secret=SECRET, bans=Bans(), switches=Switches(), clock=clock
    ) as orders:
        yield orders


async def test_it_is_tried_again_once_the_first_crash_is_over() -> None:
    """Until then its caller is told how long that takes; anything else is not refused."""
    clock = Clock(NOW)
    async with alone(clock) as orders:
        apart = quarantine(orders, clock, 600.0)
        apart.suspect(ONE, "a")
        apart.check(ONE)
        clock.now += 100.0
        apart.suspect(ONE, "b")
        apart.check(TWO)
        with pytest.raises(Quarantined) as caught:
            apart.check(ONE)
        assert {"seconds_left": "500"} == caught.value.metadata
        clock.now += 500.0
        apart.check(ONE)


async def test_without_a_time_nothing_is_set_apart() -> None:
    clock = Clock(NOW)
    async with alone(clock) as orders:
        off = quarantine(orders, clock, 0.0)
        off.suspect(ONE, "a")
        off.suspect(ONE, "b")
        off.check(ONE)
