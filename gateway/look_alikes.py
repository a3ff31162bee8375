"""Look-alikes: which pictures of a tenant look like which, so that one's encodings may stand in for another's.

This gateway remembers how pictures looked that it planned exact requests for, within a bound of bytes and for as long
as their encodings may be young. Nothing here is trusted to be there: a picture stands in only if the tiers hold the
encodings of every stage that reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from heapq import nsmallest

from cache import tags
from cache.bans import Ban
from cache.bounded import Bounded, Removal
from cache.clock import steady
from cache.description import Scope
from cache.hierarchy import Hierarchy
from cache.near import Look, distance, likeness
from cache.orders import Order
from cache.sweep import Gone, sweep
from gateway.darkroom import Source
from gateway.errors import Refused
from gateway.forward import known_encodings
from gateway.plan import Plan, StandIn

_OVERHEAD = 512  # bytes charged to every look
_KEPT = 2 * 3600.0  # seconds without a request for the picture
_MOST_COMPARED = 64  # by their pixels, of the nearest by their hash
_MOST_TRIED = 4  # of those, until one's encodings are found


class LookAlikes:
    """A namespace, which is a tenant's, never sees another's pictures."""

    def __init__(self, hierarchy: Hierarchy, *, max_bytes: int, clock: Callable[[], float] = steady) -> None:
        self._hierarchy = hierarchy
        self._clock = clock
        self._by_tenant: dict[str, dict[str, Look]] = {}  # namespace -> identity -> look
        self._kept: Bounded[tuple[str, str], frozenset[str]] = Bounded(max_bytes=max_bytes, on_removal=self._forget)

    def __len__(self) -> int:
        return len(self._kept)

    def remember(self, plan: Plan) -> None:
        """Note how the pictures of an exact plan look, if that was seen, so that they may stand in for others."""
        if plan.stand_ins or not plan.policy.store:
            return
        self.used(plan)
        tenant = plan.namespaces[Scope.TENANT]
        for name, source in _pictures(plan):
            place, marks = (tenant, source.identity), frozenset((tags.of_tenant(tenant), *plan.media_tags[name]))
            if place not in self._kept and (look := source.look) is not None:
                weight = look.weight + _OVERHEAD
                if self._kept.put(place, marks, weight=weight, now=self._clock(), ttl=_KEPT):
                    self._by_tenant.setdefault(tenant, {})[source.identity] = look

    def used(self, plan: Plan) -> None:
        """Note that the pictures of a plan were asked for again, if they are remembered."""
        for identity in plan.identities.values():
            self._kept.get((plan.namespaces[Scope.TENANT], identity), self._clock())

    async def obey(self, order: Order | None) -> Gone:
        """What is forbidden of a picture includes how it looks, and how parts of it look. Looks know their tenant, but
        neither users nor labels nor models: a ban that names no picture and no tenant may be about any, and takes all.
        """
        if not isinstance(order, Ban):
            return Gone()
        named = {mark for mark in order.condition.tags if tags.media_in(mark) or tags.tenant_in(mark)}
        await sweep(self._kept, lambda _, marks: named <= marks)
        return Gone()

    async def stand_in(self, plan: Plan) -> Plan | None:
        """The plan on a near-duplicate's encodings, if the request allows that, its own are not all there and those
        are.
        """
        most, tenant = plan.policy.similarity, plan.namespaces[Scope.TENANT]
        if most is None or not plan.policy.reuse or tenant not in self._by_tenant:
            return None
        for name, source in _pictures(plan):
            if await self._complete(plan, name):
                continue
            self._kept.expire(self._clock())
            known = dict(self._by_tenant.get(tenant, {}))
            if (look := known.pop(source.identity, None) or await _look_of(source)) is None:
                continue
            for candidate in await asyncio.to_thread(_nearest, look, known, most):
                near = plan.with_stand_ins({name: candidate})
                if await self._complete(near, name):
                    return near
        return None

    async def _complete(self, plan: Plan, name: str) -> bool:
        """Whether the tiers hold the encodings of every stage that reads this medium."""
        readers = {stage.name for stage in plan.stages if name in stage.media}
        if plan.description.final.name in readers:
            return False
        known, *_ = await known_encodings(self._hierarchy, plan, self._clock())
        return readers <= known.keys()

    def _forget(self, place: tuple[str, str], _marks: frozenset[str], _cause: Removal) -> None:
        tenant, identity = place
        looks = self._by_tenant[tenant]
        del looks[identity]
        if not looks:
            del self._by_tenant[tenant]


def _pictures(plan: Plan) -> list[tuple[str, Source]]:
    return [(name, medium) for name, medium in plan.media.items() if isinstance(medium, Source)]


def _nearest(look: Look, known: Mapping[str, Look], most: int) -> list[StandIn]:
    """Those of the known that are the same picture, the nearest first. Blocking."""
    close = nsmallest(_MOST_COMPARED, known, key=lambda identity: distance(look, known[identity]))
    found = [StandIn(each, alike) for each in close if (alike := likeness(look, known[each], most)) is not None]
    return sorted(found, key=lambda each: (each.likeness.distance, each.likeness.difference))[:_MOST_TRIED]


async def _look_of(source: Source) -> Look | None:
    try:
        return await source.looks()
    except Refused:
        return None  # it may still be answered exactly, and for that its file may not even be needed
