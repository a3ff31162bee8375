"""`python -m tests.chaos.keys COUNT`: so many different requests through everything that a gateway remembers in memory.

In a process of its own, so that its resident memory says something. Prints JSON: entries and bytes of what is counted,
and resident bytes when half of the keys had come and when all had: what has no bound goes on growing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

import psutil
from prometheus_client import CollectorRegistry

from cache.bounded import Policy
from cache.description import Scope
from cache.hierarchy import Hierarchy
from cache.keys import Address, Key
from cache.memory import MemoryTier
from cache.near import Look
from cache.settings import L1Settings
from cache.value import policy_named
from cache.write_behind import WriteBehind
from gateway.history import History
from gateway.look_alikes import LookAlikes
from gateway.settings import SimilaritySettings
from tests.cache.helpers import SECRET
from tests.gateway.test_plan import plan, source

_AT_ONCE = 1000
_TTL = 3600.0
_VALUE = 256  # bytes, beside what every entry is charged


def _address(number: int) -> Address:
    return Address(f"{number % 1000:032x}", f"{number:064x}")


async def remembered(count: int) -> dict[str, int]:
    l1, looks = L1Settings(max_bytes=64 * 1024**2, max_entries=1_000_000), SimilaritySettings()
    policy: Policy[Key] = policy_named(l1.policy, max_bytes=l1.max_bytes, max_entries=l1.max_entries)
    memory = MemoryTier(max_bytes=l1.max_bytes, max_entries=l1.max_entries, max_share=l1.max_share, policy=policy)
    empty = MemoryTier(max_bytes=1024)  # what lies below, and has nothing
    hierarchy = Hierarchy([empty], WriteBehind([empty], max_bytes=1024, max_entries=1))
    alikes = LookAlikes(hierarchy, max_bytes=looks.max_bytes)
    history = History(None, SECRET, CollectorRegistry())
    process, half = psutil.Process(), 0
    for start in range(0, count, _AT_ONCE):
        numbers = range(start, min(count, start + _AT_ONCE))
        await hierarchy.ask_many([(_address(number), _TTL) for number in numbers])
        await _come(numbers, memory, history, alikes)
        if start < count // 2 <= start + _AT_ONCE:
            half = process.memory_info().rss
    return {
        "entries": len(memory.entries),
        "bytes": memory.entries.bytes,
        "max_bytes": l1.max_bytes,
        "looks": len(alikes),
        "max_looks": looks.max_bytes // (64 * 64 * 3),
        "resident_half": half,
        "resident": process.memory_info().rss,
    }


async def _come(numbers: Sequence[int], memory: MemoryTier, history: History, alikes: LookAlikes) -> None:
    usual, far = plan(), bytes(64 * 64 * 3)
    final = usual.description.final.name
    for number in numbers:
        address, identity = _address(number), f"{number:064x}"
        await memory.put(Key.of_record(address), number.to_bytes(8, "big") * (_VALUE // 8), _TTL, cost=number % 7)
        seen = source(identity)
        seen.look = Look(64, 64, number, far, 50)
        asked = replace(
            usual,
            addresses={**usual.addresses, final: address},
            identities=dict.fromkeys(usual.identities, identity),
            media=dict.fromkeys(usual.media, seen),
            namespaces={**usual.namespaces, Scope.USER: f"{number:032x}", Scope.TENANT: f"{number % 100:032x}"},
        )
        history.hit(asked)
        alikes.remember(asked)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(remembered(int(sys.argv[1])))))  # noqa: T201
