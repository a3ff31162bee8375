"""What operators want at hand."""

import pytest

from cache.keys import Address
from cache.pins import Pin, Pins

ONE, TWO = (Address("0" * 32, digit * 64) for digit in "12")


def test_the_later_pin_counts_in_whatever_order_they_are_heard() -> None:
    """Nothing is pinned at first; each address has a word of its own."""
    pins = Pins()
    assert pins.wanted == []
    pins.turn(Pin(2.0, TWO, on=True))
    pins.turn(Pin(1.0, TWO, on=False))
    pins.turn(Pin(1.0, ONE, on=True))
    assert pins.wanted == [ONE, TWO]
    pins.turn(Pin(3.0, TWO, on=False))
    assert pins.wanted == [ONE]


@pytest.mark.parametrize("first", [True, False])
def test_of_pins_of_one_time_the_one_that_says_off_counts(first: bool) -> None:
    """So all processes agree, in whatever order they hear them."""
    pins = Pins()
    for on in (first, not first):
        pins.turn(Pin(1.0, ONE, on=on))
    assert pins.wanted == []
