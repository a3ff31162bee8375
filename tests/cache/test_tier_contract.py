"""The contract of tiers, run over every tier there is and over every wrapper.

Each is tested against its real server, and damaged through another client behind its back.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore, ObjectStore, S3Store
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from cache.digest import Digest
from cache.envelope import seal
from cache.guard import Breaker, GuardedStore
from cache.keys import Key, Kind
from cache.memory import MemoryTier
from cache.metered import CacheMetrics, MeteredTier, Tally
from cache.objects import ObjectsStore
from cache.redis import MAX_PAYLOAD, RedisStore
from cache.store import Store, StoredTier
from cache.tier import Outcome, Tier, TierName
from tests.cache.helpers import NAMESPACE, Clock, address_of
from tests.servers import S3

TTL = 600.0
_LARGE = 5 * 1024 * 1024
_NOT_LONG_AGO = 1_700_000_000 * 10**9  # nanoseconds since the epoch


@dataclass
class Bench:
    """A tier, and hands behind its back."""

    tier: Tier
    plant: Callable[[str, bytes], Awaitable[object]] | None = None  # write raw bytes under a name
    peek: Callable[[str], Awaitable[bytes | None]] | None = None  # read them
    ttl_left: Callable[[str], Awaitable[float]] | None = None
    clock: Clock = field(default_factory=Clock)


def _key(data: bytes) -> Key:
    return Key.of_blob(NAMESPACE, Digest.of(data))


_RECORD = Key.of_record(address_of("clip"))


def _wrapped(name: TierName, store: Store, wrapping: str) -> Tier:
    maximum = MAX_PAYLOAD if name is TierName.L2 else None
    if wrapping == "plain":
        return StoredTier(name, store, max_payload=maximum)
    guarded = GuardedStore(store, Breaker(), budget=10.0 if name is TierName.L2 else None)
    return _metered(StoredTier(name, guarded, max_payload=maximum))


def _metered(tier: Tier) -> MeteredTier:
    return MeteredTier(tier, Tally(tier.name, CacheMetrics(CollectorRegistry())))


async def _memory(wrapping: str) -> AsyncIterator[Bench]:
    clock = Clock()
    tier = MemoryTier(max_bytes=16 * 1024 * 1024, clock=clock)
    yield Bench(tier if wrapping == "plain" else _metered(tier), clock=clock)
    await tier.aclose()


async def _redis(wrapping: str, url: str) -> AsyncIterator[Bench]:
    tier = _wrapped(TierName.L2, RedisStore.connect(url, budget=10.0, connections=8), wrapping)
    async with Redis.from_url(url) as raw:

        async def ttl_left(name: str) -> float:
            return int(await raw.pttl(name)) / 1000

        async def plant(name: str, data: bytes) -> None:
            await raw.set(name, data, px=int(TTL * 1000))

        async def peek(name: str) -> bytes | None:
            found: bytes | None = await raw.get(name)  # type: ignore[assignment]
            return found

        yield Bench(tier, plant, peek, ttl_left)
    await tier.aclose()


async def _objects(wrapping: str, store: ObjectsStore, raw: ObjectStore) -> AsyncIterator[Bench]:
    async def plant(name: str, data: bytes) -> None:
        await obstore.put_async(raw, name, data)

    async def peek(name: str) -> bytes | None:
        try:
            return bytes(await (await obstore.get_async(raw, name)).bytes_async())
        except FileNotFoundError:
            return None

    tier = _wrapped(TierName.L3, store, wrapping)
    yield Bench(tier, plant, peek)
    await tier.aclose()


@pytest.fixture
def _open(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], AsyncIterator[Bench]]:
    """Opens the tier of that name. Folders are made here, where there is no loop to block."""
    name: str = request.node.callspec.params["bench"].partition(" ")[0]
    if name == "memory":
        return _memory
    if name == "redis":
        url: str = request.getfixturevalue("redis_url")
        return lambda wrapping: _redis(wrapping, url)
    if name == "folder":
        folder = ObjectsStore.connect(f"file://{tmp_path}", stall=10.0)
        raw: ObjectStore = LocalStore(tmp_path)
        return lambda wrapping: _objects(wrapping, folder, raw)
    s3: S3 = request.getfixturevalue("s3")
    store = ObjectsStore.connect(
        f"s3://{s3.bucket}/{s3.prefix}",
        endpoint=s3.endpoint,
        region=s3.region,
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        stall=10.0,
    )
    raw = S3Store(
        s3.bucket,
        prefix=s3.prefix,
        endpoint=s3.endpoint,
        region=s3.region,
        access_key_id=s3.access_key,
        secret_access_key=s3.secret_key,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    return lambda wrapping: _objects(wrapping, store, raw)


_ALL = ["memory plain", "memory wrapped", "redis plain", "redis wrapped"]
_ALL += ["folder plain", "folder wrapped", "s3 plain", "s3 wrapped"]


@pytest.fixture(params=_ALL)
async def bench(request: pytest.FixtureRequest, _open: Callable[[str], AsyncIterator[Bench]]) -> AsyncIterator[Bench]:
    async for opened in _open(request.param.partition(" ")[2]):
        yield opened


async def _value(tier: Tier, key: Key) -> bytes | None:
    return (await tier.get(key, TTL)).value


async def test_what_was_put_is_a_hit(bench: Bench) -> None:
    """A stored entry is found, bit for bit, and the answer says by whom and how long it took."""
    assert await bench.tier.put(_key(b"clip"), b"clip", TTL)

    lookup = await bench.tier.get(_key(b"clip"), TTL)
    assert (bench.tier.name, Outcome.HIT, b"clip") == (lookup.tier, lookup.outcome, lookup.value)
    assert 0.0 < lookup.seconds < 60.0
    assert lookup.started_ns > _NOT_LONG_AGO


async def test_what_was_not_put_is_a_miss(bench: Bench) -> None:
    """An absent entry is a miss without a value, not an error."""
    lookup = await bench.tier.get(_key(b"clip"), TTL)

    assert (Outcome.MISS, None) == (lookup.outcome, lookup.value)


async def test_nothing_at_all_is_a_value(bench: Bench) -> None:
    """An entry of no bytes is a hit."""
    await bench.tier.put(_key(b""), b"", TTL)

    lookup = await bench.tier.get(_key(b""), TTL)
    assert (Outcome.HIT, b"") == (lookup.outcome, lookup.value)


async def test_the_first_put_wins(bench: Bench) -> None:
    """A second put under the same key says so and changes nothing."""
    assert await bench.tier.put(_RECORD, b"first", TTL)
    assert not await bench.tier.put(_RECORD, b"second", TTL)

    assert b"first" == await _value(bench.tier, _RECORD)


async def test_a_put_that_replaces_wins(bench: Bench) -> None:
    """With `replace` the new entry takes the place of the old one, or of none."""
    assert await bench.tier.put(_RECORD, b"first", TTL, replace=True)
    assert await bench.tier.put(_RECORD, b"second", TTL, replace=True)

    assert b"second" == await _value(bench.tier, _RECORD)


async def test_kinds_and_namespaces_are_places_of_their_own(bench: Bench) -> None:
    """One hash names different entries as record and as blob, and in two namespaces."""
    kinds: tuple[Kind, ...] = ("r", "b")
    keys = [Key(kind, space, "ab" * 32) for kind in kinds for space in ("0" * 32, "1" * 32)]
    for number, key in enumerate(keys):
        await bench.tier.put(key, b"%d" % number, TTL)

    assert [b"0", b"1", b"2", b"3"] == [await _value(bench.tier, key) for key in keys]


async def test_a_deleted_entry_is_a_miss(bench: Bench) -> None:
    """After delete there is nothing, and the next put is the first."""
    await bench.tier.put(_RECORD, b"first", TTL)
    await bench.tier.delete(_RECORD)

    assert await _value(bench.tier, _RECORD) is None
    assert await bench.tier.put(_RECORD, b"second", TTL)


async def test_deleting_nothing_is_no_error(bench: Bench) -> None:
    """Forgetting what is not there is done already."""
    await bench.tier.delete(_RECORD)
    await bench.tier.delete(_RECORD)


async def test_many_are_answered_in_the_order_asked(bench: Bench) -> None:
    """`get_many` has one answer per key, in order, misses and repeated keys included."""
    for data in (b"one", b"two"):
        await bench.tier.put(_key(data), data, TTL)
    wanted = [b"two", b"none", b"one", b"two"]

    lookups = await bench.tier.get_many([_key(data) for data in wanted], TTL)

    assert [b"two", None, b"one", b"two"] == [lookup.value for lookup in lookups]
    assert [Outcome.HIT, Outcome.MISS, Outcome.HIT, Outcome.HIT] == [lookup.outcome for lookup in lookups]
    assert [] == await bench.tier.get_many([], TTL)


async def test_large_values_where_they_are_held(bench: Bench) -> None:
    """A tier that holds 5 MiB gives them back; the one that does not says so beforehand."""
    data = bytes(range(256)) * (_LARGE // 256)

    assert (bench.tier.name is not TierName.L2) == bench.tier.holds(len(data))
    if bench.tier.holds(len(data)):
        assert await bench.tier.put(_key(data), data, TTL)
        assert data == await _value(bench.tier, _key(data))


async def test_the_largest_payload_fits(bench: Bench) -> None:
    """What Redis holds at most, every tier holds."""
    data = b"x" * MAX_PAYLOAD

    assert bench.tier.holds(len(data))
    assert await bench.tier.put(_key(data), data, TTL)
    assert data == await _value(bench.tier, _key(data))


async def test_of_concurrent_puts_one_wins(bench: Bench) -> None:
    """Of many first puts of one key exactly one is told it was first, and it is its value that stays."""
    values = [b"%d" % number for number in range(5)]

    created = await asyncio.gather(*(bench.tier.put(_RECORD, value, TTL) for value in values))

    assert 1 == created.count(True)
    assert values[created.index(True)] == await _value(bench.tier, _RECORD)


async def test_concurrent_calls_do_not_mix(bench: Bench) -> None:
    """Many puts and gets at once each get their own answer."""
    values = [b"%d" % number * 1000 for number in range(40)]
    await asyncio.gather(*(bench.tier.put(_key(value), value, TTL) for value in values))

    assert values == list(await asyncio.gather(*(_value(bench.tier, _key(value)) for value in values)))


def _damages() -> dict[str, Callable[[Key, bytes], bytes]]:
    return {
        "flipped bit": lambda key, sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]),
        "truncated": lambda key, sealed: sealed[:-1],
        "empty": lambda key, sealed: b"",
        "another entry": lambda key, sealed: seal(_key(b"another"), b"another"),
        "not ours": lambda key, sealed: b"hello",
    }


@pytest.mark.parametrize("bench", _ALL[2:], indirect=True)
@pytest.mark.parametrize("damage", _damages())
async def test_damage_behind_its_back_is_found_and_healed(bench: Bench, damage: str) -> None:
    """Damaged bytes are CORRUPT and never served; they are removed, so that the next first put heals the entry."""
    assert bench.plant is not None
    assert bench.peek is not None
    await bench.plant(str(_RECORD), _damages()[damage](_RECORD, seal(_RECORD, b"clip")))

    lookup = await bench.tier.get(_RECORD, TTL)
    assert (Outcome.CORRUPT, None) == (lookup.outcome, lookup.value)
    assert await bench.peek(str(_RECORD)) is None
    assert await bench.tier.put(_RECORD, b"clip", TTL)
    assert b"clip" == await _value(bench.tier, _RECORD)


@pytest.mark.parametrize("bench", _ALL[2:], indirect=True)
async def test_one_damaged_entry_among_many(bench: Bench) -> None:
    """Of many asked for at once only the damaged one is CORRUPT and removed."""
    assert bench.plant is not None
    assert bench.peek is not None
    await bench.tier.put(_key(b"good"), b"good", TTL)
    await bench.plant(str(_RECORD), b"bad")

    peeked = [await bench.tier.get(_RECORD, None), *await bench.tier.get_many([_RECORD], None)]
    assert [Outcome.CORRUPT, Outcome.CORRUPT] == [lookup.outcome for lookup in peeked]
    assert await bench.peek(str(_RECORD)) is not None  # a look without effect

    lookups = await bench.tier.get_many([_RECORD, _key(b"good"), _key(b"none")], TTL)

    assert [Outcome.CORRUPT, Outcome.HIT, Outcome.MISS] == [lookup.outcome for lookup in lookups]
    assert await bench.peek(str(_RECORD)) is None
    assert await bench.peek(str(_key(b"good"))) is not None


@pytest.mark.parametrize("bench", _ALL[2:], indirect=True)
async def test_entries_lie_sealed_under_their_name(bench: Bench) -> None:
    """What lies on the server is the envelope of the payload, under the text of the key."""
    assert bench.peek is not None
    await bench.tier.put(_RECORD, b"clip", TTL)

    assert seal(_RECORD, b"clip") == await bench.peek(str(_RECORD))


@pytest.mark.parametrize("bench", _ALL[2:4], indirect=True)
async def test_redis_forgets_by_itself(bench: Bench) -> None:
    """A put sets the TTL; a get, alone or among many, starts it again; a put that loses does not touch it."""
    assert bench.ttl_left is not None
    await bench.tier.put(_RECORD, b"clip", 100.0)
    assert 90.0 < await bench.ttl_left(str(_RECORD)) <= 100.0

    await bench.tier.put(_RECORD, b"other", 900.0)
    assert await bench.ttl_left(str(_RECORD)) <= 100.0

    await bench.tier.get(_RECORD, 300.0)
    assert 290.0 < await bench.ttl_left(str(_RECORD)) <= 300.0

    await bench.tier.get_many([_RECORD], 500.0)
    assert 490.0 < await bench.ttl_left(str(_RECORD)) <= 500.0

    await bench.tier.put(_RECORD, b"clip", 50.0, replace=True)
    assert await bench.ttl_left(str(_RECORD)) <= 50.0

    lookups = [await bench.tier.get(_RECORD, None), *await bench.tier.get_many([_RECORD], None)]  # changes nothing
    assert [Outcome.HIT, Outcome.HIT] == [lookup.outcome for lookup in lookups]
    assert await bench.ttl_left(str(_RECORD)) <= 50.0


@pytest.mark.parametrize("bench", _ALL[2:4], indirect=True)
async def test_the_shortest_ttl_is_a_millisecond(bench: Bench) -> None:
    """No TTL is too short to be said to Redis."""
    assert await bench.tier.put(_RECORD, b"clip", 0.0)


@pytest.mark.parametrize("bench", _ALL[:2], indirect=True)
async def test_memory_forgets_by_its_clock(bench: Bench) -> None:
    """Without access for its TTL an entry is gone; an access starts the TTL again."""
    await bench.tier.put(_RECORD, b"clip", 10.0)
    bench.clock.advance(9.0)
    assert b"clip" == await _value(bench.tier, _RECORD)
    bench.clock.advance(9.0)
    assert b"clip" == await _value(bench.tier, _RECORD)
    bench.clock.advance(5.0)
    assert b"clip" == (await bench.tier.get(_RECORD, None)).value  # which changes nothing
    bench.clock.advance(5.0)
    assert await _value(bench.tier, _RECORD) is None
    assert await bench.tier.put(_RECORD, b"new", 10.0)


async def test_a_closed_tier_is_closed_once(bench: Bench) -> None:
    """Closing waits for what is under way and may be said twice."""
    await bench.tier.put(_RECORD, b"clip", TTL)

    await bench.tier.aclose()
    await bench.tier.aclose()


async def test_only_memory_is_local(bench: Bench) -> None:
    """A tier says whether storing in it costs no I/O."""
    assert (bench.tier.name is TierName.L1) == bench.tier.local
