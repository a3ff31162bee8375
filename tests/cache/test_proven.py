"""Proven: sealed well and still not what its name promises is damaged, and is counted so."""

from collections.abc import Callable
from dataclasses import replace

import msgpack
import pytest
from prometheus_client import CollectorRegistry

from cache.keys import Key
from cache.metered import CacheMetrics, MeteredTier, Tally
from cache.proven import ProvenTier
from cache.record import Record
from cache.tier import Outcome, TierName
from tests.cache.helpers import NAMESPACE, ScriptedTier, address_of, record_of

DATA = b"a clip of some bytes"
RECORD = record_of(DATA, inline=True)
R, B = Key.of_record(RECORD.address), Key.of_blob(NAMESPACE, RECORD.output.digest)


def _with(**changes: object) -> bytes:
    return bytes(msgpack.packb({**msgpack.unpackb(RECORD.to_bytes()), **changes}))


def _inlines(data: bytes) -> Record:
    return replace(RECORD, output=replace(RECORD.output, inline=data))


FALSE: dict[str, tuple[Key, Callable[[], bytes]]] = {
    "a blob of other bytes": (B, lambda: b"a clip of other bytes"),
    "a blob cut short": (B, lambda: DATA[:-1]),
    "no record at all": (R, lambda: b"\x80\x04K\x01."),  # a pickle
    "a record of an earlier schema": (R, lambda: _with(schema=0)),
    "a record of a later schema": (R, lambda: _with(schema=2)),
    "a record of another address": (R, lambda: record_of(DATA, name="other").to_bytes()),
    "a record that inlines other bytes": (R, lambda: _inlines(b"others").to_bytes()),
}


@pytest.mark.parametrize("kind", FALSE)
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
async def test_what_is_false_is_removed_and_counted(kind: str, many: bool) -> None:
    """It is a miss of the kind that says why, it is gone afterwards, and it was no hit in any count."""
    key, make = FALSE[kind]
    below = ScriptedTier(TierName.L2, entries={key: make()})
    tally = Tally(TierName.L2, CacheMetrics(CollectorRegistry()))
    tier = MeteredTier(ProvenTier(below), tally)

    (lookup,) = await tier.get_many([key], 60.0) if many else [await tier.get(key, 60.0)]

    assert (Outcome.CORRUPT, None) == (lookup.outcome, lookup.value)
    assert {Outcome.CORRUPT: 1} == tally.outcomes
    assert {} == below.entries


async def test_what_is_true_passes() -> None:
    """A record and a blob that are what their names say, and what is not there at all."""
    below = ScriptedTier(TierName.L2, entries={R: RECORD.to_bytes(), B: DATA})
    tier = ProvenTier(below)
    missing = Key.of_record(address_of("nothing"))

    lookups = await tier.get_many([R, B, missing], 60.0)

    assert [RECORD.to_bytes(), DATA, None] == [each.value for each in lookups]
    assert [Outcome.HIT, Outcome.HIT, Outcome.MISS] == [each.outcome for each in lookups]
    assert [] == below.deletes


async def test_a_look_without_effect_removes_nothing() -> None:
    """What is false is told, and stays."""
    below = ScriptedTier(TierName.L2, entries={B: b"other bytes"})

    assert Outcome.CORRUPT == (await ProvenTier(below).get(B, None)).outcome
    assert [B] == list(below.entries)


async def test_removing_may_fail() -> None:
    """A tier that takes no writes gives a miss all the same."""

    class Full(ScriptedTier):
        async def delete(self, key: Key) -> None:
            self.fault = Outcome.ERROR
            await super().delete(key)

    below = Full(TierName.L2, entries={B: b"other bytes"})

    assert Outcome.CORRUPT == (await ProvenTier(below).get(B, 60.0)).outcome


async def test_everything_else_is_the_tiers_own() -> None:
    """Puts, deletes, sizes and names go through unchanged."""
    below = ScriptedTier(TierName.L3, max_payload=100)
    tier = ProvenTier(below)

    assert (TierName.L3, False, True, False) == (tier.name, tier.local, tier.holds(100), tier.holds(101))
    assert (True, False) == (await tier.put(B, DATA, 60.0), await tier.put(B, DATA, 60.0))
    await tier.delete(B)
    assert {} == below.entries
