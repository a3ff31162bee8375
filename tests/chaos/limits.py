"""A limit of memory that the kernel holds a process to: it is killed where it wants more."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple, Self

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class _Names(NamedTuple):
    """What a version of cgroups calls its files."""

    limit: str
    peak: str  # the most that it ever had, in bytes
    events: str  # the file with the line `oom_kill N`


_FIRST = _Names("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control")
_SECOND = _Names("memory.max", "memory.peak", "memory.events")


class NoLimits(Exception):
    """This machine lets us limit nobody."""


class MemoryLimit:
    """A control group of our own. Use as a context manager, and run what is limited by `command`. Raises NoLimits."""

    def __init__(self, max_bytes: int) -> None:
        first = (_V1 / _FIRST.limit).exists()
        self._names = _FIRST if first else _SECOND
        self._group = (_V1 if first else _V2) / f"reprise-chaos-{os.getpid()}"
        self._max_bytes = max_bytes

    def __enter__(self) -> Self:
        try:
            self._group.mkdir()
            (self._group / self._names.limit).write_text(str(self._max_bytes))
            _ = self.peak  # which older kernels do not tell
        except OSError as error:
            self.__exit__()
            raise NoLimits(str(error)) from error
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._group.rmdir()

    @property
    def command(self) -> tuple[str, ...]:
        """What to run a program by."""
        return ("sh", "-c", f'echo $$ > "{self._group}/cgroup.procs" && exec "$@"', "sh")

    @property
    def peak(self) -> int:
        """Bytes of what was charged to it, files that it read among them: these go where there is no room."""
        return int((self._group / self._names.peak).read_text())

    @property
    def kills(self) -> int:
        found = re.search(r"^oom_kill (\d+)", (self._group / self._names.events).read_text(), re.MULTILINE)
        return int(found[1]) if found else 0


def resident_peak(pid: int) -> int:
    """The most bytes that were ever resident of a process, as the kernel has noted."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
