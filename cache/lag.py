"""Lag: how long an event loop stands still, which is how long everybody waits whom it serves; and what it has to do.

Something is due every twentieth of a second, and how late it comes is noted. A loop that stands still for a second is
seen as a second, whoever held it: our code, a library, a thread that keeps the interpreter to itself, or the machine.

Tasks are counted when somebody looks. Whatever waits here is one of them, so a number that only grows is work that has
no bound, or is never ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, Gauge, Histogram

EVERY = 0.05  # seconds
_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class LoopLag:
    """Watches the event loop it is opened in. Use as an async context manager."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._lag = Histogram(
            "reprise_event_loop_lag_seconds",
            "How late the event loop came to what was due every twentieth of a second",
            buckets=_BUCKETS,
            registry=registry,
        )
        self._tasks = Gauge("reprise_asyncio_tasks", "Tasks of the event loop that are not done", registry=registry)
        self._clock = clock
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._watch(self._clock or loop.time))
        self._tasks.set_function(lambda: len(asyncio.all_tasks(loop)))  # by the thread that serves metrics
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.set_function(lambda: 0)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self, clock: Callable[[], float]) -> None:
        while True:
            due = clock() + EVERY
            await self._sleep(EVERY)
            self._lag.observe(max(0.0, clock() - due))
