"""Write-behind: what was made goes to the shared tiers from a bounded queue, while callers already have it.

A batch is written in an order in which no reader can meet an index before its blob: blobs, then records. Results are
never dropped: `submit` waits for room, which delays the reply. Promotions are: `offer` gives up when there is none.
The last tier is the durable one; it is retried. The others are caches and get one try.

While the durable tier has not said that it has a record, the others' copies say so (`Record.pending`): who reads one
there knows that it may be nowhere else.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from cache.bans import Bans
from cache.clock import steady
from cache.errors import TierError
from cache.keys import Address, Key
from cache.news import News
from cache.record import NotARecord, Record
from cache.tier import FAULTS, Tier

_PAUSES = (0.1, 0.4, 1.6)  # seconds between tries at the durable tier
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Write:
    """One entry to be stored. Records are create-only unless `replace` is set: the first commit wins. `renews` is for a
    record that should be there already: it makes it younger, and never brings one back that was replaced or removed.
    `again` is for what the durable tier may have given up: faster tiers have it, and an older one there gives way.
    """

    key: Key
    payload: bytes
    ttl: float
    replace: bool = False
    renews: bool = False
    again: bool = False
    cost: float = 0.0  # device seconds it saves whoever finds it

    @property
    def is_index(self) -> bool:
        return self.key.kind == "r"


@dataclass(slots=True)
class Counts:
    written: int = 0
    failed: int = 0
    dropped: int = 0
    healed: int = 0  # records that the durable tier has after all


@dataclass(frozen=True, slots=True)
class _Batch:
    writes: tuple[Write, ...]
    tiers: tuple[Tier, ...]
    durable: asyncio.Future[bool]

    @property
    def bytes(self) -> int:
        return sum(len(write.payload) for write in self.writes)

    @property
    def again(self) -> bool:
        return any(write.again for write in self.writes)

    @property
    def records(self) -> list[Write]:
        """That are stored, not made younger."""
        return [write for write in self.writes if write.is_index and not write.renews]

    def fits(self, tier: Tier) -> bool:
        return all(tier.holds(len(write.payload)) for write in self.writes)


class WriteBehind:
    """Use as an async context manager; leaving it drains the queue for `drain_timeout` seconds at most."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        *,
        max_bytes: int,
        max_entries: int,
        writers: int = 4,
        drain_timeout: float = 20.0,
        bans: Bans | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._tiers = tuple(tiers)
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._writers = writers
        self._drain_timeout = drain_timeout
        self._bans = bans if bans is not None else Bans()
        self._pause = pause
        self._clock = clock
        self._queue: asyncio.Queue[_Batch] = asyncio.Queue()
        self._settled = News()
        self._turn = asyncio.Lock()  # results wait for room in the order they came
        self._open = True
        self._tasks: list[asyncio.Task[None]] = []
        self._on_their_way: Counter[Key] = Counter()  # records for the durable tier, by key
        self.bytes = 0  # accepted and not yet written or given up
        self.entries = 0
        self.counts = Counts()

    async def __aenter__(self) -> WriteBehind:
        self._tasks = [asyncio.create_task(self._write_forever()) for _ in range(self._writers)]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.drain(self._drain_timeout)
        self._open = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._queue.empty():
            self._settle(self._queue.get_nowait(), durable=False)

    async def submit(self, writes: Sequence[Write]) -> asyncio.Future[bool]:
        """Queue a result, waiting for room. The future says whether the durable tier has it."""
        batch = self._batch(writes, self._tiers)
        async with self._turn:
            while not self._has_room(batch):
                await self._settled.wait()
            self._enqueue(batch)
        return batch.durable

    def offer(self, writes: Sequence[Write], tiers: Sequence[Tier]) -> bool:
        """Queue a promotion to these tiers if there is room now, and no result is waiting for it."""
        return self._offer(self._batch(writes, tiers))

    def _offer(self, batch: _Batch) -> bool:
        if self._turn.locked() or not self._has_room(batch):
            self.counts.dropped += len(batch.writes)
            return False
        self._enqueue(batch)
        return True

    def offer_again(self, writes: Sequence[Write]) -> asyncio.Future[bool] | None:
        """Queue for the durable tier what the others have already, for one try, if there is room now (see `offer`)."""
        batch = self._batch(writes, self._tiers)
        return batch.durable if self._offer(batch) else None

    def has_room(self, size: int) -> bool:
        """Whether `offer_again` would take an output of so many bytes now."""
        return not self._turn.locked() and self._fits(size, 2)

    def is_writing(self, address: Address) -> bool:
        """Whether this record is on its way to the durable tier."""
        return Key.of_record(address) in self._on_their_way

    async def drain(self, patience: float) -> bool:
        """Wait until everything accepted is written or given up. False if that took longer than `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                while self.entries:
                    await self._settled.wait()
        except TimeoutError:
            _log.warning("write-behind not drained", entries=self.entries, bytes=self.bytes)
            return False
        return True

    def _batch(self, writes: Sequence[Write], tiers: Sequence[Tier]) -> _Batch:
        return _Batch(tuple(writes), tuple(tiers), asyncio.get_running_loop().create_future())

    def _has_room(self, batch: _Batch) -> bool:
        return self._fits(batch.bytes, len(batch.writes))

    def _fits(self, size: int, entries: int) -> bool:
        if self.entries == 0:
            return True  # a batch over the bound passes alone rather than never
        return self.bytes + size <= self._max_bytes and self.entries + entries <= self._max_entries

    def _is_durable(self, batch: _Batch) -> bool:
        """Whether it is for the durable tier as well."""
        return bool(batch.tiers) and batch.tiers[-1] is self._tiers[-1]

    def _enqueue(self, batch: _Batch) -> None:
        self.bytes += batch.bytes
        self.entries += len(batch.writes)
        if self._is_durable(batch):
            self._on_their_way.update(write.key for write in batch.records)
        if self._open:
            self._queue.put_nowait(batch)
        else:
            self._settle(batch, durable=False)  # nobody writes any more

    async def _write_forever(self) -> None:
        while True:
            batch = await self._queue.get()
            try:
                durable = await self._write(batch)
            except asyncio.CancelledError:
                self._settle(batch, durable=False)  # the process is stopping; whoever waits must not wait for ever
                raise
            except Exception:  # noqa: BLE001 - a bug in a tier must not end the only writer there is
                _log.exception("write-behind failed")
                durable = False
            self._settle(batch, durable=durable)

    def _settle(self, batch: _Batch, *, durable: bool) -> None:
        self.bytes -= batch.bytes
        self.entries -= len(batch.writes)
        if self._is_durable(batch):
            self._on_their_way -= Counter(write.key for write in batch.records)
        if batch.again:
            self.counts.healed += len(batch.records) if durable else 0  # what was given up is counted once
        elif durable:
            self.counts.written += len(batch.writes)
        elif self._is_durable(batch) and not self._is_banned(batch):
            self.counts.failed += len(batch.writes)
        else:
            self.counts.dropped += len(batch.writes)  # a copy less in a cache, or what nobody may have any more
        if not batch.durable.done():
            batch.durable.set_result(durable)
        self._settled.announce()

    async def _write(self, batch: _Batch) -> bool:
        if not batch.tiers or self._is_banned(batch):
            return False
        *fast, last = batch.tiers
        # A tier that holds every blob of the batch needs nobody; one that does not must not show a record before the
        # durable tier has the blob.
        complete = [] if batch.again else [tier for tier in fast if batch.fits(tier)]
        durably = self._is_durable(batch)
        early = [_pending(write) for write in batch.writes] if durably else batch.writes
        if durably and not batch.fits(last):
            await asyncio.gather(*(self._store(tier, early) for tier in complete))
            return False  # switched off, say
        store_last = self._store_again if batch.again else self._store_durably if durably else self._store
        durable, *_ = await asyncio.gather(
            store_last(last, batch.writes), *(self._store(tier, early) for tier in complete)
        )
        if durable:
            settled = [replace(write, renews=True) for write in batch.records]
            have = fast if batch.again else complete
            await asyncio.gather(*(self._store(tier, settled if tier in have else batch.writes) for tier in fast))
        return durable

    async def _store_durably(self, tier: Tier, writes: Sequence[Write]) -> bool:
        for pause in _PAUSES:
            if await self._store(tier, writes):
                return True
            await self._pause(pause)
        return await self._store(tier, writes)

    async def _store_again(self, tier: Tier, writes: Sequence[Write]) -> bool:
        """In one try, unless it has them: another process may have been faster."""
        there = [await self._has(tier, write) for write in writes if write.is_index]
        return all(there) or await self._store(tier, writes)

    async def _store(self, tier: Tier, writes: Sequence[Write]) -> bool:
        wanted = [write for write in writes if tier.holds(len(write.payload))]
        try:
            await asyncio.gather(*(self._put(tier, write) for write in wanted if not write.is_index))
            await asyncio.gather(*(self._put(tier, write) for write in wanted if write.is_index))
        except TierError as error:
            _log.info("write failed", tier=tier.name.value, error=type(error).__name__, kind=str(error))
            return False
        return True

    async def _put(self, tier: Tier, write: Write) -> None:
        if write.renews:
            await self._renew(tier, write)
            return
        # A blob is the same whoever writes it. Written again it is young again, and no sweep takes it for forgotten
        # while the record that names it is on its way.
        anyhow = write.replace or not write.is_index
        created = await tier.put(write.key, write.payload, write.ttl, replace=anyhow)
        if not created and write.is_index and not await self._stays(tier, write):
            await tier.put(write.key, write.payload, write.ttl, replace=True)

    def _is_banned(self, batch: _Batch) -> bool:
        """Whether it was invalidated while it waited here."""
        if not self._bans:
            return False
        return any(write.is_index and self._forbidden(write.payload) for write in batch.writes)

    def _forbidden(self, payload: bytes) -> bool:
        try:
            return self._bans.forbid(Record.from_bytes(payload))
        except NotARecord:
            return False

    async def _has(self, tier: Tier, write: Write) -> bool:
        there = (await tier.get(write.key, None)).value  # nobody's lookup: not to be counted
        return there is not None and _same(there, write.payload)

    async def _renew(self, tier: Tier, write: Write) -> None:
        there = (await tier.get(write.key, None)).value  # likewise
        if there is not None and _same(there, write.payload):
            durable = not Record.from_bytes(there).pending  # whoever renews it may not have heard of it
            payload = Record.from_bytes(write.payload).settled().to_bytes() if durable else write.payload
            await tier.put(write.key, payload, write.ttl, replace=True)

    async def _stays(self, tier: Tier, write: Write) -> bool:
        """Whether the record that is there is one to keep."""
        lookup = await tier.get(write.key, write.ttl)
        if lookup.outcome in FAULTS:
            raise TierError(f"{lookup.outcome} when asked for the record it has")  # a live one must not be replaced
        if lookup.value is None:
            return False
        try:
            record = Record.from_bytes(lookup.value)
        except NotARecord:
            return False
        if record.expired(self._clock()) or self._bans.forbid(record):
            return False
        return not (write.again and record.made_at < Record.from_bytes(write.payload).made_at)


def _pending(write: Write) -> Write:
    """What is shown of a record as long as it may be nowhere else."""
    if not write.is_index or write.renews:
        return write
    try:
        record = Record.from_bytes(write.payload)
    except NotARecord:
        return write
    return replace(write, payload=replace(record, pending=True).to_bytes())


def _same(one: bytes, other: bytes) -> bool:
    """Whether two records are of one making, whenever they were last touched."""
    try:
        first, second = Record.from_bytes(one), Record.from_bytes(other)
    except NotARecord:
        return False
    return (first.made_at, first.output.digest) == (second.made_at, second.output.digest)
