"""Redis: what the driver makes of its library, against real servers."""

import asyncio
import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions
import uvloop
from anyio import wait_all_tasks_blocked
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from cache.errors import TierError, TierTimeout, TierUnwritable
from cache.guard import Breaker, GuardedStore
from cache.redis import MAX_PAYLOAD, RedisStore
from cache.redis_client import translated
from gateway.stack import Stack
from gateway.stack.parts import Part, await_ready, end, launch, wait_until
from gateway.stack.ports import LOOPBACK, free_port
from gateway.stack.ready import CHECKS
from gateway.stack.redis import command, find_server, flush
from gateway.stack.redis import redis as redis_part
from tests import servers

_NOT_OF_A_SERVER = {"ChildDeadlockedError", "IncorrectPolicyType"}  # of forks, and of a search module's client
_EXCEPTIONS = [
    kind
    for name, kind in inspect.getmembers(redis.exceptions, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__ == "redis.exceptions" and name not in _NOT_OF_A_SERVER
]


class _Failing:
    """A client every command of which raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def unlink(self, name: str) -> None:
        raise self._error


@pytest.mark.parametrize("kind", _EXCEPTIONS, ids=lambda kind: kind.__name__)
async def test_every_error_of_the_library_is_translated(kind: type[Exception]) -> None:
    """Whatever redis-py raises about a server becomes TierError, and TierTimeout where it is about time."""
    moved = issubclass(kind, redis.exceptions.AskError)
    error = kind("1234 127.0.0.1:6379") if moved else kind("secret detail")

    with pytest.raises(TierError) as caught:
        await RedisStore(_Failing(error), connections=1).delete("a")

    assert issubclass(kind, redis.exceptions.TimeoutError) == isinstance(caught.value, TierTimeout)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(TimeoutError(), TierTimeout), (ConnectionResetError(), TierError), (OSError("no route"), TierError)],
    ids=repr,
)
async def test_errors_of_the_socket_are_translated(error: Exception, expected: type[Exception]) -> None:
    """What the operating system says of the connection is a failure of the tier too."""
    with pytest.raises(expected):
        await RedisStore(_Failing(error), connections=1).delete("a")


def test_a_connection_that_ends_while_it_is_written_to_is_a_failure_of_the_tier() -> None:
    """On uvloop, which our processes run on, that is a RuntimeError; here a server ends it in the worst moment."""

    async def write_to_what_is_closed() -> None:
        async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_server(end, LOOPBACK, 0) as server:
            address, port = server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(address, port)
            await reader.read()
            writer.transport.abort()
            await asyncio.sleep(0)

            async def command() -> None:
                writer.writelines([b"PING"])

            await translated(command())

    with pytest.raises(TierError):
        uvloop.run(write_to_what_is_closed())


@pytest.mark.parametrize("bug", [KeyError("a"), RuntimeError("dictionary changed size during iteration")], ids=repr)
async def test_bugs_are_not_taken_for_failures_of_the_server(bug: Exception) -> None:
    """An error that is about our code passes as it is."""
    with pytest.raises(type(bug)):
        await RedisStore(_Failing(bug), connections=1).delete("a")


async def test_what_the_server_refuses_is_an_error(redis_url: str) -> None:
    """An entry of another type under our name is the server's error, not ours."""
    store = RedisStore.connect(redis_url, budget=10.0, connections=2)
    async with Redis.from_url(redis_url) as raw:
        await raw.rpush("a", "not ours")

    with pytest.raises(TierError, match="ResponseError"):
        await store.get("a", 1)
    with pytest.raises(TierError, match="ResponseError"):
        await store.get_many(["b", "a"], 1)
    await store.aclose()


@pytest.mark.parametrize("full", ["disk", "memory"])
async def test_a_server_that_takes_no_writes_is_read(breakable_redis: Stack, full: str) -> None:
    """With its disk or its memory full Redis refuses writes and says so, and what it has can still be had."""
    store = RedisStore.connect(servers.redis_url(breakable_redis), budget=10.0, connections=2)
    await store.put("a", b"one", 60.0, replace=False)
    part = breakable_redis.part("redis").part
    if full == "disk":
        await asyncio.to_thread(_lose_the_disk, part)
    else:
        await asyncio.to_thread(command, part.port, "CONFIG", "SET", "maxmemory-policy", "noeviction")
        await asyncio.to_thread(command, part.port, "CONFIG", "SET", "maxmemory", "1")

    for write in (store.put("a", b"two", 60.0, replace=True), store.push("rows", b"row", 4, 60.0)):
        with pytest.raises(TierUnwritable):
            await write
    assert b"one" == await store.get("a", 60.0) == await store.get("a", None)
    assert [None, b"one"] == await store.get_many(["none", "a"], 60.0)
    await store.aclose()


def _lose_the_disk(part: Part) -> None:
    """Have a snapshot fail, because its folder is gone; Redis takes no more writes then, unless it is told to."""
    assert "+OK" == command(part.port, "CONFIG", "SET", "stop-writes-on-bgsave-error", "yes")
    shutil.rmtree(part.folder)
    command(part.port, "BGSAVE")
    assert wait_until(lambda: command(part.port, "SET", "b", "b").startswith("-MISCONF"), 10.0)


async def test_no_more_connections_are_opened_than_allowed(redis_url: str) -> None:
    """However many callers there are, the server sees the connections it was promised."""
    store = RedisStore.connect(redis_url, budget=10.0, connections=2)

    await asyncio.gather(*(store.get(str(number), 60.0) for number in range(300)))

    async with Redis.from_url(redis_url) as raw:
        assert 2 + 1 == len(await raw.client_list())
    await store.aclose()


async def test_waiting_for_a_connection_is_within_the_budget(redis_url: str) -> None:
    """Who gets no connection within the budget is told so, and takes nobody's place afterwards."""
    store = RedisStore.connect(redis_url, budget=10.0, connections=1)
    guarded = GuardedStore(store, Breaker(), budget=0.05)
    release = asyncio.Event()
    holding = asyncio.create_task(store._ask(lambda client: _held(client, release)))
    await wait_all_tasks_blocked()

    with pytest.raises(TierTimeout):
        await guarded.get("a", 1)

    release.set()
    await holding
    assert await guarded.get("a", 1) is None
    await store.aclose()


async def _held(client: Any, until: asyncio.Event) -> None:
    await until.wait()


async def test_many_at_once_cost_one_round_trip(redis_url: str) -> None:
    """`get_many` is one pipeline, whatever the number of names."""
    store = RedisStore.connect(redis_url, budget=10.0, connections=4)
    names = [str(number) for number in range(500)]
    for name in names[::2]:
        await store.put(name, name.encode(), 60.0, replace=False)

    found = await store.get_many(names, 60.0)

    assert [name.encode() if int(name) % 2 == 0 else None for name in names] == found
    await store.aclose()


async def test_no_command_is_newer_than_redis_6_2(redis_url: str) -> None:
    """Of all that the driver says to a server, everything is known to Redis 6.2."""
    async with Redis.from_url(redis_url) as raw:
        await raw.config_resetstat()
        store = RedisStore.connect(redis_url, budget=10.0, connections=1)
        await store.put("a", b"a", 60.0, replace=False)
        await store.get_many(["a"], 60.0)
        await store.delete("a")
        await store.usage()
        await store.aclose()
        said = {name.removeprefix("cmdstat_") for name in await raw.info("commandstats")}

    assert {"set", "getex", "unlink"} <= said
    assert set() == said - {"set", "getex", "unlink", "info", "hello", "select", "config|resetstat", "client|setinfo"}


async def test_usage_is_that_of_the_whole_server(redis_url: str) -> None:
    """Entries, bytes, capacity and evictions, as the server counts them."""
    store = RedisStore.connect(redis_url, budget=10.0, connections=2)
    before = await store.usage()
    await store.put("a", b"x" * MAX_PAYLOAD, 60.0, replace=False)
    await store.put("b", b"x", 60.0, replace=False)

    usage = await store.usage()

    assert (0, 2) == (before["entries"], usage["entries"])
    assert MAX_PAYLOAD < usage["bytes"] - before["bytes"] < 4 * MAX_PAYLOAD  # its buffers are counted too
    assert 256 * 1024 * 1024 == usage["capacity_bytes"]
    assert 0 == usage["evictions"]
    await store.aclose()


async def test_a_value_of_the_largest_size_wastes_no_memory(redis_url: str) -> None:
    """The largest payload, sealed, stays within the allocator's class of 1 MiB."""
    store = RedisStore.connect(redis_url, budget=10.0, connections=2)
    await store.put("a", b"x" * (MAX_PAYLOAD + 48), 60.0, replace=False)

    async with Redis.from_url(redis_url) as raw:
        assert (await raw.memory_usage("a") or 0) in range(MAX_PAYLOAD, int(1.01 * 1024 * 1024))
    await store.aclose()


@pytest.fixture
def sentinel(redis_url: str, tmp_path: Path) -> Iterator[str]:
    """The address of a sentinel that watches the shared Redis under the name `cache`."""
    port, watched = free_port(), redis_url.removeprefix("redis://").partition("/")[0].replace(":", " ")
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(f"port {port}\nbind {LOOPBACK}\ndir {tmp_path}\nsentinel monitor cache {watched} 1\n")
    line = (str(find_server()), str(configuration), "--sentinel")
    part = Part("sentinel", line, f"{LOOPBACK}:{port}", "redis", tmp_path / "sentinel.log", tmp_path)
    yield from _served(part)


@pytest.fixture(scope="module")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, folder = free_port(), tmp_path_factory.mktemp("cluster")
    part = redis_part(port, folder, folder / "cluster.log")
    options = ("--cluster-enabled", "yes", "--cluster-port", str(port + 10_000))
    clustered = Part(part.name, (*part.command, *options), part.address, part.ready, part.log, part.folder)
    for address in _served(clustered):
        slots = [str(slot) for slot in range(16_384)]
        assert "+OK" == command(port, "CLUSTER", "ADDSLOTS", *slots)
        assert wait_until(lambda: "+OK" == command(port, "SET", "probe", "x", "PX", "1"), 10.0)
        yield address


@pytest.fixture
def cluster(_cluster: str) -> str:
    """The address of a cluster of one node that serves every slot and holds nothing."""
    flush(int(_cluster.rpartition(":")[2]))
    return _cluster


def _served(part: Part) -> Iterator[str]:
    running = launch(part)
    try:
        await_ready(running, CHECKS[part.ready], lambda seconds: None)
        yield part.address
    finally:
        end(running)


async def _serves(store: RedisStore) -> None:
    assert await store.put("a", b"one", 60.0, replace=False)
    assert not await store.put("a", b"two", 60.0, replace=False)
    await store.put("b", b"b", 60.0, replace=False)
    assert [b"one", None, b"b"] == await store.get_many(["a", "none", "b"], 60.0)
    await store.delete("a")
    assert await store.get("a", 60.0) is None
    await store.aclose()


async def test_a_master_is_found_through_a_sentinel(sentinel: str) -> None:
    """`redis+sentinel://` asks the sentinel, the dead ones in the list notwithstanding, and serves."""
    nodes = f"{LOOPBACK}:{free_port()},{sentinel}"

    await _serves(RedisStore.connect(f"redis+sentinel://{nodes}/0?service=cache", budget=10.0, connections=4))


async def test_a_cluster_is_served(cluster: str) -> None:
    """`redis+cluster://` spreads its names over slots, also those of one `get_many`."""
    await _serves(RedisStore.connect(f"redis+cluster://{cluster}", budget=10.0, connections=4))


@pytest.fixture(params=["alone", "sentinel", "cluster"])
def any_url(request: pytest.FixtureRequest) -> str:
    """The address of each kind of deployment."""
    if request.param == "sentinel":
        return f"redis+sentinel://{request.getfixturevalue('sentinel')}/0?service=cache"
    if request.param == "cluster":
        return f"redis+cluster://{request.getfixturevalue('cluster')}"
    url: str = request.getfixturevalue("redis_url")
    return url


async def test_callers_beyond_the_connections_wait(any_url: str) -> None:
    """In every kind of deployment hundreds of callers share two connections, and each gets its answer."""
    store = RedisStore.connect(any_url, budget=10.0, connections=2)
    names = [str(number) for number in range(300)]

    await asyncio.gather(*(store.put(name, name.encode(), 60.0, replace=False) for name in names))

    assert [name.encode() for name in names] == list(await asyncio.gather(*(store.get(name, 60.0) for name in names)))
    await store.aclose()


async def test_connections_that_the_server_closed_are_replaced(any_url: str) -> None:
    """When the server has closed every connection but one, the next commands open others and nobody notices."""
    store = RedisStore.connect(any_url, budget=10.0, connections=4)
    for _ in range(2):
        await asyncio.gather(*(store.get(str(number), 60.0) for number in range(20)))
        assert 0 < await store._ask(_disconnect_all_others)

    assert [None] * 20 == list(await asyncio.gather(*(store.get(str(number), 60.0) for number in range(20))))
    await store.aclose()


async def _disconnect_all_others(client: Any) -> int:
    # All others: the one that asks would be closed after its answer, so at a moment when it may be asked again.
    options = {"target_nodes": RedisCluster.PRIMARIES} if isinstance(client, RedisCluster) else {}
    return int(await client.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes", **options))


@pytest.mark.parametrize("scheme", ["redis://{}/0", "redis+cluster://{}", "redis+sentinel://{}/0?service=cache"])
async def test_nobody_there_is_an_error_of_the_tier(scheme: str) -> None:
    """A server, a sentinel or a cluster that cannot be reached is TierError, whatever the library calls it."""
    store = RedisStore.connect(scheme.format(f"{LOOPBACK}:{free_port()}"), budget=0.5, connections=4)

    with pytest.raises(TierError):
        await store.get("a", 1)
    with pytest.raises(TierError):
        await store.get_many(["a", "b"], 1)
    await store.aclose()
