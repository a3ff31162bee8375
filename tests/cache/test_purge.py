"""Invalidation over every tier: what is looked at, what is passed over, what is admitted."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from cache.build import Tiers, build_tiers
from cache.condition import Condition
from cache.errors import TierError
from cache.keys import Key
from cache.purge import purge, records, sweep_blobs
from cache.settings import CacheSettings, L2Settings, L3Settings
from cache.sweep import Gone
from cache.tier import Outcome, TierName
from tests.cache.helpers import NAMESPACE, NOW, SECRET, ScriptedTier, record_of

_LARGE = b"l" * (100 * 1024)


@pytest.fixture
async def tiers(tmp_path: Path) -> AsyncIterator[Tiers]:
    settings = CacheSettings(
        secret=SecretStr(SECRET.hex()), l2=L2Settings(enabled=False), l3=L3Settings(url=f"file://{tmp_path}", stall=5)
    )
    async with await asyncio.to_thread(build_tiers, settings, CollectorRegistry()) as tiers:
        yield tiers


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        (Condition(model="small"), True),
        (Condition(model="sma"), False),
        (Condition(revision="r1", stage="render"), True),
        (Condition(revision="r1", stage="other"), False),
        (Condition(tags=("a",)), True),
        (Condition(tags=("ab",)), False),
        (Condition(stage="earlier"), True),
        (Condition(older_than=9.0), True),
        (Condition(older_than=10.0), False),
        (Condition(digest=record_of(b"clip").output.digest.hex), True),
        (Condition(digest=record_of(b"clip").address.content_id), True),
        (Condition(digest="up"), True),
        (Condition(digest="down"), False),
        (Condition(where=lambda record: record.output.media_type == "video/mp4"), True),
        (Condition(model="small", where=lambda record: False), False),
    ],
    ids=range(15),
)
def test_all_that_is_said_must_hold(condition: Condition, met: bool) -> None:
    """Each part by itself, and together."""
    record = dataclasses.replace(record_of(b"clip"), tags=("a", "b", "via:earlier"), upstream={"picture": "up"})

    assert condition
    assert met == condition.meets(record, NOW + 10.0)


def test_nothing_said_is_nothing() -> None:
    """An empty condition is false, so that nobody takes it for one."""
    assert not Condition()


async def test_writes_on_their_way_are_waited_for(tiers: Tiers) -> None:
    """What was committed just before is seen, and gone."""
    for number in range(40):
        await tiers.through_memory.commit(
            record_of(_LARGE + bytes([number]), name=str(number)), _LARGE + bytes([number])
        )

    receipt = await purge(tiers, NAMESPACE, lambda record: True)

    assert 40 == receipt.outputs
    assert 80 == receipt.tiers[TierName.L3].entries == receipt.tiers[TierName.L1].entries
    assert 0 == len(tiers.memory.entries) == tiers.memory.entries.bytes
    assert [] == [record async for record in records(tiers, NAMESPACE)]


async def test_what_is_still_on_its_way_is_admitted(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    """If writes could not be waited for, the receipt says that something may come after."""
    monkeypatch.setattr("cache.purge._DRAIN", 0.0)
    await tiers.through_memory.commit(record_of(b"clip"), b"clip")

    receipt = await purge(tiers, NAMESPACE, lambda record: True)

    assert frozenset({TierName.L3}) == receipt.unreached


async def test_what_is_not_ours_is_passed_over(tiers: Tiers, tmp_path: Path) -> None:
    """Damaged records, other namespaces and foreign files stop nothing."""
    good, damaged, foreign = (record_of(b"clip", name=name, inline=True) for name in ("good", "damaged", "foreign"))
    for record in (good, damaged, foreign):
        await (await tiers.below_memory.commit(record, b"clip"))
    folder = tmp_path / "r" / NAMESPACE

    def harm() -> None:
        (tmp_path / str(Key.of_record(damaged.address))).write_bytes(b"damaged")
        (tmp_path / str(Key.of_record(foreign.address))).unlink()
        (folder / "readme").write_text("foreign")
        (folder / "ab").mkdir(exist_ok=True)
        (folder / "ab" / "not-hexadecimal").write_text("foreign")

    await asyncio.to_thread(harm)

    receipt = await purge(tiers, NAMESPACE, lambda record: True)

    assert (1, Gone(1, len(good.to_bytes()))) == (receipt.outputs, receipt.tiers[TierName.L3])
    assert (await asyncio.to_thread((folder / "readme").read_text)) == "foreign"


async def test_records_that_cannot_be_read_are_an_error(tiers: Tiers) -> None:
    """Nothing is removed on the word of a tier that fails."""
    await (await tiers.through_memory.commit(record_of(b"clip"), b"clip"))
    failing: Any = [ScriptedTier(TierName.L3, fault=Outcome.TIMEOUT)]

    with pytest.raises(TierError):
        await purge(dataclasses.replace(tiers, shared=failing), NAMESPACE, lambda record: True)
    assert 2 == len(tiers.memory.entries)


async def test_blobs_without_records_are_swept(tiers: Tiers) -> None:
    """Also those that no record names."""
    await tiers.below_memory.keep(NAMESPACE, _LARGE, 600.0)
    await sweep_blobs(tiers, NAMESPACE)

    assert tiers.objects is not None
    assert [] == await tiers.objects.names("b/")
