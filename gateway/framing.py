"""Framing: which part of a picture is meant, and how it is turned. Part of the request, and done before identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from PIL import Image

from gateway.blueprint import SMALLEST_SIDE, Box
from gateway.errors import InvalidField
from reprise.v1 import media_pb2

_TURNS = {
    0: None,
    90: Image.Transpose.ROTATE_270,  # Pillow turns the other way round
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Framing:
    """A box in pixels of the upright picture, None for all of it, and clockwise degrees by which that is turned."""

    box: Box | None = None
    rotation: int = 0

    @classmethod
    def of(cls, message: media_pb2.Framing) -> Self:
        """Raises InvalidField for what no picture could be framed by."""
        if message.rotation not in _TURNS:
            raise InvalidField("framing.rotation", "must be 0, 90, 180 or 270 degrees")
        box = Box(message.left, message.top, message.width, message.height)
        if not any(box):
            return cls(None, message.rotation)
        for side in ("width", "height"):
            if getattr(box, side) < SMALLEST_SIDE:
                raise InvalidField(f"framing.{side}", f"must be at least {SMALLEST_SIDE} pixels")
        return cls(box, message.rotation)

    def apply(self, image: Image.Image) -> Image.Image:
        """The part that is meant, turned. Raises InvalidField if the picture is smaller."""
        if self.box is not None:
            left, top, width, height = self.box
            _check("left", left, "width", width, image.width)
            _check("top", top, "height", height, image.height)
            image = image.crop((left, top, left + width, top + height))
        turn = _TURNS[self.rotation]
        return image if turn is None else image.transpose(turn)


WHOLE = Framing()


def _check(edge: str, start: int, side: str, size: int, there: int) -> None:
    if start + size > there:
        field = edge if start >= there else side
        raise InvalidField(f"framing.{field}", f"must lie inside the upright picture, whose {side} is {there} pixels")
