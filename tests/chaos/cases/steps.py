"""Steps that several cases take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from statistics import median

from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import GenerationEvent
from tests.chaos.case import Scene
from tests.chaos.clients import PATIENCE, Heard, Load, Wish
from tests.chaos.world import GATEWAYS, ONE, TWO, WORKERS

BOTH_WAYS = ((ONE, TWO), (TWO, ONE))
_AT_ONCE = 16  # generations that are asked for: a tenant has a share of the line, and no more
FAILURES = 5  # in a row, after which a breaker opens
FAILED = (pb.LOOKUP_OUTCOME_ERROR, pb.LOOKUP_OUTCOME_TIMEOUT)


async def stored(scene: Scene, count: int, *, picture: int = 0) -> list[Wish]:
    """So many wishes that are durable, and in Redis."""
    wishes = scene.wishes(count, picture=picture)
    heard: list[Heard] = []
    for first in range(0, count, _AT_ONCE):
        heard += await scene.callers.at_once(wishes[first : first + _AT_ONCE], ONE, stored=True)
    assert all(each.durable for each in heard), [each.problem for each in heard]
    await scene.world.until_at_rest()
    return wishes


class Generations:
    """Those that workers have begun since `begin`. Workers that died meanwhile are counted from their new start."""

    def __init__(self, scene: Scene) -> None:
        self._world = scene.world
        self._before: dict[str, int] = {}
        self._pids: dict[str, int] = {}

    async def begin(self) -> None:
        self._before = await self._world.generations()
        self._pids = {worker: self._world.pid(worker) for worker in WORKERS}

    async def count(self) -> int:
        now = await self._world.generations()
        same = {worker for worker in now if self._world.pid(worker) == self._pids[worker]}
        return sum(count - (self._before.get(worker, 0) if worker in same else 0) for worker, count in now.items())


async def counting(scene: Scene) -> Generations:
    generations = Generations(scene)
    await generations.begin()
    return generations


async def failed_lookups(scene: Scene, tier: pb.Tier) -> dict[str, int]:
    """By gateway: lookups in this tier that failed since their start."""
    found = {}
    for gateway in GATEWAYS:
        stats = await scene.world.stats(gateway)
        of_tier = next(each for each in stats.tiers if each.tier == tier)
        found[gateway] = sum(each.count for each in of_tier.lookups if each.outcome in FAILED)
    return found


def judge_waits(
    scene: Scene,
    heard: Sequence[Heard],
    usual: Sequence[Heard],
    tier: str,
    *,
    before: float,
    after: float,
    what: str,
    paying: int | None = FAILURES,
) -> None:
    """What answers waited for a tier that does not answer: until its breaker opened, and after. `before` and `after`
    are milliseconds that each may pay at most, and that half of them may pay at most. `heard` came one by one.
    """
    sheet, normal = scene.sheet, median(each.seconds for each in usual) * 1000
    paid = [each for each in heard if each.lookups.get(tier) in ("timeout", "error")]
    first = next((number for number, each in enumerate(heard) if each not in paid), len(heard))
    if paying is not None:
        sheet.at_most("answers that paid before the breaker opened", first, paying)
    sheet.tell(f"usual {what}", normal, "ms")
    added = [each.seconds * 1000 - normal for each in paid]
    sheet.at_most("added before the breaker opened and by probes, most", max(added, default=0.0), before, "ms")
    free = [each.seconds * 1000 - normal for each in heard if each not in paid]
    if free:
        sheet.at_most("added after it opened, median", median(free), after, "ms")
    sheet.tell("answers that paid", len(paid))
    sheet.tell("answers that did not", len(free))


class Running:
    """Somebody who asks, and the moments of their generation."""

    def __init__(self, scene: Scene, wish: Wish, *gateways: str, stored: bool = False) -> None:
        self.events: list[GenerationEvent] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(scene.callers.ask(wish, *gateways, stored=stored, on_event=self._hear))
        self.task.add_done_callback(lambda task: self._news.set())

    def _hear(self, event: GenerationEvent) -> None:
        self.events.append(event)
        self._news.set()

    async def until(self, moment: Callable[[GenerationEvent], bool]) -> None:
        """Or until it has ended."""
        async with asyncio.timeout(PATIENCE):
            while not (self.task.done() or any(map(moment, self.events))):
                self._news.clear()
                await self._news.wait()


def early(event: GenerationEvent) -> bool:
    """A device works on it."""
    return event.progress.stage == "denoise" and event.progress.step >= 1


async def everybody(running: Sequence[Running]) -> list[Heard]:
    return await asyncio.gather(*(each.task for each in running))


async def busy_worker(scene: Scene) -> str:
    """One that has a run."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for worker in WORKERS:
                told = await scene.world.status(worker)
                if told is not None and told.busy:
                    return worker


async def loaded(scene: Scene, hot: Sequence[Wish], *, clients: int = 8) -> Load:
    return Load(scene.callers, hot, BOTH_WAYS, clients=clients, pause=0.02)
