"""Hierarchy: the truth tables of tiers together, promotion, healing, and the order in which things become visible."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from anyio import wait_all_tasks_blocked
from prometheus_client import CollectorRegistry

from cache.bounded import LeastRecentlyUsed
from cache.digest import Digest
from cache.hierarchy import Found, Hierarchy, known
from cache.keys import Key
from cache.memory import MemoryTier
from cache.metered import CacheMetrics, MeteredTier, Tally
from cache.objects import ObjectsStore
from cache.record import Record
from cache.redis import MAX_PAYLOAD, RedisStore
from cache.store import StoredTier
from cache.tier import Outcome, Tier, TierName
from cache.write_behind import WriteBehind
from tests.cache.helpers import NAMESPACE, Clock, ScriptedTier, address_of, record_of
from tests.servers import S3

DATA = b"a clip of some bytes"
SMALL = 1000  # bytes that the fast shared tier of these tests holds at most
TTL = 600.0


@dataclass
class Bench:
    """L1, L2 and L3, and the hierarchy over them."""

    hierarchy: Hierarchy
    writer: WriteBehind
    memory: MemoryTier
    l2: ScriptedTier
    l3: ScriptedTier
    clock: Clock

    async def fetch(self, name: str = "clip", *, max_age: float | None = None) -> Found:
        """Fetch, and wait until what follows from it is written."""
        found = await self.hierarchy.fetch(address_of(name), TTL, max_age=max_age)
        assert await self.writer.drain(5.0)
        return found

    async def commit(self, record: Record, data: bytes, *aliases: Record, replace: bool = False) -> bool:
        return await (await self.hierarchy.commit(record, data, aliases=aliases, replace=replace))

    async def forget_locally(self) -> None:
        await self.memory.aclose()

    def forget_journals(self) -> None:
        for tier in (self.l2, self.l3):
            tier.puts.clear()
            tier.gets.clear()
            tier.deletes.clear()


@asynccontextmanager
async def _bench(*, l1_bytes: int = 100_000, with_l1: bool = True) -> AsyncIterator[Bench]:
    clock = Clock()
    memory = MemoryTier(max_bytes=l1_bytes, clock=clock)
    l2, l3 = ScriptedTier(TierName.L2, max_payload=SMALL), ScriptedTier(TierName.L3)

    async def no_pause(seconds: float) -> None: ...

    async with WriteBehind([l2, l3], max_bytes=100_000, max_entries=100, pause=no_pause, clock=clock) as writer:
        tiers: list[Tier] = [memory, l2, l3] if with_l1 else [l2, l3]
        yield Bench(Hierarchy(tiers, writer, clock=clock), writer, memory, l2, l3, clock)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with _bench() as opened:
        yield opened


@pytest.fixture
async def shared() -> AsyncIterator[Bench]:
    """L2 over L3 alone."""
    async with _bench(with_l1=False) as opened:
        yield opened


def _blob_key(data: bytes = DATA) -> Key:
    return Key.of_blob(NAMESPACE, Digest.of(data))


def _record_key(name: str = "clip") -> Key:
    return Key.of_record(address_of(name))


def _plant(tier: ScriptedTier, record: Record, data: bytes | None) -> None:
    tier.entries[Key.of_record(record.address)] = record.to_bytes()
    if data is not None:
        tier.entries[Key.of_blob(record.address.namespace, record.output.digest)] = data


_TABLE: dict[str, tuple[str, str, str | None, list[Outcome]]] = {
    # what the fast and the slow tier do: who gives the bytes, and what each says
    "fast hit, slow hit": ("hit", "hit", "l2", [Outcome.HIT]),
    "fast hit, slow miss": ("hit", "miss", "l2", [Outcome.HIT]),
    "fast hit, slow error": ("hit", "error", "l2", [Outcome.HIT]),
    "fast miss, slow hit": ("miss", "hit", "l3", [Outcome.MISS, Outcome.HIT]),
    "fast miss, slow miss": ("miss", "miss", None, [Outcome.MISS, Outcome.MISS]),
    "fast miss, slow error": ("miss", "error", None, [Outcome.MISS, Outcome.ERROR]),
    "fast miss, slow timeout": ("miss", "timeout", None, [Outcome.MISS, Outcome.TIMEOUT]),
    "fast error, slow hit": ("error", "hit", "l3", [Outcome.ERROR, Outcome.HIT]),
    "fast timeout, slow hit": ("timeout", "hit", "l3", [Outcome.TIMEOUT, Outcome.HIT]),
    "fast resting, slow hit": ("skipped", "hit", "l3", [Outcome.SKIPPED, Outcome.HIT]),
    "fast error, slow miss": ("error", "miss", None, [Outcome.ERROR, Outcome.MISS]),
    "fast error, slow error": ("error", "error", None, [Outcome.ERROR, Outcome.ERROR]),
    "fast corrupt, slow hit": ("corrupt", "hit", "l3", [Outcome.CORRUPT, Outcome.HIT]),
    "fast corrupt, slow miss": ("corrupt", "miss", None, [Outcome.CORRUPT, Outcome.MISS]),
    "fast expired, slow hit": ("expired", "hit", "l2", [Outcome.HIT, Outcome.HIT]),  # a blob does not expire
    "fast expired, slow miss": ("expired", "miss", None, [Outcome.EXPIRED, Outcome.MISS]),
    "fast expired, slow expired": ("expired", "expired", None, [Outcome.EXPIRED, Outcome.EXPIRED]),
}


def _set(tier: ScriptedTier, state: str, clock: Clock) -> None:
    match state:
        case "hit":
            _plant(tier, record_of(DATA), DATA)
        case "corrupt":
            tier.entries[_record_key()] = b"not a record"
        case "expired":
            _plant(tier, record_of(DATA, now=clock() - TTL, ttl=TTL), DATA)
        case "error" | "timeout" | "skipped":
            tier.fault = Outcome(state)


@pytest.mark.parametrize("row", _TABLE)
async def test_two_tiers_together(shared: Bench, row: str) -> None:
    """For every pair of states of a fast and a slow tier: who serves, and what each said."""
    fast, slow, source, outcomes = _TABLE[row]
    _set(shared.l2, fast, shared.clock)
    _set(shared.l3, slow, shared.clock)

    found = await shared.hierarchy.fetch(address_of("clip"), TTL)

    assert source == (found.tier and found.tier.value)
    assert (record_of(DATA) if source else None) == found.record
    assert (DATA if source else None) == found.data
    assert outcomes == [lookup.outcome for lookup in found.lookups]


async def test_a_hit_in_the_slow_tier_is_promoted_once(bench: Bench) -> None:
    """What came from L3 is put into L2 once, blob first, and into memory; the next fetch stays in memory."""
    _plant(bench.l3, record_of(DATA), DATA)

    first, second = await bench.fetch(), await bench.fetch()

    assert (TierName.L3, TierName.L1) == (first.tier, second.tier)
    assert DATA == first.data == second.data
    assert [_blob_key(), _record_key()] == bench.l2.puts
    assert 2 == bench.l2.tries
    assert [] == bench.l3.puts
    assert [Outcome.HIT] == [lookup.outcome for lookup in second.lookups]


async def test_a_hit_in_the_middle_is_promoted_to_memory_alone(bench: Bench) -> None:
    """What came from L2 is written nowhere but into memory."""
    _plant(bench.l2, record_of(DATA), DATA)

    tiers = [(await bench.fetch()).tier for _ in range(2)]

    assert [TierName.L2, TierName.L1] == tiers
    assert ([], []) == (bench.l2.puts, bench.l3.puts)
    assert [] == bench.l3.gets


async def test_a_blob_alone_is_promoted_to_where_its_record_is(bench: Bench) -> None:
    """With the record in L2 and the blob only in L3, L2 gets the blob and nothing is put twice."""
    _plant(bench.l2, record_of(DATA), None)
    _plant(bench.l3, record_of(DATA), DATA)

    found = await bench.fetch()

    assert (TierName.L3, DATA) == (found.tier, found.data)
    assert [_blob_key()] == bench.l2.puts
    assert TierName.L1 is (await bench.fetch()).tier


async def test_a_promotion_does_not_overwrite(bench: Bench) -> None:
    """A record that another process put into L2 meanwhile stays."""
    _plant(bench.l3, record_of(DATA), DATA)
    bench.l2.fault = Outcome.TIMEOUT
    await bench.hierarchy.fetch(address_of("clip"), TTL)
    bench.l2.fault = None
    other = record_of(DATA, model="other")
    _plant(bench.l2, other, DATA)

    await bench.writer.drain(5.0)

    assert other.to_bytes() == bench.l2.entries[_record_key()]


async def test_a_large_blob_skips_the_small_tier(bench: Bench) -> None:
    """L2 has the record, L3 the blob; L2 is never asked for the blob nor given it, and both tiers serve together."""
    data = b"x" * (SMALL + 1)
    assert await bench.commit(record_of(data), data)
    await bench.forget_locally()
    bench.forget_journals()

    found = await bench.fetch()

    assert (TierName.L3, data) == (found.tier, found.data)
    assert [_record_key()] == list(bench.l2.entries)
    assert [_record_key()] == bench.l2.gets
    assert [_blob_key(data)] == bench.l3.gets


async def test_an_inlined_output_costs_one_lookup(bench: Bench) -> None:
    """A small output travels in its record: no blob is written or read anywhere, and promotion works as ever."""
    assert await bench.commit(record_of(DATA, inline=True), DATA)
    await bench.forget_locally()
    bench.l2.entries.clear()
    bench.forget_journals()

    found = await bench.fetch()

    assert (TierName.L3, DATA) == (found.tier, found.data)
    assert [_record_key()] == bench.l3.gets
    assert [_record_key()] == list(bench.l2.entries) == list(bench.l3.entries)
    assert TierName.L1 is (await bench.fetch()).tier


async def test_a_commit_is_in_every_tier(bench: Bench) -> None:
    """Once durable, each tier can serve it alone."""
    assert await bench.commit(record_of(DATA), DATA)

    assert (TierName.L1, DATA) == ((found := await bench.fetch()).tier, found.data)
    await bench.forget_locally()
    assert (TierName.L2, DATA) == ((found := await bench.fetch()).tier, found.data)
    await bench.forget_locally()
    bench.l2.entries.clear()
    assert (TierName.L3, DATA) == ((found := await bench.fetch()).tier, found.data)


async def test_a_commit_is_in_memory_at_once(bench: Bench) -> None:
    """While the shared tiers are slow, this process serves what it has committed."""
    bench.l2.open = bench.l3.open = asyncio.Event()
    durable = await bench.hierarchy.commit(record_of(DATA), DATA)

    found = await bench.hierarchy.fetch(address_of("clip"), TTL)

    assert (TierName.L1, DATA) == (found.tier, found.data)
    assert not durable.done()
    bench.l3.open.set()
    assert await durable


async def test_a_record_is_nowhere_before_its_blob_is_readable() -> None:
    """A blob too large for memory and L2 is not announced by either while L3 does not have it yet."""
    data = b"x" * (SMALL + 5000)
    async with _bench(l1_bytes=4000) as bench:
        bench.l3.open = asyncio.Event()
        durable = await bench.hierarchy.commit(record_of(data), data)
        await wait_all_tasks_blocked()

        found = await bench.hierarchy.fetch(address_of("clip"), TTL)
        assert [Outcome.MISS] * 3 == [lookup.outcome for lookup in found.lookups]
        assert [] == bench.l2.deletes + bench.l3.deletes  # nothing dangled, nothing was removed

        bench.l3.open.set()
        assert await durable
        assert data == (await bench.fetch()).data


async def test_the_order_of_puts_of_a_commit(bench: Bench) -> None:
    """Blob, then record and aliases, in every tier."""
    record = record_of(DATA)
    assert await bench.commit(record, DATA, record.alias(address_of("as written")))

    for tier in (bench.l2, bench.l3):
        assert _blob_key() == tier.puts[0]
        assert {_record_key(), _record_key("as written")} == set(tier.puts[1:])


async def test_the_first_commit_wins(bench: Bench) -> None:
    """A second commit of an address leaves the record of the first in the shared tiers."""
    first, second = record_of(DATA, model="first"), record_of(b"other", model="second")
    assert await bench.commit(first, DATA)
    assert await bench.commit(second, b"other")
    await bench.forget_locally()

    found = await bench.fetch()

    assert (first, DATA) == (found.record, found.data)


async def test_an_expired_record_is_replaced(bench: Bench) -> None:
    """After its TTL a record is a miss, and the next commit takes its place in every tier."""
    await bench.commit(record_of(DATA), DATA)
    bench.clock.advance(TTL)
    assert (await bench.fetch()).record is None

    again = record_of(DATA, now=bench.clock())
    assert await bench.commit(again, DATA)

    for tier in (bench.l2, bench.l3):
        assert again.to_bytes() == tier.entries[_record_key()]
    await bench.forget_locally()
    assert again == (await bench.fetch()).record


async def test_a_commit_that_replaces_does(bench: Bench) -> None:
    """A refresh puts its record over a live one in every tier."""
    await bench.commit(record_of(DATA), DATA)
    fresh = record_of(b"fresh", model="fresh")

    assert await bench.commit(fresh, b"fresh", replace=True)

    for tier in (bench.l2, bench.l3):
        assert fresh.to_bytes() == tier.entries[_record_key()]
    assert (fresh, b"fresh") == ((found := await bench.fetch()).record, found.data)


async def test_an_alias_leads_to_the_same_bytes(bench: Bench) -> None:
    """A request as it was written finds the output under its own address, and says what it is an alias of."""
    record = record_of(DATA)
    await bench.commit(record, DATA, record.alias(address_of("as written")))
    await bench.forget_locally()

    found = await bench.fetch("as written")

    assert DATA == found.data
    assert found.record is not None
    assert record.address == found.record.canonical


async def test_a_failed_commit_says_so(bench: Bench) -> None:
    """With the durable tier down the future is false, and this process serves from memory and L2 all the same."""
    bench.l3.fault = Outcome.ERROR

    assert not await bench.commit(record_of(DATA), DATA)
    assert DATA == (await bench.fetch()).data


async def _given_up(shared: Bench, name: str = "clip", data: bytes = DATA) -> Record:
    """What a reader finds of an output that the durable tier did not take."""
    shared.l3.fault = Outcome.ERROR
    await shared.commit(record_of(data, name=name), data)
    shared.l3.fault = None
    found = (await shared.fetch(name)).record
    assert found is not None
    assert found.pending
    shared.forget_journals()
    return found


async def test_what_was_given_up_is_written_again_once(shared: Bench) -> None:
    """However many find it at once; from then on nobody finds that it may be alone."""
    record = await _given_up(shared)
    begun = [healing for _ in range(3) if (healing := shared.hierarchy.heal(record, lambda: DATA)) is not None]

    assert [True] == [await healing for healing in begun]
    assert ([_blob_key(), _record_key()], [_record_key()]) == (shared.l3.puts, shared.l2.puts)
    assert 1 == shared.writer.counts.healed
    found = (await shared.fetch()).record
    assert found is not None
    assert not found.pending


async def test_what_is_inlined_is_written_again_without_a_blob(shared: Bench) -> None:
    """Nobody has to have its bytes."""
    shared.l3.fault = Outcome.ERROR
    await shared.commit(record_of(DATA, inline=True), DATA)
    shared.l3.fault = None
    found = await shared.fetch()
    assert found.record is not None

    healing = shared.hierarchy.heal(found.record, lambda: b"not asked for")
    assert healing is not None
    assert await healing
    assert [_record_key()] == shared.l3.puts


async def test_nothing_is_written_again_while_the_durable_tier_refuses(shared: Bench) -> None:
    """One try a second, whatever the number of entries; what is not tried is not even read."""
    records = [await _given_up(shared, name, name.encode()) for name in ("one", "two")]
    shared.l3.fault = Outcome.SKIPPED
    tries = 0

    def read() -> bytes:
        nonlocal tries
        tries += 1
        return b"one"

    for _ in range(2):
        healing = shared.hierarchy.heal(records[0], read)
        assert healing is not None
        assert not await healing
        assert [None] * 2 == [shared.hierarchy.heal(record, read) for record in records]
        shared.clock.advance(1.0)
    assert (2, 2) == (tries, shared.l3.tries - 2 * 4)  # of the first writes each was tried four times


async def test_what_a_process_made_and_was_given_up_it_writes_again(bench: Bench) -> None:
    """What it remembers itself says that it may be alone, until the durable tier has it."""
    bench.l3.fault = Outcome.ERROR
    await bench.commit(record_of(DATA), DATA, record_of(DATA).alias(address_of("as written")))
    bench.l3.fault = None
    for name in ("clip", "as written"):
        found = await bench.fetch(name)
        assert (TierName.L1, True) == (found.tier, found.record is not None and found.record.pending)
        assert found.record is not None
        healing = bench.hierarchy.heal(found.record, lambda: DATA)
        assert healing is not None
        assert await healing
        assert not await _may_be_alone(bench, name)
    assert {_blob_key(), _record_key(), _record_key("as written")} == set(bench.l3.entries)


async def test_what_a_process_made_is_known_to_be_durable_as_soon_as_it_is(bench: Bench) -> None:
    bench.l3.open = asyncio.Event()
    committing = asyncio.create_task(bench.commit(record_of(DATA), DATA))
    await wait_all_tasks_blocked()
    assert await _may_be_alone(bench)
    bench.l3.open.set()
    assert await committing
    assert not await _may_be_alone(bench)


async def test_what_was_replaced_or_removed_meanwhile_is_not_brought_back(bench: Bench) -> None:
    """A write that ends late says nothing of what is there by then."""
    bench.l3.open = asyncio.Event()
    older, newer = record_of(DATA), record_of(DATA, now=bench.clock() + 5)
    replaced = asyncio.create_task(bench.commit(older, DATA))
    removed = asyncio.create_task(bench.commit(record_of(b"gone", name="gone"), b"gone"))
    await wait_all_tasks_blocked()
    await bench.memory.put(_record_key(), replace(newer, pending=True).to_bytes(), TTL, replace=True)
    await bench.memory.delete(_record_key("gone"))
    bench.l3.open.set()
    assert await replaced
    assert await removed
    await wait_all_tasks_blocked()
    assert replace(newer, pending=True).to_bytes() == bench.memory.peek(_record_key())
    assert bench.memory.peek(_record_key("gone")) is None


async def test_memory_alone_is_all_there_is() -> None:
    """Nothing beneath it could have what it holds, so it says nothing of that."""
    memory = MemoryTier(max_bytes=100_000, clock=Clock())
    async with WriteBehind([], max_bytes=100_000, max_entries=100, clock=Clock()) as writer:
        hierarchy = Hierarchy([memory], writer, clock=Clock())
        await hierarchy.commit(record_of(DATA), DATA)
    assert record_of(DATA).to_bytes() == memory.peek(_record_key())


async def _may_be_alone(bench: Bench, name: str = "clip") -> bool:
    """What this process's memory says of an entry once nothing is under way."""
    await wait_all_tasks_blocked()
    return Record.from_bytes(bench.memory.peek(_record_key(name)) or b"").pending


@pytest.mark.parametrize("why", ["on its way", "no room", "switched off"])
async def test_what_cannot_be_written_again_now_is_not_read_for_it(shared: Bench, why: str) -> None:
    """Where its first write is still under way, the queue is full, or the durable tier takes nothing of this size."""
    if why == "on its way":
        shared.l3.open = asyncio.Event()
        first = asyncio.create_task(shared.commit(record_of(DATA), DATA))
        await wait_all_tasks_blocked()
        record = replace(record_of(DATA), pending=True)
    else:
        record = await _given_up(shared)
    if why == "no room":
        shared.l3.open = asyncio.Event()
        while shared.writer.has_room(len(DATA)):
            await shared.hierarchy.commit(
                record_of(b"%d" % shared.writer.entries, name=str(shared.writer.entries)), b""
            )
    if why == "switched off":
        shared.l3.max_payload = 0

    assert shared.hierarchy.heal(record, _not_read) is None
    if shared.l3.open is not None:
        shared.l3.open.set()
    if why == "on its way":
        assert await first
    assert await shared.writer.drain(5.0)


def _not_read() -> bytes:
    raise AssertionError


async def test_what_is_written_again_is_bounded(shared: Bench) -> None:
    """So many at once, and none that the queue has no room for: results have it first."""
    records = [await _given_up(shared, str(number), b"%d" % number) for number in range(70)]
    shared.l3.open = asyncio.Event()
    begun = [shared.hierarchy.heal(record, lambda: b"") for record in records]
    assert 0 < sum(healing is not None for healing in begun) <= 64
    assert shared.writer.entries <= 100
    shared.l3.open.set()
    assert await shared.writer.drain(5.0)


async def test_an_access_does_not_say_that_an_entry_is_durable(shared: Bench) -> None:
    """It is made younger where it lies, and goes on to say that it may be alone; nothing is made that was not there."""
    record = await _given_up(shared)
    shared.clock.advance(TTL / 2 + 1)
    await shared.fetch()
    assert record.pending
    assert record.touched(shared.clock()) == Record.from_bytes(shared.l2.entries[_record_key()])
    assert [] == shared.l3.puts


@pytest.mark.parametrize("state", ["missing", "damaged"])
async def test_a_dangling_record_is_removed_and_healed(shared: Bench, state: str) -> None:
    """A record whose blob is nowhere is a miss and is removed from every tier; the next commit heals it."""
    record = record_of(DATA)
    for tier in (shared.l2, shared.l3):
        _plant(tier, record, None if state == "missing" else b"not what the digest says")

    found = await shared.fetch()

    assert (None, None, None) == (found.record, found.data, found.tier)
    assert ({}, {}) == (shared.l2.entries, shared.l3.entries)
    again = record_of(DATA, model="again")
    assert await shared.commit(again, DATA)
    assert (again, DATA) == ((found := await shared.fetch()).record, found.data)


@pytest.mark.parametrize("fault", [Outcome.ERROR, Outcome.TIMEOUT, Outcome.SKIPPED])
@pytest.mark.parametrize("failing", ["l2", "l3"])
async def test_a_tier_that_failed_proves_nothing(shared: Bench, fault: Outcome, failing: str) -> None:
    """When a tier could not be asked for the blob, the request misses, but the record stays where it is."""

    class FailsForBlobs(ScriptedTier):
        async def get(self, key: Key, ttl: float | None):  # type: ignore[no-untyped-def]
            self.fault = fault if key.kind == "b" else None
            try:
                return await super().get(key, ttl)
            finally:
                self.fault = None

    l2, l3 = (
        (FailsForBlobs if name is TierName(failing) else ScriptedTier)(name) for name in (TierName.L2, TierName.L3)
    )
    for tier in (l2, l3):
        _plant(tier, record_of(DATA), None)

    found = await Hierarchy([l2, l3], shared.writer, clock=shared.clock).fetch(address_of("clip"), TTL)

    assert found.record is None
    assert [] == l2.deletes + l3.deletes
    assert [_record_key()] == list(l2.entries) == list(l3.entries)


@pytest.mark.parametrize("fault", [Outcome.ERROR, Outcome.TIMEOUT, Outcome.SKIPPED])
async def test_a_tier_that_failed_is_asked_once_in_a_request(shared: Bench, fault: Outcome) -> None:
    """Who has paid for a tier that does not answer does not pay for it again when the blob is read."""
    _plant(shared.l3, record_of(DATA), DATA)
    shared.l2.fault = fault

    found = await shared.fetch()

    assert (DATA, TierName.L3) == (found.data, found.tier)
    assert [_record_key()] == shared.l2.gets
    assert [fault, Outcome.HIT] == [lookup.outcome for lookup in found.lookups]


async def test_bytes_that_only_a_failing_tier_may_have_are_not_lost(shared: Bench) -> None:
    """The durable tier has a record and no blob; the fast one, which may have it, does not answer: nothing goes."""
    _plant(shared.l3, record_of(DATA), None)
    shared.l2.fault = Outcome.TIMEOUT

    found = await shared.fetch()

    assert (None, False) == (found.data, found.lost)
    assert [_record_key()] == list(shared.l3.entries)


async def test_a_damaged_blob_is_removed_and_served_from_below(shared: Bench) -> None:
    """Wrong bytes under a right name are never served: the copy goes, the next tier serves and heals it."""
    _plant(shared.l2, record_of(DATA), b"not what the digest says")
    _plant(shared.l3, record_of(DATA), DATA)

    found = await shared.fetch()

    assert (TierName.L3, DATA) == (found.tier, found.data)
    assert [Outcome.CORRUPT, Outcome.HIT] == [lookup.outcome for lookup in found.lookups]
    assert DATA == shared.l2.entries[_blob_key()]


async def test_a_record_of_another_address_is_removed(shared: Bench) -> None:
    """A good record under a wrong name is damage: removed, and the next tier is asked."""
    shared.l2.entries[_record_key()] = record_of(b"other", name="other").to_bytes()
    _plant(shared.l3, record_of(DATA), DATA)

    found = await shared.fetch()

    assert DATA == found.data
    assert [_record_key()] == shared.l2.deletes


async def test_removing_may_fail(shared: Bench) -> None:
    """A tier that cannot even delete what is damaged fails no request."""
    _plant(shared.l3, record_of(DATA), DATA)
    shared.l2.fault = Outcome.CORRUPT

    class Undeletable(ScriptedTier):
        async def delete(self, key: Key) -> None:
            self.fault = Outcome.ERROR
            await super().delete(key)

    l2 = Undeletable(TierName.L2)
    l2.entries[_record_key()] = b"not a record"

    found = await Hierarchy([l2, shared.l3], shared.writer, clock=shared.clock).fetch(address_of("clip"), TTL)

    assert DATA == found.data


@pytest.mark.parametrize(("max_age", "hit"), [(99.0, False), (100.0, True), (None, True)])
async def test_older_than_asked_for_is_a_miss(bench: Bench, max_age: float | None, hit: bool) -> None:
    """A caller may refuse outputs made longer ago than so many seconds."""
    await bench.commit(record_of(DATA), DATA)
    bench.clock.advance(100.0)

    assert hit == ((await bench.fetch(max_age=max_age)).data is not None)


async def test_an_access_is_noted_once_per_half_ttl(bench: Bench) -> None:
    """Many hits in memory rewrite the record in the shared tiers once, and again only half a TTL later."""
    await bench.commit(record_of(DATA), DATA)
    bench.forget_journals()

    for _ in range(3):
        await bench.fetch()
    assert ([], []) == (bench.l2.puts, bench.l3.puts)

    bench.clock.advance(TTL / 2 + 1)
    for _ in range(3):
        await bench.fetch()
    assert ([_record_key()], [_record_key()]) == (bench.l2.puts, bench.l3.puts)
    touched = Record.from_bytes(bench.l3.entries[_record_key()])
    assert bench.clock() == touched.touched_at

    bench.clock.advance(TTL / 2 + 1)
    await bench.fetch()
    assert 2 == len(bench.l3.puts)


async def test_what_is_used_lives_on_and_what_is_not_goes(bench: Bench) -> None:
    """Accesses keep an output beyond its TTL, but not beyond its hard age."""
    await bench.commit(record_of(DATA, max_age=2 * TTL), DATA)

    served = []
    for _ in range(4):
        bench.clock.advance(0.6 * TTL)
        served.append((await bench.fetch()).data is not None)

    assert [True, True, True, False] == served


async def test_touching_says_what_was_written(bench: Bench) -> None:
    """`touch` gives back the record as the shared tiers now have it, or the same one when it is too early."""
    record = record_of(DATA)
    await bench.commit(record, DATA)

    assert record is bench.hierarchy.touch(record)
    bench.clock.advance(TTL / 2 + 1)
    touched = bench.hierarchy.touch(record)
    await bench.writer.drain(5.0)
    assert touched.to_bytes() == bench.l3.entries[_record_key()]
    assert record.touched(bench.clock()) == touched


async def test_many_records_are_found_at_once(bench: Bench) -> None:
    """Each from the first tier that has it; a tier is asked only for what those before it lacked."""
    for name, tier in (("one", bench.l2), ("two", bench.l3), ("three", bench.l2), ("three", bench.l3)):
        _plant(tier, record_of(name.encode(), name=name), None)
    names = ["one", "two", "three", "none"]

    found = await bench.hierarchy.find_many([(address_of(name), TTL) for name in names])

    assert {
        address_of("one"): (record_of(b"one", name="one"), TierName.L2),
        address_of("two"): (record_of(b"two", name="two"), TierName.L3),
        address_of("three"): (record_of(b"three", name="three"), TierName.L2),
    } == found
    assert [_record_key("two"), _record_key("none")] == bench.l3.gets


async def test_what_no_tier_had_is_not_asked_for_again_at_once(bench: Bench) -> None:
    """For a second an absent stage costs nothing; after that, or once it was committed, it is asked for again."""
    wanted = [(address_of("clip"), TTL)]
    for _ in range(3):
        assert {} == await bench.hierarchy.find_many(wanted)
    assert 1 == len(bench.l3.gets)

    bench.clock.advance(1.0)
    assert {} == await bench.hierarchy.find_many(wanted)
    assert 2 == len(bench.l3.gets)

    await bench.commit(record_of(DATA), DATA)
    assert [address_of("clip")] == list(await bench.hierarchy.find_many(wanted))


@pytest.mark.parametrize("fault", [Outcome.ERROR, Outcome.TIMEOUT, Outcome.SKIPPED])
async def test_what_a_failing_tier_did_not_have_is_asked_for_again(bench: Bench, fault: Outcome) -> None:
    """A tier that failed proves no absence: what it may have is found as soon as it answers."""
    _plant(bench.l3, record_of(DATA), DATA)
    bench.l3.fault = fault
    assert {} == await bench.hierarchy.find_many([(address_of("clip"), TTL)])

    bench.l3.fault = None
    assert [address_of("clip")] == list(await bench.hierarchy.find_many([(address_of("clip"), TTL)]))


@pytest.mark.parametrize("stale", [b"not a record", record_of(DATA, now=0).to_bytes()], ids=["damaged", "expired"])
async def test_records_that_are_no_good_are_not_found(bench: Bench, stale: bytes) -> None:
    """Among many, damaged and expired records are looked for further down."""
    bench.l2.entries[_record_key()] = stale
    _plant(bench.l3, record_of(DATA), DATA)

    found = await bench.hierarchy.find_many([(address_of("clip"), TTL)])

    assert {address_of("clip"): (record_of(DATA), TierName.L3)} == found


async def test_what_was_asked_for_says_why_it_is_not_there(bench: Bench) -> None:
    """Each tier's answer is told per entry, also of those not found; what is remembered as absent is not asked for."""
    bench.l2.entries[_record_key("damaged")] = b"not a record"
    _plant(bench.l3, record_of(DATA, name="old", now=0), DATA)
    _plant(bench.l3, record_of(DATA), DATA)
    names = ["clip", "damaged", "old", "none"]

    asked = await bench.hierarchy.ask_many([(address_of(name), TTL) for name in names])

    said = {name: [lookup.outcome.value for lookup in asked[address_of(name)].lookups] for name in names}
    assert {
        "clip": ["miss", "miss", "hit"],
        "damaged": ["miss", "corrupt", "miss"],
        "old": ["miss", "miss", "expired"],
        "none": ["miss", "miss", "miss"],
    } == said
    assert [address_of("clip")] == list(known(asked))
    assert () == (await bench.hierarchy.ask_many([(address_of("none"), TTL)]))[address_of("none")].lookups


async def test_a_record_without_its_bytes_is_told_apart(bench: Bench) -> None:
    """What is lost is not the same as what never was, unless a tier failed and may have it."""
    _plant(bench.l3, record_of(DATA), None)
    assert (await bench.fetch()).lost
    assert not (await bench.fetch()).lost  # its record is gone too by now

    _plant(bench.l2, record_of(bytes(SMALL + 1), name="large"), None)
    bench.l3.fault = Outcome.ERROR
    assert not (await bench.fetch("large")).lost


async def test_a_peek_changes_nothing(bench: Bench) -> None:
    """Nothing is promoted, made younger, removed, remembered as absent, or read but records."""
    late = record_of(DATA, ttl=4 * TTL)
    _plant(bench.l3, late, DATA)
    bench.l2.entries[_record_key("damaged")] = b"not a record"
    bench.clock.advance(3 * TTL)  # an access would be noted
    names = ["clip", "damaged", "none"]
    before = dict(bench.l2.entries), dict(bench.l3.entries)

    for _ in range(2):
        peeked = await bench.hierarchy.peek_many([address_of(name) for name in names])
        assert (late, TierName.L3, None) == (
            peeked[address_of("clip")].record,
            peeked[address_of("clip")].tier,
            peeked[address_of("clip")].data,
        )
    assert await bench.writer.drain(5.0)

    assert before == (bench.l2.entries, bench.l3.entries)
    assert ([], [], []) == (bench.l2.puts, bench.l3.puts, bench.l2.deletes)
    assert {None} == set(bench.l2.ttls) | set(bench.l3.ttls)
    assert 6 == len(bench.l2.gets)  # nothing absent was remembered
    assert {"r"} == {key.kind for key in bench.l3.gets}
    assert 0 == len(bench.memory.entries)


async def test_a_peek_says_which_tier_should_give_the_bytes(bench: Bench) -> None:
    """The record's, where it has them inside or may hold them; else the first one further down that may."""
    large = bytes(SMALL + 1)
    for name, data, inline in (("inline", DATA, True), ("small", DATA, False), ("large", large, False)):
        _plant(bench.l2, record_of(data, name=name, inline=inline), None)

    peeked = await bench.hierarchy.peek_many([address_of(name) for name in ("inline", "small", "large")])

    tiers = {"inline": TierName.L2, "small": TierName.L2, "large": TierName.L3}
    assert tiers == {name: peeked[address_of(name)].tier for name in tiers}


async def test_what_somebody_else_has_made_is_asked_for_again_at_once(bench: Bench) -> None:
    """Whoever hears that a worker made a stage's output need not wait until it is forgotten that there was none."""
    wanted = [(address_of("clip"), TTL)]
    assert {} == await bench.hierarchy.find_many(wanted)
    _plant(bench.l3, record_of(DATA), DATA)
    assert {} == await bench.hierarchy.find_many(wanted)
    bench.hierarchy.expect([address_of("clip"), address_of("other")])
    assert [address_of("clip")] == list(await bench.hierarchy.find_many(wanted))


async def test_the_memo_of_what_is_absent_is_bounded(bench: Bench) -> None:
    """However many absent stages are asked for, what is remembered of them stays bounded."""
    for batch in range(30):
        await bench.hierarchy.find_many([(address_of(f"{batch}/{number}"), TTL) for number in range(1000)])

    assert len(bench.hierarchy._absent) <= 11_000


async def test_lookups_do_not_hold_what_was_found(shared: Bench) -> None:
    """They are kept for as long as an answer is sent, which may have let go of its bytes long before."""
    _plant(shared.l3, record_of(DATA), DATA)
    found = await shared.fetch()
    _, _, lookups = await shared.hierarchy.read(NAMESPACE, Digest.of(DATA), TTL)

    assert DATA == found.data
    assert all(DATA != lookup.value for lookup in (*found.lookups, *lookups))


async def test_bytes_are_reserved_before_they_are_read(bench: Bench) -> None:
    """Once for all tiers that are asked, before the first one is; not for what is in this process, or in its record."""
    _plant(bench.l3, record_of(DATA), DATA)
    reserved, asked = list[int](), list[int]()

    async def reserve(size: int) -> None:
        reserved.append(size)
        asked.append(sum(key.kind == "b" for key in (*bench.l2.gets, *bench.l3.gets)))

    for _ in range(2):
        found = await bench.hierarchy.fetch(address_of("clip"), TTL, reserve=reserve)
        assert DATA == found.data
        assert ([len(DATA)], [0]) == (reserved, asked)
    data, _, _ = await bench.hierarchy.read(NAMESPACE, Digest.of(DATA), TTL, reserve=reserve)
    assert (DATA, [len(DATA)]) == (data, reserved)

    inlined = record_of(DATA, name="inlined", inline=True)
    _plant(bench.l3, inlined, None)
    assert DATA == (await bench.hierarchy.fetch(address_of("inlined"), TTL, reserve=reserve)).data
    assert [len(DATA)] == reserved


async def test_a_blob_is_read_and_kept_by_itself(bench: Bench) -> None:
    """`keep` stores a blob durably, `read` finds it in the first tier that has it and promotes it."""
    assert await bench.hierarchy.keep(NAMESPACE, DATA, TTL)
    await bench.forget_locally()
    del bench.l2.entries[_blob_key()]
    bench.forget_journals()

    data, tier, lookups = await bench.hierarchy.read(NAMESPACE, Digest.of(DATA), TTL)
    await bench.writer.drain(5.0)

    assert (DATA, TierName.L3) == (data, tier)
    assert [Outcome.MISS, Outcome.MISS, Outcome.HIT] == [lookup.outcome for lookup in lookups]
    assert [_blob_key()] == bench.l2.puts
    assert TierName.L1 is (await bench.hierarchy.read(NAMESPACE, Digest.of(DATA), TTL))[1]


async def test_a_blob_that_could_not_be_kept(bench: Bench) -> None:
    """`keep` says when the durable tier refused."""
    bench.l3.fault = Outcome.ERROR

    assert not await bench.hierarchy.keep(NAMESPACE, DATA, TTL)


async def test_another_tenants_namespace_has_nothing(bench: Bench) -> None:
    """What was committed in one namespace is in no other, neither record nor blob."""
    await bench.commit(record_of(DATA), DATA)

    assert (await bench.hierarchy.fetch(address_of("clip", "1" * 32), TTL)).record is None
    assert (await bench.hierarchy.read("1" * 32, Digest.of(DATA), TTL))[0] is None


async def test_a_full_queue_drops_promotions_and_no_request(bench: Bench) -> None:
    """Promotions that find no room are dropped; the bytes are served."""
    data = b"x" * 900
    _plant(bench.l3, record_of(data), data)
    bench.l2.open = asyncio.Event()
    bench.writer._max_bytes = 100
    bench.writer.offer([], [bench.l2])
    await bench.hierarchy.commit(record_of(b"y", name="other"), b"y")

    found = await bench.hierarchy.fetch(address_of("clip"), TTL)

    assert data == found.data
    assert 2 == bench.writer.counts.dropped
    bench.l2.open.set()


class _Costs(LeastRecentlyUsed[Key]):
    """Notes what it is told that entries cost."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[Key, float] = {}

    def admitted(self, key: Key, weight: int, cost: float) -> None:
        super().admitted(key, weight, cost)
        self.costs[key] = cost


async def test_memory_is_told_what_its_entries_save() -> None:
    """Record and blob alike save all that was computed for them, whether committed, promoted, or read by digest."""
    costs = _Costs()
    clock = Clock()
    memory = MemoryTier(max_bytes=100_000, policy=costs, clock=clock)
    record = record_of(DATA)
    async with WriteBehind([durable := ScriptedTier(TierName.L3)], max_bytes=100_000, max_entries=10) as writer:
        counted = MeteredTier(memory, Tally(TierName.L1, CacheMetrics(CollectorRegistry())))
        hierarchy = Hierarchy([counted, durable], writer, clock=clock)
        both = dict.fromkeys((_record_key(), _blob_key()), record.total_device_seconds)

        assert await (await hierarchy.commit(record, DATA))
        assert both == costs.costs

        await memory.aclose()
        costs.costs.clear()
        assert TierName.L3 is (await hierarchy.fetch(record.address, TTL)).tier
        assert both == costs.costs

        await memory.aclose()
        costs.costs.clear()
        await hierarchy.read(NAMESPACE, record.output.digest, TTL, cost=7.0)
        assert {_blob_key(): 7.0} == costs.costs


async def test_real_tiers_end_to_end(redis_url: str, s3: S3) -> None:
    """Redis and S3: committed, served from each tier in turn, damaged behind its back, healed."""
    clock = Clock()
    memory = MemoryTier(max_bytes=10_000_000, clock=clock)
    redis = RedisStore.connect(redis_url, budget=10.0, connections=4)
    objects = ObjectsStore.connect(
        f"s3://{s3.bucket}/{s3.prefix}",
        endpoint=s3.endpoint,
        region=s3.region,
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        stall=10.0,
    )
    l2, l3 = StoredTier(TierName.L2, redis, max_payload=MAX_PAYLOAD), StoredTier(TierName.L3, objects)
    small, large = b"small clip", b"x" * (MAX_PAYLOAD + 1)
    async with WriteBehind([l2, l3], max_bytes=10_000_000, max_entries=100, clock=clock) as writer:
        hierarchy = Hierarchy([memory, l2, l3], writer, clock=clock)

        async def served_by(name: str) -> tuple[TierName | None, bytes | None]:
            found = await hierarchy.fetch(address_of(name), TTL)
            await writer.drain(10.0)
            return found.tier, found.data

        for name, data in (("small", small), ("large", large)):
            assert await (await hierarchy.commit(record_of(data, name=name), data))
            assert (TierName.L1, data) == await served_by(name)
        await memory.aclose()
        assert (TierName.L2, small) == await served_by("small")
        assert (TierName.L3, large) == await served_by("large")

        await memory.aclose()
        await redis.put(str(_blob_key(small)), b"damaged", TTL, replace=True)
        assert (TierName.L3, small) == await served_by("small")
        await memory.aclose()
        assert (TierName.L2, small) == await served_by("small")

        await memory.aclose()
        await redis.delete(str(_blob_key(small)))
        await objects.delete(str(_blob_key(small)))
        assert (None, None) == await served_by("small")
        assert await objects.get(str(_record_key("small")), TTL) is None
        assert await (await hierarchy.commit(record_of(small, name="small"), small))
        await memory.aclose()
        assert (TierName.L2, small) == await served_by("small")
    await l2.aclose()
