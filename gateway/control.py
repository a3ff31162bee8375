"""Control: what operators order. Entries are invalidated and pinned; tiers, models and tenants are switched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from cache import tags
from cache.bans import Ban
from cache.build import Tiers
from cache.clock import steady
from cache.condition import Condition
from cache.description import Scope
from cache.errors import TierError
from cache.keys import Address, Principal, namespace
from cache.orders import Heard
from cache.pins import Pin
from cache.purge import Receipt, Search, find, remove
from cache.switches import Subject, Switch
from cache.tier import TierName
from gateway.answer import tier_message, tier_name
from gateway.darkroom import Darkroom
from gateway.errors import InvalidField, Unavailable
from gateway.studio import Studio
from reprise.v1 import cache_pb2 as pb

_TELL_EVERY = 0.2  # seconds between two words about a search


class Control:
    def __init__(
        self,
        tiers: Tiers,
        darkroom: Darkroom,
        studio: Studio,
        *,
        secret: bytes,
        model_of: Callable[[str], str],
        clock: Callable[[], float] = steady,
    ) -> None:
        self._tiers = tiers
        self._darkroom = darkroom
        self._studio = studio
        self._secret = secret
        self._model_of = model_of  # what workers call the model of a name
        self._clock = clock

    async def invalidate(
        self, request: pb.InvalidateRequest, caller: Principal
    ) -> AsyncGenerator[pb.InvalidateResponse]:
        """Forbid, then remove. Raises InvalidField and Unavailable."""
        ban = Ban(self._clock(), await self._condition(request, caller))
        if not request.dry_run:
            yield pb.InvalidateResponse(heard=heard_message(await self._tiers.orders.give(ban)))
        read = 0

        def seen(count: int) -> None:
            nonlocal read
            read = count

        searching = asyncio.create_task(find(self._tiers, None, ban.forbids, seen=seen))
        try:
            while not (await asyncio.wait({searching}, timeout=_TELL_EVERY))[0]:
                yield pb.InvalidateResponse(records_read=read)
            found = searching.result()
            receipt = _would_go(found) if request.dry_run else await remove(self._tiers, found, ban.forbids)
        except TierError as error:
            raise Unavailable("STORE_UNREACHABLE") from error
        finally:
            searching.cancel()
        if not request.dry_run:
            await self._tiers.orders.sweep_again()
        yield pb.InvalidateResponse(records_read=read, receipt=_receipt_message(receipt))

    async def switch(self, request: pb.SwitchRequest) -> pb.SwitchResponse:
        """Raises InvalidField."""
        subject, name = self._subject(request)
        heard = await self._tiers.orders.give(Switch(self._clock(), subject, name, request.on))
        return pb.SwitchResponse(heard=heard_message(heard), switched_off=self.switched_off())

    async def pin(self, request: pb.PinRequest) -> pb.PinResponse:
        """Raises InvalidField."""
        try:
            address = Address.parse(request.address)
        except ValueError:
            raise InvalidField(
                "address", "must be an address as answers name it: 32 hexadecimal digits, a slash, 64 more"
            ) from None
        heard = await self._tiers.orders.give(Pin(self._clock(), address, request.on))
        return pb.PinResponse(heard=heard_message(heard), pinned=map(str, self._tiers.orders.pins.wanted))

    def switched_off(self) -> list[str]:
        return [f"{subject.value} {name}" for subject, name in self._tiers.switches.off]

    def _subject(self, request: pb.SwitchRequest) -> tuple[Subject, str]:
        match request.WhichOneof("subject"):
            case "tier":
                if (tier := tier_name(request.tier)) is None or tier is TierName.POOL:
                    raise InvalidField("tier", "must be L1, L2 or L3")
                return Subject.TIER, tier.value
            case "model" if request.model:
                return Subject.MODEL, self._model_of(request.model)
            case "tenant" if request.tenant:
                return Subject.TENANT, self._namespace(Scope.TENANT, request.tenant)
        raise InvalidField("subject", "say a tier, a model or a tenant")

    async def _condition(self, request: pb.InvalidateRequest, caller: Principal) -> Condition:
        condition = Condition(
            model=self._model_of(request.model),
            revision=request.revision,
            stage=request.stage,
            tags=tuple([tag async for tag in self._tags(request, caller)]),
            digest=await self._digest(request.digest),
            older_than=_seconds(request) if request.HasField("older_than") else None,
        )
        if not condition:
            raise InvalidField("request", "say which entries; older_than alone, with 0, means everything")
        return condition

    async def _tags(self, request: pb.InvalidateRequest, caller: Principal) -> AsyncGenerator[str]:
        if request.user and not request.tenant:
            raise InvalidField("tenant", "must be given with a user")
        own = self._namespace(Scope.USER, caller.tenant, caller.user)
        if request.picture:
            yield tags.of_media((await self._darkroom.identify(own, request.picture)).identity)
        if request.recording:
            yield tags.of_media((await self._studio.identify(own, request.recording)).identity)
        if request.label:
            yield tags.of_label(self._secret, request.label)
        if request.user:
            yield tags.of_user(self._namespace(Scope.USER, request.tenant, request.user))
        elif request.tenant:
            yield tags.of_tenant(self._namespace(Scope.TENANT, request.tenant))

    async def _digest(self, text: str) -> str:
        """What names an entry in all its spellings. Raises InvalidField for no digest, content id or address."""
        if not text:
            return ""
        try:
            address = Address.parse(text if "/" in text else f"{'0' * 32}/{text}")
        except ValueError:
            raise InvalidField("digest", "must be 64 lower-case hexadecimal digits, or an address") from None
        record = (await self._tiers.below_memory.peek_many([address]))[address].record
        return record.canonical.content_id if record and record.canonical else address.content_id

    def _namespace(self, scope: Scope, tenant: str, user: str = "") -> str:
        return namespace(self._secret, scope, Principal(tenant, user))


def heard_message(heard: Heard) -> pb.Heard:
    return pb.Heard(
        durable=heard.durable,
        told=heard.told,
        processes=[
            pb.Hearing(process=each.process, entries=each.gone.entries, bytes=each.gone.bytes)
            for each in heard.processes
        ],
    )


def _would_go(found: Search) -> Receipt:
    return Receipt(outputs=len(found.going))


def _receipt_message(receipt: Receipt) -> pb.Receipt:
    return pb.Receipt(
        outputs=receipt.outputs,
        tiers=[
            pb.Removal(tier=tier_message(tier), entries=gone.entries, bytes=gone.bytes)
            for tier, gone in receipt.tiers.items()
        ],
        unreached=[tier_message(tier) for tier in receipt.unreached],
    )


def _seconds(request: pb.InvalidateRequest) -> float:
    seconds = request.older_than.seconds + request.older_than.nanos / 1e9
    if seconds < 0:
        raise InvalidField("older_than", "must not be negative")
    return seconds
