"""What is banned is served by nobody: which records a ban means, and that every way to read or write one asks."""

import asyncio
import dataclasses
from typing import Any

import pytest

from cache import tags
from cache.bans import Ban, Bans
from cache.condition import Condition
from cache.hierarchy import Hierarchy
from cache.keys import Key
from cache.record import Record
from cache.tier import Outcome, TierName
from cache.write_behind import Write, WriteBehind
from tests.cache.helpers import NOW, Clock, ScriptedTier, record_of


def marked(**changes: Any) -> Record:
    return dataclasses.replace(record_of(b"clip"), tags=("media:p", "of:aa", "tenant:t"), **changes)


@pytest.mark.parametrize(
    ("condition", "forbidden"),
    [
        (Condition(model="small"), True),
        (Condition(model="large"), False),
        (Condition(tags=("media:p",)), True),
        (Condition(tags=("media:q",)), False),
        (Condition(tags=("media:p", "tenant:t")), True),
        (Condition(tags=("media:p", "tenant:u")), False),
        (Condition(digest="aa"), True),
        (Condition(digest="bb"), False),
        (Condition(digest=record_of(b"clip").address.content_id), True),
        (Condition(digest=record_of(b"clip").output.digest.hex, model="large"), False),
        (Condition(older_than=0.0), True),
        (Condition(older_than=5.0), False),
    ],
    ids=range(12),
)
def test_a_ban_means_what_its_condition_says(condition: Condition, forbidden: bool) -> None:
    """Whatever the condition names, and all of it."""
    bans = Bans([Ban(NOW + 1.0, condition)])

    assert bans
    assert forbidden == bans.forbid(marked())


def test_only_what_was_made_before_is_banned() -> None:
    """What begins to be made after the ban is as good as new."""
    bans = Bans([Ban(NOW, Condition(model="small"))])

    assert bans.forbid(marked(made_at=NOW))
    assert not bans.forbid(marked(made_at=NOW + 0.001))


def test_bans_are_forgotten_when_what_they_mean_cannot_live_any_more() -> None:
    """An old one goes, a later one stays, however they are found."""
    bans = Bans([Ban(NOW, Condition(model="small")), Ban(NOW, Condition(tags=("media:p",)))])
    bans.add(Ban(NOW + 50.0, Condition(digest="aa")))

    bans.forget(before=NOW + 1.0)

    assert bans.forbid(marked())
    bans.forget(before=NOW + 51.0)
    assert not bans
    assert not bans.forbid(marked())


def test_without_bans_nothing_is_looked_at() -> None:
    """The usual case costs nothing: not even the record's tags are read."""
    assert not Bans().forbid(None)  # type: ignore[arg-type]  # that is the point


def test_tags_of_one_kind_are_no_tags_of_another() -> None:
    """A label that looks like a tenant's tag is a label; only media and ancestors are handed down."""
    secret = bytes(32)

    assert tags.of_label(secret, "tenant:t") != tags.of_tenant("t")
    assert tags.of_label(secret, "a") != tags.of_label(bytes([1] * 32), "a")
    assert "spring" not in tags.of_label(secret, "spring")
    assert [True, True, False, False, False] == [
        tags.is_lineage(tag)
        for tag in (
            tags.of_media("m"),
            tags.of_ancestor("a"),
            tags.of_tenant("t"),
            tags.of_user("u"),
            tags.of_label(secret, "l"),
        )
    ]


@pytest.fixture
def l2() -> ScriptedTier:
    return ScriptedTier(TierName.L2)


@pytest.fixture
def l3() -> ScriptedTier:
    return ScriptedTier(TierName.L3)


async def test_a_banned_record_is_a_miss_wherever_it_lies(l2: ScriptedTier, l3: ScriptedTier) -> None:
    """Alone or among several, in whichever tier; the answer says why, and the entry goes."""
    record, bans = marked(), Bans()
    async with WriteBehind([l2, l3], max_bytes=10**6, max_entries=100, bans=bans, clock=Clock()) as writer:
        hierarchy = Hierarchy([l2, l3], writer, bans=bans, clock=Clock())
        await (await hierarchy.commit(record, b"clip"))
        assert (await hierarchy.fetch(record.address, 60.0)).data == b"clip"

        bans.add(Ban(NOW + 1.0, Condition(tags=("media:p",))))
        several = await hierarchy.find_many([(record.address, 60.0)])
        found = await hierarchy.fetch(record.address, 60.0)

    assert {} == several
    assert found.data is None
    assert [Outcome.INVALIDATED, Outcome.INVALIDATED] == [lookup.outcome for lookup in found.lookups]
    assert Key.of_record(record.address) not in l2.entries.keys() | l3.entries.keys()


async def test_what_is_made_anew_takes_the_place_of_what_is_banned(l3: ScriptedTier) -> None:
    """The first commit wins over later ones, and not over one that nobody may have."""
    old, bans = marked(), Bans()
    new = dataclasses.replace(old, made_at=NOW + 2.0)
    async with WriteBehind([l3], max_bytes=10**6, max_entries=100, bans=bans, clock=Clock()) as writer:
        hierarchy = Hierarchy([l3], writer, bans=bans, clock=Clock())
        await (await hierarchy.commit(old, b"clip"))
        bans.add(Ban(NOW + 1.0, Condition(tags=("media:p",))))

        assert await (await hierarchy.commit(new, b"clip"))
        assert new == (await hierarchy.fetch(new.address, 60.0)).record


async def test_what_was_being_made_is_not_stored(l3: ScriptedTier) -> None:
    """Neither when it is committed after the ban, nor when it waits to be written meanwhile."""
    record, bans = marked(), Bans()
    l3.open = asyncio.Event()
    async with WriteBehind([l3], max_bytes=10**6, max_entries=100, writers=1, bans=bans, clock=Clock()) as writer:
        hierarchy = Hierarchy([l3], writer, bans=bans, clock=Clock())
        busy = await writer.submit([Write(Key("b", "0" * 32, "f" * 64), b"other", 60.0)])
        waiting = await hierarchy.commit(record, b"clip")
        bans.add(Ban(NOW + 1.0, Condition(model="small")))
        late = await hierarchy.commit(record, b"clip")
        l3.open.set()

        assert [True, False, False] == [await busy, await waiting, await late]
    assert 1 == len(l3.entries)
