"""What a process held over time, and whether that is growth: a slope, or for what has a bound, more than that."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cache.settings import L3Settings

_A_MINUTE = {"bytes": 2.0 * 1024**2, "files": 1.0, "threads": 0.5}  # growth that is none
# The object store's library hands every answer over on a thread that then waits ten seconds for more: their number is
# the most that ever met, and rises with each new coincidence. A call under way has the one that gives its answer, and
# the one that gave the answer before and is not done yet; the library's loop has one for each core.
_CALLS = L3Settings().reads + L3Settings().writes
MOST_CARRIERS = 2 * _CALLS + len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Look:
    """What a process held at a moment, in seconds since the start."""

    at: float
    process: str
    pid: int
    bytes: int
    files: int
    threads: int  # but for its carriers
    carriers: int  # threads of the object store's library


@dataclass(frozen=True)
class Finding:
    """What was seen of one thing that a process holds."""

    text: str
    grown: bool


def judge(looks: Sequence[Look], since: float) -> list[Finding]:
    """Looks at one process. What has a bound keeps it always, what has none does not grow from `since` on."""
    settled = [look for look in looks if look.at >= since]
    found = []
    for what, most in _A_MINUTE.items():
        much = _slope([(look.at, getattr(look, what)) for look in settled]) * 60
        found.append(Finding(f"{much:+,.2f} {what} a minute after the warm-up (at most {most:,.1f})", much > most))
    carriers = max((look.carriers for look in looks), default=0)
    text = f"{carriers} threads of the object store's library at most (bound {MOST_CARRIERS})"
    return [*found, Finding(text, carriers > MOST_CARRIERS)]


def _slope(points: Sequence[tuple[float, float]]) -> float:
    if len(points) < 3:
        return 0.0
    return float(statistics.linear_regression(*zip(*points, strict=True)).slope)
