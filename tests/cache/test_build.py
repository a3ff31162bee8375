"""Build: the tiers of a process, put together from its settings."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cache.build import Tiers, build_tiers
from cache.envelope import seal
from cache.keys import Key
from cache.record import Record
from cache.settings import CacheSettings
from cache.tier import Outcome, TierName
from gateway.stack.ports import LOOPBACK, free_port
from tests.cache.helpers import address_of, record_of
from tests.servers import S3

TTL = 600.0
DATA = b"a clip"


def _settings(**sections: Any) -> CacheSettings:
    return CacheSettings.model_validate({"secret": "5e" * 32} | sections)


def _s3(s3: S3) -> dict[str, Any]:
    return {
        "url": f"s3://{s3.bucket}/{s3.prefix}",
        "endpoint": s3.endpoint,
        "region": s3.region,
        "access_key": s3.access_key,
        "secret_key": s3.secret_key,
        "stall": 10.0,
    }


def _nobody() -> str:
    return f"redis://{LOOPBACK}:{free_port()}/0"


@pytest.fixture
def local(tmp_path: Path, redis_url: str) -> Tiers:
    """Redis over a folder; built where there is no loop, as folders are made here."""
    return build_tiers(
        _settings(l2={"url": redis_url, "budget": 10.0}, l3={"url": f"file://{tmp_path}"}), CollectorRegistry()
    )


async def _served_by(tiers: Tiers) -> tuple[TierName | None, bytes | None]:
    found = await tiers.through_memory.fetch(address_of("clip"), TTL)
    return found.tier, found.data


def _now_record() -> Record:
    return record_of(DATA, now=time.time())


async def test_what_one_process_commits_another_one_finds(redis_url: str, s3: S3) -> None:
    """Two processes with the same settings, over real Redis and S3: what one made, the other serves, and remembers."""
    settings = _settings(l2={"url": redis_url, "budget": 10.0}, l3=_s3(s3))
    async with build_tiers(settings, CollectorRegistry()) as worker:
        assert await (await worker.below_memory.commit(_now_record(), DATA))
        assert 0 == len(worker.memory.entries)

    async with build_tiers(settings, CollectorRegistry()) as gateway:
        assert [(TierName.L2, DATA), (TierName.L1, DATA)] == [await _served_by(gateway) for _ in range(2)]


@pytest.mark.parametrize(("policy", "stays"), [("value", "dear"), ("lru", "cheap")])
async def test_settings_choose_who_leaves_memory(policy: str, stays: str) -> None:
    """By value, or by last use; and no entry takes more than its share."""
    l1 = {"max_bytes": 20_000, "max_share": 0.5, "policy": policy}
    nothing = {"enabled": False}
    async with build_tiers(_settings(l1=l1, l2=nothing, l3=nothing), CollectorRegistry()) as tiers:
        for name, cost in (("dear", 30.0), ("cheap", 0.1), ("new", 3.0)):
            tiers.memory.hold(Key.of_wire(address_of(name)), name, 8000, TTL, cost=cost)

        assert {stays, "new"} == {held for _, held in tiers.memory.entries.items()}
        assert not tiers.memory.holds(10_000)


async def test_leaving_stores_what_was_committed(local: Tiers) -> None:
    """The queue is drained before the tiers are closed."""
    async with local:
        durable = await local.through_memory.commit(_now_record(), DATA)

    assert durable.result()


async def test_answers_are_counted_per_tier(local: Tiers) -> None:
    """A miss is one lookup in each tier; the registry of the process has them."""
    async with local:
        await _served_by(local)

    tallies = [local.memory_tally, *(tier.tally for tier in local.shared)]
    assert [(TierName.L1, 1), (TierName.L2, 1), (TierName.L3, 1)] == [
        (tally.tier, tally.outcomes.total()) for tally in tallies
    ]


async def test_a_process_starts_and_serves_without_its_redis(tmp_path: Path) -> None:
    """With nobody at Redis's address a commit is durable in L3 and found again; the breaker rests L2."""
    settings = _settings(l2={"url": _nobody()}, l3={"url": f"file://{tmp_path}"}, breaker={"failures": 1, "rest": 60})
    tiers = await asyncio.to_thread(build_tiers, settings, CollectorRegistry())
    async with tiers:
        assert await (await tiers.through_memory.commit(_now_record(), DATA))
        await tiers.memory.aclose()
        assert (TierName.L3, DATA) == await _served_by(tiers)

    assert {TierName.L2: "open", TierName.L3: "closed"} == {
        name: breaker.state for name, breaker in tiers.breakers.items()
    }


async def test_lookups_say_what_their_breaker_was(tmp_path: Path) -> None:
    """The one that opens it found it closed, the next one open; the metrics of the process say that it is."""
    settings = _settings(l2={"url": _nobody()}, l3={"url": f"file://{tmp_path}"}, breaker={"failures": 1, "rest": 60})
    registry = CollectorRegistry()
    tiers = await asyncio.to_thread(build_tiers, settings, registry)
    async with tiers:
        addresses = [address_of(name) for name in ("one", "two")]
        lookups = [(await tiers.through_memory.fetch(address, 60.0)).lookups for address in addresses]

    assert [["", "closed", "closed"], ["", "open", "closed"]] == [[one.breaker for one in each] for each in lookups]
    assert [1.0, 0.0] == [registry.get_sample_value("reprise_cache_breaker_open", {"tier": t}) for t in ("l2", "l3")]
    assert 0.0 == registry.get_sample_value("reprise_cache_write_breaker_open", {"tier": "l3"})


async def test_what_was_sealed_by_somebody_else_is_no_hit(local: Tiers) -> None:
    """Bytes under a right seal that are not what their name says are damaged in the counts of their tier."""
    async with local:
        record = _now_record()
        assert local.objects is not None
        key = Key.of_record(record.address)
        await local.objects.put(str(key), seal(key, b"sealed, and no record"), 60.0, replace=True)
        found = await local.through_memory.fetch(record.address, 60.0)
        gone = await local.objects.get(str(key), None)

    assert (None, None) == (found.record, gone)
    assert {Outcome.CORRUPT: 1} == local.shared[-1].tally.outcomes


@pytest.mark.parametrize(
    ("off", "left"),
    [
        (("l2",), [TierName.L3]),
        (("l3",), [TierName.L2]),
        (("l2", "l3"), []),
        (("l1",), [TierName.L2, TierName.L3]),
    ],
)
def test_each_tier_can_be_turned_off(off: tuple[str, ...], left: list[TierName]) -> None:
    """What is left are the tiers that are not off; L1 is always there, without room when it is off."""
    sections: dict[str, Any] = {name: {"enabled": False} for name in off}
    tiers = build_tiers(_settings(**sections), CollectorRegistry())

    assert left == [tier.name for tier in tiers.shared]
    assert [TierName.L1, *left] == [tier.name for tier in tiers.through_memory.tiers]
    assert left == [tier.name for tier in tiers.below_memory.tiers]
    assert ("l1" in off) == (not tiers.memory.holds(0))
    assert ("l2" not in off, "l3" not in off) == (tiers.redis is not None, tiers.objects is not None)
    assert ("l2" not in off) == (tiers.journal is not None)


async def test_without_shared_tiers_memory_serves_and_nothing_is_durable() -> None:
    """One process alone, with L1 only."""
    settings = _settings(l2={"enabled": False}, l3={"enabled": False})
    async with build_tiers(settings, CollectorRegistry()) as tiers:
        assert not await (await tiers.through_memory.commit(_now_record(), DATA))
        assert (TierName.L1, DATA) == await _served_by(tiers)


async def test_large_blobs_are_not_for_redis(local: Tiers) -> None:
    """L2 holds what is below its limit, L3 everything."""
    async with local:
        l2, l3 = local.shared
        assert (True, False) == (l2.holds(1024 * 1024 - 4096), l2.holds(1024 * 1024 - 4095))
        assert l3.holds(10**9)
