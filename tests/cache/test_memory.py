"""L1: bytes and other immutable values in one budget."""

import pytest

from cache.bans import Ban, Bans
from cache.bounded import Policy, Removal
from cache.condition import Condition
from cache.digest import Digest
from cache.keys import Key
from cache.memory import MemoryTier
from cache.pins import Pin
from cache.switches import Subject, Switch, Switches
from cache.tier import Outcome, TierName
from cache.value import PolicyName, policy_named
from tests.cache.helpers import NOW, Clock, address_of, record_of

_OVERHEAD = 512


def _key(name: str) -> Key:
    return Key.of_record(address_of(name))


async def test_every_entry_is_charged_for_its_bookkeeping() -> None:
    """Entries of no bytes are not free, and the budget holds with them."""
    tier = MemoryTier(max_bytes=10 * _OVERHEAD, clock=Clock())

    for number in range(100):
        await tier.put(_key(str(number)), b"", 600.0)

    assert 10 == len(tier.entries)
    assert tier.entries.bytes <= 10 * _OVERHEAD
    assert 90 == tier.entries.removals[Removal.SIZE]


@pytest.mark.parametrize(("size", "held"), [(1000, True), (1001, False)])
async def test_what_is_larger_than_the_budget_is_not_held(size: int, held: bool) -> None:
    """`holds` says beforehand what `put` will say."""
    tier = MemoryTier(max_bytes=1000 + _OVERHEAD, clock=Clock())

    assert held == tier.holds(size)
    assert held == await tier.put(_key("a"), b"x" * size, 600.0)


@pytest.mark.parametrize(("size", "held"), [(2000, True), (2001, False)])
async def test_no_entry_takes_more_than_its_share(size: int, held: bool) -> None:
    """However much room there is; again `holds` says it beforehand."""
    tier = MemoryTier(max_bytes=10_000, max_share=(2000 + _OVERHEAD) / 10_000, clock=Clock())

    assert held == tier.holds(size)
    assert held == await tier.put(_key("a"), b"x" * size, 600.0)


async def test_what_costs_most_to_have_again_stays() -> None:
    """Bytes and other values are weighed against each other by what they save."""
    policy: Policy[Key] = policy_named("value", max_bytes=12_000, max_entries=None)
    tier = MemoryTier(max_bytes=12_000, policy=policy, clock=Clock())
    await tier.put(_key("dear"), b"x" * 5000, 600.0, cost=30.0)
    await tier.put(_key("cheap"), b"x" * 5000, 600.0, cost=0.1)
    await tier.get(_key("cheap"), 600.0)

    assert tier.hold(Key.of_wire(address_of("reply")), object(), 5000, 600.0, cost=3.0)

    assert {_key("dear"), Key.of_wire(address_of("reply"))} == set(dict(tier.entries.items()))


async def test_a_memory_that_is_turned_off_misses() -> None:
    """Without a budget everything is a miss and nothing an error."""
    tier = MemoryTier(max_bytes=0, clock=Clock())

    assert not await tier.put(_key("a"), b"", 600.0)
    assert Outcome.MISS is (await tier.get(_key("a"), 600.0)).outcome


async def test_other_values_share_the_budget() -> None:
    """A reply in wire form counts with its weight, expires like bytes, and ends at its hard age."""
    clock = Clock()
    tier = MemoryTier(max_bytes=10_000, clock=clock)
    reply = ("wire", "form")
    key = Key.of_wire(address_of("a"))

    assert tier.hold(key, reply, 4000, 600.0, hard_expiry=clock() + 900.0)
    assert tier.entries.bytes == 4000 + _OVERHEAD
    clock.advance(500.0)
    assert reply is tier.held(key)
    clock.advance(400.0)
    assert tier.held(key) is None


async def test_the_number_of_entries_is_bounded() -> None:
    """However small they are."""
    tier = MemoryTier(max_bytes=10_000_000, max_entries=3, clock=Clock())
    for number in range(10):
        await tier.put(_key(str(number)), b"", 600.0)

    assert 3 == len(tier.entries)


async def test_closing_forgets_everything() -> None:
    """The bytes are given back."""
    tier = MemoryTier(max_bytes=10_000, clock=Clock())
    await tier.put(_key("a"), b"a", 600.0)
    await tier.aclose()

    assert (0, 0) == (tier.entries.bytes, len(tier.entries))


async def test_only_what_may_be_wrong_is_let_go() -> None:
    """A ban takes what it forbids, and blobs, which do not say what they are of, but counts only those that belong to
    it; a pin, or a switch of something else, takes nothing. L1 switched off is empty.
    """
    switches = Switches()
    tier = MemoryTier(max_bytes=10_000, switches=switches, clock=Clock())
    blob = Key.of_blob(address_of("a").namespace, Digest.of(b"x"))
    await tier.put(blob, b"x", 600.0)
    made = record_of(b"made")
    await tier.put(Key.of_record(made.address), made.to_bytes(), 600.0)
    await tier.put(Key.of_blob(made.address.namespace, made.output.digest), b"made", 600.0)
    others = (Pin(1.0, address_of("a"), on=True), Switch(1.0, Subject.MODEL, "m", on=False))
    assert [0, 0] == [(await tier.obey(order, Bans())).entries for order in others]
    unknown, known = Ban(NOW + 1, Condition(model="m")), Ban(NOW + 1, Condition(model=made.model))
    assert 0 == (await tier.obey(unknown, Bans([unknown]))).entries
    assert ([], True) == ([key for key, _ in tier.entries.items() if key.kind == "b"], len(tier.entries) == 1)
    await tier.put(blob, b"x", 600.0)
    await tier.put(Key.of_blob(made.address.namespace, made.output.digest), b"made", 600.0)
    assert 2 == (await tier.obey(known, Bans([unknown, known]))).entries
    assert 0 == len(tier.entries)

    await tier.put(blob, b"x", 600.0)
    off = Switch(2.0, Subject.TIER, TierName.L1.value, on=False)
    switches.turn(off)
    assert 1 == (await tier.obey(off, Bans())).entries


@pytest.mark.parametrize("policy", ["value", "lru"])
async def test_no_tenants_results_push_out_anothers(policy: PolicyName) -> None:
    """A flood of one takes its part of memory; another's few stay, though nobody asks for them. Alone it has it all."""
    limits = {"max_bytes": 20 * (1000 + _OVERHEAD), "max_entries": None}
    chosen: Policy[Key] = policy_named(policy, **limits)  # type: ignore[arg-type]
    tier = MemoryTier(**limits, policy=chosen, clock=Clock())  # type: ignore[arg-type]

    def results(tenant: str, count: int) -> list[Key]:
        return [Key("w", tenant * 32, Digest.of(f"{tenant}{number}".encode()).hex) for number in range(count)]

    few, flood = results("b", 5), results("a", 100)
    for key in [*few, *flood]:
        tier.hold(key, b"", 1000, 600.0, cost=1.0)
    assert 5 == sum(tier.peek(key) is not None for key in few)
    assert 15 == sum(tier.peek(key) is not None for key in flood)
    for key in few:
        await tier.delete(key)
    for key in flood:
        tier.hold(key, b"", 1000, 600.0, cost=1.0)
    assert 20 == sum(tier.peek(key) is not None for key in flood)
