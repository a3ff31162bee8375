"""Arrival: a plan and its media, as they come off the wire: the plan first, then pixels and samples in pieces."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterable
from typing import NamedTuple

from inference.errors import InvalidInput
from reprise.v1.inference_pb2 import RunRequest

MOST_BYTES = 64 * 1024 * 1024  # of all media of a plan; a picture of the most pixels there may be has sixty megabytes


class Arrived(NamedTuple):
    """A whole plan. `contents` are those that came in pieces, by the name of their medium."""

    request: RunRequest
    contents: dict[str, bytes]


async def arrive(messages: AsyncIterable[RunRequest]) -> Arrived:
    """All that one caller has to say. Raises InvalidInput."""
    request: RunRequest | None = None
    pieces: defaultdict[str, list[bytes]] = defaultdict(list)
    size = 0
    async for message in messages:
        if request is None:
            request = message
            continue
        name, content = message.piece.name, message.piece.content
        if name not in request.pictures and name not in request.sounds:
            raise InvalidInput("piece", "must be of a medium of the plan")
        size += len(content)
        if size > MOST_BYTES:
            raise InvalidInput(name, f"must be at most {MOST_BYTES} bytes, all media together")
        pieces[name].append(content)
    if request is None:
        raise InvalidInput("request", "the call must carry a plan")
    # In a thread: joining lets go of the interpreter while it copies.
    return Arrived(request, {name: await asyncio.to_thread(b"".join, parts) for name, parts in pieces.items()})
