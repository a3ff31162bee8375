"""Server: the InferenceService on the wire. Handlers convert, call the engine and convert back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from cache.clock import steady
from cache.news import News
from cache.telemetry import parent_of
from inference.arrival import arrive
from inference.engine import Engine
from inference.errors import NotReady
from inference.status import ErrorInterceptor
from reprise.v1 import inference_pb2 as pb
from reprise.v1.inference_pb2_grpc import InferenceServiceServicer, add_InferenceServiceServicer_to_server

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SERVICE = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
SIGN_OF_LIFE = 5.0  # seconds between status reports when nothing changes
_LOADING_RETRY = 2.0  # seconds
_MAX_MESSAGE = 64 * 1024 * 1024
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
)


class InferenceServicer(InferenceServiceServicer):
    """Serves as soon as it has an engine; before that it says that it is loading."""

    # The handlers below write to their context instead of being generators. A generator that a slow reader blocks is
    # not closed when its call ends but whenever it is collected, and until then a follower would seem to be there.

    def __init__(self, name: str, *, clock: Callable[[], float] = steady, sign_of_life: float = SIGN_OF_LIFE) -> None:
        self.news = News()  # of everything a status report would show
        self._engine: Engine | None = None
        self._name = name
        self._started_at = clock()
        self._sign_of_life = sign_of_life
        self._over = False

    def open(self, engine: Engine) -> None:
        """Serve with this engine from now on."""
        self._engine = engine
        self.news.announce()

    def close(self) -> None:
        """End the status streams, which do not end by themselves."""
        self._over = True
        self.news.announce()

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        engine = self._ready()
        return pb.DescribeResponse(
            descriptions=[model.description.to_bytes() for model in engine.models.values()],
            worker=self._name,
            started_at=self._started_at,
            process=engine.shop.process,
        )

    async def Run(  # type: ignore[override]  # see above
        self, request_iterator: AsyncIterator[pb.RunRequest], context: Context
    ) -> None:
        engine = self._ready()
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        request, contents = await arrive(request_iterator)
        plan = await engine.plan(request, contents, parent=parent_of(metadata))
        async with aclosing(engine.run(plan)) as responses:
            async for response in responses:
                await context.write(response)

    async def Abandon(self, request: pb.AbandonRequest, context: Context) -> pb.AbandonResponse:
        self._ready().abandon(request.follower)
        return pb.AbandonResponse()

    async def Attend(self, request: pb.AttendRequest, context: Context) -> pb.AttendResponse:
        self._ready().attend(request.follower, waiting=request.waiting)
        return pb.AttendResponse()

    async def Foresee(self, request: pb.ForeseeRequest, context: Context) -> pb.ForeseeResponse:
        engine = self._ready()
        within = request.within if request.HasField("within") else None
        return await engine.foresee(await engine.plan(request.run), within=within)

    async def Status(self, request: pb.StatusRequest, context: Context) -> None:  # type: ignore[override]  # see above
        while not self._over:
            told = self._status()
            await context.write(told)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._sign_of_life):
                    while self._status() == told and not self._over:
                        await self.news.wait()
        raise NotReady("DRAINING")

    def _status(self) -> pb.StatusResponse:
        if self._engine is None:
            return pb.StatusResponse(state=pb.StatusResponse.STATE_LOADING)
        return self._engine.status()

    def _ready(self) -> Engine:
        if self._engine is None:
            raise NotReady("LOADING", _LOADING_RETRY)
        return self._engine


class Server:
    """The listening server: the service, the standard health service (not serving at first), and reflection."""

    def __init__(self, servicer: InferenceServicer, address: str, *, reflect: bool = True) -> None:
        self._server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=_OPTIONS)
        self._servicer = servicer
        self._health = health.HealthServicer()
        add_InferenceServiceServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflect:
            names = (SERVICE, HEALTH, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self.port = self._server.add_insecure_port(address)

    async def start(self) -> None:
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()

    async def open(self, engine: Engine) -> None:
        """Serve runs with this engine from now on."""
        self._servicer.open(engine)
        await self._say(health_pb2.HealthCheckResponse.SERVING)

    async def announce_end(self) -> None:
        """Tell balancers that nothing new is served here any more."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Close; streams that are not at their end after `grace` seconds are cut."""
        self._servicer.close()
        await self._server.stop(grace)

    async def _say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)
