"""Workshop: what all runs of a worker share: the device, its pool, the tiers, the line before it, the counters."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import ParamSpec, Protocol, TypeVar

from cache.accesses import AccessLog
from cache.bans import Bans
from cache.clock import steady
from cache.description import Stage
from cache.fair import SHARE
from cache.hierarchy import Hierarchy
from cache.news import News
from cache.record import Record
from cache.telemetry import Tracing
from inference.device import MIB, DeviceThread, Memory, Timed, free_unused, out_of_memory
from inference.errors import DeviceMemory
from inference.metrics import WorkerMetrics
from inference.pool import Pool
from inference.stock import Stock
from inference.turns import Turns

P = ParamSpec("P")
T = TypeVar("T")

_UNTIL_MEASURED = 2048 * MIB  # bytes that a pool takes at most before it is known what a run needs
_SPARE = 50  # one part in so many of a device's memory is left over: allocators need room between tensors


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
        host: Pool | None = None,
        queue: int,
        tenant_share: float = SHARE,
        execution: Mapping[str, str],
        bans: Bans | None = None,
        news: News | None = None,
        accesses: AccessLog | None = None,
        clock: Callable[[], float] = steady,
    ) -> None:
        self.process = secrets.token_hex(8)  # names this one, whatever was here before a restart
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
        self.turns = Turns(queue, self.news.announce, share=tenant_share)
        self.stock = Stock(pool, host if host is not None else Pool(max_bytes=0), beside, self.news.announce)
        self.waiting: set[Holder] = set()  # those with leases whose turn has not come
        self.generations = 0
        self.memory = Memory()
        self.run_bytes = 0  # the most that a stage needed beside what was in use when it began
        self._measured = False  # whether all stages of some run are in that
        self._most_pool_bytes = pool.max_bytes
        metrics.watch(self)

    def needed(self, stage: Stage, record: Record) -> None:
        """A run needed this output on the device."""
        if stage.pooled and self._accesses is not None:
            self._accesses.note(record.address, record)

    def begin_generation(self) -> None:
        self.generations += 1
        self.metrics.generations.inc()
        self.news.announce()

    async def end_generation(self) -> None:
        """A run has come to its end: what it needed is known."""
        if not self._measured:
            self._measured = True
            await self.size_pool()

    async def compute(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
        """What a function of the device thread returns, and the device seconds it took.

        When the device runs out of memory, everything reusable leaves it and the function is called once more, with
        nothing else coming in meanwhile. Raises DeviceMemory, or what the function raises.
        """
        made = await self._attempt(function, *args, **kwargs)
        if made is None:
            self.metrics.out_of_memory.inc()
            async with self.stock.emptied(self._take_leases):
                await self.device.run(free_unused, self.device.device)
                made = await self._attempt(function, *args, **kwargs)
        if made is None:
            raise DeviceMemory(free=self.memory.free, total=self.memory.total)
        result, cost = made
        await self._learn(cost.bytes)
        return result, cost.seconds

    async def measure_memory(self) -> None:
        self.memory = await self.device.run(self.device.device.memory)

    async def size_pool(self) -> None:
        """Bound the pool by what the device has beside models and the most that a stage has needed; by a quarter of
        that until a run has shown what all stages need.
        """
        if self.memory.total == 0:
            return
        left = self.memory.free + self.pool.bytes - self.run_bytes - self.memory.total // _SPARE
        if not self._measured:
            left = min(left // 4, _UNTIL_MEASURED)
        await self.stock.resize(max(0, min(left, self._most_pool_bytes)))

    async def _attempt(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, Timed] | None:
        """None where memory was not enough; not before the exception is gone, which holds what was being computed."""
        try:
            return await self.device.measured(function, *args, **kwargs)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None
        finally:
            await self.measure_memory()

    async def _learn(self, needed: int) -> None:
        if needed > self.run_bytes:
            self.run_bytes = needed
            await self.size_pool()

    def _take_leases(self) -> None:
        for holder in self.waiting:
            holder.let_go()
