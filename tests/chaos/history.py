"""The history checker: after each case, what is stored and what was counted agree with what callers were told.

It asks the servers directly and believes no report: entries are unsealed and hashed here, from the object store itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import obstore
from blake3 import blake3
from obstore.store import ObjectStore

from cache.envelope import Damaged, unseal
from cache.keys import Address, Key
from cache.record import NotARecord, Record
from reprise.v1 import common_pb2 as pb
from tests.chaos.case import Scene
from tests.chaos.clients import Heard, Oracle
from tests.chaos.world import GATEWAYS, OURS, World

_COUNTED = {pb.OUTCOME_HIT: "hit", pb.OUTCOME_MISS: "miss", pb.OUTCOME_COALESCED: "coalesced"}
_SETTLE = 20.0  # seconds until counters and queues must agree


@dataclass(frozen=True)
class Before:
    """What was counted before a case."""

    answers: Counter[str]
    pids: dict[str, int]

    @classmethod
    async def of(cls, world: World) -> Self:
        return cls(await _answers(world), {name: world.pid(name) for name in OURS})


class History:
    """What all cases have been told was durable, and who proves it."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._durable: dict[str, str] = {}  # address -> digest

    async def findings(self, scene: Scene, before: Before) -> list[str]:
        """What does not agree; empty if all does. To be called when the world is mended and nobody asks any more."""
        world, log = scene.world, scene.callers.log
        await world.until_at_rest()
        new = {each.address: each.digest for each in log if each.durable and each.address}
        self._durable |= new
        found = await self._unreadable(world.store(), new)
        found += _disagreeing(log)
        found += world.faults()
        if before.pids == {name: world.pid(name) for name in OURS}:
            found += await _miscounted(world, log, before)
        wrong = await self._oracle.disproved(world.door(GATEWAYS[0]), 4 if scene.full else 1)
        return found + [f"not what a generation without caches makes: {wish}" for wish in wrong]

    async def lost(self, world: World) -> list[str]:
        """Of everything that was ever called durable."""
        return await self._unreadable(world.store(), self._durable)

    async def _unreadable(self, store: ObjectStore, durable: dict[str, str]) -> list[str]:
        found = await asyncio.gather(*(fault_of(store, each, durable[each]) for each in durable))
        return [f"durable, and {each}" for each in found if each]


async def fault_of(store: ObjectStore, named: str, digest: str) -> str:
    """Why what lies under this address is not the output that was called durable; empty if it is."""
    address = Address.parse(named)
    key = Key.of_record(address)
    try:
        record = Record.from_bytes(unseal(key, await _read(store, key)), address)
        output = record.output.inline
        if output is None:
            blob = Key.of_blob(address.namespace, record.output.digest)
            output = unseal(blob, await _read(store, blob))
    except FileNotFoundError:
        return f"not there: {key}"
    except (Damaged, NotARecord) as error:
        return f"damaged ({error}): {key}"
    return "" if blake3(output).hexdigest() == digest else f"another output: {key}"


async def _read(store: ObjectStore, key: Key) -> bytes:
    return bytes(await (await obstore.get_async(store, str(key))).bytes_async())


def _disagreeing(log: Sequence[Heard]) -> list[str]:
    digests: dict[str, set[str]] = {}
    for each in log:
        if each.address and each.digest:
            digests.setdefault(each.address, set()).add(each.digest)
    return [f"an address with {len(each)} digests: {address}" for address, each in digests.items() if len(each) > 1]


async def _answers(world: World) -> Counter[str]:
    counted: Counter[str] = Counter()
    for gateway in GATEWAYS:
        for each in (await world.stats(gateway)).requests:
            if each.outcome in _COUNTED:
                counted[_COUNTED[each.outcome]] += each.count
    return counted


async def _miscounted(world: World, log: Sequence[Heard], before: Before) -> list[str]:
    """Gateways have counted what callers saw; of those who left or failed either may know more."""
    log = [each for each in log if set(each.door) <= set(GATEWAYS)]  # a case may have one more of its own
    seen: Counter[str] = Counter(each.outcome for each in log if each.outcome in _COUNTED.values())
    unsure = sum(each.outcome in ("left", "failed") or each.retries > 0 for each in log)
    try:
        async with asyncio.timeout(_SETTLE):
            while True:
                counted = (await _answers(world)) - before.answers
                if not seen - counted and (counted - seen).total() <= unsure:
                    return []
                await asyncio.sleep(0.1)
    except TimeoutError:
        return [f"gateways counted {dict(counted)}, callers saw {dict(seen)}"]
