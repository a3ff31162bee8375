"""Pressure: what is given up where memory runs short, in which order, and that it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from cache.keys import Key
from cache.memory import MemoryTier
from gateway.errors import Overloaded
from gateway.pressure import EVERY, Level, Pressure, level_at
from reprise.v1 import media_pb2 as media
from tests.cache.helpers import address_of
from tests.gateway.world import Desk, World, eventually, outcome, picture, problem_of

MAX = 1000


class Machine:
    """The memory of a process, in our hands: a base, what L1 holds, and what was freed and not given back."""

    def __init__(self, base: int = 0) -> None:
        self.base = base
        self.kept = 0
        self.memory = MemoryTier(max_bytes=10_000_000)
        self.trims = 0
        self.failing = False
        self._before = 0
        self._steps = asyncio.Event()
        self._looks = asyncio.Event()

    def hold(self, *names: str, weight: int = 100) -> None:
        """Entries of so many bytes, bookkeeping included; the first one is the least valuable."""
        for cost, name in enumerate(names):
            self.memory.entries.put(Key.of_record(address_of(name)), name, weight=weight, now=0, ttl=10.0, cost=cost)

    @property
    def names(self) -> list[str]:
        return sorted(name for _, name in self.memory.entries.items())

    def resident(self) -> int:
        if self.failing:
            raise ValueError
        self._free()
        return self.base + self.kept + self.memory.entries.bytes

    def give_back(self) -> None:
        self._free()
        self.trims += 1
        self.kept = 0

    def _free(self) -> None:
        held = self.memory.entries.bytes
        self.kept += max(0, self._before - held)
        self._before = held

    async def sleep(self, seconds: float) -> None:
        assert seconds == EVERY
        self._looks.set()
        await self._steps.wait()
        self._steps.clear()

    async def look(self) -> None:
        """It has looked once more."""
        await self._looks.wait()
        self._looks.clear()
        self._steps.set()
        await self._looks.wait()

    def pressure(self, max_bytes: int | None = MAX) -> Pressure:
        return Pressure(self.memory, max_bytes, resident=self.resident, give_back=self.give_back, sleep=self.sleep)


@pytest.mark.parametrize(
    ("shares", "levels"),
    [
        ([0.0, 0.84, 0.85, 0.92, 0.95, 2.0], [0, 0, 1, 2, 3, 3]),
        ([0.95, 0.93, 0.919, 0.90, 0.889, 0.83, 0.819], [3, 3, 2, 2, 1, 1, 0]),
        ([0.90, 0.84, 0.83, 0.85, 0.82, 0.81, 0.84], [1, 1, 1, 1, 1, 0, 0]),
        ([0.96, 0.5], [3, 0]),
    ],
)
def test_a_step_is_taken_back_a_little_below_where_it_began(shares: list[float], levels: list[int]) -> None:
    level, seen = Level.NONE, []
    for share in shares:
        level = level_at(share, level)
        seen.append(int(level))

    assert levels == seen


async def test_what_is_free_is_given_back_before_anything_is_given_up() -> None:
    machine = Machine(base=400)
    machine.hold("a", "b")
    machine.kept = 350
    async with machine.pressure() as pressure:
        await machine.look()
        assert (600, Level.NONE) == (pressure.bytes, pressure.level)
    assert (["a", "b"], 0) == (machine.names, machine.kept)


async def test_entries_of_least_value_are_given_up_until_it_is_below() -> None:
    """As many as it takes to be a little below, and what they took goes back to the system."""
    machine = Machine(base=410)
    machine.hold("a", "b", "c", "d", "e")
    async with machine.pressure() as pressure:
        await machine.look()
        assert (["b", "c", "d", "e"], 810, Level.NONE) == (machine.names, pressure.bytes, pressure.level)
        trims = machine.trims
        machine.hold("f", weight=30)
        await machine.look()
        assert (5, trims) == (len(machine.names), machine.trims)  # below 85 % nothing is done


async def test_where_nothing_is_left_to_give_up_it_is_not_tried_again_and_again() -> None:
    """But as soon as there is more than there was."""
    machine = Machine(base=930)
    async with machine.pressure() as pressure:
        await machine.look()
        trims = machine.trims
        await machine.look()
        assert (Level.HITS, trims) == (pressure.level, machine.trims)
        machine.kept = 11
        await machine.look()
        assert (Level.HITS, 0) == (pressure.level, machine.kept)


async def test_who_is_refused_what_at_which_level() -> None:
    machine = Machine()
    async with machine.pressure() as pressure:
        for base, work, anything in ((900, True, True), (925, False, True), (955, False, False), (100, True, True)):
            machine.base = base
            await machine.look()
            assert (work, anything) == (_admits(pressure.admit_work), _admits(pressure.admit_anything))


def _admits(ask: Callable[[], None]) -> bool:
    try:
        ask()
    except Overloaded:
        return False
    return True


async def test_a_look_that_fails_refuses_nobody() -> None:
    """It is looked again."""
    machine = Machine(base=990)
    async with machine.pressure() as pressure:
        levels = list[Level]()
        for machine.failing in (False, True, False):
            await machine.look()
            levels.append(pressure.level)
        assert [Level.NOTHING, Level.NONE, Level.NOTHING] == levels


async def test_where_nobody_knows_what_there_may_be_nothing_is_done() -> None:
    """Nothing is watched; metrics say so."""
    machine, registry, before = Machine(base=10**12), CollectorRegistry(), asyncio.all_tasks()
    async with machine.pressure(None) as pressure:
        pressure.watch(registry)
        assert before == asyncio.all_tasks()
        pressure.admit_anything()
    assert (0, 0) == (
        registry.get_sample_value("reprise_memory_max_bytes"),
        registry.get_sample_value("reprise_memory_pressure"),
    )


# A real gateway.


class Short:
    """How much memory the gateways of a test have, which they look at all the time."""

    def __init__(self) -> None:
        self.share = 0.1

    def pressure(self, memory: MemoryTier, max_bytes: int | None) -> Pressure:
        return Pressure(memory, MAX, resident=self._resident, give_back=lambda: None, sleep=partial(_soon))

    def _resident(self) -> int:
        return round(self.share * MAX)

    async def at(self, share: float, desk: Desk) -> None:
        self.share = share
        await eventually(lambda: desk.metric("reprise_memory_resident_bytes"), wanted=lambda held: held == share * MAX)


async def _soon(_: float) -> None:
    await asyncio.sleep(0.001)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Short:
    short = Short()
    monkeypatch.setattr("gateway.serve.Pressure", short.pressure)
    return short


async def test_hits_go_on_where_nothing_new_is_begun(world: World, short: Short) -> None:
    """From below memory, which has given way; joining what is under way, too. It is as before once there is room."""
    worker = await world.worker()
    desk = await world.desk(worker)
    made = await desk.animate("made")
    assert "durable" == await desk.stored(made)
    gate = worker.hold("step")
    under_way = desk.follow("under way")
    await gate.reached.wait()
    await short.at(0.93, desk)

    assert "hit from L2" == outcome(await desk.animate("made"))
    joined = desk.follow("under way")
    await joined.seen("queued")
    for refused in (desk.animate("new"), desk.client.upload(picture(7)), desk.animate("made", image=picture(8))):
        problem = await problem_of(refused)
        assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "MEMORY_SHORT", 1.0) == (
            problem.code,
            problem.reason,
            problem.retry_after,
        )
    gate.open()
    assert ["miss", "coalesced"] == [outcome(await each.media()) for each in (under_way, joined)]
    assert 2 == len(worker.requests)
    await short.at(0.5, desk)
    assert "miss" == outcome(await desk.animate("new"))


async def test_what_was_let_in_is_made_though_its_worker_dies(world: World, short: Short) -> None:
    """Its picture is decoded once more for the other one."""
    workers = [await world.worker(), await world.worker()]
    gates = [worker.hold("step") for worker in workers]
    desk = await world.desk(*workers)
    under_way = desk.follow()

    async def begun() -> bool:
        return any(gate.reached.is_set() for gate in gates)

    await eventually(begun)
    await short.at(0.93, desk)
    await next(worker for worker in workers if worker.requests).die()
    for gate in gates:
        gate.open()
    assert "miss" == outcome(await under_way.media())


async def test_health_and_operators_are_answered_to_the_end(world: World, short: Short) -> None:
    """Nobody else is, by gRPC or by URL; each is counted as refused."""
    desk = await world.desk(await world.worker(), http_port=0)
    made = await desk.animate(delivery=media.DELIVERY_URL, extra={"size": 100_000})
    assert made.result.url
    await short.at(0.96, desk)

    assert "MEMORY_SHORT" == (await problem_of(desk.animate())).reason
    assert "MEMORY_SHORT" == (await problem_of(desk.client.download(made.result.artifact))).reason
    assert 1 == await desk.metric(
        "reprise_refusals_total",
        method="reprise.v1.MediaService/Download",
        code="RESOURCE_EXHAUSTED",
        reason="MEMORY_SHORT",
    )
    async with grpc.aio.insecure_channel(desk.address) as channel:
        made_up: Any = channel.unary_unary("/reprise.v1.MediaService/MadeUp")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await made_up(b"")
    assert grpc.StatusCode.UNIMPLEMENTED is caught.value.code()  # and no series of its own
    async with aiohttp.ClientSession() as session:
        async with session.get(made.result.url) as answer:
            assert (503, "1") == (answer.status, answer.headers["retry-after"])
        async with session.get(f"http://127.0.0.1:{desk.gateway.http_port}/healthz") as answer:
            assert 200 == answer.status
    assert (await desk.client.stats()).tiers
    async with grpc.aio.insecure_channel(desk.address) as channel:
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert health_pb2.HealthCheckResponse.SERVING == health.status
    await short.at(0.5, desk)
    assert "hit from L2" == outcome(await desk.animate(extra={"size": 100_000}))
