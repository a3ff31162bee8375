"""Crashes: workers that died while they ran something. Of what has done that twice it is taken that it does.

A worker that dies says nothing, so nobody knows what it died of: each of the runs that had its device then may have
been the cause, or have had bad luck. Bad luck with the same run twice, at two processes and within minutes, is rare.
"""

from __future__ import annotations

from dataclasses import dataclass

from cache.keys import Address

ENOUGH = 2  # processes that must have died of one thing
REMEMBERED = 24 * 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class Crash:
    """`address` was being run by `process` when that died. `at` is in seconds since the epoch."""

    at: float
    address: Address
    process: str


class Crashes:
    """What is known of them. Several that saw the same process die of the same thing have seen one crash."""

    def __init__(self) -> None:
        self._by_address: dict[Address, dict[str, float]] = {}  # process -> when

    def add(self, crash: Crash) -> None:
        self.forget(crash.at - REMEMBERED)
        self._by_address.setdefault(crash.address, {}).setdefault(crash.process, crash.at)

    def enough(self, address: Address, *, since: float) -> float | None:
        """When the older of the last crashes came that are enough; None if they are not, of those since then."""
        times = sorted((at for at in list(self._by_address.get(address, {}).values()) if at > since), reverse=True)
        return times[ENOUGH - 1] if len(times) >= ENOUGH else None

    def set_apart(self, *, since: float) -> list[Address]:
        """All that crashed enough since then. May be asked for by another thread."""
        return [address for address in list(self._by_address) if self.enough(address, since=since) is not None]

    def forget(self, before: float) -> None:
        """Drop crashes older than this time, as those are that came long before the last one."""
        kept = {
            address: {process: at for process, at in crashes.items() if at >= before}
            for address, crashes in self._by_address.items()
        }
        self._by_address = {address: crashes for address, crashes in kept.items() if crashes}
