"""Inputs: the outputs of stages that a run can read instead of computing them. Found at once, brought near while the
run waits for the device, at hand when its turn comes, and let go as soon as nothing that is left to run reads them.

Whatever is found may be gone by the time it is read. Then its stage runs, and what that stage needs is found wanting in
the same way, up to the media themselves. While a run waits it holds nothing but leases in the pool, so that waiting
takes no memory beyond the pool's and L1's bounds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from opentelemetry.trace import Span

from cache.description import Stage
from cache.parts import whole_name
from cache.reason import Reason, reason_of
from cache.record import Record
from cache.shares import shares
from cache.tier import Lookup, TierName, proves_absence
from cache.work import Work, divide
from inference.errors import MediaNeeded, NearGone
from inference.meaning import Meaning
from inference.models.base import Tensors
from inference.plan import Plan, lacks_loan, lacks_media
from inference.pool import Hot
from inference.stock import load
from inference.workshop import Workshop


class Inputs:
    """Use as a context manager, which gives all leases back."""

    def __init__(self, shop: Workshop, plan: Plan, meaning: Meaning, span: Span) -> None:
        self._shop = shop
        self._plan = plan
        self._meaning = meaning
        self._span = span
        self._hot: dict[str, Hot] = {}  # leased on the device, by stage
        self._near: set[str] = set()
        self._lost: set[str] = set()
        self.records: dict[str, Record] = {}  # by stage
        self.tiers: dict[str, TierName] = {}  # where each output came from; unknown for those inside a plan's records
        self.gone: set[str] = set()  # stages whose record is known to point at nothing
        self.reasons: dict[str, Reason] = {}  # why there is none of a stage, where more is known than that
        self.lookups: dict[str, list[Lookup]] = {}  # by stage

    def __enter__(self) -> Self:
        self._shop.waiting.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.begin()
        self.let_go()

    def begin(self) -> None:
        """The run's turn has come: its leases are not to be taken from it any more."""
        self._shop.waiting.discard(self)

    async def find(self) -> None:
        """Learn which outputs there are; called again later, which have been made since.

        Raises MediaNeeded if what is left to run needs pixels or samples that are not there, NearGone if it needs
        encodings of a near-duplicate that are not.
        """
        if not self._plan.reuse_nothing:
            self._find_in_pool(self._unknown())
            self._believe_plan(self._unknown())
            await self._find_in_tiers(self._unknown())
        needed = {stage.name for stage in self.work().reuse}
        self._release(self._hot.keys() - needed)

    def work(self) -> Work:
        """What there is to do, as far as is known. Raises MediaNeeded and NearGone."""
        work = divide(self._meaning.stages, self._meaning.outputs, self.records.keys() - self._lost)
        if lacks_loan(work, self._plan.instead):
            raise NearGone
        if lacks_media(work, self._plan.media):
            raise MediaNeeded
        return work

    async def bring_near(self) -> None:
        """Have every output that will be read in host memory, and on the device as far as the pool has room."""
        while far := [stage for stage in self.work().reuse if stage.name not in self._near]:
            await asyncio.gather(*map(self._bring, far))

    async def gather(self) -> dict[str, Tensors]:
        """Every output that the work reads, on the device. Nothing of `work` changes afterwards."""
        at_hand = dict(self._meaning.outputs)
        while missing := [stage for stage in self.work().reuse if stage.name not in at_hand]:
            for stage in missing:
                if (found := await self._take(stage)) is not None:
                    at_hand[stage.name] = found
        return at_hand

    def let_go(self) -> None:
        """Give back all leases. What was leased is read again when it is needed."""
        self._release(set(self._hot))

    def keep_only(self, stages: Container[str]) -> None:
        """Give back the leases of all other stages: nothing will read their outputs."""
        self._release({stage for stage in self._hot if stage not in stages})

    def _unknown(self) -> list[Stage]:
        known = (self.records.keys() - self._lost) | self._meaning.outputs.keys()
        return [stage for stage in self._meaning.stages[:-1] if stage.cached and stage.name not in known]

    def _find_in_pool(self, wanted: Sequence[Stage]) -> None:
        for stage in wanted:
            if (hot := self._lease(stage)) is not None:
                self._know(stage.name, hot.record, TierName.POOL)
            elif (hot := self._in_host(stage)) is not None:
                self._know(stage.name, hot.record, TierName.L1)  # for a caller: in the memory of this process

    def _lease(self, stage: Stage) -> Hot | None:
        """The stage's output if it is on the device, to stay there until it is let go."""
        address = self._meaning.addresses[stage.name]
        if stage.name not in self._hot and (hot := self._shop.pool.lease(address)) is not None:
            if not self._may_use(hot.record):
                self._shop.pool.release(address)
                return None
            self._hot[stage.name] = hot
        return self._hot.get(stage.name)

    def _in_host(self, stage: Stage) -> Hot | None:
        hot = self._shop.stock.host.peek(self._meaning.addresses[stage.name])
        return hot if hot is not None and self._may_use(hot.record) else None

    def _believe_plan(self, wanted: Sequence[Stage]) -> None:
        for stage in wanted:
            record = self._plan.brought(stage.name, self._meaning.addresses[stage.name], self._shop.clock())
            if record is not None and stage.name not in self._lost and not self._shop.bans.forbid(record):
                self.records[stage.name] = record

    async def _find_in_tiers(self, wanted: Sequence[Stage]) -> None:
        addresses = {self._meaning.addresses[stage.name]: stage for stage in wanted}
        asked = await self._shop.hierarchy.ask_many([(address, stage.ttl) for address, stage in addresses.items()])
        for address, lookups in shares({address: found.lookups for address, found in asked.items()}).items():
            self.lookups.setdefault(addresses[address].name, []).extend(lookups)
        for address, found in asked.items():
            stage = addresses[address].name
            if found.record is None or found.tier is None:
                self._doubt(stage, reason_of(found.lookups))
            elif self._may_use(found.record):
                self._know(stage, found.record, found.tier)
            else:
                self._doubt(stage, Reason.POLICY)

    def _doubt(self, stage: str, reason: Reason | None) -> None:
        if reason is not None:
            self.reasons.setdefault(stage, reason)

    def _know(self, stage: str, record: Record, tier: TierName) -> None:
        self.records[stage], self.tiers[stage] = record, tier
        self._lost.discard(stage)

    def _may_use(self, record: Record) -> bool:
        return self._plan.young_enough(record, self._shop.clock()) and not self._shop.bans.forbid(record)

    async def _bring(self, stage: Stage) -> None:
        span = self._shop.tracing.child(
            self._span,
            f"stage.{whole_name(stage.name)}",
            {
                "reprise.stage.outcome": "reused",
                "reprise.device_seconds": self.records[stage.name].device_seconds,
            },
        )
        try:
            if self._lease(stage) is None:
                await self._fetch(stage, span)
            if stage.name in self.tiers:
                span.set_attribute("reprise.cache.tier", self.tiers[stage.name].value)
        finally:
            span.end()
        self._near.add(stage.name)
        if stage.name not in self._lost:
            self._shop.hierarchy.touch(self.records[stage.name])

    async def _fetch(self, stage: Stage, span: Span) -> None:
        """Have an output in host memory, and on the device and leased if there is room."""
        address = self._meaning.addresses[stage.name]
        if self._in_host(stage) is not None:
            await self._shop.stock.promote(address)
        elif (data := await self._read(stage, span)) is not None and stage.pooled:
            # A gateway may have found it under another spelling; here it goes by its canonical address.
            record = replace(self.records[stage.name], address=address, canonical=None)
            try:
                await self._shop.stock.bring(record, data)
            except ValueError:
                self._lose(stage, for_good=True)
                return
        self._lease(stage)  # even where it was not put: somebody else may have done so in the meantime

    async def _take(self, stage: Stage) -> Tensors | None:
        if (hot := self._lease(stage)) is not None:
            return hot.tensors
        if (hot := self._in_host(stage)) is not None:
            own = hot.tensors
            self._left_the_device(stage)
        elif (data := await self._read(stage, self._span)) is None:
            return None
        else:
            try:
                own, _ = await self._shop.beside.run(load, data)
            except ValueError:
                self._lose(stage, for_good=True)
                return None
        return (await self._shop.compute(self._shop.device.device.bring_in, own))[0]

    async def _read(self, stage: Stage, span: Span) -> bytes | None:
        record = self.records[stage.name]
        if record.output.inline is not None:
            self._left_the_device(stage)
            self._heal(record, record.output.inline)
            return record.output.inline
        data, tier, lookups = await self._shop.hierarchy.read(
            record.address.namespace, record.output.digest, stage.ttl, cost=record.total_device_seconds
        )
        self._shop.tracing.lookups(span, lookups)
        self.lookups.setdefault(stage.name, []).extend(replace(lookup, value=None) for lookup in lookups)
        if data is None or tier is None:
            self._lose(stage, for_good=proves_absence(lookups))
            return None
        self._heal(record, data)
        if stage.name not in self._near or self.tiers.get(stage.name) is TierName.POOL:
            self.tiers[stage.name] = tier  # where it was first read from: later it is in host memory in any case
        return data

    def _heal(self, record: Record, data: bytes) -> None:
        if record.pending:
            self._shop.hierarchy.heal(record, lambda: data)

    def _left_the_device(self, stage: Stage) -> None:
        """The lease was given back, and the bytes are in this process."""
        if self.tiers.get(stage.name) is TierName.POOL:
            self.tiers[stage.name] = TierName.L1

    def _lose(self, stage: Stage, *, for_good: bool) -> None:
        self._lost.add(stage.name)
        self.reasons[stage.name] = Reason.EVICTED if for_good else Reason.TIER_FAILED
        if for_good:
            self.gone.add(stage.name)

    def _release(self, names: set[str]) -> None:
        for name in names:
            del self._hot[name]
            self._shop.pool.release(self._meaning.addresses[name])
