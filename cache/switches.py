"""Switches: what operators have taken off the cache while it runs: a tier, a model, or a tenant."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Subject(StrEnum):
    """What can be switched. A tenant is named by its namespace."""

    TIER = "tier"
    MODEL = "model"
    TENANT = "tenant"


@dataclass(frozen=True, slots=True)
class Switch:
    """`at` is in seconds since the epoch; of two switches of one thing the later one counts, of the same time the one
    that says off.
    """

    at: float
    subject: Subject
    name: str
    on: bool


class Switches:
    """How every switch stands. Everything is on until it is switched off."""

    def __init__(self) -> None:
        self._last: dict[tuple[Subject, str], Switch] = {}

    def turn(self, switch: Switch) -> None:
        key = (switch.subject, switch.name)
        last = self._last.get(key)
        if last is None or (last.at, not last.on) <= (switch.at, not switch.on):
            self._last[key] = switch

    def on(self, subject: Subject, name: str) -> bool:
        switch = self._last.get((subject, name))
        return switch is None or switch.on

    @property
    def off(self) -> list[tuple[Subject, str]]:
        """What is switched off, in order."""
        return sorted(key for key, switch in self._last.items() if not switch.on)
