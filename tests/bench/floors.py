"""Two servers to compare a hit with. They give the answers a gateway gave before, and keep none of its promises.

bare    what any server in Python pays: grpc.aio on uvloop, our allocator settings, messages that are ready bytes
naive   what one writes first: files in a dict, a protobuf message made for every answer, asyncio's own loop, and the C
        library's way with memory
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click
import grpc
import uvloop
from grpc_health.v1 import health, health_pb2_grpc

from cache.process import keep_large_buffers
from gateway.wire import CHUNK_BYTES
from reprise.v1 import media_pb2
from reprise.v1.media_pb2 import AnimateImageRequest, AnimateImageResponse, Chunk, GenerationEvent, Result

Recordings: TypeAlias = Mapping[bytes, Sequence[bytes]]  # a request's bytes -> the messages of its answer
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024))


def save(recordings: Recordings, folder: Path) -> None:
    """A file for each message: a server that once held all of them in one buffer has another allocator from then on,
    because glibc learns from the largest buffer that was ever given back.
    """
    for number, (request, messages) in enumerate(recordings.items()):
        own = folder / f"{number:03}"
        own.mkdir(parents=True)
        (own / "request").write_bytes(request)
        for position, message in enumerate(messages):
            (own / f"{position:03}").write_bytes(message)


def _load(folder: Path) -> dict[bytes, list[bytes]]:
    return {
        (own / "request").read_bytes(): [message.read_bytes() for message in sorted(own.glob("[0-9]*"))]
        for own in sorted(request.parent for request in folder.rglob("request"))
    }


def add_bare(server: grpc.aio.Server, recordings: Recordings) -> None:
    async def answer(request: bytes, context: Context) -> AsyncIterator[bytes]:
        for message in recordings[request]:
            yield message

    _add(server, grpc.unary_stream_rpc_method_handler(answer))


def add_naive(server: grpc.aio.Server, recordings: Recordings) -> None:
    files = {hashlib.sha256(request).digest(): _file_and_result(messages) for request, messages in recordings.items()}

    async def answer(request: AnimateImageRequest, context: Context) -> AsyncIterator[AnimateImageResponse]:
        data, result = files[hashlib.sha256(request.SerializeToString()).digest()]
        for sequence, offset in enumerate(range(0, len(data), CHUNK_BYTES), start=1):
            chunk = Chunk(offset=offset, data=data[offset : offset + CHUNK_BYTES])
            last = result if offset + CHUNK_BYTES >= len(data) else None
            yield AnimateImageResponse(event=GenerationEvent(sequence=sequence, chunk=chunk, result=last))

    parse, serialize = AnimateImageRequest.FromString, AnimateImageResponse.SerializeToString
    _add(server, grpc.unary_stream_rpc_method_handler(answer, parse, serialize))


def _file_and_result(messages: Sequence[bytes]) -> tuple[bytes, Result]:
    events = [AnimateImageResponse.FromString(message).event for message in messages]
    return b"".join(event.chunk.data for event in events), events[-1].result


def _add(server: grpc.aio.Server, handler: Any) -> None:
    service = media_pb2.DESCRIPTOR.services_by_name["MediaService"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"AnimateImage": handler}),))


async def _serve(kind: str, folder: Path, port: int) -> None:
    server = grpc.aio.server(options=_OPTIONS)
    {"bare": add_bare, "naive": add_naive}[kind](server, await asyncio.to_thread(_load, folder))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    await server.stop(0)


@click.command()
@click.argument("kind", type=click.Choice(["bare", "naive"]))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("port", type=int)
def main(kind: str, folder: Path, port: int) -> None:
    """Serve recorded answers until told to stop."""
    if kind == "naive":
        asyncio.run(_serve(kind, folder, port))
    else:
        keep_large_buffers()
        uvloop.run(_serve(kind, folder, port))


if __name__ == "__main__":
    main()
