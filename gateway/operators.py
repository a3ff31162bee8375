"""CacheService: what operators ask of a gateway."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from cache.bounded import Removal
from cache.build import Tiers
from cache.errors import TierError
from cache.inspection import inspect, read_key
from cache.metered import Tally
from cache.telemetry import parent_of
from cache.tier import TierName
from gateway.answer import lookup_outcome_message, outcome_message, tier_message
from gateway.control import Control
from gateway.errors import InvalidField, NotFound
from gateway.identity import require_operator
from gateway.inspection import KEY_FORMS, inspection_message
from gateway.ledger import Ledger
from gateway.media import metadata_of
from gateway.savings import Savings
from gateway.warm import Warmer
from gateway.workers import Fleet
from reprise.v1 import cache_pb2 as pb

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class CacheServicer:
    def __init__(
        self, tiers: Tiers, fleet: Fleet, ledger: Ledger, savings: Savings, control: Control, warmer: Warmer
    ) -> None:
        self._tiers = tiers
        self._control = control
        self._fleet = fleet
        self._ledger = ledger
        self._savings = savings
        self._warmer = warmer
        self._started = time.monotonic()

    async def Stats(self, request: pb.StatsRequest, context: Context) -> pb.StatsResponse:
        require_operator()
        writer = self._tiers.writer
        return pb.StatsResponse(
            tiers=[self._memory(), *[await self._shared(tier.name, tier.tally) for tier in self._tiers.shared]],
            requests=[
                pb.OutcomeCount(outcome=outcome_message(outcome), count=count)
                for outcome, count in self._ledger.outcomes.items()
            ],
            device_seconds_spent=self._ledger.device_seconds_spent,
            device_seconds_saved=self._ledger.device_seconds_saved,
            generations=self._ledger.generations,
            write_behind=pb.WriteBehindStats(
                entries=writer.entries,
                bytes=writer.bytes,
                written=writer.counts.written,
                failed=writer.counts.failed,
                dropped=writer.counts.dropped,
            ),
            workers=[
                pb.WorkerStats(
                    address=worker.address,
                    healthy=worker.healthy,
                    models=sorted(worker.descriptions),
                    queued=worker.status.queued if worker.status else 0,
                    busy=worker.status.busy if worker.status else False,
                    pool_bytes=worker.status.pool_bytes if worker.status else 0,
                    pool_entries=worker.status.pool_entries if worker.status else 0,
                )
                for worker in self._fleet.workers
            ],
            uptime_seconds=time.monotonic() - self._started,
            switched_off=self._control.switched_off(),
        )

    async def Invalidate(
        self, request: pb.InvalidateRequest, context: Context
    ) -> AsyncGenerator[pb.InvalidateResponse]:
        caller = require_operator()
        async with aclosing(self._control.invalidate(request, caller.principal)) as responses:
            async for response in responses:
                yield response

    async def Switch(self, request: pb.SwitchRequest, context: Context) -> pb.SwitchResponse:
        require_operator()
        return await self._control.switch(request)

    async def Pin(self, request: pb.PinRequest, context: Context) -> pb.PinResponse:
        require_operator()
        return await self._control.pin(request)

    async def Inspect(self, request: pb.InspectRequest, context: Context) -> pb.InspectResponse:
        require_operator()
        try:
            key = read_key(request.key)
        except ValueError:
            raise InvalidField("key", KEY_FORMS) from None
        inspection = await inspect(self._tiers, key)
        if not inspection.found:
            raise NotFound("ENTRY_UNKNOWN")
        return inspection_message(inspection)

    async def Warm(self, request: pb.WarmRequest, context: Context) -> AsyncGenerator[pb.WarmResponse]:
        caller = require_operator()
        parent = parent_of(metadata_of(context))
        async with aclosing(self._warmer.warm(request, caller.principal, parent)) as responses:
            async for response in responses:
                yield response

    async def Savings(self, request: pb.SavingsRequest, context: Context) -> pb.SavingsResponse:
        require_operator()
        return self._savings.message(time.monotonic() - self._started)

    def _memory(self) -> pb.TierStats:
        entries = self._tiers.memory.entries
        stats = _answers(TierName.L1, self._tiers.memory_tally)
        stats.entries, stats.bytes, stats.capacity_bytes = len(entries), entries.bytes, entries.max_bytes
        stats.evictions = entries.removals[Removal.SIZE]
        return stats

    async def _shared(self, name: TierName, tally: Tally) -> pb.TierStats:
        stats = _answers(name, tally)
        stats.breaker = self._tiers.breakers[name].state
        if name is TierName.L2 and self._tiers.redis is not None:
            try:
                usage = await self._tiers.redis.usage()
            except TierError:
                return stats
            stats.entries, stats.bytes = usage["entries"], usage["bytes"]
            stats.capacity_bytes, stats.evictions = usage["capacity_bytes"], usage["evictions"]
        return stats


def _answers(name: TierName, tally: Tally) -> pb.TierStats:
    median, high = tally.percentiles()
    return pb.TierStats(
        tier=tier_message(name),
        lookups=[
            pb.LookupCount(outcome=lookup_outcome_message(outcome), count=count)
            for outcome, count in tally.outcomes.items()
        ],
        p50_seconds=median,
        p99_seconds=high,
    )
