"""The fleet: who is there, and which worker is a plan's home."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import workers as module
from gateway.workers import Fleet, Worker
from reprise.v1.inference_pb2 import StatusResponse
from tests.gateway.worker import family
from tests.gateway.world import World, eventually, kinds, outcome

READY = StatusResponse(state=StatusResponse.STATE_READY)
ADDRESSES = [f"127.0.0.1:{port}" for port in range(1, 8)]  # nobody listens there
AFFINITIES = [f"{number:064x}" for number in range(300)]


@asynccontextmanager
async def fleet_of(addresses: Sequence[str]) -> AsyncIterator[Fleet]:
    """A fleet whose workers are all healthy until control is given back to the loop."""
    async with Fleet(addresses) as fleet:
        for worker in fleet.workers:
            worker.status, worker.descriptions = READY, {"small": family()}
        yield fleet


def homes(fleet: Fleet, *, without: Sequence[Worker] = ()) -> dict[str, str]:
    found = {affinity: fleet.home("small", "r1", affinity, without=without) for affinity in AFFINITIES}
    return {affinity: worker.address for affinity, worker in found.items() if worker is not None}


# Homes.


async def test_every_gateway_finds_the_same_home() -> None:
    """Whatever the order in which it was told of the workers."""
    async with fleet_of(ADDRESSES) as one:
        expected = homes(one)
    async with fleet_of(ADDRESSES[::-1]) as other:
        assert expected == homes(other)
    assert set(ADDRESSES) == set(expected.values())


async def test_homes_are_spread_evenly() -> None:
    """Each of seven workers is home of its share of 300 affinities, give or take half."""
    async with fleet_of(ADDRESSES) as fleet:
        counts = [list(homes(fleet).values()).count(address) for address in ADDRESSES]
    assert all(300 / 7 / 2 < count < 300 / 7 * 1.5 for count in counts)


@pytest.mark.parametrize("gone", ADDRESSES)
async def test_a_worker_that_goes_moves_only_its_own(gone: str) -> None:
    """All other affinities stay where they are; its own are spread over the rest, and come back with it."""
    async with fleet_of(ADDRESSES) as fleet:
        before = homes(fleet)
        lost = next(worker for worker in fleet.workers if worker.address == gone)
        lost.status = None
        after = homes(fleet)
        avoided = homes(fleet, without=[lost])
        lost.status = READY
        again = homes(fleet)
    assert {a: home for a, home in before.items() if home != gone} == {a: after[a] for a in before if before[a] != gone}
    assert 1 < len({after[a] for a in before if before[a] == gone})
    assert (after, before) == (avoided, again)


async def test_only_healthy_workers_of_the_revision_are_homes() -> None:
    """Not one that loads or drains, nor one that serves another model or revision."""
    async with fleet_of(ADDRESSES[:4]) as fleet:
        loading, draining, other, right = fleet.workers
        loading.status = StatusResponse(state=StatusResponse.STATE_LOADING)
        draining.status = StatusResponse(state=StatusResponse.STATE_DRAINING)
        other.descriptions = {"small": family(revision="r2"), "else": family("else")}
        assert {right.address} == set(homes(fleet).values())
        assert fleet.home("small", "r2", AFFINITIES[0]) is other
        assert fleet.home("small", "r3", AFFINITIES[0]) is None
        assert {"small", "else"} == fleet.models()


async def test_the_idle_are_named_in_the_order_of_homes() -> None:
    """Who would be the next home comes first; not those that are busy or have a queue, nor those that do not serve."""
    async with fleet_of(ADDRESSES) as fleet:
        home = fleet.home("small", "r1", AFFINITIES[0])
        assert home is not None
        order = fleet.idle("small", "r1", AFFINITIES[0], without=[home])
        avoided, following = [home], []
        while (following_home := fleet.home("small", "r1", AFFINITIES[0], without=avoided)) is not None:
            avoided.append(following_home)
            following.append(following_home.address)
        assert following == order
        first, second, third, *others = (worker for worker in avoided[1:])
        first.status = StatusResponse(state=StatusResponse.STATE_READY, busy=True)
        second.status = StatusResponse(state=StatusResponse.STATE_READY, queued=1)
        third.descriptions = {"small": family(revision="r2")}
        expected = [worker.address for worker in others]
        assert expected == fleet.idle("small", "r1", AFFINITIES[0], without=[home])


@settings(deadline=None)  # opens two fleets
@given(st.lists(st.sampled_from(ADDRESSES), min_size=1, unique=True), st.text(max_size=20))
def test_a_home_is_the_same_among_any_that_include_it(addresses: list[str], affinity: str) -> None:
    """The home among all is the home among any of them that it belongs to."""

    async def check() -> None:
        async with fleet_of(ADDRESSES) as everybody:
            home = everybody.home("small", "r1", affinity)
        async with fleet_of(addresses) as some:
            chosen = some.home("small", "r1", affinity)
        assert home is not None
        assert chosen is not None
        assert home.address not in addresses or home.address == chosen.address

    asyncio.run(check())


async def test_the_newest_workers_description_counts() -> None:
    """The one that started last, among the healthy, of the wanted revision."""
    async with fleet_of(ADDRESSES[:3]) as fleet:
        for number, worker in enumerate(fleet.workers):
            worker.started_at, worker.descriptions = float(number), {"small": family(revision=f"r{number}")}
        newest = fleet.newest_description("small")
        assert newest is not None
        assert "r2" == newest.revision
        fleet.workers[2].status = None
        newest = fleet.newest_description("small")
        assert newest is not None
        assert "r1" == newest.revision
        pinned = fleet.newest_description("small", "r0")
        assert pinned is not None
        assert "r0" == pinned.revision
        assert fleet.newest_description("small", "r2") is None
        assert fleet.newest_description("large") is None


# Signs of life.


async def test_silence_is_death(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose status stream says nothing for too long is not healthy, until it speaks again."""
    monkeypatch.setattr(module, "_SIGN_OF_LIFE", 0.05)
    worker = await world.worker()
    seen: list[bool] = []
    async with Fleet([worker.address]) as fleet, asyncio.timeout(10):
        while seen != [True, False, True]:
            await fleet.changed.wait()
            (healthy,) = [each.healthy for each in fleet.workers]
            if seen[-1:] != [healthy]:
                seen.append(healthy)
    assert worker.described >= 2


async def test_a_worker_that_hangs_in_a_run_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a sign of life its run is given to another worker; the caller sees one stream and no error."""
    monkeypatch.setattr(module, "_SIGN_OF_LIFE", 0.5)
    workers = [await world.worker() for _ in range(2)]
    for worker in workers:
        worker.speaks_every = 0.05
    gates = [worker.hold("step") for worker in workers]
    desk = await world.desk(*workers)
    follower = desk.follow()
    await follower.seen("queued")
    hung = next(index for index, worker in enumerate(workers) if worker.requests)
    workers[hung].speaks_every = None
    await eventually(lambda: _now(workers[1 - hung].requests))
    gates[1 - hung].open()

    assert "miss" == outcome(await follower.media())
    assert (0, 1) == (workers[hung].generations, workers[1 - hung].generations)


async def test_requests_of_one_picture_meet_on_one_worker(world: World) -> None:
    """With another prompt, and from another gateway."""
    workers = [await world.worker() for _ in range(3)]
    for prompt in ("a cat", "a dog", "a bird"):
        desk = await world.desk(*workers)
        await desk.animate(prompt)
    assert [0, 0, 3] == sorted(len(worker.requests) for worker in workers)


# Names.


async def test_all_addresses_behind_a_name_are_workers(world: World) -> None:
    """`dns:///localhost:port` finds the worker that listens there."""
    worker = await world.worker()
    desk = await world.desk(f"dns:///localhost:{worker.address.rpartition(':')[2]}")
    await desk.sees(1)
    assert "miss" == outcome(await desk.animate())


async def test_a_worker_that_left_its_name_finishes_what_it_has(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs go on to the end and are stored; nothing new goes there."""
    known: dict[str, list[str] | None] = {}

    async def resolve(name: str) -> list[str] | None:
        return known[name]

    monkeypatch.setattr(module, "resolve", resolve)
    monkeypatch.setattr(module, "_RESOLVE_EVERY", 0.01)
    leaving, staying = await world.worker(), await world.worker()
    gate = leaving.hold("step")
    known["dns:///workers:1"] = [leaving.address]
    desk = await world.desk("dns:///workers:1")
    await desk.sees(1)
    follower = desk.follow()
    await follower.seen("queued")
    known["dns:///workers:1"] = [staying.address]
    await eventually(lambda: _now(staying.described))
    await desk.sees(1)
    assert "miss" == outcome(await desk.animate("a dog"))
    gate.open()

    media = await follower.media()
    assert ("miss", "durable") == (outcome(media), await desk.stored(media))
    assert ["chunk", "result"] == kinds(follower.events)[-2:]
    assert (1, 1) == (len(leaving.requests), len(staying.requests))


async def test_a_name_that_cannot_be_resolved_now_keeps_its_workers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that fails for a while takes nobody out."""
    worker = await world.worker()
    answers: list[list[str] | None] = [[worker.address]]
    asked = 0

    async def resolve(name: str) -> list[str] | None:
        nonlocal asked
        asked += 1
        return answers.pop() if answers else None

    monkeypatch.setattr(module, "resolve", resolve)
    monkeypatch.setattr(module, "_RESOLVE_EVERY", 0.001)
    async with Fleet(["dns:///workers:1"]) as fleet, asyncio.timeout(10):
        await eventually(lambda: _now(asked >= 5))
        assert [worker.address] == [each.address for each in fleet.workers]


async def _now(value: object) -> bool:
    return bool(value)


async def test_an_unknown_name_is_no_error() -> None:
    """It stands for nobody yet."""
    assert await module.resolve("dns:///nowhere.invalid:1") is None
    assert ["127.0.0.1:5"] == await module.resolve("127.0.0.1:5")
