"""The cache by itself, for code without a gateway and without asyncio: get, set, and invalidate by condition.

    with Cache.open("file:///var/cache/reprise") as cache:
        if (data := cache.get(key)) is None:
            cache.set(key, data := compute(), model="resizer", stage="encode", tags=("spring",))
        cache.invalidate(tag="spring")

A key is any plain value that fully says what the entry is: equal keys mean equal bytes, so what is stored stays, and
copies anywhere are as good as each other. (For values that are replaced under their names see `aio.py`.) Every entry is
a record that says how it was made, and a blob; the tiers are those of the gateway, composed by `build.py`. Safe to use
from any number of threads. The cache never fails its caller: a tier that does is a miss.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from cache.bridge import Bridge
from cache.build import Tiers, build_tiers
from cache.clock import steady
from cache.condition import Condition
from cache.description import HOUR
from cache.digest import Digest
from cache.encoding import Value, keyed_hash_of
from cache.keys import Address, Key
from cache.purge import Receipt, purge
from cache.record import INLINE_LIMIT, Output, Record
from cache.settings import MIB, CacheSettings, L1Settings, L2Settings, L3Settings

DAY = 24 * HOUR
_KEPT_AS = ".secret"  # in a folder
_log = structlog.get_logger(__name__)


class Cache:
    """Opened, its writes go behind; closing waits for them. Closed at the latest when the interpreter ends."""

    def __init__(self, settings: CacheSettings, *, namespace: str = "", patience: float = 5.0) -> None:
        """Entries of different namespaces do not meet. `patience` (seconds) bounds a `get` and a `set`, whatever
        happens; the tiers' own budgets are shorter. Raises ValueError for Redis without a durable tier beneath.
        """
        if settings.l2.enabled and not settings.l3.enabled:
            raise ValueError("Redis needs an object store or a folder beneath: what is not listed is not invalidated")
        self._secret = settings.secret_bytes
        self._namespace = keyed_hash_of(self._secret, "namespace of keys", namespace)[:32]
        self._patience = patience
        self._drain = settings.write_behind.drain
        self._own: dict[Address, Record] = {}  # set here and not known to be durable; without what they hold
        self._bridge = Bridge("reprise-cache")
        self._closing = threading.Lock()
        try:
            self.tiers: Tiers = self._bridge.call(build_tiers(settings, CollectorRegistry()).__aenter__())
        except BaseException:
            self._bridge.close()
            raise
        self._open = True
        atexit.register(self.close)

    @classmethod
    def open(cls, objects: str | Path = "", redis: str = "", *, memory: int = 256 * MIB, secret: str = "") -> Self:
        """A cache in this process's memory (bytes), and below it a Redis and an object store or folder, where named.

        `objects` is a path, `file:///folder` or `s3://bucket/prefix` with credentials from the usual places; for all
        else give `CacheSettings` to the class itself. `secret` (64 hexadecimal digits, the same wherever the store is
        used) keeps those who can list the store from testing their guesses at a key. A folder keeps one by itself, in
        a file only its owner can read; S3 wants to be given one. Raises ValueError.
        """
        place = objects if isinstance(objects, str) and "://" in objects else f"file://{Path(objects).absolute()}"
        if not secret and objects and not place.startswith("file://"):
            raise ValueError("a shared store needs a secret; make one with: openssl rand -hex 32")
        if not secret:
            secret = _secret_of(Path(place.removeprefix("file://"))) if objects else secrets.token_hex(32)
        return cls(
            CacheSettings(
                secret=SecretStr(secret),
                l1=L1Settings(max_bytes=memory, max_entries=100_000),
                l2=L2Settings(enabled=bool(redis), url=SecretStr(redis)),
                l3=L3Settings(enabled=bool(objects), url=place),
            )
        )

    def get(self, key: Value, *, ttl: float = HOUR) -> bytes | None:
        """The bytes stored under a key, or None. In Redis they then stay for `ttl` seconds more. Raises Closed."""
        try:
            return self._bridge.call(self._fetch(self._address(key), ttl), self._patience)
        except TimeoutError:
            _log.warning("the cache did not answer in time")
            return None

    def set(
        self,
        key: Value,
        data: bytes,
        *,
        model: str = "",
        revision: str = "",
        stage: str = "",
        fingerprint: str = "",
        tags: Sequence[str] = (),
        upstream: Mapping[str, str] | None = None,
        execution: Mapping[str, str] | None = None,
        media_type: str = "application/octet-stream",
        seconds: float = 0.0,
        ttl: float = DAY,
        max_age: float = 30 * DAY,
    ) -> bool:
        """Store bytes under a key, with how they were made. False if they could not even be queued in time.

        `seconds` is what making them cost. An entry goes `ttl` seconds after its last access, and `max_age` seconds
        after it was made. Texts said here are stored in clear. Raises Closed.
        """
        now = steady()
        record = Record(
            address=self._address(key),
            model=model,
            revision=revision,
            stage=stage,
            fingerprint=fingerprint,
            output=Output(Digest.of(data), media_type, data if len(data) <= INLINE_LIMIT else None),
            device_seconds=seconds,
            total_device_seconds=seconds,
            made_at=now,
            touched_at=now,
            ttl=ttl,
            expires_at=now + max_age,
            upstream=dict(upstream or {}),
            tags=tuple(tags),
            execution=dict(execution or {}),
        )
        try:
            self._bridge.call(self._commit(record, data), self._patience)
        except TimeoutError:
            _log.warning("the cache did not take an entry in time")
            return False
        return True

    def invalidate(
        self,
        *,
        model: str = "",
        revision: str = "",
        stage: str = "",
        tag: str = "",
        digest: str = "",
        older_than: float | None = None,
        where: Callable[[Record], bool] | None = None,
    ) -> Receipt:
        """Remove the entries for which all that is said holds, from every tier, and say what went.

        Reads every record of the namespace; see `purge.py`. Raises ValueError when nothing is said at all (for all
        there is, say `older_than=0`), TierError when the durable tier cannot be read.
        """
        condition = Condition(model, revision, stage, (tag,) if tag else (), digest, older_than, where)
        if not condition:
            raise ValueError("say which entries; older_than=0 means all there are")
        return self._bridge.call(self._purge(condition))

    def flush(self, patience: float | None = None) -> bool:
        """Wait until what was set is stored, or given up. False if that took longer than `patience` seconds."""
        return self._bridge.call(self.tiers.writer.drain(self._drain if patience is None else patience))

    def close(self) -> None:
        """Store what is still on its way, and close the tiers. May be said twice."""
        with self._closing:
            if not self._open:
                return
            self._open = False
            atexit.unregister(self.close)
            try:
                self._bridge.call(self.tiers.__aexit__(None, None, None))
            finally:
                self._bridge.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _address(self, key: Value) -> Address:
        return Address(self._namespace, keyed_hash_of(self._secret, "key", key))

    async def _fetch(self, address: Address, ttl: float) -> bytes | None:
        found = await self.tiers.through_memory.fetch(address, ttl)
        record, data = found.record, found.data
        if record is not None and data is not None and record.pending:
            self._know(address, self.tiers.through_memory.heal(record, lambda: data))
        return data

    async def _commit(self, record: Record, data: bytes) -> None:
        stored = await self.tiers.through_memory.commit(record, data)
        self._own[record.address] = replace(record, output=replace(record.output, inline=None))
        self._know(record.address, stored)
        if len(self._own) > 2 * len(self.tiers.memory.entries) + 64:
            self._own = {address: own for address, own in self._own.items() if self._remembers(address)}

    def _know(self, address: Address, stored: asyncio.Future[bool] | None) -> None:
        """Once it is durable, whoever lists the store finds it."""
        if stored is not None:
            stored.add_done_callback(lambda durable: durable.result() and self._own.pop(address, None))

    async def _purge(self, condition: Condition) -> Receipt:
        now = steady()
        own = [record for address, record in self._own.items() if self._remembers(address)]
        receipt = await purge(self.tiers, self._namespace, lambda record: condition.meets(record, now), known=own)
        self._own = {address: record for address, record in self._own.items() if self._remembers(address)}
        return receipt

    def _remembers(self, address: Address) -> bool:
        return Key.of_record(address) in self.tiers.memory.entries


def _secret_of(folder: Path) -> str:
    """The secret that a folder keeps; drawn by whoever opens it first."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _KEPT_AS).exists():
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=_KEPT_AS) as drawn:  # readable by its owner only
            drawn.write(secrets.token_hex(32))
            drawn.flush()
            with suppress(FileExistsError):  # another process was first
                os.link(drawn.name, folder / _KEPT_AS)
    return (folder / _KEPT_AS).read_text()
