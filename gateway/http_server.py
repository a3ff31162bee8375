"""An HTTP server in the event loop of this process: it is bound, serves, says that it leaves, and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from aiohttp import web

from cache.settings import SettingsError

HEALTH = "/healthz"  # 200 while it serves, 503 from the moment it leaves: what balancers ask for
_IDLE = 75.0  # seconds without a request after which a connection is closed; longer than proxies in front keep theirs
_AT_ONCE = 0.01  # seconds; aiohttp takes 0 for no bound at all

Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class HttpServer:
    """Made by `bind`, so that its port is known before whatever it serves is put together."""

    def __init__(self) -> None:
        self._listener: asyncio.Server | None = None
        self._server: web.Server | None = None
        self._leaving = False

    @classmethod
    async def bind(cls, host: str, port: int) -> HttpServer:
        """Take a port, 0 for any, and answer nothing yet. Raises SettingsError when it is in use."""
        server = cls()
        try:
            server._listener = await asyncio.get_running_loop().create_server(
                server._connection, host.strip("[]"), port, start_serving=False
            )
        except OSError:
            raise SettingsError(f"gateway: cannot listen on {host}:{port} for HTTP; is it in use?") from None
        return server

    @property
    def port(self) -> int:
        assert self._listener is not None  # noqa: S101  # `bind` has made it
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def serve(self, handler: Handler) -> None:
        """Answer from now on."""
        assert self._listener is not None  # noqa: S101  # `bind` has made it

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            if request.path == HEALTH:
                return web.Response(status=503 if self._leaving else 200)
            return await handler(request)

        # No access log: a path may be a permission.
        self._server = web.Server(answer, access_log=None, keepalive_timeout=_IDLE)
        await self._listener.start_serving()

    def leave(self) -> None:
        """Say so to whoever asks for its health, and go on."""
        self._leaving = True

    async def stop(self, drain: float) -> None:
        """Take no more connections, and let answers under way finish for `drain` seconds at most."""
        if self._listener is not None:
            self._listener.close()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(max(_AT_ONCE, drain / 2))  # it waits twice: for the answer, for its connection

    def _connection(self) -> asyncio.Protocol:
        assert self._server is not None  # noqa: S101  # nothing is accepted before `serve`
        return self._server()
