"""Peers: a generation lives in the gateway that began it, and every gateway can be asked about it.

Its name says, sealed, where it lives. A gateway that is asked by another's name passes the question on, and the answer
back as it is. The caller's identity goes along under a seal of its own, so it is checked once, at the edge, whatever
the way callers are told apart. A name whose gateway is gone is unknown: whoever asks for the media itself again finds
it stored, or joins its run at the home worker.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Any

import grpc

from cache.clock import steady
from cache.encoding import Value
from cache.keys import Principal
from gateway.errors import Cancelled, NotFound, Refused, Unauthenticated
from gateway.identity import Caller, Identifier, Metadata
from gateway.seals import seal, unseal
from gateway.status import explain_error, from_upstream
from reprise.v1.media_pb2 import CancelRequest, CancelResponse, WatchRequest

HEADER = "x-reprise-peer"
_SECONDS_VALID = 60.0  # of a caller's identity on its way; clocks of gateways differ by less
_CANCEL_SECONDS = 5.0
_SERVICE = "/reprise.v1.MediaService"
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
)


class Names:
    """Makes names of generations, and says of any name where its generation lives."""

    def __init__(self, secret: bytes, own_address: str) -> None:
        self._secret = secret
        self.own_address = own_address

    def make(self) -> str:
        return seal(self._secret, "generation", [self.own_address, secrets.token_bytes(12)])

    def home_of(self, name: str) -> str:
        """Address of the gateway that made this name. Raises NotFound for a name that no gateway of ours made."""
        try:
            match unseal(self._secret, "generation", name):
                case [str() as address, bytes()]:
                    return address
        except ValueError:
            pass
        raise NotFound("GENERATION_UNKNOWN")


class Peers:
    """The other gateways, as clients know them. Use as an async context manager."""

    def __init__(self, secret: bytes, *, clock: Callable[[], float] = steady) -> None:
        self._secret = secret
        self._clock = clock
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Peers:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def watch(self, home: str, request: WatchRequest, caller: Caller) -> AsyncGenerator[bytes]:
        """Responses of the gateway where the generation lives, in wire form. Raises Refused."""
        call = self._method(home).unary_stream(f"{_SERVICE}/Watch", WatchRequest.SerializeToString)(
            request, metadata=self._on_behalf_of(caller)
        )
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise _passed_on(error) from error
        finally:
            call.cancel()

    async def cancel(self, home: str, request: CancelRequest, caller: Caller) -> CancelResponse:
        """Raises Refused."""
        method = self._method(home).unary_unary(
            f"{_SERVICE}/Cancel", CancelRequest.SerializeToString, CancelResponse.FromString
        )
        try:
            response: CancelResponse = await method(
                request, metadata=self._on_behalf_of(caller), timeout=_CANCEL_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise _passed_on(error) from error
        return response

    def _method(self, home: str) -> Any:
        if home not in self._channels:
            self._channels[home] = grpc.aio.insecure_channel(home, options=_OPTIONS)
        return self._channels[home]

    def _on_behalf_of(self, caller: Caller) -> tuple[tuple[str, str], ...]:
        principal = caller.principal
        until = self._clock() + _SECONDS_VALID
        identity: list[Value] = [principal.tenant, principal.user, principal.session, caller.operator, until]
        return ((HEADER, seal(self._secret, "caller", identity)),)


class PeerIdentifier:
    """Believes what another gateway says of a caller, and asks `otherwise` about everybody else."""

    def __init__(self, secret: bytes, otherwise: Identifier, *, clock: Callable[[], float] = steady) -> None:
        self._secret = secret
        self._otherwise = otherwise
        self._clock = clock

    @property
    def credentials(self) -> Collection[str]:
        return HEADER, *self._otherwise.credentials

    def identify(self, metadata: Metadata) -> Caller:
        pairs = tuple(metadata)
        for key, value in pairs:
            if key == HEADER:
                return self._sealed_caller(str(value))
        return self._otherwise.identify(pairs)

    def _sealed_caller(self, text: str) -> Caller:
        try:
            match unseal(self._secret, "caller", text):
                case [str() as tenant, str() as user, str() as session, bool() as operator, float() as until]:
                    if self._clock() < until:
                        return Caller(Principal(tenant, user, session), operator)
        except ValueError:
            pass
        raise Unauthenticated("not sealed by a gateway of this deployment", reason="CREDENTIALS_UNKNOWN")


def _passed_on(error: grpc.aio.AioRpcError) -> Refused:
    match error.code():
        case grpc.StatusCode.NOT_FOUND | grpc.StatusCode.UNAVAILABLE:
            return NotFound("GENERATION_UNKNOWN")
        case grpc.StatusCode.CANCELLED if explain_error(error).reason == "CANCELLED_BY_CALLER":
            return Cancelled()
        case _:
            return from_upstream(error)
