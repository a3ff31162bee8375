"""Pictures: one identity for one set of pixels, and no file that makes the gateway work, wait or break."""

from __future__ import annotations

import asyncio
import random
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
from anyio import wait_all_tasks_blocked
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageOps

from cache.digest import Digest
from gateway import darkroom as rooms
from gateway import picture_files
from gateway.darkroom import Darkroom
from gateway.errors import Internal, InvalidField, NotFound, Overloaded, TooLarge
from gateway.framing import Framing
from gateway.pictures import Picture, decode

SIZE = (24, 16)


def noise(size: tuple[int, int] = SIZE, mode: str = "RGB", seed: int = 0) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, random.Random(seed).randbytes(size[0] * size[1] * bands))


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def paletted(index: int) -> Image.Image:
    image = Image.new("P", SIZE)
    image.putpalette(bytes(range(256)) * 3)
    image.paste(index, (0, 0, *SIZE))
    return image


def lossless(image: Image.Image) -> bytes:
    return file_of(image, "WEBP", lossless=True, exact=True)


def reason_of(data: bytes) -> str:
    with pytest.raises(InvalidField) as caught:
        decode(data)
    assert "image" == caught.value.field
    return caught.value.reason


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 2, before: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


WHOLE_FILES = {
    "png": file_of(noise()),
    "interlaced palette": file_of(noise(mode="P")),
    "jpeg": file_of(noise(), "JPEG"),
    "progressive jpeg": file_of(noise((48, 32)), "JPEG", progressive=True),
    "lossy webp": file_of(noise(), "WEBP"),
    "lossless webp": lossless(noise()),
    "webp with alpha": file_of(noise(mode="RGBA"), "WEBP"),
}


# One identity for one set of pixels


def test_a_picture_is_its_rows_of_rgb() -> None:
    """What comes out of a file is the size and the pixels that went into it."""
    image = noise()
    picture = decode(file_of(image))

    assert (24, 16, image.tobytes()) == (picture.width, picture.height, picture.rgb)
    assert Picture.of(24, 16, image.tobytes()) == picture


def test_identities_do_not_change() -> None:
    """The identity of a known picture is the one that stored entries were named by."""
    picture = Picture.of(8, 8, bytes(192))

    assert "a57a56b0113a17f1862ed15291b87a1515e561a663cb98ea3cac7754c18a5f86" == picture.identity


@given(st.integers(8, 20), st.integers(8, 20), st.integers(0, 2**32))
def test_containers_and_metadata_make_no_difference(width: int, height: int, seed: int) -> None:
    """Every lossless way to write the same pixels gives the same identity."""
    image = noise((width, height), seed=seed)
    exif = Image.Exif()
    exif[0x010E] = "holiday"
    files = [
        file_of(image),
        file_of(image, compress_level=0),
        file_of(image, exif=exif, dpi=(72, 72), icc_profile=b"profile"),
        file_of(image.convert("RGBA")),
        lossless(image),
        file_of(image, "WEBP", lossless=True, exif=exif.tobytes(), icc_profile=b"profile"),
    ]

    assert {Picture.of(width, height, image.tobytes()).identity} == {decode(file).identity for file in files}


@given(st.integers(8, 16), st.integers(8, 16), st.integers(8, 16), st.integers(8, 16), st.binary(max_size=8))
def test_the_same_bytes_in_other_rows_are_another_picture(a: int, b: int, c: int, d: int, fill: bytes) -> None:
    """Identities are equal exactly if width, height and pixels are."""
    area = max(a * b, c * d) * 3
    content = (fill * area or bytes(area))[:area]
    one = decode(file_of(Image.frombytes("RGB", (a, b), content[: a * b * 3])))
    other = decode(file_of(Image.frombytes("RGB", (c, d), content[: c * d * 3])))

    assert ((a, b) == (c, d)) == (one.identity == other.identity)


def test_a_wide_picture_is_no_tall_one() -> None:
    """The same bytes, laid out 30 by 150 and 150 by 30, are two pictures."""
    content = noise((30, 150)).tobytes()

    assert Picture.of(30, 150, content).identity != Picture.of(150, 30, content).identity


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=2, max_size=4, unique=True), st.integers(0, 2**16))
def test_a_palette_is_what_its_colours_show(colours: list[tuple[int, int, int]], seed: int) -> None:
    """A picture with a palette is the picture in those colours; other colours under the same indices are another."""
    indices = [random.Random(seed).randrange(len(colours)) for _ in range(64)]
    indices[:2] = [0, 1]
    image = Image.new("P", (8, 8))
    image.putdata(indices)
    image.putpalette([value for colour in colours for value in colour])
    swapped = image.copy()
    swapped.putpalette([value for colour in reversed(colours) for value in colour])

    assert decode(file_of(image.convert("RGB"))).identity == decode(file_of(image)).identity
    assert decode(file_of(image)).identity != decode(file_of(swapped)).identity


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "LA", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    """What a file holds in whatever mode is looked at as the library's own conversion shows it, on white."""
    image = noise(mode="L").convert("1") if mode == "1" else noise(mode=mode)
    data = file_of(image, "JPEG", quality=95) if mode == "CMYK" else file_of(image)
    with Image.open(BytesIO(data)) as opened:
        paint = opened.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", SIZE, "white"), paint).convert("RGB")
    actual = Image.frombytes("RGB", SIZE, decode(data).rgb)

    # Laying on white rounds in one of two ways: by one step at most.
    difference = max(high for _, high in _extrema(expected, actual))
    assert difference <= (1 if mode in ("LA", "RGBA") else 0)


def _extrema(one: Image.Image, other: Image.Image) -> Any:
    return ImageChops.difference(one, other).getextrema()


@pytest.mark.parametrize(
    "data",
    [
        file_of(Image.new("RGBA", SIZE, (255, 0, 0, 0))),
        file_of(Image.new("LA", SIZE, (7, 0))),
        file_of(paletted(3), transparency=3),
        file_of(paletted(1), transparency=b"\xff\x00\x80"),
        file_of(Image.new("L", SIZE, 9), transparency=9),
        file_of(Image.new("RGB", SIZE, (1, 2, 3)), transparency=(1, 2, 3)),
        file_of(Image.new("1", SIZE, 0), transparency=0),
        lossless(Image.new("RGBA", SIZE, (0, 0, 255, 0))),
    ],
    ids=["RGBA", "LA", "P, one", "P, many", "L", "RGB", "1", "WebP"],
)
def test_what_cannot_be_seen_is_white(data: bytes) -> None:
    """Transparency in any of its codings shows paper, and colours under it make no difference."""
    assert Picture.of(*SIZE, b"\xff" * 24 * 16 * 3) == decode(data)


@pytest.mark.parametrize("orientation", range(0, 10))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_cameras_orientation_is_applied(kind: str, orientation: int) -> None:
    """A picture is the one people see, as the library's own turning shows it; impossible orientations mean upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(noise(), kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened)

    assert Picture.of(*expected.size, expected.convert("RGB").tobytes()) == decode(data)


def test_orientation_is_read_in_either_byte_order() -> None:
    """Cameras write their notes in both orders."""
    small = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + bytes(4)
    big = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + bytes(4)

    assert [6, 6] == [picture_files._orientation(small), picture_files._orientation(big)]


@given(st.binary(max_size=64))
def test_broken_orientation_means_upright(junk: bytes) -> None:
    """Metadata that cannot be read never refuses a picture whose pixels can."""
    data = file_of(noise((16, 16)), "JPEG", exif=b"Exif\0\0II*\0" + junk)

    assert (16, 16) == (decode(data).width, decode(data).height)


def test_a_camera_file_with_more_pictures_behind_the_first_is_the_first() -> None:
    """Previews and gain maps that phones put behind a photograph are neither shown nor an animation."""
    image = noise((16, 16))
    data = file_of(image, "MPO", save_all=True, append_images=[noise((8, 8))])
    with Image.open(BytesIO(data)) as opened:
        expected = opened.convert("RGB").tobytes()

    assert Picture.of(16, 16, expected) == decode(data)


def test_pixels_do_not_show() -> None:
    """What represents a picture in a log holds no pixels."""
    assert "rgb" not in repr(decode(WHOLE_FILES["png"]))


# What is refused


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000"])
def test_only_five_formats_are_read(kind: str) -> None:
    """None of the many other formats the library knows reaches it, and the refusal lists those that do."""
    with pytest.raises(InvalidField, match="must be a PNG, JPEG, WebP, HEIC or AVIF file") as caught:
        decode(file_of(noise(), kind))
    assert "PICTURE_FORMAT" == caught.value.reason


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"\xff\xd8", b"RIFF", b"RIFF\0\0\0\0WAVE", b"<svg/>", b"\0" * 100])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    """Beginnings that belong to no format we read are said to be that."""
    assert "PICTURE_FORMAT" == reason_of(data)


def test_a_file_may_have_16_mib() -> None:
    """The bound itself is allowed; one byte more is refused before it is looked at."""
    whole = WHOLE_FILES["png"]
    end = png_chunk(b"IEND", b"")
    padding = png_chunk(b"teXt", bytes(16 * 1024 * 1024 - len(whole) - 12))
    largest = whole.removesuffix(end) + padding + end

    assert 16 * 1024 * 1024 == len(largest)
    assert decode(whole) == decode(largest)
    with pytest.raises(TooLarge) as caught:
        decode(largest + b"\0")
    assert ("image", "PICTURE_TOO_LARGE", "must be a file of at most 16 MiB") == (
        caught.value.field,
        caught.value.reason,
        caught.value.message,
    )


@pytest.mark.parametrize("size", [(7, 100), (100, 7), (1, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_has_at_least_8_pixels_each_way(kind: str, size: tuple[int, int]) -> None:
    """What is smaller than any model could use is refused."""
    assert "PICTURE_TOO_SMALL" == reason_of(file_of(noise(size), kind))


def test_eight_by_eight_is_enough() -> None:
    """The bound itself is allowed."""
    assert (8, 8) == (decode(file_of(noise((8, 8)))).width, decode(file_of(noise((8, 8)))).height)


def bombs() -> dict[str, bytes]:
    rows = zlib.compress(bytes(2_000_000))
    big = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", big) + png_chunk(b"IDAT", rows * 200) + png_chunk(b"IEND", b"")
    jpeg = bytearray(WHOLE_FILES["jpeg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    canvas = b"VP8X" + struct.pack("<IIHBHB", 10, 0, 16_382, 0, 16_382, 0)
    webp = b"WEBP" + canvas + WHOLE_FILES["lossless webp"][12:]
    lossy = bytearray(WHOLE_FILES["lossy webp"])
    lossy[26:30] = struct.pack("<HH", 16_383, 16_383)
    return {
        "PNG": png,
        "JPEG": bytes(jpeg),
        "WebP, canvas": b"RIFF" + struct.pack("<I", len(webp)) + webp,
        "WebP, lossy": bytes(lossy),
    }


@pytest.mark.parametrize("data", bombs().values(), ids=bombs().keys())
def test_bombs_are_refused_before_they_go_off(data: bytes) -> None:
    """A small file that says it is a huge picture is refused by what it says, and takes no memory."""
    tracemalloc.start()
    try:
        reason = reason_of(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert "PICTURE_TOO_MANY_PIXELS" == reason
    assert peak < 4 * len(data) + 1_000_000


def test_twenty_million_pixels_are_allowed() -> None:
    """The bound itself is allowed; one row more is not."""
    largest = file_of(Image.new("L", (5000, 4000)), compress_level=1)

    assert (5000, 4000) == (decode(largest).width, decode(largest).height)
    assert "PICTURE_TOO_MANY_PIXELS" == reason_of(file_of(Image.new("1", (5000, 4001))))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    """A file has exactly one frame; which one of several is meant, only the caller knows."""
    assert "PICTURE_ANIMATED" == reason_of(file_of(noise(), kind, save_all=True, append_images=[noise(seed=1)]))


def test_an_animation_control_that_comes_late_is_refused_without_a_warning() -> None:
    """A file that is an animation for some readers and not for others is one."""
    end = png_chunk(b"IEND", b"")
    late = WHOLE_FILES["png"].removesuffix(end) + png_chunk(b"acTL", struct.pack(">II", 0, 0)) + end

    assert "PICTURE_ANIMATED" == reason_of(late)


@pytest.mark.parametrize(("colour", "samples"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["L", "RGB", "LA", "RGBA"])
def test_sixteen_bits_are_refused(colour: int, samples: int) -> None:
    """Nobody's 16-bit picture is cut to 8 bits unasked; the advice says what to do."""
    rows = (b"\0" + bytes(8 * samples * 2)) * 8
    with pytest.raises(InvalidField, match="save it as 8-bit") as caught:
        decode(png_of(8, 8, rows, depth=16, colour=colour))

    assert "PICTURE_MODE" == caught.value.reason


def test_twelve_bit_jpegs_are_refused() -> None:
    """The same for the rare 12-bit JPEG."""
    data = bytearray(WHOLE_FILES["jpeg"])
    data[data.index(b"\xff\xc0") + 4] = 12

    assert "PICTURE_MODE" == reason_of(bytes(data))


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_half_a_file_is_refused(name: str) -> None:
    """A file that lacks any part of its end is said to be truncated, and never decoded as far as it goes."""
    whole = WHOLE_FILES[name]
    assert decode(whole)

    reasons = {length: reason_of(whole[:length]) for length in range(len(whole))}

    assert {"PICTURE_TRUNCATED"} == {reason for length, reason in reasons.items() if length >= 30}
    assert {"PICTURE_TRUNCATED", "PICTURE_FORMAT", "PICTURE_UNREADABLE"} >= set(reasons.values())


def test_rows_that_a_whole_file_leaves_out_are_black() -> None:
    """What an encoder forgot is the same for everybody, and never what lay in memory before."""
    expected = Picture.of(64, 64, b"\x80" * 63 * 64 * 3 + bytes(64 * 3))

    for _ in range(5):
        decode(file_of(noise((64, 64))))
        assert expected == decode(png_of(64, 64, (b"\0" + b"\x80" * 64 * 3) * 63))


def test_damaged_pixels_are_refused() -> None:
    """A checksum that does not fit is noticed."""
    data = bytearray(WHOLE_FILES["png"])
    data[-20] ^= 0xFF

    assert reason_of(bytes(data)) in ("PICTURE_UNREADABLE", "PICTURE_TRUNCATED")


def test_a_file_that_gives_two_sizes_is_refused() -> None:
    """The size that was allowed is the size that is decoded."""
    first = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    second = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    end = png_chunk(b"IEND", b"")

    assert "PICTURE_UNREADABLE" == reason_of(b"\x89PNG\r\n\x1a\n" + first + second + pixels + end)


def test_a_chunk_that_must_be_understood_is_not_passed_over() -> None:
    """PNG says of some chunks that nobody may show the picture without them."""
    assert "PICTURE_UNREADABLE" == reason_of(png_of(8, 8, (b"\0" + bytes(24)) * 8, before=png_chunk(b"WHAT", b"")))


def test_a_palette_that_is_missing_is_noticed() -> None:
    """Damage that only shows when colours are looked up is damage."""
    assert "PICTURE_UNREADABLE" == reason_of(png_of(8, 8, (b"\0" + bytes(8)) * 8, colour=3))


def many_segments() -> dict[str, bytes]:
    webp = b"WEBP" + b"JUNK\0\0\0\0" * 100_000
    return {
        "PNG": png_of(8, 8, (b"\0" + bytes(24)) * 8, before=png_chunk(b"teXt", b"") * 100_000),
        "JPEG": b"\xff\xd8" + b"\xff\xfe\0\x02" * 100_000 + WHOLE_FILES["jpeg"][2:],
        "JPEG, markers": b"\xff\xd8" + b"\xff\xd0" * 100_000 + WHOLE_FILES["jpeg"][2:],
        "WebP": b"RIFF" + struct.pack("<I", len(webp)) + webp,
    }


@pytest.mark.parametrize("data", many_segments().values(), ids=many_segments().keys())
def test_a_file_of_countless_segments_is_refused(data: bytes) -> None:
    """Walking segments ends at a number no honest file has."""
    assert "PICTURE_UNREADABLE" == reason_of(data)


def test_messages_quote_nothing() -> None:
    """Words of the decoder, which may quote the file, are not passed on."""
    with pytest.raises(InvalidField) as caught:
        decode(png_of(8, 8, b"secret"))

    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "must be" in caught.value.message


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x64\0\0\0WEBP"]))
@settings(max_examples=300)
def test_random_bytes_only_ever_meet_our_errors(junk: bytes, start: bytes) -> None:
    """Whatever follows the beginning of a format, the answer is a picture or an error of ours."""
    decode_or_refuse(start + junk)


@given(st.sampled_from(sorted(WHOLE_FILES)), st.data())
@settings(max_examples=500)
def test_damaged_files_only_ever_meet_our_errors(name: str, data: st.DataObject) -> None:
    """Any few bytes of a file changed, most of them near its start: a picture, or an error of ours."""
    damaged = bytearray(WHOLE_FILES[name])
    places = st.integers(0, min(200, len(damaged) - 1)) | st.integers(0, len(damaged) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(places)] = data.draw(st.integers(0, 255))

    decode_or_refuse(bytes(damaged))


@given(st.sampled_from(sorted(WHOLE_FILES)), st.data())
@settings(max_examples=200)
def test_rearranged_files_only_ever_meet_our_errors(name: str, data: st.DataObject) -> None:
    """A file with a piece of another cut in: a picture, or an error of ours."""
    whole, other = WHOLE_FILES[name], WHOLE_FILES[data.draw(st.sampled_from(sorted(WHOLE_FILES)))]
    start = data.draw(st.integers(0, len(whole)))
    piece = other[data.draw(st.integers(0, len(other))) :][: data.draw(st.integers(0, 64))]

    decode_or_refuse(whole[:start] + piece + whole[start:])


def decode_or_refuse(data: bytes) -> None:
    with suppress(InvalidField):
        picture = decode(data)
        assert picture.width * picture.height * 3 == len(picture.rgb)


# The darkroom


@pytest.fixture
def darkroom() -> Iterator[Darkroom]:
    with Darkroom() as darkroom:
        yield darkroom


async def test_a_source_names_file_and_pixels(darkroom: Darkroom) -> None:
    """What is known of an upload is the digest of its file, its identity, and its pixels when asked for."""
    data = WHOLE_FILES["png"]
    source = await darkroom.identify("ns", data)
    picture = decode(data)

    assert (Digest.of(data), picture.identity, 24, 16) == (source.file, source.identity, source.width, source.height)
    assert picture == await source.pixels()
    assert 1 == darkroom.decoded


async def test_a_file_seen_before_is_not_decoded_again(darkroom: Darkroom) -> None:
    """A hot request costs a hash; its pixels are decoded if somebody asks for them, and only then."""
    data = WHOLE_FILES["jpeg"]
    first = await darkroom.identify("ns", data)
    again = await darkroom.identify("ns", data)

    assert (first.identity, first.width, first.height) == (again.identity, again.width, again.height)
    assert 1 == darkroom.decoded
    assert await first.pixels() == await again.pixels()
    assert 2 == darkroom.decoded


async def test_equal_files_at_the_same_time_are_decoded_once(darkroom: Darkroom) -> None:
    """A crowd with the same picture waits for one decoding."""
    sources = await asyncio.gather(*[darkroom.identify("ns", WHOLE_FILES["png"]) for _ in range(50)])

    assert 1 == len({source.identity for source in sources})
    assert 1 == darkroom.decoded


async def test_nobody_can_tell_what_others_have_uploaded(darkroom: Darkroom) -> None:
    """What one namespace has seen is decoded again for another, which takes the time it takes."""
    await darkroom.identify("acme", WHOLE_FILES["png"])
    await darkroom.identify("globex", WHOLE_FILES["png"])

    assert 2 == darkroom.decoded


async def test_large_files_are_identified_alike(darkroom: Darkroom) -> None:
    """A file that is hashed aside has the same digest."""
    data = file_of(noise((700, 700)))
    assert len(data) > 1024 * 1024

    assert Digest.of(data) == (await darkroom.identify("ns", data)).file


async def test_an_uploaded_file_is_fetched_only_to_be_decoded(darkroom: Darkroom) -> None:
    """A picture named by its digest needs no file while its identity is remembered."""
    data, fetched = WHOLE_FILES["png"], []

    async def fetch() -> bytes:
        fetched.append(data)
        return data

    sources = [await darkroom.recognise("ns", Digest.of(data), fetch) for _ in range(3)]

    assert [decode(data).identity] * 3 == [source.identity for source in sources]
    assert 1 == len(fetched)
    await sources[2].pixels()
    assert 2 == len(fetched)


async def test_a_file_that_is_gone_is_missed_when_it_is_needed(darkroom: Darkroom) -> None:
    """What fetching raises reaches whoever asked."""

    async def gone() -> bytes:
        raise NotFound("DIGEST_UNKNOWN")

    with pytest.raises(NotFound):
        await darkroom.recognise("ns", Digest.of(b""), gone)


async def test_a_file_that_changed_is_a_fault_of_ours(darkroom: Darkroom) -> None:
    """Pixels that are not the ones remembered under a name never go anywhere."""
    files = [WHOLE_FILES["png"], WHOLE_FILES["jpeg"]]

    async def fetch() -> bytes:
        return files.pop(0)

    await darkroom.recognise("ns", Digest.of(b"name"), fetch)
    source = await darkroom.recognise("ns", Digest.of(b"name"), fetch)

    with pytest.raises(Internal) as caught:
        await source.pixels()
    assert "PICTURE_DIFFERS" == caught.value.reason


async def test_what_cannot_be_decoded_is_refused_every_time(darkroom: Darkroom) -> None:
    """Refusals are not remembered, and are shared by those who wait for the same decoding."""
    broken = WHOLE_FILES["png"][:-1]
    answers = await asyncio.gather(*[darkroom.identify("ns", broken) for _ in range(5)], return_exceptions=True)

    assert ["PICTURE_TRUNCATED"] * 5 == [getattr(answer, "reason", None) for answer in answers]
    with pytest.raises(InvalidField):
        await darkroom.identify("ns", broken)


async def test_a_file_over_the_bound_is_refused_unread(darkroom: Darkroom) -> None:
    """Nothing is hashed that will not be decoded."""
    with pytest.raises(TooLarge):
        await darkroom.identify("ns", bytes(16 * 1024 * 1024 + 1))
    assert 0 == darkroom.decoded


async def test_memory_of_pictures_is_bounded() -> None:
    """The picture not seen for longest is forgotten first."""
    files = [file_of(noise(seed=seed)) for seed in range(3)]
    with Darkroom(most_remembered=2) as darkroom:
        for index in (0, 1, 0, 2):  # 1 has not been seen for longest when 2 comes
            await darkroom.identify("ns", files[index])
        assert 3 == darkroom.decoded
        await darkroom.identify("ns", files[0])
        assert 3 == darkroom.decoded
        await darkroom.identify("ns", files[1])
        assert 4 == darkroom.decoded


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds every decoding until it is set."""
    gate = threading.Event()

    def held(data: bytes, framing: Framing) -> Picture:
        gate.wait(30)
        return decode(data)

    monkeypatch.setattr(rooms, "decode", held)
    yield gate
    gate.set()


async def test_no_more_wait_than_there_is_room_for(gate: threading.Event) -> None:
    """One file more than may wait is refused with a delay, and the others are served."""
    with Darkroom(threads=1, most_waiting=3) as darkroom:
        waiting = [asyncio.create_task(darkroom.identify("ns", file_of(noise(seed=seed)))) for seed in range(3)]
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as caught:
            await darkroom.identify("ns", file_of(noise(seed=3)))
        gate.set()
        await asyncio.gather(*waiting)

    assert ("GATEWAY_BUSY", 1.0) == (caught.value.reason, caught.value.retry_after)
    assert 3 == darkroom.decoded


async def test_those_who_leave_do_not_disturb_those_who_stay(gate: threading.Event) -> None:
    """The first caller's leaving does not cancel the decoding that others wait for."""
    with Darkroom() as darkroom:
        leaver = asyncio.create_task(darkroom.identify("ns", WHOLE_FILES["png"]))
        await wait_all_tasks_blocked()
        stayer = asyncio.create_task(darkroom.identify("ns", WHOLE_FILES["png"]))
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        gate.set()

        assert decode(WHOLE_FILES["png"]).identity == (await stayer).identity
        assert 1 == darkroom.decoded


async def test_asking_and_leaving_makes_no_more_threads(gate: threading.Event) -> None:
    """However many ask and leave, only so many files are decoded at a time; what was begun is remembered."""
    with Darkroom(threads=2) as darkroom:
        callers = [asyncio.create_task(darkroom.identify("ns", file_of(noise(seed=seed)))) for seed in range(10)]
        await wait_all_tasks_blocked()
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)

        assert 2 >= sum(thread.name.startswith("darkroom") for thread in threading.enumerate())
        gate.set()
        await asyncio.gather(*darkroom._decoding.values())
        await darkroom.identify("ns", file_of(noise(seed=9)))

    assert 10 == darkroom.decoded


async def test_closing_forgets_who_waits(gate: threading.Event) -> None:
    """At shutdown files that wait are not decoded any more."""
    with Darkroom(threads=1) as darkroom:
        callers = [asyncio.create_task(darkroom.identify("ns", file_of(noise(seed=seed)))) for seed in range(3)]
        await wait_all_tasks_blocked()
    gate.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)

    assert [False, True, True] == [isinstance(answer, asyncio.CancelledError) for answer in answers]
