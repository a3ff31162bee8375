"""Processor time of other processes, and which cores they run on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SCHEDULED = 2  # the clock of a process that counts nanoseconds in which it ran, in Linux's numbering


def clock_of(pid: int) -> Callable[[], float]:
    """Reads the seconds that all threads of a process have run, those that have ended too."""
    clock = ~pid << 3 | _SCHEDULED
    return lambda: time.clock_gettime(clock)


@contextmanager
def starting_on(cores: set[int]) -> Iterator[None]:
    """Whatever this thread starts meanwhile stays on these cores, with every thread it will ever have."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def stay_on(cores: set[int]) -> None:
    """Keep this process on these cores: the threads that it has, and those that it will have."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)


_AVAILABLE = sorted(os.sched_getaffinity(0))
MEASURED = {_AVAILABLE[0]}  # whoever is measured has this core for itself, where there are two
OTHERS = set(_AVAILABLE[1:]) or MEASURED
