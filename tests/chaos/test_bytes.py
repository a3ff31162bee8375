"""Whatever lies under a name: no wrong byte comes out. 500 faults here, 10,000 by `python -m tests.chaos.bytes`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.bytes import Outcomes, Row, play, servers
from tests.chaos.damage import KINDS

pytestmark = pytest.mark.timeout(240)


async def test_nothing_that_lies_under_a_name_passes_for_something_else(tmp_path: Path) -> None:
    """Every kind of damage in either shared tier and in both: no wrong answer, nothing run, all counted and gone."""
    with servers(tmp_path / "stack") as at:
        outcomes = await play(at, faults=500, seed=2026, executed=tmp_path / "executed")

    assert [] == outcomes.broken()
    assert outcomes.rows.keys() > KINDS.keys()
    assert 500 == sum(row.faults for row in outcomes.rows.values())
    assert all(row.met and row.made_again for row in outcomes.rows.values())


def test_each_broken_promise_is_told() -> None:
    outcomes = Outcomes({"torn": Row(faults=3, spoiled=3, met=3, counted=2, wrong=1, left=1)}, executed=True)
    assert 4 == len(outcomes.broken())
