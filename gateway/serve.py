"""Serve: the gateway put together, opened and closed. The only file that names concrete parts."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from cache.accesses import access_log
from cache.build import build_tiers
from cache.catalogue import Catalogue
from cache.description import Scope
from cache.flight import Flights
from cache.keys import Principal, namespace
from cache.lag import LoopLag
from cache.resident import limit_of_group
from cache.settings import SettingsError
from cache.telemetry import Telemetry
from gateway.admission import Admission
from gateway.arrivals import Arrivals
from gateway.artifacts import Artifacts
from gateway.control import Control
from gateway.costs import Costs
from gateway.darkroom import Darkroom
from gateway.departures import Departures
from gateway.errors import InvalidField
from gateway.explain import Explainer
from gateway.forward import Forwarder
from gateway.generation import Generations, Step
from gateway.history import History
from gateway.http_server import HttpServer
from gateway.identity import IdentityInterceptor, identifier
from gateway.ledger import Ledger
from gateway.links import Links
from gateway.look_alikes import LookAlikes
from gateway.media import UNPARSED, MediaServicer
from gateway.models import Models
from gateway.operators import CacheServicer
from gateway.peers import Names, PeerIdentifier, Peers
from gateway.planning import Planner
from gateway.plans import Plans
from gateway.pressure import Pressure, PressureInterceptor
from gateway.quarantine import Quarantine
from gateway.replays import Replays
from gateway.resolve import Resolver
from gateway.savings import Savings
from gateway.schedule import Schedule
from gateway.settings import GatewaySection, GatewaySettings
from gateway.status import Calls, ErrorInterceptor
from gateway.studio import Studio
from gateway.uploads import Uploads
from gateway.validate import parse
from gateway.warm import Warmer
from gateway.wire import serialize
from gateway.workers import Fleet
from reprise.v1 import cache_pb2, media_pb2

_MEDIA = media_pb2.DESCRIPTOR.services_by_name["MediaService"]
_CACHE = cache_pb2.DESCRIPTOR.services_by_name["CacheService"]
_MAX_REQUEST = 64 * 1024 * 1024  # far more than a picture may have, so that one that is too large is told so by name
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_REQUEST),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
)
_SEEN_BY_BALANCERS = 1.0  # seconds that balancers get to notice that we are leaving
_LAST_WORDS = 2.0  # seconds in which streams that were not done in time are told so, before they are cut off
_log = structlog.get_logger(__name__)


class Gateway:
    """A gateway that serves. `port` is the one it listens on, `http_port` that for artifacts by URL."""

    def __init__(
        self,
        server: grpc.aio.Server,
        port: int,
        health_servicer: health.HealthServicer,
        http: HttpServer | None,
        calls: Calls,
        flights: Flights[object, Step],
    ) -> None:
        self.port = port
        self.http_port = http.port if http is not None else None
        self._server = server
        self._http = http
        self._health = health_servicer
        self._calls = calls
        self._flights = flights

    async def leave(self, *, notice: float, drain: float) -> None:
        """Say so first, then let streams finish for `drain` seconds at most; the others are told to ask elsewhere."""
        await self._health.enter_graceful_shutdown()
        if self._http is not None:
            self._http.leave()
        await asyncio.sleep(notice)
        stopping = [asyncio.create_task(self._server.stop(drain + _LAST_WORDS))]
        if self._http is not None:
            stopping.append(asyncio.create_task(self._http.stop(drain)))
        try:
            _, late = await asyncio.wait(stopping, timeout=drain)
            if late:
                await self._calls.end()
            await asyncio.gather(*stopping)
        finally:
            for task in stopping:
                task.cancel()

    async def end(self) -> None:
        """At once: streams are told to ask elsewhere. What they wait for goes on at its worker, and is stored there."""
        await self._calls.end()
        await self._flights.drain(0)


@asynccontextmanager
async def open_gateway(settings: GatewaySettings, telemetry: Telemetry) -> AsyncIterator[Gateway]:
    section, secret = settings.gateway, settings.cache.secret_bytes
    async with AsyncExitStack() as stack:
        # In threads: files are read, and a folder as L3 is looked through for unfinished ones.
        identify = await asyncio.to_thread(identifier, section.identity)
        tiers = await stack.enter_async_context(
            await asyncio.to_thread(build_tiers, settings.cache, telemetry.registry, process=section.name)
        )
        await stack.enter_async_context(LoopLag(telemetry.registry))
        pressure = Pressure(tiers.memory, section.max_memory_bytes or await asyncio.to_thread(limit_of_group))
        pressure.watch(telemetry.registry)
        await stack.enter_async_context(pressure)
        ledger = Ledger(
            telemetry.registry,
            await stack.enter_async_context(
                access_log(settings.telemetry.accesses_folder, section.name, "result", secret)
            ),
        )
        fleet = await stack.enter_async_context(Fleet(section.workers))
        fleet.watch(telemetry.registry)
        identity = IdentityInterceptor(PeerIdentifier(secret, identify))
        errors = ErrorInterceptor()
        short = PressureInterceptor(pressure, ledger, _MEDIA)
        server = grpc.aio.server(interceptors=[errors, short, identity], options=_OPTIONS)
        try:
            port = server.add_insecure_port(f"{section.host}:{section.port}")
        except RuntimeError:
            raise SettingsError(f"gateway: cannot listen on {section.host}:{section.port}; is it in use?") from None
        names = Names(secret, section.advertise or f"{_reachable(section.host)}:{port}")
        peers = await stack.enter_async_context(Peers(secret))
        darkroom = stack.enter_context(Darkroom(looks=section.similarity.max_bytes > 0, admit=pressure.admit_work))
        studio = stack.enter_context(Studio(admit=pressure.admit_work))
        catalogue = (
            Catalogue(tiers.objects, tiers.below_memory, namespace(secret, Scope.SHARED, Principal("")))
            if tiers.objects is not None
            else None
        )
        models = Models(
            fleet,
            catalogue,
            revisions=section.revisions,
            defaults=section.default_models,
            aliases=section.aliases,
        )
        await models.recall()
        history = await stack.enter_async_context(History(tiers.journal, secret, telemetry.registry, bans=tiers.bans))
        tiers.orders.on_order(history.obey)
        uploads = Uploads(tiers.through_memory, most=section.max_upload_bytes)
        replays = await stack.enter_async_context(Replays(tiers, uploads, secret, section.replay, telemetry.registry))
        tiers.orders.on_order(replays.obey)
        costs = Costs()
        named = [namespace(secret, Scope.TENANT, Principal(tenant)) for tenant in section.savings_tenants]
        savings = Savings(telemetry.registry, named)
        planner = Planner(
            models,
            darkroom,
            studio,
            uploads,
            tiers.switches,
            secret=secret,
            default_seed=section.default_seed,
            policies=section.policies,
            similar_by_default=section.similarity.by_default,
        )
        arrivals = Arrivals(section.max_unstored_bytes)
        arrivals.watch(telemetry.registry)
        departures = Departures(section.max_departing_bytes)
        departures.watch(telemetry.registry)
        forwarder = Forwarder(
            tiers.below_memory,
            fleet,
            costs,
            telemetry.tracing,
            arrivals,
            Quarantine(tiers.orders, telemetry.registry, seconds=section.quarantine),
            planner.plan_anew,
            patience=section.longest_generation,
            max_media_bytes=section.max_pixel_bytes,
        )
        flights: Flights[object, Step] = Flights(grace=section.grace, on_change=forwarder.attend)
        stack.push_async_callback(flights.drain, section.drain)
        http = await HttpServer.bind(section.host, section.http_port) if section.http_port is not None else None
        if http is not None:
            stack.push_async_callback(http.stop, 0)
        links = _links(section, secret, http)
        look_alikes = LookAlikes(tiers.below_memory, max_bytes=section.similarity.max_bytes)
        tiers.orders.on_order(look_alikes.obey)
        admission = Admission(
            fleet, forwarder, costs, pressure, places=section.max_generations, share=section.tenant_share
        )
        resolver = Resolver(
            tiers,
            forwarder,
            admission,
            flights,
            Generations(linger=section.linger, max_bytes=section.linger_bytes),
            departures,
            names,
            look_alikes,
            telemetry.tracing,
            ledger,
            history,
            costs,
            savings,
            heartbeat=section.heartbeat,
            links=links,
        )
        explainer = Explainer(tiers, forwarder, history, costs)
        plans = Plans()
        tiers.orders.on_order(plans.obey)
        media = MediaServicer(
            planner,
            models,
            resolver,
            explainer,
            tiers,
            darkroom,
            studio,
            uploads,
            departures,
            names,
            peers,
            plans,
            replays,
            ledger,
            telemetry.tracing,
        )
        warmer = Warmer(planner.plan, explainer, resolver, replays, heartbeat=section.heartbeat)
        control = Control(tiers, darkroom, studio, secret=secret, model_of=models.name_of)
        _register(server, _MEDIA, media, unparsed=UNPARSED)
        _register(server, _CACHE, CacheServicer(tiers, fleet, ledger, savings, control, warmer))
        health_servicer = await _add_health(server)
        if section.reflection:
            shown = (_MEDIA.full_name, _CACHE.full_name, HEALTH, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(shown, server)
        if http is not None and links is not None:
            artifacts = Artifacts(
                links,
                tiers.through_memory,
                resolver.just_made,
                identify,
                ledger,
                telemetry.tracing,
                secret=secret,
                max_bytes=section.max_url_bytes,
                admit=pressure.admit_anything,
            )
            await http.serve(artifacts.answer)
        await server.start()
        stack.push_async_callback(server.stop, 0)
        await stack.enter_async_context(Schedule(section.warm, warmer, tiers.objects, secret))
        _log.info("serving", address=f"{section.host}:{port}", workers=section.workers)
        yield Gateway(server, port, health_servicer, http, errors.calls, flights)


async def serve(settings: GatewaySettings) -> None:
    """Serve until told to stop; a second signal stops at once."""
    telemetry = Telemetry.start(settings.telemetry, service="reprise-gateway", instance=settings.gateway.name)
    try:
        async with open_gateway(settings, telemetry) as gateway:
            first, second = _signals()
            await first.wait()
            leaving = asyncio.create_task(gateway.leave(notice=_SEEN_BY_BALANCERS, drain=settings.gateway.drain))
            hurried = asyncio.create_task(second.wait())
            await asyncio.wait({leaving, hurried}, return_when=asyncio.FIRST_COMPLETED)
            for task in (leaving, hurried):
                task.cancel()
            await asyncio.gather(leaving, hurried, return_exceptions=True)
            if second.is_set():
                await gateway.end()
    finally:
        telemetry.stop()


def _links(section: GatewaySection, secret: bytes, http: HttpServer | None) -> Links | None:
    """URLs can be made where something serves them: this process, or others behind a URL that is configured."""
    if http is None and not section.public_url:
        return None
    own = f"http://{_reachable(section.host)}:{http.port}" if http is not None else ""
    return Links(secret, section.public_url or own, lifetime=section.url_lifetime)


def _reachable(host: str) -> str:
    return socket.gethostname() if host in ("0.0.0.0", "[::]") else host  # noqa: S104 - compared, not bound


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    first, second = asyncio.Event(), asyncio.Event()

    def told() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told)
    return first, second


def _register(
    server: grpc.aio.Server, service: ServiceDescriptor, servicer: object, *, unparsed: frozenset[str] = frozenset()
) -> None:
    """Like the generated function, with two differences: replies that are in wire form already pass as they are, and
    a call that carries no message is refused. grpc.aio itself leaves such a call without an answer for ever, so methods
    take their one message off a stream, which looks the same on the wire. It comes as bytes: what gRPC itself cannot
    parse it answers with UNKNOWN, past every interceptor. Methods named in `unparsed` see to that themselves.
    """
    handlers: dict[str, Any] = {}
    for method in service.methods:
        behaviour = getattr(servicer, method.name)
        wrap, make = (
            (_streaming, grpc.stream_stream_rpc_method_handler)
            if method.server_streaming
            else (_answering, grpc.stream_unary_rpc_method_handler)
        )
        handlers[method.name] = make(
            wrap(behaviour, bytes if method.name in unparsed else partial(parse, GetMessageClass(method.input_type))),
            request_deserializer=None,
            response_serializer=serialize,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def _streaming(
    behaviour: Callable[[Any, Any], AsyncGenerator[Any]], read: Callable[[bytes], Any]
) -> Callable[[Any, Any], Awaitable[None]]:
    async def stream(requests: AsyncIterator[bytes], context: Any) -> None:
        async with aclosing(behaviour(await _the_message(context, read), context)) as responses:
            async for response in responses:
                await context.write(response)

    return stream


def _answering(
    behaviour: Callable[[Any, Any], Awaitable[Any]], read: Callable[[bytes], Any]
) -> Callable[[Any, Any], Awaitable[Any]]:
    async def answer(requests: AsyncIterator[bytes], context: Any) -> Any:
        return await behaviour(await _the_message(context, read), context)

    return answer


async def _the_message(context: Any, read: Callable[[bytes], Any]) -> Any:
    request = await context.read()
    if request is grpc.aio.EOF:
        raise InvalidField("request", "the call must carry a message")
    return read(request)


async def _add_health(server: grpc.aio.Server) -> health.HealthServicer:
    servicer = health.HealthServicer()
    for name in ("", _MEDIA.full_name, _CACHE.full_name):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer
