"""Envoy as a part: one port for gRPC, grpc-web and artifacts in front of all gateways, and the playground page.

The configuration is `deploy/envoy.yaml`, the same that runs by hand; only addresses are put into it here. It is written
into the part's folder, where the readiness check finds the admin port again.
"""

import http.client
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gateway.stack.parts import NotReady, Part, StackError
from gateway.stack.ports import LOOPBACK, free_port

_CONFIGURATION = "envoy.json"
_TEMPLATE = Path(__file__).with_name("envoy.yaml")  # in a checkout a link to the one in deploy/
_PAGE = Path(__file__).resolve().parents[2] / "deploy" / "web" / "dist"
_MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript"}
_LARGEST_PAGE = 2 * 1024 * 1024


def envoy(
    port: int, gateways: Sequence[str], artifacts: Sequence[str], folder: Path, log: Path, *, page: Path | None = None
) -> Part:
    """Envoy on `port` in front of these gateways, `artifacts` being their HTTP addresses; serves `page`, too.

    Raises StackError when this machine has no Envoy.
    """
    server = find_server()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = configure(
        template(), port=port, admin=free_port(), gateways=gateways, artifacts=artifacts, page=page
    )
    (folder / _CONFIGURATION).write_text(json.dumps(configuration, indent=1))
    command = (
        *(str(server), "-c", str((folder / _CONFIGURATION).absolute())),
        *("--concurrency", "1", "--log-level", "warning"),
        "--disable-hot-restart",  # it would share memory with any other Envoy of this machine
    )
    return Part("envoy", command, f"{LOOPBACK}:{port}", "envoy", log, folder, patience=30.0, grace=2.0)


def find_server() -> Path:
    """The Envoy that the Python wheel has brought. Raises StackError when there is none."""
    wheel = importlib.util.find_spec("envoy")
    if wheel is not None and wheel.origin is not None:
        carried = Path(wheel.origin).parent / "_bin" / "envoy"
        if carried.exists():
            return carried
    raise StackError(
        "no Envoy here: install the `stack` extra (`pip install 'reprise[stack]'`), or go without it (--web-port 0)"
    )


def template() -> dict[str, Any]:
    """The configuration as it stands in `deploy/envoy.yaml`."""
    configuration: dict[str, Any] = yaml.safe_load(_TEMPLATE.read_text())
    return configuration


def playground() -> Path | None:
    """The folder of the playground page, if it has been built."""
    return _PAGE if (_PAGE / "index.html").exists() else None


def configure(
    configuration: dict[str, Any],
    *,
    port: int,
    admin: int,
    gateways: Sequence[str],
    artifacts: Sequence[str],
    page: Path | None,
) -> dict[str, Any]:
    """Put addresses into the template, and the files of a page before its last rule, which refuses the rest."""
    [listener] = configuration["static_resources"]["listeners"]
    addresses = {"gateways": gateways, "artifacts": artifacts}
    configuration["admin"]["address"] = _address(f"{LOOPBACK}:{admin}")
    listener["address"] = _address(f"{LOOPBACK}:{port}")
    for cluster in configuration["static_resources"]["clusters"]:
        cluster["load_assignment"]["endpoints"] = [
            {"lb_endpoints": [{"endpoint": {"address": _address(each)}} for each in addresses[cluster["name"]]]}
        ]
    if page is not None:
        table = listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]
        table["max_direct_response_body_size_bytes"] = _LARGEST_PAGE
        table["virtual_hosts"][0]["routes"][-1:-1] = _files(page)
    return configuration


def serves(part: Part) -> None:
    """The readiness check: Envoy is initialised, and answers for a healthy gateway at its port. Raises NotReady."""
    configuration = json.loads((part.folder / _CONFIGURATION).read_text())
    admin = configuration["admin"]["address"]["socket_address"]["port_value"]
    _expect(admin, "/ready")
    _expect(part.port, "/healthz")


def _expect(port: int, path: str) -> None:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=1.0)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise NotReady(f"{path}: {error}") from error
    finally:
        connection.close()
    if status != 200:
        raise NotReady(f"{path}: {status}")


def _files(page: Path) -> list[dict[str, Any]]:
    """A route for each file of the page: Envoy holds them in memory."""
    return [
        {
            "match": {"path": "/" if file.name == "index.html" else f"/{file.name}"},
            "direct_response": {"status": 200, "body": {"filename": str(file.absolute())}},
            "response_headers_to_add": [
                _header("content-type", _MEDIA_TYPES[file.suffix]),
                _header("cache-control", "no-cache"),
            ],
        }
        for file in sorted(page.iterdir())
        if file.suffix in _MEDIA_TYPES
    ]


def _header(key: str, value: str) -> dict[str, Any]:
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _address(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}
