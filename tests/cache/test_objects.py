"""Objects: what the driver makes of its library, against a real S3 server, a folder, and servers that misbehave."""

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import obstore.exceptions
import pytest
from anyio import wait_all_tasks_blocked
from obstore.store import LocalStore

from cache.errors import TierError, TierTimeout
from cache.guard import Breaker, GuardedStore
from cache.objects import ObjectsStore, _translated
from gateway.stack import Stack
from gateway.stack.ports import LOOPBACK, free_port
from tests import servers
from tests.cache.helpers import pause
from tests.servers import S3

_EXCEPTIONS = [
    kind
    for _, kind in inspect.getmembers(obstore.exceptions, inspect.isclass)
    if issubclass(kind, obstore.exceptions.BaseError)
]


def _s3_store(s3: S3, prefix: str, *, stall: float = 10.0) -> ObjectsStore:
    return ObjectsStore.connect(
        f"s3://{s3.bucket}/{prefix}".rstrip("/"),
        endpoint=s3.endpoint,
        region=s3.region,
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        stall=stall,
    )


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectsStore:
    """A folder and a bucket."""
    if request.param == "folder":
        return ObjectsStore.connect(f"file://{tmp_path / 'objects'}", stall=10.0)
    s3: S3 = request.getfixturevalue("s3")
    return _s3_store(s3, s3.prefix)


async def test_big_blobs_come_back_whole(store: ObjectsStore) -> None:
    """5 MiB arrive in pieces and are the same bytes, alone and among many."""
    data = bytes(range(251)) * (5 * 1024 * 1024 // 251)
    await store.put("b/big", data, 60.0, replace=False)

    assert data == await store.get("b/big", 60.0)
    assert [data, None, data] == await store.get_many(["b/big", "b/none", "b/big"], 60.0)


async def test_names_are_those_under_the_prefix(store: ObjectsStore) -> None:
    """A listing has the whole names of what lies under a prefix, and nothing else."""
    for name in ("models/a", "models/b.c-1", "r/00/x"):
        await store.put(name, b"{}", 60.0, replace=True)

    assert ["models/a", "models/b.c-1"] == sorted(await store.names("models/"))
    assert [] == await store.names("nothing/")


async def test_more_names_than_one_page(store: ObjectsStore) -> None:
    """A listing longer than the store's pages is whole."""
    expected = [f"models/{number:04}" for number in range(1005)]
    await asyncio.gather(*(store.put(name, b"", 60.0, replace=True) for name in expected))

    assert expected == sorted(await store.names("models/"))


async def test_folders_are_the_next_part_of_the_names(store: ObjectsStore) -> None:
    """Each once, and only what has something below it."""
    for name in ("r/a/00/x", "r/a/01/y", "r/b/00/x", "r/c", "b/d/00/x"):
        await store.put(name, b"x", 60.0, replace=True)

    assert ["a", "b"] == sorted(await store.folders("r/"))
    assert [] == await store.folders("o/")


async def test_a_name_is_told_of_without_its_bytes(store: ObjectsStore) -> None:
    """Size and age, by itself and in a listing; writing it again makes it younger."""
    await store.put("r/a/00/x", b"12345", 60.0, replace=True)
    ((entry,),) = [page async for page in store.pages("r/")]
    assert entry == await store.head("r/a/00/x")
    assert ("r/a/00/x", 5) == (entry.name, entry.size)
    assert abs(time.time() - entry.modified) < 60.0

    again = entry
    async with asyncio.timeout(10):
        while again.modified <= entry.modified:  # S3 tells full seconds
            await store.put("r/a/00/x", b"12345", 60.0, replace=True)
            again = await store.head("r/a/00/x") or entry
    assert await store.head("r/a/00/y") is None


async def test_two_prefixes_of_one_bucket_are_two_stores(s3: S3) -> None:
    """What one deployment writes under its prefix, another one does not see; the whole bucket sees both."""
    one, other, whole = (_s3_store(s3, prefix) for prefix in (f"{s3.prefix}/one", f"{s3.prefix}/other", ""))
    await one.put("a", b"one", 60.0, replace=False)

    assert await other.get("a", 60.0) is None
    assert await other.put("a", b"other", 60.0, replace=False)
    assert (b"one", b"other") == (
        await whole.get(f"{s3.prefix}/one/a", 60.0),
        await whole.get(f"{s3.prefix}/other/a", 60.0),
    )
    assert ["a"] == await one.names("")


async def test_what_a_killed_writer_left_is_removed_at_start(tmp_path: Path) -> None:
    """Unfinished files go, in every folder; finished ones, names that look alike and what is being written stay."""
    folder = tmp_path / "b" / "00"
    folder.mkdir(parents=True)
    for name in ("a", "a#1", "b#22", "c#", "d#x", "#e", "f#1"):
        (folder / name).write_bytes(b"x")
        if name != "f#1":
            os.utime(folder / name, (0, 0))

    await asyncio.to_thread(ObjectsStore.connect, f"file://{tmp_path}")

    assert ["#e", "a", "c#", "d#x", "f#1"] == sorted(path.name for path in folder.iterdir())


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    """The first start makes the folder."""
    ObjectsStore.connect(f"file://{tmp_path / 'a' / 'b'}")

    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("kind", _EXCEPTIONS, ids=lambda kind: kind.__name__)
async def test_every_error_of_the_library_is_translated(kind: type[Exception]) -> None:
    """Whatever obstore raises becomes TierError, without the details it may quote."""
    with pytest.raises(TierError) as caught:
        async with _translated(1.0):
            raise kind("secret detail")

    assert kind.__name__ == str(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(TimeoutError(), TierTimeout), (ConnectionError(), TierError), (PermissionError(), TierError)],
    ids=repr,
)
async def test_errors_of_the_system_are_translated(error: Exception, expected: type[Exception]) -> None:
    """What the operating system says is a failure of the tier too."""
    with pytest.raises(expected):
        async with _translated(1.0):
            raise error


async def test_bugs_are_not_taken_for_failures_of_the_server() -> None:
    """An error that is about our code passes as it is."""
    with pytest.raises(KeyError):
        async with _translated(1.0):
            raise KeyError("a")


def _calls(store: ObjectsStore) -> list[Callable[[], Awaitable[object]]]:
    return [
        lambda: store.get("a", 60.0),
        lambda: store.get_many(["a", "b"], 60.0),
        lambda: store.put("a", b"x", 60.0, replace=False),
        lambda: store.put("a", b"x", 60.0, replace=True),
        lambda: store.delete("a"),
        lambda: store.names("a/"),
        lambda: store.folders("a/"),
        lambda: store.head("a"),
    ]


async def test_a_key_the_server_does_not_know_is_an_error(s3: S3) -> None:
    """Wrong credentials fail every call; none of them looks like a miss."""
    store = ObjectsStore.connect(
        f"s3://{s3.bucket}", endpoint=s3.endpoint, access_key="nobody", secret_key="wrong", stall=10.0
    )

    for call in _calls(store):
        with pytest.raises(TierError):
            await call()


async def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """Where a name leads through a file, nothing can be read or written."""
    (tmp_path / "a").write_bytes(b"a file")
    store = ObjectsStore(LocalStore(tmp_path), stall=10.0, write_timeout=10.0, reads=4, writes=4)

    with pytest.raises(TierError):
        await store.put("a/b", b"x", 60.0, replace=False)


async def test_nobody_there_is_an_error_at_once() -> None:
    """A refused port fails every call in no time, without a retry."""
    store = ObjectsStore.connect(
        "s3://reprise", endpoint=f"http://{LOOPBACK}:{free_port()}", access_key="a", secret_key="b", stall=10.0
    )
    started = time.perf_counter()

    for call in _calls(store):
        with pytest.raises(TierError):
            await call()
    assert time.perf_counter() - started < 2.0


class _Server:
    """A TCP server that answers each request with these bytes and then goes silent, or hangs up."""

    def __init__(self, answer: bytes = b"", *, hang_up: bool = False) -> None:
        self._answer = answer
        self._hang_up = hang_up
        self.requests = 0
        self.asked = asyncio.Event()
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    @asynccontextmanager
    async def serving(
        self, *, stall: float, write_timeout: float = 10.0, reads: int = 16, writes: int = 16
    ) -> AsyncIterator[ObjectsStore]:
        server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        try:
            yield ObjectsStore.connect(
                "s3://reprise",
                endpoint=f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}",
                access_key="a",
                secret_key="b",
                stall=stall,
                write_timeout=write_timeout,
                reads=reads,
                writes=writes,
            )
        finally:
            server.close()
            for writer in self._connections:
                writer.transport.abort()
            await asyncio.gather(*(task for task in self._connections.values() if task))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections[writer] = asyncio.current_task()
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                self.asked.set()
                writer.write(self._answer)
                await writer.drain()
                if self._hang_up:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def _answer(body: bytes, length: int) -> bytes:
    head = (
        f'HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nETag: "x"\r\nLast-Modified: Tue, 14 Nov 2023 00:00:00 GMT\r\n'
    )
    return head.encode() + b"\r\n" + body


async def test_a_server_that_never_answers_costs_the_stall_timeout() -> None:
    """Reads end after the stall timeout, writes and listings after theirs; nothing is tried twice."""
    server = _Server()
    async with server.serving(stall=0.05, write_timeout=0.1) as store:
        for call in _calls(store):
            started = time.perf_counter()
            with pytest.raises(TierTimeout):
                await call()
            assert 0.04 < time.perf_counter() - started < 1.0

    assert 9 == server.requests  # one of the eight calls reads two names


async def test_a_body_that_stalls_costs_the_stall_timeout() -> None:
    """Headers and half a body, then silence: a timeout, and never half a value."""
    async with _Server(_answer(b"x" * 1000, 2000)).serving(stall=0.1) as store:
        with pytest.raises(TierTimeout):
            await store.get("a", 60.0)


async def test_a_body_that_breaks_off_is_an_error() -> None:
    """A connection that closes before the announced length is an error, and never half a value."""
    async with _Server(_answer(b"x" * 1000, 2000), hang_up=True).serving(stall=10.0) as store:
        with pytest.raises(TierError):
            await store.get("a", 60.0)


async def test_a_whole_body_from_the_same_server_is_a_value() -> None:
    """The server of the tests before is understood when it says all it announced."""
    async with _Server(_answer(b"x" * 2000, 2000)).serving(stall=10.0) as store:
        assert b"x" * 2000 == await store.get("a", 60.0)


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Slow Down", "403 Forbidden", "301 Moved"])
async def test_any_other_status_is_an_error_and_is_not_retried(status: str) -> None:
    """What is neither a value nor a plain 404 is an error, after one request."""
    server = _Server(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    async with server.serving(stall=5.0) as store:
        with pytest.raises(TierError):
            await store.get("a", 60.0)

    assert 1 == server.requests


async def test_a_slow_stream_is_served_as_long_as_it_moves() -> None:
    """A body that takes longer than the stall timeout in all, but never between two pieces, is a value."""
    pieces = 12

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_answer(b"", pieces * 1024 * 1024))
        for _ in range(pieces):
            await asyncio.sleep(0.1)  # the speed of the line
            writer.write(b"x" * 1024 * 1024)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(drip, LOOPBACK, 0)
    endpoint = f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    store = ObjectsStore.connect("s3://reprise", endpoint=endpoint, access_key="a", secret_key="b", stall=1.0)

    started = time.perf_counter()
    data = await store.get("a", 60.0)
    assert data is not None
    assert pieces * 1024 * 1024 == len(data)
    assert time.perf_counter() - started > 1.0
    server.close()


async def test_no_more_reads_at_a_time_than_allowed() -> None:
    """Of many reads so many are under way as were allowed; the others wait their turn."""
    server = _Server()
    async with server.serving(stall=30.0, reads=3) as store:
        await _bounded(server, [store.get(str(number), 60.0) for number in range(10)], 3)


async def test_no_more_other_calls_at_a_time_than_allowed() -> None:
    """Writes, removals and listings wait for each other, and not for reads."""
    server = _Server()
    async with server.serving(stall=30.0, write_timeout=30.0, reads=2, writes=3) as store:
        others = [other for _ in range(3) for other in _calls(store)[2:]]
        reads = [store.get(str(number), 60.0) for number in range(10)]

        await _bounded(server, [*(call() for call in others), *reads], 5)


async def _bounded(server: _Server, calls: Sequence[Awaitable[object]], most: int) -> None:
    """Of these calls, which are never answered, so many reach the server and no more."""
    under_way = [asyncio.ensure_future(call) for call in calls]
    while server.requests < most:
        server.asked.clear()
        await server.asked.wait()
    await wait_all_tasks_blocked()

    assert most == server.requests
    for call in under_way:
        call.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)


async def test_writers_to_a_hung_server_wait_for_each_other_no_longer_than_for_the_server() -> None:
    """However many want to write, each has its budget once."""
    async with _Server().serving(stall=30.0, write_timeout=0.1, writes=2) as store:
        started = time.perf_counter()
        results = await asyncio.gather(
            *(store.put(str(number), b"x", 60.0, replace=True) for number in range(200)), return_exceptions=True
        )

        assert time.perf_counter() - started < 3.0  # 200 writers, two at a time, would take 10 s
        assert all(isinstance(result, TierTimeout) for result in results)


async def test_readers_of_a_hung_server_wait_for_each_other_no_longer_than_for_the_server() -> None:
    """However many want to read, a server that hangs costs each of them a few stall timeouts at most."""
    async with _Server().serving(stall=0.1, reads=2) as store:
        guarded = GuardedStore(store, Breaker(failures=5, rest=60.0), budget=None)
        started = time.perf_counter()

        results = await asyncio.gather(
            *(guarded.get(str(number), 60.0) for number in range(200)), return_exceptions=True
        )

        assert time.perf_counter() - started < 3.0  # 200 readers, two at a time, would take 10 s
        assert all(isinstance(result, TierError) for result in results)


async def test_a_real_server_that_hangs_and_comes_back(breakable_objects: Stack) -> None:
    """A paused S3 server costs the stall timeout per read, nothing once the breaker is open, and serves again later."""
    bucket = servers.bucket(breakable_objects)
    store = ObjectsStore.connect(
        f"s3://{bucket.bucket}",
        endpoint=bucket.endpoint,
        access_key=bucket.access_key,
        secret_key=bucket.secret_key,
        stall=0.2,
    )
    guarded = GuardedStore(store, Breaker(failures=2, rest=60.0), budget=None)
    await store.put("a", b"clip", 60.0, replace=False)

    pause(breakable_objects.part("objects"))
    started = time.perf_counter()
    for _ in range(20):
        with pytest.raises(TierError):
            await guarded.get("a", 60.0)
    took = time.perf_counter() - started
    breakable_objects.part("objects").resume()

    assert 0.3 < took < 2.0
    assert b"clip" == await _s3_store(S3(**vars(bucket)), "").get("a", 60.0)
