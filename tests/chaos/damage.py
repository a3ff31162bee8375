"""What can lie under a name that should not: damaged, misplaced and hostile entries of Redis or the object store."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgpack

from cache.envelope import seal, unseal
from cache.keys import Key


class Payload:
    """Pickled and loaded again, it makes a file: what an attacker would do with a cache that unpickles."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return exec, (f"open({str(self._path)!r}, 'w').close()",)


@dataclass(frozen=True)
class Entry:
    """What is to be damaged: an entry as it is stored, another one of its kind, and a file that payloads would make."""

    key: Key
    stored: bytes
    other: bytes
    executed: Path


def _flipped(entry: Entry, chance: random.Random) -> bytes:
    spoiled = bytearray(entry.stored)
    spoiled[chance.randrange(len(spoiled))] ^= 1 << chance.randrange(8)
    return bytes(spoiled)


def _old_schema(entry: Entry, chance: random.Random) -> bytes:
    """Sealed well, and written by a version that is long gone."""
    fields = msgpack.unpackb(unseal(entry.key, entry.stored))
    return seal(entry.key, bytes(msgpack.packb(fields | {"schema": chance.choice((0, 2, "1", None))})))


def _pickle(entry: Entry, chance: random.Random) -> bytes:
    return pickle.dumps(Payload(entry.executed), protocol=chance.randrange(pickle.HIGHEST_PROTOCOL + 1))


def _too_large(entry: Entry, chance: random.Random) -> bytes:
    return seal(entry.key, unseal(entry.key, entry.stored) + bytes(chance.randrange(1, 3) * 1024 * 1024))


Damage = Callable[[Entry, random.Random], bytes]
KINDS: Mapping[str, Damage] = {
    "a turned bit": _flipped,
    "another entry's value": lambda entry, chance: entry.other,
    "an old schema": _old_schema,
    "a pickle": _pickle,
    "a sealed pickle": lambda entry, chance: seal(entry.key, _pickle(entry, chance)),
    "torn": lambda entry, chance: entry.stored[: chance.randrange(1, len(entry.stored))],
    "too large": _too_large,
    "nothing": lambda entry, chance: b"",
}
OF_RECORDS = frozenset({"an old schema"})  # blobs have none
