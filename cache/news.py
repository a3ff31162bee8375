"""News: lets any number of tasks wait for the next change of something, without a lock and without missing one."""

from __future__ import annotations

import asyncio


class News:
    """Check the state, then `wait`: nothing can change in between, because nothing else runs in between."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def announce(self) -> None:
        event, self._next = self._next, asyncio.Event()
        event.set()

    async def wait(self) -> None:
        await self._next.wait()
