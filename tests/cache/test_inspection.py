"""Inspection: every tier's own copy is told, and nothing is the other for having been looked at."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from redis.asyncio import Redis

from cache.build import Tiers, build_tiers
from cache.inspection import Copy, Inspection, inspect, read_key
from cache.keys import Key
from cache.record import Record
from cache.settings import CacheSettings, L2Settings, L3Settings
from cache.tier import Outcome, TierName
from gateway.stack import Stack
from tests import servers
from tests.cache.helpers import NAMESPACE, SECRET, pause, record_of

LARGE = b"l" * (100 * 1024)


def settings_of(folder: Path, redis_url: str) -> CacheSettings:
    return CacheSettings(
        secret=SecretStr(SECRET.hex()),
        l2=L2Settings(url=SecretStr(redis_url), budget=0.5),
        l3=L3Settings(url=f"file://{folder}", stall=5),
    )


@pytest.fixture
async def tiers(tmp_path: Path, redis_url: str) -> AsyncIterator[Tiers]:
    async with await asyncio.to_thread(
        build_tiers, settings_of(tmp_path / "objects", redis_url), CollectorRegistry()
    ) as tiers:
        yield tiers


async def store(tiers: Tiers, data: bytes = LARGE, *, inline: bool = False) -> Record:
    record = record_of(data, now=time.time(), inline=inline)
    assert await (await tiers.through_memory.commit(record, data))
    async with asyncio.timeout(20.0):
        while _may_be_alone(tiers, record):  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0)
    return record


def _may_be_alone(tiers: Tiers, record: Record) -> bool:
    """What this process remembers of it has not heard yet that it is durable."""
    remembered = tiers.memory.peek(Key.of_record(record.address))
    return remembered is not None and Record.from_bytes(remembered).pending


def outcomes(inspection: Inspection) -> dict[str, str]:
    return {copy.tier.value: copy.outcome.value for copy in inspection.copies}


ALL = {"l1": "hit", "l2": "hit", "l3": "hit"}


async def test_a_record_is_found_wherever_it_lies(tiers: Tiers) -> None:
    """With its size in each tier, and everything it says."""
    record = await store(tiers)
    found = await inspect(tiers, Key.of_record(record.address))
    assert (ALL, record, True) == (outcomes(found), found.record, found.found)
    memory, *stored = [copy.size for copy in found.copies]
    assert [len(record.to_bytes())] * 2 == stored
    assert len(record.to_bytes()) < memory < len(record.to_bytes()) + 1000

    tiers.memory.entries.clear()
    await tiers.shared[0].delete(Key.of_record(record.address))
    found = await inspect(tiers, Key.of_record(record.address))
    assert ({"l1": "miss", "l2": "miss", "l3": "hit"}, record) == (outcomes(found), found.record)


async def test_a_blob_is_found_and_says_nothing_more(tiers: Tiers) -> None:
    """Verified like any read."""
    record = await store(tiers)
    found = await inspect(tiers, Key.of_blob(NAMESPACE, record.output.digest))
    assert (ALL, None) == (outcomes(found), found.record)
    assert [len(LARGE)] * 2 == [copy.size for copy in found.copies[1:]]


async def test_what_is_nowhere_is_not_found(tiers: Tiers) -> None:
    """Every tier says so."""
    found = await inspect(tiers, Key.of_record(record_of(b"").address))
    assert (dict.fromkeys(ALL, "miss"), None, False) == (outcomes(found), found.record, found.found)


async def test_looking_changes_nothing(tiers: Tiers, redis_url: str) -> None:
    """No age is refreshed, nothing is promoted, and nothing is counted as an answer."""
    record = await store(tiers)
    key = Key.of_record(record.address)
    redis = Redis.from_url(redis_url)
    await redis.pexpire(str(key), 100_000)
    tiers.memory.entries.clear()
    before = [dict(tier.tally.outcomes) for tier in tiers.shared]

    assert record == (await inspect(tiers, key)).record

    assert 0 < await redis.pttl(str(key)) <= 100_000
    assert before == [dict(tier.tally.outcomes) for tier in tiers.shared]
    assert 0 == len(tiers.memory.entries)
    await redis.aclose()


async def test_what_is_damaged_is_told_and_stays(tiers: Tiers, redis_url: str) -> None:
    """In one tier, with the record of another; a second look sees the same."""
    record = await store(tiers)
    tiers.memory.entries.clear()
    redis = Redis.from_url(redis_url)
    await redis.set(str(Key.of_record(record.address)), b"damaged")
    for _ in range(2):
        found = await inspect(tiers, Key.of_record(record.address))
        assert ({"l1": "miss", "l2": "corrupt", "l3": "hit"}, record) == (outcomes(found), found.record)
    await redis.aclose()


async def test_what_is_no_record_is_told(tiers: Tiers) -> None:
    """Sealed well, under a record's name, and of something else."""
    key = Key.of_record(record_of(b"").address)
    for tier in tiers.shared:
        await tier.put(key, record_of(b"", name="other").to_bytes(), 60.0)
    found = await inspect(tiers, key)
    assert ({"l1": "miss", "l2": "corrupt", "l3": "corrupt"}, None) == (outcomes(found), found.record)
    assert found.found


async def test_what_is_past_its_age_is_still_told(tiers: Tiers) -> None:
    """As expired, with all it says."""
    record = await store(tiers)
    tiers.memory.entries.clear()
    found = await inspect(tiers, Key.of_record(record.address), clock=lambda: time.time() + record.ttl)
    assert ({"l1": "miss", "l2": "expired", "l3": "expired"}, record) == (outcomes(found), found.record)


class Reply(NamedTuple):
    """As a gateway keeps answers in L1."""

    record: Record


async def test_an_answer_in_wire_form_is_an_entry_of_l1(tiers: Tiers) -> None:
    """It is found under the key of its record, and an entry of another kind is nobody's record."""
    record = record_of(b"clip", now=time.time())
    tiers.memory.hold(Key.of_wire(record.address), Reply(record), 1000, 600.0)
    found = await inspect(tiers, Key.of_record(record.address))
    assert ({"l1": "hit", "l2": "miss", "l3": "miss"}, record) == (outcomes(found), found.record)
    tiers.memory.hold(Key.of_wire(record.address), object(), 1000, 600.0)
    found = await inspect(tiers, Key.of_record(record.address))
    assert (Outcome.HIT, None) == (found.copies[0].outcome, found.record)


async def test_a_tier_that_fails_says_so(breakable_redis: Stack, tmp_path: Path) -> None:
    """Hung or gone, within its budget; the others answer, and nobody takes it for absence."""
    settings = settings_of(tmp_path / "objects", servers.redis_url(breakable_redis))
    async with await asyncio.to_thread(build_tiers, settings, CollectorRegistry()) as tiers:
        record = await store(tiers)
        key, absent = Key.of_record(record.address), Key.of_record(record_of(b"", name="absent").address)
        await asyncio.to_thread(pause, breakable_redis.part("redis"))
        found = await inspect(tiers, key)
        assert ({"l1": "hit", "l2": "timeout", "l3": "hit"}, record) == (outcomes(found), found.record)
        assert found.copies[1].seconds < 5.0
        await asyncio.to_thread(breakable_redis.part("redis").kill)
        assert "error" == outcomes(await inspect(tiers, key))["l2"]
        assert (await inspect(tiers, absent)).found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "r",
        f"r/{NAMESPACE}/00/{'0' * 63}",
        f"r/{NAMESPACE}/01/{'0' * 64}",
        f"w/{NAMESPACE}/00/{'0' * 64}",
        f"r/{NAMESPACE}/00/{'0' * 64}/",
        f"{NAMESPACE}/{'G' * 64}",
        "../../etc/passwd",
        f"o/{NAMESPACE}/00/{'0' * 64}",
    ],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    """Before any tier is asked for it."""
    with pytest.raises(ValueError, match="not a"):
        read_key(text)


def test_a_key_is_read_in_three_forms() -> None:
    """A record's name, a blob's name, and an address."""
    record = record_of(b"clip")
    for key in (Key.of_record(record.address), Key.of_blob(NAMESPACE, record.output.digest)):
        assert key == read_key(str(key)) == Key.parse(str(key))
    assert Key.of_record(record.address) == read_key(str(record.address))


def test_the_fastest_copy_that_can_be_read_speaks() -> None:
    """Whatever the tiers before it have."""
    record = record_of(b"clip")
    copies = [
        Copy(TierName.L1, Outcome.HIT),
        Copy(TierName.L2, Outcome.EXPIRED, record=record),
        Copy(TierName.L3, Outcome.HIT, record=dataclasses.replace(record, model="other")),
    ]
    assert record == Inspection(Key.of_record(record.address), copies).record
