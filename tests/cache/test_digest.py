"""Digest: BLAKE3-256 and size."""

from hypothesis import given
from hypothesis import strategies as st

from cache.digest import Digest

# The published test vector of BLAKE3 for no input.
_EMPTY = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_it_is_blake3() -> None:
    """The digest of nothing is the one the authors of BLAKE3 publish."""
    assert Digest(_EMPTY, 0) == Digest.of(b"")


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_it_names_its_bytes_and_no_others(one: bytes, other: bytes) -> None:
    """`names` holds exactly for the bytes the digest was made of."""
    assert (one == other) == Digest.of(one).names(other)


def test_the_size_is_part_of_it() -> None:
    """A right hash with a wrong size names nothing."""
    assert not Digest(_EMPTY, 1).names(b"")


def test_views_count_as_the_bytes_they_show() -> None:
    """A view has the digest of its bytes."""
    assert Digest.of(b"abc") == Digest.of(memoryview(b"xabc")[1:])
    assert Digest.of(b"abc").names(memoryview(b"abc"))


def test_it_prints_as_hash_and_size() -> None:
    """The text form is the hash, a slash, and the size."""
    assert f"{_EMPTY}/0" == str(Digest.of(b""))
