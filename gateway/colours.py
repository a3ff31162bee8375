"""Colours: a file's numbers as sRGB, which is what a model takes them for and what a screen showed.

A colour profile is applied by LittleCMS with one fixed intent, so that the same file gives the same pixels everywhere.
A profile that says what no profile says changes nothing: a picture tagged as sRGB is the same picture without the tag.
One that is damaged, or made for other kinds of pixels, is no profile, as for every program that shows the picture.
"""

from __future__ import annotations

from io import BytesIO
from itertools import product

from PIL import Image, ImageChops, ImageCms

_SRGB = ImageCms.createProfile("sRGB")
_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # what a profile says of itself -> the pixels it is for
_GREY = frozenset({"1", "L", "LA"})
_UNSEEN = 2  # of 255: what two ways to compute one colour may differ by


def in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The image with its colours in sRGB: itself, or an RGB or RGBA one. Blocking."""
    mode = _MODES.get(profile[16:20])
    # Grey numbers are colours too, and have a colour profile more often than one of their own.
    if mode is None or (mode == "CMYK") is not (image.mode == "CMYK") or (mode == "L" and image.mode not in _GREY):
        return image
    try:
        translation = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            _SRGB,
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):
        return image
    if mode != "CMYK" and _changes_nothing(translation, _PROBES[mode]):
        return image
    if not image.has_transparency_data:
        return translation.apply(image.convert(mode))
    paint = image.convert("RGBA")
    colours = translation.apply(paint.convert(mode))
    colours.putalpha(paint.getchannel("A"))
    return colours


def _changes_nothing(translation: ImageCms.ImageCmsTransform, probe: Image.Image) -> bool:
    difference = ImageChops.difference(translation.apply(probe), probe.convert("RGB"))
    return max(difference.tobytes()) <= _UNSEEN


def _probe() -> Image.Image:
    """Colours all over the cube: nine steps of each."""
    levels = [min(255, 32 * step) for step in range(9)]
    return Image.frombytes("RGB", (81, 9), bytes(value for colour in product(levels, repeat=3) for value in colour))


_PROBES = {"RGB": _probe(), "L": Image.frombytes("L", (256, 1), bytes(range(256)))}
