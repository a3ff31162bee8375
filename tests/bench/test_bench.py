"""The bench keeps working: one tiny run of it, whose times nobody judges."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

_ROOT = Path(__file__).resolve().parents[2]
_KIB = 1024
_MANY, _FEW, _ONE = (1, 16), (1, 4), (1,)
SUBJECTS: dict[int, dict[str, tuple[int, ...]]] = {
    1: dict.fromkeys(("bare", "naive", "L1", "L2", "L3", "raw Redis", "raw S3", "L1, traced 1 %"), _MANY)
    | {"L1, idle": (4,), "L1, beside misses": (4,)},
    64: {"L1, 1 MB picture": _MANY, "L1, by digest": _MANY, "generation": _ONE, "miss": _ONE, "64 at once": _ONE},
    2048: dict.fromkeys(("bare", "naive", "L1", "L2+L3", "L3", "raw S3"), _FEW),
}


@pytest.mark.timeout(240)  # a dozen processes must start
def test_a_tiny_run_measures_every_subject(tmp_path: Path) -> None:
    """Each subject answers, and with nothing but what it is about; figures, aims and a chart are left behind."""
    options = ["--quick", "--rounds", "1", "--seconds", "0", "--size", "1", "--size", "2048", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "tests.bench", *options]
    run = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

    report = json.loads((tmp_path / "bench.json").read_text())
    cells = {(cell["name"], cell["size"], cell["clients"]): cell for cell in report["cells"]}
    expected = {(name, size * _KIB, n) for size, names in SUBJECTS.items() for name in names for n in names[name]}
    assert expected == set(cells)
    assert dict.fromkeys(cells, 0) == {name: cell["strays"] for name, cell in cells.items()}
    assert all(cell["requests"] == cell["clients"] for cell in cells.values())
    assert all(cell["p50_ms"]["median"] > 0 and cell["processor_ms"]["median"] > 0 for cell in cells.values())
    assert cells["generation", 64 * _KIB, 1]["p50_ms"]["median"] >= 50.0
    assert 10 == len(report["aims"])
    assert all(verdict["aim"] in run.stdout for verdict in report["aims"])
    with Image.open(tmp_path / "bench.png") as chart:
        assert chart.width > 100
