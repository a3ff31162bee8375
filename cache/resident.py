"""Resident: how much memory this process has, how much it may have, and giving back what it does not use.

What it may have is what its control group may, or one of those around it: whichever has least.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 2**60  # bytes; the first version of control groups has a number for no limit


def resident_bytes() -> int:
    """Bytes of this process that are in memory; 0 where nobody can tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGESIZE")


def limit_of_group(root: Path = Path("/")) -> int | None:
    """Bytes that the control group of this process may have; None where there is no limit."""
    limits = [limit for file in _limits(root) if (limit := _bytes_in(file)) is not None]
    return min(limits, default=None)


def give_back() -> None:
    """Give freed memory back to the system, which glibc keeps for the next use of it (`process.py`). Takes a while for
    large heaps. Does nothing on other C libraries.
    """
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)


def _limits(root: Path) -> Iterator[Path]:
    """Files with limits of the group of this process and of those around it, in either version."""
    try:
        told = (root / "proc/self/cgroup").read_text()
    except OSError:
        return
    for controllers, path in re.findall(r"^\d+:([^:]*):(/.*)$", told, re.MULTILINE):
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, name = (
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes") if controllers else ("sys/fs/cgroup", "memory.max")
        )
        group = Path(path.lstrip("/"))
        for each in (group, *group.parents):
            yield root / mount / each / name


def _bytes_in(file: Path) -> int | None:
    try:
        limit = int(file.read_text())  # "max" where there is none
    except (OSError, ValueError):
        return None
    return limit if limit < _UNLIMITED else None
