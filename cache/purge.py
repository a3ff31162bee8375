"""Purge: invalidation by condition. Which entries go is decided by what their records say of how they were made.

There is no index that could differ from what is stored: the records of the durable tier are the index, and all of a
namespace's are read, a page at a time. That costs time (about a thousand records a second from S3) and little memory
(a few hundred bytes per record); it is right after any crash, and from any process. The tiers are told from slow to
fast, records before blobs, so that nothing is promoted out of a tier that was still to be told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from cache.build import Tiers
from cache.errors import TierError
from cache.keys import Address, Key
from cache.record import NotARecord, Record
from cache.tier import Outcome, Tier, TierName

_T = TypeVar("_T")
_PAGE = 16  # entries asked for, or told of, at a time
_DRAIN = 20.0  # seconds that writes already accepted may take to arrive, so that they are seen
_IDLE = 60.0  # seconds; the TTL that being asked after leaves an entry of L2 with, until it is told to go


@dataclass(frozen=True, slots=True)
class Condition:
    """Which entries are meant: those for which everything said here holds. Empty parts say nothing."""

    model: str = ""
    revision: str = ""
    stage: str = ""
    tag: str = ""
    digest: str = ""  # of an output, or the content id of an entry, or of something upstream of it; hexadecimal
    older_than: float | None = None  # seconds since it was made
    where: Callable[[Record], bool] | None = None

    def __bool__(self) -> bool:
        return self != Condition()

    def meets(self, record: Record, now: float) -> bool:
        return (
            self.model in ("", record.model)
            and self.revision in ("", record.revision)
            and self.stage in ("", record.stage)
            and (not self.tag or self.tag in record.tags)
            and (not self.digest or self.digest in _digests(record))
            and (self.older_than is None or now - record.made_at > self.older_than)
            and (self.where is None or self.where(record))
        )


class Gone(NamedTuple):
    """What one tier gave back: entries (records and blobs count alike) and the bytes of their payloads.

    In L1 with its charge for bookkeeping; in L2 a blob is taken to have been where its record was.
    """

    entries: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an invalidation removed. Where `unreached` names a tier, something may still be served from it."""

    outputs: int = 0  # results of stages, each of them a record with its blob
    tiers: Mapping[TierName, Gone] = field(default_factory=dict)
    unreached: frozenset[TierName] = frozenset()


class Doomed(NamedTuple):
    """All that is kept in mind of a record that is to go."""

    address: Address
    record_bytes: int
    blob: str  # hexadecimal digest; empty where the output lies in the record
    blob_bytes: int
    durable: bool  # found in the durable tier

    @classmethod
    def of(cls, record: Record, *, durable: bool) -> Doomed:
        size, output = len(record.to_bytes()), record.output
        if output.inline is not None:
            return cls(record.address, size, "", 0, durable)
        return cls(record.address, size, output.digest.hex, output.digest.size, durable)


async def purge(
    tiers: Tiers, namespace: str, unwanted: Callable[[Record], bool], *, known: Iterable[Record] = ()
) -> Receipt:
    """Remove the entries of a namespace whose records are unwanted, in every tier.

    `known` are records that the durable tier may not have. Raises TierError, with nothing removed, when the durable
    tier cannot be read. Other processes' memory keeps what it has until that is too old.
    """
    unreached: set[TierName] = set()
    if not await tiers.writer.drain(_DRAIN):
        unreached.update(tier.name for tier in tiers.shared)  # what is still on its way arrives after we have looked
    doomed: dict[Address, Doomed] = {}
    kept_blobs: set[str] = set()  # of records that stay
    for record in known:
        _judge(record, unwanted, doomed, kept_blobs, durable=False)
    async for record in records(tiers, namespace):
        _judge(record, unwanted, doomed, kept_blobs, durable=True)
    going = [item._replace(blob="", blob_bytes=0) if item.blob in kept_blobs else item for item in doomed.values()]
    gone: dict[TierName, Gone] = {}
    for tier in reversed(tiers.shared):
        present = await _present(tier, going) if tier is not tiers.shared[-1] else [x for x in going if x.durable]
        try:
            await _remove(tier, namespace, going)
        except TierError:
            unreached.add(tier.name)
        else:
            gone[tier.name] = _sum_of(tier, present)
    gone[TierName.L1] = _remove_from_memory(tiers, namespace, going)
    return Receipt(len(going), gone, frozenset(unreached))


async def records(tiers: Tiers, namespace: str) -> AsyncIterator[Record]:
    """Every record of a namespace that the durable tier has, whatever its age. Raises TierError.

    Nothing if there is no tier that can be listed. What is damaged is passed over: it is a miss for everybody.
    """
    if tiers.objects is None:
        return
    addresses = _addresses(await tiers.objects.names(f"r/{namespace}/"))
    durable = tiers.shared[-1]
    for page in _pages(addresses):
        for address, lookup in zip(
            page, await durable.get_many([Key.of_record(address) for address in page], _IDLE), strict=True
        ):
            if lookup.outcome in (Outcome.ERROR, Outcome.TIMEOUT, Outcome.SKIPPED):
                raise TierError(f"{lookup.outcome} when reading what there is")
            if lookup.value is not None:
                try:
                    yield Record.from_bytes(lookup.value, address)
                except NotARecord:
                    continue


async def sweep_blobs(tiers: Tiers, namespace: str) -> None:
    """Remove every blob of a namespace from the shared tiers. A record that still names one becomes a miss."""
    if tiers.objects is None:
        return
    names = await tiers.objects.names(f"b/{namespace}/")
    for tier in reversed(tiers.shared):
        for name in names:
            await tier.delete(Key("b", namespace, name.rpartition("/")[2]))


def _judge(
    record: Record,
    unwanted: Callable[[Record], bool],
    doomed: dict[Address, Doomed],
    kept_blobs: set[str],
    *,
    durable: bool,
) -> None:
    if unwanted(record):
        doomed[record.address] = Doomed.of(record, durable=durable)
    elif record.output.inline is None:
        kept_blobs.add(record.output.digest.hex)


async def _present(tier: Tier, going: Sequence[Doomed]) -> list[Doomed]:
    """Those whose records a tier has."""
    found: list[Doomed] = []
    for page in _pages(going):
        lookups = await tier.get_many([Key.of_record(item.address) for item in page], _IDLE)
        found += [item for item, lookup in zip(page, lookups, strict=True) if lookup.value is not None]
    return found


async def _remove(tier: Tier, namespace: str, going: Sequence[Doomed]) -> None:
    keys = [Key.of_record(item.address) for item in going]
    keys += [Key("b", namespace, item.blob) for item in going if item.blob]
    for page in _pages(keys):
        await asyncio.gather(*(tier.delete(key) for key in page))


def _sum_of(tier: Tier, present: Sequence[Doomed]) -> Gone:
    blobs = {item.blob: item.blob_bytes for item in present if item.blob and tier.holds(item.blob_bytes)}
    return Gone(len(present) + len(blobs), sum(item.record_bytes for item in present) + sum(blobs.values()))


def _remove_from_memory(tiers: Tiers, namespace: str, going: Sequence[Doomed]) -> Gone:
    memory, before, count = tiers.memory.entries, tiers.memory.entries.bytes, 0
    for item in going:
        for key in (Key.of_wire(item.address), Key.of_record(item.address), Key("b", namespace, item.blob)):
            count += memory.delete(key)
    return Gone(count, before - memory.bytes)


def _digests(record: Record) -> set[str]:
    return {record.output.digest.hex, record.address.content_id, *record.upstream.values()}


def _addresses(names: Iterable[str]) -> list[Address]:
    """Addresses out of names such as r/<namespace>/<aa>/<hex>; anything else that lies there is none of ours."""
    found = []
    for name in names:
        _, namespace, _, content_id = (name.split("/") + [""] * 4)[:4]
        try:
            found.append(Address.parse(f"{namespace}/{content_id}"))
        except ValueError:
            continue
    return found


def _pages(items: Sequence[_T]) -> Iterable[Sequence[_T]]:
    return (items[start : start + _PAGE] for start in range(0, len(items), _PAGE))
