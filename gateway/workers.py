"""Workers: who is there, what they serve, and which of them is a plan's home.

A worker's Status stream is its sign of life: while it lasts and says READY the worker is healthy. The home of a plan is
found by rendezvous hashing of its affinity among the healthy workers that serve its model, so every gateway finds the
same one whatever the load, and a worker that goes moves only its own plans. Whether its home is too busy for a plan is
the home's to say: it is told who is idle.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from typing import Any
from weakref import WeakSet

import grpc
import structlog
from blake3 import blake3
from opentelemetry.trace import Span
from prometheus_client import CollectorRegistry, Gauge

from cache.description import Description
from cache.news import News
from cache.telemetry import as_metadata
from gateway.status import explain_error
from gateway.wire import serialize, tag, varint
from reprise.v1.inference_pb2 import (
    DESCRIPTOR,
    AbandonRequest,
    AttendRequest,
    DescribeRequest,
    DescribeResponse,
    ForeseeRequest,
    ForeseeResponse,
    MediaPiece,
    RunRequest,
    RunResponse,
    StatusRequest,
    StatusResponse,
)
from reprise.v1.inference_pb2_grpc import InferenceServiceStub

_MAX_MESSAGE = 64 * 1024 * 1024
_FORESEE_TIMEOUT = 2.0  # seconds
_CALL_TIMEOUT = 5.0  # seconds, for calls that answer at once
_ANSWERS_WITHIN = 1.0  # whoever is asked whether it lives, while somebody waits to go on elsewhere
_TIMES_ASKED, _ASKED_AGAIN = 10, 0.05  # seconds between; gRPC tries to connect again after a fifth of one
_SIGN_OF_LIFE = 15.0  # a Status stream silent for longer is dead; workers speak every 5 seconds
_RESOLVE_EVERY = 5.0
_PIECE = 256 * 1024  # bytes of media in a message: what gRPC copies, and writes, without letting anybody else run
_IDLE_NAMED = 8  # workers at most that a home is told of
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_NOBODY_LISTENS = ("Connection refused", "No such file or directory")  # at a port; at a socket
_SERVICE = DESCRIPTOR.services_by_name["InferenceService"].full_name
_IN_A_PIECE = tag(RunRequest.PIECE_FIELD_NUMBER)
_NAME, _CONTENT = tag(MediaPiece.NAME_FIELD_NUMBER), tag(MediaPiece.CONTENT_FIELD_NUMBER)
_log = structlog.get_logger(__name__)


async def _in_pieces(
    request: RunRequest, contents: dict[str, bytes], turn: asyncio.Lock
) -> AsyncGenerator[RunRequest | bytes]:
    """A plan and its media. Of all that hold the same `turn`, one sends a piece in each round of the event loop."""
    yield request
    while contents:
        name, content = contents.popitem()
        for start in range(0, len(content), _PIECE):
            async with turn:
                await asyncio.sleep(0)
            yield _piece(name, memoryview(content)[start : start + _PIECE])


def _piece(name: str, content: memoryview) -> bytes:
    """A message with a piece, in wire form: it is copied once, and no message is made for it."""
    said = name.encode()
    head = b"".join((_NAME, varint(len(said)), said, _CONTENT, varint(len(content))))
    return b"".join((_IN_A_PIECE, varint(len(head) + len(content)), head, content))


class WorkerSilent(Exception):
    """The worker hangs: its connection stands and it gives no sign of life."""


class Worker:
    """One inference server, watched for as long as the block lasts."""

    def __init__(self, address: str, changed: Callable[[], None]) -> None:
        self.address = address
        self.status: StatusResponse | None = None
        self.descriptions: dict[str, Description] = {}
        self.started_at = 0.0
        self.process = ""  # which one serves there, as it names itself
        self._leaving = ""  # the process that said it would go
        self._changed = changed
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub = InferenceServiceStub(self._channel)
        self._run: Any = self._channel.stream_stream(
            f"/{_SERVICE}/Run", request_serializer=serialize, response_deserializer=RunResponse.FromString
        )
        self._watch = asyncio.create_task(self._watch_forever())
        self.silent = False
        self._turn = asyncio.Lock()
        self._runs: set[grpc.aio.StreamStreamCall[RunRequest, RunResponse]] = set()
        self._given_up: WeakSet[grpc.aio.StreamStreamCall[RunRequest, RunResponse]] = WeakSet()
        self._run_ended = News()

    @property
    def healthy(self) -> bool:
        return self.status is not None and self.status.state == StatusResponse.STATE_READY

    @property
    def idle(self) -> bool:
        """It could run something at once, as far as we know."""
        status = self.status if self.healthy else None
        return status is not None and not (status.busy or status.queued or self._runs)

    def serves(self, model: str, revision: str) -> bool:
        return self.healthy and model in self.descriptions and self.descriptions[model].revision == revision

    def run(
        self, request: RunRequest, contents: dict[str, bytes], span: Span, *, patience: float
    ) -> grpc.aio.StreamStreamCall[RunRequest, RunResponse]:
        """Have a plan run. The contents of its media are sent after it, and taken out of `contents` meanwhile."""
        call: grpc.aio.StreamStreamCall[RunRequest, RunResponse] = self._run(
            _in_pieces(request, contents, self._turn), timeout=patience, metadata=as_metadata(span)
        )
        self._runs.add(call)
        call.add_done_callback(self._ended)
        return call

    async def foresee(self, request: RunRequest, *, within: float | None = None) -> ForeseeResponse:
        """What a run would do, without running it; if it would wait for longer, only whether there is a result. Raises
        AioRpcError.
        """
        question = ForeseeRequest(run=request, within=within)
        response: ForeseeResponse = await self._stub.Foresee(question, timeout=_FORESEE_TIMEOUT)
        return response

    async def abandon(self, follower: str) -> None:
        """Say that a follower is not coming back. It may be too late for that, which is fine."""
        try:
            await self._stub.Abandon(AbandonRequest(follower=follower), timeout=_CALL_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            _log.info("abandon not delivered", worker=self.address, code=error.code().name)

    async def attend(self, follower: str, *, waiting: bool) -> bool:
        """Say whether anybody waits for what a follower follows. False if it was not heard: too early, or too late."""
        try:
            await self._stub.Attend(AttendRequest(follower=follower, waiting=waiting), timeout=_CALL_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            _log.info("attendance not delivered", worker=self.address, code=error.code().name)
            return False
        return True

    async def describe(self) -> None:
        """Ask again what it serves: it may have changed behind a connection that still stands."""
        try:
            await self._describe()
        except (grpc.aio.AioRpcError, ValueError) as error:
            _log.warning("worker not described", worker=self.address, error=type(error).__name__)
        self._changed()

    async def has_died(self, process: str) -> bool:
        """Whether this process, which was there, is gone without having said that it would go. False if nobody knows:
        what is silent may live, and so may what cannot be reached.
        """
        if process == self._leaving:
            return False
        for _ in range(_TIMES_ASKED):
            if (gone := await self._is_gone(process)) is not None:
                return gone
            await asyncio.sleep(_ASKED_AGAIN)
        return False

    async def _is_gone(self, process: str) -> bool | None:
        """None: that cannot be told. The question may have gone into the connection that has just broken."""
        try:
            response: DescribeResponse = await self._stub.Describe(DescribeRequest(), timeout=_ANSWERS_WITHIN)
        except grpc.aio.AioRpcError as error:
            said = error.details() or ""
            if explain_error(error).reason == "LOADING" or any(words in said for words in _NOBODY_LISTENS):
                return True
            return None if error.code() is grpc.StatusCode.UNAVAILABLE else False
        return response.process != process

    async def retire(self) -> None:
        """Give it no new work, let what runs there end, and close."""
        self._leaving = self.process
        await self._stop_watching()
        while self._runs:
            await self._run_ended.wait()
        await self._channel.close()

    async def aclose(self) -> None:
        await self._stop_watching()
        await self._channel.close()

    async def _stop_watching(self) -> None:
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)
        self.status = None

    def _ended(self, call: Any) -> None:
        self._runs.discard(call)
        self._run_ended.announce()

    async def _watch_forever(self) -> None:
        pause = 0.1
        while True:
            try:
                await self._describe()
                pause, self.silent = 0.1, False
                await self._follow_status()
            except (grpc.aio.AioRpcError, TimeoutError, ValueError) as error:
                _log.debug("worker not there", worker=self.address, error=type(error).__name__)
            self.status = None
            self._changed()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnects, hides nothing
            pause = min(2.0, pause * 2)

    def _give_up_runs(self) -> None:
        """Do not wait for a hung worker's answers: another one can give them."""
        self.silent = True
        for call in list(self._runs):
            self._given_up.add(call)
            call.cancel()

    def gave_up(self, call: grpc.aio.StreamStreamCall[RunRequest, RunResponse]) -> bool:
        """Whether it was cancelled because the worker gave no sign of life. It may have given one since."""
        return call in self._given_up

    async def _describe(self) -> None:
        response: DescribeResponse = await self._stub.Describe(DescribeRequest(), timeout=_CALL_TIMEOUT)
        descriptions = [Description.from_bytes(content) for content in response.descriptions]
        self.descriptions = {description.model: description for description in descriptions}
        self.started_at = response.started_at
        self.process = response.process

    async def _follow_status(self) -> None:
        call = self._stub.Status(StatusRequest())
        try:
            while True:
                try:
                    async with asyncio.timeout(_SIGN_OF_LIFE):
                        status = await call.read()
                except TimeoutError:
                    self._give_up_runs()
                    raise
                if not isinstance(status, StatusResponse):
                    return
                self.status = status
                if status.state == StatusResponse.STATE_DRAINING:
                    self._leaving = self.process
                self._changed()
        finally:
            call.cancel()


class Fleet:
    """All workers of the deployment. Use as an async context manager."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(addresses)
        self._workers: dict[str, Worker] = {}
        self._resolved: dict[str, list[str]] = {}  # name -> what it stood for when it could be resolved last
        self._retiring: dict[asyncio.Task[None], Worker] = {}
        self._resolver: asyncio.Task[None] | None = None
        self.changed = News()

    async def __aenter__(self) -> Fleet:
        await self._follow_names()
        self._resolver = asyncio.create_task(self._follow_names_forever())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._resolver is not None:
            self._resolver.cancel()
            await asyncio.gather(self._resolver, return_exceptions=True)
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await asyncio.gather(*(worker.aclose() for worker in (*self._workers.values(), *self._retiring.values())))

    @property
    def workers(self) -> list[Worker]:
        return list(self._workers.values())

    def home(self, model: str, revision: str, affinity: str, *, without: Collection[Worker] = ()) -> Worker | None:
        """The worker where this affinity's outputs are, or will be, hot."""
        able = [worker for worker in self.workers if worker.serves(model, revision) and worker not in without]
        return max(able, key=lambda worker: _rendezvous(worker.address, affinity), default=None)

    def idle(self, model: str, revision: str, affinity: str, *, without: Collection[Worker]) -> list[str]:
        """Addresses of workers that could take a plan off its home at once, the next homes first."""
        able = [worker for worker in self.workers if worker.serves(model, revision) and worker.idle]
        able.sort(key=lambda worker: _rendezvous(worker.address, affinity), reverse=True)
        return [worker.address for worker in able if worker not in without][:_IDLE_NAMED]

    def find(self, address: str) -> Worker | None:
        """The worker at this address, in whatever state; also one that has left its name and is still at work."""
        everybody = (*self._workers.values(), *self._retiring.values())
        return next((worker for worker in everybody if worker.address == address), None)

    def newest_description(self, model: str, revision: str | None = None) -> Description | None:
        """What the worker that started last says of a model; of one revision only, if that is given."""
        able = [
            worker
            for worker in self.workers
            if worker.healthy
            and model in worker.descriptions
            and revision in (None, worker.descriptions[model].revision)
        ]
        newest = max(able, key=lambda worker: worker.started_at, default=None)
        return newest.descriptions[model] if newest else None

    def watch(self, registry: CollectorRegistry) -> None:
        """Show in metrics how many workers there are, and how many are healthy."""
        gauge = Gauge("reprise_workers", "Workers by state", ["state"], registry=registry)
        gauge.labels("known").set_function(lambda: len(self._workers))
        gauge.labels("healthy").set_function(lambda: sum(worker.healthy for worker in self.workers))

    def models(self) -> set[str]:
        return {model for worker in self.workers if worker.healthy for model in worker.descriptions}

    async def _follow_names_forever(self) -> None:
        while any(address.startswith("dns:///") for address in self._addresses):
            await asyncio.sleep(_RESOLVE_EVERY)
            await self._follow_names()

    async def _follow_names(self) -> None:
        for name in self._addresses:
            if (found := await resolve(name)) is not None:
                self._resolved[name] = found
        wanted = {address for found in self._resolved.values() for address in found}
        for gone in self._workers.keys() - wanted:
            # A worker that drains is taken out of its name at once, and is still at work for us.
            worker = self._workers.pop(gone)
            self._retiring[asyncio.create_task(self._retire(worker))] = worker
        for new in sorted(wanted - self._workers.keys()):
            self._workers[new] = Worker(new, self.changed.announce)

    async def _retire(self, worker: Worker) -> None:
        await worker.retire()
        self._retiring = {task: other for task, other in self._retiring.items() if other is not worker}


def _rendezvous(address: str, affinity: str) -> bytes:
    return blake3(f"{address}\0{affinity}".encode()).digest()


async def resolve(address: str) -> list[str] | None:
    """The addresses behind a name. None if that cannot be known now."""
    if not address.startswith("dns:///"):
        return [address]
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError:
        _log.warning("name not resolved", name=address)
        return None
    return sorted({f"[{ip[0]}]:{port}" if ":" in str(ip[0]) else f"{ip[0]}:{port}" for *_, ip in found})
