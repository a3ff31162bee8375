"""Identity of a picture: decoded pixels with their shape."""

from itertools import combinations

from cache.picture import picture_identity


def test_the_same_pixels_in_another_shape_are_another_picture() -> None:
    """Bytes of 30 by 150 pixels and of 150 by 30 are two pictures; so is each changed pixel."""
    pixels = bytes(range(6)) * 6
    changed = bytes([pixels[0] ^ 1]) + pixels[1:]
    pictures = [(4, 3, pixels), (3, 4, pixels), (12, 1, pixels), (4, 3, changed)]

    assert [] == [
        pair for pair in combinations(pictures, 2) if picture_identity(*pair[0]) == picture_identity(*pair[1])
    ]


def test_the_same_picture_has_one_identity() -> None:
    """However its bytes are held, and pinned for ever."""
    golden = "c045e49ad7b3e0ecb02195144d3f3c8fb233da534318c21c14fb69d8923d8736"

    assert golden == picture_identity(2, 1, b"abcdef") == picture_identity(2, 1, bytes(bytearray(b"abcdef")))
