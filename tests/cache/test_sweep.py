"""Letting go of what is unwanted: what is counted, what stays, and that others get their turn meanwhile."""

import asyncio

from cache.bounded import Bounded
from cache.sweep import Gone, sweep


async def test_what_is_unwanted_goes_and_is_counted() -> None:
    """Leased entries stay; nothing that stays is touched."""
    entries: Bounded[int, str] = Bounded(max_bytes=1000)
    for key in range(4):
        entries.put(key, "odd" if key % 2 else "even", weight=10 + key, now=0.0, ttl=1.0)
    entries.lease(3, 0.5)

    gone = await sweep(entries, lambda key, value: value == "odd")

    assert Gone(1, 11) == gone
    assert [0, 2, 3] == [key for key, _ in entries.items()]
    assert 10 + 12 + 13 == entries.bytes
    assert entries.get(0, 1.0) is None  # its age did not start again


async def test_a_large_map_holds_up_nobody() -> None:
    """Others run while it is gone through."""
    entries: Bounded[int, int] = Bounded(max_bytes=10**6)
    for key in range(1000):
        entries.put(key, key, weight=1, now=0.0, ttl=1.0)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await sweep(entries, lambda key, value: True)
    task.cancel()

    assert turns >= 10
    assert 0 == len(entries)
