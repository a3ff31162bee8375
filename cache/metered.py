"""Metered: counts what tiers answer. One tally per tier feeds Prometheus and the operators' Stats alike."""

from __future__ import annotations

from collections import Counter as Counts
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from statistics import quantiles

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cache.bounded import Removal
from cache.guard import Breaker
from cache.keys import Key
from cache.memory import MemoryTier
from cache.tier import Lookup, Outcome, Tier, TierName
from cache.write_behind import WriteBehind

_BUCKETS = (0.00001, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class CacheMetrics:
    """The families of the cache, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.lookups = Counter("reprise_cache_lookups", "Lookups", ["tier", "outcome"], registry=registry)
        self.seconds = Histogram(
            "reprise_cache_lookup_seconds", "Time of a lookup", ["tier"], buckets=_BUCKETS, registry=registry
        )
        self.served_bytes = Counter("reprise_cache_served_bytes", "Payload of hits", ["tier"], registry=registry)
        self.bytes = Gauge("reprise_cache_bytes", "Bytes held", ["tier"], registry=registry)
        self.entries = Gauge("reprise_cache_entries", "Entries held", ["tier"], registry=registry)
        self.evictions = Gauge(
            "reprise_cache_removals", "Entries that left, by cause", ["tier", "cause"], registry=registry
        )
        self.breaker = Gauge("reprise_cache_breaker_open", "1 while a tier is not read", ["tier"], registry=registry)
        self.writing = Gauge(
            "reprise_cache_write_breaker_open", "1 while it takes no writes", ["tier"], registry=registry
        )
        self.write_behind = Gauge("reprise_write_behind", "Write-behind queue", ["what"], registry=registry)

    def watch_memory(self, memory: MemoryTier) -> None:
        entries, tier = memory.entries, memory.name.value
        self.bytes.labels(tier).set_function(lambda: entries.bytes)
        self.entries.labels(tier).set_function(lambda: len(entries))
        for cause in Removal:
            self.evictions.labels(tier, cause.value).set_function(partial(entries.removals.__getitem__, cause))

    def watch_breaker(self, tier: TierName, breaker: Breaker, writing: Breaker | None = None) -> None:
        self.breaker.labels(tier.value).set_function(lambda: breaker.state != "closed")
        if writing is not None:
            self.writing.labels(tier.value).set_function(lambda: writing.state != "closed")

    def watch_writer(self, writer: WriteBehind) -> None:
        counts = writer.counts
        readings: dict[str, Callable[[], float]] = {
            "entries": lambda: writer.entries,
            "bytes": lambda: writer.bytes,
            "written": lambda: counts.written,
            "failed": lambda: counts.failed,
            "dropped": lambda: counts.dropped,
            "healed": lambda: counts.healed,
        }
        for what, reading in readings.items():
            self.write_behind.labels(what).set_function(reading)


class Tally:
    """What one tier has answered so far."""

    def __init__(self, tier: TierName, metrics: CacheMetrics) -> None:
        self.tier = tier
        self.outcomes: Counts[Outcome] = Counts()
        self._recent: deque[float] = deque(maxlen=1024)
        self._children = {outcome: metrics.lookups.labels(tier.value, outcome.value) for outcome in Outcome}
        self._seconds = metrics.seconds.labels(tier.value)
        self._bytes = metrics.served_bytes.labels(tier.value)

    def count(self, lookup: Lookup, size: int = 0) -> None:
        self.outcomes[lookup.outcome] += 1
        self._children[lookup.outcome].inc()
        if lookup.outcome not in (Outcome.SKIPPED, Outcome.OFF):
            self._recent.append(lookup.seconds)
            self._seconds.observe(lookup.seconds)
        if lookup.outcome is Outcome.HIT:
            self._bytes.inc(size or len(lookup.value or b""))

    def percentiles(self) -> tuple[float, float]:
        """Median and 99th percentile of recent lookups, in seconds."""
        if len(self._recent) < 2:
            return (self._recent[0],) * 2 if self._recent else (0.0, 0.0)
        cuts = quantiles(self._recent, n=100, method="inclusive")
        return cuts[49], cuts[98]


class MeteredTier:
    """A tier whose answers are counted."""

    def __init__(self, tier: Tier, tally: Tally) -> None:
        self._tier = tier
        self.name = tier.name
        self.local = tier.local
        self.tally = tally

    def holds(self, size: int) -> bool:
        return self._tier.holds(size)

    async def get(self, key: Key, ttl: float | None) -> Lookup:
        lookup = await self._tier.get(key, ttl)
        if ttl is not None:
            self.tally.count(lookup)
        return lookup

    async def get_many(self, keys: Sequence[Key], ttl: float | None) -> list[Lookup]:
        lookups = await self._tier.get_many(keys, ttl)
        for lookup in lookups if ttl is not None else ():
            self.tally.count(lookup)
        return lookups

    async def put(self, key: Key, payload: bytes, ttl: float, *, replace: bool = False, cost: float = 0.0) -> bool:
        return await self._tier.put(key, payload, ttl, replace=replace, cost=cost)

    async def delete(self, key: Key) -> None:
        await self._tier.delete(key)

    async def aclose(self) -> None:
        await self._tier.aclose()
