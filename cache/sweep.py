"""Sweep: let go of what is unwanted in a bounded map, a slice at a time, so that a large one holds up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cache.bounded import Bounded, K, V

_SLICE = 64  # entries looked at before others get a turn
_ALWAYS = float("-inf")  # a time at which nothing has expired yet


class Gone(NamedTuple):
    """What was given back: entries (records and blobs count alike), and bytes."""

    entries: int = 0
    bytes: int = 0

    @classmethod
    def total(cls, parts: Sequence[Gone]) -> Gone:
        return cls(sum(part.entries for part in parts), sum(part.bytes for part in parts))


async def sweep(entries: Bounded[K, V], unwanted: Callable[[K, V], bool]) -> Gone:
    """Entries that are leased stay. An entry that comes while this runs may or may not be looked at."""
    count = weight = 0
    for number, (key, value) in enumerate(entries.items(), start=1):
        if unwanted(key, value) and entries.peek(key, _ALWAYS) is value:
            before = entries.bytes
            count += entries.delete(key)
            weight += before - entries.bytes
        if number % _SLICE == 0:
            await asyncio.sleep(0)
    return Gone(count, weight)
