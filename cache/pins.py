"""Pins: what operators want at hand in every worker, whatever else comes. Addresses as reports give them."""

from __future__ import annotations

from dataclasses import dataclass

from cache.keys import Address


@dataclass(frozen=True, slots=True)
class Pin:
    """`at` is in seconds since the epoch; of two about one address the later one counts, of the same time the one
    that says off.
    """

    at: float
    address: Address
    on: bool


class Pins:
    """What is pinned. Nothing is until somebody says so."""

    def __init__(self) -> None:
        self._last: dict[Address, Pin] = {}

    def turn(self, pin: Pin) -> None:
        last = self._last.get(pin.address)
        if last is None or (last.at, not last.on) <= (pin.at, not pin.on):
            self._last[pin.address] = pin

    @property
    def wanted(self) -> list[Address]:
        """All that is pinned, in order."""
        return sorted((address for address, pin in self._last.items() if pin.on), key=str)
