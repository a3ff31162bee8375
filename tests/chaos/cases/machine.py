"""M: what the machine does to us that we run on: its disk is full, its clock is set."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from obstore.store import LocalStore

from gateway.client import Media
from gateway.stack import Part, Stack
from gateway.stack.ports import free_port
from reprise.v1.media_pb2 import DELIVERY_URL, AnimateImageRequest
from tests.chaos.beside import beside, one_more
from tests.chaos.case import CannotBeHad, Scene, Sheet, case
from tests.chaos.cases.steps import Running, counting, early, everybody, stored
from tests.chaos.clients import PATIENCE, Callers, Heard, Wish
from tests.chaos.clock import NoClock, SetClock
from tests.chaos.disks import Disks
from tests.chaos.history import fault_of
from tests.chaos.world import LOCAL, ONE, WORKERS, faults_in, is_fault, metrics_at, until

HOUR = 3600
_LOCAL, _WORKER = "gateway-local", "worker-local"  # all of whose files lie on one small disk
_SET = "gateway-set"  # whose clock is set
_URL_LIFETIME = 300  # seconds, by the settings
_GRACE = 30.0  # seconds to end in


@case(
    "M2",
    fault="the disk is full on which a gateway and its worker have their logs, spans, accesses, temporary files and L3",
    promise="nobody fails, no process ends before it is told to, and then well; hits stay hits; lines are dropped and "
    "counted, and come again once there is room; results are durable again, and nothing half-written is left",
    share=True,
)
async def local_disk_full(scene: Scene) -> None:
    count = scene.size(16, 4)
    async with _on_a_small_disk(scene) as here:
        callers, sheet = here.callers, scene.sheet
        hot = await callers.at_once(scene.wishes(count), _LOCAL, stored=True)
        with scene.during("the disk is full"):
            await asyncio.to_thread(here.disks.fill, here.disk)
            cold = await callers.at_once(scene.wishes(count), _LOCAL, stored=True)
            sheet.exactly(f"hits of {10 * count}", await here.hits(hot * 10), 10 * count)
            # What was begun may have room for one more.
            sheet.at_least("results that were not called durable", sum(not each.durable for each in cold), 1)
            for name, lines in ((_LOCAL, "accesses"), (_LOCAL, "spans"), (_WORKER, "log")):
                sheet.at_least(f"{lines} that {name} has dropped", await here.dropped(name, lines), 1)
            for name in (_LOCAL, _WORKER) if scene.full else (_LOCAL,):
                sheet.exactly(f"{name}, told to end and started again: status", await here.restart(name), 0)
            sheet.exactly(f"hits of {count} by who was started again", await here.hits(hot), count)
            await asyncio.to_thread(here.disks.empty, here.disk)
        known = len(here.said(_WORKER))
        sheet.exactly(f"{_WORKER}, told to end and started again: status", await here.restart(_WORKER), 0)
        words = _words(here.said(_WORKER)[known:], "draining", "serving")
        sheet.exactly("its last word, and the first of the next one", words, "draining, serving")
        again = await callers.at_once([each.wish for each in cold], _LOCAL, stored=True)
        sheet.exactly(f"durable now, of {count}", sum(each.durable for each in again), count)
        await here.judge_files([*hot, *again], sheet)
        scene.judge_answers(callers.log)


@dataclass(frozen=True)
class _Here:
    """A gateway and its worker that keep everything on one small disk, and who asks there."""

    stack: Stack
    disks: Disks
    disk: Path
    callers: Callers
    metrics: dict[str, int]

    async def hits(self, heard: Sequence[Heard]) -> int:
        told = await self.callers.all([each.wish for each in heard], _LOCAL)
        return sum(each.outcome == "hit" for each in told)

    async def dropped(self, name: str, lines: str) -> float:
        return (await metrics_at(self.metrics[name]))["reprise_lines_dropped", lines]

    async def restart(self, name: str) -> int:
        """Also waits until the gateway knows that the worker is there. What the old process ended with."""
        old = self.stack.part(name)
        await asyncio.to_thread(self.stack.restart, name)
        await self.callers.reconnect()
        await until(self._worker_is_there)
        assert old.exit_status is not None
        return old.exit_status

    async def _worker_is_there(self) -> bool:
        stats = await self.callers.client(_LOCAL).stats()
        return all(worker.healthy for worker in stats.workers)

    def said(self, name: str) -> list[str]:
        return self.disks.seen(self.disk / f"{name}.log").read_text().splitlines()

    async def judge_files(self, durable: Sequence[Heard], sheet: Sheet) -> None:
        """Of L3, which are read where we can name them, and of the logs."""
        with tempfile.TemporaryDirectory(prefix="reprise-chaos-") as copied:
            folder = Path(copied) / "l3"
            await asyncio.to_thread(shutil.copytree, self.disks.seen(self.disk / "l3"), folder)
            store = LocalStore(folder)
            faults = [fault for each in durable if (fault := await fault_of(store, each.address, each.digest))]
            unfinished = [file.name for file in folder.rglob("*#*")]
        sheet.exactly(f"of {len(durable)} that were called durable, not in the folder", len(faults), 0)
        sheet.exactly("files in it that are unfinished", len(unfinished), 0)
        faults = [line for name in (_LOCAL, _WORKER) for line in self.said(name) if is_fault(line)]
        sheet.exactly("faults of ours in the logs", "; ".join(faults) or "none", "none")


@asynccontextmanager
async def _on_a_small_disk(scene: Scene) -> AsyncIterator[_Here]:
    """A deployment of its own, without Redis, whose L3 is a folder."""
    world, disks = scene.world, scene.world.disks
    if disks is None:
        raise CannotBeHad("file systems of its own (unshare and mount)")
    disk, metrics = world.disk(LOCAL), {name: free_port() for name in (_LOCAL, _WORKER)}
    (disks.seen(disk) / "tmp").mkdir(exist_ok=True)
    files = {
        "REPRISE_CACHE__L2__ENABLED": "false",
        "REPRISE_CACHE__L3__URL": f"file://{disk}/l3",
        "REPRISE_TELEMETRY__SPANS_FOLDER": f"{disk}/spans",
        "REPRISE_TELEMETRY__ACCESSES_FOLDER": f"{disk}/accesses",
        "REPRISE_TELEMETRY__SAMPLE_RATIO": "1",
        "TMPDIR": f"{disk}/tmp",
    }
    worker = one_more(world, WORKERS[0], _WORKER, metrics=metrics[_WORKER], environment=files)
    known = {"REPRISE_GATEWAY__WORKERS": json.dumps([worker.address])}
    gateway = one_more(world, ONE, _LOCAL, metrics=metrics[_LOCAL], environment=files | known)
    parts = [_logging_to(disks, disk, part) for part in (worker, gateway)]
    async with beside(world, *parts) as (stack, door), Callers(door, scene.callers.oracle) as callers:
        yield _Here(stack, disks, disk, callers, metrics)


def _logging_to(disks: Disks, disk: Path, part: Part) -> Part:
    """The part, which says what it has to say in a file there, and has time to end well."""
    file = str(disk / f"{part.name}.log")
    return disks.on(replace(part, grace=_GRACE), ["sh", "-c", 'exec "$@" >>"$0" 2>&1', file, *part.command])


def _words(lines: Sequence[str], *events: str) -> str:
    """Which of these events were logged, in the order in which they were."""
    said = [str(json.loads(line).get("event")) for line in lines if line.startswith("{")]
    return ", ".join(each for each in said if each in events)


@case(
    "M3",
    fault="the clock of a gateway jumps three hours ahead, then three behind, while it runs (libfaketime)",
    promise="hits stay hits, in memory too; runs under way end well; URLs live as long as ever; nobody fails; where "
    "the object store refuses a wrong clock, it is done without, and used again once the clock is right",
    share=True,
)
async def clock_jumps(scene: Scene) -> None:
    count, cold = scene.size(16, 4), list[Heard]()
    async with _gateway_of_set_clock(scene) as there:
        for hours in (3, -3):
            cold += await _judge_a_jump(there, hours, count)
        await there.set(0)
        await until(there.reads_objects)
        again = await there.scene.callers.all([each.wish for each in cold], _SET)
        there.judge_log()
    again += await scene.callers.all([each.wish for each in cold], ONE)
    hits = sum(each.outcome == "hit" for each in again)
    scene.sheet.exactly(f"of {len(again)} answers, hits of what was made meanwhile", hits, len(again))
    scene.judge_answers()


async def _judge_a_jump(there: _There, hours: int, count: int) -> list[Heard]:
    """What was made while the clock was wrong."""
    scene, sheet, jump = there.scene, there.scene.sheet, f"{hours:+} h"
    hot = await stored(there.others, count)
    deep = await stored(there.others, 2)  # of which this gateway's memory knows nothing, and soon Redis
    await scene.callers.all(hot, _SET)
    media = await there.file_by_url(hot[0])
    (wish,) = scene.wishes(1, steps=scene.size(150, 50))
    running = Running(scene, wish, _SET, stored=True)
    await running.until(early)
    with scene.during(jump):
        await there.set(hours * HOUR)
        sheet.tell(f"{jump}: a run was under way", not running.task.done())
        generations = await counting(scene)
        found = await scene.callers.all([*hot, *hot], _SET)
        in_memory = sum(each.lookups == {"l1": "hit"} for each in found)
        sheet.exactly(f"{jump}: of {2 * count} answers, hits in its memory", in_memory, 2 * count)
        await there.judge_urls(jump, media, await there.file_by_url(hot[1]))
        cold = await scene.callers.at_once(scene.wishes(count), _SET, stored=True)
        cold += await everybody([running])
        sheet.exactly(f"{jump}: of {count + 1} made meanwhile, durable", sum(each.durable for each in cold), count + 1)
        await scene.world.forget_redis()
        lower = await scene.callers.all(deep, _SET)
        sheet.tell(
            f"{jump}: what the object store says", _counted(each.lookups.get("l3", "not asked") for each in lower)
        )
        sheet.tell(f"{jump}: what only the object store has", _counted(each.outcome for each in lower))
        sheet.exactly(f"{jump}: generations of {count} new ones", await generations.count(), count)
    return cold


@dataclass(frozen=True)
class _There:
    """A gateway whose clock can be set, beside the world's own, and its callers."""

    scene: Scene  # in which those who ask are its own
    others: Scene  # in which they ask the world's gateways
    clock: SetClock
    metrics: int
    log_before: int

    async def set(self, seconds: float) -> None:
        """The clock, and wait until that process has seen it."""
        self.clock.set(seconds)
        await until(partial(self._stands, seconds))

    async def _stands(self, seconds: float) -> bool:
        told = await metrics_at(self.metrics)
        return abs(told["reprise_clock_offset_seconds",] - seconds) < 60.0

    async def reads_objects(self) -> bool:
        """Whether its breaker has closed; a lookup finds out."""
        (wish,) = self.scene.wishes(1)
        await self.scene.callers.ask(wish, _SET)
        return not (await metrics_at(self.metrics))["reprise_cache_breaker_open", "l3"]

    async def file_by_url(self, wish: Wish) -> Media:
        request = AnimateImageRequest()
        request.CopyFrom(wish.request())
        request.delivery = DELIVERY_URL
        return await self.scene.callers.client(_SET).animate(request, deadline=PATIENCE)

    async def judge_urls(self, jump: str, before: Media, now: Media) -> None:
        """One from before the jump, and one of now: good, and no longer than others."""
        client = self.scene.callers.client(_SET)
        files = [await client.fetch(each) for each in (before, now)]  # verified
        self.scene.sheet.exactly(f"{jump}: files by URL, of one from before and one of now", len(files), 2)
        left = now.result.url_expires_at.seconds - time.time()
        self.scene.sheet.at_most(f"{jump}: seconds until that of now expires", left, _URL_LIFETIME)

    def judge_log(self) -> None:
        faults = faults_in(self.scene.world.parts[ONE].log.with_name(f"{_SET}.log"), self.log_before)
        self.scene.sheet.exactly("faults of its own in the log", "; ".join(faults) or "none", "none")


@asynccontextmanager
async def _gateway_of_set_clock(scene: Scene) -> AsyncIterator[_There]:
    world = scene.world
    clock, metrics = SetClock(world.stack.data / "clock"), free_port()
    clock.set(0)
    try:
        part = one_more(world, ONE, _SET, metrics=metrics, environment=clock.environment)
    except NoClock as lack:
        raise CannotBeHad(str(lack)) from lack
    log_before = part.log.stat().st_size if part.log.exists() else 0
    async with beside(world, part) as (_, door), Callers(door, scene.callers.oracle) as callers:
        try:
            yield _There(replace(scene, callers=callers), scene, clock, metrics, log_before)
        finally:
            scene.callers.log.extend(callers.log)


def _counted(told: Iterable[str]) -> str:
    return ", ".join(f"{each}: {count}" for each, count in sorted(Counter(told).items()))
