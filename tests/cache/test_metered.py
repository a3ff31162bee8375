"""Metered: what the metrics say is what happened."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from cache.guard import Breaker
from cache.keys import Key
from cache.memory import MemoryTier
from cache.metered import CacheMetrics, MeteredTier, Tally
from cache.tier import Lookup, Outcome, TierName
from cache.write_behind import Write, WriteBehind
from tests.cache.helpers import Clock, ScriptedTier, address_of

_KEY = Key.of_record(address_of("clip"))


def _value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    value = registry.get_sample_value(name, labels)
    assert value is not None, (name, labels)
    return value


async def test_every_answer_is_counted_once() -> None:
    """Hits, misses and faults of single and of many lookups, in the tally and in Prometheus alike."""
    registry = CollectorRegistry()
    scripted = ScriptedTier(TierName.L2)
    tier = MeteredTier(scripted, Tally(TierName.L2, CacheMetrics(registry)))
    other = Key.of_record(address_of("other"))

    await tier.put(_KEY, b"12345", 600.0)
    await tier.get(_KEY, 600.0)
    await tier.get_many([_KEY, other, other], 600.0)
    scripted.fault = Outcome.TIMEOUT
    await tier.get(_KEY, 600.0)
    scripted.fault = Outcome.SKIPPED
    await tier.get_many([_KEY, other], 600.0)
    await tier.get(_KEY, None)  # a look without effect
    await tier.get_many([_KEY, other], None)

    expected = {Outcome.HIT: 2, Outcome.MISS: 2, Outcome.TIMEOUT: 1, Outcome.SKIPPED: 2}
    assert expected == tier.tally.outcomes
    assert {outcome: expected.get(outcome, 0) for outcome in Outcome} == {
        outcome: _value(registry, "reprise_cache_lookups_total", tier="l2", outcome=outcome.value)
        for outcome in Outcome
    }
    assert 10 == _value(registry, "reprise_cache_served_bytes_total", tier="l2")
    assert 5 == _value(registry, "reprise_cache_lookup_seconds_count", tier="l2")  # one not asked took no time


async def test_a_metered_tier_is_the_tier() -> None:
    """Puts, deletes, sizes and closing go through unchanged."""
    scripted = ScriptedTier(TierName.L2, max_payload=3)
    tier = MeteredTier(scripted, Tally(TierName.L2, CacheMetrics(CollectorRegistry())))

    assert (TierName.L2, False) == (tier.name, tier.local)
    assert (True, False) == (tier.holds(3), tier.holds(4))
    assert await tier.put(_KEY, b"a", 600.0)
    assert not await tier.put(_KEY, b"b", 600.0)
    assert await tier.put(_KEY, b"b", 600.0, replace=True)
    await tier.delete(_KEY)
    assert {} == scripted.entries


async def test_memory_is_watched() -> None:
    """Bytes, entries and removals by cause are read from the map itself."""
    registry = CollectorRegistry()
    memory = MemoryTier(max_bytes=2000, clock=Clock())
    CacheMetrics(registry).watch_memory(memory)

    for name in ("a", "b", "c", "d"):
        await memory.put(Key.of_record(address_of(name)), b"12345678", 600.0)
    await memory.delete(Key.of_record(address_of("d")))

    assert memory.entries.bytes == _value(registry, "reprise_cache_bytes", tier="l1") == 2 * 520
    assert 2 == _value(registry, "reprise_cache_entries", tier="l1")
    assert {"size": 1, "expired": 0, "replaced": 0, "explicit": 1} == {
        cause: _value(registry, "reprise_cache_removals", tier="l1", cause=cause)
        for cause in ("size", "expired", "replaced", "explicit")
    }


def test_a_breaker_is_watched() -> None:
    """1 while a tier rests or is probed, 0 when it serves."""
    registry, clock = CollectorRegistry(), Clock()
    breaker = Breaker(failures=1, rest=10.0, clock=clock)
    CacheMetrics(registry).watch_breaker(TierName.L3, breaker)
    readings = []
    steps: list[Callable[[], None]] = [lambda: None, breaker.failed, lambda: clock.advance(10.0), breaker.succeeded]
    for step in steps:
        step()
        readings.append(_value(registry, "reprise_cache_breaker_open", tier="l3"))

    assert [0, 1, 1, 0] == readings


def test_a_breaker_of_writes_is_watched_by_itself() -> None:
    """1 while a tier takes no writes; that it is read is told apart."""
    registry = CollectorRegistry()
    reading, writing = Breaker(failures=1), Breaker(failures=1)
    CacheMetrics(registry).watch_breaker(TierName.L2, reading, writing)

    writing.failed()

    assert 1 == _value(registry, "reprise_cache_write_breaker_open", tier="l2")
    assert 0 == _value(registry, "reprise_cache_breaker_open", tier="l2")


async def test_the_writer_is_watched() -> None:
    """What waits, what was written, given up and dropped."""
    registry = CollectorRegistry()
    tier = ScriptedTier(TierName.L3, open=asyncio.Event())
    assert tier.open is not None

    def reading() -> dict[str, float]:
        kinds = ("entries", "bytes", "written", "failed", "dropped")
        return {what: _value(registry, "reprise_write_behind", what=what) for what in kinds}

    async with WriteBehind([tier], max_bytes=6, max_entries=10) as writer:
        CacheMetrics(registry).watch_writer(writer)
        await writer.submit([Write(_KEY, b"12345", 600.0, replace=True)])
        writer.offer([Write(_KEY, b"12345", 600.0)], [tier])
        assert {"entries": 1, "bytes": 5, "written": 0, "failed": 0, "dropped": 1} == reading()
        tier.open.set()

    assert {"entries": 0, "bytes": 0, "written": 1, "failed": 0, "dropped": 1} == reading()


@given(st.lists(st.floats(0, 10), max_size=50))
def test_percentiles_are_times_that_were_measured(seconds: list[float]) -> None:
    """Median and 99th percentile lie between the shortest and the longest lookup, in this order."""
    tally = Tally(TierName.L2, CacheMetrics(CollectorRegistry()))
    for taken in seconds:
        tally.count(Lookup(TierName.L2, Outcome.MISS, seconds=taken))

    median, slow = tally.percentiles()

    assert min(seconds, default=0.0) - 1e-9 <= median <= slow + 1e-9 <= max(seconds, default=0.0) + 2e-9


@pytest.mark.parametrize(
    ("seconds", "expected"), [([], (0.0, 0.0)), ([3.0], (3.0, 3.0)), ([1.0, 1.0, 5.0], (1.0, 5.0))]
)
def test_percentiles_of_few(seconds: list[float], expected: tuple[float, float]) -> None:
    """None, one, and three lookups."""
    tally = Tally(TierName.L2, CacheMetrics(CollectorRegistry()))
    for taken in seconds:
        tally.count(Lookup(TierName.L2, Outcome.MISS, seconds=taken))

    assert expected == pytest.approx(tally.percentiles(), abs=0.1)


def test_percentiles_are_of_recent_lookups() -> None:
    """A slow start is forgotten in time."""
    tally = Tally(TierName.L2, CacheMetrics(CollectorRegistry()))
    for number in range(5000):
        tally.count(Lookup(TierName.L2, Outcome.MISS, seconds=100.0 if number < 100 else 1.0))

    assert (1.0, 1.0) == tally.percentiles()


async def test_bytes_served_can_be_told_when_the_value_is_no_bytes() -> None:
    """A hit on another form of the value counts the size it was told."""
    registry = CollectorRegistry()
    tally = Tally(TierName.L1, CacheMetrics(registry))

    tally.count(Lookup(TierName.L1, Outcome.HIT), size=42)

    assert 42 == _value(registry, "reprise_cache_served_bytes_total", tier="l1")
