"""The share of the fault matrix that fits among tests: the same cases, fewer of everything, and counts judged.

One stack serves the file. What took how long is left to `make chaos`: other tests may run beside this one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import tests.chaos.cases  # noqa: F401  # registers them
from tests.chaos.case import CASES, in_order
from tests.chaos.play import Play
from tests.chaos.world import standing

pytestmark = pytest.mark.timeout(300)
SHARE = [case.name for case in in_order(CASES.values()) if case.share]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    with standing(tmp_path_factory.mktemp("chaos") / "stack") as world:
        yield Play(world, full=False)


@pytest.mark.parametrize("name", SHARE)
async def test_a_case_keeps_its_promises(play: Play, name: str) -> None:
    played = await play.case(CASES[name])
    if played.missing:
        pytest.skip(played.missing)
    assert "" == played.error
    assert [] == played.findings
    assert [] == [str(figure) for figure in played.figures if not (figure.kept or figure.timed)]


async def test_everything_that_was_called_durable_is_there(play: Play) -> None:
    assert [] == await play.lost()
