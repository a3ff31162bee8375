"""aiocache's interface over L1, over Redis and a folder, and over Redis and S3: one contract for all of them."""

import asyncio
import dataclasses
import enum
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
import pytest
from aiocache import cached, cached_stampede, multi_cached
from aiocache.base import BaseCache
from aiocache.lock import OptimisticLock, OptimisticLockError
from aiocache.plugins import HitMissRatioPlugin, TimingPlugin
from aiocache.serializers import JsonSerializer, PickleSerializer, StringSerializer
from anyio import wait_all_tasks_blocked
from obstore.store import LocalStore, ObjectStore, S3Store
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from redis.asyncio import Redis

from cache.aio import MemoryCache, TieredCache
from cache.build import Tiers, build_tiers
from cache.errors import TierError
from cache.hierarchy import Hierarchy
from cache.keys import Key
from cache.memory import MemoryTier
from cache.settings import CacheSettings, L2Settings, L3Settings
from cache.tier import Lookup, Outcome, TierName
from cache.write_behind import WriteBehind
from gateway.stack.ports import free_port
from tests.cache.helpers import SECRET, Clock, ScriptedTier
from tests.servers import S3

_TIERED = ["folder", "s3"]
_ALL = ["memory", *_TIERED]
_SMALL, _LARGE, _HUGE = b"small", b"l" * (100 * 1024), b"h" * (2 * 1024 * 1024)  # inlined; a blob; a blob not for Redis


@dataclass
class Bench:
    """Caches over one place, each with a memory of its own as in a process of its own, and hands behind its back."""

    open: Callable[..., Awaitable[Any]]
    clock: Clock
    redis: "Redis | None" = None
    objects: ObjectStore | None = None

    async def names(self) -> list[str]:
        """Of everything there is in the shared tiers."""
        assert self.redis is not None
        assert self.objects is not None
        listed = [entry["path"] for page in obstore.list(self.objects) for entry in page]
        return [*listed, *(str(key) for key in await self.redis.keys())]

    async def contents(self) -> bytes:
        """All bytes there are in the shared tiers, names too."""
        assert self.redis is not None
        assert self.objects is not None
        names = await self.names()
        files = [
            bytes(await (await obstore.get_async(self.objects, entry["path"])).bytes_async())
            for page in obstore.list(self.objects)
            for entry in page
        ]
        values = [_bytes(await self.redis.get(key)) for key in await self.redis.keys()]
        return b"\n".join([json.dumps(names).encode(), *files, *values])

    async def damage(self, change: Callable[[bytes], bytes]) -> None:
        """Change every entry of the durable tier, and have Redis forget its copies."""
        assert self.redis is not None
        assert self.objects is not None
        await self.redis.flushall()
        for page in obstore.list(self.objects):
            for entry in page:
                data = bytes(await (await obstore.get_async(self.objects, entry["path"])).bytes_async())
                await obstore.put_async(self.objects, entry["path"], change(data))


def _bytes(value: bytes | str | None) -> bytes:
    assert isinstance(value, bytes)
    return value


@pytest.fixture
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    clock = Clock()
    if request.param == "memory":
        memory = MemoryTier(max_bytes=64 * 1024 * 1024, clock=clock)

        async def open_memory(**options: Any) -> MemoryCache:
            return MemoryCache(memory, clock=clock, **options)

        yield Bench(open_memory, clock)
        return
    redis_url = request.getfixturevalue("redis_url")
    l3, objects = _folder(tmp_path) if request.param == "folder" else _s3(request.getfixturevalue("s3"))
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(Redis.from_url(redis_url))

        async def open_tiered(**options: Any) -> TieredCache:
            tiers = await stack.enter_async_context(running(clock, l3, redis_url))
            return TieredCache(tiers, **{"secret": SECRET, "clock": clock, **options})

        yield Bench(open_tiered, clock, redis, objects)


def _folder(path: Path) -> tuple[L3Settings, ObjectStore]:
    return L3Settings(url=f"file://{path}", stall=5), LocalStore(path)


def _s3(s3: S3) -> tuple[L3Settings, ObjectStore]:
    settings = L3Settings(
        url=f"s3://{s3.bucket}/{s3.prefix}",
        endpoint=s3.endpoint,
        region=s3.region,
        access_key=s3.access_key,
        secret_key=SecretStr(s3.secret_key),
        stall=5,
    )
    store = S3Store(
        s3.bucket,
        prefix=s3.prefix,
        endpoint=s3.endpoint,
        region=s3.region,
        access_key_id=s3.access_key,
        secret_access_key=s3.secret_key,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    return settings, store


@asynccontextmanager
async def running(clock: Clock, l3: L3Settings, redis_url: str = "") -> AsyncIterator[Tiers]:
    async with await asyncio.to_thread(_tiers, clock, l3, redis_url) as tiers:  # makes folders, which blocks
        yield tiers


def _tiers(clock: Clock, l3: L3Settings, redis_url: str = "") -> Tiers:
    l2 = L2Settings(enabled=bool(redis_url), url=SecretStr(redis_url), budget=2)
    settings = CacheSettings(secret=SecretStr(SECRET.hex()), l2=l2, l3=l3)
    memory = MemoryTier(max_bytes=64 * 1024 * 1024, clock=clock)
    return dataclasses.replace(build_tiers(settings, CollectorRegistry()), memory=memory)


def scripted(clock: Clock, l3: ScriptedTier) -> tuple[Tiers, ScriptedTier]:
    """L1 over two tiers that do what the test says, and the faster of them."""
    l2 = ScriptedTier(TierName.L2)
    tiers = _tiers(clock, L3Settings(url="s3://nowhere", endpoint="http://127.0.0.1:9"))
    shared: Any = [l2, l3]
    writer = WriteBehind([], max_bytes=1, max_entries=1)
    return dataclasses.replace(tiers, shared=shared, below_memory=Hierarchy(shared, writer)), l2


over_all = pytest.mark.parametrize("bench", _ALL, indirect=True)
over_tiered = pytest.mark.parametrize("bench", _TIERED, indirect=True)
over_folder = pytest.mark.parametrize("bench", ["folder"], indirect=True)


class Colour(enum.Enum):
    RED = "red"


# What any cache of aiocache does.


@over_all
@pytest.mark.parametrize("value", [_SMALL, _LARGE, _HUGE], ids=["small", "large", "huge"])
async def test_a_value_comes_back(bench: Bench, value: bytes) -> None:
    """What was set is there, until it is deleted."""
    cache = await bench.open()

    assert await cache.set("name", value)
    assert value == await cache.get("name")
    assert await cache.exists("name")
    assert 1 == await cache.delete("name")
    assert await cache.get("name") is None
    assert not await cache.exists("name")
    assert 0 == await cache.delete("name")


@over_all
@pytest.mark.parametrize(
    "value",
    [b"", "", "text", 0, -(2**63), 1.5, True, False, [1, [b"x"]], {"a": {"b": [None, 1]}}, {1: "one"}, [None]],
    ids=repr,
)
async def test_values_keep_their_types(bench: Bench, value: object) -> None:
    """Plain data comes back equal and of the same type."""
    cache = await bench.open()
    await cache.set("name", value)

    found = await cache.get("name", default="nothing")

    assert (type(value), value) == (type(found), found)


@over_all
@pytest.mark.parametrize("value", [(1, 2), {1, 2}, object(), [(1,)]], ids=["tuple", "set", "object", "inner tuple"])
async def test_what_would_not_come_back_is_refused(bench: Bench, value: object) -> None:
    """A value that could only be stored as something similar raises TypeError, and nothing is stored."""
    cache = await bench.open()

    with pytest.raises(TypeError):
        await cache.set("name", value)
    assert not await cache.exists("name")


@over_all
async def test_a_stored_none_exists(bench: Bench) -> None:
    """None can be stored; `get` says its default for it, as aiocache does, and `exists` knows better."""
    cache = await bench.open()
    await cache.set("name", None)

    assert "default" == await cache.get("name", default="default")
    assert await cache.exists("name")


@over_all
async def test_names_that_look_alike_differ(bench: Bench) -> None:
    """Names of different types, and the same name in different namespaces, never meet."""
    cache = await bench.open(namespace="a")
    names: list[Any] = ["1", 1, b"1", 1.0, True, ["1"], "ab", None, ""]

    for position, name in enumerate(names):
        await cache.set(name, position)
        await cache.set(name, position + 100, namespace="ab")
    await cache.set("b", "joined differently", namespace="a")

    assert list(range(len(names))) == await cache.multi_get(names)
    assert [position + 100 for position in range(len(names))] == await cache.multi_get(names, namespace="ab")


@over_all
async def test_an_enumeration_names_as_its_value(bench: Bench) -> None:
    """aiocache's rule for enumerations holds."""
    cache = await bench.open()
    await cache.set(Colour.RED, 1)

    assert 1 == await cache.get("red")


@over_all
async def test_a_key_builder_is_used(bench: Bench) -> None:
    """What it makes of key and namespace is the name."""
    cache = await bench.open(key_builder=lambda key, namespace: f"{namespace}:{key.lower()}")
    await cache.set("NAME", 1, namespace="n")

    assert 1 == await cache.get("name", namespace="n")


@over_all
async def test_many_at_once(bench: Bench) -> None:
    """More than are under way together are set and got, in order; what is missing is None."""
    cache = await bench.open()
    pairs = [(f"name {n}", n) for n in range(40)]

    assert await cache.multi_set(pairs)
    assert [*range(40), None] == await cache.multi_get([*(name for name, _ in pairs), "none"])


@over_all
async def test_a_ttl_counts_from_the_write(bench: Bench) -> None:
    """A value lives for its ttl, reads do not prolong it, and another `set` begins a new one."""
    cache = await bench.open(ttl=10)
    await cache.set("name", 1)
    bench.clock.advance(9)
    assert 1 == await cache.get("name")
    bench.clock.advance(1)
    assert await cache.get("name") is None
    assert not await cache.exists("name")

    await cache.set("name", 2, ttl=0.5)
    assert 2 == await cache.get("name")
    bench.clock.advance(0.5)
    assert await cache.get("name") is None


@over_all
@pytest.mark.parametrize("ttl", [None, 0])
async def test_without_a_ttl_it_stays(bench: Bench, ttl: int | None) -> None:
    """None and 0 are no ttl at all."""
    cache = await bench.open()
    await cache.set("name", 1, ttl=ttl)
    bench.clock.advance(10 * 365 * 24 * 3600)

    assert 1 == await cache.get("name")


@over_all
async def test_a_negative_ttl_is_refused(bench: Bench) -> None:
    """It would mean a value that was never there."""
    cache = await bench.open()

    with pytest.raises(ValueError, match="negative"):
        await cache.set("name", 1, ttl=-1)


@over_all
async def test_expire_says_anew_how_long(bench: Bench) -> None:
    """`expire` sets the ttl of what is there, 0 takes it away, and what is not there stays away."""
    cache = await bench.open()
    assert not await cache.expire("name", 10)
    await cache.set("name", 1, ttl=10)

    assert await cache.expire("name", 20)
    bench.clock.advance(19)
    assert 1 == await cache.get("name")
    assert await cache.expire("name", 0)
    bench.clock.advance(1000)
    assert 1 == await cache.get("name")
    assert await cache.expire("name", 1)
    bench.clock.advance(1)
    assert await cache.get("name") is None


@over_all
async def test_add_only_creates(bench: Bench) -> None:
    """`add` raises ValueError for a name that has a live value, whose value stays."""
    cache = await bench.open()
    await cache.add("name", 1, ttl=10)

    with pytest.raises(ValueError, match="already"):
        await cache.add("name", 2)
    assert 1 == await cache.get("name")

    bench.clock.advance(10)
    await cache.add("name", 3)
    await cache.delete("name")
    await cache.add("name", 4)
    assert 4 == await cache.get("name")


@over_all
async def test_increment_counts(bench: Bench) -> None:
    """It begins at the delta, keeps the ttl, loses no count to concurrency, and refuses what is no number."""
    cache = await bench.open()
    assert 5 == await cache.increment("count", 5)
    assert 3 == await cache.increment("count", -2)

    await asyncio.gather(*(cache.increment("count") for _ in range(20)))
    assert 23 == await cache.get("count")

    await cache.expire("count", 10)
    await cache.increment("count")
    bench.clock.advance(10)
    assert await cache.get("count") is None

    for value in ("text", True, 1.5, [1]):
        await cache.set("other", value)
        with pytest.raises(TypeError):
            await cache.increment("other")


@over_all
async def test_clear_empties_one_namespace(bench: Bench) -> None:
    """Everything in it is gone, also large values and replaced ones; other namespaces keep theirs."""
    cache = await bench.open(namespace="mine")
    for value in (_SMALL, _LARGE, _HUGE, _LARGE + b"2"):
        await cache.set("name", value)
        await cache.set(repr(value[:1]), value)
    await cache.set("name", _LARGE, namespace="other")

    assert await cache.clear()

    assert [None] * 4 == await cache.multi_get(["name", *(repr(value[:1]) for value in (_SMALL, _LARGE, _HUGE))])
    assert _LARGE == await cache.get("name", namespace="other")
    assert await cache.clear(namespace="other")
    assert await cache.get("name", namespace="other") is None
    if bench.redis is not None:
        assert [] == await bench.names()


@over_all
@pytest.mark.parametrize("serializer", [JsonSerializer, StringSerializer])
async def test_serializers_of_aiocache_work(bench: Bench, serializer: type[Any]) -> None:
    """Those that make text get text back; counting works with them too."""
    cache = await bench.open(serializer=serializer())
    await cache.set("name", "gräßlich")

    assert "gräßlich" == await cache.get("name")
    assert 2 == await cache.increment("count", 2)
    assert 5 == await cache.increment("count", 3)
    assert 5 == int(await cache.get("count"))


@over_all
async def test_pickle_is_refused(bench: Bench) -> None:
    """Whoever can write to the store could run code here."""
    with pytest.raises(ValueError, match="pickle"):
        await bench.open(serializer=PickleSerializer())


@over_all
async def test_what_another_serializer_wrote_is_a_miss(bench: Bench) -> None:
    """The default one does not stumble over it."""
    cache = await bench.open()
    ours, cache.serializer = cache.serializer, StringSerializer()
    await cache.set("name", "\ud7ff no msgpack")
    cache.serializer = ours

    assert await cache.get("name") is None


@over_all
async def test_there_is_no_timeout_by_default(bench: Bench) -> None:
    """Every tier has its own budget; a second one around it would cost more than the lookup."""
    cache = await bench.open()

    assert 0 == cache.timeout
    assert isinstance(cache, BaseCache)


# aiocache's plugins, decorators and locks.


@over_all
async def test_plugins_see_everything(bench: Bench) -> None:
    """Hit ratio and timings are kept."""
    cache = await bench.open(plugins=[HitMissRatioPlugin(), TimingPlugin()])
    await cache.set("name", 1)
    await cache.get("name")
    await cache.get("none")
    await cache.multi_get(["name", "none"])

    assert {"total": 4, "hits": 2, "hit_ratio": 0.5} == cache.hit_miss_ratio
    assert 2 == cache.profiling["get_total"]
    assert 1 == cache.profiling["set_total"]


@over_all
async def test_a_cached_function_runs_once(bench: Bench) -> None:
    """`@cached` answers equal calls from the cache, for as long as its ttl says."""
    calls: list[int] = []

    async def square(number: int) -> int:
        calls.append(number)
        return number * number

    decorator = cached(ttl=10, cache=MemoryCache)
    remembered = decorator(square)
    decorator.cache = await bench.open()

    assert [9, 9, 16] == [await remembered(3), await remembered(3), await remembered(4)]
    assert [3, 4] == calls
    bench.clock.advance(10)
    assert 9 == await remembered(3)
    assert [3, 4, 3] == calls


async def test_cached_makes_its_own(tmp_path: Path) -> None:
    """The classes can be given to `@cached`, with what they need."""
    async with running(Clock(), L3Settings(url=f"file://{tmp_path}", stall=5)) as tiers:
        for options in ({"cache": MemoryCache}, {"cache": TieredCache, "tiers": tiers, "secret": SECRET}):
            calls: list[int] = []

            @cached(namespace="squares", **options)  # type: ignore[untyped-decorator]
            async def square(number: int, calls: list[int] = calls) -> int:
                calls.append(number)
                return number * number

            assert [9, 9] == [await square(3), await square(3)]
            assert [3] == calls


@over_all
async def test_multi_cached_asks_for_what_is_missing(bench: Bench) -> None:
    """`@multi_cached` computes only what the cache has not."""
    calls: list[int] = []

    async def squares(numbers: list[int]) -> dict[int, int]:
        calls.extend(numbers)
        return {number: number * number for number in numbers}

    decorator = multi_cached("numbers", cache=MemoryCache)
    remembered = decorator(squares)
    decorator.cache = await bench.open()

    assert {1: 1, 2: 4} == await remembered(numbers=[1, 2])
    assert {2: 4, 3: 9} == await remembered(numbers=[2, 3])
    assert [1, 2, 3] == calls


@over_all
async def test_a_stampede_runs_once(bench: Bench) -> None:
    """`@cached_stampede` lets one caller of a process through."""
    calls: list[int] = []

    async def square(number: int) -> int:
        calls.append(number)
        return number * number

    decorator = cached_stampede(lease=60, cache=MemoryCache)
    remembered = decorator(square)
    decorator.cache = await bench.open()

    assert [9] * 10 == await asyncio.gather(*(remembered(3) for _ in range(10)))
    assert [3] == calls


@over_all
async def test_a_changed_value_fails_compare_and_set(bench: Bench) -> None:
    """aiocache's optimistic lock notices a change in between, and only then."""
    cache = await bench.open()
    await cache.set("name", "before")

    async with OptimisticLock(cache, "name") as lock:
        await lock.cas("after")
    assert "after" == await cache.get("name")

    async with OptimisticLock(cache, "name") as lock:
        await cache.set("name", "meanwhile")
        with pytest.raises(OptimisticLockError):
            await lock.cas("too late")
    assert "meanwhile" == await cache.get("name")


# Only where there are shared tiers.


@over_tiered
@pytest.mark.parametrize("value", [_SMALL, _LARGE, _HUGE], ids=["small", "large", "huge"])
async def test_values_survive_the_process(bench: Bench, value: bytes) -> None:
    """Another process finds them, also when Redis has forgotten everything."""
    await (await bench.open()).set("name", value)

    assert value == await (await bench.open()).get("name")
    assert bench.redis is not None
    await bench.redis.flushall()
    assert value == await (await bench.open()).get("name")


@over_tiered
@pytest.mark.parametrize("value", [_SMALL, _LARGE], ids=["small", "large"])
async def test_redis_learns_what_was_read(bench: Bench, value: bytes) -> None:
    """A value found in the durable tier is in Redis afterwards."""
    assert bench.redis is not None
    await (await bench.open()).set("name", value)
    await bench.redis.flushall()
    await (await bench.open()).get("name")

    assert await bench.redis.dbsize()


@over_tiered
async def test_names_can_be_read_nowhere(bench: Bench) -> None:
    """Neither a name nor a namespace is in the names or the bytes of any entry; and a guess needs the secret."""
    cache = await bench.open(namespace="confidential-space")
    await cache.set("the name of somebody", _SMALL)
    await cache.set("the name of somebody else", _LARGE)

    contents = await bench.contents()

    assert _SMALL in contents
    assert b"somebody" not in contents
    assert b"confidential" not in contents
    stranger = await bench.open(namespace="confidential-space", secret=bytes(32))
    assert await stranger.get("the name of somebody") is None


@over_tiered
@pytest.mark.parametrize("value", [_SMALL, _LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"something else",
    ],
    ids=["flipped", "truncated", "empty", "foreign"],
)
async def test_damaged_entries_are_misses(bench: Bench, value: bytes, change: Callable[[bytes], bytes]) -> None:
    """What is not as it was stored is not served; storing it again heals it, by `set` and by `add`."""
    for heal in ("set", "add"):
        await (await bench.open()).set("name", value)
        await bench.damage(change)
        cache = await bench.open()

        assert await cache.get("name") is None
        await getattr(cache, heal)("name", value)
        assert bench.redis is not None
        await bench.redis.flushall()
        assert value == await (await bench.open()).get("name")
        await cache.delete("name")


@over_tiered
async def test_the_durable_tier_forgets_too(bench: Bench) -> None:
    """Nothing removes an expired value from it, and nobody gets it."""
    await (await bench.open()).set("name", _LARGE, ttl=10)
    assert bench.redis is not None
    await bench.redis.flushall()
    bench.clock.advance(10)

    cache = await bench.open()
    assert await cache.get("name") is None
    assert not await cache.exists("name")
    assert not await cache.expire("name", 10)


@over_tiered
@pytest.mark.parametrize("value", [_SMALL, _LARGE], ids=["small", "large"])
async def test_others_see_a_change_in_time(bench: Bench, value: bytes) -> None:
    """A process believes its own copy for `memory_seconds`, and then sees what another one has done."""
    here, there = await bench.open(memory_seconds=5), await bench.open(memory_seconds=5)
    await here.set("name", value)
    assert value == await there.get("name")

    await here.set("name", "new")
    assert "new" == await here.get("name")
    assert value == await there.get("name")
    bench.clock.advance(5)
    assert "new" == await there.get("name")

    await here.delete("name")
    bench.clock.advance(5)
    assert await there.get("name") is None


@over_tiered
async def test_a_replaced_value_is_nowhere(bench: Bench) -> None:
    """After `set` every tier has the new one."""
    cache = await bench.open()
    await cache.set("name", _LARGE)
    await cache.set("name", "new")

    assert "new" == await (await bench.open()).get("name")
    assert bench.redis is not None
    await bench.redis.flushall()
    assert "new" == await (await bench.open()).get("name")


@over_tiered
async def test_one_of_many_processes_adds(bench: Bench) -> None:
    """Of those that add one name at the same time, exactly one does, and its value is the one that all find."""
    caches = [await bench.open() for _ in range(4)]

    answers = await asyncio.gather(
        *(cache.add("name", number) for number, cache in enumerate(caches)), return_exceptions=True
    )

    assert 1 == answers.count(True)
    assert 3 == sum(isinstance(answer, ValueError) for answer in answers)
    assert bench.redis is not None
    winner = answers.index(True)
    assert winner == await (await bench.open()).get("name")
    await bench.redis.flushall()
    assert winner == await (await bench.open()).get("name")


@over_folder
async def test_deleting_leaves_nothing(bench: Bench) -> None:
    """A deleted value is in no tier, whatever was promoted before."""
    for value in (_SMALL, _LARGE):
        await (await bench.open()).set("name", value)
        assert bench.redis is not None
        await bench.redis.flushall()
        cache = await bench.open()
        await cache.get("name")
        await cache.delete("name")

        assert [] == await bench.names()


async def test_without_redis_reads_go_on(tmp_path: Path) -> None:
    """A Redis that is gone costs no value: reads come from the folder, and `set` says that Redis was not told."""
    clock, l3 = Clock(), L3Settings(url=f"file://{tmp_path}", stall=5)
    async with running(clock, l3) as tiers:
        await TieredCache(tiers, secret=SECRET, clock=clock).set("name", 1)

    async with running(clock, l3, f"redis://127.0.0.1:{free_port()}/0") as tiers:
        cache = TieredCache(tiers, secret=SECRET, clock=clock)
        assert 1 == await cache.get("name")
        for change in (cache.set("name", 2), cache.delete("other"), cache.clear()):
            with pytest.raises(TierError):
                await change


async def test_a_durable_tier_is_needed(redis_url: str) -> None:
    """What cannot be listed cannot be cleared, so Redis alone is refused."""
    async with running(Clock(), L3Settings(enabled=False), redis_url) as tiers:
        with pytest.raises(ValueError, match="folder"):
            TieredCache(tiers, secret=SECRET)


async def test_many_ask_once() -> None:
    """However many ask for one name at the same time, the tiers are asked once; one who leaves takes nobody down."""
    l3 = ScriptedTier(TierName.L3)
    tiers, l2 = scripted(Clock(), l3)
    cache = TieredCache(tiers, secret=SECRET)
    gets = [asyncio.create_task(cache.get("name")) for _ in range(100)]
    await asyncio.sleep(0)
    gets[0].cancel()

    answers = await asyncio.gather(*gets, return_exceptions=True)

    assert [None] * 99 == answers[1:]
    assert (1, 1) == (len(l2.gets), len(l3.gets))


async def test_a_change_is_made_to_the_end() -> None:
    """A caller that leaves in the middle of a `set` leaves no tier with the old value."""
    l3 = ScriptedTier(TierName.L3)
    tiers, l2 = scripted(Clock(), l3)
    cache = TieredCache(tiers, secret=SECRET)
    await cache.set("name", "old")
    before = dict(l2.entries)

    l3.open = asyncio.Event()
    change = asyncio.create_task(cache.set("name", "new"))
    await wait_all_tasks_blocked()
    change.cancel()
    await asyncio.gather(change, return_exceptions=True)
    assert before == l2.entries
    l3.open.set()
    await cache.close()

    assert before != l2.entries
    assert l2.entries == l3.entries
    assert "new" == await cache.get("name")


class SlowTier(ScriptedTier):
    """Has looked, and answers when it is told to."""

    def __init__(self, name: TierName) -> None:
        super().__init__(name)
        self.answers = asyncio.Event()

    async def get(self, key: Key, ttl: float | None) -> Lookup:
        lookup = await super().get(key, ttl)
        await self.answers.wait()
        return lookup


async def test_reading_does_not_undo_a_change() -> None:
    """A `set` that begins while the old value is being read has the last word, in memory too."""
    l3 = SlowTier(TierName.L3)
    tiers, l2 = scripted(Clock(), l3)
    await TieredCache(tiers, secret=SECRET).set("name", "old")
    l2.entries.clear()
    tiers.memory.entries.clear()
    cache = TieredCache(tiers, secret=SECRET)

    read = asyncio.create_task(cache.get("name"))
    await wait_all_tasks_blocked()
    change = asyncio.create_task(cache.set("name", "new"))
    await wait_all_tasks_blocked()
    l3.answers.set()
    await asyncio.gather(read, change)

    assert "old" == read.result()
    assert "new" == await cache.get("name")
    assert l2.entries == l3.entries


async def test_a_failing_redis_hides_no_change() -> None:
    """`set` says that Redis was not told; what is read here is the new value, from the tier that has it."""
    tiers, l2 = scripted(Clock(), ScriptedTier(TierName.L3))
    cache = TieredCache(tiers, secret=SECRET)
    await cache.set("name", "old")
    l2.fault = Outcome.ERROR

    with pytest.raises(TierError):
        await cache.set("name", "new")
    assert "new" == await cache.get("name")


async def test_a_failing_durable_tier_is_said() -> None:
    """Nothing is set when it cannot be kept; and no tier keeps a copy of it."""
    l3 = ScriptedTier(TierName.L3)
    tiers, l2 = scripted(Clock(), l3)
    cache = TieredCache(tiers, secret=SECRET)
    l3.failing_puts = 1

    with pytest.raises(TierError):
        await cache.set("name", 1)
    assert {} == l2.entries
    assert await cache.get("name") is None


# Only L1.


async def test_memory_is_bounded() -> None:
    """However much is set, no more than its bytes are held, by values or by names; what can never fit is not kept."""
    memory = MemoryTier(max_bytes=100_000)
    cache = MemoryCache(memory)

    for number in range(2000):
        await cache.set(number, bytes(1000))

    assert memory.entries.bytes <= 100_000
    assert len(cache._copies._addresses) <= 2 * len(memory.entries) + 64
    assert await cache.get(1999) is not None
    assert await cache.get(0) is None
    assert not await cache.set("too large", bytes(100_000))


async def test_caches_of_one_memory_do_not_meet() -> None:
    """They share its bytes and nothing else."""
    memory = MemoryTier(max_bytes=100_000)
    first, second = MemoryCache(memory), MemoryCache(memory)
    await first.set("name", 1)

    assert await second.get("name") is None
    await second.clear()
    assert 1 == await first.get("name")
