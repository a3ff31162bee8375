"""Hierarchy: the ordered tiers together. Reads go from fast to slow and promote; commits go behind.

A record is a hit only when its blob was read too: presence is proved by reading. A record whose blob is in no tier is
removed, so that the next commit can heal it. A tier that failed proves nothing, and nothing is removed on its word.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from cache.bans import Bans
from cache.clock import steady
from cache.digest import Digest
from cache.errors import TierError
from cache.keys import Address, Key
from cache.record import NotARecord, Record
from cache.tier import FAULTS, Lookup, Outcome, Tier, TierName, proves_absence
from cache.write_behind import Write, WriteBehind

Reserve: TypeAlias = Callable[[int], Awaitable[None]]  # so many bytes

_NEGATIVE_SECONDS = 1.0  # for how long a stage that no tier had is not asked for again
_NEGATIVE_ENTRIES = 10_000
_HEALED_AT_ONCE = 64  # entries at most
_HEALING_RESTS = 1.0  # seconds after the durable tier took none


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a lookup through the tiers. `record` and `data` are both there, or it is a miss."""

    lookups: tuple[Lookup, ...]
    record: Record | None = None
    data: bytes | None = None
    tier: TierName | None = None  # the tier that gave the bytes
    lost: bool = False  # there is a record, and its bytes are in no tier


class Hierarchy:
    """`tiers` from fast to slow; a local one, if any, comes first. The last one is durable."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        writer: WriteBehind,
        *,
        bans: Bans | None = None,
        clock: Callable[[], float] = steady,
    ) -> None:
        self.tiers = tuple(tiers)
        self._writer = writer
        self._bans = bans if bans is not None else Bans()
        self._clock = clock
        self._absent: dict[Address, float] = {}
        self._healing: set[Address] = set()
        self._next_healing = float("-inf")
        self._settling: set[asyncio.Task[None]] = set()

    async def fetch(
        self,
        address: Address,
        ttl: float,
        *,
        max_age: float | None = None,
        reserve: Reserve | None = None,
    ) -> Found:
        """The output at an address: its record and its bytes, from the first tiers that have them. What is read from
        anywhere but this process has its size reserved before, with whatever that raises.
        """
        record, lookups, holder = await self._find(address, ttl)
        if record is None or (max_age is not None and self._clock() - record.made_at > max_age):
            return Found(tuple(lookups))
        if record.output.inline is not None:
            await self._promote(record, holder)
            return Found(tuple(lookups), record, record.output.inline, self.tiers[holder].name)
        # A tier that failed a moment ago is not waited for again: a request pays its budget once.
        failed = {lookup.tier for lookup in lookups if lookup.outcome in FAULTS}
        digest = record.output.digest
        data, source, reads = await self._read(address.namespace, digest, ttl, without=failed, reserve=reserve)
        if data is None:
            lost = proves_absence(reads) and not failed
            if lost:
                await self._forget(address)
            return Found(_by_tier([*lookups, *reads]), lost=lost)
        blob = _blob(record, data)
        await self._promote(record, holder, blob)
        await self._promote_writes([blob], self.tiers[holder:source])
        return Found(_by_tier([*lookups, *reads]), record, data, self.tiers[source].name)

    async def find_many(self, wanted: Sequence[tuple[Address, float]]) -> dict[Address, tuple[Record, TierName]]:
        """Records at these (address, TTL in seconds) pairs, asked for at once. Their blobs are not read yet."""
        return known(await self.ask_many(wanted))

    async def ask_many(self, wanted: Sequence[tuple[Address, float]]) -> dict[Address, Found]:
        """Like `find_many`, with what was found and what was not. `tier` is the one that gave the record; there are no
        lookups for what was not there a moment ago.
        """
        now = self._clock()
        ttls = {address: ttl for address, ttl in wanted if self._absent.get(address, 0.0) <= now}
        asked = await self._ask(list(ttls), max(ttls.values(), default=0.0))
        missing = (address for address, found in asked.items() if found.record is None)
        self._remember_absent([address for address in missing if proves_absence(asked[address].lookups)], now)
        return {address: asked.get(address, Found(())) for address, _ in wanted}

    async def peek_many(self, addresses: Sequence[Address]) -> dict[Address, Found]:
        """What would be found at these addresses, with nothing changed by asking: nothing is promoted, made younger,
        removed, remembered or counted, and no blob is read. `tier` is the one that should give the bytes.
        """
        asked = await self._ask(addresses, None)
        return {address: self._with_bytes(found) for address, found in asked.items()}

    async def _ask(self, addresses: Sequence[Address], ttl: float | None) -> dict[Address, Found]:
        asked: dict[Address, Found] = {address: Found(()) for address in addresses}
        for tier in self.tiers:
            missing = [address for address, found in asked.items() if found.record is None]
            if not missing:
                break
            lookups = await tier.get_many([Key.of_record(address) for address in missing], ttl)
            for address, lookup in zip(missing, lookups, strict=True):
                record, lookup = self._record(address, lookup)
                source = lookup.tier if record is not None else None
                asked[address] = Found((*asked[address].lookups, lookup), record, tier=source)
        return asked

    def _with_bytes(self, found: Found) -> Found:
        if found.record is None or found.record.output.inline is not None:
            return found
        size, holder = found.record.output.digest.size, [tier.name for tier in self.tiers].index(found.lookups[-1].tier)
        source = next((tier.name for tier in self.tiers[holder:] if tier.holds(size)), found.tier)
        return replace(found, tier=source)

    async def read(
        self, namespace: str, digest: Digest, ttl: float, *, cost: float = 0.0, reserve: Reserve | None = None
    ) -> tuple[bytes | None, TierName | None, list[Lookup]]:
        """A blob's bytes, the tier that gave them, and every lookup on the way. `cost`: device seconds it saves; its
        size is reserved as in `fetch`.
        """
        data, source, lookups = await self._read(namespace, digest, ttl, reserve=reserve)
        if data is None:
            return None, None, lookups
        await self._promote_writes([Write(Key.of_blob(namespace, digest), data, ttl, cost=cost)], self.tiers[:source])
        return data, self.tiers[source].name, lookups

    async def keep(self, namespace: str, data: bytes, ttl: float) -> bool:
        """Store a blob by itself, and wait until the durable tier has it or has refused."""
        write = Write(Key.of_blob(namespace, await Digest.of_any_size(data)), data, ttl)
        await _remember([write], self.tiers)
        return await (await self._writer.submit([write]))

    async def commit(
        self, record: Record, data: bytes, *, aliases: Sequence[Record] = (), replace: bool = False
    ) -> asyncio.Future[bool]:
        """Queue an output for the shared tiers: blob, then records. The future says whether it became durable: never,
        if it was banned while it was made.
        """
        if self._bans.forbid(record):
            refused: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            refused.set_result(False)
            return refused
        records = [entry.settled() for entry in (record, *aliases)]
        blobs = [_blob(record, data)] if record.output.inline is None else []
        await self._remember_alone(records, blobs)
        self.expect(entry.address for entry in records)
        durable = await self._writer.submit([*blobs, *(_index(entry, replace=replace) for entry in records)])
        durable.add_done_callback(partial(self._stored, records))
        return durable

    def expect(self, addresses: Iterable[Address]) -> None:
        """Somebody else has made these just now: whatever was remembered of their absence is old."""
        for address in addresses:
            self._absent.pop(address, None)

    def touch(self, record: Record) -> Record:
        """Note an access: at most once per half TTL the shared tiers' copies of the record are rewritten."""
        now = self._clock()
        if not record.worth_touching(now):
            return record
        touched = record.touched(now)
        shared = [tier for tier in self.tiers if not tier.local]
        self._writer.offer([_index(touched, renews=True)], shared)
        return touched

    def heal(self, record: Record, read: Callable[[], bytes]) -> asyncio.Future[bool] | None:
        """Have the durable tier written to again, whose writes of this entry were given up or are not known of.

        Nobody waits for it: a few at a time, each once, and none while that tier refuses them or there is no room. The
        future says whether it is durable; None if nothing was begun. `read` gives the output, and is not called before.
        """
        if not self.tiers or record.address in self._healing or len(self._healing) >= _HEALED_AT_ONCE:
            return None
        if self._clock() < self._next_healing or self._writer.is_writing(record.address):
            return None
        size = record.output.digest.size
        if not (self.tiers[-1].holds(size) and self._writer.has_room(size)):
            self._next_healing = self._clock() + _HEALING_RESTS
            return None
        record = record.settled()
        writes = [_index(record, again=True)]
        if record.output.inline is None:
            writes.insert(0, _blob(record, read()))
        durable = self._writer.offer_again(writes)
        if durable is not None:
            self._healing.add(record.address)
            durable.add_done_callback(partial(self._healed, record.address))
            durable.add_done_callback(partial(self._stored, [record]))
        return durable

    def _healed(self, address: Address, durable: asyncio.Future[bool]) -> None:
        self._healing.discard(address)
        if durable.cancelled() or not durable.result():
            self._next_healing = self._clock() + _HEALING_RESTS

    async def _remember_alone(self, records: Sequence[Record], blobs: Sequence[Write]) -> None:
        """In this process, as entries that the durable tier may not have."""
        beneath = not self.tiers[-1].local if self.tiers else False
        shown = [_index(replace(record, pending=True) if beneath else record) for record in records]
        await _remember([*blobs, *shown], self.tiers)

    def _stored(self, records: Sequence[Record], durable: asyncio.Future[bool]) -> None:
        """What this process remembers of them need not say any more that it may be alone."""
        if not durable.cancelled() and durable.result():
            task = asyncio.ensure_future(self._settle(records))
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)

    async def _settle(self, records: Sequence[Record]) -> None:
        for tier in self.tiers:
            for record in records if tier.local else ():
                there, _ = self._record(record.address, await tier.get(Key.of_record(record.address), None))
                if there is not None and there.pending and there.made_at == record.made_at:
                    await _remember([_index(there.settled())], [tier])

    async def _find(self, address: Address, ttl: float) -> tuple[Record | None, list[Lookup], int]:
        lookups: list[Lookup] = []
        for position, tier in enumerate(self.tiers):
            record, lookup = self._record(address, await tier.get(Key.of_record(address), ttl))
            lookups.append(lookup)
            if record is not None:
                return record, lookups, position
            if lookup.outcome in (Outcome.CORRUPT, Outcome.INVALIDATED):
                await _delete(tier, Key.of_record(address))
        return None, lookups, len(self.tiers)

    async def _read(
        self,
        namespace: str,
        digest: Digest,
        ttl: float,
        *,
        without: Collection[TierName] = (),
        reserve: Reserve | None = None,
    ) -> tuple[bytes | None, int, list[Lookup]]:
        key, lookups = Key.of_blob(namespace, digest), list[Lookup]()
        for position, tier in enumerate(self.tiers):
            if not tier.holds(digest.size) or tier.name in without:
                continue
            if reserve is not None and not tier.local:
                await reserve(digest.size)
                reserve = None
            lookup = await _checked(tier, key, digest, await tier.get(key, ttl))
            lookups.append(replace(lookup, value=None))  # they are kept for as long as an answer is sent
            if lookup.value is not None:
                return lookup.value, position, lookups
        return None, len(self.tiers), lookups

    def _record(self, address: Address, lookup: Lookup) -> tuple[Record | None, Lookup]:
        if lookup.value is None:
            return None, lookup
        try:
            record = Record.from_bytes(lookup.value, address)
        except NotARecord:
            return None, replace(lookup, outcome=Outcome.CORRUPT, value=None)
        if record.expired(self._clock()):
            return None, replace(lookup, outcome=Outcome.EXPIRED, value=None)
        if self._bans.forbid(record):
            return None, replace(lookup, outcome=Outcome.INVALIDATED, value=None)
        return record, lookup

    async def _promote(self, record: Record, holder: int, blob: Write | None = None) -> None:
        touched = self.touch(record)
        index = _index(touched)
        await self._promote_writes([blob, index] if blob else [index], self.tiers[:holder])
        if touched is not record:
            await _remember([index], self.tiers[holder:])  # or it would be noted again at every access from now on

    async def _promote_writes(self, writes: Sequence[Write], tiers: Sequence[Tier]) -> None:
        await _remember(writes, tiers)
        if shared := [tier for tier in tiers if not tier.local]:
            self._writer.offer(writes, shared)

    def _remember_absent(self, missing: Iterable[Address], now: float) -> None:
        if len(self._absent) > _NEGATIVE_ENTRIES:
            self._absent.clear()
        self._absent.update(dict.fromkeys(missing, now + _NEGATIVE_SECONDS))

    async def _forget(self, address: Address) -> None:
        for tier in self.tiers:
            await _delete(tier, Key.of_record(address))


def _index(record: Record, *, replace: bool = False, renews: bool = False, again: bool = False) -> Write:
    return Write(
        Key.of_record(record.address),
        record.to_bytes(),
        record.ttl,
        replace=replace,
        renews=renews,
        again=again,
        cost=record.total_device_seconds,
    )


def _blob(record: Record, data: bytes) -> Write:
    key = Key.of_blob(record.address.namespace, record.output.digest)
    return Write(key, data, record.ttl, cost=record.total_device_seconds)


async def _remember(writes: Sequence[Write], tiers: Sequence[Tier]) -> None:
    """Put entries into the local tiers among these, all of them or none: a record is not shown without its blob."""
    for tier in tiers:
        if tier.local and all(tier.holds(len(write.payload)) for write in writes):
            for write in writes:
                await tier.put(write.key, write.payload, write.ttl, replace=True, cost=write.cost)


async def _checked(tier: Tier, key: Key, digest: Digest, lookup: Lookup) -> Lookup:
    if lookup.value is None:
        return lookup
    found = await Digest.of_any_size(lookup.value)
    if found.hex != digest.hex:
        await _delete(tier, key)
        return replace(lookup, outcome=Outcome.CORRUPT, value=None)
    if found.size != digest.size:  # who asks has the size wrong; what is stored is sound, and stays
        return replace(lookup, outcome=Outcome.MISS, value=None)
    return lookup


def known(asked: Mapping[Address, Found]) -> dict[Address, tuple[Record, TierName]]:
    """Of what was asked for, the records there are and the tiers that gave them."""
    return {
        address: (found.record, found.tier)
        for address, found in asked.items()
        if found.record is not None and found.tier is not None
    }


def _by_tier(lookups: Sequence[Lookup]) -> tuple[Lookup, ...]:
    """One lookup for every tier that was asked: for the record first, then for the blob, whose answer counts."""
    merged: dict[TierName, Lookup] = {}
    for lookup in lookups:
        before = merged.pop(lookup.tier, None)  # and in again, so that the tier that gave the bytes is the last
        if before is not None:
            # A fault is not hidden by a miss that followed it; a record's hit without its blob is none.
            hidden = lookup.outcome is Outcome.MISS and before.outcome is not Outcome.HIT
            outcome = before.outcome if hidden else lookup.outcome
            seconds = before.seconds + lookup.seconds
            lookup = replace(lookup, outcome=outcome, started_ns=before.started_ns, seconds=seconds)
        merged[lookup.tier] = lookup
    return tuple(merged.values())


async def _delete(tier: Tier, key: Key) -> None:
    try:
        await tier.delete(key)
    except TierError:
        return  # it stays, and is found damaged again; nothing else depends on it
