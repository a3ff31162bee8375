"""L3's driver: any store that speaks the S3 API, or a local folder, both through obstore.

Metadata lives in the envelope, never in object attributes, which a folder does not have. There are no library retries:
a read has its own budget to the first byte and for every stalled piece, and writes are retried by the write-behind.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from cache.errors import TierError, TierTimeout

_PIECE = 1024 * 1024  # bytes read at a time
_LISTED = 1000  # names at a time
_LEFT_BEHIND = 3600.0  # seconds after which a file that is not finished has nobody who writes it


class Entry(NamedTuple):
    """What a store says of an object without giving its bytes."""

    name: str
    size: int  # bytes, the envelope's included
    modified: float  # seconds since the epoch, by the store's clock

    @classmethod
    def of(cls, meta: Any) -> Self:
        return cls(meta["path"], meta["size"], meta["last_modified"].timestamp())


class ObjectsStore:
    """Bytes in an object store. It forgets nothing by itself; age is judged by what the records say."""

    def __init__(self, store: ObjectStore, *, stall: float, write_timeout: float, reads: int, writes: int) -> None:
        self._store = store
        self._stall = stall
        self._write_timeout = write_timeout
        self._reading = asyncio.Semaphore(reads)
        self._others = asyncio.Semaphore(writes)
        self._moved = 0.0  # when a read last got something, by the loop's clock

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        endpoint: str = "",
        access_key: str = "",
        secret_key: str = "",
        region: str = "us-east-1",
        stall: float = 0.5,
        write_timeout: float = 10.0,
        reads: int = 16,
        writes: int = 16,
    ) -> ObjectsStore:
        """`s3://bucket/prefix` or `file:///folder`. `stall` and `write_timeout` are in seconds; listings are bounded
        by what writes are.
        """
        if url.startswith("file://"):
            store: ObjectStore = _folder(Path(url.removeprefix("file://")))
        else:
            options: dict[str, Any] = {"region": region}
            if endpoint:
                options |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
            if access_key:
                options |= {"access_key_id": access_key, "secret_access_key": secret_key}
            bucket, _, prefix = url.removeprefix("s3://").partition("/")
            store = S3Store(
                bucket,
                prefix=prefix or None,
                client_options={
                    "allow_http": True,
                    "connect_timeout": timedelta(seconds=stall),
                    "timeout": timedelta(seconds=max(write_timeout, 60.0)),
                },
                retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=0)},
                **options,
            )
        return cls(store, stall=stall, write_timeout=write_timeout, reads=reads, writes=writes)

    async def get(self, name: str, ttl: float | None) -> bytes | None:
        async with self._turn(), _translated(self._stall) as deadline:
            try:
                result = await obstore.get_async(self._store, name)
            except FileNotFoundError:
                self._moved = _now()
                return None
            pieces = []
            async for piece in result.stream(min_chunk_size=_PIECE):
                pieces.append(piece)
                self._moved = _now()
                deadline.reschedule(self._moved + self._stall)
            return b"".join(pieces)

    async def get_many(self, names: Sequence[str], ttl: float | None) -> list[bytes | None]:
        return await asyncio.gather(*(self.get(name, ttl) for name in names))

    async def put(self, name: str, data: bytes, ttl: float, *, replace: bool) -> bool:
        async with self._other_turn():
            try:
                await obstore.put_async(self._store, name, data, mode="overwrite" if replace else "create")
            except AlreadyExistsError:
                return False
            return True

    async def delete(self, name: str) -> None:
        async with self._other_turn():
            try:
                await obstore.delete_async(self._store, name)
            except FileNotFoundError:
                return

    async def names(self, prefix: str, *, after: str | None = None) -> list[str]:
        """Names of everything under a prefix, or of what comes `after` a name there. For small listings and upkeep."""
        return [entry.name async for page in self.pages(prefix, after=after) for entry in page]

    async def pages(self, prefix: str, *, after: str | None = None) -> AsyncIterator[list[Entry]]:
        """Everything under a prefix, however much that is. The budget is that of a page."""
        listing = aiter(obstore.list(self._store, prefix=prefix, offset=after, chunk_size=_LISTED))
        while True:
            async with self._other_turn():
                try:
                    page = await anext(listing)
                except StopAsyncIteration:
                    return
            yield [Entry.of(meta) for meta in page]

    async def folders(self, prefix: str) -> list[str]:
        """The next part of the names under a prefix that ends in a slash, each once."""
        async with self._other_turn():
            found = await obstore.list_with_delimiter_async(self._store, prefix)
            return [name.rstrip("/").rpartition("/")[2] for name in found["common_prefixes"]]

    async def head(self, name: str) -> Entry | None:
        """What there is under a name now."""
        async with self._other_turn():
            try:
                return Entry.of(await obstore.head_async(self._store, name))
            except FileNotFoundError:
                return None

    async def aclose(self) -> None:
        """Nothing to close: connections belong to the store object."""

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One of the reads at a time. Who waited while no read got anything has seen the stall, and need not try it."""
        began = _now()
        async with self._reading:
            if _now() - max(began, self._moved) >= self._stall:
                raise TierTimeout("object store")
            yield

    @asynccontextmanager
    async def _other_turn(self) -> AsyncIterator[None]:
        """One of the calls at a time that are no reads. The budget holds for the waiting as well."""
        async with _translated(self._write_timeout), self._others:
            yield


def _folder(root: Path) -> LocalStore:
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.rglob("*#*"):
        # A writer that was killed leaves its unfinished file under such a name. One that lives has begun it lately.
        if re.search(r"#\d+$", leftover.name) and _is_old(leftover):
            leftover.unlink(missing_ok=True)
    return LocalStore(root)


def _is_old(file: Path) -> bool:
    try:
        return time.time() - file.stat().st_mtime > _LEFT_BEHIND
    except FileNotFoundError:
        return False  # finished, and so renamed, in this moment


def _now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def _translated(seconds: float) -> AsyncIterator[asyncio.Timeout]:
    try:
        async with asyncio.timeout(seconds) as deadline:
            yield deadline
    except TimeoutError as error:
        raise TierTimeout("object store") from error
    except (BaseError, OSError, ValueError) as error:
        raise TierError(type(error).__name__) from error
