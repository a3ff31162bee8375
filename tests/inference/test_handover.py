"""Runs that a busy home leaves to idle workers, and how equal plans meet nevertheless. See `inference/handover.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from anyio import wait_all_tasks_blocked

from inference.errors import NotReady
from inference.handover import Notes
from tests.inference.worker_fixtures import STEPS, Bench, Following, Pixels, open_bench, until

ONE, TWO = "one:1", "two:2"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "l3") as bench:
        yield bench


@asynccontextmanager
async def busy(bench: Bench, *, waiting: int = 1) -> AsyncIterator[list[Following]]:
    """A run has the device, before its first step, and so many wait behind it; let go of at the end."""
    gate = bench.model.step_gate
    gate.close()
    runs = [bench.begin(seed=1000, picture=Pixels(99))]
    await gate.reached()
    for number in range(1, waiting + 1):
        runs.append(bench.begin(seed=1000 + number, picture=Pixels(99)))
        await runs[-1].hears(lambda heard, before=number - 1: before in heard.positions)  # type: ignore[misc]
    try:
        yield runs
    finally:
        gate.open()
        for run in runs:
            await run.end()


async def on_a_new_picture(bench: Bench, *wanted: dict[str, Any]) -> list[Following]:
    """Runs in this order: the first is about to encode the picture, as soon as its gate is opened; the others wait."""
    gate = bench.model.gates["moments"]
    gate.close()
    runs = [bench.begin(**wanted[0])]
    await gate.reached()
    for each in wanted[1:]:
        runs.append(bench.begin(**each))
        await runs[-1].hears(lambda heard: bool(heard.positions))
    return runs


async def sent_to(following: Following) -> str:
    """The worker that this follower is sent to."""
    await following.hears(lambda heard: bool(heard.elsewhere))
    (worker,) = following.heard.elsewhere
    return worker


async def stays(following: Following) -> bool:
    """Whether it waits here, after everything that can happen has happened."""
    await following.hears(lambda heard: bool(heard.positions))
    await wait_all_tasks_blocked()
    return not following.heard.elsewhere


def handed_over(bench: Bench) -> float:
    return float(bench.shop.metrics.handed_over._value.get())


# The decision.


async def test_a_long_line_is_relieved_by_an_idle_worker(bench: Bench) -> None:
    """The run goes to the best of the idle, is counted, and costs nothing here; the stream stays open."""
    async with busy(bench):
        away = bench.begin(seed=1, idle=[ONE, TWO])
        assert ONE == await sent_to(away)
        await wait_all_tasks_blocked()
        assert not away.task.done()
        assert (1.0, 1) == (handed_over(bench), bench.shop.turns.waiting)
        await away.leave()
    assert 2 == bench.shop.generations
    (span,) = [s for s in bench.spans if (s.attributes or {}).get("reprise.run.outcome") == "elsewhere"]
    assert "worker.run" == span.name


@pytest.mark.parametrize(
    ("waiting", "wanted"),
    [
        (1, {}),
        (0, {"idle": [ONE]}),
        (1, {"idle": [ONE], "must_run": True}),
        (1, {"idle": [ONE], "reuse_nothing": True, "with_pixels": True}),
        (1, {"idle": [ONE], "replace": True, "max_age": 0.0}),
    ],
    ids=["nobody is idle", "the line is short", "told to", "reuses nothing", "replaces what is stored"],
)
async def test_a_run_stays_at_its_home(bench: Bench, waiting: int, wanted: dict[str, Any]) -> None:
    """Where nobody is idle, the line is short, its sender says so, or what is stored here must give way to it."""
    async with busy(bench, waiting=waiting):
        staying = bench.begin(seed=1, **wanted)
        assert await stays(staying)
    assert "DURABLE" == (await staying.end()).stored
    assert 0.0 == handed_over(bench)


@pytest.mark.parametrize(("spill_after", "stay"), [(0, False), (1, True), (None, True)])
async def test_the_setting_says_how_long_a_line_may_be(tmp_path: Path, spill_after: int | None, stay: bool) -> None:
    """0: whoever would wait goes; None: nobody ever does."""
    async with open_bench(tmp_path / "l3", spill_after=spill_after) as bench, busy(bench, waiting=0):
        run = bench.begin(seed=1, idle=[ONE])
        if stay:
            assert await stays(run)
        else:
            assert ONE == await sent_to(run)
            await run.leave()


async def test_runs_are_spread_over_the_idle_and_the_home(bench: Bench) -> None:
    """Nobody gets more of them than wait here, whatever the gateways do not know of each other yet."""
    async with busy(bench):
        runs = []
        for colour in range(1, 7):
            runs.append(bench.begin(picture=Pixels(colour), idle=[ONE, TWO]))
            await runs[-1].hears(lambda heard: bool(heard.elsewhere or heard.positions))
        assert [[ONE], [TWO], [ONE], [TWO], [], [ONE]] == [run.heard.elsewhere for run in runs]
        for run in runs[:4] + runs[5:]:
            await run.leave()
    await runs[4].end()


async def test_tries_on_a_new_picture_go_to_one_worker(bench: Bench) -> None:
    """Where it is being encoded already; whoever cannot go there stays."""
    async with busy(bench):
        away = []
        for seed, idle in enumerate([[ONE, TWO], [TWO, ONE]]):
            away.append(bench.begin(seed=seed, idle=idle))
            assert ONE == await sent_to(away[-1])
        staying = bench.begin(seed=2, idle=[TWO])
        assert await stays(staying)
        await asyncio.gather(*(each.leave() for each in away))
    await staying.end()


async def test_a_picture_is_encoded_once_before_its_tries_are_spread(bench: Bench) -> None:
    """Tries on a new picture stay together until its encoding can be found by others; then the later ones leave."""
    steps = bench.model.step_gate
    steps.close()
    tries = await on_a_new_picture(bench, *({"seed": seed, "idle": [ONE]} for seed in range(3)))
    assert await stays(tries[2])
    bench.model.gates["moments"].open()
    assert ONE == await sent_to(tries[2])
    moments = bench.ask().addresses["moments"]
    assert await bench.record_at(moments) is not None
    await tries[2].leave()
    steps.open()
    assert [STEPS, STEPS] == [len((await each.end()).steps) for each in tries[:2]]
    assert 1 == bench.model.runs["moments"]


async def test_what_the_plan_brings_the_record_of_need_not_be_waited_for(bench: Bench) -> None:
    """Tries on a known picture are spread at once."""
    await bench.run(seed=7)
    request = bench.ask(seed=3, idle=[ONE], with_pixels=False)
    moments = await bench.record_at(request.addresses["moments"])
    assert moments is not None
    request.records["moments"] = moments.to_bytes()
    steps = bench.model.step_gate
    steps.close()
    first = [bench.begin(seed=1)]
    await steps.reached()
    first.append(bench.begin(seed=2))
    assert await stays(first[1])
    away = bench.begin_request(request)
    assert ONE == await sent_to(away)
    await away.leave()
    steps.open()
    for each in first:
        await each.end()


async def test_what_is_hot_here_need_not_be_waited_for(bench: Bench) -> None:
    """Also where the gateway knows of no encoding: those before have found it, so nobody is about to make it."""
    await bench.run(seed=7)
    steps = bench.model.step_gate
    steps.close()
    runs = [bench.begin(seed=1)]
    await steps.reached()
    runs.append(bench.begin(seed=2))
    assert await stays(runs[1])
    away = bench.begin(seed=3, idle=[ONE])
    assert ONE == await sent_to(away)
    await away.leave()
    steps.open()
    for run in runs:
        await run.end()


async def test_what_is_only_being_stored_keeps_nobody_waiting(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that have given their answer are in nobody's way: the next one has the device at once, here."""
    real, stored = bench.shop.hierarchy.commit, asyncio.get_running_loop().create_future()

    async def commit(*arguments: Any, **options: Any) -> asyncio.Future[bool]:
        await real(*arguments, **options)
        return stored

    monkeypatch.setattr(bench.shop.hierarchy, "commit", commit)
    runs = []
    for colour in range(3):
        runs.append(bench.begin(picture=Pixels(colour), idle=[ONE]))
        await runs[-1].hears(lambda heard: any(each.HasField("finished") for each in heard.responses))
    assert [[]] * 3 == [run.heard.elsewhere for run in runs]
    stored.set_result(True)
    for run in runs:
        await run.end()


# The memory.


async def test_equal_plans_are_sent_to_one_worker(bench: Bench) -> None:
    """In any spelling, whatever each thinks is idle, and when the line here is short again."""
    async with busy(bench):
        first = bench.begin(seed=1, prompt="a cat", idle=[ONE])
        assert ONE == await sent_to(first)
        for idle in ([TWO], []):
            other = bench.begin(seed=1, prompt="A  CAT", idle=idle)
            assert ONE == await sent_to(other)
            await other.leave()
    await bench.idle()
    late = bench.begin(seed=1)
    assert ONE == await sent_to(late)
    await asyncio.gather(first.leave(), late.leave())
    assert (2, 1.0) == (bench.shop.generations, handed_over(bench))


async def test_who_waits_here_is_joined_here(bench: Bench) -> None:
    """A run that stays is not sent away when an equal plan comes that names an idle worker."""
    async with busy(bench):
        staying = bench.begin(seed=1)
        assert await stays(staying)
        joined = bench.begin(seed=1, idle=[ONE])
        assert await stays(joined)
    assert [False, True] == [(await each.end()).finished.joined for each in (staying, joined)]


async def test_all_who_follow_a_run_go_with_it(bench: Bench) -> None:
    """A run that is handed over while it waits takes those with it that had joined it."""
    steps = bench.model.step_gate
    steps.close()
    runs = await on_a_new_picture(bench, {"seed": 0}, {"seed": 1}, *[{"seed": 2, "idle": [ONE]}] * 3)
    bench.model.gates["moments"].open()
    assert [ONE] * 3 == [await sent_to(run) for run in runs[2:]]
    await asyncio.gather(*(run.leave() for run in runs[2:]))
    steps.open()
    for run in runs[:2]:
        await run.end()
    assert (2, 1.0) == (bench.shop.generations, handed_over(bench))


async def test_a_home_forgets_when_the_last_stream_has_been_closed_for_the_grace(tmp_path: Path) -> None:
    """As long as one is open it remembers, however short the grace."""
    async with open_bench(tmp_path / "l3", grace=0.0) as bench:
        async with busy(bench):
            first = bench.begin(seed=1, idle=[ONE])
            assert ONE == await sent_to(first)
            second = bench.begin(seed=1)
            assert ONE == await sent_to(second)
            await first.leave()
            third = bench.begin(seed=1)
            assert ONE == await sent_to(third)
            await asyncio.gather(second.leave(), third.leave())
            await until(lambda: len(bench.engine._notes) == 0)
            here = bench.begin(seed=1)
            assert await stays(here)
        assert "DURABLE" == (await here.end()).stored


async def test_who_comes_back_within_the_grace_is_sent_to_the_same_worker(bench: Bench) -> None:
    """A gateway that died is replaced by another one: the run it had left is still met."""
    async with busy(bench):
        first = bench.begin(seed=1, idle=[ONE])
        await sent_to(first)
        await first.leave()
        again = bench.begin(seed=1, idle=[TWO])
        assert ONE == await sent_to(again)
        await again.leave()


async def test_a_run_whose_worker_is_gone_comes_back(bench: Bench) -> None:
    """It runs here, all who come back for it share it, and nobody is sent away any more."""
    async with busy(bench):
        away = [bench.begin(seed=1, idle=[ONE]) for _ in range(2)]
        assert [ONE, ONE] == [await sent_to(each) for each in away]
        back = [bench.begin(seed=1, must_run=True) for _ in range(2)]
        assert all([await stays(each) for each in back])
        bystander = bench.begin(seed=1, idle=[TWO])
        assert await stays(bystander)
        await asyncio.gather(*(each.leave() for each in away))
    heard = [await each.end() for each in (*back, bystander)]
    assert [False, True, True] == [each.finished.joined for each in heard]
    assert 3 == bench.shop.generations


async def test_a_run_that_somebody_wants_here_stays(bench: Bench) -> None:
    """One that could leave as soon as its picture is encoded does not, once a plan that must run here has joined it."""
    steps = bench.model.step_gate
    steps.close()
    leaving = {"seed": 2, "idle": [ONE]}
    runs = await on_a_new_picture(bench, {"seed": 0}, {"seed": 1}, leaving, {"seed": 2, "must_run": True})
    bench.model.gates["moments"].open()
    await steps.reached()
    await bench.tiers.writer.drain(1.0)
    assert await stays(runs[2])
    steps.open()
    assert ["DURABLE"] * 4 == [(await run.end()).stored for run in runs]


# The end.


async def test_a_worker_that_drains_ends_the_streams_it_keeps(bench: Bench) -> None:
    """Until then it says where the run is; what is new is refused."""
    async with busy(bench):
        away = bench.begin(seed=1, idle=[ONE])
        await sent_to(away)
        bench.engine.stop_accepting()
        late = bench.begin(seed=1)
        assert ONE == await sent_to(late)
        assert isinstance(await bench.begin(seed=2, idle=[ONE]).refusal(), NotReady)
    await bench.engine.drain(1.0)
    assert [[ONE], [ONE]] == [(await each.end()).elsewhere for each in (away, late)]


async def test_a_run_that_is_stopped_by_the_end_may_go_on_elsewhere(bench: Bench) -> None:
    """A worker whose patience is over tells those it leaves that another can do it, not that they gave up."""
    bench.model.step_gate.close()
    running = bench.begin(seed=1)
    await bench.model.step_gate.reached()
    bench.engine.stop_accepting()
    draining = asyncio.create_task(bench.engine.drain(0.0))
    await until(lambda: all(job.stop.is_set() for job in bench.engine._jobs.values()))
    bench.model.step_gate.open()
    refused = await running.refusal()
    await draining
    assert ("UNAVAILABLE", "DRAINING") == (refused.code.name, refused.reason)


async def test_a_note_that_nobody_heard_of_fades(tmp_path: Path) -> None:
    """And one whose follower was late to hear of it is kept for that one."""
    notes: Notes[str] = Notes(grace=0.0)
    note = notes.write("key", ONE)
    await until(lambda: notes.find("key") is None)
    with notes.telling(note):
        assert notes.find("key") is note
        assert (TWO, 0) == notes.choose([ONE, TWO], set())
    assert (ONE, 0) == notes.choose([ONE, TWO], set())
    assert notes.choose([], set()) is None
    await until(lambda: len(notes) == 0)
