"""The bench of a restart keeps working, and what it counts is what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from tests.bench.restart import WINDOW, Case
from tests.bench.traffic import FAVOURITES, SHARE, lines

_ROOT = Path(__file__).resolve().parents[2]


def test_the_traffic_is_the_one_it_is_said_to_be() -> None:
    """A dozen lines have their share, each its part of it, and it is the same traffic every time."""
    drawn = list(islice(lines(), 20_000))
    assert drawn == list(islice(lines(), 20_000))
    favourites = Counter(line for line in drawn if line < FAVOURITES)
    assert len(favourites) == FAVOURITES
    assert abs(sum(favourites.values()) / len(drawn) - SHARE) < 0.01
    assert len(set(drawn)) > 3_000


def test_a_peak_is_that_of_the_worst_window() -> None:
    assert Case("cold", 0, generations=[0.0, 1.0, 20.0, 21.0, 22.0, 40.0]).peak == 3 / WINDOW
    assert Case("cold", 0).peak == 0.0


@pytest.mark.timeout(240)  # three deployments must start
def test_what_was_made_before_a_restart_is_not_made_again_where_tiers_are_warm(tmp_path: Path) -> None:
    """Redis stopped or killed, gateways new: what was stored is found, and nobody fails. Emptied, it is made again."""
    command = [sys.executable, "-m", "tests.bench.restart", "--quick", "--rate", "10", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    cases = {case["restart"]: case for case in json.loads((tmp_path / "restart.json").read_text())["cases"]}
    assert [0, 0, 0] == [case["failed"] for case in cases.values()]
    assert {"warm, stopped": 0, "warm, killed": 0} == {name: cases[name]["again"] for name in cases if name != "cold"}
    assert cases["cold"]["again"] > 0
    assert (tmp_path / "restart.png").exists()
