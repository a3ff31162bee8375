"""Stock: the outputs of stages that a worker has at hand, and the ways between where they lie.

    tiers --bring--> pool (device memory) --demote--> host pool (host memory) --promote--> pool
                     ^ keep: what a stage just made                            `-> let go: the tiers have it

Whoever has to leave the pool is demoted first and its room used after that, so the pool's bound holds at every moment.
An output lies in one of the two. On a processor both would be the same memory: there the host pool has no room.

| on the way | becomes of it |
|---|---|
| no room on the device, or everything there is leased | it stays where it is, and is copied at its run's turn |
| the device has no memory for it | likewise |
| the host has no room for what is demoted, or its copy fails | it is let go |
| a run needs all the memory there is (`emptied`) | nothing is let in; what is on its way is turned back |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog

from cache.bans import Bans
from cache.keys import Address
from cache.record import Record
from cache.sweep import Gone
from inference import tensors
from inference.device import DeviceThread, out_of_memory
from inference.models.base import Tensors
from inference.pool import Hot, Place, Pool, compact

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Stock:
    """`on_change` hears whenever what is held has changed. Belongs to one event loop.

    A move that has begun goes on to its end, even if its caller is cancelled: what is being copied into has its room.
    """

    def __init__(
        self, pool: Pool, host: Pool, beside: DeviceThread, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.pool = pool
        self.host = host
        self.demotions = 0
        self.promotions = 0
        self._beside = beside
        self._on_change = on_change
        self._closed = False
        self._moves: set[asyncio.Task[Any]] = set()  # under way

    async def keep(self, hot: Hot) -> bool:
        """Keep what a stage made on the device. False if there is no room."""
        return await self._to_its_end(self._settle(self._reserve(hot.record, hot.weight), hot.tensors))

    async def bring(self, record: Record, data: bytes) -> bool:
        """Put an output as the tiers have it into the pool. False if there is no room. Raises ValueError for bytes that
        are no tensors.
        """
        own, weight = await self._beside.run(load, data)
        held = self.pool.peek(record.address)
        if held is not None and held.record.made_at >= record.made_at:
            return True  # somebody else was quicker
        return await self._to_its_end(self._settle(self._reserve(record, weight), own))

    async def promote(self, address: Address) -> bool:
        """Move an output from the host's memory into the pool. False if it is not there, or there is no room."""
        return await self._to_its_end(self._promote(address))

    async def resize(self, max_bytes: int) -> None:
        """Another bound for the pool from now on."""
        await self._to_its_end(self._demote(self.pool.resize(max_bytes)))

    @asynccontextmanager
    async def emptied(self, let_go: Callable[[], None]) -> AsyncIterator[None]:
        """While it is open the pool holds what the run on the device has leased, and nothing else comes in.

        `let_go` has everybody else give their leases back.
        """
        self._closed = True
        try:
            while self._moves:
                await asyncio.wait(self._moves)
            let_go()
            await self._demote(self.pool.clear())
            await self._beside.run(_nothing)  # a thread refers to what it worked with until it has something else to do
            yield
        finally:
            self._closed = False

    async def let_go(self, bans: Bans) -> Gone:
        """Let go of what is banned, wherever it lies."""
        gone = [await pool.let_go(bans) for pool in (self.pool, self.host)]
        self._on_change()
        return Gone.total(gone)

    async def _promote(self, address: Address) -> bool:
        hot = self.host.lease(address)
        if hot is None:
            return False
        try:
            if not await self._settle(self._reserve(hot.record, hot.weight), hot.tensors):
                return False
        finally:
            self.host.release(address)
        self.host.take(address)
        self.promotions += 1
        return True

    def _reserve(self, record: Record, weight: int) -> Place | None:
        return None if self._closed else self.pool.reserve(record, weight)

    async def _settle(self, place: Place | None, own: Tensors) -> bool:
        """Fill a place with tensors, wherever they are, once those who had to leave for it have left."""
        if place is None:
            return False
        with place:
            await self._demote(place.evicted)
            if self._closed:
                return False
            try:
                place.fill(await self._beside.run(self._beside.device.bring_in, own))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                return False
        self.host.take(place.address)
        return True

    async def _demote(self, leaving: list[Hot]) -> None:
        while leaving:
            await self._demote_one(leaving.pop(0))  # nothing may go on referring to what has left

    async def _demote_one(self, hot: Hot) -> None:
        place = self.host.reserve(hot.record, hot.weight)
        if place is None:
            return
        with place:
            try:
                place.fill(await self._beside.run(self._beside.device.take_out, hot.tensors))
                self.demotions += 1
            except Exception as error:  # noqa: BLE001  # whatever it was, the tiers have it, and no run may fail
                _log.warning("not demoted", stage=hot.record.stage, error=type(error).__name__)

    async def _to_its_end(self, move: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(move)
        self._moves.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._moves.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have left
        self._on_change()


def _nothing() -> None: ...


def load(data: bytes) -> tuple[Tensors, int]:
    """Tensors in host memory and their bytes. Raises ValueError for bytes that are none."""
    return compact(tensors.from_bytes(data))
