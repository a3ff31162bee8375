"""Processor time of other processes, and which cores they run on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_SCHEDULED = 2  # the clock of a process that counts nanoseconds in which it ran, in Linux's numbering


def clock_of(pid: int) -> Callable[[], float]:
    """Reads the seconds that all threads of a process have run, those that have ended too."""
    clock = ~pid << 3 | _SCHEDULED
    return lambda: time.clock_gettime(clock)


def cores() -> tuple[set[int], set[int]]:
    """Cores for whoever is measured, and for everybody else: apart where there are two."""
    available = sorted(os.sched_getaffinity(0))
    return {available[0]}, set(available[1:]) or {available[0]}


def pin(pids: Iterable[int], cores: set[int]) -> None:
    """Keep every thread of these processes, and those they start from now on, on these cores."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread.name), cores)
