"""Free ports on the loopback address, chosen so that two stacks on one machine never choose the same one."""

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

LOOPBACK = "127.0.0.1"
# SeaweedFS speaks gRPC on its port + 10000, so both must be free; the upper one stays below the ports that Linux
# hands to outgoing connections (from 32768), which could otherwise take it between the choice and the start.
COMPANION = 10_000
_CANDIDATES = range(20_000, 22_700)
_held: list[int] = []  # descriptors of lock files: a choice is ours for the life of this process


def free_port() -> int:
    """A port that nobody listens on and that no other process using this function will choose while we live.

    Raises OSError when every candidate is taken.
    """
    folder = Path(tempfile.gettempdir()) / f"reprise-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for port in random.sample(_CANDIDATES, len(_CANDIDATES)):
        if _claim(folder / str(port)) and is_free(port) and is_free(port + COMPANION):
            return port
    raise OSError(f"no free port between {_CANDIDATES.start} and {_CANDIDATES.stop}")


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections in TIME_WAIT do not count
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _claim(path: Path) -> bool:
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False
    _held.append(lock)
    return True
