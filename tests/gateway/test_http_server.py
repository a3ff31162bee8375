"""The HTTP server of a process: bound before it serves, and gone without breaking what it has begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from cache.settings import SettingsError
from gateway.http_server import HEALTH, HttpServer
from tests.gateway.world import World


class _Slow:
    """Answers once it is let."""

    def __init__(self) -> None:
        self.asked, self.let = asyncio.Event(), asyncio.Event()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.set()
        await self.let.wait()
        return web.Response(text="done")


@asynccontextmanager
async def serving(handler: _Slow) -> AsyncIterator[tuple[HttpServer, aiohttp.ClientSession]]:
    server = await HttpServer.bind("127.0.0.1", 0)
    await server.serve(handler)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            yield server, session
    finally:
        await server.stop(0)


async def _get(session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    async with session.get(path) as response:
        return response.status, await response.text()


async def test_it_says_that_it_leaves_and_finishes_what_it_has_begun() -> None:
    """Its health is 503 from then on while it still answers; stopped, it takes nobody new and keeps its word."""
    slow = _Slow()
    async with serving(slow) as (server, session):
        assert 200 == (await _get(session, HEALTH))[0]
        running = asyncio.create_task(_get(session, "/"))
        await slow.asked.wait()
        server.leave()
        assert 503 == (await _get(session, HEALTH))[0]
        stopping = asyncio.create_task(server.stop(20.0))
        await asyncio.sleep(0)
        with pytest.raises(aiohttp.ClientConnectionError):
            async with aiohttp.ClientSession() as other:
                await other.get(f"http://127.0.0.1:{server_port(session)}/")
        assert not stopping.done()
        slow.let.set()
        assert (200, "done") == await running
        await stopping


def server_port(session: aiohttp.ClientSession) -> int:
    assert session._base_url is not None
    port = session._base_url.port
    assert port is not None
    return port


async def test_it_does_not_wait_for_ever() -> None:
    """Over the time for draining an answer is cut off."""
    slow = _Slow()
    async with serving(slow) as (server, session):
        running = asyncio.create_task(_get(session, "/"))
        await slow.asked.wait()
        async with asyncio.timeout(10):
            await server.stop(0)
        with pytest.raises(aiohttp.ClientError):
            await running


async def test_a_port_in_use_is_told_in_a_sentence(world: World) -> None:
    """A gateway names it, and nothing stays open."""
    desk = await world.desk(http_port=0)
    with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{desk.gateway.http_port} for HTTP"):
        await world.desk(http_port=desk.gateway.http_port)
