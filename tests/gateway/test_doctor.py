"""`reprise doctor`: each fault of a deployment is found on one that has it, and a sound one is found sound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from pydantic import SecretStr

from cache.doctor import Finding, State
from cache.settings import MIB, CacheSettings
from gateway.cli import main
from gateway.doctor import device, examine, identity, readers_of, revisions, secret, serves
from gateway.settings import GatewaySection, GatewaySettings
from gateway.stack.ports import free_port
from reprise.v1.inference_pb2 import StatusResponse
from tests.cache.helpers import SECRET
from tests.gateway.test_cli_gc import plain
from tests.gateway.worker import family
from tests.gateway.world import World


def states(findings: list[Finding]) -> dict[str, str]:
    """What is not well, but for the disk of the machine that runs this, and a Redis that lets everybody in."""
    here = ("objects space", "redis user")
    wrong = [finding for finding in findings if finding.state is not State.OK and finding.name not in here]
    return {finding.name: finding.state.value for finding in wrong}


@asynccontextmanager
async def relayed(socket: Path, address: str) -> AsyncIterator[None]:
    """A socket in a folder behind which the server at an address is."""
    host, _, port = address.rpartition(":")

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pour(reader, onward), pour(there, writer))

    async with await asyncio.start_unix_server(join, socket):
        yield


def only(findings: list[Finding], name: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def settings_of(world: World, **section: Any) -> GatewaySettings:
    cache = world.cache.model_copy(update={"secret": SecretStr(SECRET.hex())})
    return GatewaySettings(cache=cache, gateway=GatewaySection(**{"port": free_port()} | section))


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[str]:
    """Something that listens and says the same to everybody."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(reply)
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_sound_deployment_is_found_sound(world: World) -> None:
    """Every part is asked, and there is nothing to do."""
    worker = await world.worker()
    desk = await world.desk(worker)
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as edge:
        findings = await examine(
            settings_of(world, workers=[worker.address]), addresses=[desk.address], edge=f"http://{edge}/"
        )
    assert {} == states(findings)
    names = {finding.name for finding in findings}
    assert {"secret", "identity", "redis", "objects write", "gateway", "edge", f"worker {worker.address}"} <= names
    assert "serves small" == only(findings, f"worker {worker.address}").what
    assert "free" in only(await examine(settings_of(world, workers=[worker.address])), "gateway").what


# The gateway and the edge.


async def test_a_gateway_that_must_answer_and_does_not_is_found(world: World) -> None:
    """Where nobody listens, beside one that does; and where somebody else does."""
    settings, desk = settings_of(world), await world.desk()
    findings = await examine(settings, addresses=[desk.address, f"127.0.0.1:{free_port()}"])
    there, nobody = (finding for finding in findings if finding.name == "gateway")
    assert (State.OK, State.FAIL, True) == (there.state, nobody.state, "start it" in nobody.fix)
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as other:
        port = int(other.rpartition(":")[2])
        stranger = only(await examine(settings_of(world, port=port)), "gateway")
    assert (State.FAIL, True) == (stranger.state, "gateway.port" in stranger.fix)


async def test_a_gateway_that_is_leaving_is_found(world: World) -> None:
    """It listens, and says that it does not serve."""
    desk = await world.desk()
    await desk.gateway._health.enter_graceful_shutdown()
    leaving = only(await examine(settings_of(world), addresses=[desk.address]), "gateway")
    assert (State.FAIL, True) == (leaving.state, "stopping" in leaving.what)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "answers 503"),
        (b"no such protocol\r\n\r\n", "does not answer"),
    ],
)
async def test_an_edge_without_a_gateway_is_found(world: World, reply: bytes, said: str) -> None:
    """It says so itself, or is none."""
    async with answering(reply) as edge:
        found = only(await examine(settings_of(world), edge=f"http://{edge}"), "edge")
    assert (State.FAIL, True) == (found.state, said in found.what)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///etc/passwd", "its address is no URL"),
        ("localhost:8080", "its address is no URL"),
        ("http://127.0.0.1:9", "does not answer: URLError"),
    ],
)
async def test_an_edge_that_is_not_there_is_found(world: World, url: str, said: str) -> None:
    """No file is opened, whatever the address says."""
    found = only(await examine(settings_of(world), edge=url), "edge")
    assert (State.FAIL, said, True) == (found.state, found.what, bool(found.fix))


# Workers.


async def test_workers_that_do_not_serve_are_found(world: World) -> None:
    """One that is gone, one that loads, one that is no worker, one without models, a name without addresses, none."""
    sound, loading, empty = await world.worker(), await world.worker(), await world.worker()
    loading.say(StatusResponse.STATE_LOADING)
    empty.descriptions.clear()
    gone = f"127.0.0.1:{free_port()}"
    async with answering(b"no") as stranger:
        addresses = [sound.address, loading.address, empty.address, gone, stranger]
        findings = await examine(settings_of(world, workers=[*addresses, "dns:///nowhere.invalid:1"]))
    assert {
        f"worker {loading.address}": "warn",
        f"worker {empty.address}": "warn",
        f"worker {gone}": "fail",
        f"worker {stranger}": "fail",
        "workers": "fail",
    } == states(findings)
    assert "loading" == only(findings, f"worker {loading.address}").what
    assert {"workers": "warn"} == states(await examine(settings_of(world)))


@pytest.mark.parametrize("scheme", ["unix:", "unix://"])
async def test_a_worker_behind_a_socket_in_a_folder_is_asked_too(world: World, tmp_path: Path, scheme: str) -> None:
    """Its address is a path; one where no such socket is stands for a worker that is gone."""
    worker, socket = await world.worker(), tmp_path / "worker.sock"
    async with relayed(socket, worker.address):
        addresses = [f"{scheme}{socket}", f"{scheme}{tmp_path}/none.sock"]
        findings = await examine(settings_of(world, workers=addresses))
    assert {f"worker {addresses[1]}": "fail"} == states(findings)


async def test_workers_of_several_revisions_are_found(world: World) -> None:
    """Of one model; the other is served alike by both."""
    first = await world.worker(family(), family("other"))
    second = await world.worker(family(revision="r2"), family("other"))
    findings = await examine(settings_of(world, workers=[first.address, second.address]))
    assert {"model small": "warn"} == states(findings)
    assert [] == revisions([[family()], [family()], []])


async def test_a_worker_from_the_future_is_found(world: World) -> None:
    """It says that it started when it is not yet that late here: one of the clocks is wrong."""
    worker = await world.worker(started_at=4_000_000_000.0)
    findings = await examine(settings_of(world, workers=[worker.address]))
    assert {f"clock of {worker.address}": "fail"} == states(findings)


@pytest.mark.parametrize(
    ("free", "pool_bytes", "state", "cure"),
    [
        (4000, None, "ok", ""),
        (1000, None, "ok", ""),
        (999, None, "fail", "fewer models"),
        (4000, 4500, "ok", ""),
        (4000, 4501, "fail", "worker.pool_bytes"),
        (0, None, "fail", "fewer models"),
    ],
)
def test_a_device_is_held_against_what_runs_there(free: int, pool_bytes: int | None, state: str, cure: str) -> None:
    """A quarter of the models' weight must be free, and what the pool may still take."""
    status = StatusResponse(
        device_bytes_free=free * MIB, device_bytes_total=10_000 * MIB, model_bytes=4000 * MIB, pool_bytes=500 * MIB
    )
    found = device("device", status, pool_bytes if pool_bytes is None else pool_bytes * MIB)
    assert (state, True) == (found.state.value, cure in found.fix)


def test_a_host_is_no_device_and_a_worker_may_serve_nothing() -> None:
    """The memory of a host is not judged here; a worker without models is."""
    assert State.OK is device("device", StatusResponse(model_bytes=MIB), None).state
    assert "1 MiB" in device("device", StatusResponse(model_bytes=MIB), None).what
    assert [State.WARN, State.OK] == [serves("w", []).state, serves("w", ["a"]).state]


# Settings.


def test_a_secret_that_was_not_drawn_is_found() -> None:
    """A pattern is no secret."""
    assert [State.WARN, State.OK] == [secret(bytes([0x5E] * 32)).state, secret(SECRET).state]


def test_who_may_read_the_settings_is_found(tmp_path: Path) -> None:
    """Secrets in a file that others may read; not those in the environment."""
    cache = CacheSettings.model_validate({"secret": SECRET.hex(), "l3": {"secret_key": "hidden"}})
    settings, file = GatewaySettings(cache=cache), tmp_path / "reprise.yaml"
    found = []
    for text, mode in (("a: hidden", 0o644), ("a: hidden", 0o600), ("a: b", 0o644), (f"s: {SECRET.hex()}", 0o640)):
        file.write_text(text)
        file.chmod(mode)
        found.append(readers_of(file, settings).state.value)
    assert ["warn", "ok", "ok", "warn"] == found


def test_who_is_told_apart_by_what_is_found(tmp_path: Path, redis_url: str) -> None:
    """A key file that cannot be used; everybody as operator, on an address that everybody reaches."""
    cache = CacheSettings.model_validate({"secret": SECRET.hex()})
    for section, state in (
        ({}, "ok"),
        ({"host": "0.0.0.0"}, "warn"),
        ({"host": "0.0.0.0", "identity": {"mode": "header"}}, "ok"),
        ({"identity": {"mode": "api_keys", "file": tmp_path / "none"}}, "fail"),
    ):
        settings = GatewaySettings(cache=cache, gateway=GatewaySection.model_validate(section))
        assert state == identity(settings).state.value


# The command.


async def doctor(folder: Path, content: dict[str, Any], *options: str) -> Result:
    file = folder / "reprise.yaml"
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump(content))
    return await asyncio.to_thread(CliRunner().invoke, main, ["doctor", "--config", str(file), *options])


async def test_the_command_tells_findings_and_ends_with_what_is_wrong(world: World, tmp_path: Path) -> None:
    """Exit code 0 while nothing fails; each finding in a line, and for programs as JSON."""
    worker = await world.worker()
    desk = await world.desk(worker)
    cache = plain(world.cache) | {"secret": SECRET.hex()}
    content = {"cache": cache, "gateway": {"workers": [worker.address]}, "worker": {"pool_bytes": 1}}
    done = await doctor(tmp_path, content, "--address", desk.address)
    assert 0 == done.exit_code
    assert f"ok    gateway: serves at {desk.address}" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1].endswith(" 0 wrong")
    assert SECRET.hex() not in done.stdout

    cache["l2"]["url"] = "redis://:hush@127.0.0.1:9/0"
    done = await doctor(tmp_path, content, "--json")
    assert 1 == done.exit_code
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert ("fail", "cannot be used: ConnectionError") == (found["redis"]["state"], found["redis"]["what"])
    assert found["redis"]["fix"]
    assert "hush" not in done.stdout


async def test_settings_that_cannot_be_read_are_the_one_finding(tmp_path: Path) -> None:
    """Nothing else can be asked then."""
    done = await doctor(tmp_path, {"cache": {"secret": "short"}}, "--json")
    (finding,) = json.loads(done.stdout)
    assert (1, "settings", "fail") == (done.exit_code, finding["name"], finding["state"])
    assert "cache.secret" in finding["what"]
