"""Programs that measure, and the demo, say what they do when they are asked for help, and do nothing else."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_STARTED = sorted(
    file.stem
    for file in _HERE.glob("*.py")
    if not file.name.startswith("test_") and '__name__ == "__main__"' in file.read_text()
)
PROGRAMS = ["deploy.demo", "tests.bench", *(f"tests.bench.{name}" for name in _STARTED if name != "__main__")]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_help(program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is measured for it."""
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(program, run_name="__main__")
    assert ended.value.code in (None, 0)
    assert capsys.readouterr().out.lower().startswith("usage: ")
