"""Favourites: outputs that operators want in the pool whatever else comes: loaded early, there until their hard age.

A favourite is an address as reports give it. Where the output at it is of a kind that is pooled, it is meant itself;
else what it was made of, as far as that is pooled and can be found: in the favourite's own namespace, or in the one
that all share. So the address of a video means the encodings of its picture.

What is not there yet, or cannot be read, is looked for again now and then; and it stays from when a run makes it. Out
of device memory even favourites leave, and come back when the device rests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress

import structlog

from cache.keys import Address
from cache.orders import Order
from cache.pins import Pin, Pins
from cache.record import Record
from cache.sweep import Gone
from inference.models.base import Model
from inference.workshop import Workshop

_LOOK_AGAIN = 30.0  # seconds
_log = structlog.get_logger(__name__)


class Favourites:
    """`wanted` stand in the settings, `pins` were ordered; `shared` is the namespace that everybody shares."""

    def __init__(
        self,
        shop: Workshop,
        models: Mapping[str, Model],
        wanted: Iterable[Address],
        pins: Pins,
        *,
        shared: str,
        look_again: float = _LOOK_AGAIN,
    ) -> None:
        self._shop = shop
        self._models = models
        self._pins = pins
        self._shared = shared
        self._look_again = look_again
        self._set = frozenset(wanted)
        self._meant: dict[Address, set[Address]] = {favourite: set() for favourite in self._set.union(pins.wanted)}
        self._tried: set[Address] = set()  # what cannot be had for now

    async def obey(self, order: Order | None) -> Gone:
        """Want another one, or one no more. What stands in the settings is wanted for as long as it stands there."""
        if isinstance(order, Pin):
            # What counts is the latest order about an address, and that need not be this one.
            if order.address in self._pins.wanted:
                self._meant.setdefault(order.address, set())
                self._shop.news.announce()
            elif order.address not in self._set:
                self.drop(order.address)
        return Gone()

    def drop(self, favourite: Address) -> None:
        """Want one no more. What is meant by another one stays."""
        dropped = self._meant.pop(favourite, set())
        for address in dropped.difference(*self._meant.values()):
            self._shop.pool.unpin(address)

    async def keep(self) -> None:
        """Have them all in the pool, for ever."""
        while True:
            await self.load()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_again):
                    while not self._something_to_do():
                        await self._shop.news.wait()

    async def load(self) -> None:
        """Have all those in the pool that can be had now."""
        for favourite, meant in list(self._meant.items()):
            if meant <= {favourite}:  # it may have been out of reach when it was looked for before
                meant = await self._meaning_of(favourite)
            if favourite in self._meant:  # nobody has dropped it meanwhile
                self._want(favourite, meant)
        for address in self._shop.pool.missing:
            await self._bring(address)
        before, self._tried = self._tried, self._shop.pool.missing
        if self._tried != before:
            _log.info("favourites missing", wanted=len(self._meant), missing=len(self._tried))

    def _want(self, favourite: Address, meant: set[Address]) -> None:
        before, self._meant[favourite] = self._meant[favourite], meant
        for address in before.difference(*self._meant.values()):
            self._shop.pool.unpin(address)
        for address in meant:
            self._shop.pool.pin(address)

    def _something_to_do(self) -> bool:
        new = any(not meant for meant in self._meant.values())
        return not self._shop.turns.busy and (new or not self._shop.pool.missing <= self._tried)

    async def _meaning_of(self, favourite: Address) -> set[Address]:
        """What of it is pooled. Itself where it cannot be found: it may yet be made."""
        meant: set[Address] = set()
        seen: set[Address] = set()
        wanted = {favourite}
        while wanted:
            seen |= wanted
            found = await self._shop.hierarchy.peek_many(sorted(wanted, key=str))
            records = [each.record for each in found.values() if each.record is not None]
            meant |= {record.canonical or record.address for record in records if self._is_pooled(record)}
            wanted = {
                near for record in records if not self._is_pooled(record) for near in self._made_of(record)
            } - seen
        return meant or {favourite}

    def _is_pooled(self, record: Record) -> bool:
        """Whether a model here would read it from the pool: one that computes it in the very same way."""
        stages = [stage for model in self._models.values() for stage in model.description.stages]
        return any(stage.pooled and stage.fingerprint == record.fingerprint for stage in stages)

    def _made_of(self, record: Record) -> set[Address]:
        spaces = (record.address.namespace, self._shared)
        return {Address(space, content_id) for space in spaces for content_id in record.upstream.values()}

    async def _bring(self, address: Address) -> None:
        try:
            await self._load_one(address)
        except Exception as error:  # noqa: BLE001  # bytes that are no tensors, a device that fails: others go on
            _log.warning("favourite not loaded", error=type(error).__name__)

    async def _load_one(self, address: Address) -> None:
        if await self._shop.stock.promote(address):
            return
        known = (await self._shop.hierarchy.peek_many([address]))[address].record
        if known is None:
            return
        found = await self._shop.hierarchy.fetch(address, known.ttl)
        if found.record is not None and found.data is not None:
            await self._shop.stock.bring(found.record, found.data)
