"""Canonical encoding: typed, injective, and the exact inverse of its decoder."""

import math
import struct
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.encoding import Value, decode, encode, hash_of, keyed_hash_of
from tests.cache.helpers import SECRET

_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary()
)
_values: st.SearchStrategy[Any] = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
)


def _typed(value: Any) -> Any:
    """The value with its types spelled out, so that 1, True and 1.0 differ when compared."""
    if isinstance(value, dict):
        return "dict", sorted((key, _typed(item)) for key, item in value.items())
    if isinstance(value, list):
        return "list", [_typed(item) for item in value]
    return type(value).__name__, repr(value + 0.0) if isinstance(value, float) else repr(value)


@given(_values)
def test_decoding_gives_the_value_back_with_every_type(value: Value) -> None:
    """What is decoded equals what was encoded, type by type."""
    assert _typed(value) == _typed(decode(encode(value)))


@given(_values, _values)
def test_distinct_values_never_share_bytes(one: Value, other: Value) -> None:
    """Two encodings are equal exactly if the two values are, types included."""
    assert (_typed(one) == _typed(other)) == (encode(one) == encode(other))


@given(st.binary(max_size=200))
def test_any_bytes_decode_canonically_or_are_refused(data: bytes) -> None:
    """Arbitrary bytes either are the encoding of what they decode to, or raise ValueError and nothing else."""
    try:
        value = decode(data)
    except ValueError:
        return
    assert data == encode(value)


@given(_values, st.data())
def test_damaged_encodings_decode_canonically_or_are_refused(value: Value, data: st.DataObject) -> None:
    """A flipped byte in a real encoding gives another value in canonical form, or ValueError."""
    encoded = bytearray(encode(value))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        other = decode(bytes(encoded))
    except ValueError:
        return
    assert bytes(encoded) == encode(other)
    assert _typed(value) != _typed(other)


def test_bytes_nested_too_deep_are_refused() -> None:
    """Deeply nested lists, which no key contains, raise ValueError instead of exhausting the stack."""
    data = b""
    for _ in range(5000):
        data = b"l" + len(data).to_bytes(8, "big") + data

    with pytest.raises(ValueError, match="nested"):
        decode(data)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a-b", "c"], ["a", "b-c"]),
        (["ab", "c"], ["a", "bc"]),
        (["a", ""], ["a"]),
        ([[], []], [[[]]]),
        ([["a"], "b"], [["a", "b"]]),
        ({"a": "b"}, ["a", "b"]),
        ({"a": {"b": 1}}, {"a": "b", "1": None}),
        ("", b""),
        ("", None),
        ("None", None),
        ("a\0", "a"),
        ("caf\u00e9", "cafe\u0301"),
    ],
)
def test_ambiguous_joins_stay_apart(one: Value, other: Value) -> None:
    """Pairs that meet under joining with separators or under careless typing have different bytes."""
    assert encode(one) != encode(other)


def test_equal_looking_scalars_of_different_types_stay_apart() -> None:
    """1, 1.0, True, "1" and b"1", and their empty siblings, are ten values."""
    values: list[Value] = [1, 1.0, True, "1", b"1", 0, 0.0, False, "0", None]

    assert [] == [pair for pair in combinations(values, 2) if encode(pair[0]) == encode(pair[1])]


def test_negative_zero_is_zero() -> None:
    """-0.0 and 0.0 are one value on purpose; the bytes of -0.0 are refused as not canonical."""
    assert encode(0.0) == encode(-0.0)
    assert math.copysign(1.0, decode(encode(-0.0))) == 1.0  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="canonical"):
        decode(b"f" + (8).to_bytes(8, "big") + struct.pack(">d", -0.0))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_have_no_encoding(number: float) -> None:
    """NaN and infinities are refused, on the way in and on the way back."""
    with pytest.raises(ValueError, match="finite"):
        encode([number])
    with pytest.raises(ValueError, match="finite"):
        decode(b"f" + (8).to_bytes(8, "big") + struct.pack(">d", number))


def test_buffers_are_bytes_and_not_lists_of_numbers() -> None:
    """A bytearray or memoryview is encoded as the bytes it holds."""
    assert encode(b"ab") == encode(bytearray(b"ab")) == encode(memoryview(b"ab"))


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, {"a": object()}])
def test_other_types_are_refused(value: Any) -> None:
    """What has no canonical form raises TypeError rather than being turned into text."""
    with pytest.raises(TypeError, match="no canonical encoding"):
        encode(value)


def test_text_that_is_not_unicode_is_refused() -> None:
    """A lone surrogate has no UTF-8 and so no encoding."""
    with pytest.raises(ValueError, match="surrogates"):
        encode("\ud800")


def test_mappings_do_not_depend_on_their_order() -> None:
    """The order in which a mapping was filled is not part of its value."""
    assert encode({"a": 1, "b": 2}) == encode({"b": 2, "a": 1})


def test_sequences_of_either_kind_are_one_value() -> None:
    """A tuple and a list with the same items are the same sequence."""
    assert encode([1, "a"]) == encode((1, "a"))


def test_golden_bytes() -> None:
    """The encoding itself never changes without a change of SCHEMA."""
    expected = (
        "6d 0000000000000030"  # a mapping of 48 bytes
        "73 0000000000000001 61"  # "a"
        "6c 000000000000001d"  # a list of 29 bytes
        "69 0000000000000001 01"  # 1
        "62 0000000000000001 01"  # True
        "6e 0000000000000000"  # None
    )

    assert bytes.fromhex(expected) == encode({"a": [1, True, None]})


def test_hashes_of_different_purposes_stay_apart() -> None:
    """The domain is part of the hash, and so is the secret of a keyed one."""
    hashes = {
        hash_of("a", "x"),
        hash_of("b", "x"),
        keyed_hash_of(SECRET, "a", "x"),
        keyed_hash_of(bytes(32), "a", "x"),
    }

    assert 4 == len(hashes)
