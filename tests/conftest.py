"""What every test may ask for: a real Redis, a real S3 server, and a loop that nothing of ours blocks.

`redis_url` and `s3` are shared servers with a clean place in them for each test. A test that breaks its server (pauses,
kills, restarts it) asks for `breakable_redis` or `breakable_objects` instead: a `gateway.stack.Stack` of its own.
"""

import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

from gateway.stack import Bucket, Stack
from gateway.stack.objects import ensure_bucket
from gateway.stack.redis import flush
from tests import servers
from tests.servers import S3

# However busy the machine is: an example may take as long as it takes, and so may making one up.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is there, as workers have it
# CosyVoice's code is the user's. Tests run on a stand-in for it, or on what the environment names.
os.environ.setdefault("REPRISE_COSYVOICE", str(Path(__file__).parent / "inference" / "checkout"))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One Redis for this test process; tests use `redis_url`."""
    data = tmp_path_factory.mktemp("redis")
    with servers.serving(data, servers.redis_part(data)) as stack:
        yield stack


@pytest.fixture
def redis_url(redis_server: Stack) -> str:
    """The address of a Redis that holds nothing."""
    flush(redis_server.part("redis").part.port)
    return servers.redis_url(redis_server)


@pytest.fixture
def breakable_redis(tmp_path: Path) -> Iterator[Stack]:
    """A Redis of this test's own: `.part("redis").pause()`, `.kill()`; `.restart("redis")`; its address stays."""
    data = tmp_path / "stack"
    with servers.serving(data, servers.redis_part(data)) as stack:
        yield stack


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """The S3 server that REPRISE_TEST_S3_ENDPOINT names, else one of our own; tests use `s3`."""
    if named := servers.named_endpoint():
        ensure_bucket(named)
        yield named
        return
    data = tmp_path_factory.mktemp("objects")
    with servers.serving(data, servers.objects_part(data)) as stack:
        yield servers.bucket(stack)


@pytest.fixture
def s3(object_server: Bucket) -> S3:
    """A bucket and a prefix in it that no other test has."""
    return S3(**asdict(object_server), prefix=f"test-{uuid.uuid4().hex}")


@pytest.fixture
def breakable_objects(tmp_path: Path) -> Iterator[Stack]:
    """An S3 server of this test's own, to pause, kill and restart; `servers.bucket(stack)` says how to reach it."""
    data = tmp_path / "stack"
    with servers.serving(data, servers.objects_part(data)) as stack:
        yield stack


@pytest.fixture(scope="session", autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    """A blocking call of ours on a running event loop raises; libraries below us answer for themselves."""
    watch = BlockBuster(["cache", "gateway", "inference"], excluded_modules=["gateway.stack", "gateway.cli"])
    for name, function in watch.functions.items():
        if "Lock" not in name:  # a short critical section may be contended for a microsecond
            function.activate()
    yield
    watch.deactivate()
