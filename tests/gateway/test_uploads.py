"""Uploads: files with an age, found by their uploader and by the picture they show, for as long as they are used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from cache.description import Scope
from cache.digest import Digest
from cache.hierarchy import Hierarchy
from cache.keys import Key, Principal, namespaces
from cache.purge import records
from cache.record import Record
from cache.tier import Outcome, TierName
from cache.write_behind import WriteBehind
from gateway.errors import NotFound, Unavailable
from gateway.uploads import MAX_AGE, TTL, Uploads, upload_address
from reprise.v1 import common_pb2 as pb
from tests.cache.helpers import NAMESPACE, Clock, ScriptedTier
from tests.gateway.world import World, eventually, outcome, picture

CONTENT = b"a file"
FILE = Digest.of(CONTENT)
ADDRESS = upload_address(NAMESPACE, FILE)


class Shelf:
    """Uploads over one durable tier that a test reads and scripts."""

    def __init__(self, writer: WriteBehind, tier: ScriptedTier, clock: Clock) -> None:
        self.writer, self.tier, self.clock = writer, tier, clock
        self.uploads = Uploads(Hierarchy([tier], writer, clock=clock), clock=clock)

    async def record(self) -> Record:
        assert await self.writer.drain(10.0)
        return Record.from_bytes(self.tier.entries[Key.of_record(ADDRESS)], ADDRESS)

    async def keep(self) -> None:
        await self.uploads.keep(NAMESPACE, "t" * 32, FILE, "i1", CONTENT)


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    tier, clock = ScriptedTier(TierName.L3), Clock()
    writer = WriteBehind([tier], max_bytes=1000, max_entries=10, pause=lambda seconds: asyncio.sleep(0), clock=clock)
    async with writer:
        yield Shelf(writer, tier, clock)


def test_the_address_is_pinned() -> None:
    """Another one would lose what was uploaded."""
    assert "ec404b" == ADDRESS.content_id[:6]
    assert NAMESPACE == ADDRESS.namespace


async def test_a_file_is_a_record_and_one_blob(shelf: Shelf) -> None:
    """The record has its age and the picture's identity, and does not hold the file a second time."""
    await shelf.keep()
    record = await shelf.record()
    assert {Key.of_record(ADDRESS), Key.of_blob(NAMESPACE, FILE)} == shelf.tier.entries.keys()
    marks = ("media:i1", f"user:{NAMESPACE}", f"tenant:{'t' * 32}")
    assert ("upload", marks, FILE, None) == (
        record.stage,
        record.tags,
        record.output.digest,
        record.output.inline,
    )
    assert (TTL, shelf.clock.now + MAX_AGE) == (record.ttl, record.expires_at)
    assert CONTENT == await shelf.uploads.fetch(NAMESPACE, FILE)


async def test_a_file_is_its_owners_and_has_its_size(shelf: Shelf) -> None:
    """In another namespace, or with another size, there is no such upload."""
    await shelf.keep()
    for namespace, file in (("1" * 32, FILE), (NAMESPACE, replace(FILE, size=7))):
        with pytest.raises(NotFound) as caught:
            await shelf.uploads.fetch(namespace, file)
        assert "DIGEST_UNKNOWN" == caught.value.reason


@pytest.mark.parametrize("how", ["fetched", "remembered"])
async def test_use_keeps_a_file_young(shelf: Shelf, how: str) -> None:
    """Whether it had to be fetched or not, it stays while it is used, and not beyond its hard age."""
    use = shelf.uploads.fetch if how == "fetched" else shelf.uploads.used
    await shelf.keep()
    for _ in range(4):
        shelf.clock.advance(0.75 * TTL)
        await use(NAMESPACE, FILE)
        assert shelf.clock.now == (await shelf.record()).touched_at
    assert CONTENT == await shelf.uploads.fetch(NAMESPACE, FILE)
    shelf.clock.advance(MAX_AGE)
    with pytest.raises(NotFound):
        await shelf.uploads.fetch(NAMESPACE, FILE)


async def test_without_use_a_file_goes(shelf: Shelf) -> None:
    """After two hours it is as if it had never been there."""
    await shelf.keep()
    shelf.clock.advance(TTL)
    with pytest.raises(NotFound):
        await shelf.uploads.fetch(NAMESPACE, FILE)


async def test_noting_a_use_costs_a_lookup_once_per_half_age(shelf: Shelf) -> None:
    """It is on the way of every hit, so it asks no tier in between; where the tier fails it asks again."""
    await shelf.keep()
    shelf.tier.gets.clear()
    shelf.tier.fault = Outcome.ERROR
    await shelf.uploads.used(NAMESPACE, FILE)
    shelf.tier.fault = None
    for _ in range(5):
        await shelf.uploads.used(NAMESPACE, FILE)
    assert 2 == len(shelf.tier.gets)
    shelf.clock.advance(TTL / 2 + 1)
    await shelf.uploads.used(NAMESPACE, FILE)
    await shelf.writer.drain(10.0)
    assert 2 < len(shelf.tier.gets)


async def test_sent_again_it_is_young_again(shelf: Shelf) -> None:
    """A second upload of the same file starts its age anew, in the same place."""
    await shelf.keep()
    shelf.clock.advance(0.9 * TTL)
    await shelf.keep()
    assert shelf.clock.now == (await shelf.record()).made_at
    assert 2 == len(shelf.tier.entries)


async def test_what_is_not_durable_is_refused(shelf: Shelf) -> None:
    """Rather than a digest that nobody will find."""
    shelf.tier.fault = Outcome.ERROR
    with pytest.raises(Unavailable):
        await shelf.keep()


@pytest.mark.parametrize("remembered", [True, False])
async def test_a_request_by_digest_is_a_use(world: World, remembered: bool) -> None:
    """At the gateway that decoded the file already, and at one that has to fetch it."""
    worker = await world.worker()
    desks = [await world.desk(worker, cache=world.only("l3")) for _ in range(2)]
    uploaded = await desks[0].client.upload(picture(7))
    await desks[0].stored(await desks[0].animate(image=picture(7)))
    tiers = await world.tiers(world.only("l3"))
    user = namespaces(world.cache.secret_bytes, Principal("local", "local"))[Scope.USER]
    (record,) = [each async for each in records(tiers, user) if each.stage == "upload"]
    aged = replace(record, touched_at=record.touched_at - 0.75 * TTL)
    await tiers.shared[-1].put(Key.of_record(record.address), aged.to_bytes(), TTL, replace=True)

    hit = await desks[0 if remembered else 1].animate(image_digest=uploaded.digest)
    assert "hit from L3" == outcome(hit)

    async def touched() -> bool:
        (found,) = [each async for each in records(tiers, user) if each.stage == "upload"]
        return found.touched_at >= record.touched_at

    assert await eventually(touched)
    assert f"media:{worker.requests[0].pictures['image'].identity}" in record.tags


async def test_a_hit_in_memory_is_a_use(world: World, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that names the file and is answered at hand for hours leaves it there for the next one."""
    monkeypatch.setattr("gateway.serve.Uploads", lambda hierarchy, most: shelf.uploads)
    desk = await world.desk(await world.worker())
    uploaded = await desk.client.upload(picture(7))
    await desk.animate(image_digest=uploaded.digest)
    for _ in range(3):
        shelf.clock.advance(0.75 * TTL)
        assert "hit from L1" == outcome(await desk.animate(image_digest=uploaded.digest))
        assert await shelf.writer.drain(10.0)
    anew = await desk.animate(image_digest=uploaded.digest, policy={"mode": pb.CachePolicy.MODE_BYPASS})
    assert "bypass" == outcome(anew)
