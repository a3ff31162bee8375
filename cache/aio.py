"""Our tiers as an `aiocache.BaseCache`: L1 alone (`MemoryCache`), and L1, Redis and object storage (`TieredCache`).

It is the interface Python people know, for values under names of their own choice; aiocache's plugins and decorators
work on it. The gateway's hot path does not use it, and nothing of aiocache's own backends or locks is behind it.

Names and values. A name is a str, bytes, a number, or lists and mappings of them; it becomes a keyed hash and can be
read in no tier and no log. Values are None, bool, int, float, str, bytes, and lists and dicts of them: what comes back
equals what was put in, and what could not (a tuple, an object) is refused with TypeError. Other serializers of aiocache
may be given, but for pickle, which runs code of whoever can write to the store.

How a value lies in the tiers. As a record like any other, of the stage "value": inlined up to 64 KiB, else with its
blob; sealed, verified at every read, and judged by its own expiry, because L3 forgets nothing by itself.

What is promised. Unlike what stages make, a named value can be replaced, so writes do not go behind: `set`, `delete`
and `expire` return when every tier has been told, and raise TierError when one could not be. Reads never raise; a tier
that fails is a miss. This process sees its own writes at once, others see them after `memory_seconds` at most.

| operation | atomic |
|---|---|
| `add` | everywhere, by the durable tier's create-only write; of two that follow an expired value both may win |
| `set`, `delete`, `expire` | per tier: two processes that set one name at the same moment may leave L2 and L3 apart |
| `increment`, compare-and-set | in this process |

A ttl (seconds) counts from the write, reads do not prolong it; None or 0 is none. `clear` reads the names of everything
in the namespace. A stored None cannot be told from a miss by `get`, only by `exists`; `raw` is not offered.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from enum import Enum
from functools import partial
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import msgpack
from aiocache.base import BaseCache
from aiocache.serializers import BaseSerializer, PickleSerializer

from cache.build import Tiers
from cache.clock import steady
from cache.digest import Digest
from cache.encoding import Value, keyed_hash_of
from cache.errors import TierError
from cache.keys import Address, Key
from cache.memory import MemoryTier
from cache.purge import purge, sweep_blobs
from cache.record import INLINE_LIMIT, NotARecord, Output, Record
from cache.tier import FAULTS, Lookup, Tier

_T = TypeVar("_T")
_FOREVER = 100 * 365 * 24 * 3600.0  # seconds; a record's times are finite numbers
_AT_ONCE = 16  # operations of a multi_get or multi_set that are under way together
_MEDIA_TYPE = "application/octet-stream"


class Kept(NamedTuple):
    """A value as it is stored, and until when (seconds since the epoch)."""

    data: bytes
    expires_at: float


class PlainSerializer(BaseSerializer):  # type: ignore[misc]
    """Plain data as msgpack, nothing else, and nothing turned into something similar."""

    DEFAULT_ENCODING = None

    def dumps(self, value: Any) -> bytes:
        """Raises TypeError for what would not come back as it is, OverflowError for integers beyond 64 bits."""
        return bytes(msgpack.packb(value, strict_types=True))

    def loads(self, data: bytes | None) -> Any:
        """None also for what another serializer wrote: that is a miss."""
        if data is None:
            return None
        try:
            return msgpack.unpackb(data, strict_map_key=False)
        except (ValueError, TypeError, msgpack.UnpackException):  # TypeError: a mapping by what cannot be a key
            return None


class _Copies:
    """Values in this process's L1, with who may be in there, so that they can be found again by namespace."""

    def __init__(self, memory: MemoryTier, clock: Callable[[], float]) -> None:
        self._memory = memory
        self._clock = clock
        self._addresses: set[Address] = set()  # those that L1 holds, and of those it let go not many more

    def peek(self, address: Address) -> Kept | None:
        kept: Kept | None = self._memory.held(Key.of_wire(address))
        return kept

    def hold(self, address: Address, kept: Kept, until: float) -> bool:
        """Keep a copy until then at most (seconds since the epoch). False if it does not fit."""
        ttl = until - self._clock()
        if not self._memory.hold(Key.of_wire(address), kept, len(kept.data), ttl, hard_expiry=until):
            return False
        self._addresses.add(address)
        if len(self._addresses) > 2 * len(self._memory.entries) + 64:
            self._addresses = {one for one in self._addresses if Key.of_wire(one) in self._memory.entries}
        return True

    def drop(self, address: Address) -> bool:
        self._addresses.discard(address)
        return self._memory.entries.delete(Key.of_wire(address))

    def drop_all(self, namespace: str) -> None:
        for address in [address for address in self._addresses if address.namespace == namespace]:
            self.drop(address)


class _NamedValues(BaseCache):  # type: ignore[misc]
    """aiocache's hooks, said once in terms of five operations on a place where values are kept."""

    def __init__(
        self,
        *,
        secret: bytes,
        serializer: BaseSerializer | None = None,
        key_builder: Callable[[Any, str | None], Value] | None = None,
        clock: Callable[[], float] = steady,
        timeout: float | None = 0,
        **options: Any,
    ) -> None:
        if isinstance(serializer, PickleSerializer):
            raise ValueError("pickle runs code of whoever can write to the store")  # noqa: TRY004 - a bad choice
        super().__init__(serializer=serializer or PlainSerializer(), timeout=timeout, **options)
        self._secret = secret
        self._name_of = key_builder
        self._clock = clock
        self._turns: WeakValueDictionary[Address, asyncio.Lock] = WeakValueDictionary()
        self._reads: dict[Address, asyncio.Task[Kept | None]] = {}
        self._changes: set[asyncio.Task[Any]] = set()

    # What a place has to offer. All but `_peek` are called by one at a time per address.

    def _peek(self, address: Address) -> Kept | None:
        """A live value, if it can be had without waiting."""
        raise NotImplementedError

    async def _read(self, address: Address) -> Kept | None:
        """The live value, from where it is decided what it is."""
        raise NotImplementedError

    async def _write(self, address: Address, kept: Kept, *, create: bool = False) -> bool:
        """Store a value. False if it is not kept: there is a live one and `create` is set, or there is no room."""
        raise NotImplementedError

    async def _erase(self, address: Address) -> bool:
        """Whether there was one."""
        raise NotImplementedError

    async def _erase_all(self, namespace: str) -> None:
        raise NotImplementedError

    # aiocache's hooks.

    def build_key(self, key: Value | Enum, namespace: str | None = None) -> Address:
        name = key.value if isinstance(key, Enum) else key
        if self._name_of is not None:
            name = self._name_of(key, namespace)
        space = self._namespace_of(namespace if namespace is not None else self.namespace)
        return Address(space, keyed_hash_of(self._secret, "name", name))

    _build_key = build_key  # aiocache 0.12 asks for it by this name, later ones by the other

    async def _get(self, key: Address, encoding: str | None = None, _conn: object = None) -> Any:
        kept = self._peek(key) or await self._read_once(key)
        return None if kept is None else _decoded(kept.data, encoding)

    async def _gets(self, key: Address, encoding: str | None = None, _conn: object = None) -> Any:
        """The value as a token for `_set`, from where it is decided what it is."""
        async with self._turn(key):
            kept = await self._read(key)
        return None if kept is None else _decoded(kept.data, self.serializer.encoding)

    async def _multi_get(self, keys: Sequence[Address], encoding: str | None = None, _conn: object = None) -> list[Any]:
        return await _few_at_a_time([partial(self._get, key, encoding) for key in keys])

    async def _set(
        self, key: Address, value: object, ttl: float | None = None, _cas_token: object = None, _conn: object = None
    ) -> bool:
        kept = Kept(_encoded(value), self._expiry(ttl))
        token = None if _cas_token is None else _encoded(_cas_token)

        async def change() -> bool:
            if token is not None:
                before = await self._read(key)
                if before is None or before.data != token:
                    return False
            return await self._write(key, kept)

        return await self._to_the_end(key, change)

    async def _multi_set(
        self, pairs: Sequence[tuple[Address, object]], ttl: float | None = None, _conn: object = None
    ) -> bool:
        return all(await _few_at_a_time([partial(self._set, key, value, ttl) for key, value in pairs]))

    async def _add(self, key: Address, value: object, ttl: float | None = None, _conn: object = None) -> bool:
        kept = Kept(_encoded(value), self._expiry(ttl))

        async def change() -> bool:
            return await self._read(key) is None and await self._write(key, kept, create=True)

        if not await self._to_the_end(key, change):
            raise ValueError("there is a value of this name already; use set to replace it")
        return True

    async def _exists(self, key: Address, _conn: object = None) -> bool:
        return (self._peek(key) or await self._read_once(key)) is not None

    async def _delete(self, key: Address, _conn: object = None) -> int:
        return int(await self._to_the_end(key, partial(self._erase, key)))

    async def _increment(self, key: Address, delta: int, _conn: object = None) -> int:
        async def change() -> int:
            kept = await self._read(key)
            if kept is None:
                count, expires_at = delta, self._expiry(None)
            else:
                loaded = self.serializer.loads(_decoded(kept.data, self.serializer.encoding))
                count, expires_at = _whole(loaded) + delta, kept.expires_at
            await self._write(key, Kept(_encoded(self.serializer.dumps(count)), expires_at))
            return count

        return await self._to_the_end(key, change)

    async def _expire(self, key: Address, ttl: float, _conn: object = None) -> bool:
        expires_at = self._expiry(ttl)

        async def change() -> bool:
            kept = await self._read(key)
            return kept is not None and await self._write(key, Kept(kept.data, expires_at))

        return await self._to_the_end(key, change)

    async def _clear(self, namespace: str | None = None, _conn: object = None) -> bool:
        await self._erase_all(self._namespace_of(namespace if namespace is not None else self.namespace))
        return True

    async def _redlock_release(self, key: Address, value: object) -> int:
        async def change() -> bool:
            kept = await self._read(key)
            return kept is not None and kept.data == _encoded(value) and await self._erase(key)

        return int(await self._to_the_end(key, change))

    async def _close(self, *args: object, _conn: object = None, **kwargs: object) -> None:
        """Waits for what is under way. Tiers are closed by whoever opened them."""
        await asyncio.gather(*self._reads.values(), *self._changes, return_exceptions=True)

    async def _read_once(self, address: Address) -> Kept | None:
        """What `_read` says, asked once for all who ask at the same time; one who leaves takes nobody down."""
        if (read := self._reads.get(address)) is None:
            read = self._reads[address] = asyncio.create_task(self._read_in_turn(address))
            read.add_done_callback(lambda _: self._reads.pop(address, None))
        return await asyncio.shield(read)

    async def _read_in_turn(self, address: Address) -> Kept | None:
        async with self._turn(address):  # so that a value being replaced is not put back
            return self._peek(address) or await self._read(address)

    async def _to_the_end(self, address: Address, change: Callable[[], Awaitable[_T]]) -> _T:
        """Make a change in its turn, all of it also when the caller leaves: half of it would leave tiers apart."""

        async def in_turn() -> _T:
            async with self._turn(address):
                return await change()

        task = asyncio.create_task(in_turn())
        self._changes.add(task)
        task.add_done_callback(self._changed)
        return await asyncio.shield(task)

    def _changed(self, task: asyncio.Task[Any]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even if the caller left before it was raised

    @asynccontextmanager
    async def _turn(self, address: Address) -> AsyncIterator[None]:
        lock = self._turns.setdefault(address, asyncio.Lock())
        async with lock:
            yield

    def _namespace_of(self, namespace: str | None) -> str:
        return keyed_hash_of(self._secret, "namespace of names", namespace or "")[:32]

    def _expiry(self, ttl: float | None) -> float:
        if ttl is not None and ttl < 0:
            raise ValueError("a ttl is not negative")
        return self._clock() + (ttl or _FOREVER)


class MemoryCache(_NamedValues):
    """L1 alone: bounded in bytes, in this process. A value that does not fit is not kept, and `set` says False."""

    NAME = "reprise-memory"

    def __init__(
        self,
        memory: MemoryTier | None = None,
        *,
        max_bytes: int = 64 * 1024 * 1024,
        clock: Callable[[], float] = steady,
        **options: Any,
    ) -> None:
        """`memory` is a tier to share with others; else it makes one of `max_bytes`. `options` are BaseCache's."""
        super().__init__(secret=secrets.token_bytes(32), clock=clock, **options)
        self._copies = _Copies(memory or MemoryTier(max_bytes=max_bytes, clock=clock), clock)

    def _peek(self, address: Address) -> Kept | None:
        return self._copies.peek(address)

    async def _read(self, address: Address) -> Kept | None:
        return self._copies.peek(address)

    async def _write(self, address: Address, kept: Kept, *, create: bool = False) -> bool:
        return self._copies.hold(address, kept, kept.expires_at)

    async def _erase(self, address: Address) -> bool:
        return self._copies.drop(address)

    async def _erase_all(self, namespace: str) -> None:
        self._copies.drop_all(namespace)

    async def _read_once(self, address: Address) -> Kept | None:
        return None  # there is nowhere else to look

    async def _to_the_end(self, address: Address, change: Callable[[], Awaitable[_T]]) -> _T:
        return await change()  # which never waits, so nobody can come in between


class TieredCache(_NamedValues):
    """L1, Redis and object storage. `tiers` are opened and closed by whoever made them; they need a durable one."""

    NAME = "reprise-tiered"

    def __init__(
        self,
        tiers: Tiers,
        *,
        secret: bytes,
        memory_seconds: float = 5.0,
        idle: float = 24 * 3600.0,
        **options: Any,
    ) -> None:
        """`secret` (32 bytes) hides names and is the same in every process that shares them.

        L1's copies are believed for `memory_seconds`; in Redis a copy stays `idle` seconds after its last read.
        `options` are BaseCache's. Raises ValueError without an object store or folder.
        """
        if tiers.objects is None:
            raise ValueError("named values need an object store or a folder: what cannot be listed cannot be cleared")
        super().__init__(secret=secret, **options)
        self._tiers = tiers
        self._copies = _Copies(tiers.memory, self._clock)
        self._memory_seconds = memory_seconds
        self._idle = idle

    def _peek(self, address: Address) -> Kept | None:
        return self._copies.peek(address)

    async def _read(self, address: Address) -> Kept | None:
        for position, tier in enumerate(self._tiers.shared):
            record = self._live(address, await tier.get(Key.of_record(address), self._idle))
            data = None if record is None else await self._data_of(record)
            if record is not None and data is not None:
                kept = Kept(data, record.expires_at)
                await self._promote(record, self._tiers.shared[:position])
                self._believe(address, kept)
                return kept
        return None

    async def _write(self, address: Address, kept: Kept, *, create: bool = False) -> bool:
        self._copies.drop(address)
        record = await self._record(address, kept)
        *faster, durable = self._tiers.shared
        await self._put_blob(durable, record, kept)
        if create and not await self._create(durable, record):
            return False
        if not create:
            await self._put(durable, record, replace=True)
        for tier in reversed(faster):
            await self._put_blob(tier, record, kept)
            await self._put(tier, record, replace=True)
        self._believe(address, kept)
        return True

    async def _erase(self, address: Address) -> bool:
        """From slow to fast, so that nothing is promoted out of a tier that is still to be told."""
        found = None
        for tier in reversed(self._tiers.shared):
            found = found or self._live(address, await tier.get(Key.of_record(address), self._idle))
            await tier.delete(Key.of_record(address))
            if found is not None and found.output.inline is None:
                await tier.delete(Key.of_blob(address.namespace, found.output.digest))
        return self._copies.drop(address) or found is not None

    async def _erase_all(self, namespace: str) -> None:
        receipt = await purge(self._tiers, namespace, lambda record: True)
        await sweep_blobs(self._tiers, namespace)  # those of values that were replaced
        self._copies.drop_all(namespace)
        if receipt.unreached:
            raise TierError(f"not reached: {', '.join(sorted(receipt.unreached))}")

    async def _create(self, durable: Tier, record: Record) -> bool:
        if await self._put(durable, record, replace=False):
            return True
        lookup = await durable.get(Key.of_record(record.address), self._idle)
        if lookup.outcome in FAULTS:
            raise TierError(f"{lookup.outcome} when asked for the value it has")
        return self._live(record.address, lookup) is None and await self._put(durable, record, replace=True)

    async def _promote(self, record: Record, tiers: Sequence[Tier]) -> None:
        # In turn, and not by the write-behind: it would come after a later `set` or `delete` of this process.
        for tier in tiers:
            with suppress(TierError):
                await self._put(tier, record, replace=False)

    async def _put(self, tier: Tier, record: Record, *, replace: bool) -> bool:
        ttl = min(self._idle, record.expires_at - self._clock())
        return await tier.put(Key.of_record(record.address), record.to_bytes(), ttl, replace=replace)

    async def _put_blob(self, tier: Tier, record: Record, kept: Kept) -> None:
        if record.output.inline is None and tier.holds(len(kept.data)):
            key = Key.of_blob(record.address.namespace, record.output.digest)
            await tier.put(key, kept.data, self._idle, replace=True)  # also over one that was damaged

    async def _data_of(self, record: Record) -> bytes | None:
        if record.output.inline is not None:
            return record.output.inline
        data, _, _ = await self._tiers.below_memory.read(record.address.namespace, record.output.digest, self._idle)
        return data

    def _live(self, address: Address, lookup: Lookup) -> Record | None:
        if lookup.value is None:
            return None
        try:
            record = Record.from_bytes(lookup.value, address)
        except NotARecord:
            return None
        return None if record.expired(self._clock()) else record

    async def _record(self, address: Address, kept: Kept) -> Record:
        digest = await Digest.of_any_size(kept.data)
        now = self._clock()
        return Record(
            address=address,
            model="",
            revision="",
            stage="value",
            fingerprint="",
            output=Output(digest, _MEDIA_TYPE, kept.data if len(kept.data) <= INLINE_LIMIT else None),
            device_seconds=0.0,
            total_device_seconds=0.0,
            made_at=now,
            touched_at=now,
            ttl=kept.expires_at - now,
            expires_at=kept.expires_at,
        )

    def _believe(self, address: Address, kept: Kept) -> None:
        self._copies.hold(address, kept, min(kept.expires_at, self._clock() + self._memory_seconds))


def _encoded(value: object) -> bytes:
    """Raises TypeError for what no serializer should have made."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"a serializer makes bytes or str, not {type(value).__name__}")


def _decoded(data: bytes, encoding: str | None) -> Any:
    return data if encoding is None else data.decode(encoding)


def _whole(value: object) -> int:
    """Raises TypeError for anything but a whole number, or its digits."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return int(value)
        except ValueError:
            pass
    raise TypeError("only whole numbers can be incremented")


async def _few_at_a_time(calls: Sequence[Callable[[], Awaitable[_T]]]) -> list[_T]:
    answers: list[_T] = []
    for start in range(0, len(calls), _AT_ONCE):
        answers += await asyncio.gather(*(call() for call in calls[start : start + _AT_ONCE]))
    return answers
