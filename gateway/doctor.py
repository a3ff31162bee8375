"""Doctor: what is wrong with a deployment, found by asking its parts, each finding with what to do about it.

The stores have checks of their own (`cache/doctor.py`). Here: what the settings say, who listens where, whether the
workers serve, and whether their devices have room.
"""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cache.description import Description
from cache.doctor import Clock, Finding, clocks, examine_objects, examine_redis, fail, ok, warn
from cache.settings import MIB
from gateway.identity import KeyFileError, identifier
from gateway.settings import GatewaySettings
from gateway.workers import resolve
from reprise.v1.inference_pb2 import DescribeRequest, DescribeResponse, StatusRequest, StatusResponse
from reprise.v1.inference_pb2_grpc import InferenceServiceStub

_PATIENCE = 5.0  # seconds for one answer
_LOOPBACKS = ("127.0.0.1", "localhost", "::1", "[::1]")
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "::1"}  # noqa: S104  # compared, not bound
_SERVING = health_pb2.HealthCheckResponse.SERVING


async def examine(
    settings: GatewaySettings,
    *,
    file: Path | None = None,
    addresses: Sequence[str] = (),
    edge: str = "",
    pool_bytes: int | None = None,
    clock: Clock = time.time,
) -> list[Finding]:
    """Everything about a deployment, its parts asked at the same time.

    `file` is where the settings stand, `addresses` are gateways that must answer, `edge` the URL of an Envoy,
    `pool_bytes` the bound that workers were given for what they keep on their devices.
    """
    areas = await asyncio.gather(
        examine_redis(settings.cache.l2, clock=clock),
        examine_objects(settings.cache.l3, clock=clock),
        _gateways(settings, addresses),
        _workers(settings, pool_bytes, clock),
        _edge(edge),
    )
    told = [secret(settings.cache.secret_bytes), await asyncio.to_thread(identity, settings)]
    if file is not None:
        told.append(await asyncio.to_thread(readers_of, file, settings))
    return [*told, *(finding for area in areas for finding in area)]


# Settings.


def secret(drawn: bytes) -> Finding:
    if len(set(drawn)) < 8:  # of 32 random bytes about 30 differ
        cure = "draw one: openssl rand -hex 32. What was stored under this one is not found again, and goes by `gc`"
        return warn("secret", "was not drawn at random: whoever guesses it can name what others have stored", cure)
    return ok("secret", "32 bytes")


def readers_of(file: Path, settings: GatewaySettings) -> Finding:
    """Whether the file with the settings, if it holds secrets, is its owner's to read."""
    text, mode = file.read_text("utf-8"), file.stat().st_mode
    keys = (settings.cache.secret, settings.cache.l3.secret_key)
    holds_secrets = any(key.get_secret_value() in text for key in keys if key.get_secret_value())
    if holds_secrets and mode & (stat.S_IRGRP | stat.S_IROTH):
        cure = f"chmod 600 {file}, or give its secrets in the environment: REPRISE_CACHE__SECRET"
        return warn("settings file", "holds secrets, and others on this machine may read it", cure)
    return ok("settings file", "is read by those who may")


def identity(settings: GatewaySettings) -> Finding:
    section = settings.gateway
    try:
        identifier(section.identity)
    except KeyFileError as error:
        return fail("identity", str(error), "correct gateway.identity.file")
    if section.identity.mode == "local" and section.host not in _LOOPBACKS:
        cure = "set gateway.identity.mode to api_keys or header, or gateway.host to 127.0.0.1"
        return warn("identity", f"whoever reaches {section.host} is the operator, and everybody is one tenant", cure)
    return ok("identity", section.identity.mode)


# Who listens where.


async def _gateways(settings: GatewaySettings, addresses: Sequence[str]) -> list[Finding]:
    section = settings.gateway
    own = f"{_EVERYWHERE.get(section.host, section.host)}:{section.port}"
    if not addresses and not await _listens(own):
        return [ok("gateway", f"none runs here: the port of {own} is free")]
    return await asyncio.gather(*map(_gateway, addresses or [own]))


async def _gateway(at: str) -> Finding:
    if not await _listens(at):
        return fail("gateway", f"nobody listens at {at}", "start it: python -m gateway --config FILE")
    answer = await _health(at)
    if answer == _SERVING:
        return ok("gateway", f"serves at {at}")
    if answer is not None:
        return fail("gateway", f"the one at {at} is stopping, or not ready", "see its log; wait, or start another")
    return fail("gateway", f"what listens at {at} is no gateway", "stop it, or choose another gateway.port")


async def _edge(url: str) -> list[Finding]:
    if not url:
        return []
    if not url.startswith(("http://", "https://")):
        return [fail("edge", "its address is no URL", "name it like http://localhost:8080")]
    try:
        status = await asyncio.to_thread(_status_of, f"{url.rstrip('/')}/healthz")
    except (URLError, HTTPException, OSError, ValueError) as error:
        return [fail("edge", f"does not answer: {type(error).__name__}", "start Envoy, or correct --edge")]
    if status != 200:
        cure = "start a gateway, or correct the addresses in envoy.yaml"
        return [fail("edge", f"answers {status}: it has no healthy gateway", cure)]
    return [ok("edge", "has a healthy gateway")]


def _status_of(url: str) -> int:
    try:
        with urlopen(url, timeout=_PATIENCE) as answer:  # noqa: S310  # http and https only, seen to above
            return int(answer.status)
    except HTTPError as refusal:
        return refusal.code


async def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_PATIENCE):
            if address.startswith("unix:"):
                _, writer = await asyncio.open_unix_connection(address.removeprefix("unix:").removeprefix("//"))
            else:
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError, ValueError):
        return False
    writer.close()
    return True


async def _health(address: str) -> int | None:
    """What a server says of itself; None for one that is not asked this way."""
    async with grpc.aio.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            return int((await check(health_pb2.HealthCheckRequest(), timeout=_PATIENCE)).status)
        except grpc.aio.AioRpcError:
            return None


# Workers.


async def _workers(settings: GatewaySettings, pool_bytes: int | None, clock: Clock) -> list[Finding]:
    names = settings.gateway.workers
    if not names:
        cure = "name them in gateway.workers"
        return [warn("workers", "there are none: nothing is answered but what is stored already", cure)]
    found = [(name, await resolve(name)) for name in names]
    lost = [
        fail("workers", f"{name} stands for no address", "correct gateway.workers, or the name in DNS")
        for name, addresses in found
        if not addresses
    ]
    addresses = sorted({address for _, addresses in found for address in addresses or ()})
    answers = await asyncio.gather(*(_worker(address, pool_bytes, clock) for address in addresses))
    served = [descriptions for _, descriptions in answers]
    return [*lost, *(finding for findings, _ in answers for finding in findings), *revisions(served)]


async def _worker(address: str, pool_bytes: int | None, clock: Clock) -> tuple[list[Finding], list[Description]]:
    name = f"worker {address}"
    if not await _listens(address):
        cure = "start it: python -m inference --config FILE; or correct gateway.workers"
        return [fail(name, "nobody listens there", cure)], []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = InferenceServiceStub(channel)
        try:
            status = await _status(stub)
            if status.state != StatusResponse.STATE_READY:
                state = StatusResponse.State.Name(status.state).removeprefix("STATE_").lower()
                return [warn(name, state, "wait, and ask again; its log says how far it is")], []
            described: DescribeResponse = await stub.Describe(DescribeRequest(), timeout=_PATIENCE)
            models = [Description.from_bytes(content) for content in described.descriptions]
        except (grpc.aio.AioRpcError, TimeoutError, ValueError) as error:
            cure = "see its log; both sides must be of one version, and no proxy may stand between"
            return [fail(name, f"listens, and does not answer as a worker: {type(error).__name__}", cure)], []
    return [
        serves(name, [model.model for model in models]),
        device(f"device of {address}", status, pool_bytes),
        clocks(f"clock of {address}", max(0.0, described.started_at - clock())),  # it cannot start in the future
    ], models


async def _status(stub: InferenceServiceStub) -> StatusResponse:
    """The first of a stream that has no end."""
    call = stub.Status(StatusRequest())
    try:
        async with asyncio.timeout(_PATIENCE):
            status = await call.read()
    finally:
        call.cancel()
    if not isinstance(status, StatusResponse):
        raise ValueError("no status")  # noqa: TRY004  # what it said, and not how we asked
    return status


def serves(name: str, models: Sequence[str]) -> Finding:
    if not models:
        return warn(name, "serves no model", "name one in worker.models")
    return ok(name, f"serves {', '.join(sorted(models))}")


def device(name: str, status: StatusResponse, pool_bytes: int | None) -> Finding:
    """Whether a device has room for what is to run there. `pool_bytes` is the pool's bound, None for the default's."""
    free, total, weights = status.device_bytes_free, status.device_bytes_total, status.model_bytes
    if not total:
        return ok(name, f"the host; models of {weights / MIB:,.0f} MiB")
    said = f"{free / MIB:,.0f} of {total / MIB:,.0f} MiB free beside models of {weights / MIB:,.0f} MiB"
    if free < weights / 4:
        cure = "fewer models on this device, float16, or a larger device: what a run needs grows with its frames"
        return fail(name, f"{said}: hardly any run will fit", cure)
    if pool_bytes is not None and pool_bytes - status.pool_bytes > free:
        cure = f"set worker.pool_bytes to {free // 4:,}, or leave it out"
        return fail(name, f"{said}: the pool may take {pool_bytes / MIB:,.0f} MiB, which are not there", cure)
    return ok(name, said)


def revisions(served: Iterable[Sequence[Description]]) -> list[Finding]:
    """Whether all workers that serve a model serve the same of it."""
    known: dict[str, set[str]] = {}
    for descriptions in served:
        for each in descriptions:
            known.setdefault(each.model, set()).add(each.revision)
    cure = "let a roll-out end, or pin the revision in gateway.revisions: the others get no work meanwhile"
    return [
        warn(f"model {model}", f"is served in {len(found)} revisions", cure)
        for model, found in sorted(known.items())
        if len(found) > 1
    ]
