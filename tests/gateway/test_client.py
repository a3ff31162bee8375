"""The client: what it makes of a stream, and of one that breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from gateway.client import Client
from gateway.stack.ports import free_port
from reprise.v1.media_pb2 import (
    DELIVERY_URL,
    Accepted,
    AnimateImageResponse,
    Chunk,
    GenerationEvent,
    Preview,
    Result,
    Stored,
)
from tests.gateway.world import MIB, World, ask, problem_of, say


@asynccontextmanager
async def answering(*events: GenerationEvent, tries: int = 4) -> AsyncIterator[Client]:
    """A client of a server that answers every request with these events."""
    seen: list[dict[str, Any]] = []

    async def animate(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        seen.append(dict(context.invocation_metadata() or ()))
        for event in events:
            yield AnimateImageResponse(event=event).SerializeToString()
        context.set_trailing_metadata((("seen", repr(sorted(seen[-1]))), ("cache-status", "x; hit")))

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, Any] = {"AnimateImage": grpc.unary_stream_rpc_method_handler(animate)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("reprise.v1.MediaService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Client(f"127.0.0.1:{port}", api_key="k", session="s", tries=tries) as client:
            yield client
    finally:
        await server.stop(0)


async def test_pieces_are_put_in_their_place() -> None:
    """By offset; name, previews, the last number and the trailer are kept, and every event is shown as it comes."""
    events = [
        GenerationEvent(sequence=1, accepted=Accepted(name="n")),
        GenerationEvent(sequence=2, preview=Preview(image=b"small")),
        GenerationEvent(sequence=3, chunk=Chunk(offset=3, data=b"def")),
        GenerationEvent(sequence=4, chunk=Chunk(data=b"abc")),
        GenerationEvent(sequence=5, result=Result(media_type="video/mp4")),
    ]
    shown: list[GenerationEvent] = []
    async with answering(*events) as client:
        media = await client.animate(ask(), on_event=shown.append)
    assert events == shown
    assert (b"abcdef", "n", [b"small"], 5) == (media.data, media.name, media.previews, media.last_sequence)
    assert ("video/mp4", "x; hit") == (media.result.media_type, media.cache_status)


async def test_a_stream_without_a_result_is_an_error() -> None:
    """Half an answer is none."""
    async with answering(GenerationEvent(sequence=1, chunk=Chunk(data=b"abc")), tries=1) as client:
        with pytest.raises(ConnectionError, match="before its result"):
            await client.animate(ask())


async def test_what_has_no_name_is_not_waited_for() -> None:
    """A hit whose result is still being stored cannot be watched: its state is told as it is."""
    result = Result(stored=Stored(state=Stored.STATE_PENDING))
    async with answering(GenerationEvent(sequence=1, chunk=Chunk(data=b"a"), result=result)) as client:
        media = await client.animate(ask())
        assert Stored.STATE_PENDING == await client.until_stored(media)


async def test_credentials_go_with_every_call(world: World) -> None:
    """A key and a session travel as metadata; nobody there is UNAVAILABLE."""
    client = Client("127.0.0.1:1", api_key="k", session="s")
    assert (("authorization", "Bearer k"), ("x-reprise-session", "s")) == client._metadata
    async with client, Client(f"127.0.0.1:{free_port()}") as nobody:
        assert () == nobody._metadata
        assert grpc.StatusCode.UNAVAILABLE == (await problem_of(nobody.stats())).code
        assert grpc.StatusCode.UNAVAILABLE == (await problem_of(nobody.cancel("x"))).code
    assert world.desks == []


async def test_what_is_too_large_is_not_sent() -> None:
    """A file over 16 MiB is refused at once, with its size; nobody has to be there."""
    file = bytes(16 * MIB + 1)
    async with Client(f"127.0.0.1:{free_port()}") as client:
        for sending in (client.animate(ask(image=file)), client.speak(say(voice=file)), client.upload(file)):
            with pytest.raises(ValueError, match="at most 16,777,216 bytes; this has 16,777,217"):
                await sending


async def test_calls_without_a_stream_have_deadlines() -> None:
    """Whoever asks a gateway that hangs is told so; a stream lasts as long as its caller wants."""
    left: dict[str, bool] = {}

    def noting(name: str) -> Any:
        async def call(_request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            left[name] = (context.time_remaining() or 1e9) < 61
            return b""

        return grpc.unary_unary_rpc_method_handler(call)

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    for service, methods in (("MediaService", ("Cancel", "Upload")), ("CacheService", ("Stats",))):
        handlers = {method: noting(method) for method in methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"reprise.v1.{service}", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Client(f"127.0.0.1:{port}") as client:
            await client.cancel("n")
            await client.upload(b"")
            await client.stats()
    finally:
        await server.stop(0)

    assert {"Cancel": True, "Upload": True, "Stats": True} == left


async def test_a_file_is_fetched_by_its_url(world: World) -> None:
    """The bytes that come inline, wherever they come from; what is gone or is another file is a ConnectionError."""
    desk = await world.desk(await world.worker(), http_port=0)
    made = await desk.animate(delivery=DELIVERY_URL)
    inline = await desk.animate()
    assert (b"", "") == (made.data, inline.url)
    assert await desk.client.fetch(made) == await desk.client.fetch(inline) == inline.data

    made.result.artifact.hex = "0" * 64
    with pytest.raises(ConnectionError, match="another file"):
        await desk.client.fetch(made)
    made.result.url += "x"
    with pytest.raises(ConnectionError, match="HTTP 403; ask for the media again"):
        await desk.client.fetch(made)
    await desk.close()
    with pytest.raises(ConnectionError, match="ClientConnectorError"):
        await desk.client.fetch(made)


async def test_a_generation_is_rejoined_by_its_name(world: World) -> None:
    """From its beginning to the word that it is stored, with the same bytes as its first caller got."""
    desk = await world.desk(await world.worker())
    made = await desk.animate()
    again = await desk.client.rejoin(made.name)

    assert (made.data, made.name, Stored.STATE_DURABLE) == (again.data, again.name, again.result.stored.state)
