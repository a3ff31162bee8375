"""The bench of spoken traffic keeps working, and what it counts is what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.bench.speech import text_of
from tests.bench.traffic import lines

_ROOT = Path(__file__).resolve().parents[2]
_REQUESTS = 16


@pytest.mark.timeout(240)  # a whole stack must start
def test_every_line_is_spoken_once(tmp_path: Path) -> None:
    """As many generations as there are different lines, whoever asks when; and any tier can say them all again."""
    command = [sys.executable, "-m", "tests.bench.speech", "--requests", str(_REQUESTS), "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "speech.json").read_text())
    different = len(set(islice(lines(), _REQUESTS)))
    assert report["generations"] == different
    assert report["avoided"] == report["ideal"] > 0
    answers = {kind: each["answers"] for kind, each in report["by"].items()}
    assert [different] * 3 == [answers.pop(f"{tier}, alone") for tier in ("l1", "l2", "l3")]
    assert sum(answers.values()) == _REQUESTS


def test_every_line_has_a_text_of_its_own() -> None:
    assert len({text_of(line) for line in range(2_000)}) == 2_000
