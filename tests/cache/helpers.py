"""What the tests of this room share: a clock that is moved by hand, a scripted tier, and small records."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cache.digest import Digest
from cache.errors import TierError, TierResting, TierTimeout
from cache.keys import Address, Key
from cache.record import Output, Record
from cache.tier import Lookup, Outcome, TierName
from gateway.stack.parts import Running, wait_until

NOW = 1_700_000_000.0
NAMESPACE = "0" * 32
SECRET = bytes(range(32))


def pause(server: Running) -> None:
    """Stop a server in the middle of whatever it does, and see that it has stopped."""
    server.pause()
    assert wait_until(lambda: psutil.Process(server.pid).status() == psutil.STATUS_STOPPED, 10.0)


class Planted:
    """Pickled and loaded again, it makes a file: what an attacker would do with a cache that unpickles."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return exec, (f"open({str(self._path)!r}, 'w').close()",)


class Clock:
    """Stands still until it is moved."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def address_of(name: str, namespace: str = NAMESPACE) -> Address:
    return Address(namespace, Digest.of(name.encode()).hex)


def record_of(
    data: bytes,
    *,
    name: str = "clip",
    now: float = NOW,
    ttl: float = 600.0,
    max_age: float = 3600.0,
    inline: bool = False,
    model: str = "small",
) -> Record:
    """A record of `data` at the address that `name` stands for."""
    return Record(
        address=address_of(name),
        model=model,
        revision="r1",
        stage="render",
        fingerprint="f1",
        output=Output(Digest.of(data), "video/mp4", data if inline else None),
        device_seconds=1.5,
        total_device_seconds=4.0,
        made_at=now,
        touched_at=now,
        ttl=ttl,
        expires_at=now + max_age,
    )


@dataclass
class ScriptedTier:
    """A shared tier in memory that does what its script says: `fault` fails every call, `hold` stops puts.

    Keeps a journal of every put and delete, and of the keys it was asked for.
    """

    name: TierName
    local: bool = False
    max_payload: int | None = None
    entries: dict[Key, bytes] = field(default_factory=dict)
    fault: Outcome | None = None
    failing_puts: int = 0  # so many more puts raise
    open: asyncio.Event | None = None  # puts wait until it is set
    puts: list[Key] = field(default_factory=list)
    tries: int = 0
    deletes: list[Key] = field(default_factory=list)
    gets: list[Key] = field(default_factory=list)
    ttls: list[float | None] = field(default_factory=list)

    def holds(self, size: int) -> bool:
        return self.max_payload is None or size <= self.max_payload

    async def get(self, key: Key, ttl: float | None) -> Lookup:
        self.gets.append(key)
        self.ttls.append(ttl)
        if self.fault is not None:
            return Lookup(self.name, self.fault)
        value = self.entries.get(key)
        return Lookup(self.name, Outcome.MISS if value is None else Outcome.HIT, value)

    async def get_many(self, keys: Sequence[Key], ttl: float | None) -> list[Lookup]:
        return [await self.get(key, ttl) for key in keys]

    async def put(self, key: Key, payload: bytes, ttl: float, *, replace: bool = False, cost: float = 0.0) -> bool:
        self.tries += 1
        if self.open is not None:
            await self.open.wait()
        if self.failing_puts:
            self.failing_puts -= 1
            raise TierError("scripted")
        self._raise_fault()
        if key in self.entries and not replace:
            return False
        self.puts.append(key)
        self.entries[key] = payload
        return True

    async def delete(self, key: Key) -> None:
        self._raise_fault()
        self.deletes.append(key)
        self.entries.pop(key, None)

    async def aclose(self) -> None:
        self.entries.clear()

    def _raise_fault(self) -> None:
        match self.fault:
            case Outcome.TIMEOUT:
                raise TierTimeout("scripted")
            case Outcome.SKIPPED:
                raise TierResting("scripted")
            case Outcome.ERROR:
                raise TierError("scripted")
