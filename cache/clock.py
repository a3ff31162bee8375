"""Clock: the time that ages go by. It never jumps, whatever the machine's clock does.

An entry's age is told by numbers that processes share (when it was made, when it expires), so they count from the
epoch, as wall clocks do. But a wall clock can be set while we run: by three hours forward every entry of L1 would be
over at once, by three hours back they would live three hours longer. So a process reads the wall clock once, when it
begins, and from then on counts what has passed, the sleep of the machine included.

Small drift needs no care: the kernel disciplines the clock it counts with as it does the wall clock (NTP slews both),
so that only steps tell them apart. Steps are not followed, not even slowly: at a rate that spares the entries, three
hours would take weeks, and meanwhile nobody could say by which time a process goes. A process that began under a wrong
clock, or was stopped with its virtual machine, keeps its error until it is restarted; `reprise_clock_offset_seconds`
says how large it is.

Who shows a moment to people, or has to do with other clocks, reads the wall clock: spans, logs, schedules, times of
files, `reprise doctor`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge

_READINGS = 5


def _passed() -> float:
    """Seconds since some moment, those in which the machine slept included where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Clock:
    """The wall clock as it was when this was made, and what has passed since. Call it for the time."""

    def __init__(self, *, wall: Callable[[], float] = time.time, passed: Callable[[], float] = _passed) -> None:
        self._wall = wall
        self._passed = passed
        self._origin = self._read()

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return self._origin + self._passed()

    def offset(self) -> float:
        """By how many seconds the wall clock is ahead of this one."""
        return self._read() - self._origin

    def _read(self) -> float:
        """What the wall clock says beyond what has passed. Of some readings the one that was least interrupted, so that
        processes of one machine agree.
        """
        readings = []
        for _ in range(_READINGS):
            before, wall, after = self._passed(), self._wall(), self._passed()
            readings.append((after - before, wall - (before + after) / 2))
        return min(readings)[1]


steady = Clock()  # of this process


def watch_clock(registry: CollectorRegistry, clock: Clock = steady) -> None:
    Gauge(
        "reprise_clock_offset_seconds",
        "By how much the machine's clock is ahead of the one that ages go by, which began with it and never jumps",
        registry=registry,
    ).set_function(clock.offset)
