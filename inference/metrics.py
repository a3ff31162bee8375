"""Metrics of a worker beyond those of its tiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from inference.workshop import Workshop

_SECONDS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class WorkerMetrics:
    """The families of a worker, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.generations = Counter("reprise_worker_generations", "Runs that reached the device", registry=registry)
        self.handed_over = Counter(
            "reprise_worker_handed_over", "Runs left to another worker, which was idle", registry=registry
        )
        self.stage_seconds = Histogram(
            "reprise_stage_seconds", "Device time of a stage", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._queue = Gauge("reprise_worker_queue", "Runs that wait for the device", registry=registry)
        self._busy = Gauge("reprise_worker_busy", "1 while a run has the device", registry=registry)
        self.out_of_memory = Counter(
            "reprise_worker_out_of_memory", "Computations that emptied the pool and ran again", registry=registry
        )
        self._registry = registry

    def watch(self, shop: Workshop) -> None:
        """Tell of a workshop's line and memory from now on."""
        pool, stock, host = shop.pool, shop.stock, shop.stock.host
        self._queue.set_function(lambda: shop.turns.waiting)
        self._busy.set_function(lambda: shop.turns.busy)
        self._tell("pool_bytes", "Bytes held on the device", lambda: pool.bytes)
        self._tell("pool_bytes_limit", "Bytes that may be held on the device", lambda: pool.max_bytes)
        self._tell("pool_entries", "Outputs held on the device", lambda: len(pool))
        self._tell("pool_pinned", "Outputs held on the device because they are pinned", lambda: pool.pinned)
        self._tell("pool_evictions", "Outputs that left the device for want of room", lambda: pool.evictions)
        self._tell("pool_demotions", "Outputs that moved to the host's memory", lambda: stock.demotions)
        self._tell("pool_promotions", "Outputs that came back from it", lambda: stock.promotions)
        self._tell("host_pool_bytes", "Bytes held in the host's memory for the device", lambda: host.bytes)
        self._tell("host_pool_entries", "Outputs held in the host's memory", lambda: len(host))
        self._tell("host_pool_evictions", "Outputs that left it for want of room", lambda: host.evictions)
        self._tell("stage_peak_bytes", "The most device memory a stage needed for itself", lambda: shop.run_bytes)

    def _tell(self, name: str, said: str, read: Callable[[], float]) -> None:
        Gauge(f"reprise_{name}", said, registry=self._registry).set_function(read)
