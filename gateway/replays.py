"""Replays: requests that their callers let be kept, and how often each was asked, so that they can be made ahead.

A request is kept the second time it is asked within a week: as a private record and blob of its tenant, in a namespace
that serves nothing else, tagged with its tenant, user, picture and labels. So whatever purges one of these takes it
along, and nobody can ask for it: it leaves the store only to be made again. How often it is asked is counted for all
gateways together, under a keyed hash that says nothing. All of it happens behind the answer, and is left out and
counted (`reprise_replays_dropped`) when that is slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import structlog
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, Counter

from cache import tags
from cache.bans import Ban
from cache.bounded import Bounded
from cache.build import Tiers
from cache.clock import steady
from cache.description import Scope
from cache.digest import Digest
from cache.encoding import Value, keyed_hash_of
from cache.errors import TierError
from cache.keys import Address, Principal, namespace, namespaces
from cache.orders import Order
from cache.record import Output, Record
from cache.sweep import Gone
from gateway.errors import NotFound, Unavailable
from gateway.plan import Plan
from gateway.planning import upload_in
from gateway.settings import ReplaySection
from gateway.status import path_of
from gateway.tasks import Request, favourite_of, quieten, request_in, task_of
from gateway.uploads import Uploads
from reprise.v1.cache_pb2 import Favourite

STAGE = "replay"
KEPT_FROM = 2  # how often it must have been asked
_MOST_WAITING, _MOST_WAITING_BYTES = 256, 64 * 1024 * 1024
_MOST_READ_BYTES = 256 * 1024 * 1024
_MOST_REMEMBERED = 10_000
_DRAIN = 2.0  # seconds
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Asked:
    address: Address
    at: float  # seconds since the epoch
    tags: tuple[str, ...] = ()
    files: str = ""  # namespace of the caller's uploads
    favourite: Favourite | None = None  # None: it is kept already

    @property
    def bytes(self) -> int:
        return self.favourite.ByteSize() if self.favourite is not None else 0


class Replays:
    """Use as an async context manager; leaving it writes what still waits, for two seconds at most."""

    def __init__(
        self,
        tiers: Tiers,
        uploads: Uploads,
        secret: bytes,
        settings: ReplaySection,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._hierarchy = tiers.below_memory
        self._uploads = uploads
        self._frequency = tiers.frequency
        self._bans = tiers.bans
        self._secret = secret
        self._settings = settings
        self._tenants = frozenset(namespace(secret, Scope.TENANT, Principal(name)) for name in settings.tenants)
        self._clock = clock
        self._kept: Bounded[Address, bool] = Bounded(max_bytes=_MOST_REMEMBERED)
        self._waiting: asyncio.Queue[_Asked] = asyncio.Queue(_MOST_WAITING)
        self._waiting_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._dropped = Counter(
            "reprise_replays_dropped", "Requests neither counted nor kept for want of time", registry=registry
        )

    async def __aenter__(self) -> Replays:
        self._writing = asyncio.create_task(self._write_forever())
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            async with asyncio.timeout(_DRAIN):
                await self._waiting.join()
        except TimeoutError:
            self._dropped.inc(self._waiting.qsize())
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    def note(self, plan: Plan, principal: Principal, request: Callable[[], Request]) -> None:
        """A caller asks this; `request` gives it, to keep. Costs a hash once it is kept, and its size before."""
        if not self._may_keep(plan):
            return
        if self._waiting.full():
            self._dropped.inc()
            return
        address, now = self._address_of(plan), self._clock()
        asked = _Asked(address, now)
        if self._kept.peek(address, now) is None:
            asked = _Asked(
                address,
                now,
                _tags(plan),
                plan.namespaces[Scope.USER],
                _favourite(request(), principal),
            )
        if self._waiting_bytes + asked.bytes > _MOST_WAITING_BYTES and self._waiting_bytes:
            self._dropped.inc()
            return
        self._waiting.put_nowait(asked)
        self._waiting_bytes += asked.bytes

    async def most_asked(self, tenant: str, most: int) -> list[Favourite]:
        """What a tenant asked most often lately, of what is kept; not more than may be in memory at once. Raises
        Unavailable.
        """
        if self._frequency is None:
            raise Unavailable("STORE_UNREACHABLE")
        spaces = namespaces(self._secret, Principal(tenant))
        group = self._group_of(spaces)
        favourites, held = list[Favourite](), 0
        try:
            for name in await self._frequency.most(group, least=KEPT_FROM):
                if len(favourites) == most or held >= _MOST_READ_BYTES:
                    break
                favourite = await self._read(Address(group, name))
                if favourite is not None and favourite.tenant == tenant:
                    favourites.append(favourite)
                    held += favourite.ByteSize()
        except TierError as error:
            raise Unavailable("STORE_UNREACHABLE") from error
        return favourites

    async def obey(self, order: Order | None) -> Gone:
        """Something may be kept no longer, and is kept anew if it is asked again; counts go with their tenant."""
        if not isinstance(order, Ban):
            return Gone()
        self._kept.clear()
        for mark in order.condition.tags:
            if self._frequency is not None and (tenant := tags.tenant_in(mark)):
                with suppress(TierError):  # they say nothing, and are forgotten within days
                    await self._frequency.forget(_group(self._secret, tenant))
        return Gone()

    async def settled(self) -> None:
        """Wait until everything noted so far is counted and kept, or given up."""
        await self._waiting.join()

    def _may_keep(self, plan: Plan) -> bool:
        policy = plan.policy
        if not self._settings.enabled or policy.fresh or not (policy.read and policy.store):
            return False
        return (
            policy.replayable
            or plan.description.model in self._settings.models
            or plan.namespaces[Scope.TENANT] in self._tenants
        )

    def _group_of(self, spaces: Mapping[Scope, str]) -> str:
        return _group(self._secret, spaces[Scope.TENANT])

    def _address_of(self, plan: Plan) -> Address:
        """Of the request as it is meant, whatever revision of the model answers it."""
        said: list[Value] = [plan.description.model, dict(plan.parameters), dict(plan.identities)]
        return Address(self._group_of(plan.namespaces), keyed_hash_of(self._secret, STAGE, said))

    async def _read(self, address: Address) -> Favourite | None:
        found = await self._hierarchy.fetch(address, self._settings.max_age)
        if found.data is None:  # purged, or not written yet
            return None
        try:
            return Favourite.FromString(found.data)
        except DecodeError:
            return None

    async def _write_forever(self) -> None:
        while True:
            asked = await self._waiting.get()
            try:
                await self._count(asked)
            except TierError:
                self._dropped.inc()
            except Exception as error:  # noqa: BLE001 - a bug here must not end the only writer there is
                _log.error("replay not kept", error=type(error).__name__, traceback=path_of(error))
                self._dropped.inc()
            finally:
                self._waiting_bytes -= asked.bytes
                self._waiting.task_done()

    async def _count(self, asked: _Asked) -> None:
        if self._frequency is None:
            return
        often = await self._frequency.asked(asked.address.namespace, asked.address.content_id)
        if asked.favourite is not None and often >= KEPT_FROM:
            await self._keep(asked, asked.favourite)

    async def _keep(self, asked: _Asked, favourite: Favourite) -> None:
        whole = Favourite()
        whole.CopyFrom(favourite)
        if (request := request_in(whole)) is not None and (named := upload_in(request)) is not None:
            try:  # an upload is forgotten long before
                task_of(request).give(request, await self._uploads.fetch(asked.files, named))
            except NotFound:
                return
        content = whole.SerializeToString()
        digest = await Digest.of_any_size(content)
        record = Record(
            address=asked.address,
            model="",  # nothing of a model is in it: it outlives what becomes wrong of one
            revision="",
            stage=STAGE,
            fingerprint="",
            output=Output(digest, "application/x-protobuf"),
            device_seconds=0.0,
            total_device_seconds=0.0,
            made_at=asked.at,
            touched_at=asked.at,
            ttl=self._settings.max_age,
            expires_at=asked.at + self._settings.max_age,
            tags=asked.tags,
        )
        durable = await (await self._hierarchy.commit(record, content, replace=True))
        if durable and not self._bans.forbid(record):  # in the meantime
            # A part of its age, so that what goes on being asked is written again before it is too old.
            self._kept.put(asked.address, True, weight=1, now=asked.at, ttl=self._settings.max_age / 4)


@lru_cache(maxsize=4096)
def _group(secret: bytes, tenant: str) -> str:
    """The namespace of a tenant's kept requests, given the tenant's own."""
    return keyed_hash_of(secret, "namespace", [STAGE, tenant])[:32]


def _tags(plan: Plan) -> tuple[str, ...]:
    return (
        tags.of_tenant(plan.namespaces[Scope.TENANT]),
        tags.of_user(plan.namespaces[Scope.USER]),
        *chain.from_iterable(plan.media_tags.values()),
        *plan.tags,
    )


def _favourite(request: Request, principal: Principal) -> Favourite:
    favourite = favourite_of(request, principal.tenant, principal.user)
    if (kept := request_in(favourite)) is not None:
        quieten(kept)
    return favourite
