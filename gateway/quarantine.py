"""Quarantine: what workers died of is not run for a while, so that it does not kill one after the other.

A run that was on the device of a worker that died may be why, or not: nothing says so. It begins anew at another one.
If that dies too while it runs there, it is set apart in all gateways, for as long as both crashes are held against it:
so nothing takes more than two workers with it in that time. What is cached is served, and everything else is run.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from cache.clock import steady
from cache.crashes import Crash
from cache.keys import Address
from cache.orders import Orders
from gateway.errors import Quarantined

_log = structlog.get_logger(__name__)


class Quarantine:
    """`seconds` is how long a crash is held against what ran then; 0: nothing ever is set apart."""

    def __init__(
        self,
        orders: Orders,
        registry: CollectorRegistry,
        *,
        seconds: float,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._orders = orders
        self._seconds = seconds
        self._clock = clock
        self._suspected = Counter(
            "reprise_runs_lost", "Runs on the device of a worker that died, by what this gateway saw", registry=registry
        )
        apart = Gauge("reprise_quarantined", "Requests not run because workers died of them", registry=registry)
        apart.set_function(lambda: len(self._orders.crashes.set_apart(since=self._since)))

    def check(self, address: Address) -> None:
        """Raises Quarantined."""
        if (crashed := self._orders.crashes.enough(address, since=self._since)) is not None:
            raise Quarantined(crashed + self._seconds - self._clock())

    def suspect(self, address: Address, process: str) -> None:
        """A worker's process died while it ran this."""
        _log.warning("worker died of a run, or with it", address=str(address), process=process)
        self._suspected.inc()
        self._orders.note(Crash(self._clock(), address, process))

    @property
    def _since(self) -> float:
        return self._clock() - self._seconds
