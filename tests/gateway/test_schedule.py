"""Schedules: what settings want made ahead is made at its time, by one of several gateways."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cache.gc import Why, sweep
from cache.objects import ObjectsStore
from cache.settings import CacheSettings
from gateway.schedule import Schedule, next_time
from gateway.settings import DAY, WarmEntry
from gateway.stack import Stack
from tests import servers
from tests.gateway.worker import ScriptedWorker
from tests.gateway.world import Desk, World, eventually, open_world, outcome, picture

HOUR = 3600.0


@pytest.mark.parametrize(
    ("said", "now", "due"),
    [
        ({"every": 600}, 0.0, 600.0),
        ({"every": 600}, 599.9, 600.0),
        ({"every": 600}, 600.0, 1200.0),
        ({"at": "06:30"}, 100 * DAY, 100 * DAY + 6.5 * HOUR),
        ({"at": "06:30"}, 100 * DAY + 6.5 * HOUR, 101 * DAY + 6.5 * HOUR),
        ({"at": "00:00"}, 100 * DAY - 1, 100 * DAY),
        ({"at": "23:59"}, 100 * DAY + 1, 100 * DAY + 23 * HOUR + 59 * 60),
    ],
)
def test_an_entry_is_due_at_the_same_time_everywhere(said: dict[str, Any], now: float, due: float) -> None:
    """The next one after now, whenever a gateway started."""
    assert due == next_time(WarmEntry(tenant="t", frequent=True, **said), now)


@pytest.mark.parametrize(
    "said",
    [
        {"frequent": True},
        {"every": 60, "at": "06:30", "frequent": True},
        {"every": 60},
        {"at": "24:00", "frequent": True},
        {"every": 0, "frequent": True},
        {"every": 60, "frequent": True, "budget": 0},
        {"every": 60, "frequent": True, "tenant": ""},
    ],
)
def test_an_entry_says_when_what_and_for_whom(said: dict[str, Any]) -> None:
    """Anything else is refused when the gateway starts."""
    with pytest.raises(ValidationError):
        WarmEntry.model_validate({"tenant": "t", **said})


@pytest.fixture
def wishes(tmp_path: Path) -> Path:
    (tmp_path / "cat.png").write_bytes(picture())
    file = tmp_path / "wishes.jsonl"
    file.write_text("\n".join(json.dumps({"image": "@cat.png", "prompt": f"cat {number}"}) for number in range(2)))
    return file


class Time:
    """Stands still; who pauses is told how long, and waits until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        self._moved = asyncio.Event()

    def __call__(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self._moved.wait()

    async def wait_for(self, pauses: int) -> None:
        """Until so many have begun: whoever has not paused yet would not notice that time moves."""
        await eventually(lambda: asyncio.sleep(0, len(self.pauses)), wanted=lambda count: count == pauses)

    def move(self, seconds: float) -> None:
        self.now += seconds
        event, self._moved = self._moved, asyncio.Event()
        event.set()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """The clock of every schedule."""
    made = Time()

    class Timed(Schedule):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, clock=made, pause=made.pause)

    monkeypatch.setattr("gateway.serve.Schedule", Timed)
    return made


async def made(desk: Desk) -> float:
    return await desk.metric("reprise_warm_made_total")


async def test_one_of_two_gateways_does_it(world: World, time: Time, wishes: Path) -> None:
    """At its time, once; the next time again, and then everything is there still."""
    worker = await world.worker()
    entry = {"every": 600, "tenant": "local", "user": "local", "file": wishes}
    one, two = [await world.desk(worker, warm=[entry]) for _ in range(2)]
    await time.wait_for(2)
    assert [200.0, 200.0] == time.pauses
    time.move(199.0)
    await time.wait_for(4)
    assert [] == worker.requests
    time.move(1.0)
    await time.wait_for(6)

    assert 2 == worker.generations
    assert [0.0, 2.0] == sorted([await made(one), await made(two)])
    assert {"hit from L1", "hit from L2"} == {outcome(await desk.animate("cat 1")) for desk in (one, two)}
    time.move(600.0)
    await time.wait_for(8)
    assert 2 == worker.generations
    folder = Path(world.cache.l3.url.removeprefix("file://"))
    (claim,) = await asyncio.to_thread(lambda: [path for path in folder.glob("w/**/*") if path.is_file()])
    assert "000000001800" == claim.name
    assert set(claim.parent.name) <= set("0123456789abcdef")  # which tells nobody whose schedule it is
    objects = await asyncio.to_thread(ObjectsStore.connect, f"file://{folder}")
    modified = (await asyncio.to_thread(claim.stat)).st_mtime
    swept = await sweep(objects, bytes(32), clock=lambda: modified + 8 * DAY + 1.0)
    assert (1, False) == (swept.gone[Why.PASSED].entries, await asyncio.to_thread(claim.exists))


async def test_budget_and_tenant_are_the_entrys(world: World, time: Time, wishes: Path) -> None:
    """What would exceed it is left for another time; nobody else's results are made."""
    worker = await world.worker()
    entry = {"every": 600, "tenant": "other", "file": wishes, "budget": 4.0}
    desk = await world.desk(worker, warm=[entry])
    await time.wait_for(1)
    time.move(200.0)
    await eventually(lambda: asyncio.sleep(0, worker.generations), wanted=lambda count: count == 1)
    await time.wait_for(2)
    assert 1.0 == await made(desk)
    assert "miss" == outcome(await desk.animate("cat 0"))


async def test_many_at_one_time_are_made_one_after_the_other(world: World, time: Time, wishes: Path) -> None:
    """However many warm-ups may be under way at once."""
    worker = await world.worker()
    entries = [{"every": 600, "tenant": f"t{number}", "file": wishes} for number in range(6)]
    desk = await world.desk(worker, warm=entries)
    await time.wait_for(6)
    time.move(200.0)
    await time.wait_for(12)
    assert (12.0, 12) == (await made(desk), worker.generations)


async def test_a_schedule_waits_for_operators(
    world: World, time: Time, wishes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who have as many results made as may be: it asks again until its next time comes."""
    monkeypatch.setattr("gateway.warm._MOST_AT_ONCE", 0)
    worker = await world.worker()
    desk = await world.desk(worker, warm=[{"every": 600, "tenant": "local", "file": wishes}])
    await time.wait_for(1)
    time.move(200.0)
    await time.wait_for(2)
    assert (0.0, 0) == (await made(desk), worker.generations)
    monkeypatch.undo()
    time.move(1.0)
    await eventually(lambda: asyncio.sleep(0, worker.generations), wanted=lambda count: count == 2)


async def test_what_cannot_be_done_is_tried_the_next_time(
    world: World, time: Time, wishes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is broken, counts that nobody knows: it is said in the log, without what the file says."""
    worker = await world.worker()
    entries = [
        {"every": 600, "tenant": "local", "file": wishes},
        {"every": 600, "tenant": "local", "frequent": True},
    ]
    good = await asyncio.to_thread(wishes.read_text)
    await asyncio.to_thread(wishes.write_text, '{"num_frames": "secret words"}')
    desk = await world.desk(worker, warm=entries, cache=world.only("l1", "l3"))
    await time.wait_for(2)
    time.move(200.0)
    await time.wait_for(4)
    said = capsys.readouterr().out
    assert "the file cannot be used" in said
    assert "STORE_UNREACHABLE" in said
    assert "secret words" not in said
    await asyncio.to_thread(wishes.write_text, good)
    time.move(600.0)
    await time.wait_for(6)
    assert 2.0 == await made(desk)


async def test_without_a_shared_store_each_does_it_and_the_work_is_done_once(
    world: World, time: Time, wishes: Path
) -> None:
    """Nothing settles who does it; equal requests share a run or are hits."""
    worker: ScriptedWorker = await world.worker()
    cache: CacheSettings = world.only("l1", "l2")
    entry = {"every": 600, "tenant": "local", "file": wishes}
    for _ in range(2):
        await world.desk(worker, warm=[entry], cache=cache)
    await time.wait_for(2)
    time.move(200.0)
    await time.wait_for(4)
    assert 2 == worker.generations


async def test_with_the_object_store_gone_it_is_done_all_the_same(
    breakable_objects: Stack, redis_url: str, time: Time, wishes: Path
) -> None:
    """Who cannot ask whether another one does it, does it."""
    async with open_world(redis_url, servers.bucket(breakable_objects), strict=True) as world:
        worker = await world.worker()
        entry = {"every": 600, "tenant": "local", "file": wishes}
        await world.desk(worker, warm=[entry])
        await asyncio.to_thread(breakable_objects.part("objects").kill)
        await time.wait_for(1)
        time.move(200.0)
        await eventually(lambda: asyncio.sleep(0, worker.generations), wanted=lambda count: count == 2)
