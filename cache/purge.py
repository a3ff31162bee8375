"""Purge: give back the space of what is not wanted any more. Which entries go is decided by their records.

There is no index that could differ from what is stored: the records of the durable tier are the index, and all of a
namespace's, or of all namespaces, are read, a page at a time. That costs time (about a thousand records a second from
S3) and little memory (a few hundred bytes per record); it is right after any crash, and from any process. The tiers are
told from slow to fast, so that nothing is promoted out of a tier that was still to be told.
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
from cache.sweep import Gone
from cache.tier import FAULTS, Tier, TierName

_T = TypeVar("_T")
_PAGE = 16  # entries asked for, or told of, at a time
_DRAIN = 20.0  # seconds that writes already accepted may take to arrive, so that they are seen
_TELL_EVERY = 256  # records


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an invalidation removed. Where `unreached` names a tier, something may still lie in it.

    In L1 counted with its charge for bookkeeping; in L2 a blob is taken to have been where its record was.
    """

    outputs: int = 0  # results of stages, each of them a record with its blob
    tiers: Mapping[TierName, Gone] = field(default_factory=dict)
    unreached: frozenset[TierName] = frozenset()


class Doomed(NamedTuple):
    """All that is kept in mind of a record that is to go."""

    address: Address
    record_bytes: int
    blob: str  # hexadecimal digest; empty where the output lies in the record
    blob_bytes: int

    @classmethod
    def of(cls, record: Record) -> Doomed:
        size, output = len(record.to_bytes()), record.output
        if output.inline is not None:
            return cls(record.address, size, "", 0)
        return cls(record.address, size, output.digest.hex, output.digest.size)


@dataclass(frozen=True, slots=True)
class Search:
    """What a look through the durable tier found. `complete` is false while writes were on their way that it missed."""

    going: Sequence[Doomed]
    complete: bool


async def purge(
    tiers: Tiers, namespace: str | None, unwanted: Callable[[Record], bool], *, known: Iterable[Record] = ()
) -> Receipt:
    """Remove the entries of a namespace (None: of all) whose records are unwanted, in every tier.

    `known` are records that the durable tier may not have. Raises TierError, with nothing removed, when the durable
    tier cannot be read. Other processes' memory keeps what it has: see `orders.py`.
    """
    return await remove(tiers, await find(tiers, namespace, unwanted, known=known), unwanted)


async def find(
    tiers: Tiers,
    namespace: str | None,
    unwanted: Callable[[Record], bool],
    *,
    known: Iterable[Record] = (),
    seen: Callable[[int], None] = lambda count: None,
) -> Search:
    """What would go. `seen` hears how many records have been read, now and then. Raises TierError."""
    complete = await tiers.writer.drain(_DRAIN)  # what is still on its way arrives after we have looked
    doomed: dict[Address, Doomed] = {}
    kept: set[tuple[str, str]] = set()  # blobs of records that stay
    for record in known:
        _judge(record, unwanted, doomed, kept)
    count = 0
    async for record in records(tiers, namespace):
        _judge(record, unwanted, doomed, kept)
        count += 1
        if count % _TELL_EVERY == 0:
            seen(count)
    seen(count)
    going = [
        item._replace(blob="", blob_bytes=0) if (item.address.namespace, item.blob) in kept else item
        for item in doomed.values()
    ]
    return Search(going, complete)


async def remove(tiers: Tiers, found: Search, unwanted: Callable[[Record], bool]) -> Receipt:
    """Remove what a search found, except where something wanted has taken its place meanwhile."""
    going = list(found.going)
    unreached = set() if found.complete else {tier.name for tier in tiers.shared}
    gone: dict[TierName, Gone] = {}
    for tier in reversed(tiers.shared):
        present, replaced = await _look(tier, going, unwanted)
        going = [item for item in going if item.address not in replaced]
        try:
            await _remove(tier, going)
        except TierError:
            unreached.add(tier.name)
        else:
            gone[tier.name] = _sum_of(tier, [item for item in going if item.address in present])
    gone[TierName.L1] = _remove_from_memory(tiers, going)
    return Receipt(len(found.going), gone, frozenset(unreached))


async def records(tiers: Tiers, namespace: str | None) -> AsyncIterator[Record]:
    """Every record of a namespace (None: of all) that the durable tier has, whatever its age. Raises TierError.

    Nothing if there is no tier that can be listed. What is damaged is passed over: it is a miss for everybody.
    """
    if tiers.objects is None:
        return
    addresses = _addresses(await tiers.objects.names("r/" if namespace is None else f"r/{namespace}/"))
    durable = tiers.shared[-1]
    for page in _pages(addresses):
        for address, lookup in zip(
            page, await durable.get_many([Key.of_record(address) for address in page], None), strict=True
        ):
            if lookup.outcome in FAULTS:
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
    kept: set[tuple[str, str]],
) -> None:
    if unwanted(record):
        doomed[record.address] = Doomed.of(record)
    elif record.output.inline is None:
        kept.add((record.address.namespace, record.output.digest.hex))


async def _look(
    tier: Tier, going: Sequence[Doomed], unwanted: Callable[[Record], bool]
) -> tuple[set[Address], set[Address]]:
    """Where a tier still has an unwanted record, and where it has another one by now."""
    present, replaced = set[Address](), set[Address]()
    for page in _pages(going):
        lookups = await tier.get_many([Key.of_record(item.address) for item in page], None)
        for item, lookup in zip(page, lookups, strict=True):
            if lookup.value is not None:
                (present if _is_unwanted(lookup.value, unwanted) else replaced).add(item.address)
    return present, replaced


def _is_unwanted(payload: bytes, unwanted: Callable[[Record], bool]) -> bool:
    try:
        return unwanted(Record.from_bytes(payload))
    except NotARecord:
        return True


async def _remove(tier: Tier, going: Sequence[Doomed]) -> None:
    keys = [Key.of_record(item.address) for item in going]
    keys += [Key("b", item.address.namespace, item.blob) for item in going if item.blob]
    for page in _pages(keys):
        await asyncio.gather(*(tier.delete(key) for key in page))


def _sum_of(tier: Tier, present: Sequence[Doomed]) -> Gone:
    blobs = {item.blob: item.blob_bytes for item in present if item.blob and tier.holds(item.blob_bytes)}
    return Gone(len(present) + len(blobs), sum(item.record_bytes for item in present) + sum(blobs.values()))


def _remove_from_memory(tiers: Tiers, going: Sequence[Doomed]) -> Gone:
    memory, before, count = tiers.memory.entries, tiers.memory.entries.bytes, 0
    for item in going:
        namespace = item.address.namespace
        for key in (Key.of_wire(item.address), Key.of_record(item.address), Key("b", namespace, item.blob)):
            count += memory.delete(key)
    return Gone(count, before - memory.bytes)


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
