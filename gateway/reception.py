"""Reception: where the gateway meets media files, decoding each but once while what it was is remembered."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Generic, Protocol, Self, TypeAlias, TypeVar

from cache.digest import Digest
from gateway.errors import Internal, Overloaded
from reprise.v1.inference_pb2 import RunRequest

Fetch: TypeAlias = Callable[[], Awaitable[bytes]]


class Medium(Protocol):
    """What a plan holds of an input that is known by its content."""

    @property
    def file(self) -> Digest: ...

    @property
    def identity(self) -> str: ...

    @property
    def part_of(self) -> str:
        """Identity of the whole of which it is a part; empty for what is whole."""
        ...

    @property
    def weight(self) -> int:
        """Bytes of its content, which a run that needs it holds for as long as it lasts."""
        ...

    def put_into(self, request: RunRequest, name: str) -> None:
        """Say to a worker what it is."""
        ...

    async def let_go(self) -> bytes:
        """Its content, as a worker reads it, which is let go of here. Raises what fetching its file raises, and
        Internal if that has changed meanwhile.
        """
        ...


class _Decoded(Protocol):
    @property
    def identity(self) -> str: ...


H = TypeVar("H", bound=Hashable)  # how a file is to be decoded
F = TypeVar("F")  # the facts that are remembered of a file
C = TypeVar("C", bound=_Decoded)  # what comes out of it


class Received(Generic[C]):
    """A medium known by its identity, whose content can be had when a worker needs it.

    It holds the content only if it had to be decoded to identify it, and until that is `released`.
    """

    differs: str  # the reason for Internal

    def __init__(self, file: Digest, identity: str, content: C | None, decode: Callable[[], Awaitable[C]]) -> None:
        self.file = file
        self.identity = identity
        self._content = content
        self._decode = decode

    def release(self) -> None:
        """Let go of the content; whoever asks again has it decoded again."""
        self._content = None

    async def content(self) -> C:
        """Raises what fetching its file raises, and Internal if the file has changed meanwhile."""
        if self._content is not None:
            return self._content
        content = await self._decode()
        if content.identity != self.identity:
            raise Internal(self.differs)
        return content


class Reception(ABC, Generic[H, F, C]):
    """Decodes files of one kind, each but once while it is remembered.

    Decoding runs in a few threads of its own. A caller that leaves does not free its thread before it is done, so that
    asking and leaving again and again cannot make more of them. At most `most_waiting` files wait or are decoded at
    once; equal files of one namespace at the same time, decoded alike, are one. Where `admit` raises none is decoded
    that is new here. What is remembered is remembered per namespace: how long an answer takes must not tell what
    others have uploaded.
    """

    def __init__(
        self, name: str, *, threads: int, most_waiting: int, most_remembered: int, admit: Callable[[], None]
    ) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most_waiting = most_waiting
        self._admit = admit
        self._most_remembered = most_remembered
        self._remembered: OrderedDict[Hashable, F] = OrderedDict()
        self._decoding: dict[Hashable, asyncio.Future[C]] = {}
        self.decoded = 0  # files, since the start

    @abstractmethod
    def _decode(self, raw: bytes, how: H) -> C:
        """What is in a file. Blocking; runs in a thread."""

    @abstractmethod
    def _facts(self, content: C) -> F: ...

    def close(self) -> None:
        """Gives the threads back. Files that still wait are not decoded any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _receive(self, place: Hashable, how: H, fetch: Fetch) -> tuple[F, C | None, Callable[[], Awaitable[C]]]:
        """The facts about the file at this place, its content if it had to be decoded now, and what gives that again.

        `fetch` gets the file if it must be decoded. Facts are remembered by place, however they were come by: what of
        them depends on `how` belongs into it.
        """
        again = partial(self._once, place, how, fetch)
        if (facts := self._recall(place)) is not None:
            return facts, None, again
        self._admit()  # not where it is wanted again: that is for what was let in
        content = await again()
        return self._facts(content), content, again

    async def _once(self, place: Hashable, how: H, fetch: Fetch) -> C:
        under_way = self._decoding.get((place, how))
        if under_way is None:
            raw = await fetch()
            under_way = self._decoding.get((place, how)) or self._begin(place, how, raw)
        return await asyncio.shield(under_way)

    def _begin(self, place: Hashable, how: H, raw: bytes) -> asyncio.Future[C]:
        if len(self._decoding) >= self._most_waiting:
            raise Overloaded("GATEWAY_BUSY")
        under_way = asyncio.get_running_loop().run_in_executor(self._threads, self._decode, raw, how)
        self._decoding[place, how] = under_way
        under_way.add_done_callback(partial(self._end, place, how))
        return under_way

    def _end(self, place: Hashable, how: H, done: asyncio.Future[C]) -> None:
        del self._decoding[place, how]
        if done.cancelled():
            return
        self.decoded += 1
        if done.exception() is None:  # asking marks it as seen, also when every caller has left
            self._remember(place, self._facts(done.result()))

    def _recall(self, place: Hashable) -> F | None:
        facts = self._remembered.get(place)
        if facts is not None:
            self._remembered.move_to_end(place)
        return facts

    def _remember(self, place: Hashable, facts: F) -> None:
        self._remembered[place] = facts
        self._remembered.move_to_end(place)
        while len(self._remembered) > self._most_remembered:
            self._remembered.popitem(last=False)


def at_hand(raw: bytes) -> Fetch:
    """Fetches what is here already."""

    async def fetch() -> bytes:
        return raw

    return fetch
