"""Every decoder on thousands of inputs that nobody would send: each is taken, or refused as it is promised."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fuzz import guided
from tests.fuzz.campaign import ALL, run

INPUTS, SEED = 20_000, 20_261


@pytest.mark.parametrize("name", ALL)
async def test_no_input_is_a_finding(name: str, tmp_path: Path) -> None:
    """Guided by coverage where atheris can be had, in a process of its own, the same inputs every time."""
    (state,) = await run([name], inputs=INPUTS, seed=SEED, folder=tmp_path, at_once=1)

    assert [] == [(finding.place, finding.told) for finding in state.findings]
    assert (INPUTS, guided.atheris is not None) == (state.tried, state.guided)
    assert 0 < state.taken < INPUTS
    assert state.branches > 0 or not state.guided


async def test_a_finding_is_kept_and_the_run_goes_on(tmp_path: Path) -> None:
    """An exception that is not promised is told once for each place, with its input; a process that dies is one too."""
    (state,) = await run(["broken"], inputs=3_000, seed=SEED, folder=tmp_path, at_once=1)
    places = [finding.place for finding in state.findings]

    assert "ZeroDivisionError at broken.py:15" in places
    assert any(place.startswith("process ended with") for place in places)
    assert 1 == places.count("ZeroDivisionError at broken.py:15")
    raised = next(finding for finding in state.findings if finding.place.startswith("ZeroDivisionError"))
    assert b"/" == raised.file.read_bytes()[:1]


async def test_without_atheris_inputs_are_changed_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as elsewhere, and the output says that nothing guided them."""
    monkeypatch.setenv("REPRISE_FUZZ_UNGUIDED", "1")
    (state,) = await run(["record"], inputs=2_000, seed=SEED, folder=tmp_path, at_once=1)

    assert (2_000, False, []) == (state.tried, state.guided, state.findings)
    assert 0 < state.taken < 2_000
    assert await asyncio.to_thread(lambda: not list((tmp_path / "corpus").rglob("seed-*")))
