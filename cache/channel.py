"""Channel: one message to every process of a deployment at once, over Redis.

What is told while a process is cut off never reaches it. So a listener knows whether it is connected, and is told
whenever it may have missed something; whoever must not miss anything keeps it written down elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from cache.errors import TierError
from cache.redis_client import Door, client_of, translated

_BEAT = 2.0  # seconds without a message after which a sign of life is asked for
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 2.0  # seconds between tries to connect
_CONNECTIONS = 4
_log = structlog.get_logger(__name__)


class RedisChannel:
    """`connected`: what is told from now on is heard here."""

    def __init__(self, client: Any, name: str, *, budget: float, guides: Sequence[Any] = ()) -> None:
        self.connected = False
        self._client = client
        self._guides = guides  # clients of sentinels, which nobody else closes
        self._name = f"reprise:{name}"
        self._budget = budget

    @classmethod
    def connect(cls, door: Door | str, name: str, *, budget: float) -> RedisChannel:
        """`budget` in seconds is for telling; a string is a URL, as doors have them."""
        client, guides = client_of(Door(door) if isinstance(door, str) else door, budget, _CONNECTIONS)
        return cls(client, name, budget=budget, guides=guides)

    async def tell(self, message: bytes) -> int:
        """How many processes were told, this one included if it listens. Raises TierError."""
        try:
            async with asyncio.timeout(2 * self._budget):
                return int(await translated(self._client.publish(self._name, message)))
        except TimeoutError as error:
            raise TierError("redis did not answer") from error

    async def listen(self, hear: Callable[[bytes], Awaitable[None]], heal: Callable[[], Awaitable[None]]) -> None:
        """Call `hear` with every message, for ever. `heal` is called once each time the connection stands again."""
        pause = _FIRST_PAUSE
        while True:
            try:
                async with self._client.pubsub() as subscription:
                    await translated(subscription.subscribe(self._name))
                    pause = _FIRST_PAUSE
                    await self._follow(subscription, hear, heal)
            except TierError as error:
                _log.info("channel lost", error=str(error))
            except Exception as error:  # noqa: BLE001 - whatever it was, a process must not be deaf for ever
                _log.error("channel failed", error=type(error).__name__)
            finally:
                self.connected = False
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def aclose(self) -> None:
        for client in (self._client, *self._guides):
            await client.aclose()

    async def _follow(
        self, subscription: Any, hear: Callable[[bytes], Awaitable[None]], heal: Callable[[], Awaitable[None]]
    ) -> None:
        asked = False
        while True:
            message = await translated(subscription.get_message(timeout=_BEAT))
            if message is None:
                if asked:
                    raise TierError("no sign of life")
                await translated(subscription.ping())
                asked = True
                continue
            asked = False
            match message["type"]:
                case "subscribe":
                    self.connected = True
                    await heal()
                case "message":
                    await hear(message["data"])
