"""Pressure: what a gateway gives up where memory runs short, step by step, before the kernel ends it.

| of the memory it may have | what is given up |
|---|---|
| 85 % | entries of L1, those of least value first, until it is below; what they took goes back to the system |
| 92 % | what would begin a generation, or decode media that are new here: refused (MEMORY_SHORT). Other hits go on |
| 95 % | everything but health checks and what operators ask |

A step is taken back once it is three hundredths below where it began, so that none of them flaps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import IntEnum
from types import TracebackType
from typing import Any, Self

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from prometheus_client import CollectorRegistry, Gauge

from cache.memory import MemoryTier
from cache.resident import give_back, resident_bytes
from gateway.errors import Overloaded
from gateway.ledger import Ledger

EVERY = 0.1  # seconds; a few quick hits may bring a hundred mebibytes in a quarter of one
_log = structlog.get_logger(__name__)


class Level(IntEnum):
    """How short memory is."""

    NONE = 0
    SHRINK = 1  # L1 gives way
    HITS = 2  # hits alone
    NOTHING = 3


_BEGINS = {Level.NOTHING: 0.95, Level.HITS: 0.92, Level.SHRINK: 0.85}  # as a share of what there may be
_SLACK = 0.03
_WORTH_A_TRY = 0.01  # more than was left the last time: giving back holds up whoever wants memory meanwhile


def level_at(share: float, before: Level) -> Level:
    """The level with this share of the memory taken, where it was `before`."""
    return next(
        (level for level, begins in _BEGINS.items() if share >= begins - (_SLACK if level <= before else 0.0)),
        Level.NONE,
    )


class Pressure:
    """Watches the memory of this process, of which it may have `max_bytes`; None: nobody knows, and nothing is done.

    Use as an async context manager.
    """

    def __init__(
        self,
        memory: MemoryTier,
        max_bytes: int | None,
        *,
        resident: Callable[[], int] = resident_bytes,
        give_back: Callable[[], None] = give_back,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0  # resident when last looked
        self.level = Level.NONE
        self._memory = memory
        self._resident = resident
        self._give_back = give_back
        self._sleep = sleep
        self._relieved = 0  # bytes that were resident after all was done that could be
        self._task: asyncio.Task[None] | None = None

    def watch(self, registry: CollectorRegistry) -> None:
        """Show it in metrics."""
        level = Gauge("reprise_memory_pressure", "0; 1: L1 gives way; 2: hits alone; 3: nothing", registry=registry)
        level.set_function(lambda: self.level)
        held = Gauge(
            "reprise_memory_resident_bytes", "Resident bytes of this process when last looked", registry=registry
        )
        held.set_function(lambda: self.bytes)
        may = Gauge("reprise_memory_max_bytes", "What it may have; 0: nobody knows", registry=registry)
        may.set(self.max_bytes or 0)

    async def __aenter__(self) -> Self:
        if self.max_bytes is not None:
            self._task = asyncio.create_task(self._watch(self.max_bytes))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def admit_work(self) -> None:
        """Asked before a generation is begun, and before media are decoded. Raises Overloaded."""
        self._admit(below=Level.HITS)

    def admit_anything(self) -> None:
        """Asked of every call but operators'. Raises Overloaded."""
        self._admit(below=Level.NOTHING)

    def _admit(self, *, below: Level) -> None:
        if self.level >= below:
            raise Overloaded("MEMORY_SHORT")

    async def _watch(self, max_bytes: int) -> None:
        while True:
            try:
                await self._look(max_bytes)
            except Exception as error:  # noqa: BLE001  # whatever it is, the last look must not refuse people for ever
                _log.error("memory not looked at", error=type(error).__name__)
                self.level = Level.NONE
            await self._sleep(EVERY)

    async def _look(self, max_bytes: int) -> None:
        resident = await asyncio.to_thread(self._resident)
        if resident >= _BEGINS[Level.SHRINK] * max_bytes and self._can_relieve(resident, max_bytes):
            resident = await self._relieve(max_bytes)
        self.bytes, self.level = resident, level_at(resident / max_bytes, self.level)

    def _can_relieve(self, resident: int, max_bytes: int) -> bool:
        return self._memory.entries.bytes > 0 or resident > self._relieved + _WORTH_A_TRY * max_bytes

    async def _relieve(self, max_bytes: int) -> int:
        """Give back what is free, then as much of L1 as it takes; the bytes that are resident after that."""
        share = await asyncio.to_thread(self._given_back) / max_bytes
        if share >= _BEGINS[Level.SHRINK]:
            over = (share - _BEGINS[Level.SHRINK] + _SLACK) * max_bytes
            self._memory.shrink(max(0, int(self._memory.entries.bytes - over)))
            share = await asyncio.to_thread(self._given_back) / max_bytes
        self._relieved = round(share * max_bytes)
        return self._relieved

    def _given_back(self) -> int:
        """Give freed memory back; the bytes that are resident then. Blocking."""
        self._give_back()
        return self._resident()


class PressureInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls of these services before anything of them is read, where there is memory for nothing."""

    def __init__(self, pressure: Pressure, ledger: Ledger, *services: ServiceDescriptor) -> None:
        self._pressure = pressure
        self._ledger = ledger
        # By name: what else callers may write there is counted nowhere.
        self._methods = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        if method in self._methods:
            try:
                self._pressure.admit_anything()
            except Overloaded as refused:
                self._ledger.refused(method.removeprefix("/"), refused.code.name, refused.reason)
                raise
        return await continuation(handler_call_details)
