"""Pictures and recordings, small ones of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image, ImageFilter

from cache.near import look_of
from gateway import pictures, sounds
from gateway.blueprint import MOST_PIXELS
from gateway.errors import InvalidField
from gateway.tracks import ANY
from tests.fuzz.repair import repaired
from tests.fuzz.target import Target
from tests.gateway.heif import coded, grid, heif, imir, irot
from tests.gateway.profiles import grey_profile, rgb_profile
from tests.gateway.recordings import KINDS, in_fragments, voice, wav, written

_SIZE = (16, 12)


def _as_it_comes_or_repaired(data: bytes) -> bytes:
    return data if len(data) % 4 == 0 else repaired(data)


def _refused(field: str, kind: str, refused: InvalidField) -> bool:
    assert refused.field == field
    assert refused.reason.startswith(kind)
    return False


def _picture(data: bytes) -> bool:
    try:
        picture = pictures.decode(_as_it_comes_or_repaired(data))
    except InvalidField as refused:
        return _refused("image", "PICTURE_", refused)
    assert picture.width * picture.height * 3 == len(picture.rgb) <= MOST_PIXELS * 3
    look_of(picture.width, picture.height, picture.rgb)
    return True


def _pictures() -> list[bytes]:
    def of(image: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    rgb = Image.linear_gradient("L").resize(_SIZE).convert("RGB").filter(ImageFilter.GaussianBlur(1))
    grey, alpha, palette = rgb.convert("L"), rgb.convert("RGBA"), rgb.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6
    colours, greys = rgb_profile(), grey_profile(2.2)
    tile = rgb.resize((16, 16))
    tiles = [coded(2, tile), coded(3, tile.rotate(180))]
    return [
        of(rgb, "PNG", icc_profile=colours, exif=exif),
        of(grey, "PNG", icc_profile=greys),
        of(alpha, "PNG"),
        of(palette, "PNG", transparency=3),
        of(grey.convert("1"), "PNG"),
        of(rgb, "JPEG", exif=exif, icc_profile=colours),
        of(rgb, "JPEG", progressive=True, subsampling=2, restart_marker_blocks=1),
        of(rgb.convert("CMYK"), "JPEG"),
        of(rgb, "WEBP", exif=exif, icc_profile=colours),
        of(alpha, "WEBP", lossless=True),
        of(rgb, "AVIF", speed=10),
        of(alpha, "AVIF", speed=10),
        heif([coded(1, tile, irot(1), imir(0))]),
        heif([*tiles, grid(1, tiles, 2, (32, 16))]),
    ]


def _sound(data: bytes) -> bool:
    try:
        sound = sounds.decode(_as_it_comes_or_repaired(data))
        sounds.check(sound.facts, ANY)
    except InvalidField as refused:
        return _refused("voice", "SOUND_", refused)
    assert sound.facts.samples * 2 == len(sound.pcm) <= ANY.max_seconds * sound.facts.sample_rate * 2
    return True


def _sounds() -> list[bytes]:
    def short(rate: int) -> Any:
        return voice(0.11, rate)

    return [
        wav(voice(0.11, 8_000), 8_000),
        wav(voice(0.11, 8_000), 8_000, extensible=True),
        written(short(16_000), "flac", "flac", 16_000),
        written(short(48_000), "ogg", "libopus", 48_000),
        written(short(44_100), "ogg", "vorbis", 44_100, channels=2),
        written(short(24_000), "mp3", "libmp3lame", 24_000),
        written(short(48_000), "ipod", "aac", 48_000),
        written(short(48_000), "mp4", "aac", 48_000, **in_fragments),
        written(short(48_000), "mp4", "libopus", 48_000),
        written(short(48_000), "webm", "libopus", 48_000, channels=2),
        written(short(48_000), "webm", "libopus", 48_000, live="1"),
        KINDS["chromium's webm"],
    ]


TARGETS: Sequence[Target] = (
    Target("picture", _picture, _pictures, longest=8192),
    Target("sound", _sound, _sounds, longest=12_288),
)
