"""L2's driver: Redis, standalone, Sentinel or Cluster. Nothing newer than the commands of Redis 6.2.

Which commands, on which names, `rights.py` lists: an access list grants these and no others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from cache.errors import TierUnwritable
from cache.redis_client import Door, client_of, translated

MAX_PAYLOAD = 1024 * 1024 - 4096  # a value just under a power of two wastes no allocator class
_T = TypeVar("_T")


class RedisStore:
    """Bytes in Redis, each with a TTL that starts again at every read."""

    def __init__(self, client: Any, *, connections: int, guides: Sequence[Any] = ()) -> None:
        self._client = client
        self._guides = guides  # clients of sentinels, which nobody else closes
        self._slots = asyncio.Semaphore(connections)  # callers wait here; clusters and sentinels would turn them away

    @classmethod
    def connect(cls, door: Door | str, *, budget: float, connections: int) -> RedisStore:
        """`budget` is in seconds; a string is a URL, as doors have them."""
        client, guides = client_of(Door(door) if isinstance(door, str) else door, budget, connections)
        return cls(client, connections=connections, guides=guides)

    async def get(self, name: str, ttl: float | None) -> bytes | None:
        value: bytes | None
        try:
            value = await self._ask(lambda client: client.getex(name, px=_milliseconds(ttl)))
        except TierUnwritable:  # to Redis that is a write, because of the age
            value = await self._ask(lambda client: client.get(name))
        return value

    async def get_many(self, names: Sequence[str], ttl: float | None) -> list[bytes | None]:
        # A pipeline of GETEX and not MGET: as many round trips, but it refreshes ages and works across cluster slots.
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.getex(name, px=_milliseconds(ttl))
        values: list[bytes | None]
        try:
            values = await self._ask(lambda client: pipeline.execute())
        except TierUnwritable:
            plain = self._client.pipeline(transaction=False)
            for name in names:
                plain.get(name)
            values = await self._ask(lambda client: plain.execute())
        return values

    async def put(self, name: str, data: bytes, ttl: float, *, replace: bool) -> bool:
        created: bool | None = await self._ask(
            lambda client: client.set(name, data, px=_milliseconds(ttl), nx=not replace)
        )
        return bool(created)

    async def delete(self, name: str) -> None:
        await self._ask(lambda client: client.unlink(name))

    async def push(self, name: str, data: bytes, keep: int, ttl: float) -> None:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.lpush(name, data).ltrim(name, 0, keep - 1).pexpire(name, _milliseconds(ttl))
        await self._ask(lambda client: pipeline.execute())

    async def head(self, name: str, count: int) -> list[bytes]:
        rows: list[bytes] = await self._ask(lambda client: client.lrange(name, 0, count - 1))
        return rows

    async def publish(self, channel: str, message: bytes) -> int:
        """How many clients were told."""
        return int(await self._ask(lambda client: client.publish(channel, message)))

    async def count(self, names: Sequence[str], member: str, keep: int, ttl: float) -> float:
        today, *before = names
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zincrby(today, 1, member)
        for name in before:
            pipeline.zscore(name, member)
        pipeline.zremrangebyrank(today, 0, -keep - 1).pexpire(today, _milliseconds(ttl))
        replies: list[float | None] = await self._ask(lambda client: pipeline.execute())
        return sum(float(reply or 0.0) for reply in replies[: len(names)])

    async def highest(self, names: Sequence[str], count: int) -> list[list[tuple[str, float]]]:
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.zrevrange(name, 0, count - 1, withscores=True)
        replies: list[list[tuple[bytes, float]]] = await self._ask(lambda client: pipeline.execute())
        return [[(member.decode(), float(score)) for member, score in reply] for reply in replies]

    async def delete_many(self, names: Sequence[str]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.unlink(name)
        await self._ask(lambda client: pipeline.execute())

    async def usage(self) -> dict[str, int]:
        """Entries, bytes, capacity and evictions of the whole server."""
        info = await self.info()
        return {
            "entries": sum(
                int(db["keys"]) for name, db in info.items() if name.startswith("db") and isinstance(db, dict)
            ),
            "bytes": int(info["used_memory"]),
            "capacity_bytes": int(info["maxmemory"]),
            "evictions": int(info["evicted_keys"]),
        }

    async def info(self) -> dict[str, Any]:
        """All that the server says of itself, by the names of Redis's INFO."""
        info: dict[str, Any] = await self._ask(lambda client: client.info("everything"))
        return info

    async def setting(self, name: str) -> str:
        """One setting of the server; empty if it has none of this name."""
        found: dict[str, str] = await self._ask(lambda client: client.config_get(name))
        return str(found.get(name, ""))

    async def user(self) -> str:
        """As whom we came; "default" for whoever gave no name."""
        name: bytes | str = await self._ask(lambda client: client.acl_whoami())
        return name.decode() if isinstance(name, bytes) else name

    async def entries(self) -> int:
        """Of the whole server. Nobody needs it but who wants to know whether we may do more than we must."""
        return int(await self._ask(lambda client: client.dbsize()))

    async def time(self) -> float:
        """Seconds since the epoch, by the server's clock."""
        seconds, microseconds = await self._ask(lambda client: client.time())
        return int(seconds) + int(microseconds) / 1e6

    async def aclose(self) -> None:
        for client in (self._client, *self._guides):
            await client.aclose()

    async def _ask(self, command: Callable[[Any], Awaitable[_T]]) -> _T:
        async with self._slots:
            return await translated(command(self._client))


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, int(seconds * 1000))
