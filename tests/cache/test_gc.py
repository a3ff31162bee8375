"""Gc: what a sweep removes, what it leaves alone, and what becomes of those who write meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from cache.bans import Ban, Bans
from cache.build import Tiers, build_tiers
from cache.catalogue import Catalogue
from cache.condition import Condition
from cache.crashes import REMEMBERED, Crash
from cache.description import HOUR
from cache.digest import Digest
from cache.encoding import VERSION
from cache.envelope import seal
from cache.errors import TierError
from cache.gc import MARGIN, Swept, Why, sweep
from cache.keys import Address, Key
from cache.objects import Entry, ObjectsStore
from cache.orders import IN_FORCE, Order, Orders
from cache.pins import Pin, Pins
from cache.record import Record
from cache.settings import CacheSettings, L2Settings, L3Settings
from cache.switches import Subject, Switch, Switches
from tests.cache.families import picture_family
from tests.cache.helpers import NAMESPACE, SECRET, record_of
from tests.servers import S3

OTHER = "1" * 32
LARGE = b"l" * (100 * 1024)


def later(seconds: float = MARGIN + 60.0) -> Callable[[], float]:
    """A clock that is ahead, so that what was just written is old."""
    return lambda: time.time() + seconds


@pytest.fixture(params=["folder", "s3"])
async def tiers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Tiers]:
    """A durable tier alone, in a folder and in a bucket."""
    l3 = L3Settings(url=f"file://{tmp_path / 'objects'}", stall=5)
    if request.param == "s3":
        s3: S3 = request.getfixturevalue("s3")
        l3 = L3Settings(
            url=f"s3://{s3.bucket}/{s3.prefix}",
            endpoint=s3.endpoint,
            region=s3.region,
            access_key=s3.access_key,
            secret_key=SecretStr(s3.secret_key),
            stall=5,
        )
    settings = CacheSettings(secret=SecretStr(SECRET.hex()), l2=L2Settings(enabled=False), l3=l3)
    async with await asyncio.to_thread(build_tiers, settings, CollectorRegistry()) as tiers:
        yield tiers


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Tiers]:
    """A folder as the durable tier, where it does not matter which it is."""
    settings = CacheSettings(
        secret=SecretStr(SECRET.hex()),
        l2=L2Settings(enabled=False),
        l3=L3Settings(url=f"file://{tmp_path / 'objects'}", stall=5),
    )
    async with await asyncio.to_thread(build_tiers, settings, CollectorRegistry()) as tiers:
        yield tiers


def objects_of(tiers: Tiers) -> ObjectsStore:
    assert tiers.objects is not None
    return tiers.objects


async def store(
    tiers: Tiers,
    name: str,
    data: bytes,
    *,
    namespace: str = NAMESPACE,
    ttl: float = 10 * MARGIN,
    max_age: float = 10 * MARGIN,
) -> Record:
    """A record with its blob, made now."""
    record = record_of(data, name=name, now=time.time(), ttl=ttl, max_age=max_age)
    record = dataclasses.replace(record, address=dataclasses.replace(record.address, namespace=namespace))
    assert await (await tiers.below_memory.commit(record, data))
    return record


def entries(swept: Swept) -> dict[Why, int]:
    return {why: gone.entries for why, gone in swept.gone.items() if gone.entries}


async def names(tiers: Tiers) -> set[str]:
    return set(await objects_of(tiers).names(""))


def keys_of(record: Record) -> set[str]:
    return {str(Key.of_record(record.address)), str(Key.of_blob(record.address.namespace, record.output.digest))}


# What goes, and what stays.


async def test_what_is_past_its_age_goes_with_its_blob(tiers: Tiers) -> None:
    """By its hard age or for want of use; what is alive stays and can be read, and the bytes are counted."""
    old = await store(tiers, "old", b"old", max_age=60.0)
    unused = await store(tiers, "unused", b"unused", ttl=60.0)
    alive = await store(tiers, "alive", LARGE)
    before = sum([entry.size async for page in objects_of(tiers).pages("") for entry in page])

    swept = await sweep(objects_of(tiers), SECRET, clock=later())

    assert {Why.EXPIRED: 2, Why.FORGOTTEN: 2} == entries(swept)
    assert (2, 1, 0) == (swept.kept.entries, swept.namespaces, swept.unread)
    assert before == swept.kept.bytes + sum(gone.bytes for gone in swept.gone.values())
    assert swept.kept.bytes > len(LARGE)
    assert keys_of(alive) == await names(tiers)
    assert LARGE == (await tiers.below_memory.fetch(alive.address, 60.0)).data
    assert (await tiers.below_memory.fetch(old.address, 60.0)).data is None
    assert (await tiers.below_memory.fetch(unused.address, 60.0)).data is None


async def test_a_namespace_is_held_to_its_bytes(tiers: Tiers) -> None:
    """What was used last stays, as far as the bytes reach, shared blobs counted once; another's entries are its own
    affair; and a dry run says the same.
    """
    records = [await store(tiers, name, LARGE + name.encode()) for name in ("first", "second", "third")]
    shared = await store(tiers, "again", LARGE + b"third")
    other = await store(tiers, "other", LARGE, namespace=OTHER)
    await _touched(tiers, records[0])

    most = int(2.5 * len(LARGE))
    dry = await sweep(objects_of(tiers), SECRET, clock=later(), most=most, dry_run=True)
    swept = await sweep(objects_of(tiers), SECRET, clock=later(), most=most)

    assert {Why.BEYOND: 1, Why.FORGOTTEN: 1} == entries(swept) == entries(dry)
    assert keys_of(records[0]) | keys_of(records[2]) | keys_of(shared) | keys_of(other) == await names(tiers)
    nothing = await sweep(objects_of(tiers), SECRET, clock=later(), most=most)
    assert {} == entries(nothing)
    await sweep(objects_of(tiers), SECRET, clock=later(), most=0)
    assert set() == await names(tiers)


async def _touched(tiers: Tiers, record: Record) -> None:
    """It is used an hour from now."""
    used = dataclasses.replace(record, touched_at=record.touched_at + HOUR)
    key = Key.of_record(record.address)
    await objects_of(tiers).put(str(key), seal(key, used.to_bytes()), 60.0, replace=True)


async def test_what_was_just_written_is_not_beyond_anything(folder: Tiers) -> None:
    """Nothing goes within the margin; nor the blob of a record that is used while it is about to go."""
    first = await store(folder, "first", LARGE)
    assert {} == entries(await sweep(objects_of(folder), SECRET, most=0))
    objects, clock = objects_of(folder), later()
    head = objects.head

    async def used_meanwhile(name: str) -> Entry | None:
        await _touched(folder, first)
        entry = await head(name)
        return None if entry is None else entry._replace(modified=clock())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(objects, "head", used_meanwhile)
        assert {} == entries(await sweep(objects, SECRET, clock=clock, most=0))
    assert keys_of(first) == await names(folder)


async def test_a_blob_stays_while_any_record_of_its_namespace_names_it(tiers: Tiers) -> None:
    """One of two records that share it is enough; a record elsewhere is not."""
    await store(tiers, "old", LARGE, ttl=60.0)
    alive = await store(tiers, "alive", LARGE)
    await store(tiers, "elsewhere", LARGE, namespace=OTHER, ttl=60.0)

    swept = await sweep(objects_of(tiers), SECRET, clock=later())

    assert {Why.EXPIRED: 2, Why.FORGOTTEN: 1} == entries(swept)
    assert keys_of(alive) == await names(tiers)


async def test_nothing_within_the_margin_goes(tiers: Tiers) -> None:
    """A blob whose record is still on its way, a record past its age, a damaged one: not before the margin is over."""
    await store(tiers, "old", b"old", ttl=1.0)
    await tiers.below_memory.keep(NAMESPACE, b"on its way", 600.0)
    await objects_of(tiers).put(f"r/{NAMESPACE}/ab/ab{'0' * 62}", b"damaged", 60.0, replace=True)
    before = await names(tiers)

    for dry_run in (True, False):
        swept = await sweep(objects_of(tiers), SECRET, margin=100.0, clock=later(50.0), dry_run=dry_run)
        assert ({}, 4) == (entries(swept), swept.kept.entries)
    assert before == await names(tiers)

    swept = await sweep(objects_of(tiers), SECRET, margin=100.0, clock=later(150.0))
    assert {Why.EXPIRED: 1, Why.DAMAGED: 1, Why.FORGOTTEN: 2} == entries(swept)
    assert set() == await names(tiers)


async def test_what_is_no_record_goes(folder: Tiers) -> None:
    """A flipped bit, another record's bytes, another layout, something enormous: misses for everybody, and space."""
    record, other = await store(folder, "good", b"good"), await store(folder, "other", b"other")
    objects, name = objects_of(folder), str(Key.of_record(record.address))
    sealed = await objects.get(name, 60.0)
    foreign = await objects.get(str(Key.of_record(other.address)), 60.0)
    assert sealed is not None
    assert foreign is not None
    for damaged in (
        sealed[:-1] + bytes([sealed[-1] ^ 1]),
        foreign,
        sealed[:4] + b"\x63" + sealed[5:],
        b"",
        bytes(2 * 1024 * 1024),
    ):
        await objects.put(name, damaged, 60.0, replace=True)
        swept = await sweep(objects, SECRET, clock=later(), dry_run=True)
        assert {Why.DAMAGED: 1, Why.FORGOTTEN: 1} == entries(swept)


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
async def test_what_a_neighbouring_version_has_left_stays_for_a_month(folder: Tiers, version: int) -> None:
    """Its processes may run beside ours: its records stay, and the blobs of their namespace. Then they go."""
    record = await store(folder, "good", LARGE)
    objects, name = objects_of(folder), str(Key.of_record(record.address))
    sealed = await objects.get(name, 60.0)
    assert sealed is not None
    await objects.put(name, sealed[:4] + bytes([version]) + sealed[5:], 60.0, replace=True)
    swept = await sweep(objects, SECRET, clock=later(20 * 24 * HOUR))
    assert ({}, 1) == (entries(swept), swept.unread)
    assert keys_of(record) <= await names(folder)
    await sweep(objects, SECRET, clock=later(31 * 24 * HOUR))
    assert not keys_of(record) & await names(folder)


async def test_nothing_enormous_is_read(folder: Tiers) -> None:
    """What is too large for a record is none, and takes no memory."""
    await objects_of(folder).put(f"r/{NAMESPACE}/ab/ab{'0' * 62}", bytes(2 * 1024 * 1024), 60.0, replace=True)
    objects = Faulty(objects_of(folder))

    async def get(name: str, ttl: float) -> bytes | None:
        raise AssertionError("read")

    objects.get = get  # type: ignore[attr-defined]
    assert {Why.DAMAGED: 1} == entries(await sweep(objects, SECRET, clock=later()))  # type: ignore[arg-type]


async def test_what_is_not_ours_is_left_alone(folder: Tiers) -> None:
    """Other prefixes, odd names below ours, and the secret of a folder."""
    foreign = [
        "o/order",
        "doctor/probe",
        "readme",
        f"r/{NAMESPACE}/readme",
        f"b/{NAMESPACE}/ab/cd{'0' * 62}",
        f"b/{NAMESPACE}/ab/ab{'0' * 62}/more",
        "b/elsewhere/ab/readme",
    ]
    for name in foreign:
        await objects_of(folder).put(name, b"foreign", 60.0, replace=True)

    swept = await sweep(objects_of(folder), SECRET, clock=later())

    assert ({}, 0) == (entries(swept), swept.kept.entries)
    assert set(foreign) == await names(folder)


async def test_descriptions_of_models_stay_while_they_are_named(tiers: Tiers) -> None:
    """The active one of each model, wherever it lies; one that was replaced goes; a broken pointer stops nothing."""
    catalogue = Catalogue(objects_of(tiers), tiers.below_memory, OTHER)
    family = picture_family()
    for revision in ("r1", "r2"):
        await catalogue.publish(family.model_copy(update={"revision": revision}))
    await objects_of(tiers).put("models/broken", b"{", 60.0, replace=True)

    swept = await sweep(objects_of(tiers), SECRET, clock=later())

    assert {Why.FORGOTTEN: 1} == entries(swept)
    active = await catalogue.active(family.model)
    assert active is not None
    assert "r2" == active.revision


ONE, TWO = (Address(NAMESPACE, digit * 64) for digit in "12")


def book(now: float) -> dict[str, list[Order]]:
    """Orders by what becomes of them when this time is eight days and more ago."""
    return {
        "over": [
            Ban(now, Condition(model="small")),
            Switch(now, Subject.TIER, "l2", on=False),
            Switch(now + 1.0, Subject.TIER, "l2", on=True),
            Pin(now, ONE, on=True),
        ],
        "needed": [
            Ban(now + 2 * HOUR, Condition(model="small")),
            Switch(now + 2.0, Subject.TIER, "l2", on=False),
            Switch(now, Subject.MODEL, "l2", on=False),
            Pin(now + HOUR, ONE, on=False),
            Pin(now, TWO, on=True),
        ],
    }


async def test_of_the_book_goes_what_no_process_needs(tiers: Tiers) -> None:
    """Bans that are over, and switches and pins that a later one replaced; who starts then knows as much as before."""
    orders = book(time.time())
    clock = later(IN_FORCE + MARGIN + 60.0)

    def process(secret: bytes) -> Orders:
        return Orders(
            objects_of(tiers),
            None,
            process="p",
            secret=secret,
            bans=Bans(),
            switches=Switches(),
            pins=Pins(),
            clock=clock,
        )

    for kind in ("over", "needed"):
        for order in orders[kind]:
            await process(SECRET).give(order)
    await process(bytes([7] * 32)).give(orders["over"][0])
    await objects_of(tiers).put("o/junk", b"junk", 60.0, replace=True)
    before = await names(tiers)

    early = await sweep(objects_of(tiers), SECRET, clock=later(IN_FORCE))
    swept = await sweep(objects_of(tiers), SECRET, clock=clock)

    assert ({}, {Why.OVER: 4}) == (entries(early), entries(swept))
    assert (9, 5) == (early.kept.entries, swept.kept.entries)
    assert 4 == len(before - await names(tiers))
    async with process(SECRET) as late:
        assert [(Subject.MODEL, "l2"), (Subject.TIER, "l2")] == late.switches.off
        assert [TWO] == late.pins.wanted
        assert late.bans


async def test_crashes_go_once_nothing_is_set_apart_for_them(tiers: Tiers) -> None:
    """A day after they came."""
    objects = objects_of(tiers)
    async with Orders(objects, None, process="p", secret=SECRET, bans=Bans(), switches=Switches()) as orders:
        orders.note(Crash(time.time(), ONE, "a"))
        async with asyncio.timeout(20.0):
            while not await names(tiers):  # noqa: ASYNC110  # it is written behind
                await asyncio.sleep(0.01)
    early = await sweep(objects, SECRET, clock=later(REMEMBERED + MARGIN - 60.0))
    late = await sweep(objects, SECRET, clock=later(REMEMBERED + MARGIN + 60.0))
    assert ({}, {Why.OVER: 1}) == (entries(early), entries(late))


async def test_orders_that_cannot_be_read_stay(folder: Tiers) -> None:
    """And nothing else does for it."""
    orders = Orders(objects_of(folder), None, process="p", secret=SECRET, bans=Bans(), switches=Switches())
    await orders.give(Ban(time.time(), Condition(model="small")))
    await store(folder, "old", b"old", ttl=60.0)
    objects, real = Faulty(objects_of(folder)), objects_of(folder).get

    async def get(name: str, ttl: float) -> bytes | None:
        if name.startswith("o/"):
            raise TierError("scripted")
        return await real(name, ttl)

    objects.get = get  # type: ignore[attr-defined]
    swept = await sweep(objects, SECRET, clock=later(IN_FORCE + 2 * MARGIN))  # type: ignore[arg-type]

    assert {Why.EXPIRED: 1, Why.FORGOTTEN: 1} == entries(swept)
    assert 1 == len(await names(folder))


async def test_marks_of_schedules_go_after_eight_days(tiers: Tiers) -> None:
    """Nobody looks for one by then; what only resembles one is left alone."""
    mark, foreign = f"w/{'0a' * 16}/{12:012d}", f"w/{'0a' * 16}/readme"
    for name in (mark, foreign):
        await objects_of(tiers).put(name, b"", 60.0, replace=True)

    young = await sweep(objects_of(tiers), SECRET, clock=later(8 * 24 * HOUR - 60.0))
    old = await sweep(objects_of(tiers), SECRET, clock=later(8 * 24 * HOUR + 60.0))

    assert ({}, {Why.PASSED: 1}) == (entries(young), entries(old))
    assert {foreign} == await names(tiers)


async def test_a_dry_run_counts_and_removes_nothing(tiers: Tiers) -> None:
    """It says what a sweep would do, and then the sweep does it."""
    await store(tiers, "old", LARGE, ttl=60.0)
    await store(tiers, "alive", b"alive")
    before = await names(tiers)

    would = await sweep(objects_of(tiers), SECRET, clock=later(), dry_run=True)
    assert before == await names(tiers)
    assert would == await sweep(objects_of(tiers), SECRET, clock=later())
    assert len(before) - 2 == len(await names(tiers))


async def test_more_than_a_page_is_swept(folder: Tiers) -> None:
    """Every entry is judged once, and progress is told between."""
    for number in range(150):
        await store(folder, str(number), b"%d" % number, ttl=60.0 if number % 3 else 10 * MARGIN)
    told: list[int] = []

    def hear(so_far: Swept) -> None:
        told.append(so_far.kept.entries + sum(gone.entries for gone in so_far.gone.values()))

    swept = await sweep(objects_of(folder), SECRET, clock=later(), tell=hear)

    assert {Why.EXPIRED: 100, Why.FORGOTTEN: 100} == entries(swept)
    assert 100 == swept.kept.entries == len(await names(folder))
    assert sorted(told) == told
    assert 300 == told[-1]
    assert 4 < len(set(told))


# Faults.


class Faulty:
    """A store whose calls a test may take over by name."""

    def __init__(self, objects: ObjectsStore) -> None:
        self._objects = objects

    def __getattr__(self, name: str) -> object:
        return getattr(self._objects, name)


async def test_a_record_that_cannot_be_read_saves_the_blobs_of_its_namespace(folder: Tiers) -> None:
    """What it names is not known; the next namespace is swept as ever, and the number is told."""
    first, _ = await store(folder, "a", b"a"), await store(folder, "old", b"old", ttl=60.0)
    await store(folder, "elsewhere", b"b", namespace=OTHER, ttl=60.0)
    objects, real = Faulty(objects_of(folder)), objects_of(folder).get

    async def get(name: str, ttl: float) -> bytes | None:
        if name == str(Key.of_record(first.address)):
            raise TierError("scripted")
        return await real(name, ttl)

    objects.get = get  # type: ignore[attr-defined]
    swept = await sweep(objects, SECRET, clock=later())  # type: ignore[arg-type]

    assert {Why.EXPIRED: 2, Why.FORGOTTEN: 1} == entries(swept)
    assert 1 == swept.unread
    assert b"a" == (await folder.below_memory.fetch(first.address, 60.0)).data


async def test_pointers_that_cannot_be_read_stop_the_sweep(folder: Tiers) -> None:
    """Before anything is removed: a description may be named by them."""
    await folder.below_memory.keep(NAMESPACE, b"a description", 600.0)
    before = await names(folder)
    objects = Faulty(objects_of(folder))

    async def fail(prefix: str) -> list[str]:
        raise TierError("scripted")

    objects.names = fail  # type: ignore[attr-defined]
    with pytest.raises(TierError):
        await sweep(objects, SECRET, clock=later())  # type: ignore[arg-type]
    assert before == await names(folder)


# Those who write meanwhile.


async def between(folder: Tiers, call: str, blob: str, do: Callable[[], Awaitable[object]]) -> Swept:
    """A sweep in which something happens right before it makes this call about this blob."""
    objects, real = Faulty(objects_of(folder)), getattr(objects_of(folder), call)
    happened = False

    async def first(name: str) -> object:
        nonlocal happened
        if name == blob and not happened:
            happened = True
            await do()
        return await real(name)

    setattr(objects, call, first)
    swept = await sweep(objects, SECRET, clock=later(), margin=MARGIN)  # type: ignore[arg-type]
    assert happened
    return swept


@pytest.fixture
async def forgotten(folder: Tiers, tmp_path: Path) -> tuple[Record, str]:
    """A blob that lay there for long and is named by no record, and the record of one who is about to commit it."""
    await folder.below_memory.keep(NAMESPACE, LARGE, 600.0)
    record = record_of(LARGE, now=time.time() + MARGIN + 60.0, ttl=10 * MARGIN, max_age=10 * MARGIN)
    return record, str(Key.of_blob(NAMESPACE, Digest.of(LARGE)))


async def test_a_commit_that_comes_before_the_last_question_keeps_its_blob(
    folder: Tiers, forgotten: tuple[Record, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blob was found forgotten; then a commit writes it anew and names it: it is young, and stays."""
    record, blob = forgotten
    real = Entry.of

    async def commit() -> None:
        assert await (await folder.below_memory.commit(record, LARGE))
        # The sweep's clock is ahead, so what is written from here on must be too.
        monkeypatch.setattr(Entry, "of", lambda meta: real(meta)._replace(modified=real(meta).modified + MARGIN + 60.0))

    old = await objects_of(folder).head(blob)
    swept = await between(folder, "head", blob, commit)

    now = await objects_of(folder).head(blob)
    assert old is not None
    assert now is not None
    assert now.modified - (MARGIN + 60.0) > old.modified  # the commit wrote it again, though it was there
    assert {} == entries(swept)
    assert LARGE == (await folder.below_memory.fetch(record.address, 60.0)).data


async def test_a_commit_in_the_last_moment_is_a_miss_that_heals(folder: Tiers, forgotten: tuple[Record, str]) -> None:
    """Between the last question and the removal: the record points at nothing, goes, and can be made again."""
    record, blob = forgotten

    async def commit() -> None:
        assert await (await folder.below_memory.commit(record, LARGE))

    assert {Why.FORGOTTEN: 1} == entries(await between(folder, "delete", blob, commit))

    assert (await folder.below_memory.fetch(record.address, 60.0)).data is None
    assert set() == await names(folder)
    assert await (await folder.below_memory.commit(record, LARGE))
    assert LARGE == (await folder.below_memory.fetch(record.address, 60.0)).data


async def test_what_goes_by_another_hand_is_not_counted(folder: Tiers, forgotten: tuple[Record, str]) -> None:
    """Two sweeps at once, or an invalidation beside one, disturb nobody."""
    _, blob = forgotten
    swept = await between(folder, "head", blob, lambda: objects_of(folder).delete(blob))
    assert {} == entries(swept)


async def test_many_commits_during_many_sweeps(folder: Tiers) -> None:
    """Whatever the order: what was committed and can be read has its own bytes; the rest are misses."""
    blobs = [bytes([number]) * 1000 for number in range(20)]
    for blob in blobs:
        await folder.below_memory.keep(NAMESPACE, blob, 600.0)

    async def commit(number: int) -> Record:
        record = record_of(blobs[number], name=str(number), now=time.time(), ttl=10 * MARGIN, max_age=10 * MARGIN)
        await (await folder.below_memory.commit(record, blobs[number]))
        return record

    sweeps = [sweep(objects_of(folder), SECRET, clock=later()) for _ in range(4)]
    *records, _, _, _, _ = await asyncio.gather(*map(commit, range(20)), *sweeps)

    for number, record in enumerate(records):
        assert isinstance(record, Record)
        assert (await folder.below_memory.fetch(record.address, 60.0)).data in (None, blobs[number])
