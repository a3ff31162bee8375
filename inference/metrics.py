"""Metrics of a worker beyond those of its tiers."""

from __future__ import annotations

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
        self._gauges = {
            name: Gauge(f"reprise_{name}", help, registry=registry)
            for name, help in {
                "pool_bytes": "Bytes held on the device",
                "pool_bytes_limit": "Bytes that may be held on the device",
                "pool_entries": "Outputs held on the device",
                "pool_pinned": "Outputs held on the device because they are pinned",
                "pool_evictions": "Outputs that left the device for want of room",
                "pool_demotions": "Outputs that moved from the device to the host's memory",
                "pool_promotions": "Outputs that moved from the host's memory to the device",
                "host_pool_bytes": "Bytes held in the host's memory for the device",
                "host_pool_entries": "Outputs held in the host's memory for the device",
                "host_pool_evictions": "Outputs that left the host's memory for want of room",
                "stage_peak_bytes": "The most device memory a stage needed beside what was in use when it began",
            }.items()
        }

    def watch(self, shop: Workshop) -> None:
        pool, stock, host = shop.pool, shop.stock, shop.stock.host
        self._queue.set_function(lambda: shop.turns.waiting)
        self._busy.set_function(lambda: shop.turns.busy)
        for name, read in {
            "pool_bytes": lambda: pool.bytes,
            "pool_bytes_limit": lambda: pool.max_bytes,
            "pool_entries": lambda: len(pool),
            "pool_pinned": lambda: pool.pinned,
            "pool_evictions": lambda: pool.evictions,
            "pool_demotions": lambda: stock.demotions,
            "pool_promotions": lambda: stock.promotions,
            "host_pool_bytes": lambda: host.bytes,
            "host_pool_entries": lambda: len(host),
            "host_pool_evictions": lambda: host.evictions,
            "stage_peak_bytes": lambda: shop.run_bytes,
        }.items():
            self._gauges[name].set_function(read)
