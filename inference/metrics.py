"""Metrics of a worker beyond those of its tiers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inference.pool import Pool
from inference.turns import Turns

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
        self._pool_bytes = Gauge("reprise_pool_bytes", "Bytes held on the device", registry=registry)
        self._pool_entries = Gauge("reprise_pool_entries", "Outputs held on the device", registry=registry)
        self._pool_evictions = Gauge("reprise_pool_evictions", "Outputs let go for want of room", registry=registry)

    def watch(self, turns: Turns, pool: Pool) -> None:
        self._queue.set_function(lambda: turns.waiting)
        self._busy.set_function(lambda: turns.busy)
        self._pool_bytes.set_function(lambda: pool.bytes)
        self._pool_entries.set_function(lambda: len(pool))
        self._pool_evictions.set_function(lambda: pool.evictions)
