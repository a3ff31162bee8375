"""HEIC and AVIF: what phones send is seen as their own decoders show it, and their boxes make nobody work in vain."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pi_heif import HeifImageFile
from PIL import Image, ImageChops, ImageFilter, ImageOps

from gateway import picture_boxes
from gateway.picture_files import read
from gateway.pictures import Picture, decode
from tests.gateway.heif import Item, box, clap, coded, configuration, grid, heif, hevc, imir, irot, ispe
from tests.gateway.test_pictures import decode_or_refuse, file_of, noise, reason_of

SIZE = (64, 48)
PHOTO = noise(SIZE).filter(ImageFilter.GaussianBlur(3))
TILES = [
    coded(number, PHOTO.crop((32 * (number % 2), 24 * (number // 2 - 1), 32 * (number % 2) + 32, 24 * (number // 2))))
    for number in (2, 3, 4, 5)
]


def avif(image: Image.Image = PHOTO, **options: Any) -> bytes:
    return file_of(image, "AVIF", **{"quality": 90, "speed": 10} | options)


WHOLE_FILES = {
    "heic": heif([coded(1, PHOTO)]),
    "heic, turned": heif([coded(1, PHOTO, irot(1), imir(1))]),
    "heic, a grid": heif([*TILES, grid(1, TILES, 2, (60, 44))]),
    "avif": avif(),
    "avif with alpha": avif(noise(SIZE, "RGBA")),
}


def shown(picture: Picture) -> Image.Image:
    return Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)


def as_libheif_shows(data: bytes) -> Image.Image:
    """The whole file, read by the library's own rules."""
    image: Image.Image = HeifImageFile(BytesIO(data))
    return image.convert("RGB")


# What is seen


@pytest.mark.parametrize("mirrored", [None, 0, 1])
@pytest.mark.parametrize("quarters", range(4))
def test_heic_is_turned_as_its_library_turns_it(quarters: int, mirrored: int | None) -> None:
    """Rotation and mirroring are properties of the picture in this format, and are applied as everybody does."""
    turns = [irot(quarters), *([] if mirrored is None else [imir(mirrored)])]
    data = heif([coded(1, PHOTO, *turns)])

    assert as_libheif_shows(data).tobytes() == decode(data).rgb


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_as_its_library_turns_it(orientation: int) -> None:
    """The same in the same boxes, checked against another library."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = avif(exif=exif.tobytes())
    with Image.open(BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")

    assert Picture.of(*expected.size, expected.tobytes()) == decode(data)


def test_a_grid_of_tiles_is_one_picture() -> None:
    """Phones code a photograph in tiles whose edge hangs over; what is shown is their whole, cut to its size."""
    data = WHOLE_FILES["heic, a grid"]
    picture = decode(data)

    assert (60, 44) == (picture.width, picture.height)
    assert as_libheif_shows(data).tobytes() == picture.rgb
    tile = as_libheif_shows(heif([replace(TILES[0], number=1)]))
    assert tile.tobytes() == shown(picture).crop((0, 0, 32, 24)).tobytes()


def test_a_clean_aperture_is_cut_out() -> None:
    """Encoders that need even sides say with it what of the coded picture is meant; it is cut before it is turned."""
    data = heif([coded(1, PHOTO, clap(52, 32, Fraction(0), Fraction(-2)), irot(1))])
    assert as_libheif_shows(data).tobytes() == decode(data).rgb

    whole = as_libheif_shows(heif([coded(1, PHOTO)]))  # at odd places the library would cut colours half a pixel off
    odd = decode(heif([coded(1, PHOTO, clap(51, 31, Fraction(1, 2), Fraction(-3, 2)), irot(1))]))
    assert (31, 51) == (odd.width, odd.height)
    assert whole.crop((7, 7, 58, 38)).transpose(Image.Transpose.ROTATE_90).tobytes() == odd.rgb


def test_alpha_is_laid_on_white() -> None:
    """A coded alpha beside the picture is its transparency, in either coding."""
    alpha = coded(2, Image.new("RGB", SIZE, "black"), (b"auxC", bytes(4) + b"urn:mpeg:hevc:2015:auxid:1\0"))
    alpha.references = {b"auxl": [1]}

    faint = decode(heif([coded(1, PHOTO), alpha]))  # black of a film is 16 of 255, and so this alpha is not quite 0
    assert 245 < min(faint.rgb)
    assert {255} == set(decode(avif(Image.new("RGBA", SIZE, (9, 99, 199, 0)))).rgb)


def test_what_makes_no_pixels_makes_no_difference() -> None:
    """Thumbnails, notes and other pictures in the file change nothing, and the decoder never gets them."""
    thumbnail = coded(2, noise((16, 16)))
    thumbnail.references = {b"thmb": [1]}
    note = Item(3, b"Exif", bytes(4) + b"Exif\0\0MM\0*canary", references={b"cdsc": [1]})
    other = coded(4, noise(SIZE, seed=1))
    data = heif([coded(1, PHOTO), thumbnail, note, other], more=box(b"free", b"canary"))

    assert decode(WHOLE_FILES["heic"]) == decode(data)
    assert b"canary" not in read(data).pixels
    assert read(WHOLE_FILES["heic"]).pixels == read(data).pixels


def test_the_order_of_boxes_and_the_numbers_of_items_make_no_difference() -> None:
    """The same picture under another number, behind others, is the same picture."""
    data = heif([coded(4, noise(SIZE, seed=1)), coded(40_000, PHOTO)], primary=40_000)

    assert decode(WHOLE_FILES["heic"]) == decode(data)


# What is refused


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_half_a_file_is_refused(name: str) -> None:
    """A file that lacks any part of its end is said to be truncated."""
    whole = WHOLE_FILES[name]
    reasons = {length: reason_of(whole[:length]) for length in range(len(whole))}

    assert {"PICTURE_TRUNCATED"} == {reason for length, reason in reasons.items() if length >= 48}
    assert {"PICTURE_TRUNCATED", "PICTURE_FORMAT", "PICTURE_UNREADABLE"} >= set(reasons.values())


def lying(width: int, height: int) -> bytes:
    """A file whose boxes allow a small picture while its coded one is of another size."""
    item = coded(1, noise((width, height)))
    item.properties = [each if each[0] != b"ispe" else ispe(*SIZE) for each in item.properties]
    return heif([item])


def in_the_stream() -> bytes:
    """The size the boxes allow in the configuration, and another in the stream, which a decoder would follow."""
    item = coded(1, PHOTO)
    sets, _ = hevc(noise((640, 480)).tobytes(), (640, 480))
    return heif([replace(item, data=b"".join(struct.pack(">I", len(each)) + each for each in sets) + item.data)])


def without(kind: bytes) -> bytes:
    item = coded(1, PHOTO)
    item.properties = [each for each in item.properties if each[0] != kind]
    return heif([item])


def avif_of_another_size() -> bytes:
    """Boxes that allow little around a coded picture that is large."""
    return avif(noise((640, 480))).replace(struct.pack(">II", 640, 480), struct.pack(">II", 64, 48))


def sparse_grid() -> bytes:
    return heif([*TILES[:2], grid(1, TILES[:2], 2, (60, 44))])


def shared_tiles() -> bytes:
    item = grid(1, TILES, 2, (60, 44))
    item.references = {b"dimg": [2, 2, 2, 2]}
    return heif([*TILES, item])


def nested_grid() -> bytes:
    parts = [coded(6, noise((60, 44))), grid(7, TILES, 2, (60, 44))]
    return heif([*TILES, *parts, grid(1, parts, 2, (120, 44))])


def avif_of_many_frames() -> bytes:
    """The stream of one picture twice over in one item."""
    whole = avif()
    at, media = whole.index(b"av1C"), whole.index(b"mdat")
    (size,) = struct.unpack_from(">I", whole, at - 4)
    settings = whole[at + 4 : at - 4 + size]
    return heif([Item(1, b"av01", whole[media + 4 :] * 2, [(b"av1C", settings), ispe(*SIZE)])], brands=b"avifmif1avif")


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a larger picture than its boxes say": (lambda: lying(640, 480), "PICTURE_UNREADABLE"),
    "a smaller one": (lambda: lying(32, 32), "PICTURE_UNREADABLE"),
    "a second size in the stream": (in_the_stream, "PICTURE_UNREADABLE"),
    "many pictures in one item": (lambda: heif([coded(1, PHOTO, repeat=3)]), "PICTURE_UNREADABLE"),
    "AVIF of another size": (avif_of_another_size, "PICTURE_UNREADABLE"),
    "AVIF, many pictures in one item": (avif_of_many_frames, "PICTURE_UNREADABLE"),
    "no size": (lambda: without(b"ispe"), "PICTURE_UNREADABLE"),
    "no configuration": (lambda: without(b"hvcC"), "PICTURE_UNREADABLE"),
    "ten bits": (lambda: heif([coded(1, PHOTO, depth=10)]), "PICTURE_MODE"),
    "ten bits, said by pixi": (lambda: heif([coded(1, PHOTO, (b"pixi", b"\0\0\0\0\3\x0a\x0a\x0a"))]), "PICTURE_MODE"),
    "a grid without all its tiles": (sparse_grid, "PICTURE_UNREADABLE"),
    "a grid of one tile again and again": (shared_tiles, "PICTURE_UNREADABLE"),
    "a grid of grids": (nested_grid, "PICTURE_UNREADABLE"),
    "tiles that do not cover it": (lambda: heif([*TILES, grid(1, TILES, 2, (80, 44))]), "PICTURE_UNREADABLE"),
    "no such primary item": (lambda: heif([coded(1, PHOTO)], primary=9), "PICTURE_UNREADABLE"),
    "a primary item that is no picture": (lambda: heif([Item(1, b"mime", b"x", [ispe(*SIZE)])]), "PICTURE_UNREADABLE"),
    "a turn before its cut": (
        lambda: heif([coded(1, PHOTO, irot(1), clap(32, 32, Fraction(0), Fraction(0)))]),
        "PICTURE_UNREADABLE",
    ),
    "a cut outside": (lambda: heif([coded(1, PHOTO, clap(32, 32, Fraction(40), Fraction(0)))]), "PICTURE_UNREADABLE"),
    "half a pixel": (lambda: heif([coded(1, PHOTO, clap(32, 32, Fraction(1, 2), Fraction(0)))]), "PICTURE_UNREADABLE"),
    "too little left": (lambda: heif([coded(1, PHOTO, clap(32, 6, Fraction(0), Fraction(0)))]), "PICTURE_TOO_SMALL"),
    "an essential property of the future": (
        lambda: heif([replace(coded(1, PHOTO, (b"warp", b"")), essential=frozenset({b"hvcC", b"warp"}))]),
        "PICTURE_UNREADABLE",
    ),
    "a film": (lambda: heif([coded(1, PHOTO)], more=box(b"moov", b"")), "PICTURE_ANIMATED"),
    "an animated AVIF": (lambda: avif(save_all=True, append_images=[noise(SIZE)]), "PICTURE_ANIMATED"),
    "a film without a picture": (lambda: box(b"ftyp", b"isom\0\0\0\0isommp42") + bytes(64), "PICTURE_FORMAT"),
    "AVIF, ten bits": (lambda: _deep(avif()), "PICTURE_MODE"),
}


def _deep(data: bytes) -> bytes:
    at = data.index(b"av1C") + 6
    return data[:at] + bytes([data[at] | 0x40]) + data[at + 1 :]


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_the_boxes_must_not_say(make: Callable[[], bytes], reason: str) -> None:
    """Each is refused for what it is, before anything is decoded."""
    data = make()
    opened: list[BytesIO] = []

    def opening(file: BytesIO) -> Image.Image:
        opened.append(file)
        raise AssertionError

    with pytest.MonkeyPatch.context() as patch:
        for kind, coding in picture_boxes._CODINGS.items():
            patch.setitem(picture_boxes._CODINGS, kind, coding._replace(open=opening))
        assert reason == reason_of(data)
    assert [] == opened


def bombs() -> dict[str, bytes]:
    item = coded(1, PHOTO)
    huge = replace(item, properties=[each if each[0] != b"ispe" else ispe(30_000, 30_000) for each in item.properties])
    tile = coded(2, PHOTO)
    large = replace(tile, properties=[each if each[0] != b"ispe" else ispe(4_000, 4_000) for each in tile.properties])
    tiles = [replace(large, number=number) for number in range(2, 102)]
    return {
        "a huge picture": heif([huge]),
        "huge tiles of a small picture": heif([*tiles, grid(1, tiles, 10, (4_000, 4_000))]),
    }


@pytest.mark.parametrize("data", bombs().values(), ids=bombs())
def test_bombs_are_refused_before_they_go_off(data: bytes) -> None:
    """A small file that says it is a huge picture, or is made of huge parts, is refused by what it says."""
    tracemalloc.start()
    try:
        reason = reason_of(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert "PICTURE_TOO_MANY_PIXELS" == reason
    assert peak < 8 * len(data) + 1_000_000


def test_parts_that_are_taken_many_times_are_refused() -> None:
    """A thousand items that all lie at one place would make a large file out of a small one."""
    data = bytearray(
        heif([replace(coded(1, PHOTO), data=bytes(2_000_000)), *[Item(n, b"hvc1", b"") for n in range(2, 30)]])
    )
    at = data.index(b"iloc") + 12
    (first,) = struct.unpack_from(">I", data, at + 8)
    for number in range(1, 29):
        struct.pack_into(">II", data, at + 16 * number + 8, first, 2_000_000)

    assert "PICTURE_UNREADABLE" == reason_of(bytes(data))


def test_countless_boxes_are_refused() -> None:
    """Walking boxes ends at a number no honest file has."""
    assert "PICTURE_UNREADABLE" == reason_of(WHOLE_FILES["heic"] + box(b"free", b"") * 20_000)


def test_a_configuration_speaks_for_one_picture() -> None:
    """Two sizes in a configuration are none."""
    sets, _ = hevc(PHOTO.tobytes(), SIZE)
    item = coded(1, PHOTO)
    item.properties = [(b"hvcC", configuration([*sets, *sets])), ispe(*SIZE)]

    assert "PICTURE_UNREADABLE" == reason_of(heif([item]))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_random_bytes_only_ever_meet_our_errors(junk: bytes) -> None:
    """Whatever follows the beginning of the format, the answer is a picture or an error of ours."""
    decode_or_refuse(box(b"ftyp", b"heic\0\0\0\0mif1") + junk)


@given(st.sampled_from(sorted(WHOLE_FILES)), st.data())
@settings(max_examples=600, deadline=None)
def test_damaged_files_only_ever_meet_our_errors(name: str, data: st.DataObject) -> None:
    """Any few bytes of a file changed, most of them in its boxes: a picture, or an error of ours."""
    damaged = bytearray(WHOLE_FILES[name])
    places = st.integers(0, min(700, len(damaged) - 1)) | st.integers(0, len(damaged) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(places)] = data.draw(st.integers(0, 255))

    decode_or_refuse(bytes(damaged))


def test_pixels_are_near_what_was_coded() -> None:
    """The test files themselves hold the picture: their pixels are those of the original but for the coding's loss."""
    for name in ("heic", "avif"):
        difference = ImageChops.difference(PHOTO, shown(decode(WHOLE_FILES[name]))).convert("L")
        assert 12 > sum(difference.tobytes()) / (SIZE[0] * SIZE[1]), name
