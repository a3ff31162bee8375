"""What the soak takes for growth."""

from dataclasses import replace

import pytest

from tests.chaos.growth import MOST_CARRIERS, Look, judge

_MIB = 1024 * 1024
_AT_REST = [Look(60.0 * minute, "gateway", 1, 150 * _MIB, 50, 20, 30) for minute in range(20)]


def _grown(looks: list[Look]) -> list[str]:
    return [finding.text for finding in judge(looks, 300.0) if finding.grown]


def test_what_stays_does_not_grow() -> None:
    assert [] == _grown(_AT_REST)


@pytest.mark.parametrize(("what", "much"), [("bytes", 3 * _MIB), ("files", 2), ("threads", 1)])
def test_what_rises_minute_by_minute_grows(what: str, much: int) -> None:
    """Whatever it is; and not if it rose while things were being filled."""
    rising = [replace(look, **{what: getattr(look, what) + number * much}) for number, look in enumerate(_AT_REST)]
    filled = [
        replace(look, **{what: getattr(look, what) + min(number, 5) * much}) for number, look in enumerate(_AT_REST)
    ]

    assert [what in text for text in _grown(rising)] == [True]
    assert [] == _grown(filled)


def test_threads_of_the_object_store_may_come_late_within_their_bound() -> None:
    """They stay once they came: a slope would call that growth."""
    late = [replace(look, carriers=20 + 2 * number) for number, look in enumerate(_AT_REST)]
    over = [*_AT_REST[:1], replace(_AT_REST[1], carriers=MOST_CARRIERS + 1), *_AT_REST[2:]]

    assert [] == _grown(late)
    assert ["library" in text for text in _grown(over)] == [True]
