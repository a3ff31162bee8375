"""Canonical encoding: values to bytes, injectively, so that different fields can never meet in one key.

Every value is a type tag, a length and its content; containers hold their items' encodings; mappings are sorted by the
encoding of their keys. Nothing is joined with separators, nothing is rounded, and no type is turned into another:
`1`, `1.0`, `True` and `"1"` are four values. `decode` is the inverse, which is what makes the claim of injectivity
testable. The only identification made on purpose is -0.0 with 0.0, which no model can tell apart.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from blake3 import blake3

Value: TypeAlias = "bool | int | float | str | bytes | Sequence[Value] | Mapping[str, Value] | None"

VERSION = 1
"""Of all that processes leave for others: keys, envelopes, records, descriptions. A change of what any of them means or
of how it is written bumps it. Being part of every hash it is part of every name, so what another version has left is
never found, never served and never in the way; and a worker of another version is none to a gateway of this one.
"""
SCHEMA = f"reprise/{VERSION}"
NEIGHBOURS = (VERSION - 1, VERSION + 1)  # versions that run beside this one while one takes the place of the other


def encode(value: Value) -> bytes:
    """Bytes that stand for this value and no other. ValueError for NaN and infinities, TypeError otherwise."""
    match value:
        case None:
            return _framed(b"n", b"")
        case bool():
            return _framed(b"b", b"\x01" if value else b"\x00")
        case int():
            return _framed(b"i", value.to_bytes((value.bit_length() + 8) // 8, "big", signed=True))
        case float():
            if not math.isfinite(value):
                raise ValueError("only finite numbers have a canonical encoding")
            return _framed(b"f", struct.pack(">d", value + 0.0))
        case str():
            return _framed(b"s", value.encode("utf-8", "strict"))
        case bytes() | bytearray() | memoryview():
            return _framed(b"x", bytes(value))
        case Mapping():
            items = sorted((encode(key), encode(item)) for key, item in value.items())
            return _framed(b"m", b"".join(key + item for key, item in items))
        case Sequence():
            return _framed(b"l", b"".join(map(encode, value)))
    raise TypeError(f"no canonical encoding for {type(value).__name__}")


def decode(data: bytes) -> Value:
    """The value whose encoding this is. Raises ValueError for anything that `encode` would not have written."""
    try:
        value, rest = _decode_one(memoryview(data))
        canonical = encode(value)
    except RecursionError:
        raise ValueError("nested deeper than any value of ours") from None
    if rest:
        raise ValueError("bytes after the end of the value")
    if canonical != data:
        raise ValueError("not the canonical form")
    return value


def hash_of(domain: str, value: Value) -> str:
    """256-bit hash of a value, as hex. `domain` keeps hashes made for different purposes apart."""
    return blake3(encode([SCHEMA, domain, value])).hexdigest()


def keyed_hash_of(secret: bytes, domain: str, value: Value) -> str:
    """Like `hash_of`, but not computable without the deployment's 32-byte secret, so guessable names stay hidden."""
    return blake3(encode([SCHEMA, domain, value]), key=secret).hexdigest()


def _framed(tag: bytes, content: bytes) -> bytes:
    return tag + len(content).to_bytes(8, "big") + content


def _decode_one(data: memoryview) -> tuple[Value, memoryview]:
    if len(data) < 9:
        raise ValueError("truncated value")
    tag, size = bytes(data[:1]), int.from_bytes(data[1:9], "big")
    content, rest = data[9 : 9 + size], data[9 + size :]
    if len(content) != size:
        raise ValueError("truncated value")
    return _content(tag, content), rest


def _content(tag: bytes, content: memoryview) -> Value:
    match tag:
        case b"n" if not content:
            return None
        case b"b" if bytes(content) in (b"\x00", b"\x01"):
            return bytes(content) == b"\x01"
        case b"i":
            return int.from_bytes(content, "big", signed=True)
        case b"f" if len(content) == 8:
            return float(struct.unpack(">d", content)[0])
        case b"s":
            return str(content, "utf-8", "strict")
        case b"x":
            return bytes(content)
        case b"l":
            return _items(content)
        case b"m":
            items = _items(content)
            keys, values = items[::2], items[1::2]
            if len(keys) != len(values) or not all(isinstance(key, str) for key in keys):
                raise ValueError("not a mapping")
            return dict(zip(map(str, keys), values, strict=True))
    raise ValueError("unknown type tag")


def _items(content: memoryview) -> list[Value]:
    items: list[Value] = []
    while content:
        item, content = _decode_one(content)
        items.append(item)
    return items
