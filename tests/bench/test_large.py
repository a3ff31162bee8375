"""The measurement of large media is kept working; what it measures is not looked at here."""

from __future__ import annotations

from pathlib import Path

from tests.bench.large import MIB, measure


async def test_both_questions_are_answered(tmp_path: Path) -> None:
    """Nobody is refused, checks are answered meanwhile, and every way to read is told of."""
    waits, held = await measure(tmp_path, callers=2, sides=(640, 480), still=2, size=2 * MIB)

    assert [0, 0] == [each.refused for each in waits]
    assert min(each.checks for each in waits) > 0
    assert all(each.lag.endswith("ms") for each in waits)
    assert ["hit", "Download, just made", "Download, from the tiers"] == [each.what for each in held]
    assert all(each.speed > 0 and each.each < 2 for each in held)
