"""What operators want at hand."""

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
