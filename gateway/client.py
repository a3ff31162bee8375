"""Client: what a program in Python needs to call a gateway. The command line and the demo are built on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType

import aiohttp
import grpc

from cache.digest import Digest
from gateway.picture_files import LARGEST_FILE
from reprise.v1 import cache_pb2, common_pb2, media_pb2
from reprise.v1.cache_pb2_grpc import CacheServiceStub
from reprise.v1.media_pb2_grpc import MediaServiceStub

_MAX_MESSAGE = 64 * 1024 * 1024
_SOON, _LATER, _UPLOAD = 5.0, 30.0, 60.0  # seconds that a call without a stream may take
_FETCH = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=30.0)
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
)


@dataclass
class Media:
    """A finished generation as its client holds it."""

    data: bytes  # empty where the result has a URL instead
    result: media_pb2.Result
    name: str  # of the generation; empty for hits
    last_sequence: int
    cache_status: str = ""
    previews: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where the file can be had, if the request asked for that and it was possible; else `data` holds it."""
        return self.result.url

    @property
    def report(self) -> common_pb2.CacheReport:
        return self.result.report


class Client:
    """One connection to a gateway. Use as an async context manager.

    Raises grpc.aio.AioRpcError, and ValueError for a picture that is larger than any gateway takes. Streams last as
    long as they need; other calls have deadlines.
    """

    def __init__(self, address: str, *, api_key: str = "", session: str = "") -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._media = MediaServiceStub(self._channel)
        self._cache = CacheServiceStub(self._channel)
        headers = {"authorization": f"Bearer {api_key}" if api_key else "", "x-reprise-session": session}
        self._metadata = tuple((key, value) for key, value in headers.items() if value)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def animate(
        self,
        request: media_pb2.AnimateImageRequest,
        *,
        on_event: Callable[[media_pb2.GenerationEvent], None] = lambda event: None,
        deadline: float | None = None,
    ) -> Media:
        """Run a request to its result. `on_event` sees every event as it comes; `deadline` is in seconds."""
        _refuse_too_large("image", request.image)
        call = self._media.AnimateImage(request, timeout=deadline, metadata=self._metadata)
        media = await _collect((response.event async for response in call), on_event)
        trailers = dict(await call.trailing_metadata() or ())
        media.cache_status = str(trailers.get("cache-status", ""))
        return media

    async def rejoin(
        self, name: str, *, on_event: Callable[[media_pb2.GenerationEvent], None] = lambda event: None
    ) -> Media:
        """Everything that happened and happens to a generation, until it is known whether its artifact is durable."""
        return await _collect(self.watch(name), on_event)

    async def until_stored(self, media: Media) -> media_pb2.Stored.State:
        """Wait until it is known whether the artifact is durable."""
        if media.result.stored.state != media_pb2.Stored.STATE_PENDING or not media.name:
            return media.result.stored.state
        state = media.result.stored.state
        async for event in self.watch(media.name, media.last_sequence + 1):
            if event.HasField("stored"):
                state = event.stored.state
        return state

    async def watch(self, name: str, from_sequence: int = 0) -> AsyncIterator[media_pb2.GenerationEvent]:
        request = media_pb2.WatchRequest(name=name, from_sequence=from_sequence)
        async for response in self._media.Watch(request, metadata=self._metadata):
            yield response.event

    async def cancel(self, name: str) -> None:
        await self._media.Cancel(media_pb2.CancelRequest(name=name), timeout=_SOON, metadata=self._metadata)

    async def upload(self, content: bytes) -> media_pb2.UploadResponse:
        _refuse_too_large("content", content)
        request = media_pb2.UploadRequest(content=content)
        return await self._media.Upload(request, timeout=_UPLOAD, metadata=self._metadata)

    async def download(self, artifact: common_pb2.Digest, offset: int = 0) -> bytes:
        request = media_pb2.DownloadRequest(artifact=artifact, offset=offset)
        chunks = self._media.Download(request, metadata=self._metadata)
        return b"".join([response.chunk.data async for response in chunks])

    async def fetch(self, media: Media) -> bytes:
        """The file of a generation, by its URL if it came as one, verified. Raises ConnectionError if it cannot be had.

        No credentials are sent: the URL needs none, and may lead to a cache of somebody else.
        """
        if not media.url:
            return media.data
        try:
            async with (
                aiohttp.ClientSession(timeout=_FETCH) as session,
                session.get(media.url, raise_for_status=True) as response,
            ):
                data = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            status = f"HTTP {error.status}" if isinstance(error, aiohttp.ClientResponseError) else type(error).__name__
            raise ConnectionError(f"the URL gave no file: {status}; ask for the media again") from None
        artifact = media.result.artifact
        if await Digest.of_any_size(data) != Digest(artifact.hex, artifact.size):
            raise ConnectionError("the URL gave another file; ask for the media again")
        return data

    async def explain(
        self, request: media_pb2.AnimateImageRequest, after: media_pb2.AnimateImageRequest | None = None
    ) -> media_pb2.ExplainResponse:
        """What a request would be answered with, now or after another one. Nothing is run."""
        for each in (request, *([after] if after is not None else [])):
            _refuse_too_large("image", each.image)
        question = media_pb2.ExplainRequest(animate_image=request, after_animate_image=after)
        return await self._media.Explain(question, timeout=_LATER, metadata=self._metadata)

    async def stats(self) -> cache_pb2.StatsResponse:
        return await self._cache.Stats(cache_pb2.StatsRequest(), timeout=_LATER, metadata=self._metadata)

    async def invalidate(self, request: cache_pb2.InvalidateRequest) -> AsyncIterator[cache_pb2.InvalidateResponse]:
        """Who has heard, how far it is, and at last the receipt."""
        async for response in self._cache.Invalidate(request, metadata=self._metadata):
            yield response

    async def switch(self, request: cache_pb2.SwitchRequest) -> cache_pb2.SwitchResponse:
        return await self._cache.Switch(request, timeout=_LATER, metadata=self._metadata)

    async def warm(self, request: cache_pb2.WarmRequest) -> AsyncIterator[cache_pb2.WarmResponse]:
        """How far it is, what became of each, and at last the sum of it. Leaving the stream ends it."""
        async for response in self._cache.Warm(request, metadata=self._metadata):
            yield response

    async def savings(self) -> cache_pb2.SavingsResponse:
        return await self._cache.Savings(cache_pb2.SavingsRequest(), timeout=_LATER, metadata=self._metadata)


def _refuse_too_large(field: str, file: bytes) -> None:
    if len(file) > LARGEST_FILE:
        raise ValueError(f"{field}: a picture file must have at most {LARGEST_FILE:,} bytes; this has {len(file):,}")


async def _collect(
    events: AsyncIterator[media_pb2.GenerationEvent], on_event: Callable[[media_pb2.GenerationEvent], None]
) -> Media:
    name, sequence, result = "", 0, None
    chunks: dict[int, bytes] = {}
    previews: list[bytes] = []
    async for event in events:
        on_event(event)
        sequence = event.sequence
        if event.HasField("accepted"):
            name = event.accepted.name
        if event.HasField("preview"):
            previews.append(event.preview.image)
        if event.HasField("chunk"):
            chunks[event.chunk.offset] = event.chunk.data
        if event.HasField("result"):
            result = event.result
        if event.HasField("stored") and result is not None:
            result.stored.CopyFrom(event.stored)
    if result is None:
        raise ConnectionError("the stream ended before its result")
    data = b"".join(data for _, data in sorted(chunks.items()))
    return Media(data, result, name, sequence, previews=previews)
