"""What lies in the tiers and in files beside them: anybody who can write there may have written it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress

from cache.accesses import _parsed
from cache.aio import PlainSerializer
from cache.bans import Ban
from cache.catalogue import pointer_of, pointer_to
from cache.condition import Condition
from cache.description import Description, Scalar
from cache.digest import Digest
from cache.encoding import Value, decode, encode
from cache.envelope import Damaged, seal, unseal
from cache.keys import Address, Key
from cache.orders import _as_json, _sealed, order_on
from cache.pins import Pin
from cache.record import NotARecord, Output, Record
from cache.switches import Subject, Switch
from gateway.history import Asked
from tests.fuzz.target import Target
from tests.gateway.worker import family, speaker

_SECRET = bytes(range(32))
_ADDRESS = Address("0a" * 16, "1b" * 32)
_DEEP = 16


# Keys


def _codec(data: bytes) -> bool:
    """Decoding is the inverse of encoding, in both directions, and two values that differ have two encodings."""
    half = len(data) // 2
    one, other = _value(data[:half]), _value(data[half:])
    for value in (one, other):
        with suppress(ValueError):  # what is no finite number, and half a pair of letters
            assert _same(decode(encode(value)), value)
    with suppress(ValueError):
        assert (encode(one) == encode(other)) is _same(one, other)
    try:
        value = decode(data)
    except ValueError:
        return _names(data)
    assert encode(value) == data
    return True


def _names(data: bytes) -> bool:
    text = data.decode("utf-8", "replace")
    taken = False
    for kind in (Key, Address):
        try:
            assert str(kind.parse(text)) == text
            taken = True
        except ValueError:
            continue
    return taken


def _value(data: bytes) -> Value:
    """Some value for any bytes: one of a few kinds at each byte, nested as far as they go."""
    left = list(data)

    def some(depth: int) -> Value:
        kind = left.pop() % 9 if left else 0
        size = left.pop() % 8 if left else 0
        taken = bytes(left.pop() for _ in range(min(size, len(left))))
        match kind:
            case 1:
                return bool(size % 2)
            case 2:
                return int.from_bytes(taken, "little", signed=True)
            case 3:
                return int.from_bytes(taken, "little", signed=True) / 16.0 ** (size - 4)
            case 4:
                return taken.decode("utf-8", "surrogateescape")
            case 5:
                return taken
            case 6 | 7 if depth < _DEEP:
                return [some(depth + 1) for _ in range(size)]
            case 8 if depth < _DEEP:
                return {str(index % 3) + taken.hex()[:index]: some(depth + 1) for index in range(size)}
        return None

    return some(0)


def _same(one: Value, other: Value) -> bool:
    """Whether two values are one, in their types too; a sequence is one, and so is -0.0 with 0.0."""
    match one, other:
        case (dict(), dict()):
            return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
        case (list(), list()):
            return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other


def _values() -> list[bytes]:
    values: list[Value] = [
        *(None, True, -1, 2**70, 0.5, "a cat", "é", b"\0\xff", [], {}),
        {"kind": "text", "parameters": {"seed": 42, "guidance": 9.0}, "media": {}, "upstream": [1, [True, None]]},
    ]
    return [*map(encode, values), str(_ADDRESS).encode(), str(Key.of_record(_ADDRESS)).encode()]


# Entries


def _envelope(data: bytes) -> bool:
    """What is sealed comes back; not under another name, not with a bit flipped, not cut off."""
    key = Key.of_record(_ADDRESS)
    sealed = seal(key, data)
    assert unseal(key, sealed) == data
    place = int.from_bytes(data[:4], "big") % (len(sealed) * 8)
    flipped = bytearray(sealed)
    flipped[place // 8] ^= 1 << place % 8
    blob = Key.of_blob(key.namespace, Digest(key.hex, len(data)))
    for name, wrong in ((key, bytes(flipped)), (blob, sealed), (key, sealed[: place // 8]), (key, sealed + b"\0")):
        assert _unsealed(name, wrong) is None
    return (payload := _unsealed(key, data)) is not None and seal(key, payload) == data


def _unsealed(key: Key, data: bytes) -> bytes | None:
    try:
        return unseal(key, data)
    except Damaged:
        return None


def _record(data: bytes) -> bool:
    try:
        record = Record.from_bytes(data)
    except NotARecord:
        return False
    assert Record.from_bytes(record.to_bytes(), record.address) == record
    record.expired(0.0), record.worth_touching(0.0), record.touched(1.0), record.alias(_ADDRESS)
    Condition(tags=("of:1",), digest="1").meets(record, 0.0)
    Condition(stage="render", older_than=1.0).meets(record, 0.0)
    return True


def _records() -> list[bytes]:
    fields = {"model": "small", "revision": "r1", "stage": "denoise", "fingerprint": "f"}
    times = {"device_seconds": 0.5, "total_device_seconds": 1, "made_at": 1.0, "touched_at": 2.0, "ttl": 60.0}
    known = Output(Digest.of(b"abc"), "video/mp4", b"abc")
    record = Record(_ADDRESS, output=known, expires_at=9.0, **fields, **times)  # type: ignore[arg-type]
    away = Output(Digest.of(b"abc"), "application/vnd.safetensors")
    full = Record(
        address=_ADDRESS,
        output=away,
        expires_at=9.0,
        upstream={"text": "2c" * 32},
        tags=("media:1", "of:2"),
        execution={"torch": "2"},
        canonical=Address("3d" * 16, "4e" * 32),
        **fields,  # type: ignore[arg-type]
        **times,  # type: ignore[arg-type]
    )
    return [record.to_bytes(), full.to_bytes()]


def _history(data: bytes) -> bool:
    row = Asked.from_bytes(data)
    if row is None:
        return False
    again = Asked.from_bytes(row.to_bytes())
    assert again == row, "a row that cannot be read again"
    return True


def _rows() -> list[bytes]:
    fields: dict[str, Scalar] = {"prompt": "5f" * 16, "seed": 42, "guidance_scale": 9.0}
    row = Asked(_ADDRESS, 1.0, "small", "r1", fields, {"picture": "6a" * 32}, {"picture": 0.5}, kept=True)
    return [row.to_bytes(), Asked(_ADDRESS, 1, "small", "", {}, {}).to_bytes()]


def _plain(data: bytes) -> bool:
    serializer = PlainSerializer()
    value = serializer.loads(data)
    if value is None:
        return False
    with suppress(TypeError, OverflowError, ValueError):  # what msgpack reads and does not write, such as its own times
        again = serializer.loads(serializer.dumps(value))
        assert serializer.dumps(again) == serializer.dumps(value)
    return True


def _plains() -> list[bytes]:
    values = [1, -1.5, "a", b"\0", [1, [2]], {"a": {1: None}}, {b"k": True}, 2**63]
    return [PlainSerializer().dumps(value) for value in values]


# Models


def _description(data: bytes) -> bool:
    """A description, or the pointer to one."""
    pointer = pointer_to(data)
    try:
        description = Description.from_bytes(data)
    except ValueError:
        return pointer is not None
    assert Description.from_bytes(description.to_bytes()) == description
    description.stage(description.affinity), description.final, description.digest
    return True


def _descriptions() -> list[bytes]:
    pair = (family(), speaker())
    return [*(each.to_bytes() for each in pair), *(pointer_of(each) for each in pair)]


# Orders, and accesses


def _orders(data: bytes) -> bool:
    """Pages as they come, and what a page of ours could say: a later version's, say."""
    assert order_on(data, _SECRET) is None or data in _pages()
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return False
    order = order_on(_sealed(_SECRET, {"name": "1", "order": said}), _SECRET)
    return order is not None


_CONDITION = Condition(model="small", revision="r1", stage="text", tags=("tenant:1",), digest="7b" * 32, older_than=2.0)
_ORDERS = (Ban(1.0, _CONDITION), Switch(2.0, Subject.TIER, "L2", False), Pin(3.0, _ADDRESS, True))


def _pages() -> list[bytes]:
    return [_sealed(_SECRET, {"name": "1", "order": _as_json(order)}) for order in _ORDERS]


def _said() -> list[bytes]:
    return [*_pages(), *(json.dumps(_as_json(order)).encode() for order in _ORDERS)]


def _accesses(data: bytes) -> bool:
    read = list(_parsed(data.decode("utf-8", "replace").splitlines()))
    assert all(access.size >= 0 and access.cost >= 0 for _, access in read)
    return bool(read)


def _lines() -> list[bytes]:
    return [
        b'{"at": 1.5, "of": "result", "key": "0a", "size": 9, "cost": 0.25}\n',
        b'{"at": 1, "of": "stage", "key": "0b", "size": 0, "cost": 0}\n{"at"',
    ]


def _whole() -> list[bytes]:
    key = Key.of_record(_ADDRESS)
    return [seal(key, b""), seal(key, b"abc"), *(seal(key, record) for record in _records())]


TARGETS: Sequence[Target] = (
    Target("codec", _codec, _values, longest=512),
    Target("envelope", _envelope, _whole),
    Target("record", _record, _records),
    Target("history", _history, _rows),
    Target("plain", _plain, _plains),
    Target("description", _description, _descriptions, longest=8192),
    Target("orders", _orders, _said),
    Target("accesses", _accesses, _lines, longest=512),
)
