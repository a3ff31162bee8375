"""Closed loop: so many clients, each of whom asks again as soon as it was answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

Ask: TypeAlias = Callable[[], Awaitable[None]]  # one request, from its sending to the last byte of its answer


class Stray(Exception):
    """An answer that is not of the kind this subject is about: a miss, say, among hits."""


@dataclass(frozen=True)
class Slice:
    """What one subject did in its turn of one round."""

    latencies: list[float]  # seconds, of each answer
    strays: int
    seconds: float
    processor_seconds: float  # of the process that is measured

    @property
    def cost(self) -> float:
        """Processor time of one request, in seconds."""
        return self.processor_seconds / len(self.latencies)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds


async def closed_loop(
    ask: Ask,
    *,
    clients: int,
    seconds: float,
    processor: Callable[[], float],
    beside: Ask | None = None,
    others: int = 0,
) -> Slice:
    """Load for so many seconds; every client asks at least once. Meanwhile `others` clients ask for `beside`."""
    latencies: list[float] = []
    strays = 0

    async def client() -> None:
        nonlocal strays
        while True:
            began = time.perf_counter()
            try:
                await ask()
            except Stray:
                strays += 1
            ended = time.perf_counter()
            latencies.append(ended - began)
            if ended >= until:
                return

    async def other() -> None:
        assert beside is not None
        while True:
            with suppress(Stray):
                await beside()

    noise = [asyncio.create_task(other()) for _ in range(others)]
    try:
        started, before = time.perf_counter(), processor()
        until = started + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
        return Slice(latencies, strays, time.perf_counter() - started, processor() - before)
    finally:
        for task in noise:
            task.cancel()
        for ended in await asyncio.gather(*noise, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended  # the figure would be of another load
