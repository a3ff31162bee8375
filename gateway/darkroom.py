"""Darkroom: where the gateway meets pictures, decoding each but once while it is remembered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

from cache.digest import Digest
from cache.near import Look, look_of
from gateway.blueprint import LARGEST_FILE, MIB
from gateway.errors import Internal, Overloaded
from gateway.framing import WHOLE, Framing
from gateway.pictures import Picture, decode, too_large

_Place: TypeAlias = tuple[str, Digest, Framing]  # namespace, digest of the file, and what of it is meant


class _Known(NamedTuple):
    identity: str
    width: int
    height: int
    part_of: str = ""


class _Developed(NamedTuple):
    picture: Picture
    look: Look | None


class Source:
    """A picture known by its identity, whose pixels can be had when a worker needs them.

    It holds the pixels only if they had to be decoded to identify it, and until they are `released`.
    """

    def __init__(
        self, file: Digest, known: _Known, developed: _Developed | None, develop: Callable[[], Awaitable[_Developed]]
    ) -> None:
        self.file = file
        self.identity, self.width, self.height, self.part_of = known
        self._picture = developed.picture if developed else None
        self.look = developed.look if developed else None  # known if it had to be decoded
        self._develop = develop

    def release(self) -> None:
        """Let go of the pixels; whoever asks again has them decoded again."""
        self._picture = None

    async def pixels(self) -> Picture:
        """The picture itself. Raises what fetching its file raises, and Internal if the file has changed meanwhile."""
        return self._picture or (await self._decoded()).picture

    async def looks(self) -> Look | None:
        """How it looks, decoded again if that is not known; None in a darkroom that looks at none. Raises what `pixels`
        raises.
        """
        if self.look is None:
            self.look = (await self._decoded()).look
        return self.look

    async def _decoded(self) -> _Developed:
        developed = await self._develop()
        if developed.picture.identity != self.identity:
            raise Internal("PICTURE_DIFFERS")
        return developed


class Darkroom:
    """Identifies uploaded pictures, decoding each but once while it is remembered.

    Decoding runs in a few threads of its own. A caller that leaves does not free its thread before it is done, so that
    asking and leaving again and again cannot make more of them. At most `most_waiting` files wait or are decoded at
    once; equal files of one namespace at the same time, framed alike, are one. What is remembered is remembered per
    namespace: how long an answer takes must not tell what others have uploaded.
    """

    def __init__(
        self, *, threads: int = 2, most_waiting: int = 64, most_remembered: int = 16_384, looks: bool = True
    ) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="darkroom")
        self._most_waiting = most_waiting
        self._looks = looks
        self._most_remembered = most_remembered
        self._remembered: OrderedDict[_Place, _Known] = OrderedDict()
        self._developing: dict[_Place, asyncio.Future[_Developed]] = {}
        self.developed = 0  # files decoded since the start

    async def identify(self, namespace: str, raw: bytes, framing: Framing = WHOLE) -> Source:
        """The picture in this file, or the part of it that is meant. Raises TooLarge, InvalidField, Overloaded."""
        if len(raw) > LARGEST_FILE:
            raise too_large()

        async def given() -> bytes:
            return raw

        return await self.recognise(namespace, await _digest_of(raw), given, framing)

    async def recognise(
        self, namespace: str, file: Digest, fetch: Callable[[], Awaitable[bytes]], framing: Framing = WHOLE
    ) -> Source:
        """The picture in the file of this digest; `fetch` gets the file if it must be decoded.

        Raises what `identify` and `fetch` raise.
        """
        place = (namespace, file, framing)
        develop = partial(self._developed, place, fetch)
        if known := self._recall(place):
            return Source(file, known, None, develop)
        developed = await develop()
        return Source(file, _known(developed.picture), developed, develop)

    def close(self) -> None:
        """Gives the threads back. Files that still wait are not decoded any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _developed(self, place: _Place, fetch: Callable[[], Awaitable[bytes]]) -> _Developed:
        under_way = self._developing.get(place)
        if under_way is None:
            raw = await fetch()
            under_way = self._developing.get(place) or self._begin(place, raw)
        return await asyncio.shield(under_way)

    def _begin(self, place: _Place, raw: bytes) -> asyncio.Future[_Developed]:
        if len(self._developing) >= self._most_waiting:
            raise Overloaded("GATEWAY_BUSY")
        under_way = asyncio.get_running_loop().run_in_executor(self._threads, _develop, raw, place[2], self._looks)
        self._developing[place] = under_way
        under_way.add_done_callback(partial(self._end, place))
        return under_way

    def _end(self, place: _Place, done: asyncio.Future[_Developed]) -> None:
        del self._developing[place]
        if done.cancelled():
            return
        self.developed += 1
        if done.exception() is None:  # asking marks it as seen, also when every caller has left
            self._remember(place, _known(done.result().picture))

    def _recall(self, place: _Place) -> _Known | None:
        known = self._remembered.get(place)
        if known is not None:
            self._remembered.move_to_end(place)
        return known

    def _remember(self, place: _Place, known: _Known) -> None:
        self._remembered[place] = known
        self._remembered.move_to_end(place)
        while len(self._remembered) > self._most_remembered:
            self._remembered.popitem(last=False)


def _develop(raw: bytes, framing: Framing, looks: bool) -> _Developed:
    picture = decode(raw, framing)
    return _Developed(picture, look_of(picture.width, picture.height, picture.rgb) if looks else None)


def _known(picture: Picture) -> _Known:
    return _Known(picture.identity, picture.width, picture.height, picture.part_of)


async def _digest_of(raw: bytes) -> Digest:
    if len(raw) > MIB:  # more than a millisecond's work
        return await asyncio.to_thread(Digest.of, raw)
    return Digest.of(raw)
