"""The envelope in which entries lie in L2 and L3: fixed, so that it can be checked before anything is parsed.

    0   4  magic "RPRS"
    4   1  version of this layout
    5   1  kind: "r" record, "b" blob
    6   2  zero
    8   8  length of the payload, big-endian
    16  32 BLAKE3-256 over the entry's name and the payload
    48     payload

The name is part of the hash, so a value that was moved to another name is as damaged as one with a flipped bit. A
blob's name is the digest of its payload; hashing it under its name proves both.
"""

from __future__ import annotations

import struct

from blake3 import blake3

from cache.encoding import NEIGHBOURS, VERSION
from cache.keys import Key

_HEADER = struct.Struct(">4sBcxxQ")
_MAGIC = b"RPRS"
OVERHEAD = 48


class Damaged(ValueError):
    """These bytes are not what was stored under this name."""


class OtherEnvelope(Damaged):
    """An entry of the version before or after this one, which somebody else may need."""


def seal(key: Key, payload: bytes) -> bytes:
    return b"".join((_header(key, len(payload)), _checksum(key, payload), payload))


def unseal(key: Key, data: bytes) -> bytes:
    """The payload. Raises Damaged unless it is, bit for bit, what was sealed under this key."""
    if len(data) < OVERHEAD or data[: _HEADER.size] != _header(key, len(data) - OVERHEAD):
        if data[: len(_MAGIC)] == _MAGIC and len(data) >= OVERHEAD and data[len(_MAGIC)] in NEIGHBOURS:
            raise OtherEnvelope("of another version")
        raise Damaged("not an entry of this layout, kind and length")
    if _checksum(key, memoryview(data)[OVERHEAD:]) != data[_HEADER.size : OVERHEAD]:
        raise Damaged("the checksum differs")
    return data[OVERHEAD:]


def _header(key: Key, length: int) -> bytes:
    return _HEADER.pack(_MAGIC, VERSION, key.kind.encode(), length)


def _checksum(key: Key, payload: bytes | memoryview) -> bytes:
    hasher = blake3(str(key).encode() + b"\0")
    hasher.update(payload)
    return hasher.digest()
