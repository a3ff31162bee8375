"""MediaService: messages in, a plan, responses out. Everything that decides anything is elsewhere."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any, TypeAlias

import grpc
from opentelemetry.trace import SpanKind, StatusCode

from cache.build import Tiers
from cache.description import HOUR, Scope
from cache.digest import Digest
from cache.flight import Errands
from cache.keys import Key
from cache.telemetry import Tracing, bind, parent_of
from gateway.darkroom import Darkroom
from gateway.departures import Departure, Departures
from gateway.errors import InvalidField, NotFound, OutOfRange, Refused
from gateway.explain import Explainer
from gateway.identity import current_caller
from gateway.large import Counter
from gateway.ledger import Ledger
from gateway.models import Models
from gateway.peers import Names, Peers
from gateway.planning import Planner, read_digest, upload_in
from gateway.plans import Asked, Plans, asked
from gateway.replays import Replays
from gateway.resolve import Resolver, Visit
from gateway.sounds import is_sound
from gateway.studio import Studio
from gateway.tasks import ANIMATE, SPEAK, TASKS, Task, request_in
from gateway.uploads import Uploads
from gateway.validate import parse
from reprise.v1 import common_pb2 as pb
from reprise.v1 import media_pb2 as media

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
UNPARSED = frozenset({"Upload", *(task.method for task in TASKS)})  # methods that see to their messages themselves
_ARTIFACT_TTL = 2 * HOUR  # seconds; how long Redis keeps what was downloaded
_PIECE = 256 * 1024  # bytes of a download's message: a reader that stands still has some copies of one


class MediaServicer:
    def __init__(
        self,
        planner: Planner,
        models: Models,
        resolver: Resolver,
        explainer: Explainer,
        tiers: Tiers,
        darkroom: Darkroom,
        studio: Studio,
        uploads: Uploads,
        departures: Departures,
        names: Names,
        peers: Peers,
        plans: Plans,
        replays: Replays,
        ledger: Ledger,
        tracing: Tracing,
    ) -> None:
        self._planner = planner
        self._models = models
        self._resolver = resolver
        self._explainer = explainer
        self._files = tiers.through_memory
        self._memory = tiers.memory
        self._darkroom = darkroom
        self._studio = studio
        self._uploads = uploads
        self._departures = departures
        self._names = names
        self._peers = peers
        self._plans = plans
        self._replays = replays
        self._ledger = ledger
        self._tracing = tracing
        self._counter = Counter()
        self._downloads: Errands[object, Callable[[int, int], bytes]] = Errands()

    def AnimateImage(self, message: bytes, context: Context) -> AsyncGenerator[bytes]:
        return self._make(ANIMATE, message, context)

    def SynthesizeSpeech(self, message: bytes, context: Context) -> AsyncGenerator[bytes]:
        return self._make(SPEAK, message, context)

    async def _make(self, task: Task, message: bytes, context: Context) -> AsyncGenerator[bytes]:
        with self._visit(task.method, context) as visit:
            same = asked(task.name, message, visit.principal)
            if (hit := await self._at_hand(task, same, message, visit)) is not None:
                for response in hit:
                    yield response
                return
            request, file = await self._counter.open(task.request, message, task.medium)
            plan = await self._planner.plan(request, visit.principal, file=file)
            self._plans.remember(same, request.model, plan, upload_in(request))
            self._replays.note(plan, visit.principal, partial(parse, task.request, message))
            del message, file  # a stream lasts long, and may have many beside it
            async with aclosing(self._resolver.resolve(plan, visit)) as responses:
                async for response in responses:
                    yield response

    async def Watch(self, request: media.WatchRequest, context: Context) -> AsyncIterator[bytes]:
        with self._visit("Watch", context) as visit:
            home = self._names.home_of(request.name)
            if home == self._names.own_address:
                watching = self._resolver.watch(request.name, request.from_sequence, visit.principal)
            else:
                watching = self._peers.watch(home, request, current_caller())
            async with aclosing(watching) as responses:
                async for response in responses:
                    yield response

    async def Cancel(self, request: media.CancelRequest, context: Context) -> media.CancelResponse:
        with self._visit("Cancel", context) as visit:
            home = self._names.home_of(request.name)
            if home == self._names.own_address:
                return media.CancelResponse(finished=not self._resolver.cancel(request.name, visit.principal))
            return await self._peers.cancel(home, request, current_caller())

    async def Upload(self, message: bytes, context: Context) -> media.UploadResponse:
        with self._visit("Upload", context) as visit:
            _, content = await self._counter.open(media.UploadRequest, message, "content")
            del message
            content, namespace = content or b"", self._planner.own_files(visit.principal)
            tenant = self._planner.namespaces(visit.principal)[Scope.TENANT]
            self._uploads.admit(tenant, len(content))
            response = media.UploadResponse()
            if is_sound(content):
                take = await self._studio.identify(namespace, content)
                file, identity = take.file, take.identity
                response.seconds, response.sample_rate = take.facts.seconds, take.facts.sample_rate
            else:
                source = await self._darkroom.identify(namespace, content)
                file, identity = source.file, source.identity
                response.width, response.height = source.width, source.height
            await self._uploads.keep(namespace, tenant, file, identity, content)
            response.digest.CopyFrom(pb.Digest(hex=file.hex, size=file.size))
            return response

    async def Download(self, request: media.DownloadRequest, context: Context) -> AsyncIterator[bytes]:
        with self._visit("Download", context) as visit:
            digest = read_digest(request.artifact, "artifact")
            if request.offset > digest.size:
                raise OutOfRange("offset", f"the artifact has {digest.size} bytes")
            namespaces = self._planner.namespaces(visit.principal).values()
            key = digest, tuple(namespaces)
            with self._departures.one(key, claimed=True) as reader:
                artifact = partial(self._artifact, digest, namespaces, reader.departure)
                reader.takes(_pieces(await self._downloads.share(key, artifact), request.offset, digest.size))
                for piece in reader:
                    yield piece

    async def _artifact(
        self, digest: Digest, namespaces: Collection[str], departure: Departure
    ) -> Callable[[int, int], bytes]:
        """What reads a finished file from one byte to another. Raises NotFound.

        A file in memory is not copied for each of its readers, who may take their time.
        """
        if (made := self._resolver.just_made(digest, namespaces)) is not None:
            return made.read
        for namespace in namespaces:  # all of them in memory first: to look below, room is reserved
            data = self._memory.held(Key.of_blob(namespace, digest))
            if data is not None and len(data) == digest.size:
                return partial(_cut, data)
        with departure.being_read():
            for namespace in namespaces:
                data, _, _ = await self._files.read(namespace, digest, _ARTIFACT_TTL, reserve=departure.reserve)
                if data is not None:
                    return partial(_cut, data)
        raise NotFound("ARTIFACT_UNKNOWN")

    async def Explain(self, request: media.ExplainRequest, context: Context) -> media.ExplainResponse:
        with self._visit("Explain", context) as visit:
            if (wanted := request_in(request)) is None:
                raise InvalidField(ANIMATE.name, f"give the request to explain, here or as {SPEAK.name}")
            plan = await self._planner.plan(wanted, visit.principal)
            earlier = request_in(request, "after_")
            after = await self._planner.plan(earlier, visit.principal) if earlier is not None else None
            return await self._explainer.explain(plan, after)

    async def _at_hand(self, task: Task, same: Asked | None, message: bytes, visit: Visit) -> Iterator[bytes] | None:
        """The answer to a request that was understood before, if its result is in memory."""
        known = self._plans.recall(same)
        if known is None or self._models.active(known.model, task.name) is not known.plan.description:
            return None
        if self._planner.is_off(known.plan.description, visit.principal):
            return None
        hit = self._resolver.at_hand(known.plan, visit)
        if hit is not None:
            self._replays.note(known.plan, visit.principal, partial(parse, task.request, message))
            if known.upload is not None:
                await self._uploads.used(self._planner.own_files(visit.principal), known.upload)
        return hit

    @contextmanager
    def _visit(self, name: str, context: Context) -> Any:
        method = f"reprise.v1.MediaService/{name}"
        visit = Visit(
            principal=current_caller().principal,
            method=method,
            parent=parent_of(metadata_of(context)),
            set_cache_status=lambda status: context.set_trailing_metadata((("cache-status", status),)),
            started_ns=time.time_ns(),
            left=context.time_remaining,
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


def _cut(data: bytes, start: int, stop: int) -> bytes:
    return data[start:stop]


def _pieces(read: Callable[[int, int], bytes], start: int, size: int) -> Iterator[bytes]:
    for offset in range(start, max(size, start + 1), _PIECE):
        yield _piece(offset, read(offset, offset + _PIECE))


def _piece(offset: int, data: bytes) -> bytes:
    """A message of a download, in wire form, so that its parts are not kept while it waits."""
    return media.DownloadResponse(chunk=media.Chunk(offset=offset, data=data)).SerializeToString()
