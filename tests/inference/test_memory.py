"""Memory: a worker on a device of little memory. The pool helps where there is room, and is in nobody's way."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import structlog
from anyio import wait_all_tasks_blocked
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.bans import Ban
from cache.condition import Condition
from cache.description import Scope
from cache.keys import Address, Principal, namespace
from cache.pins import Pin
from inference.errors import DeviceMemory
from inference.favourites import Favourites
from tests.inference.scripted_device import ScriptedDevice, WideModel, out_of_memory
from tests.inference.worker_fixtures import SECRET, Bench, Heard, Pixels, ask, open_bench, until

KIB = 1024
MIB = 1024 * KIB


@asynccontextmanager
async def open_small(
    folder: Path,
    *,
    capacity: int = 64 * MIB,
    needs: dict[str, int] | None = None,
    pool_bytes: int = MIB,
    pool_entries: int | None = None,
    host_bytes: int = MIB,
) -> AsyncIterator[tuple[Bench, ScriptedDevice]]:
    device = ScriptedDevice(capacity=capacity)
    async with open_bench(
        folder,
        model=WideModel(device, needs),
        device=device,
        pool_bytes=pool_bytes,
        pool_entries=pool_entries,
        host_bytes=host_bytes,
    ) as bench:
        yield bench, device


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[tuple[Bench, ScriptedDevice]]:
    async with open_small(tmp_path / "l3") as pair:
        yield pair


def at(bench: Bench, stage: str, **wanted: object) -> Address:
    """Where a stage's output lies. Of texts: as the model means them."""
    return Address.parse(ask(bench.model.description, **wanted).addresses[stage])  # type: ignore[arg-type]


def reused(heard: Heard, stage: str) -> str:
    outcome, tier = heard.stages[stage]
    return tier if outcome == "REUSED" else outcome


def held(device: ScriptedDevice) -> int:
    """Bytes on the device, once what only refers to itself is gone."""
    gc.collect()
    return device.used


def favourites(bench: Bench, *wanted: Address, look_again: float = 600.0) -> Favourites:
    shared = namespace(SECRET, Scope.SHARED, Principal(""))
    models = bench.engine.models
    return Favourites(bench.shop, models, wanted, bench.tiers.orders.pins, shared=shared, look_again=look_again)


# Two pools.


async def test_an_encoding_that_left_the_device_comes_back_from_host_memory(tmp_path: Path) -> None:
    """No tier is read for it: a caller is told that it was in the memory of the process."""
    async with open_small(tmp_path / "l3", pool_entries=2) as (bench, device):
        await bench.run(picture=Pixels(1))
        await bench.run(picture=Pixels(2), prompt="a dog")
        assert len(bench.shop.stock.host) == 2
        bench.tiers.memory.entries.clear()

        heard = await bench.run(picture=Pixels(1), seed=7, with_pixels=False)

        assert reused(heard, "moments") == reused(heard, "text") == "L1"
        assert bench.shop.stock.promotions == 2
        assert bench.model.runs["moments"] == 2
        await until(lambda: held(device) == bench.shop.pool.bytes)


async def test_host_memory_is_foreseen_as_what_it_is(tmp_path: Path) -> None:
    """Looking moves nothing."""
    async with open_small(tmp_path / "l3", pool_entries=2) as (bench, _):
        await bench.run(picture=Pixels(1))
        await bench.run(picture=Pixels(2), prompt="a dog")
        bench.tiers.memory.entries.clear()
        plan = await bench.engine.plan(bench.ask(picture=Pixels(1), seed=7))

        foreseen = await bench.engine.foresee(plan)
        told = await bench.run(picture=Pixels(1), seed=7)

        assert {each.stage: each.tier for each in foreseen.stages} == {
            each.stage: each.tier for each in told.finished.stages
        }
        assert bench.shop.stock.promotions == 2


async def test_without_room_on_the_device_a_run_reads_host_memory_at_its_turn(tmp_path: Path) -> None:
    """Where everything in the pool is in use, an input is copied for its run alone."""
    async with open_small(tmp_path / "l3", pool_entries=2) as (bench, _):
        await bench.run(picture=Pixels(1))
        await bench.run(picture=Pixels(2), prompt="a dog")
        bench.tiers.memory.entries.clear()
        in_use = [address for address, _ in bench.shop.pool._entries.items()]
        for address in in_use:
            assert bench.shop.pool.lease(address) is not None

        heard = await bench.run(picture=Pixels(1), seed=7, with_pixels=False)

        assert reused(heard, "moments") == "L1"
        assert (bench.shop.stock.promotions, len(bench.shop.stock.host)) == (0, 2)


async def test_what_is_banned_is_in_neither_pool(tmp_path: Path) -> None:
    """An order reaches host memory as it reaches the device."""
    async with open_small(tmp_path / "l3", pool_entries=2) as (bench, _):
        await bench.run(picture=Pixels(1))
        await bench.run(picture=Pixels(2), prompt="a dog")
        pools = (bench.shop.pool, bench.shop.stock.host)
        assert [len(pool) for pool in pools] == [2, 2]
        bench.shop.bans.add(Ban(time.time() + 60.0, Condition(model="gated")))
        assert (await bench.engine.obey(None)).entries == 4
        assert [len(pool) for pool in pools] == [0, 0]


async def test_status_and_metrics_tell_both_pools(tmp_path: Path) -> None:
    """Bytes and entries of each, and what moved between them."""
    async with open_small(tmp_path / "l3", pool_entries=2) as (bench, _):
        await bench.run(picture=Pixels(1))
        await bench.run(picture=Pixels(2), prompt="a dog")
        await bench.run(picture=Pixels(1), seed=7)
        status = bench.engine.status()
        assert (status.pool_entries, status.host_entries) == (2, 2)
        assert (status.pool_bytes, status.host_bytes) == (bench.shop.pool.bytes, bench.shop.stock.host.bytes)
        assert status.host_bytes > 0
        assert (bench.told("pool_promotions"), bench.told("pool_demotions")) == (2.0, 4.0)
        assert bench.told("host_pool_bytes") == status.host_bytes


# What a run needs comes first.


async def test_the_pool_is_bounded_by_what_runs_leave(tmp_path: Path) -> None:
    """Once it is known what a run needs, the pool gets the rest and no more, whatever it was allowed."""
    async with open_small(tmp_path / "l3", capacity=MIB, pool_bytes=2**40, needs={"denoise": 900 * KIB}) as (bench, _):
        spare = MIB // 50
        assert bench.shop.pool.max_bytes == (MIB - spare) // 4
        bench.model.gates["denoise"].close()
        running = bench.begin(with_pixels=True)
        await bench.model.gates["denoise"].reached()  # two stages are known: that says nothing of the others
        assert 0 < bench.shop.pool.max_bytes <= (MIB - spare) // 4
        bench.model.gates["denoise"].open()
        await running.end()
        assert bench.shop.run_bytes >= 900 * KIB
        assert 0 < bench.shop.pool.max_bytes <= MIB - 900 * KIB - spare


async def test_a_run_that_needs_more_than_any_before_makes_the_pool_smaller(tmp_path: Path) -> None:
    """What is too much then moves to the host."""
    async with open_small(tmp_path / "l3", capacity=64 * KIB, pool_bytes=2**40) as (bench, device):
        for colour in range(4):
            await bench.run(picture=Pixels(colour))
        before = bench.shop.pool.bytes
        assert before > 4 * KIB
        model = bench.model
        assert isinstance(model, WideModel)
        model.needs["denoise"] = 60 * KIB - 256
        await bench.run(picture=Pixels(1), seed=9)
        assert bench.shop.pool.bytes <= bench.shop.pool.max_bytes < 4 * KIB
        assert bench.shop.stock.host.bytes > 0
        await until(lambda: held(device) == bench.shop.pool.bytes)


async def test_out_of_memory_moves_the_pool_to_host_memory(opened: tuple[Bench, ScriptedDevice]) -> None:
    """One failed computation costs copies, and nothing is made again: the next run finds what left."""
    bench, _ = opened
    await bench.run(picture=Pixels(1), prompt="a dog")
    bench.model.trouble["denoise"] = [out_of_memory]
    assert (await bench.run(picture=Pixels(2), prompt="a cat")).stored == "DURABLE"
    bench.tiers.memory.entries.clear()

    heard = await bench.run(picture=Pixels(1), prompt="a dog", seed=7, with_pixels=False)

    assert reused(heard, "moments") == reused(heard, "text") == "L1"
    assert bench.told("worker_out_of_memory_total") == 1.0


async def test_a_demotion_that_fails_does_not_fail_the_run(opened: tuple[Bench, ScriptedDevice]) -> None:
    """The pool is emptied all the same."""
    bench, device = opened
    await bench.run(picture=Pixels(1), prompt="a dog")
    device.trouble["out"] = [out_of_memory, out_of_memory]
    bench.model.trouble["denoise"] = [out_of_memory]
    assert (await bench.run(picture=Pixels(2), prompt="a cat")).stored == "DURABLE"
    assert bench.shop.pool.bytes == 0


async def test_inputs_on_their_way_are_turned_back_for_a_run_that_needs_all(tmp_path: Path) -> None:
    """A waiting run's copy that is under way when memory runs out does not take what was made free."""
    async with open_small(tmp_path / "l3", needs={"denoise": 0}) as (bench, device):
        await bench.run(picture=Pixels(1))
        bench.forget_memory()
        bench.shop.stock.host.clear()
        gate = bench.model.gates["denoise"]
        gate.close()
        bench.model.trouble["denoise"] = [out_of_memory, lambda: seen.append(bench.shop.pool.bytes)]
        seen: list[int] = []
        running = bench.begin(picture=Pixels(2), prompt="a dog", with_pixels=True)
        await gate.reached()
        device.way_in.close()
        waiting = bench.begin(picture=Pixels(1), seed=1, with_pixels=False)
        await device.way_in.reached()
        gate.open()
        await wait_all_tasks_blocked()
        device.way_in.open()
        assert (await running.end()).stored == "DURABLE"
        assert reused(await waiting.end(), "moments") == "L3"
        assert seen == [0]
        assert bench.model.runs["moments"] == 2


async def test_what_nothing_reads_any_more_is_let_go(tmp_path: Path) -> None:
    """While the last stage works, the encodings that only earlier ones read can leave."""
    async with open_small(tmp_path / "l3") as (bench, device):
        await bench.run()
        gate = bench.model.gates["video"]
        gate.close()
        running = bench.begin(seed=2)
        await gate.reached()
        bench.shop.pool.clear()
        assert bench.shop.pool.bytes == 0
        latents, ids = 3 * 8 * 8 * 4, 2 * 8
        await until(lambda: held(device) == latents + ids)
        gate.open()
        await running.end()


async def test_a_run_that_fits_no_device_is_refused_with_sizes(tmp_path: Path) -> None:
    """Even with the pool empty; what it had to leave comes back."""
    async with open_small(tmp_path / "l3", capacity=MIB, needs={"denoise": MIB}) as (bench, _):
        refused = await bench.begin(with_pixels=True).refusal()
        assert isinstance(refused, DeviceMemory)
        assert refused.metadata["device_bytes_total"] == str(MIB)
        assert 0 < int(refused.metadata["device_bytes_free"]) < MIB
        assert len(bench.shop.stock.host) == 2


_RUNS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=8)


@settings(max_examples=12, deadline=None)
@given(runs=_RUNS, at_once=st.integers(1, 4), over=st.integers(0, 2 * KIB), pool_kib=st.integers(0, 64))
def test_a_full_device_never_fails_what_would_fit_without_the_pool(
    runs: list[tuple[int, int, int]], at_once: int, over: int, pool_kib: int
) -> None:
    """Whatever runs in whatever company: memory for one run alone is memory enough, and bits are the same."""
    # Of one run: a picture's encoding, a text's, latents, and the ids of every run that waits.
    own = 1024 + 8 + 3 * 8 * 8 * 4 + 8 * 8
    needs = {"moments": 4 * KIB, "denoise": 8 * KIB, "video": 6 * KIB}

    async def play(folder: Path) -> None:
        async with open_small(
            folder, capacity=8 * KIB + own + over, needs=needs, pool_bytes=pool_kib * KIB, host_bytes=2 * KIB
        ) as (bench, device):
            told: list[Heard] = []
            for start in range(0, len(runs), at_once):
                group = [
                    bench.begin(picture=Pixels(picture), prompt="abc"[text], seed=seed, with_pixels=True)
                    for picture, text, seed in runs[start : start + at_once]
                ]
                told += [await each.end() for each in group]
            assert {heard.stored for heard in told} == {"DURABLE"}
            for run, heard in zip(runs, told, strict=True):
                assert heard.data == results.setdefault(run, heard.data)
            await until(lambda: held(device) == bench.shop.pool.bytes)

    results: dict[tuple[int, int, int], bytes] = {}
    with TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder) / "l3"))


# Favourites.


async def test_a_favourite_video_means_its_pictures_encodings(tmp_path: Path) -> None:
    """A worker that starts loads them from the tiers before anybody asks, and they stay whatever else comes."""
    async with open_small(tmp_path / "l3") as (bench, _):
        video = (await bench.run(picture=Pixels(1))).alias.address
        moments = at(bench, "moments", picture=Pixels(1))
    async with open_small(tmp_path / "l3", pool_entries=3) as (bench, device):
        await favourites(bench, video).load()
        assert bench.shop.pool.peek(moments) is not None
        assert (bench.shop.pool.pinned, device.used) == (1, KIB)
        for colour in range(2, 6):
            await bench.run(picture=Pixels(colour))

        heard = await bench.run(picture=Pixels(1), seed=9, with_pixels=False)

        assert reused(heard, "moments") == "POOL"
        assert bench.model.runs["moments"] == 4


async def test_a_favourite_that_nobody_has_made_stays_once_it_is_made(opened: tuple[Bench, ScriptedDevice]) -> None:
    """Its own address is enough."""
    bench, _ = opened
    moments = at(bench, "moments", picture=Pixels(1))
    await favourites(bench, moments).load()
    assert bench.shop.pool.missing == {moments}
    await bench.run(picture=Pixels(1))
    assert (bench.shop.pool.pinned, bench.shop.pool.missing) == (1, set())


async def test_what_a_changed_model_computes_otherwise_is_not_loaded(tmp_path: Path) -> None:
    """Nothing old is served, pinned or not; a new revision whose encoder is the same keeps its favourites."""
    async with open_small(tmp_path / "l3") as (bench, _):
        video = (await bench.run(picture=Pixels(1))).alias.address
    async with open_small(tmp_path / "l3") as (bench, _):
        description = bench.model.description.model_copy(update={"revision": "2"})
        changed = [
            stage.model_copy(update={"fingerprint": "2"}) if stage.name == "moments" else stage
            for stage in description.stages
        ]
        bench.model.description = description.model_copy(update={"stages": tuple(changed)})
        await favourites(bench, video).load()
        assert (bench.shop.pool.pinned, bench.shop.pool.bytes) == (0, 0)
        bench.model.description = description
        await favourites(bench, video).load()
        assert bench.shop.pool.pinned == 1


async def test_favourites_come_back_when_the_device_rests(opened: tuple[Bench, ScriptedDevice]) -> None:
    """A run that needs all the memory there is takes theirs, for as long as it works."""
    bench, _ = opened
    await bench.run(picture=Pixels(1))
    keeping = asyncio.create_task(favourites(bench, at(bench, "moments", picture=Pixels(1))).keep())
    await until(lambda: bench.shop.pool.pinned == 1)
    gate = bench.model.gates["video"]
    bench.model.trouble["denoise"] = [out_of_memory]
    gate.close()
    running = bench.begin(picture=Pixels(2), prompt="a dog", with_pixels=True)
    await gate.reached()
    assert bench.shop.pool.pinned == 0
    gate.open()
    await running.end()
    await until(lambda: bench.shop.pool.pinned == 1)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_a_favourite_that_was_out_of_reach_is_looked_for_again(tmp_path: Path) -> None:
    """A tier that was away when the worker started costs time and no favourite."""
    async with open_small(tmp_path / "l3") as (bench, _):
        video = (await bench.run(picture=Pixels(1))).alias.address
    (tmp_path / "l3").rename(tmp_path / "away")
    (tmp_path / "l3").mkdir()
    async with open_small(tmp_path / "l3") as (bench, _):
        keeping = asyncio.create_task(favourites(bench, video, look_again=0.001).keep())
        await until(lambda: bench.shop.pool.missing == {video})
        (tmp_path / "l3").rmdir()
        (tmp_path / "away").rename(tmp_path / "l3")
        await until(lambda: bench.shop.pool.pinned == 1)
        assert bench.shop.pool.missing == set()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_a_favourite_that_cannot_be_loaded_keeps_no_other_from_it(tmp_path: Path) -> None:
    """A device that fails at one copy has the next one to do."""

    def fail() -> None:
        raise RuntimeError("a secret cat")

    async with open_small(tmp_path / "l3") as (bench, _):
        videos = [(await bench.run(picture=Pixels(colour))).alias.address for colour in (1, 2)]
    async with open_small(tmp_path / "l3") as (bench, device):
        device.trouble["in"] = [fail]
        with structlog.testing.capture_logs() as logs:
            await favourites(bench, *videos).load()
        assert (bench.shop.pool.pinned, len(bench.shop.pool.missing)) == (1, 1)
        assert "secret" not in str(logs)


async def test_what_operators_pin_is_held_from_then_on(opened: tuple[Bench, ScriptedDevice]) -> None:
    """And let go of when they say so, unless it stands in the settings."""
    bench, _ = opened
    one, two = [(await bench.run(picture=Pixels(colour))).alias.address for colour in (1, 2)]
    wanted = favourites(bench, two)
    bench.tiers.orders.on_order(wanted.obey)
    keeping = asyncio.create_task(wanted.keep())
    await until(lambda: bench.shop.pool.pinned == 1)

    await bench.tiers.orders.give(Pin(1.0, one, on=True))
    await until(lambda: bench.shop.pool.pinned == 2)
    await bench.tiers.orders.give(Pin(0.5, one, on=False))  # said before, heard later
    assert bench.shop.pool.pinned == 2
    for address in (one, two):
        await bench.tiers.orders.give(Pin(2.0, address, on=False))
    assert bench.shop.pool.pinned == 1

    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_what_was_pinned_before_is_loaded(tmp_path: Path) -> None:
    """A worker that starts later knows the orders that were given."""
    async with open_small(tmp_path / "l3") as (bench, _):
        video = (await bench.run(picture=Pixels(1))).alias.address
    async with open_small(tmp_path / "l3") as (bench, _):
        bench.tiers.orders.pins.turn(Pin(1.0, video, on=True))
        await favourites(bench).load()
        assert bench.shop.pool.pinned == 1


async def test_a_favourite_that_is_dropped_can_leave(opened: tuple[Bench, ScriptedDevice]) -> None:
    """Unless another one means the same."""
    bench, _ = opened
    one = (await bench.run(picture=Pixels(1), seed=1)).alias.address
    two = (await bench.run(picture=Pixels(1), seed=2)).alias.address
    wanted = favourites(bench, one, two)
    await wanted.load()
    assert bench.shop.pool.pinned == 1
    wanted.drop(one)
    assert bench.shop.pool.pinned == 1
    wanted.drop(two)
    assert bench.shop.pool.pinned == 0
