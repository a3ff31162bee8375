"""Who asks. Calls are made with ready bytes and answers are counted, not read, so that the client costs little."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import grpc
import obstore
from obstore.store import S3Store
from redis.asyncio import Redis

from cache.description import Description, Scalar, Scope
from cache.keys import Principal, addresses, content_ids, namespaces
from gateway.pictures import decode
from gateway.stack import Bucket
from reprise.v1 import common_pb2 as pb
from reprise.v1.inference_pb2 import Picture, RunRequest
from tests.bench.load import Stray

_PATIENCE = 30.0  # seconds
_OPTIONS = (("grpc.max_receive_message_length", 64 * 1024 * 1024), ("grpc.use_local_subchannel_pool", 1))


class Caller:
    """One connection to a server of ours, or to one that repeats its answers. Use as an async context manager."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._animate: Any = self._channel.unary_stream("/reprise.v1.MediaService/AnimateImage")
        self._run: Any = self._channel.unary_stream("/reprise.v1.InferenceService/Run")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def messages(self, request: bytes) -> list[bytes]:
        """The answer to a request, message by message."""
        return [message async for message in self._animate(request, timeout=_PATIENCE)]

    async def hit(self, request: bytes, messages: int) -> None:
        """Ask for what is cached. Raises Stray if the answer has not as many messages as a hit has."""
        count = 0
        async for _ in self._animate(request, timeout=_PATIENCE):
            count += 1
        if count != messages:
            raise Stray

    async def miss(self, request: bytes) -> None:
        """Ask for what nobody has. Raises Stray if it takes one message, as hits of this size do."""
        if len(await self.messages(request)) == 1:
            raise Stray

    async def crowd(self, request: bytes, size: int) -> None:
        """So many equal requests at once, to the end of the last."""
        async with asyncio.TaskGroup() as group:
            for _ in range(size):
                group.create_task(self.messages(request))

    async def run(self, request: bytes) -> None:
        """A generation asked of the worker itself, to its artifact."""
        call = self._run(request, timeout=_PATIENCE)
        async for message in call:
            if message[:1] == _FINISHED:
                break
        call.cancel()


_FINISHED = bytes([2 << 3 | 2])  # the tag of RunResponse.finished


class Seeds:
    """Seeds that nobody has used."""

    def __init__(self) -> None:
        self._numbers = itertools.count(secrets.randbelow(2**40) << 8)

    def next(self) -> int:
        return next(self._numbers)


class RunRequests:
    """What a gateway would send to a worker for a request, with one parameter that changes: the seed."""

    def __init__(
        self, description: Description, secret: bytes, picture: bytes, parameters: Mapping[str, Scalar]
    ) -> None:
        self._description = description
        self._namespaces = namespaces(secret, Principal("local", "local"))
        self._picture = decode(picture)
        defaults = {each.name: each.default for each in description.parameters if each.default is not None}
        self._parameters: dict[str, Scalar] = {**defaults, **parameters}

    def with_seed(self, seed: int) -> bytes:
        parameters = self._parameters | {"seed": seed}
        ids = content_ids(self._description, parameters, {"image": self._picture.identity})
        own = addresses(self._description, ids, self._namespaces)
        picture = self._picture
        request = RunRequest(
            model=self._description.model,
            revision=self._description.revision,
            parameters={name: _value(value) for name, value in parameters.items()},
            pictures={"image": Picture(identity=picture.identity, width=picture.width, height=picture.height)},
            namespaces={scope.value: self._namespaces[scope] for scope in Scope},
            addresses={stage: str(address) for stage, address in own.items()},
            follower=secrets.token_hex(16),
        )
        return request.SerializeToString()


def _value(value: Scalar) -> pb.ParameterValue:
    match value:
        case str():
            return pb.ParameterValue(text_value=value)
        case float():
            return pb.ParameterValue(float_value=value)
        case _:
            return pb.ParameterValue(int_value=value)


class RawRedis:
    """Values of given sizes in Redis, read by its library and nothing else."""

    def __init__(self, url: str, sizes: tuple[int, ...]) -> None:
        self._client = Redis.from_url(url)
        self._sizes = sizes

    async def __aenter__(self) -> Self:
        for size in self._sizes:
            await self._client.set(f"bench/{size}", secrets.token_bytes(size))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def get(self, size: int) -> None:
        if len(await self._client.get(f"bench/{size}") or b"") != size:
            raise Stray


class RawObjects:
    """Objects of given sizes in an S3 server, read by a library and nothing else."""

    def __init__(self, bucket: Bucket) -> None:
        self._store = S3Store(
            bucket.bucket,
            endpoint=bucket.endpoint,
            region=bucket.region,
            access_key_id=bucket.access_key,
            secret_access_key=bucket.secret_key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    async def put(self, size: int) -> None:
        await obstore.put_async(self._store, f"bench/{size}", secrets.token_bytes(size))

    async def get(self, size: int) -> None:
        result = await obstore.get_async(self._store, f"bench/{size}")
        if len(await result.bytes_async()) != size:
            raise Stray
