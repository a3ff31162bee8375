"""Pictures: from an uploaded file to pixels, and to the identity those pixels have.

Two files are the same picture when they show the same pixels: the container, its compression and its metadata do not
count, a colour profile and the orientation a camera noted down are applied, transparency is laid on white, and what a
request cuts out is a picture like any other. What comes out is 8-bit RGB.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image

from cache.picture import picture_identity
from gateway.blueprint import FIELD, LARGEST_FILE, MIB, MOST_PIXELS, SMALLEST_SIDE, Blueprint, Box, refused
from gateway.colours import in_srgb
from gateway.errors import InvalidField, Overloaded, TooLarge
from gateway.framing import WHOLE, Framing
from gateway.picture_files import read


@dataclass(frozen=True, slots=True)
class Picture:
    """Decoded pixels: 8-bit RGB rows from the top, `height * width * 3` bytes, under the identity they have."""

    identity: str
    width: int
    height: int
    rgb: bytes = field(repr=False)
    part_of: str = field(default="", compare=False)  # identity of the whole picture, where this is a part of one

    @classmethod
    def of(cls, width: int, height: int, rgb: bytes, *, part_of: str = "") -> Picture:
        return cls(picture_identity(width, height, rgb), width, height, rgb, part_of)


def decode(data: bytes, framing: Framing = WHOLE) -> Picture:
    """The picture in a file. Blocking and pure. Raises TooLarge and InvalidField, for `image` or `framing`."""
    if len(data) > LARGEST_FILE:
        raise too_large()
    blueprint = read(data)
    if blueprint.width * blueprint.height > MOST_PIXELS:
        raise refused("PICTURE_TOO_MANY_PIXELS")
    shown = blueprint.shown or Box(0, 0, blueprint.width, blueprint.height)
    if min(shown.width, shown.height) < SMALLEST_SIDE:
        raise refused("PICTURE_TOO_SMALL")
    whole = _develop(blueprint)
    if framing == WHOLE:
        return Picture.of(whole.width, whole.height, whole.tobytes())
    image = framing.apply(whole)
    part_of = picture_identity(whole.width, whole.height, whole.tobytes())
    return Picture.of(image.width, image.height, image.tobytes(), part_of=part_of)


def too_large() -> TooLarge:
    return TooLarge(FIELD, f"must be a file of at most {LARGEST_FILE // MIB} MiB", reason="PICTURE_TOO_LARGE")


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"})  # of 8 bits or fewer, as files have them


def _develop(blueprint: Blueprint) -> Image.Image:
    """The upright RGB image a file was kept of."""
    try:
        image = _opaque(in_srgb(_load(blueprint), blueprint.profile))
        if blueprint.shown is not None:
            left, top, width, height = blueprint.shown
            image = image.crop((left, top, left + width, top + height))
        return _upright(image, blueprint.orientation)
    except InvalidField:
        raise
    except MemoryError:
        raise Overloaded("GATEWAY_BUSY") from None
    except Exception as error:  # noqa: BLE001  # Pillow raises nearly anything for bytes made to break it
        raise refused("PICTURE_TRUNCATED" if "truncated" in str(error) else "PICTURE_UNREADABLE") from None


def _load(blueprint: Blueprint) -> Image.Image:
    image = blueprint.open(BytesIO(blueprint.pixels))
    # A file may give several sizes. What was allowed is the one that was read first, and no other is decoded.
    if image.size != (blueprint.width, blueprint.height):
        raise refused("PICTURE_UNREADABLE")
    if image.mode not in _MODES:
        raise refused("PICTURE_MODE")
    image.load()
    if image.size != (blueprint.width, blueprint.height):
        raise refused("PICTURE_UNREADABLE")
    return image


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    paint = image.convert("RGBA")
    paper = Image.new("RGB", paint.size, "white")
    paper.paste(paint, mask=paint)
    return paper


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)
