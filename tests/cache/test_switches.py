"""What is switched off, and a tier that is."""

import pytest

from cache.errors import TierResting
from cache.keys import Key
from cache.memory import MemoryTier
from cache.switched import SwitchedTier
from cache.switches import Subject, Switch, Switches
from cache.tier import Outcome, TierName
from cache.write_behind import Write, WriteBehind
from tests.cache.helpers import NAMESPACE, ScriptedTier

KEY = Key("b", NAMESPACE, "a" * 64)


def test_the_later_switch_counts_in_whatever_order_they_are_heard() -> None:
    """Everything is on at first; each subject has switches of its own."""
    switches = Switches()
    switches.turn(Switch(2.0, Subject.TIER, "l2", on=True))
    switches.turn(Switch(1.0, Subject.TIER, "l2", on=False))
    switches.turn(Switch(1.0, Subject.MODEL, "l2", on=False))

    assert switches.on(Subject.TIER, "l2")
    assert switches.on(Subject.TIER, "l3")
    assert [(Subject.MODEL, "l2")] == switches.off


@pytest.mark.parametrize("first", [True, False])
def test_of_switches_of_one_time_the_one_that_says_off_counts(first: bool) -> None:
    """So all processes agree, in whatever order they hear them."""
    switches = Switches()
    for on in (first, not first):
        switches.turn(Switch(1.0, Subject.TIER, "l2", on=on))

    assert not switches.on(Subject.TIER, "l2")


async def test_a_tier_that_is_off_is_neither_read_nor_written() -> None:
    """It keeps what it has, still removes, and is as before once it is on again."""
    switches, inner = Switches(), ScriptedTier(TierName.L2, entries={KEY: b"kept"})
    tier = SwitchedTier(inner, switches)
    switches.turn(Switch(1.0, Subject.TIER, "l2", on=False))

    assert Outcome.OFF == (await tier.get(KEY, 1.0)).outcome
    assert [Outcome.OFF] * 2 == [lookup.outcome for lookup in await tier.get_many([KEY, KEY], 1.0)]
    assert not tier.holds(1)
    with pytest.raises(TierResting):
        await tier.put(KEY, b"new", 1.0, replace=True)
    assert ([], []) == (inner.gets, inner.puts)
    switches.turn(Switch(2.0, Subject.TIER, "l2", on=True))
    assert b"kept" == (await tier.get(KEY, 1.0)).value
    switches.turn(Switch(3.0, Subject.TIER, "l2", on=False))
    await tier.delete(KEY)
    assert {} == inner.entries


async def test_memory_that_is_off_holds_nothing() -> None:
    """It is emptied when it is told, and takes nothing until it is on."""
    switches = Switches()
    memory = MemoryTier(max_bytes=10_000, switches=switches)
    await memory.put(KEY, b"kept", 60.0)
    switches.turn(Switch(1.0, Subject.TIER, "l1", on=False))

    assert Outcome.OFF == (await memory.get(KEY, 60.0)).outcome
    assert not await memory.put(KEY, b"new", 60.0, replace=True)
    assert memory.held(KEY) is None
    assert not memory.holds(1)


@pytest.mark.parametrize("off", [TierName.L2, TierName.L3])
async def test_nothing_is_called_durable_that_no_durable_tier_took(off: TierName) -> None:
    """With L3 off results still reach L2, and say that they are not stored; with L2 off they are durable."""
    switches, l2, l3 = Switches(), ScriptedTier(TierName.L2), ScriptedTier(TierName.L3)
    switches.turn(Switch(1.0, Subject.TIER, off.value, on=False))
    tiers = [SwitchedTier(l2, switches), SwitchedTier(l3, switches)]
    async with WriteBehind(tiers, max_bytes=10_000, max_entries=10) as writer:
        durable = await (await writer.submit([Write(KEY, b"result", 60.0)]))

    assert durable is (off is TierName.L2)
    assert ({KEY: b"result"} if off is TierName.L3 else {}) == l2.entries
    assert ({KEY: b"result"} if off is TierName.L2 else {}) == l3.entries
    assert 0 == (l2 if off is TierName.L2 else l3).tries
