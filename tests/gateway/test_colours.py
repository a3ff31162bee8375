"""Colours: what a profile says is applied, what it does not say changes nothing, and none can break anything."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from gateway import blueprint
from gateway.colours import in_srgb
from gateway.picture_files import read
from gateway.pictures import Picture, decode
from tests.gateway.heif import coded, heif
from tests.gateway.profiles import SRGB, grey_profile, rgb_profile
from tests.gateway.test_pictures import SIZE, file_of, lossless, noise, png_chunk

ORANGE = (255, 100, 50)
ORANGE_OF_P3 = (255, 85, 16)  # the same numbers, meant in Display P3, as sRGB has that colour
P3, TAGGED = rgb_profile(), rgb_profile(SRGB)

WRITERS: dict[str, Callable[[Image.Image, bytes], bytes]] = {
    "PNG": lambda image, profile: file_of(image, icc_profile=profile),
    "JPEG": lambda image, profile: file_of(image, "JPEG", quality=100, subsampling=0, icc_profile=profile),
    "WebP": lambda image, profile: file_of(image, "WEBP", lossless=True, icc_profile=profile),
    "AVIF": lambda image, profile: file_of(image, "AVIF", quality=100, subsampling="4:4:4", icc_profile=profile),
    "HEIC": lambda image, profile: heif([coded(1, image.resize((32, 32)), (b"colr", b"prof" + profile))]),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_profile_is_applied_in_every_format(kind: str) -> None:
    """The pixels are those that were seen: numbers of a phone's wide colours become the sRGB of the same colour."""
    image = Image.new("RGB", SIZE, ORANGE)
    plain, wide = (decode(WRITERS[kind](image, profile)).rgb[:3] for profile in (TAGGED, P3))

    assert all(abs(a - b) <= 8 for a, b in zip(ORANGE, plain, strict=True))  # what coding costs
    assert all(abs(a - b) <= 8 for a, b in zip(ORANGE_OF_P3, wide, strict=True))
    assert in_srgb(Image.new("RGB", (1, 1), tuple(plain)), P3).tobytes() == wide


def test_a_tag_that_says_srgb_changes_nothing() -> None:
    """With the tag and without it, of whatever make, it is the same picture bit for bit."""
    image = noise()
    theirs = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rounded = rgb_profile(
        [[part + 0.0002 * (1 if n == m else -1) for m, part in enumerate(c)] for n, c in enumerate(SRGB)]
    )
    files = [file_of(image), *(file_of(image, icc_profile=profile) for profile in (TAGGED, theirs, rounded))]

    assert [decode(files[0])] * 4 == [decode(file) for file in files]


def test_another_profile_is_another_picture() -> None:
    """Equal numbers that mean other colours are not equal pixels; numbers that mean equal colours are."""
    image = noise()
    wide = file_of(image, icc_profile=P3)

    assert decode(file_of(image)).identity != decode(wide).identity
    assert decode(wide) == decode(file_of(in_srgb(image, P3)))
    assert decode(wide) == decode(file_of(image, "WEBP", lossless=True, icc_profile=P3))


def test_grey_has_profiles_of_either_kind() -> None:
    """A curve for grey is applied to grey, and a profile for colours to grey numbers as colours."""
    image = noise(mode="L")
    grey, colour = (decode(file_of(image, icc_profile=each)) for each in (grey_profile(1.0), P3))

    assert in_srgb(image, grey_profile(1.0)).tobytes() == grey.rgb
    assert all(red == green == blue for red, green, blue in zip(*[iter(grey.rgb)] * 3, strict=True))
    assert grey.rgb != decode(file_of(image)).rgb
    assert decode(file_of(image)) == colour  # P3 has the same greys


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA"])
def test_transparency_and_palettes_keep_their_place(mode: str) -> None:
    """Colours are translated as they are seen, and transparency is what it was."""
    image = Image.new("RGBA", SIZE, (*ORANGE, 255)).convert(mode) if mode != "P" else Image.new("P", SIZE, 0)
    if mode == "P":
        image.putpalette(ORANGE)
    expected = in_srgb(Image.new("RGB", (1, 1), image.convert("RGB").getpixel((0, 0))), P3)
    assert expected.tobytes() == decode(file_of(image, icc_profile=P3)).rgb[:3]

    clear = image.copy()
    if mode == "P":
        assert Picture.of(*SIZE, b"\xff" * 24 * 16 * 3) == decode(file_of(clear, icc_profile=P3, transparency=b"\0"))
    else:
        clear.putalpha(0)
        assert Picture.of(*SIZE, b"\xff" * 24 * 16 * 3) == decode(file_of(clear, icc_profile=P3))


@pytest.mark.parametrize(
    "profile",
    [
        b"",
        b"profile",
        P3[:200],
        P3[:-1],
        P3.replace(b"acsp", b"xxxx"),
        P3.replace(b"RGB ", b"CMYK"),
        P3.replace(b"RGB ", b"GRAY"),
        grey_profile(1.0),
        P3.replace(b"mntr", b"link"),
        bytes(16) + b"RGB " + bytes(200),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP", "AVIF"])
def test_what_is_no_profile_for_these_pixels_is_none(kind: str, profile: bytes) -> None:
    """Damaged, or made for other kinds of pixels: the picture is taken as if it had none, as everybody shows it."""
    image = noise()
    assert decode(WRITERS[kind](image, b"")) == decode(WRITERS[kind](image, profile))


def test_printing_colours_are_seen_without_a_profile_too() -> None:
    """CMYK as the library shows it; a profile for colours of a screen does not fit it and is passed over."""
    image = noise(mode="CMYK")
    data = file_of(image, "JPEG", quality=95)
    with Image.open(BytesIO(data)) as opened:
        expected = opened.convert("RGB").tobytes()

    assert expected == decode(data).rgb == decode(file_of(image, "JPEG", quality=95, icc_profile=P3)).rgb


def test_a_profile_in_pieces_is_put_together() -> None:
    """A JPEG segment holds 64 KiB; larger profiles come in several, which count, wherever they stand."""
    large = P3 + bytes(150_000)
    data = file_of(noise(), "JPEG", icc_profile=large)
    first, second = data.index(b"ICC_PROFILE\0\1\3"), data.index(b"ICC_PROFILE\0\2\3")
    size = second - first
    swapped = data[: first - 4] + data[second - 4 : second - 4 + size] + data[first - 4 : first - 4 + size]
    swapped += data[second - 4 + size :]

    assert large == read(data).profile == read(swapped).profile


def test_a_packed_profile_does_not_swell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that unpacks to more than any honest one, or is cut off, is none."""
    bomb = png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(blueprint.LARGEST_PROFILE + 1)))
    cut = png_chunk(b"iCCP", b"x\0\0" + zlib.compress(P3)[:-8])
    whole = file_of(noise())
    for chunk in (bomb, cut, png_chunk(b"iCCP", b""), png_chunk(b"iCCP", b"x\0\0junk")):
        assert b"" == read(whole[:33] + chunk + whole[33:]).profile


def test_the_decoder_never_sees_a_profile() -> None:
    """It is taken out of the file: one party reads it, and no other."""
    for kind in ("PNG", "JPEG", "AVIF", "HEIC"):
        kept = read(WRITERS[kind](noise((32, 32)), P3))
        assert (P3, False) == (kept.profile, b"mntr" in kept.pixels), kind


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_profiles_break_nothing(data: st.DataObject) -> None:
    """Whatever stands in a profile, a picture of the same size comes out."""
    damaged = bytearray(data.draw(st.sampled_from([P3, grey_profile(2.0)])))
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for image in (noise((8, 8)), noise((8, 8), "LA")):
        assert (8, 8) == in_srgb(image, bytes(damaged)).size


def test_lossless_webp_is_what_it_was() -> None:
    """A file without a profile is not touched at all."""
    image = noise()
    assert image.tobytes() == decode(lossless(image)).rgb
