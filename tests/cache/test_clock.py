"""Clock: ages go by what has passed, whatever the machine's clock is set to."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from cache.clock import Clock, steady, watch_clock
from cache.settings import TelemetrySettings
from cache.telemetry import Telemetry

ROOT = Path(__file__).resolve().parents[2]
HOURS = 3600.0
OTHERS = {  # files where another clock is meant, and which
    "cache/clock.py": "the one it begins with",
    "cache/doctor.py": "this machine's, against a server's",
    "cache/objects.py": "that of a folder's files",
    "gateway/doctor.py": "this machine's, against a worker's",
    "gateway/schedule.py": "the one by which people say when",
}


class Machine:
    """A wall clock that can be set, and the time that passes all the same. Each reading may take a while."""

    def __init__(self, wall: float = 1.8e9) -> None:
        self.passed, self.set = 500.0, wall - 500.0
        self.takes: list[float] = []

    def wall(self) -> float:
        seen = self.passed + self.set
        self.passed += self.takes.pop(0) if self.takes else 0.0
        return seen

    def clock(self) -> Clock:
        return Clock(wall=self.wall, passed=lambda: self.passed)


def test_it_begins_as_the_wall_clock_does() -> None:
    assert 1.8e9 == Machine(1.8e9).clock()()
    assert abs(time.time() - steady()) < 60.0


@pytest.mark.parametrize("hours", [3, -3])
def test_it_counts_on_while_the_wall_clock_is_set(hours: float) -> None:
    machine = Machine(1.8e9)
    clock = machine.clock()
    machine.passed += 10.0
    machine.set += hours * HOURS
    machine.passed += 10.0
    assert 1.8e9 + 20.0 == clock()


def test_how_far_the_wall_clock_was_set_is_a_metric() -> None:
    """Nothing at first, and nothing again once it is set back."""
    machine, registry = Machine(), CollectorRegistry()
    watch_clock(registry, machine.clock())

    def told() -> float | None:
        return registry.get_sample_value("reprise_clock_offset_seconds")

    seen = [told()]
    for hours in (3, -6, 3):
        machine.set += hours * HOURS
        machine.passed += 60.0
        seen.append(told())
    assert [0.0, 3 * HOURS, -3 * HOURS, 0.0] == seen


def test_every_process_tells_it() -> None:
    telemetry = Telemetry(TelemetrySettings(), TracerProvider(), CollectorRegistry())
    told = telemetry.registry.get_sample_value("reprise_clock_offset_seconds")
    telemetry.stop()
    assert told is not None
    assert abs(told) < 60.0


def test_a_process_that_is_interrupted_while_it_reads_begins_at_the_right_moment() -> None:
    """Of its readings one is enough that was not."""
    machine = Machine(1.8e9)
    machine.takes = [2.0, 0.5, 0.0, 1.0, 3.0]
    clock = machine.clock()
    assert machine.passed + machine.set == clock()


def test_whatever_judges_ages_goes_by_it() -> None:
    """No other file reads the wall clock in seconds than those that mean another one. Spans' times are nanoseconds."""
    files = [file for room in ("cache", "gateway", "inference") for file in (ROOT / room).rglob("*.py")]
    reads = {str(file.relative_to(ROOT)) for file in files if _reads_the_wall_clock(file)}
    assert set(OTHERS) == reads


def _reads_the_wall_clock(file: Path) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == "time"
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    )
