"""`python -m tests.chaos.sender ADDRESS FILE COUNT`: sends a picture so many times at once, each time as another file
with the same pixels, and says how many a gateway has decoded and looked for.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
import uvloop

from gateway.client import Client
from reprise.v1.common_pb2 import CachePolicy
from reprise.v1.media_pb2 import AnimateImageRequest


async def _send(address: str, picture: bytes, count: int) -> int:
    async with Client(address) as client:
        # What follows the end of a JPEG is no part of its picture.
        sent = (_look_for(client, picture + b"%d" % number) for number in range(count))
        return sum(await asyncio.gather(*sent))


async def _look_for(client: Client, picture: bytes) -> bool:
    """Whether it came so far that there turned out to be no such result."""
    policy = CachePolicy(mode=CachePolicy.MODE_ONLY_IF_CACHED)
    try:
        await client.animate(AnimateImageRequest(image=picture, prompt="a cat walks", cache_policy=policy))
    except grpc.aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.NOT_FOUND
    return False


if __name__ == "__main__":
    _, to, file, times = sys.argv
    sys.stdout.write(str(uvloop.run(_send(to, Path(file).read_bytes(), int(times)))))
