"""Large messages: the one file in them is cut out before the rest is parsed, and they are taken one after the other.

Parsing copies a file and so does reading it out of what was parsed, and neither lets anybody else run meanwhile. Twenty
callers whose pictures arrive at the same moment would stand everybody else still for as long as all of them take.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from google.protobuf.message import Message

from gateway.validate import parse

AT_ONCE = 256 * 1024  # bytes of a message that costs nobody anything
M = TypeVar("M", bound=Message)
_VARINT, _BYTES, _FIXED = 0, 2, {1: 8, 5: 4}  # how a field is written
_LONGEST_VARINT = 10
_NOWHERE = -(2**63)


class Counter:
    """Where large messages are opened."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def open(self, kind: type[M], message: bytes, field: str) -> tuple[M, bytes | None]:
        """The message without its field of bytes of this name, and that; None: it has none. Raises InvalidField."""
        if len(message) <= AT_ONCE:
            return opened(kind, message, field)
        async with self._turn:
            result = opened(kind, message, field)
            await asyncio.sleep(0)  # whoever else is ready comes before the next large one
        return result


def opened(kind: type[M], message: bytes, field: str) -> tuple[M, bytes | None]:
    """As `Counter.open`, at once."""
    descriptor = kind.DESCRIPTOR.fields_by_name[field]
    choice = descriptor.containing_oneof
    if (place := _place(message, descriptor.number)) is not None:
        begin, start, end = place
        rest = parse(kind, message[:begin] + message[end:])
        if choice is None or rest.WhichOneof(choice.name) is None:  # else the last one counts
            return rest, message[start:end]
    whole = parse(kind, message)
    if choice is not None and whole.WhichOneof(choice.name) != field:
        return whole, None
    content: bytes = getattr(whole, field)
    whole.ClearField(field)
    return whole, content


def _place(message: bytes, number: int) -> tuple[int, int, int] | None:
    """Where a field of bytes begins, where its content does, and where both end. None: it is not there exactly once, or
    the message is for a parser to judge.
    """
    found = None
    at = 0
    while at < len(message):
        begin = at
        tag, at = _varint(message, at)
        kind, size = tag & 7, 0
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind == _VARINT:
            _, at = _varint(message, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            return None
        if begin >= at or at + size > len(message):
            return None
        if tag >> 3 == number:
            if found is not None or kind != _BYTES:
                return None
            found = begin, at, at + size
        at += size
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends; nowhere, which is before everything, if it does not."""
    number = 0
    for place, byte in enumerate(message[at : at + _LONGEST_VARINT] if at >= 0 else b""):
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, at + place + 1
    return 0, _NOWHERE
