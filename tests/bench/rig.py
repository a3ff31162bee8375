"""Everything that is up while the bench runs: storage, a worker, gateways that differ in one setting, and the floors.

An entry is in a given tier because the gateway that is asked has no faster one:

    gateway           L1
    gateway-traced    L1, one hit in a hundred is traced
    gateway-l2        L2; files too large for it from L3, behind a record in L2
    gateway-l3        L3
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cache.settings import CacheSettings
from gateway.stack import Bucket, Part, Stack
from gateway.stack.ports import LOOPBACK, free_port
from tests.bench import floors
from tests.bench.processor import MEASURED, OTHERS, starting_on, stay_on
from tests.servers import bucket, leashed, objects_part, redis_part, redis_url

_ROOT = Path(__file__).resolve().parents[2]
_OFF = "false"
GATEWAYS = {
    "gateway": {"REPRISE_TELEMETRY__SAMPLE_RATIO": "0"},
    "gateway-traced": {"REPRISE_TELEMETRY__SAMPLE_RATIO": "0.01", "REPRISE_TELEMETRY__SPANS_FOLDER": "spans"},
    "gateway-l2": {"REPRISE_TELEMETRY__SAMPLE_RATIO": "0", "REPRISE_CACHE__L1__ENABLED": _OFF},
    "gateway-l3": {
        "REPRISE_TELEMETRY__SAMPLE_RATIO": "0",
        "REPRISE_CACHE__L1__ENABLED": _OFF,
        "REPRISE_CACHE__L2__ENABLED": _OFF,
    },
}


@dataclass(frozen=True)
class Rig:
    """What is up, by name: where it listens, and as which process it runs."""

    addresses: dict[str, str]
    pids: dict[str, int]
    cache: CacheSettings
    redis_url: str
    bucket: Bucket


@contextmanager
def standing(data: Path, *, step_seconds: float) -> Iterator[Rig]:
    """Storage, worker and gateways, up and ready; gone at the end, whatever happens."""
    with (
        leashed(data / "storage") as storage,
        leashed(data / "worker") as worker,
        leashed(data / "gateways") as gateways,
    ):
        with starting_on(OTHERS):
            storage.up([redis_part(storage.data), objects_part(storage.data)])
        settings = _settings(storage, home := f"{LOOPBACK}:{free_port()}")
        file = data / "reprise.yaml"
        file.touch(mode=0o600)
        file.write_text(yaml.safe_dump(settings))
        arguments = ("tests.bench.worker", str(file), _port(home), str(step_seconds))
        with starting_on(OTHERS):
            started = worker.up([_program(worker.data, "worker", home, *arguments)])
        with starting_on(MEASURED):
            started += gateways.up([_gateway(gateways.data, name, file, own) for name, own in GATEWAYS.items()])
        stay_on(OTHERS)
        yield Rig(
            {each.part.name: each.part.address for each in started},
            {each.part.name: each.pid for each in started},
            CacheSettings.model_validate(settings["cache"]),
            redis_url(storage),
            bucket(storage),
        )


@dataclass(frozen=True)
class Servers:
    """A deployment whose parts may be stopped and started."""

    storage: Stack
    gateways: Stack
    addresses: list[str]  # of the gateways


@contextmanager
def serving(
    data: Path,
    *,
    gateways: Sequence[str],
    step_seconds: float,
    line: int | None = None,
    section: Mapping[str, Any] | None = None,
    environment: Mapping[str, dict[str, str]] | None = None,
    commands: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Servers]:
    """Storage, a worker and gateways that are all alike, by their names; gone at the end, whatever happens.

    With `line` the worker runs one generation at a time, and so many may wait for it. `section` is of the gateways'
    settings, `environment` of single ones, by name, and so are `commands` that they are run by.
    """
    with (
        leashed(data / "storage") as storage,
        leashed(data / "worker") as worker,
        leashed(data / "gateways") as standing,
    ):
        storage.up([redis_part(storage.data), objects_part(storage.data)])
        settings = _settings(storage, home := f"{LOOPBACK}:{free_port()}")
        settings["gateway"] |= section or {}
        file = data / "reprise.yaml"
        file.touch(mode=0o600)
        file.write_text(yaml.safe_dump(settings))
        waiting = () if line is None else ("--line", str(line))
        arguments = ("tests.bench.worker", str(file), _port(home), str(step_seconds), *waiting)
        worker.up([_program(worker.data, "worker", home, *arguments)])
        started = standing.up(
            [
                _gateway(standing.data, name, file, (environment or {}).get(name, {}), (commands or {}).get(name, ()))
                for name in gateways
            ]
        )
        yield Servers(storage, standing, [each.part.address for each in started])


@contextmanager
def with_floors(rig: Rig, data: Path, recordings: Mapping[int, floors.Recordings]) -> Iterator[Rig]:
    """The same, and the servers that repeat what was recorded, by size of files: `bare` all, `naive-SIZE` one each.

    What a naive server pays for a size depends on the sizes its allocator has met before.
    """
    with leashed(data / "floors") as stack:
        folder = stack.data / "recordings"
        for size, of_size in recordings.items():
            floors.save(of_size, folder / str(size))
        parts = []
        for name in ("bare", *(f"naive-{size}" for size in recordings)):
            kind, _, only = name.partition("-")
            address = f"{LOOPBACK}:{free_port()}"
            arguments = (kind, str(folder / only), _port(address))
            parts.append(_program(stack.data, name, address, "tests.bench.floors", *arguments))
        with starting_on(MEASURED):
            started = stack.up(parts)
        yield Rig(
            rig.addresses | {each.part.name: each.part.address for each in started},
            rig.pids | {each.part.name: each.pid for each in started},
            rig.cache,
            rig.redis_url,
            rig.bucket,
        )


def _settings(storage: Stack, worker: str) -> dict[str, Any]:
    store = bucket(storage)
    return {
        "cache": {
            "secret": secrets.token_hex(32),
            "l2": {"url": redis_url(storage)},
            "l3": {
                "url": f"s3://{store.bucket}",
                "endpoint": store.endpoint,
                "region": store.region,
                "access_key": store.access_key,
                "secret_key": store.secret_key,
            },
        },
        "gateway": {"workers": [worker]},
        "telemetry": {"log_level": "warning"},
    }


def _gateway(data: Path, name: str, file: Path, own: dict[str, str], command: Sequence[str] = ()) -> Part:
    address = f"{LOOPBACK}:{free_port()}"
    environment = own | {"REPRISE_GATEWAY__NAME": name, "REPRISE_GATEWAY__PORT": _port(address)}
    program = _program(data, name, address, "gateway", "--config", str(file), environment=environment)
    return replace(program, command=(*command, *program.command))


def _program(
    data: Path, name: str, address: str, module: str, *arguments: str, environment: dict[str, str] | None = None
) -> Part:
    data.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(_ROOT), str(_ROOT / "protos")])  # tests are no part of what is installed
    return Part(
        name,
        (sys.executable, "-P", "-m", module, *arguments),
        address,
        "grpc",
        data / "logs" / f"{name}.log",
        data,
        {"PYTHONPATH": path, **(environment or {})},
        grace=0.0,  # nothing of it is kept
    )


def _port(address: str) -> str:
    return address.rpartition(":")[2]
