"""Damaged entries are put into a tier, asked for, and looked for again."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import obstore

from cache.envelope import unseal
from cache.keys import Key
from cache.record import Record
from reprise.v1 import common_pb2 as pb
from tests.chaos.case import Scene
from tests.chaos.cases.steps import FAILED
from tests.chaos.clients import Wish
from tests.chaos.damage import KINDS, OF_RECORDS, Entry
from tests.chaos.world import GATEWAYS

_CORRUPT = (pb.LOOKUP_OUTCOME_CORRUPT,)
_TRIES = 3  # a lookup may be late, and then finds nothing


@dataclass(frozen=True)
class Shelf:
    """A tier by its raw values."""

    tier: pb.Tier
    get: Callable[[Key], Awaitable[bytes | None]]
    put: Callable[[Key, bytes], Awaitable[object]]
    prepare: Callable[[], Awaitable[object]]
    """Whatever has to be done so that this tier is asked."""


async def judge_planted(
    scene: Scene, shelf: Shelf, wishes: Sequence[Wish], kinds: Sequence[str] = tuple(KINDS)
) -> None:
    """Of each kind one for every wish, as its record and then as its bytes: counted, and gone or made good; never
    executed. Answers are judged with all others.
    """
    chance, executed = random.Random("planted"), scene.world.stack.data / "executed"
    records = await records_of(scene, wishes)
    for kind, damage in KINDS.items():
        planted, left = 0, 0
        before, late = await _met(scene, shelf.tier, _CORRUPT), await _met(scene, shelf.tier, FAILED)
        for of_records in (True,) if kind in OF_RECORDS else (True, False):
            keys = {wish: records[wish].key if of_records else records[wish].blob for wish in wishes}
            values = {key: await _value(shelf, key) for key in keys.values()}
            spoiled = {
                key: damage(Entry(key, value, _other(values, key), executed), chance) for key, value in values.items()
            }
            await scene.world.until_at_rest()  # what was made good just now is no answer to what comes
            await shelf.prepare()
            for key, value in spoiled.items():
                await shelf.put(key, value)
            planted += len(spoiled)
            for number in range(_TRIES):
                for wish, key in keys.items():
                    if await shelf.get(key) == spoiled[key]:
                        await scene.callers.ask(wish, GATEWAYS[number % 2], stored=True)
            left += sum([await shelf.get(key) == value for key, value in spoiled.items()])
        scene.sheet.exactly(f"{kind}: of {planted} planted, left", left, 0)
        # What a lookup came too late for may have been written over before another one met it.
        late = await _met(scene, shelf.tier, FAILED) - late
        scene.sheet.at_least(f"{kind}: counted", await _met(scene, shelf.tier, _CORRUPT) - before, planted - late)
    scene.sheet.exactly("nothing was executed", not executed.exists(), promised=True)


@dataclass(frozen=True)
class Lying:
    """Where a wish's result lies: its record as requests name it, and its bytes."""

    key: Key
    blob: Key


async def records_of(scene: Scene, wishes: Sequence[Wish]) -> dict[Wish, Lying]:
    """From the object store, which has all records: those that requests name say what they are in canonical terms."""
    store, wanted = scene.world.store(), {scene.callers.oracle.digests[wish]: wish for wish in wishes}
    found = {}
    for page in obstore.list(store, prefix="r/"):
        for entry in page:
            key = Key.parse(entry["path"])
            record = Record.from_bytes(
                unseal(key, bytes(await (await obstore.get_async(store, entry["path"])).bytes_async()))
            )
            if record.canonical is not None and record.output.digest.hex in wanted:
                blob = Key.of_blob(key.namespace, record.output.digest)
                found[wanted[record.output.digest.hex]] = Lying(key, blob)
    assert len(found) == len(wishes)
    return found


async def _value(shelf: Shelf, key: Key) -> bytes:
    value = await shelf.get(key)
    assert value is not None, f"nothing lies under {key}"
    return value


def _other(values: Mapping[Key, bytes], key: Key) -> bytes:
    return next(value for other, value in values.items() if other != key)


async def _met(scene: Scene, tier: pb.Tier, outcomes: Collection[int]) -> int:
    """How many lookups of both gateways in this tier ended so."""
    return sum(
        [
            each.count
            for gateway in GATEWAYS
            for of_tier in (await scene.world.stats(gateway)).tiers
            if of_tier.tier == tier
            for each in of_tier.lookups
            if each.outcome in outcomes
        ]
    )
