"""Media: inputs known by content, as a plan brings them: their identity, and their bytes where a stage may read them.

Pictures and sounds differ in how they are checked and in what a model is given. Everything else (keys, tags, whether
bytes are missing) asks only what all media can tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import torch
from PIL import Image

from cache.description import Description
from cache.picture import picture_identity
from cache.sound import sound_identity
from inference.errors import InvalidInput
from inference.models import base
from reprise.v1 import inference_pb2 as pb


class Medium(Protocol):
    """What every input known by content can tell."""

    @property
    def identity(self) -> str: ...

    @property
    def there(self) -> bool:
        """Whether the plan brought its bytes."""
        ...

    @property
    def near_identity(self) -> str:
        """Of the near-duplicate whose encodings are read in its place; empty if its own are."""
        ...

    @property
    def marks(self) -> frozenset[str]:
        """All identities by which what is made of it may have to be purged."""
        ...


@dataclass(frozen=True, slots=True)
class Picture:
    """8-bit RGB rows, `width * height * 3` bytes; no bytes where only the identity is known."""

    identity: str
    width: int
    height: int
    rgb: bytes = field(repr=False)
    near_identity: str = ""
    part_of: str = ""  # identity of the whole picture, where this is a part of one

    @classmethod
    def read(cls, name: str, message: pb.Picture, content: bytes) -> Self:
        """Raises InvalidInput unless the bytes, if there are any, are those that the identity names."""
        rgb = content or message.rgb
        picture = cls(message.identity, message.width, message.height, rgb, message.near_identity, message.part_of)
        if not picture.there:
            return picture
        if len(picture.rgb) != picture.width * picture.height * 3:
            raise InvalidInput(name, "must have width * height * 3 bytes of pixels")
        if picture_identity(picture.width, picture.height, picture.rgb) != picture.identity:
            raise InvalidInput(name, "must have the identity of its own pixels")
        return picture

    @property
    def there(self) -> bool:
        return bool(self.rgb)

    @property
    def marks(self) -> frozenset[str]:
        return frozenset(filter(None, (self.identity, self.part_of)))

    def opened(self) -> Image.Image:
        """As a model is given it. Copies the pixels."""
        return Image.frombytes("RGB", (self.width, self.height), self.rgb)


@dataclass(frozen=True, slots=True)
class Sound:
    """16-bit little-endian mono, `samples * 2` bytes; no bytes where only the identity is known."""

    identity: str
    sample_rate: int  # samples per second
    samples: int
    pcm: bytes = field(repr=False)
    near_identity: str = ""  # nothing stands in for a voice

    @classmethod
    def read(cls, name: str, message: pb.Sound, content: bytes) -> Self:
        """Raises InvalidInput unless the bytes, if there are any, are those that the identity names."""
        sound = cls(message.identity, message.sample_rate, message.samples, content or message.pcm)
        if not sound.there:
            return sound
        if len(sound.pcm) != sound.samples * 2:
            raise InvalidInput(name, "must have samples * 2 bytes of sound")
        if sound_identity(sound.sample_rate, sound.samples, sound.pcm) != sound.identity:
            raise InvalidInput(name, "must have the identity of its own samples")
        return sound

    @property
    def there(self) -> bool:
        return bool(self.pcm)

    @property
    def marks(self) -> frozenset[str]:
        return frozenset({self.identity})

    def opened(self) -> base.Sound:
        """As a model is given it. Copies the samples."""
        return base.Sound(torch.from_numpy(np.frombuffer(self.pcm, "<i2").astype(np.int16)), self.sample_rate)


def read_media(
    request: pb.RunRequest, description: Description, names: Iterable[str], contents: Mapping[str, bytes]
) -> dict[str, Picture | Sound]:
    """The media of these names in a request, or beside it. Raises InvalidInput. Blocking: it hashes them."""
    return {
        name: _read(request, name, contents.get(name, b""), sound=name in description.recordings)
        for name in sorted(set(names))
    }


def _read(request: pb.RunRequest, name: str, content: bytes, *, sound: bool) -> Picture | Sound:
    if name not in (request.sounds if sound else request.pictures):
        raise InvalidInput(name, "must be given")
    if sound:
        return Sound.read(name, request.sounds[name], content)
    return Picture.read(name, request.pictures[name], content)


def identities(media: Mapping[str, Medium]) -> dict[str, str]:
    return {name: medium.identity for name, medium in media.items()}


def stand_ins(media: Mapping[str, Medium]) -> dict[str, str]:
    """Near-duplicates whose encodings are read in place of a medium's own, by its name."""
    return {name: medium.near_identity for name, medium in media.items() if medium.near_identity}
