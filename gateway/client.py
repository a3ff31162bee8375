"""Client: what a program in Python needs to call a gateway. The command line and the demo are built on it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeAlias, TypeVar

import aiohttp
import grpc

from cache.description import LONGEST_AGE
from cache.digest import Digest
from gateway.blueprint import LARGEST_FILE
from gateway.budget import RetryBudget
from gateway.status import Problem, explain_error
from gateway.tasks import Request, put_request, task_of
from reprise.v1 import cache_pb2, common_pb2, media_pb2
from reprise.v1.cache_pb2_grpc import CacheServiceStub
from reprise.v1.media_pb2_grpc import MediaServiceStub

_MAX_MESSAGE = 64 * 1024 * 1024
_SOON, _LATER, _UPLOAD = 5.0, 30.0, 60.0  # seconds that a call without a stream may take
_FETCH = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=30.0)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds before another try, where nobody says how long to wait
_WIDTH = 2  # bytes of a sample
_T = TypeVar("_T")
OnEvent: TypeAlias = Callable[[media_pb2.GenerationEvent], None]
OnRetry: TypeAlias = Callable[[Problem, float], None]
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
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
    """A connection to the gateways at `address`: one, or several with commas between them, which are tried in turn.

    Use as an async context manager. Requests are idempotent, so what a retry can avoid is not told: where a gateway
    dies, has no worker for the moment or says when there is room again, `animate` and `speak` ask again, within their
    deadline if they have one, else `tries` times in all, and never without a `budget` for it, which all requests share,
    and several clients may. Everything else raises grpc.aio.AioRpcError, and ValueError for a file that is larger than
    any gateway takes. Streams last as long as they need; other calls have deadlines.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str = "",
        session: str = "",
        tries: int = 4,
        budget: RetryBudget | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._doors = [_Door(each.strip()) for each in address.split(",")]  # the one to go to first
        headers = {"authorization": f"Bearer {api_key}" if api_key else "", "x-reprise-session": session}
        self._metadata = tuple((key, value) for key, value in headers.items() if value)
        self._tries = tries
        self._budget = budget if budget is not None else RetryBudget()
        self._sleep = sleep
        self._clock = clock
        self._chance = chance

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for door in self._doors:
            await door.channel.close()

    async def animate(
        self,
        request: media_pb2.AnimateImageRequest,
        *,
        on_event: OnEvent = lambda event: None,
        on_retry: OnRetry = lambda problem, seconds: None,
        deadline: float | None = None,
    ) -> Media:
        """Run a request to its result. `on_event` sees every event as it comes; `deadline` is in seconds.

        `on_retry` hears why the request is about to be made again and in how many seconds. What comes then begins
        anew: another `accepted` with another name, the generation's events from its first on, or a hit. A `fresh`
        request that was accepted once asks for the seed it was told, and so for the same generation.
        """
        return await self.make(request, on_event=on_event, on_retry=on_retry, deadline=deadline)

    async def speak(
        self,
        request: media_pb2.SynthesizeSpeechRequest,
        *,
        on_event: OnEvent = lambda event: None,
        on_retry: OnRetry = lambda problem, seconds: None,
        deadline: float | None = None,
    ) -> Media:
        """The same for speech. Of a `live` request no sample is told twice: after a retry the sound goes on where it
        was. Where it cannot, because what was heard is not what was made in the end, `on_retry` hears the reason
        SOUND_CHANGED, and the sound begins anew.
        """
        return await self.make(request, on_event=on_event, on_retry=on_retry, deadline=deadline)

    async def make(
        self,
        request: Request,
        *,
        on_event: OnEvent = lambda event: None,
        on_retry: OnRetry = lambda problem, seconds: None,
        deadline: float | None = None,
    ) -> Media:
        """What `animate` and `speak` do, for whichever request it is."""
        task = task_of(request)
        _refuse_too_large(task.medium, task.file_of(request))
        until = None if deadline is None else self._clock() + deadline
        patience, ear = _Patience(self, until), Ear(on_event)
        heard = _Heard(ear.tell)
        while True:
            door = self._doors[0]
            try:
                left = None if until is None else until - self._clock()
                call = getattr(door.media, task.method)(request, timeout=left, metadata=self._metadata)
                await heard.all(response.event async for response in call)
                patience.succeeded()
                trailers = dict(await call.trailing_metadata() or ())
                return heard.media(str(trailers.get("cache-status", "")))
            except (grpc.aio.AioRpcError, ConnectionError) as error:
                if heard.result is not None:
                    return heard.media()
                await patience.wait_after(error, door, _worth_another_try, on_retry)
                if _problem(error).reason == "SOUND_CHANGED":
                    ear = Ear(on_event)
                request = heard.same_again(request)
                heard = _Heard(ear.tell)

    async def listen(
        self,
        request: media_pb2.SynthesizeSpeechRequest,
        *,
        on_retry: OnRetry = lambda problem, seconds: None,
        deadline: float | None = None,
    ) -> AsyncGenerator[media_pb2.GenerationEvent]:
        """The events that `speak` would tell, for a loop over them; the result is in the last. Who leaves the loop
        closes the stream, and the generation goes on for as long as others or its grace want it to.
        """
        news: asyncio.Queue[media_pb2.GenerationEvent | None] = asyncio.Queue()
        making = asyncio.create_task(
            self.speak(request, on_event=news.put_nowait, on_retry=on_retry, deadline=deadline)
        )
        making.add_done_callback(lambda _: news.put_nowait(None))
        try:
            while (event := await news.get()) is not None:
                yield event
            await making
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)

    async def rejoin(self, name: str, *, on_event: OnEvent = lambda event: None) -> Media:
        """Everything that happened and happens to a generation, until it is known whether its artifact is durable.

        Raises NOT_FOUND when the gateway where it lives is gone: ask for the media itself again.
        """
        heard = _Heard(Ear(on_event).tell)
        try:
            await heard.all(self.watch(name))
        except grpc.aio.AioRpcError as error:
            if heard.result is None or error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        return heard.media()

    async def until_stored(
        self, media: Media, request: Request | None = None, *, patience: float = 60.0
    ) -> media_pb2.Stored.State:
        """Wait until it is known whether the artifact is durable.

        A hit has no name to be watched by, and is stored because it is asked for: with its `request` it is asked for
        again, for `patience` seconds. PENDING if it is not known then, or if the gateway that knew it is gone;
        NOT_STORED if nobody who was asked had it.
        """
        state = media.result.stored.state
        if state == media_pb2.Stored.STATE_PENDING and media.name:
            state = await self._watch_until_stored(media)
        if state == media_pb2.Stored.STATE_PENDING and request is not None:
            state = await self._ask_until_stored(_for_its_state(request, media), media.result.artifact, patience)
        return state

    async def _watch_until_stored(self, media: Media) -> media_pb2.Stored.State:
        state = media.result.stored.state
        try:
            async for event in self.watch(media.name, media.last_sequence + 1):
                if event.HasField("stored"):
                    state = event.stored.state
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND and not _leaves_unknown(_problem(error)):
                raise
        return state

    async def _ask_until_stored(
        self, request: Request, artifact: common_pb2.Digest, patience: float
    ) -> media_pb2.Stored.State:
        until, pause = self._clock() + patience, _FIRST_PAUSE
        told: set[media_pb2.Stored.State] = set()  # one gateway may not have yet what another one is storing
        while self._clock() + pause < until:
            await self._sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)
            try:
                state = await self._held_state(request, artifact, until - self._clock())
            except (grpc.aio.AioRpcError, ConnectionError) as error:
                if not _leaves_unknown(_problem(error)):
                    raise
                return media_pb2.Stored.STATE_PENDING
            if state == media_pb2.Stored.STATE_DURABLE:
                return state
            told.add(state)
        lost = told == {media_pb2.Stored.STATE_NOT_STORED}
        return media_pb2.Stored.STATE_NOT_STORED if lost else media_pb2.Stored.STATE_PENDING

    async def _held_state(
        self, request: Request, artifact: common_pb2.Digest, deadline: float
    ) -> media_pb2.Stored.State:
        """NOT_STORED where nothing is held, or another artifact, whose state says nothing of this one."""
        try:
            found = (await self.make(request, deadline=deadline)).result
        except grpc.aio.AioRpcError as error:
            if _problem(error).reason != "NOT_CACHED":
                raise
            return media_pb2.Stored.STATE_NOT_STORED
        return found.stored.state if found.artifact == artifact else media_pb2.Stored.STATE_NOT_STORED

    async def watch(self, name: str, from_sequence: int = 0) -> AsyncIterator[media_pb2.GenerationEvent]:
        """The events of a generation from one on. A stream that breaks is picked up where it broke, at any gateway."""
        patience = _Patience(self, None)
        while True:
            door = self._doors[0]
            request = media_pb2.WatchRequest(name=name, from_sequence=from_sequence)
            try:
                async for response in door.media.Watch(request, metadata=self._metadata):
                    from_sequence = response.event.sequence + 1
                    patience.renew()
                    yield response.event
            except grpc.aio.AioRpcError as error:
                await patience.wait_after(error, door, _broken)
            else:
                patience.succeeded()
                return

    async def cancel(self, name: str) -> media_pb2.CancelResponse:
        request = media_pb2.CancelRequest(name=name)
        return await self._ask(lambda door: door.media.Cancel(request, timeout=_SOON, metadata=self._metadata))

    async def upload(self, content: bytes) -> media_pb2.UploadResponse:
        _refuse_too_large("content", content)
        request = media_pb2.UploadRequest(content=content)
        return await self._ask(lambda door: door.media.Upload(request, timeout=_UPLOAD, metadata=self._metadata))

    async def download(self, artifact: common_pb2.Digest, offset: int = 0) -> bytes:
        request = media_pb2.DownloadRequest(artifact=artifact, offset=offset)
        chunks = self._doors[0].media.Download(request, metadata=self._metadata)
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

    async def explain(self, request: Request, after: Request | None = None) -> media_pb2.ExplainResponse:
        """What a request would be answered with, now or after another one. Nothing is run."""
        question = media_pb2.ExplainRequest()
        for each, prefix in ((request, ""), (after, "after_")):
            if each is not None:
                _refuse_too_large(task_of(each).medium, task_of(each).file_of(each))
                put_request(question, each, prefix)
        return await self._ask(lambda door: door.media.Explain(question, timeout=_LATER, metadata=self._metadata))

    async def invalidate(self, request: cache_pb2.InvalidateRequest) -> AsyncIterator[cache_pb2.InvalidateResponse]:
        """Who has heard, how far it is, and at last the receipt."""
        async for response in self._doors[0].cache.Invalidate(request, metadata=self._metadata):
            yield response

    async def inspect(self, key: str) -> cache_pb2.InspectResponse:
        """Where an entry lies, and what its record says; `key` in any of the forms that InspectRequest has."""
        request = cache_pb2.InspectRequest(key=key)
        return await self._ask(lambda door: door.cache.Inspect(request, timeout=_LATER, metadata=self._metadata))

    async def switch(self, request: cache_pb2.SwitchRequest) -> cache_pb2.SwitchResponse:
        return await self._ask(lambda door: door.cache.Switch(request, timeout=_LATER, metadata=self._metadata))

    async def warm(self, request: cache_pb2.WarmRequest) -> AsyncIterator[cache_pb2.WarmResponse]:
        """How far it is, what became of each, and at last the sum of it. Leaving the stream ends it."""
        async for response in self._doors[0].cache.Warm(request, metadata=self._metadata):
            yield response

    async def savings(self) -> cache_pb2.SavingsResponse:
        request = cache_pb2.SavingsRequest()
        return await self._ask(lambda door: door.cache.Savings(request, timeout=_LATER, metadata=self._metadata))

    async def pin(self, address: str, *, on: bool = True) -> cache_pb2.PinResponse:
        request = cache_pb2.PinRequest(address=address, on=on)
        return await self._ask(lambda door: door.cache.Pin(request, timeout=_LATER, metadata=self._metadata))

    async def stats(self) -> cache_pb2.StatsResponse:
        request = cache_pb2.StatsRequest()
        return await self._ask(lambda door: door.cache.Stats(request, timeout=_LATER, metadata=self._metadata))

    async def _ask(self, call: Callable[[_Door], Awaitable[_T]]) -> _T:
        """What one of the gateways answers, where they are several; the first that can be reached."""
        patience = _Patience(self, None, tries=len(self._doors))
        while True:
            door = self._doors[0]
            try:
                answer = await call(door)
            except grpc.aio.AioRpcError as error:
                await patience.wait_after(error, door, _broken)
            else:
                patience.succeeded()
                return answer


class _Door:
    """The way to one gateway."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.media = MediaServiceStub(self.channel)
        self.cache = CacheServiceStub(self.channel)


class _Patience:
    """How often, and with what pauses, one call is made again."""

    def __init__(self, client: Client, until: float | None, *, tries: int | None = None) -> None:
        self._client = client
        self._until = until  # on the client's clock; None: `tries` is the bound
        self._tries = client._tries if tries is None else tries
        self._failures = 0

    def renew(self) -> None:
        """There was progress."""
        self._failures = 0

    def succeeded(self) -> None:
        self._client._budget.succeeded()

    async def wait_after(
        self,
        error: Exception,
        door: _Door,
        worth_it: Callable[[Problem], bool],
        on_retry: Callable[[Problem, float], None] = lambda problem, seconds: None,
    ) -> None:
        """Wait as long as makes sense before another try, at another door. Raises the error if none does."""
        client = self._client
        problem = _problem(error)
        if not worth_it(problem) or not client._budget.failed():
            raise error
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._failures) * (0.5 + client._chance() / 2)
        pause = max(pause, (problem.retry_after or 0.0) * (1.0 + client._chance() / 4))
        self._failures += 1
        spent = self._failures >= self._tries if self._until is None else client._clock() + pause >= self._until
        if spent:
            raise error
        if client._doors[0] is door:  # else a call beside this one has turned already
            client._doors.append(client._doors.pop(0))
        on_retry(problem, pause)
        await client._sleep(pause)


def _problem(error: Exception) -> Problem:
    if isinstance(error, grpc.RpcError):
        return explain_error(error)
    return Problem(grpc.StatusCode.UNAVAILABLE, "", None, str(error), None)


def _worth_another_try(problem: Problem) -> bool:
    """Whether the request may well succeed when it is made again."""
    if problem.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return problem.retry_after is not None
    return problem.code is grpc.StatusCode.UNAVAILABLE or _broken(problem)


def _broken(problem: Problem) -> bool:
    """Whether the connection failed, not the request: a gateway says why it refuses, and this comes without a reason,
    or with the one that the gateway goes.

    A gateway that stops answers calls that it has not begun with CANCELLED (grpc#41785), which nobody here asked for.
    """
    return problem.reason in ("", "GATEWAY_LEAVING") and problem.code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
    )


def _leaves_unknown(problem: Problem) -> bool:
    """Whether nobody was there, or in time, to answer what was asked."""
    return _worth_another_try(problem) or problem.code is grpc.StatusCode.DEADLINE_EXCEEDED


def _for_its_state(request: Request, media: Media) -> Request:
    """The request for what is held of this artifact, without its bytes, however old it is by now."""
    again: Request = type(request).FromString(request.SerializeToString())
    again.cache_policy.mode = common_pb2.CachePolicy.MODE_ONLY_IF_CACHED
    again.cache_policy.max_age.FromSeconds(int(LONGEST_AGE))  # unset, the deployment's default would hold
    again.delivery = media_pb2.DELIVERY_NONE
    again.cache_policy.fresh = False
    if media.result.seed:  # a model may have none, and refuse it; one that was drawn is not 0
        again.seed = media.result.seed
    if isinstance(again, media_pb2.SynthesizeSpeechRequest):
        again.live = False
    return again


def _refuse_too_large(field: str, file: bytes) -> None:
    if len(file) > LARGEST_FILE:
        raise ValueError(f"{field}: a file must have at most {LARGEST_FILE:,} bytes; this has {len(file):,}")


class Ear:
    """Tells events on, and of live sound only what was not heard before."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._tuned = False
        self._heard = 0  # samples

    def tell(self, event: media_pb2.GenerationEvent) -> None:
        if event.HasField("sound"):
            if self._tuned:
                return
            self._tuned = True
        if event.HasField("samples"):
            known = self._heard - event.samples.offset
            if known >= len(event.samples.pcm) // _WIDTH:
                return
            if known > 0:
                event.samples.offset = self._heard
                event.samples.pcm = event.samples.pcm[known * _WIDTH :]
            self._heard = event.samples.offset + len(event.samples.pcm) // _WIDTH
        self._on_event(event)


class _Heard:
    """What one stream of events has told so far."""

    def __init__(self, on_event: OnEvent) -> None:
        self.result: media_pb2.Result | None = None
        self._on_event = on_event
        self._accepted: media_pb2.Accepted | None = None
        self._sequence = 0
        self._chunks: dict[int, bytes] = {}
        self._previews: list[bytes] = []

    async def all(self, events: AsyncIterator[media_pb2.GenerationEvent]) -> None:
        """Listen to the end. Raises ConnectionError if there was no result until then."""
        async for event in events:
            self._on_event(event)
            self._hear(event)
        if self.result is None:
            raise ConnectionError("the stream ended before its result")

    def _hear(self, event: media_pb2.GenerationEvent) -> None:
        self._sequence = event.sequence
        if event.HasField("accepted"):
            self._accepted = event.accepted
        if event.HasField("preview"):
            self._previews.append(event.preview.image)
        if event.HasField("chunk"):
            self._chunks[event.chunk.offset] = event.chunk.data
        if event.HasField("result"):
            self.result = event.result
        if event.HasField("stored") and self.result is not None:
            self.result.stored.CopyFrom(event.stored)

    def media(self, cache_status: str = "") -> Media:
        assert self.result is not None  # noqa: S101  # callers see to that
        data = b"".join(data for _, data in sorted(self._chunks.items()))
        name = self._accepted.name if self._accepted is not None else ""
        return Media(data, self.result, name, self._sequence, cache_status, self._previews)

    def same_again(self, request: Request) -> Request:
        """The request for the generation that this stream was about: variety that was drawn once is not drawn again."""
        if self._accepted is None or not request.cache_policy.fresh:
            return request
        again: Request = type(request).FromString(request.SerializeToString())
        again.cache_policy.fresh = False
        again.seed = self._accepted.seed
        return again
