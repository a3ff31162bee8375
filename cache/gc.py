"""Gc: gives the durable tier's space back. What is served never depends on it, and it may run while others write.

A namespace at a time: its records are read, those that are past their age or are no records go, and then the blobs go
that no record left there names. The descriptions of models are blobs too, named by `models/`. Before that go the orders
that no process needs any more (`o/`), and marks that schedules left long ago (`w/`). What lies under other prefixes, or
under names that are none of ours, is left alone, and so are orders under another secret.

Why nothing that is needed goes. A commit writes its blob before the record that names it, and writes it anew where it
is there already, so a blob on its way to a record is young; and nothing goes that was written within the margin, which
is asked again right before it goes. Between that question and the removal a few milliseconds pass. What is committed
within them loses its entry here, and is a miss like any other where no other tier has it: never other bytes.

A namespace can be held to a number of bytes: of what is beyond them, what was not used for longest goes. So no tenant's
results, and no user's uploads, crowd a store for good, whoever else has room to spare.

In memory are the names of one namespace's blobs, and a page of its entries; with such a bound, a line for each record.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from cache.catalogue import PREFIX as MODELS
from cache.catalogue import pointer_to
from cache.clock import steady
from cache.description import HOUR
from cache.digest import Digest
from cache.envelope import Damaged, OtherEnvelope, unseal
from cache.errors import TierError
from cache.keys import Address, Key
from cache.objects import Entry, ObjectsStore
from cache.orders import BOOK, Word, needed, order_on
from cache.record import NotARecord, OtherRecord, Record
from cache.sweep import Gone

MARGIN = HOUR  # seconds; far more than any commit takes
_MARKS = "w/"
_OTHERS_LIFE = 30 * 24 * HOUR  # seconds; by then no process of the version that wrote it is left
_MARKS_LIFE = 8 * 24 * HOUR  # seconds; a time that passed is never due again
_PAGE = 64  # entries read, or removed, at a time
_LARGEST_RECORD = 1024 * 1024  # bytes; no record comes near it, inlined output and all
_LARGEST_ORDER = 64 * 1024  # bytes; likewise
_TTL = 60.0  # seconds; an object store takes none

_T = TypeVar("_T")


class Why(StrEnum):
    """The reasons for which an entry goes."""

    EXPIRED = "records past their age"
    BEYOND = "records beyond what a namespace may keep"
    DAMAGED = "damaged records, and those that another version left long ago"
    FORGOTTEN = "blobs that no record names"
    OVER = "orders that are over"
    PASSED = "marks of schedules"


@dataclass
class Swept:
    """What a sweep found so far. Bytes are those of the objects."""

    gone: dict[Why, Gone] = field(default_factory=lambda: {why: Gone() for why in Why})
    kept: Gone = field(default_factory=Gone)
    namespaces: int = 0
    unread: int = 0  # records that could not be read; the blobs of their namespaces stayed


async def sweep(
    objects: ObjectsStore,
    secret: bytes,
    *,
    margin: float = MARGIN,
    most: int | None = None,
    dry_run: bool = False,
    clock: Callable[[], float] = steady,
    tell: Callable[[Swept], None] = lambda so_far: None,
) -> Swept:
    """Remove what nobody can be served with any more, but nothing that was written within `margin` seconds. With
    `most`, also what a namespace has beyond so many bytes, of records and what they name.

    `secret` is the deployment's, by which its orders are known. `tell` hears how far it is, again and again. A dry run
    removes nothing and counts what would go. Raises TierError; what is gone by then is gone, and another sweep goes on
    with the rest.
    """
    sweeper = _Sweeper(objects, margin, most, dry_run, clock, tell)
    described = await _described(objects)
    await sweeper.orders(secret)
    await sweeper.marks()
    for namespace in sorted({*await objects.folders("r/"), *await objects.folders("b/")}):
        named = await sweeper.records(namespace)
        if named is not None:
            await sweeper.blobs(namespace, named | described)
        sweeper.swept.namespaces += 1
        tell(sweeper.swept)
    return sweeper.swept


@dataclass(frozen=True, slots=True)
class _Alive:
    """A record that nothing is wrong with."""

    entry: Entry
    touched_at: float
    digest: Digest


@dataclass
class _Sweeper:
    objects: ObjectsStore
    margin: float
    most: int | None
    dry_run: bool
    clock: Callable[[], float]
    tell: Callable[[Swept], None]
    swept: Swept = field(default_factory=Swept)

    async def records(self, namespace: str) -> set[str] | None:
        """Remove the records that are none any more. The blobs that the others name, or None if that is unknown."""
        named: set[str] = set()
        alive: list[_Alive] = []  # where they are to be counted first
        unread = self.swept.unread
        async for page in self.objects.pages(f"r/{namespace}/"):
            for entries in _parts([entry for entry in page if _key_of(entry.name) is not None]):
                verdicts = list(zip(entries, await asyncio.gather(*map(self._judge, entries)), strict=True))
                records = [(entry, verdict) for entry, verdict in verdicts if isinstance(verdict, Record)]
                if self.most is not None:
                    alive += [_Alive(entry, record.touched_at, record.output.digest) for entry, record in records]
                    verdicts = [(entry, verdict) for entry, verdict in verdicts if not isinstance(verdict, Record)]
                else:
                    named |= {record.output.digest.hex for _, record in records}
                await self._settle(verdicts)
        for part in _parts(self._within(alive)):
            stayed = await self._settle((each.entry, why) for each, why in part)
            named |= {each.digest.hex for each, _ in part if each.entry.name in stayed}
        return named if self.swept.unread == unread else None

    def _within(self, alive: Iterable[_Alive]) -> list[tuple[_Alive, Why | None]]:
        """Which of a namespace's records stay: what was used last, as far as the bytes reach."""
        verdicts: list[tuple[_Alive, Why | None]] = []
        named: set[Digest] = set()
        size = 0
        for each in sorted(alive, key=lambda each: each.touched_at, reverse=True):
            size += each.entry.size + (each.digest.size if each.digest not in named else 0)
            named.add(each.digest)
            verdicts.append((each, Why.BEYOND if self.most is not None and size > self.most else None))
        return verdicts

    async def blobs(self, namespace: str, named: set[str]) -> None:
        """Remove the blobs that are not among these."""
        async for page in self.objects.pages(f"b/{namespace}/"):
            for entries in _parts([entry for entry in page if _key_of(entry.name) is not None]):
                await self._settle((entry, None if _hex_of(entry) in named else Why.FORGOTTEN) for entry in entries)

    async def orders(self, secret: bytes) -> None:
        """Remove the orders that no process needs any more. Those that cannot be read are left alone."""
        found: list[tuple[Entry, Word]] = []
        async for page in self.objects.pages(BOOK):
            for entries in _parts(page):
                orders = await asyncio.gather(*(self._order(entry, secret) for entry in entries))
                found += [(entry, order) for entry, order in zip(entries, orders, strict=True) if order is not None]
        stay = needed([order for _, order in found], self.clock() - self.margin)
        for part in _parts(found):
            await self._settle((entry, None if order in stay else Why.OVER) for entry, order in part)

    async def _order(self, entry: Entry, secret: bytes) -> Word | None:
        if entry.size > _LARGEST_ORDER:
            return None
        try:
            return order_on(await self.objects.get(entry.name, _TTL) or b"", secret)
        except TierError:
            return None

    async def marks(self) -> None:
        """Remove what says who did what was due long ago."""
        async for page in self.objects.pages(_MARKS):
            ours = [entry for entry in page if re.fullmatch(r"w/[0-9a-f]{32}/[0-9]{12}", entry.name)]
            before = self.clock() - _MARKS_LIFE
            for part in _parts(ours):
                await self._settle((entry, Why.PASSED if entry.modified < before else None) for entry in part)

    async def _judge(self, entry: Entry) -> Record | Why | None:
        """The record if it is alive, else why it goes; None for one that cannot be judged."""
        try:
            record = await self._read(entry)
        except TierError:
            self.swept.unread += 1
            return None
        except (OtherEnvelope, OtherRecord):
            return self._judge_others(entry)
        except (Damaged, NotARecord):
            return Why.DAMAGED
        return Why.EXPIRED if record is not None and record.expired(self.clock()) else record

    def _judge_others(self, entry: Entry) -> Why | None:
        """Of a record of another version: processes of that version may run beside ours, but not for ever."""
        if entry.modified < self.clock() - _OTHERS_LIFE:
            return Why.DAMAGED
        self.swept.unread += 1
        return None

    async def _read(self, entry: Entry) -> Record | None:
        """None if it has gone meanwhile. Raises TierError, and Damaged or NotARecord for what is no record."""
        key = _key_of(entry.name)
        if key is None or entry.size > _LARGEST_RECORD:
            raise NotARecord("too large")
        data = await self.objects.get(entry.name, _TTL)
        return None if data is None else Record.from_bytes(unseal(key, data), Address(key.namespace, key.hex))

    async def _settle(self, verdicts: Iterable[tuple[Entry, Record | Why | None]]) -> set[str]:
        """Remove those that are to go, and may. The names of those that stay."""
        doomed: list[tuple[Entry, Why]] = []
        stay: set[str] = set()
        for entry, verdict in verdicts:
            if isinstance(verdict, Why) and self._is_old(entry):
                doomed.append((entry, verdict))
            else:
                self._keep(entry)
                stay.add(entry.name)
        if self.dry_run:
            for entry, why in doomed:
                self._count(entry, why)
        else:
            gone = await asyncio.gather(*(self._remove(entry, why) for entry, why in doomed))
            stay |= {entry.name for (entry, _), went in zip(doomed, gone, strict=True) if not went}
        self.tell(self.swept)
        return stay

    async def _remove(self, entry: Entry, why: Why) -> bool:
        now = await self.objects.head(entry.name)
        if now is not None and self._is_old(now):
            await self.objects.delete(entry.name)
            self._count(entry, why)
            return True
        if now is not None:
            self._keep(now)  # written again since it was listed
        return now is None

    def _is_old(self, entry: Entry) -> bool:
        return entry.modified < self.clock() - self.margin

    def _keep(self, entry: Entry) -> None:
        self.swept.kept = _more(self.swept.kept, entry)

    def _count(self, entry: Entry, why: Why) -> None:
        self.swept.gone[why] = _more(self.swept.gone[why], entry)


async def _described(objects: ObjectsStore) -> set[str]:
    """Digests of the blobs that `models/` names."""
    named = set()
    for name in await objects.names(MODELS):
        if (digest := pointer_to(await objects.get(name, _TTL) or b"")) is not None:
            named.add(digest.hex)  # others name none that anybody could read
    return named


def _key_of(name: str) -> Key | None:
    """The key of an entry of ours."""
    try:
        return Key.parse(name)
    except ValueError:
        return None


def _hex_of(entry: Entry) -> str:
    return entry.name.rpartition("/")[2]


def _more(gone: Gone, entry: Entry) -> Gone:
    return Gone(gone.entries + 1, gone.bytes + entry.size)


def _parts(entries: Sequence[_T]) -> Iterable[Sequence[_T]]:
    return (entries[start : start + _PAGE] for start in range(0, len(entries), _PAGE))
