"""MediaService: messages in, a plan, responses out. Everything that decides anything is elsewhere."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, TypeAlias

import grpc
from opentelemetry.trace import SpanKind, StatusCode

from cache import tags
from cache.build import Tiers
from cache.description import HOUR, Description, Scope
from cache.digest import Digest
from cache.keys import Principal, namespaces
from cache.near import USUAL_DISTANCE
from cache.switches import Subject
from cache.telemetry import Tracing, bind, parent_of
from gateway.darkroom import Darkroom, Source
from gateway.errors import InvalidField, NotFound, OutOfRange, Refused
from gateway.explain import Explainer
from gateway.framing import Framing
from gateway.identity import current_caller
from gateway.ledger import Ledger
from gateway.models import Models
from gateway.peers import Names, Peers
from gateway.plan import DefaultPolicy, Plan, Policy, choose_seed, default_policy, make_plan
from gateway.plans import Asked, Plans, asked
from gateway.replays import Replays
from gateway.resolve import Resolver, Visit
from gateway.uploads import Uploads
from gateway.validate import complete, given_fields, parse
from gateway.wire import CHUNK_BYTES
from reprise.v1 import common_pb2 as pb
from reprise.v1 import media_pb2 as media

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_ARTIFACT_TTL = 2 * HOUR  # seconds; how long Redis keeps what was downloaded


class MediaServicer:
    def __init__(
        self,
        models: Models,
        resolver: Resolver,
        explainer: Explainer,
        tiers: Tiers,
        darkroom: Darkroom,
        uploads: Uploads,
        names: Names,
        peers: Peers,
        plans: Plans,
        replays: Replays,
        ledger: Ledger,
        tracing: Tracing,
        *,
        secret: bytes,
        default_seed: int,
        policies: Sequence[DefaultPolicy],
        similar_by_default: Callable[[str, str], bool] = lambda model, tenant: False,
    ) -> None:
        self._models = models
        self._resolver = resolver
        self._explainer = explainer
        self._files = tiers.through_memory
        self._uploads = uploads
        self._darkroom = darkroom
        self._names = names
        self._peers = peers
        self._replays = replays
        self._ledger = ledger
        self._tracing = tracing
        self._default_seed = default_seed
        self._secret = secret
        self._switches = tiers.switches
        self._plans = plans
        self._policies = tuple(policies)
        self._similar = similar_by_default
        self._namespaces = lru_cache(maxsize=4096)(lambda principal: namespaces(secret, principal))

    async def AnimateImage(self, message: bytes, context: Context) -> AsyncIterator[bytes]:
        with self._visit("reprise.v1.MediaService/AnimateImage", context) as visit:
            same = asked(message, visit.principal)
            if (hit := await self._at_hand(same, message, visit)) is not None:
                for response in hit:
                    yield response
                return
            request = parse(media.AnimateImageRequest, message)
            plan = await self.plan_animation(request, visit.principal)
            self._plans.remember(same, request.model, plan, _upload(request))
            self._replays.note(plan, visit.principal, lambda: request)
            del message
            request.ClearField("image")  # a stream lasts long, and may have many beside it
            async with aclosing(self._resolver.resolve(plan, visit)) as responses:
                async for response in responses:
                    yield response

    async def Watch(self, request: media.WatchRequest, context: Context) -> AsyncIterator[bytes]:
        with self._visit("reprise.v1.MediaService/Watch", context) as visit:
            home = self._names.home_of(request.name)
            if home == self._names.own_address:
                watching = self._resolver.watch(request.name, request.from_sequence, visit.principal)
            else:
                watching = self._peers.watch(home, request, current_caller())
            async with aclosing(watching) as responses:
                async for response in responses:
                    yield response

    async def Cancel(self, request: media.CancelRequest, context: Context) -> media.CancelResponse:
        with self._visit("reprise.v1.MediaService/Cancel", context) as visit:
            home = self._names.home_of(request.name)
            if home == self._names.own_address:
                return media.CancelResponse(finished=not self._resolver.cancel(request.name, visit.principal))
            return await self._peers.cancel(home, request, current_caller())

    async def Upload(self, request: media.UploadRequest, context: Context) -> media.UploadResponse:
        with self._visit("reprise.v1.MediaService/Upload", context) as visit:
            namespace = self._own_files(visit.principal)
            source = await self._darkroom.identify(namespace, request.content)
            tenant = self._namespaces(visit.principal)[Scope.TENANT]
            await self._uploads.keep(namespace, tenant, source.file, source.identity, request.content)
            digest = pb.Digest(hex=source.file.hex, size=source.file.size)
            return media.UploadResponse(digest=digest, width=source.width, height=source.height)

    async def Download(self, request: media.DownloadRequest, context: Context) -> AsyncIterator[media.DownloadResponse]:
        with self._visit("reprise.v1.MediaService/Download", context) as visit:
            digest = _digest(request.artifact, "artifact")
            if request.offset > digest.size:
                raise OutOfRange("offset", f"the artifact has {digest.size} bytes")
            namespaces = self._namespaces(visit.principal).values()
            made = self._resolver.just_made(digest, namespaces)
            data = made.data if made is not None else None
            for namespace in namespaces if data is None else ():
                data, _, _ = await self._files.read(namespace, digest, _ARTIFACT_TTL)
                if data is not None:
                    break
            if data is None:
                raise NotFound("ARTIFACT_UNKNOWN")
            for offset in range(request.offset, max(digest.size, request.offset + 1), CHUNK_BYTES):
                chunk = media.Chunk(offset=offset, data=data[offset : offset + CHUNK_BYTES])
                yield media.DownloadResponse(chunk=chunk)

    async def Explain(self, request: media.ExplainRequest, context: Context) -> media.ExplainResponse:
        with self._visit("reprise.v1.MediaService/Explain", context) as visit:
            if not request.HasField("animate_image"):
                raise InvalidField("animate_image", "give the request to explain")
            plan = await self.plan_animation(request.animate_image, visit.principal)
            after = None
            if request.HasField("after_animate_image"):
                after = await self.plan_animation(request.after_animate_image, visit.principal)
            return await self._explainer.explain(plan, after)

    async def _at_hand(self, same: Asked | None, message: bytes, visit: Visit) -> Iterator[bytes] | None:
        """The answer to a request that was understood before, if its result is in memory."""
        known = self._plans.recall(same)
        if known is None or self._models.active(known.model, "animate_image") is not known.plan.description:
            return None
        if self._is_off(known.plan.description, visit.principal):
            return None
        hit = self._resolver.at_hand(known.plan, visit)
        if hit is not None:
            self._replays.note(known.plan, visit.principal, partial(parse, media.AnimateImageRequest, message))
            if known.upload is not None:
                await self._uploads.used(self._own_files(visit.principal), known.upload)
        return hit

    async def plan_animation(self, request: media.AnimateImageRequest, principal: Principal) -> Plan:
        """The plan of a request on behalf of this principal. Raises Refused."""
        by_url = _by_url(request.delivery)
        description = await self._models.describe(request.model, "animate_image")
        given, extra = given_fields(request)
        default = default_policy(self._policies, description.model, principal.tenant)
        policy = Policy.of(request.cache_policy, default, seeded="seed" in given)
        if not request.cache_policy.HasField("similarity") and self._similar(description.model, principal.tenant):
            policy = replace(policy, similarity=USUAL_DISTANCE)
        if self._is_off(description, principal):
            policy = policy.off()
        defaults = {"seed": self._default_seed}
        parameters = complete(description, choose_seed(given, policy), extra, defaults=defaults)
        source = await self._picture(request, principal)
        labels = tuple(tags.of_label(self._secret, label) for label in policy.labels)
        return make_plan(
            description,
            parameters,
            {"image": source},
            self._namespaces(principal),
            policy,
            tags=labels,
            by_url=by_url,
        )

    def _is_off(self, description: Description, principal: Principal) -> bool:
        """Whether an operator has taken the model or the tenant off the cache."""
        tenant = self._namespaces(principal)[Scope.TENANT]
        return not (self._switches.on(Subject.MODEL, description.model) and self._switches.on(Subject.TENANT, tenant))

    async def _picture(self, request: media.AnimateImageRequest, principal: Principal) -> Source:
        namespace, framing = self._own_files(principal), Framing.of(request.framing)
        match request.WhichOneof("picture"):
            case "image":
                return await self._darkroom.identify(namespace, request.image, framing)
            case "image_digest":
                digest = _digest(request.image_digest, "image_digest")
                source = await self._darkroom.recognise(
                    namespace, digest, partial(self._uploads.fetch, namespace, digest), framing
                )
                await self._uploads.used(namespace, digest)
                return source
        raise InvalidField("image", "give a picture, or the digest of one that was uploaded")

    def _own_files(self, principal: Principal) -> str:
        return self._namespaces(principal)[Scope.USER]

    @contextmanager
    def _visit(self, method: str, context: Context) -> Any:
        visit = Visit(
            principal=current_caller().principal,
            method=method,
            parent=parent_of(metadata_of(context)),
            set_cache_status=lambda status: context.set_trailing_metadata((("cache-status", status),)),
            started_ns=time.time_ns(),
        )
        try:
            yield visit
        except Refused as refused:
            self._ledger.refused(method, refused.code.name, refused.reason)
            if not visit.traced:
                self._trace_refusal(visit, refused)
            raise

    def _trace_refusal(self, visit: Visit, refused: Refused) -> None:
        attributes = {"rpc.system.name": "grpc", "rpc.method": visit.method, "error.type": refused.reason}
        span = self._tracing.begin(
            visit.method,
            parent=visit.parent,
            started_ns=visit.started_ns,
            attributes=attributes,
            kind=SpanKind.SERVER,
        )
        span.set_status(StatusCode.ERROR, refused.reason)
        span.end()
        bind(span)  # its trace is told with the error


def metadata_of(context: Context) -> Mapping[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _by_url(delivery: media.Delivery) -> bool:
    if delivery not in media.Delivery.values():
        raise InvalidField("delivery", "must be one that this gateway knows")
    return delivery == media.DELIVERY_URL


def _upload(request: media.AnimateImageRequest) -> Digest | None:
    return _digest(request.image_digest, "image_digest") if request.HasField("image_digest") else None


def _digest(message: pb.Digest, field: str) -> Digest:
    if len(message.hex) != 64 or not set(message.hex) <= set("0123456789abcdef"):
        raise InvalidField(f"{field}.hex", "must be 64 lower-case hexadecimal digits")
    return Digest(message.hex, message.size)
