"""Doctor: each fault of a Redis or a store is found on a real one that has it, and a sound one is found sound."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis

from cache import doctor
from cache.doctor import Finding, State, examine_objects, examine_redis
from cache.errors import TierError
from cache.objects import ObjectsStore
from cache.settings import L2Settings, L3Settings
from gateway.stack import Bucket, Stack
from gateway.stack.parts import wait_until
from gateway.stack.ports import free_port
from gateway.stack.redis import command
from tests import servers
from tests.servers import S3

GIB = 1024**3


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.state.value for finding in findings if finding.state is not State.OK}


def only(findings: list[Finding], name: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


ANYBODY = {"redis user": "warn"}  # these servers let everybody in; see test_rights.py for those that do not


def redis_at(url: str, *, budget: float = 2.0) -> L2Settings:
    return L2Settings(url=SecretStr(url), budget=budget)


# Redis.


async def test_a_redis_as_the_stack_sets_it_up_is_sound(redis_url: str) -> None:
    """Every check is made and says ok; nothing is left there."""
    findings = await examine_redis(redis_at(redis_url))
    assert ANYBODY == states(findings)
    assert {
        "redis",
        "redis line",
        "redis user",
        "redis commands",
        "redis latency",
        "redis version",
        "redis memory",
        "redis policy",
        "redis pressure",
        "redis snapshots",
        "redis clock",
    } == {finding.name for finding in findings}
    assert not any(finding.fix for finding in findings if finding.state is State.OK)
    assert ":0" == await asyncio.to_thread(command, int(redis_url.rsplit(":")[-1].partition("/")[0]), "DBSIZE")


WRONG_SETTINGS: dict[str, tuple[list[list[str]], dict[str, str], str]] = {
    "no bound": ([["CONFIG", "SET", "maxmemory", "0"]], {"redis memory": "fail"}, "maxmemory 4gb"),
    "noeviction": (
        [["CONFIG", "SET", "maxmemory-policy", "noeviction"]],
        {"redis policy": "fail"},
        "maxmemory-policy allkeys-lfu",
    ),
    "lru": (
        [["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]],
        {"redis policy": "warn"},
        "maxmemory-policy allkeys-lfu",
    ),
    "no snapshots": ([["CONFIG", "SET", "save", ""]], {"redis snapshots": "warn"}, "save 900 1"),
    "full": (
        [["CONFIG", "SET", "maxmemory-policy", "noeviction"], ["CONFIG", "SET", "maxmemory", "1"]],
        {"redis commands": "fail", "redis policy": "fail"},
        "allkeys-lfu",
    ),
    "replica": ([["REPLICAOF", "127.0.0.1", "9"]], {"redis commands": "fail"}, "the primary"),
}


@pytest.mark.parametrize("case", WRONG_SETTINGS)
async def test_a_redis_that_is_set_up_wrong_is_told_apart(breakable_redis: Stack, case: str) -> None:
    """By what is wrong and nothing else, with the line that puts it right."""
    says, expected, cure = WRONG_SETTINGS[case]
    for words in says:
        assert "+OK" == await asyncio.to_thread(command, breakable_redis.part("redis").part.port, *words)
    findings = await examine_redis(redis_at(servers.redis_url(breakable_redis)))
    assert expected | ANYBODY == states(findings) | ANYBODY
    assert cure in only(findings, next(iter(expected))).fix


async def test_a_snapshot_that_failed_is_found(breakable_redis: Stack) -> None:
    """Because from then on writes may be refused."""
    part = breakable_redis.part("redis").part

    def fail_a_snapshot() -> bool:
        (part.folder / "dump.rdb").mkdir()
        (part.folder / "dump.rdb" / "in the way").touch()
        assert command(part.port, "BGSAVE").startswith("+Background")
        with Redis.from_url(servers.redis_url(breakable_redis)) as told:
            return wait_until(lambda: told.info("persistence")["rdb_last_bgsave_status"] == "err", 20.0)

    assert await asyncio.to_thread(fail_a_snapshot)
    findings = await examine_redis(redis_at(servers.redis_url(breakable_redis)))
    assert {"redis snapshots": "fail"} | ANYBODY == states(findings)
    assert "disk" in only(findings, "redis snapshots").fix


async def test_a_user_with_too_few_rights_is_found(breakable_redis: Stack) -> None:
    """The commands that are refused are named; what cannot be asked for is said to be so."""
    part = breakable_redis.part("redis").part
    rights = ["on", ">pw", "~*", "+set", "+lrange", "+client", "+hello", "+info", "+time"]
    assert "+OK" == await asyncio.to_thread(command, part.port, "ACL", "SETUSER", "reprise", *rights)
    findings = await examine_redis(redis_at(f"redis://reprise:pw@{part.address}/0"))
    assert {"redis commands": "fail", "redis snapshots": "warn"} == states(findings)
    refused = only(findings, "redis commands")
    commands = ("GETEX", "LPUSH, LTRIM and PEXPIRE", "PUBLISH", "UNLINK")
    assert ", ".join(f"{each}: NoPermissionError" for each in commands) == refused.what
    assert "+getex" in refused.fix
    findings = await examine_redis(redis_at(f"redis://reprise:wrong@{part.address}/0"))
    assert ["redis"] == [finding.name for finding in findings]
    assert "password" in findings[0].fix


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:{port}/0", "redis+sentinel://127.0.0.1:{port}/0", "http://127.0.0.1:{port}"]
)
async def test_a_redis_that_is_not_there_is_one_finding(url: str) -> None:
    """Nothing else is said of it."""
    findings = await examine_redis(redis_at(url.format(port=free_port())))
    assert [("redis", State.FAIL)] == [(finding.name, finding.state) for finding in findings]
    assert "cache.l2.url" in findings[0].fix


async def test_a_redis_slower_than_its_budget_is_found(redis_url: str) -> None:
    """By the time of reads like ours."""
    slow = only(await examine_redis(redis_at(redis_url, budget=1e-6)), "redis latency")
    assert State.FAIL is slow.state
    assert "cache.l2.budget" in slow.fix


@pytest.mark.parametrize(("ahead", "state"), [(0.5, "ok"), (-10.0, "warn"), (10.0, "warn"), (3600.0, "fail")])
async def test_clocks_that_disagree_are_found(redis_url: str, tmp_path: Path, ahead: float, state: str) -> None:
    """Redis's, and that of a store; by more than a little, and by much."""

    def clock() -> float:
        return time.time() - ahead

    redis = only(await examine_redis(redis_at(redis_url), clock=clock), "redis clock")
    folder = only(await examine_objects(L3Settings(url=f"file://{tmp_path}"), clock=clock), "objects clock")
    assert [state, state] == [redis.state.value, folder.state.value]
    if state != "ok":
        assert ("ahead" if ahead > 0 else "behind") in redis.what
        assert "NTP" in redis.fix


def test_what_is_switched_off_is_left_alone() -> None:
    """And said to be."""
    for examined in (examine_redis(L2Settings(enabled=False)), examine_objects(L3Settings(enabled=False))):
        (finding,) = asyncio.run(examined)
        assert State.OK is finding.state
        assert "switched off" in finding.what


@pytest.mark.parametrize(
    ("finding", "state"),
    [
        (doctor.version({"redis_version": "6.2.14"}), "ok"),
        (doctor.version({"redis_version": "7.0"}), "ok"),
        (doctor.version({"redis_version": "6.0.16"}), "fail"),
        (doctor.version({}), "fail"),
        (doctor.pressure({"maxmemory": 100, "used_memory": 95, "evicted_keys": 1}), "warn"),
        (doctor.pressure({"maxmemory": 100, "used_memory": 50, "evicted_keys": 1}), "ok"),
        (doctor.pressure({"maxmemory": 100, "used_memory": 95, "evicted_keys": 0}), "ok"),
        (doctor.policy({"maxmemory_policy": "volatile-lru"}), "warn"),
        (doctor.snapshots({}, "3600 1 300 100", "no"), "ok"),
        (doctor.snapshots({}, None, None), "warn"),
        (doctor.snapshots({}, "3600 1", "no"), "warn"),
        (doctor.snapshots({}, "900 1", "yes"), "warn"),
        (doctor.space(100 * GIB, 50 * GIB), "ok"),
        (doctor.space(100 * GIB, 9 * GIB), "warn"),
        (doctor.space(5 * GIB, GIB // 2), "fail"),
        (doctor.latency("x", [0.001, 0.002, 0.003], 0.05, "y"), "ok"),
        (doctor.latency("x", [0.001, 0.002, 0.06], 0.05, "y"), "warn"),
        (doctor.latency("x", [0.06, 0.07, 0.01], 0.05, "y"), "fail"),
    ],
)
def test_what_is_judged_by_numbers(finding: Finding, state: str) -> None:
    """Each bound, on both sides; whoever is not well is told what to do."""
    assert (state, state != "ok") == (finding.state.value, bool(finding.fix))


# Object stores.


def s3_at(bucket: Bucket, **changes: Any) -> L3Settings:
    fields = {
        "url": f"s3://{bucket.bucket}/{getattr(bucket, 'prefix', '')}".rstrip("/"),
        "endpoint": bucket.endpoint,
        "region": bucket.region,
        "access_key": bucket.access_key,
        "secret_key": bucket.secret_key,
        "stall": 5.0,
    }
    return L3Settings.model_validate(fields | changes)


async def test_a_sound_store_is_found_sound(s3: S3, tmp_path: Path) -> None:
    """A bucket and a folder: every check is made, and what was written for it is gone."""
    for settings in (s3_at(s3), L3Settings(url=f"file://{tmp_path}", stall=5.0)):
        findings = await examine_objects(settings, free_space=lambda folder: (100 * GIB, 50 * GIB))
        assert {} == states(findings)
        assert 8 == len(findings)
        store = await asyncio.to_thread(
            ObjectsStore.connect,
            settings.url,
            endpoint=settings.endpoint,
            access_key=settings.access_key,
            secret_key=settings.secret_key.get_secret_value(),
        )
        assert [] == await store.names("")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"access_key": "nobody"}, "InvalidAccessKeyId"),
        ({"secret_key": "wrong"}, "SignatureDoesNotMatch"),
        ({"endpoint": "http://127.0.0.1:9"}, "unreachable"),
    ],
)
async def test_a_store_that_does_not_let_us_in_is_found(s3: S3, changes: dict[str, str], said: str) -> None:
    """By why, and with the setting to correct; nothing else is tried."""
    findings = await examine_objects(s3_at(s3, **changes))
    assert {"objects list": "fail", "objects write": "fail"} == states(findings)
    assert all(said in finding.what and "cache.l3." in finding.fix for finding in findings[:2])


async def test_a_bucket_that_is_not_there_is_found(s3: S3) -> None:
    """It is for the operator to make."""
    found = only(await examine_objects(s3_at(s3, url="s3://nobody-made-this")), "objects list")
    assert (State.FAIL, "fails: NoSuchBucket") == (found.state, found.what)
    assert "make the bucket" in found.fix


@pytest.fixture
def server_with_readers(tmp_path: Path) -> Iterator[Stack]:
    """An S3 server with one identity that may do everything, and others that may not."""
    data = tmp_path / "stack"
    actions = {"all": ["Admin", "Read", "Write", "List"], "reader": ["Read", "List"], "blind": ["Read", "Write"]}
    identities = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": f"secret-{name}"}], "actions": may}
        for name, may in actions.items()
    ]
    (data / "objects").mkdir(parents=True)
    (data / "objects" / "s3.json").write_text(json.dumps({"identities": identities}))
    with servers.serving(data, servers.objects_part(data)) as stack:
        yield stack


@pytest.mark.parametrize(("who", "missing"), [("reader", "objects write"), ("blind", "objects list")])
async def test_a_right_that_is_missing_is_named(server_with_readers: Stack, who: str, missing: str) -> None:
    """That one and no other."""
    settings = s3_at(servers.bucket(server_with_readers), access_key=who, secret_key=f"secret-{who}")
    findings = await examine_objects(settings)
    assert {missing: "fail"} == states(findings)
    assert "rights" in only(findings, missing).fix


class Broken(ObjectsStore):
    """A folder that does one thing wrong, in a way in which S3 servers do."""

    fault = ""

    async def put(self, name: str, data: bytes, ttl: float, *, replace: bool) -> bool:
        if self.fault == "replaces":
            return await super().put(name, data, ttl, replace=True)
        if self.fault == "stale" and replace:
            return True
        return await super().put(name, data, ttl, replace=replace)

    async def delete(self, name: str) -> None:
        if self.fault == "keeps":
            return
        if self.fault == "no right to delete":
            raise TierError("PermissionDeniedError")
        await super().delete(name)


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        ("replaces", "objects create-only"),
        ("stale", "objects overwrite"),
        ("keeps", "objects delete"),
        ("no right to delete", "objects delete"),
    ],
)
async def test_a_store_that_does_not_do_what_it_is_asked_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, finding: str
) -> None:
    """One that takes every conditional write, one that serves old copies, one that removes nothing."""
    monkeypatch.setattr(doctor, "ObjectsStore", Broken)
    monkeypatch.setattr(Broken, "fault", fault)
    settings = L3Settings(url=f"file://{tmp_path}", stall=5.0)
    found = await examine_objects(settings, free_space=lambda folder: (100 * GIB, 50 * GIB))
    assert {finding: "fail"} == states(found)


def test_a_folder_that_is_not_there_is_found_and_not_made(tmp_path: Path) -> None:
    """It can be made, or something else is in its place."""
    (tmp_path / "file").write_bytes(b"")
    for folder, state in (("new/objects", State.WARN), ("file/objects", State.FAIL), ("file", State.FAIL)):
        (finding,) = asyncio.run(examine_objects(L3Settings(url=f"file://{tmp_path / folder}")))
        assert (state, True) == (finding.state, "cache.l3.url" in finding.fix)
    assert ["file"] == [path.name for path in tmp_path.iterdir()]


async def test_a_full_disk_is_found(tmp_path: Path) -> None:
    """Of the folder's own disk, before writes fail."""
    asked: list[Path] = []

    def nearly_full(folder: Path) -> tuple[int, int]:
        asked.append(folder)
        return 100 * GIB, GIB // 2

    findings = await examine_objects(L3Settings(url=f"file://{tmp_path}", stall=5.0), free_space=nearly_full)
    assert ({"objects space": "fail"}, [tmp_path]) == (states(findings), asked)
    assert "reprise gc" in only(findings, "objects space").fix


def test_the_disk_of_this_machine_can_be_asked(tmp_path: Path) -> None:
    """Without anything injected."""
    findings = asyncio.run(examine_objects(L3Settings(url=f"file://{tmp_path}", stall=5.0)))
    assert "GiB free" in only(findings, "objects space").what
    assert wait_until(lambda: not list(tmp_path.rglob("doctor/*")), 1.0)
