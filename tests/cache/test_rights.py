"""Rights: the user that is handed out for us may do all that we do, and nothing else, over a line nobody reads."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr, ValidationError
from redis import Redis, RedisError

from cache.channel import RedisChannel
from cache.doctor import Finding, State, examine_redis
from cache.errors import TierError
from cache.redis import RedisStore
from cache.redis_client import Door
from cache.rights import COMMANDS, rights
from cache.settings import L2Settings, TlsSettings
from gateway.stack.parts import Part, wait_until
from gateway.stack.ports import free_port
from gateway.stack.redis import USER, command, find_server, password_file, redis
from tests import servers

_GRANTED = Path("deploy/redis/users.acl")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    """A Redis that lets nobody in without a password, as the local stack has it."""
    data = tmp_path_factory.mktemp("guarded")
    part = redis(free_port(), data / "redis", data / "redis.log", users=True)
    with servers.serving(data, part) as stack:
        yield stack.part("redis").part


def settings(part: Part, **changes: object) -> L2Settings:
    fields = {"url": f"redis://{part.address}/1", "username": USER, "password_file": password_file(part.folder)}
    return L2Settings.model_validate({"budget": 5.0} | fields | changes)


def problems(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: f"{finding.what}; {finding.fix}" for finding in findings if finding.state is not State.OK}


async def test_what_is_granted_is_what_is_used(guarded: Part) -> None:
    """Everything that is done with a Redis works, nothing of it is refused, and no right is left over."""
    door = await asyncio.to_thread(lambda: Door.of(settings(guarded)))
    store = RedisStore.connect(door, budget=5.0, connections=2)
    channel = RedisChannel.connect(door, "orders", budget=5.0)
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    stands = asyncio.Event()

    async def heal() -> None:
        stands.set()

    async def hear(message: bytes) -> None:
        heard.put_nowait(message)

    listening = asyncio.create_task(channel.listen(hear, heal))
    try:
        await store.put("r/a", b"1", 9.0, replace=False)
        assert [b"1", None] == await store.get_many(["r/a", "b/none"], 9.0)
        await store.push("h/a", b"row", 5, 9.0)
        assert [b"row"] == await store.head("h/a", 1)
        assert 1.0 == await store.count(["f/a/2", "f/a/1"], "member", 10, 9.0)
        assert [[("member", 1.0)]] == await store.highest(["f/a/2"], 5)
        await store.delete_many(["r/a", "h/a", "f/a/2"])
        await store.usage()
        await asyncio.to_thread(take_writes, guarded, False)
        assert await store.get("r/none", 9.0) is None
        await asyncio.to_thread(take_writes, guarded, True)
        await stands.wait()
        assert 1 == await channel.tell(b"order")
        assert b"order" == await heard.get()
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    assert {} == problems(await examine_redis(await asyncio.to_thread(settings, guarded)))
    refused, used = await asyncio.to_thread(accounts, guarded)
    await store.aclose()
    await channel.aclose()
    assert {"dbsize"} == refused  # which the doctor tries, to see that it is
    assert set() == COMMANDS.keys() - used


def take_writes(part: Part, takes: bool) -> None:
    said = command(part.port, "CONFIG", "SET", "min-replicas-to-write", "0" if takes else "1", operators=part.folder)
    assert "+OK" == said


def accounts(part: Part) -> tuple[set[str], set[str]]:
    """What the server has refused, and the commands that were used."""
    password = password_file(part.folder, "operator").read_text()
    with Redis.from_url(f"redis://operator:{password}@{part.address}/0") as told:
        refused = {entry["object"] for entry in told.acl_log()}
        return refused, {name.removeprefix("cmdstat_") for name in told.info("commandstats")}


@pytest.mark.parametrize(
    "refused", ["keys *", "flushall", "config set maxmemory 1", "eval 'return 1' 0", "getdel r/a", "set x 1"]
)
def test_what_is_not_needed_is_refused(guarded: Part, refused: str) -> None:
    """Also a name that is none of ours."""
    password = password_file(guarded.folder).read_text()
    with Redis.from_url(f"redis://{USER}:{password}@{guarded.address}/0") as ours:
        with pytest.raises(Exception, match=r"(?i)permission"):
            ours.execute_command(*refused.split())


def test_the_list_that_is_shipped_grants_just_that() -> None:
    assert f"user default off\nuser reprise on #SHA256_OF_THE_PASSWORD {rights()}\n" == _GRANTED.read_text()


async def test_a_wrong_password_is_told_with_the_setting_to_change(guarded: Part) -> None:
    """And without the password; whoever uses such a Redis is refused and goes on without."""
    wrong = await asyncio.to_thread(settings, guarded, password_file=None, password="no such")
    (line,) = problems(await examine_redis(wrong)).values()
    assert "cache.l2.password" in line
    assert "no such" not in line
    store = RedisStore.connect(await asyncio.to_thread(Door.of, wrong), budget=5.0, connections=1)
    with pytest.raises(TierError):
        await store.get("r/a", None)
    await store.aclose()


async def test_coming_as_anybody_is_told(redis_url: str) -> None:
    """With what to type."""
    found = problems(await examine_redis(L2Settings(url=SecretStr(redis_url), budget=5.0)))
    assert found.keys() == {"redis user"}
    assert rights() in found["redis user"]


async def test_more_rights_than_needed_are_told(guarded: Part) -> None:
    def allow(*rights: str) -> str:
        return command(guarded.port, "ACL", "SETUSER", "broad", *rights, operators=guarded.folder)

    assert "+OK" == await asyncio.to_thread(allow, "on", ">pw", "~*", "&*", "+@all")
    broad = await asyncio.to_thread(settings, guarded, username="broad", password_file=None, password="pw")
    found = problems(await examine_redis(broad))
    assert found.keys() == {"redis user"}
    assert "broad may do more" in found["redis user"]


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Part]:
    """A Redis that speaks TLS and nothing else, to whom it knows by a certificate."""
    folder = tmp_path_factory.mktemp("encrypted")
    own = authority.issue_cert("127.0.0.1")
    own.private_key_and_cert_chain_pem.write_to_path(folder / "own.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("reprise").private_key_and_cert_chain_pem.write_to_path(folder / "client.pem")
    port = free_port()
    options = {
        "--port": "0",
        "--tls-port": str(port),
        "--bind": "127.0.0.1",
        "--save": "900 1",
        "--rdbcompression": "no",
        "--maxmemory": "64mb",
        "--maxmemory-policy": "allkeys-lfu",
        "--dir": str(folder),
        "--tls-cert-file": str(folder / "own.pem"),
        "--tls-key-file": str(folder / "own.pem"),
        "--tls-ca-cert-file": str(folder / "ca.pem"),
    }
    words = [word for option in options.items() for word in option]
    with (folder / "log").open("wb") as log, subprocess.Popen([find_server(), *words], stdout=log) as server:
        try:
            _await_tls(port, folder)
            yield Part("redis", (), f"127.0.0.1:{port}", "", folder / "log", folder)
        finally:
            server.terminate()


def _await_tls(port: int, folder: Path) -> None:
    own = str(folder / "client.pem")

    def answers() -> bool:
        try:
            with Redis(
                host="127.0.0.1",
                port=port,
                ssl=True,
                ssl_ca_certs=str(folder / "ca.pem"),
                ssl_certfile=own,
                ssl_keyfile=own,
            ) as told:
                return bool(told.ping())
        except RedisError:
            return False

    assert wait_until(answers, 20.0)


def over_tls(part: Part, **tls: object) -> L2Settings:
    files = {"ca": part.folder / "ca.pem", "certificate": part.folder / "client.pem"}
    return L2Settings(
        url=SecretStr(f"rediss://{part.address}/0"), tls=TlsSettings.model_validate(files | tls), budget=5.0
    )


async def test_what_is_sent_over_tls_is_stored_and_told(encrypted: Part) -> None:
    """By the store and the channel alike, and the doctor finds the line encrypted."""
    door = await asyncio.to_thread(lambda: Door.of(over_tls(encrypted)))
    store = RedisStore.connect(door, budget=5.0, connections=2)
    channel = RedisChannel.connect(door, "orders", budget=5.0)
    assert await store.put("r/a", b"1", 9.0, replace=True)
    assert b"1" == await store.get("r/a", None)
    assert 0 == await channel.tell(b"order")
    await store.aclose()
    await channel.aclose()
    findings = await examine_redis(await asyncio.to_thread(over_tls, encrypted))
    assert problems(findings).keys() == {"redis user"}
    assert "encrypted" in [finding.what for finding in findings if finding.name == "redis line"]


async def test_what_is_wrong_with_a_line_is_told_with_the_setting_to_change(encrypted: Part, redis_url: str) -> None:
    """Another authority's certificate, no certificate of ours, no TLS where it is wanted, TLS where there is none."""
    stranger = encrypted.folder / "stranger.pem"

    def ways() -> dict[str, L2Settings]:
        trustme.CA().cert_pem.write_to_path(stranger)
        plain = redis_url.replace("redis://", "rediss://")
        return {
            "cache.l2.tls.ca": over_tls(encrypted, ca=stranger),
            "cache.l2.tls.certificate": over_tls(encrypted, certificate=None),
            "write rediss://": L2Settings(url=SecretStr(f"redis://{encrypted.address}/0"), budget=5.0),
            "write redis://": L2Settings(url=SecretStr(plain), budget=0.5),
        }

    for words, wrong in (await asyncio.to_thread(ways)).items():
        found = problems(await examine_redis(wrong))
        assert words in found["redis"], (words, found)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"password_file": "none.txt"}, "password_file"),
        ({"username": "reprise"}, "username: has no password"),
        ({"url": "redis://a:b@h/0", "username": "reprise", "password": "x"}, "url: holds a user"),
        ({"tls": {"ca": "none.pem"}}, "tls.ca"),
        ({"tls": {"enabled": True}, "url": "unix:///tmp/redis.sock"}, "tls: there is none"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_with_their_name(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        L2Settings.model_validate(wrong)
    told = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in refused.value.errors()]
    assert any(words in line for line in told), told
    assert not any("a:b@" in line for line in told)


def test_a_context_is_no_older_than_it_may_be(encrypted: Part) -> None:
    context = Door.of(over_tls(encrypted)).tls
    assert context is not None
    assert ssl.TLSVersion.TLSv1_2 <= context.minimum_version
    assert ssl.CERT_REQUIRED == context.verify_mode
