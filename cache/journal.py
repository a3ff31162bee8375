"""Journal: short lists of what happened lately, shared by all processes of a deployment.

It lives in Redis beside L2, under the same budget and the same breaker, and is no tier: nothing depends on a row being
there, any row may be anybody's, and the oldest ones go by themselves.
"""

from __future__ import annotations

from typing import Protocol

from cache.guard import Guard


class Lists(Protocol):
    """Named lists of bytes on some server, the newest first. Methods raise TierError, and nothing else."""

    async def push(self, name: str, data: bytes, keep: int, ttl: float) -> None: ...

    async def head(self, name: str, count: int) -> list[bytes]: ...

    async def delete(self, name: str) -> None: ...


class Journal:
    """All methods raise TierError and are over within the budget."""

    def __init__(self, lists: Lists, guard: Guard) -> None:
        self._lists = lists
        self._guard = guard

    async def append(self, name: str, data: bytes, *, keep: int, ttl: float) -> None:
        """Add a row; the `keep` newest ones stay, and all go `ttl` seconds after the last one was added."""
        await self._guard.call(self._lists.push(name, data, keep, ttl), writes=True)

    async def tail(self, name: str, count: int) -> list[bytes]:
        """The newest rows, the newest first."""
        return await self._guard.call(self._lists.head(name, count))

    async def forget(self, name: str) -> None:
        """Remove all rows."""
        await self._guard.call(self._lists.delete(name), writes=True)
