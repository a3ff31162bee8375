"""Workshop: what all runs of a worker share: the device, its pool, the tiers, the line before it, the counters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import ParamSpec, Protocol, TypeVar

from cache.accesses import AccessLog
from cache.bans import Bans
from cache.description import Stage
from cache.hierarchy import Hierarchy
from cache.news import News
from cache.record import Record
from cache.telemetry import Tracing
from inference.device import DeviceThread, Memory, free_unused, memory, out_of_memory
from inference.errors import DeviceMemory
from inference.metrics import WorkerMetrics
from inference.pool import Pool
from inference.turns import Turns

P = ParamSpec("P")
T = TypeVar("T")


class Holder(Protocol):
    """Somebody who leases entries of the pool and can do without."""

    def let_go(self) -> None: ...


class Workshop:
    """`news` tells of every change that a status report would show."""

    def __init__(
        self,
        device: DeviceThread,
        beside: DeviceThread,
        pool: Pool,
        hierarchy: Hierarchy,
        metrics: WorkerMetrics,
        tracing: Tracing,
        *,
        queue: int,
        execution: Mapping[str, str],
        bans: Bans | None = None,
        news: News | None = None,
        accesses: AccessLog | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.device = device
        self.beside = beside  # moves things to and off the device while it computes
        self.pool = pool
        self.hierarchy = hierarchy
        self.metrics = metrics
        self.tracing = tracing
        self.execution = execution
        self.clock = clock
        self.bans = bans if bans is not None else Bans()
        self.news = news if news is not None else News()
        self._accesses = accesses
        self.turns = Turns(queue, self.news.announce)
        self.waiting: set[Holder] = set()  # those with leases that wait for their turn
        self.generations = 0
        self.memory = Memory()
        metrics.watch(self.turns, pool)

    def needed(self, stage: Stage, record: Record) -> None:
        """A run needed this output on the device."""
        if stage.pooled and self._accesses is not None:
            self._accesses.note(record.address, record)

    def begin_generation(self) -> None:
        self.generations += 1
        self.metrics.generations.inc()
        self.news.announce()

    async def compute(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
        """What a function of the device thread returns, and the device seconds it took.

        When the device runs out of memory, everything reusable is let go and the function called once more. Raises
        DeviceMemory, or what the function raises.
        """
        for _ in range(2):
            try:
                made = await self.device.timed(function, *args, **kwargs)
                await self.measure_memory()
            except Exception as error:
                if not out_of_memory(error):
                    raise
            else:
                return made
            # Not before the exception is gone, whose traceback holds on to what was being computed.
            await self._make_room()
        raise DeviceMemory(free=self.memory.free, total=self.memory.total)

    async def measure_memory(self) -> None:
        self.memory = await self.device.run(memory, self.device.device)

    async def _make_room(self) -> None:
        for holder in self.waiting:
            holder.let_go()
        self.pool.clear()
        await self.device.run(free_unused, self.device.device)
        await self.measure_memory()
        self.news.announce()
