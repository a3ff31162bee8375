"""Darkroom: where the gateway meets pictures, decoding each but once while it is remembered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from cache.digest import Digest
from cache.near import Look, look_of
from gateway.blueprint import LARGEST_FILE
from gateway.framing import WHOLE, Framing
from gateway.pictures import Picture, decode, too_large
from gateway.reception import Fetch, Received, Reception, at_hand
from reprise.v1.inference_pb2 import RunRequest


class _Known(NamedTuple):
    identity: str
    width: int
    height: int
    part_of: str = ""


class _Developed(NamedTuple):
    picture: Picture
    look: Look | None

    @property
    def identity(self) -> str:
        return self.picture.identity


class Source(Received[_Developed]):
    """A picture known by its identity, whose pixels can be had when a worker needs them."""

    differs = "PICTURE_DIFFERS"

    def __init__(
        self, file: Digest, known: _Known, developed: _Developed | None, develop: Callable[[], Awaitable[_Developed]]
    ) -> None:
        identity, self.width, self.height, self.part_of = known
        super().__init__(file, identity, developed, develop)
        self.look = developed.look if developed else None  # known if it had to be decoded

    @property
    def weight(self) -> int:
        return self.width * self.height * 3

    async def pixels(self) -> Picture:
        """The picture itself. Raises what `content` raises."""
        return (await self.content()).picture

    async def looks(self) -> Look | None:
        """How it looks, decoded again if that is not known; None in a darkroom that looks at none. Raises what
        `content` raises.
        """
        if self.look is None:
            self.look = (await self.content()).look
        return self.look

    def put_into(self, request: RunRequest, name: str) -> None:
        picture = request.pictures[name]
        picture.identity, picture.width, picture.height = self.identity, self.width, self.height
        picture.part_of = self.part_of

    async def let_go(self) -> bytes:
        rgb = (await self.pixels()).rgb
        self.release()
        return rgb


class Darkroom(Reception[Framing, _Known, _Developed]):
    """Identifies uploaded pictures."""

    def __init__(
        self,
        *,
        threads: int = 2,
        most_waiting: int = 64,
        most_remembered: int = 16_384,
        looks: bool = True,
        admit: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            "darkroom", threads=threads, most_waiting=most_waiting, most_remembered=most_remembered, admit=admit
        )
        self._looks = looks

    async def identify(self, namespace: str, raw: bytes, framing: Framing = WHOLE) -> Source:
        """The picture in this file, or the part of it that is meant. Raises TooLarge, InvalidField, Overloaded."""
        if len(raw) > LARGEST_FILE:
            raise too_large()
        return await self.recognise(namespace, await Digest.of_any_size(raw), at_hand(raw), framing)

    async def recognise(self, namespace: str, file: Digest, fetch: Fetch, framing: Framing = WHOLE) -> Source:
        """The picture in the file of this digest; `fetch` gets the file if it must be decoded.

        Raises what `identify` and `fetch` raise.
        """
        return Source(file, *await self._receive((namespace, file, framing), framing, fetch))

    def _decode(self, raw: bytes, how: Framing) -> _Developed:
        picture = decode(raw, how)
        return _Developed(picture, look_of(picture.width, picture.height, picture.rgb) if self._looks else None)

    def _facts(self, content: _Developed) -> _Known:
        picture = content.picture
        return _Known(picture.identity, picture.width, picture.height, picture.part_of)
