"""The cache by itself: get, set, invalidate by condition, over memory, Redis, a folder and S3."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from cache.alone import Cache
from cache.bridge import Closed
from cache.errors import TierError
from cache.settings import CacheSettings, L1Settings, L2Settings, L3Settings
from cache.sweep import Gone
from cache.switches import Subject, Switch
from cache.tier import TierName
from gateway.stack import Stack
from tests import servers
from tests.cache.helpers import SECRET
from tests.servers import S3

_SMALL, _LARGE, _HUGE = b"small", b"l" * (100 * 1024), b"h" * (2 * 1024 * 1024)  # inlined; a blob; a blob not for Redis
L1, L2, L3 = TierName.L1, TierName.L2, TierName.L3

Opener = Callable[[], Cache]


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> CacheSettings:
    if request.param == "memory":
        l3 = L3Settings(enabled=False)
    elif request.param == "s3":
        s3: S3 = request.getfixturevalue("s3")
        l3 = L3Settings(
            url=f"s3://{s3.bucket}/{s3.prefix}",
            endpoint=s3.endpoint,
            region=s3.region,
            access_key=s3.access_key,
            secret_key=SecretStr(s3.secret_key),
            stall=5,
        )
    else:
        l3 = L3Settings(url=f"file://{tmp_path}", stall=5)
    redis = request.param in ("redis", "s3")
    return CacheSettings(
        secret=SecretStr(SECRET.hex()),
        l1=L1Settings(max_entries=1000),
        l2=L2Settings(enabled=redis, url=SecretStr(request.getfixturevalue("redis_url") if redis else ""), budget=2),
        l3=l3,
    )


@pytest.fixture
def opened(settings: CacheSettings) -> Iterator[Opener]:
    """Opens a cache as another process would: with a memory of its own over the same stores."""
    caches: list[Cache] = []

    def open_another() -> Cache:
        caches.append(Cache(settings))
        return caches[-1]

    yield open_another
    for cache in caches:
        cache.close()


over_all = pytest.mark.parametrize("settings", ["memory", "folder", "redis", "s3"], indirect=True)
over_stores = pytest.mark.parametrize("settings", ["folder", "redis", "s3"], indirect=True)
over_folder = pytest.mark.parametrize("settings", ["folder"], indirect=True)
over_memory = pytest.mark.parametrize("settings", ["memory"], indirect=True)
over_redis = pytest.mark.parametrize("settings", ["redis"], indirect=True)


@over_all
@pytest.mark.parametrize("data", [_SMALL, _LARGE, _HUGE, b""], ids=["small", "large", "huge", "empty"])
def test_what_was_set_is_there(opened: Opener, data: bytes) -> None:
    """At once, and nothing else is."""
    cache = opened()
    assert cache.get(["key", 1]) is None
    assert cache.set(["key", 1], data)

    assert data == cache.get(["key", 1])
    assert cache.get(["key", 1.0]) is None
    assert cache.get(["key", True]) is None


@over_stores
@pytest.mark.parametrize("data", [_SMALL, _LARGE, _HUGE], ids=["small", "large", "huge"])
def test_entries_survive_the_process(opened: Opener, data: bytes) -> None:
    """Another process finds what was set before the first one closed; what was stored first stays."""
    with opened() as first:
        first.set("key", data)
        first.flush()
        first.set("key", b"another")
    second = opened()

    assert data == second.get("key")


@over_folder
def test_damaged_entries_are_misses(opened: Opener, tmp_path: Path) -> None:
    """They are not served, and setting them again heals them."""
    for change in (lambda data: data[:-1], lambda data: b"", lambda data: data[:60] + b"x" + data[61:]):
        for data, kind in ((_SMALL, "r"), (_LARGE, "r"), (_LARGE, "b")):
            with opened() as cache:
                cache.set("key", data)
            for file in _files(tmp_path / kind):
                file.write_bytes(change(file.read_bytes()))
            with opened() as cache:
                assert cache.get("key") is None
                cache.set("key", data)
            with opened() as cache:
                assert data == cache.get("key")
                cache.invalidate(older_than=0)


@over_all
@pytest.mark.parametrize(
    ("condition", "left"),
    [
        ({"model": "m1"}, ["c", "d"]),
        ({"stage": "s1"}, ["b", "d"]),
        ({"revision": "r1"}, ["b", "c", "d"]),
        ({"tag": "spring"}, ["a", "d"]),
        ({"model": "m1", "tag": "spring"}, ["a", "c", "d"]),
        ({"digest": "up"}, ["a", "b", "c"]),
        ({"where": lambda record: record.device_seconds > 2}, ["a", "b"]),
        ({"older_than": 0}, []),
        ({"older_than": 3600}, ["a", "b", "c", "d"]),
        ({"model": "none"}, ["a", "b", "c", "d"]),
    ],
    ids=range(10),
)
def test_invalidation_is_by_condition(opened: Opener, condition: dict[str, object], left: list[str]) -> None:
    """Exactly the entries go for which all that is said holds, for this process and for the next."""
    cache = opened()
    cache.set("a", b"a", model="m1", revision="r1", stage="s1", seconds=1)
    cache.set("b", b"b", model="m1", revision="r2", stage="s2", seconds=2, tags=("spring", "draft"))
    cache.set("c", b"c", model="m2", stage="s1", seconds=3, tags=("spring",))
    cache.set("d", _LARGE, model="m2", stage="s2", seconds=4, upstream={"picture": "up"})

    receipt = cache.invalidate(**condition)  # type: ignore[arg-type]

    assert 4 - len(left) == receipt.outputs
    assert frozenset() == receipt.unreached
    assert left == [key for key in "abcd" if cache.get(key) is not None]
    if cache.tiers.objects is not None:
        other = opened()
        assert left == [key for key in "abcd" if other.get(key) is not None]


@over_all
def test_invalidation_wants_a_condition(opened: Opener) -> None:
    """Nothing said is a slip, and not everything."""
    with pytest.raises(ValueError, match="older_than=0"):
        opened().invalidate()


@over_all
@pytest.mark.parametrize("data", [_SMALL, _LARGE], ids=["small", "large"])
def test_an_output_is_invalidated_by_its_digest(opened: Opener, data: bytes) -> None:
    """Whoever has the bytes can have them forgotten."""
    cache = opened()
    cache.set("key", data)
    cache.set("other", b"other")

    assert 1 == cache.invalidate(where=lambda record: record.output.digest.names(data)).outputs
    assert cache.get("key") is None
    assert b"other" == cache.get("other")


@over_redis
def test_the_receipt_counts_by_tier(opened: Opener, tmp_path: Path, redis_url: str) -> None:
    """Entries and bytes, where they were: the huge blob in no Redis, what another process set in no memory here."""
    with opened() as other:
        other.set("huge", _HUGE, tags=("x",))
    cache = opened()
    cache.set("large", _LARGE, tags=("x",))
    cache.set("kept", _LARGE + b"!")
    cache.flush()
    stored = sum(file.stat().st_size - 48 for file in _files(tmp_path))

    receipt = cache.invalidate(tag="x")

    kept = sum(file.stat().st_size - 48 for file in _files(tmp_path))
    assert 2 == receipt.outputs
    assert Gone(4, stored - kept) == receipt.tiers[L3]
    assert 3 == receipt.tiers[L2].entries
    assert len(_HUGE) > receipt.tiers[L2].bytes > len(_LARGE)
    assert 2 == receipt.tiers[L1].entries
    with Redis.from_url(redis_url) as redis:
        assert 2 == redis.dbsize()


@over_stores
def test_what_others_need_stays(opened: Opener) -> None:
    """A blob that two entries share goes with the second of them."""
    cache = opened()
    cache.set("a", _LARGE, tags=("a",))
    cache.set("b", _LARGE, tags=("b",))

    assert 1 == cache.invalidate(tag="a").tiers[L3].entries
    assert _LARGE == opened().get("b")
    assert 2 == cache.invalidate(tag="b").tiers[L3].entries


@over_folder
def test_nothing_is_left_behind(opened: Opener, tmp_path: Path) -> None:
    """After everything was invalidated the folder holds no file."""
    cache = opened()
    for number, data in enumerate((_SMALL, _LARGE, _HUGE)):
        cache.set(number, data)

    assert 3 == cache.invalidate(older_than=0).outputs
    assert [] == _files(tmp_path)


@over_folder
def test_namespaces_do_not_meet(settings: CacheSettings, tmp_path: Path) -> None:
    """Neither when looking up nor when invalidating."""
    with Cache(settings, namespace="a") as one, Cache(settings, namespace="b") as other:
        one.set("key", b"one")
        assert other.get("key") is None
        assert 0 == other.invalidate(older_than=0).outputs
        assert b"one" == one.get("key")


@over_folder
def test_keys_can_be_read_nowhere(opened: Opener, tmp_path: Path) -> None:
    """A key is in no name and no byte of what is stored."""
    with opened() as cache:
        cache.set("a secret prompt", _SMALL)
        cache.set("another secret prompt", _LARGE)

    assert 3 == len(_files(tmp_path))
    for file in _files(tmp_path):
        assert "prompt" not in str(file.relative_to(tmp_path))
        assert b"prompt" not in file.read_bytes()


def test_a_redis_that_was_not_told_is_named(tmp_path: Path, breakable_redis: Stack) -> None:
    """The receipt says that something may still be served from it; everything else is told."""
    settings = CacheSettings(
        secret=SecretStr(SECRET.hex()),
        l2=L2Settings(url=SecretStr(servers.redis_url(breakable_redis)), budget=1),
        l3=L3Settings(url=f"file://{tmp_path}", stall=5),
    )
    with Cache(settings) as cache:
        cache.set("key", _SMALL)
        cache.flush()
        breakable_redis.part("redis").kill()

        receipt = cache.invalidate(older_than=0)

        assert frozenset({L2}) == receipt.unreached
        assert {L1: 1, L3: 1} == {tier: gone.entries for tier, gone in receipt.tiers.items()}
        assert cache.get("key") is None


def test_a_store_that_cannot_be_read_is_an_error(breakable_objects: Stack) -> None:
    """Nothing is claimed to be gone; lookups are misses and `set` still serves this process."""
    bucket = servers.bucket(breakable_objects)
    settings = CacheSettings(
        secret=SecretStr(SECRET.hex()),
        l2=L2Settings(enabled=False),
        l3=L3Settings(
            url=f"s3://{bucket.bucket}",
            endpoint=bucket.endpoint,
            access_key=bucket.access_key,
            secret_key=SecretStr(bucket.secret_key),
        ),
    )
    with Cache(settings) as cache:
        breakable_objects.part("objects").kill()

        assert cache.get("key") is None
        assert cache.set("key", b"data")
        assert b"data" == cache.get("key")
        with pytest.raises(TierError):
            cache.invalidate(older_than=0)


def test_redis_alone_is_refused(redis_url: str) -> None:
    """What cannot be listed cannot be invalidated."""
    with pytest.raises(ValueError, match="beneath"):
        Cache.open(redis=redis_url)


@over_redis
@pytest.mark.parametrize("data", [_SMALL, _LARGE], ids=["small", "large"])
@pytest.mark.parametrize("whose", ["its own", "another one's"])
def test_what_the_store_did_not_take_is_stored_when_it_is_used(opened: Opener, data: bytes, whose: str) -> None:
    """It lay in Redis and in memory alone; then a process that has neither finds it."""
    first = opened()
    first.tiers.switches.turn(Switch(1.0, Subject.TIER, L3.value, on=False))
    first.set("key", data)
    first.flush()
    first.tiers.switches.turn(Switch(2.0, Subject.TIER, L3.value, on=True))
    user = first if whose == "its own" else opened()

    assert data == user.get("key")
    user.flush()

    other = opened()
    other.tiers.switches.turn(Switch(3.0, Subject.TIER, L2.value, on=False))
    assert data == other.get("key")
    assert {} == user._own


@over_memory
def test_memory_knows_only_what_it_holds(opened: Opener) -> None:
    """Without stores invalidation is over what is in memory, and remembers no more than that."""
    cache = opened()
    for number in range(3000):
        cache.set(number, bytes(10), tags=("x",))

    assert len(cache._own) <= 2 * 1000 + 64
    assert 1000 == cache.invalidate(tag="x").outputs
    assert 0 == cache.invalidate(tag="x").outputs
    assert cache.get(2999) is None


@over_redis
def test_threads_share_a_cache(opened: Opener) -> None:
    """Each of many threads finds what it set and what others did."""
    cache, failures = opened(), list[int]()

    def work(number: int) -> None:
        for step in range(20):
            cache.set(["own", number, step], b"%d" % number)
            cache.set(["shared", step], b"%d" % step)
            if cache.get(["own", number, step]) != b"%d" % number or cache.get(["shared", step]) != b"%d" % step:
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [] == failures
    assert 180 == cache.invalidate(older_than=0).outputs


@over_folder
def test_a_closed_cache_says_so(opened: Opener) -> None:
    """Closing twice is closing once; afterwards every call raises Closed."""
    cache = opened()
    cache.close()
    cache.close()

    for call in (lambda: cache.get("key"), lambda: cache.set("key", b""), lambda: cache.invalidate(older_than=0)):
        with pytest.raises(Closed):
            call()


def test_who_forgets_to_close_loses_nothing(tmp_path: Path) -> None:
    """Everything set is stored when the interpreter ends."""
    subprocess.run([sys.executable, "-c", _FORGETFUL, str(tmp_path)], check=True, timeout=60)

    with Cache.open(tmp_path) as cache:
        assert b"data" == cache.get("key")


_FORGETFUL = """
import asyncio, sys
from cache.alone import Cache
from cache.objects import ObjectsStore

put = ObjectsStore.put

async def put_slowly(*arguments, **options):
    await asyncio.sleep(0.5)
    return await put(*arguments, **options)

ObjectsStore.put = put_slowly
Cache.open(sys.argv[1]).set("key", b"data")
"""


def test_a_folder_keeps_its_secret(tmp_path: Path) -> None:
    """Drawn once, by whichever of many is first; only its owner can read it, and without it nothing is found."""
    with ThreadPoolExecutor(8) as threads:
        caches = list(threads.map(lambda _: Cache.open(tmp_path), range(8)))
    caches[0].set("key", b"data")
    caches[0].flush()
    assert [b"data"] * 8 == [cache.get("key") for cache in caches]
    for cache in caches:
        cache.close()

    assert [".secret", "r"] == sorted(path.name for path in tmp_path.iterdir())
    assert 0o600 == (tmp_path / ".secret").stat().st_mode & 0o777
    with Cache.open(tmp_path, secret="1" * 64) as stranger:
        assert stranger.get("key") is None


def test_a_shared_store_wants_a_secret() -> None:
    """One that everybody knows would hide nothing."""
    with pytest.raises(ValueError, match="secret"):
        Cache.open("s3://bucket")


def test_a_folder_can_be_said_in_three_ways(tmp_path: Path) -> None:
    """As a path, as text, and as a URL."""
    for place in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        with Cache.open(place) as cache:
            cache.set(str(type(place)), b"data")
            cache.flush()
    with Cache.open(tmp_path) as cache:
        assert 2 == cache.invalidate(older_than=0).outputs


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
