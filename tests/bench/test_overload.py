"""The bench of overload keeps working, and what it counts is what it says. No time is looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.bench.overload import TIMES, Flow, Level, Recovery

_ROOT = Path(__file__).resolve().parents[2]
_REASONS = {"QUEUE_FULL", "QUEUE_TOO_LONG", "TENANT_SHARE", "GATEWAY_BUSY", "DEADLINE_TOO_SHORT"}


def test_goodput_is_what_was_answered_while_the_load_lasted() -> None:
    """Of what could be done meanwhile; what came later does not count."""
    assert 0.75 == Level(8, capacity=5.0, seconds=4.0, load=Flow(asked=160, answered=[1.0] * 20, in_time=15)).goodput


@pytest.mark.parametrize(
    ("bad", "expected"), [((), 0), ((0,), 1), ((0, 1, 2), 3), ((5,), 6), (range(30), None), ((29,), None)]
)
def test_goodput_is_back_when_it_stays(bad: tuple[int, ...], expected: int | None) -> None:
    """From the first second on after which no window is below 90 % of before, however good it was in between."""
    asks = [(second + part / 4, second not in bad) for second in range(-5, 30) for part in range(4)]
    assert expected == Recovery(asks=asks, emptying=-0.5).seconds


def test_goodput_is_compared_with_what_it_was_before() -> None:
    """Where half is answered before and half afterwards, nothing is lost."""
    asks = [(second + part / 4, part % 2 == 0) for second in range(-5, 30) for part in range(4)]
    told = Recovery(asks=asks)
    assert (0.5, 0) == (told.before, told.seconds)


@pytest.mark.timeout(240)  # a deployment must start, and be asked for half a minute
def test_what_is_too_much_is_refused_and_nothing_else(tmp_path: Path) -> None:
    """Everything asked is answered, refused in words or late; hits, probes and operators notice nothing; what is made
    again after all tiers were emptied is made once.
    """
    command = [sys.executable, "-m", "tests.bench.overload", "--quick", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    told = json.loads((tmp_path / "overload.json").read_text())

    assert list(TIMES) == [each["times"] for each in told["levels"]]
    for each in told["levels"]:
        load, hits = each["load"], each["hits"]
        refused, failed = Counter(load["refused"]), Counter(load["failed"])
        assert load["asked"] == load["answered"] + refused.total() + failed.total()
        assert (True, True) == (refused.keys() <= _REASONS, failed.keys() <= {"DEADLINE_EXCEEDED"})
        assert (0, 0, hits["asked"]) == (load["without_a_time"], each["checks_refused"], hits["answered"])
        assert min(hits["asked"], each["checks"], load["answered"]) > 0
    assert told["levels"][-1]["load"]["refused"]
    assert told["quiet"]["beside"]["answered"] > 0
    emptied = told["emptied"]
    assert 1.0 == emptied["before"]
    assert emptied["generated"] > 0
    assert 0 == emptied["again"]
