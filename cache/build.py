"""Composition of the tiers: reads from top to bottom as the picture of the hierarchy."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from prometheus_client import CollectorRegistry

from cache.bans import Bans
from cache.channel import RedisChannel
from cache.encoding import keyed_hash_of
from cache.frequency import Frequency
from cache.guard import Breaker, GuardedStore
from cache.hierarchy import Hierarchy
from cache.journal import Journal
from cache.memory import MemoryTier
from cache.metered import CacheMetrics, MeteredTier, Tally
from cache.objects import ObjectsStore
from cache.orders import Orders
from cache.proven import ProvenTier
from cache.redis import MAX_PAYLOAD, RedisStore
from cache.redis_client import Door
from cache.settings import CacheSettings
from cache.store import Store, StoredTier
from cache.switched import SwitchedTier
from cache.switches import Switches
from cache.tier import TierName
from cache.value import policy_named
from cache.write_behind import WriteBehind


@dataclass
class Tiers:
    """The tiers of one process, opened together and closed together. Use as an async context manager."""

    memory: MemoryTier
    memory_tally: Tally
    shared: list[MeteredTier]
    breakers: dict[TierName, Breaker]  # of reads
    redis: RedisStore | None
    objects: ObjectsStore | None
    writer: WriteBehind
    journal: Journal | None  # beside L2; None without it
    frequency: Frequency | None  # likewise
    through_memory: Hierarchy  # L1, L2, L3
    below_memory: Hierarchy  # L2, L3: for those who keep their own form of things in L1
    bans: Bans
    switches: Switches
    orders: Orders
    channel: RedisChannel | None

    async def __aenter__(self) -> Tiers:
        await self.writer.__aenter__()
        await self.orders.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.orders.__aexit__(kind, error, trace)
        await self.writer.__aexit__(kind, error, trace)
        if self.channel is not None:
            await self.channel.aclose()
        for tier in self.shared:
            await tier.aclose()
        await self.memory.aclose()


def build_tiers(settings: CacheSettings, registry: CollectorRegistry, *, process: str = "") -> Tiers:
    """`process` is this process's name in its deployment, whose operators' orders it then obeys; none for one that is
    part of no deployment. Reads files with passwords and certificates. Raises SettingsError.
    """
    bans, switches = Bans(), Switches()
    metrics = CacheMetrics(registry)
    breakers: dict[TierName, Breaker] = {}

    def guard(name: TierName, store: Store, budget: float | None) -> GuardedStore:
        reading, writing = (Breaker(settings.breaker.failures, settings.breaker.rest) for _ in range(2))
        breakers[name] = reading
        metrics.watch_breaker(name, reading, writing)
        return GuardedStore(store, reading, budget=budget, writing=writing)

    def tier(name: TierName, guarded: GuardedStore, max_payload: int | None) -> MeteredTier:
        stored = StoredTier(name, guarded, max_payload=max_payload, breaker=lambda: guarded.breaker.state)
        return MeteredTier(ProvenTier(stored), Tally(name, metrics))

    memory = _memory(settings, switches)
    door = Door.of(settings.l2) if settings.l2.enabled else None
    redis = _redis(settings, door)
    objects = _objects(settings)
    shared = []
    journal = frequency = None
    if redis is not None:
        guarded = guard(TierName.L2, redis, settings.l2.budget)
        shared.append(tier(TierName.L2, guarded, MAX_PAYLOAD))
        journal, frequency = Journal(redis, guarded), Frequency(redis, guarded)
    if objects is not None:
        shared.append(tier(TierName.L3, guard(TierName.L3, objects, None), None))
    used = [SwitchedTier(each, switches) for each in shared]
    writer = WriteBehind(
        used,
        max_bytes=settings.write_behind.max_bytes,
        max_entries=settings.write_behind.max_entries,
        drain_timeout=settings.write_behind.drain,
        bans=bans,
    )
    memory_tally = Tally(TierName.L1, metrics)
    metrics.watch_memory(memory)
    metrics.watch_writer(writer)
    channel = _channel(settings, door) if process else None
    orders = Orders(
        objects if process else None,
        channel,
        process=process,
        secret=settings.secret_bytes,
        bans=bans,
        switches=switches,
    )
    orders.on_order(lambda order: memory.obey(order, bans))
    return Tiers(
        memory=memory,
        memory_tally=memory_tally,
        shared=shared,
        breakers=breakers,
        redis=redis,
        objects=objects,
        writer=writer,
        journal=journal,
        frequency=frequency,
        through_memory=Hierarchy([MeteredTier(memory, memory_tally), *used], writer, bans=bans),
        below_memory=Hierarchy(used, writer, bans=bans),
        bans=bans,
        switches=switches,
        orders=orders,
        channel=channel,
    )


def _memory(settings: CacheSettings, switches: Switches) -> MemoryTier:
    l1 = settings.l1
    return MemoryTier(
        max_bytes=l1.max_bytes if l1.enabled else 0,
        max_entries=l1.max_entries,
        max_share=l1.max_share,
        policy=policy_named(l1.policy, max_bytes=l1.max_bytes, max_entries=l1.max_entries),
        switches=switches,
    )


def _channel(settings: CacheSettings, door: Door | None) -> RedisChannel | None:
    if door is None:
        return None
    name = keyed_hash_of(settings.secret_bytes, "channel", "orders")[:32]
    return RedisChannel.connect(door, name, budget=settings.l2.budget)


def _redis(settings: CacheSettings, door: Door | None) -> RedisStore | None:
    if door is None:
        return None
    return RedisStore.connect(door, budget=settings.l2.budget, connections=settings.l2.connections)


def _objects(settings: CacheSettings) -> ObjectsStore | None:
    l3 = settings.l3
    if not l3.enabled:
        return None
    return ObjectsStore.connect(
        l3.url,
        endpoint=l3.endpoint,
        access_key=l3.access_key,
        secret_key=l3.secret_key.get_secret_value(),
        region=l3.region,
        stall=l3.stall,
        write_timeout=l3.write_timeout,
        reads=l3.reads,
        writes=l3.writes,
    )
