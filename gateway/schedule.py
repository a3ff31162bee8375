"""Schedule: what settings want made ahead is made when its time has come, by one of all gateways.

Which one is settled by an object in the durable tier that only one of them can create, `w/<entry>/<time>`. It saves
work and decides nothing: where two do the same, or the tier cannot be asked, equal requests still share one run. A time
that passed while no gateway ran is passed over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress

import structlog

from cache.encoding import keyed_hash_of
from cache.errors import TierError
from cache.keys import Principal
from cache.objects import ObjectsStore
from gateway.errors import Overloaded, Refused
from gateway.request_files import UnusableFile, read_requests
from gateway.settings import DAY, WarmEntry
from gateway.status import path_of
from gateway.tasks import favourite_of
from gateway.warm import Warmer
from reprise.v1.cache_pb2 import WarmRequest, WarmSummary

_KEPT = 8 * DAY  # who did it may be forgotten after that: by stores that forget, and by sweeps (cache/gc.py)
_log = structlog.get_logger(__name__)


class Schedule:
    """Use as an async context manager; leaving it ends what is under way. `objects` is None where nothing is shared."""

    def __init__(
        self,
        entries: Sequence[WarmEntry],
        warmer: Warmer,
        objects: ObjectsStore | None,
        secret: bytes,
        *,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._entries = tuple(entries)
        self._warmer = warmer
        self._objects = objects
        self._secret = secret
        self._clock = clock
        self._pause = pause
        self._turn = asyncio.Lock()  # one after the other, so that they are never too many at once
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Schedule:
        self._tasks = [asyncio.create_task(self._keep(entry)) for entry in self._entries]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def run(self, entry: WarmEntry, due: float) -> WarmSummary | None:
        """Make ahead what an entry says at this time, unless another gateway does. None: nothing was made here."""
        if not await self._is_ours(entry, due):
            return None
        try:
            request = await asyncio.to_thread(_request_of, entry)
            async with self._turn:
                summary, spent = await self._make(entry, request, until=next_time(entry, due))
        except Refused as refused:
            _log.warning("not made ahead", reason=refused.reason, field=refused.field)
            return None
        except UnusableFile:  # whose words may quote a request
            _log.warning("not made ahead: the file cannot be used; `reprise warm` says why", file=str(entry.file))
            return None
        _log.info(
            "made ahead",
            made=summary.made,
            there=summary.there,
            joined=summary.joined,
            over_budget=summary.over_budget,
            refused=summary.refused,
            device_seconds=spent,
        )
        return summary

    async def _make(self, entry: WarmEntry, request: WarmRequest, *, until: float) -> tuple[WarmSummary, float]:
        """The sum of it, and its device seconds. Waits until then, if need be, while operators have results made."""
        while True:
            try:
                async with aclosing(self._warmer.warm(request, Principal(entry.tenant, entry.user))) as responses:
                    async for response in responses:
                        last = response
            except Overloaded as busy:
                if self._clock() >= until:
                    raise
                await self._pause(busy.retry_after or 1.0)
            else:
                return last.summary, last.device_seconds_spent

    async def _keep(self, entry: WarmEntry) -> None:
        while True:
            due = next_time(entry, self._clock())
            while (left := due - self._clock()) > 0:
                await self._pause(left)
            try:
                await self.run(entry, due)
            except Exception as error:  # noqa: BLE001 - a bug here must not end the schedule
                _log.error("not made ahead", error=type(error).__name__, traceback=path_of(error))

    async def _is_ours(self, entry: WarmEntry, due: float) -> bool:
        if self._objects is None:
            return True
        # Named by a keyed hash: an entry says whose it is.
        folder = f"w/{keyed_hash_of(self._secret, 'schedule', entry.model_dump_json())[:32]}/"
        name = f"{folder}{int(due):012d}"
        try:
            if not await self._objects.put(name, b"", _KEPT, replace=False):
                return False
        except TierError:
            return True
        with suppress(TierError):
            for other in await self._objects.names(folder):
                if other < name:
                    await self._objects.delete(other)
        return True


def next_time(entry: WarmEntry, now: float) -> float:
    """When an entry is due next, after now; in seconds since the epoch, the same in every gateway."""
    period, first = entry.every or DAY, 0.0
    if entry.at is not None:
        hours, minutes = map(int, entry.at.split(":"))
        first = hours * 3600.0 + minutes * 60.0
    return first + ((now - first) // period + 1) * period


def _request_of(entry: WarmEntry) -> WarmRequest:
    requests = read_requests(entry.file) if entry.file is not None else []
    return WarmRequest(
        favourites=[favourite_of(each, entry.tenant, entry.user) for each in requests],
        frequent=entry.frequent,
        budget_device_seconds=entry.budget,
        most=entry.most,
        tenant=entry.tenant,
    )
