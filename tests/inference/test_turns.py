from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from anyio import wait_all_tasks_blocked

from inference.errors import QueueFull
from inference.turns import Ticket, Turns
from tests.cache.helpers import Clock


class Visitor:
    """Takes a turn, and leaves when told."""

    def __init__(self, turns: Turns, *, idle: bool = False, whose: str = "", seconds: float | None = None) -> None:
        self.positions: list[int] = []
        self.ticket = Ticket(idle=idle, whose=whose, seconds=seconds)
        self.leave = asyncio.Event()
        self.inside = False
        self.task = asyncio.create_task(self._visit(turns))

    async def _visit(self, turns: Turns) -> None:
        async with turns.turn(self.positions.append, self.ticket):
            self.inside = True
            await self.leave.wait()
        self.inside = False


async def test_turns_come_in_the_order_of_arrival() -> None:
    """One at a time; everybody hears their position at first and whenever it changes, never if there is none."""
    turns = Turns(10)
    visitors = [Visitor(turns) for _ in range(4)]
    for served in range(4):
        await wait_all_tasks_blocked()
        assert [visitor.inside for visitor in visitors] == [number == served for number in range(4)]
        assert (turns.busy, turns.waiting) == (True, 3 - served)
        visitors[served].leave.set()
    await asyncio.gather(*(visitor.task for visitor in visitors))
    assert [visitor.positions for visitor in visitors] == [[], [0], [1, 0], [2, 1, 0]]
    assert (turns.busy, turns.waiting) == (False, 0)


async def test_one_who_leaves_the_line_makes_room() -> None:
    """Those behind move up; nobody waits for somebody who has gone."""
    turns = Turns(10)
    first, second, third = (Visitor(turns) for _ in range(3))
    await wait_all_tasks_blocked()
    second.task.cancel()
    await wait_all_tasks_blocked()
    assert third.positions == [1, 0]
    first.leave.set()
    await wait_all_tasks_blocked()
    assert third.inside
    third.leave.set()
    await asyncio.gather(first.task, third.task)


async def test_the_line_is_bounded() -> None:
    """Who comes when as many wait as may is refused at once, and told when to come again."""
    turns = Turns(1)
    first, second = Visitor(turns), Visitor(turns)
    await wait_all_tasks_blocked()
    with pytest.raises(QueueFull) as refused:
        async with turns.turn(lambda _: None):
            raise AssertionError
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 1.0
    for visitor in (first, second):
        visitor.leave.set()
    await asyncio.gather(first.task, second.task)


async def test_a_line_of_nobody_still_has_turns() -> None:
    """With no place to wait, the device is had when it is free and refused when it is not."""
    turns = Turns(0)
    first = Visitor(turns)
    await wait_all_tasks_blocked()
    with pytest.raises(QueueFull):
        async with turns.turn(lambda _: None):
            raise AssertionError
    first.leave.set()
    await first.task
    async with turns.turn(lambda _: None):
        assert turns.busy


async def test_idle_ones_stand_behind_everybody() -> None:
    """Also behind those who come later: the device is theirs only when nobody else waits, then in their own order."""
    turns = Turns(10)
    first = Visitor(turns)
    await wait_all_tasks_blocked()
    idle = [Visitor(turns, idle=True) for _ in range(2)]
    await wait_all_tasks_blocked()
    late = [Visitor(turns) for _ in range(2)]
    order = [first, *late, *idle]
    for visitor in order:
        await wait_all_tasks_blocked()
        assert [visitor] == [each for each in order if each.inside]
        visitor.leave.set()
    await asyncio.gather(*(visitor.task for visitor in order))
    assert [[0, 2, 1, 0], [1, 3, 2, 1, 0]] == [each.positions for each in idle]


async def test_one_who_is_waited_for_after_all_is_idle_no_longer() -> None:
    """It stands behind those who had come by then, and before other idle ones; told before it came, likewise."""
    turns = Turns(10)
    first = Visitor(turns)
    await wait_all_tasks_blocked()
    idle = [Visitor(turns, idle=True) for _ in range(2)]
    await wait_all_tasks_blocked()
    before = Visitor(turns)
    await wait_all_tasks_blocked()
    turns.lift(idle[1].ticket)
    after = Visitor(turns)
    early = Visitor(turns, idle=True)
    turns.lift(early.ticket)
    order = [first, before, idle[1], after, early, idle[0]]
    for visitor in order:
        await wait_all_tasks_blocked()
        assert [visitor] == [each for each in order if each.inside]
        visitor.leave.set()
    await asyncio.gather(*(visitor.task for visitor in order))


async def test_idle_ones_take_nobodys_place() -> None:
    """As many of them may wait as of the others, and none is refused for their sake."""
    turns = Turns(1)
    first = Visitor(turns)
    await wait_all_tasks_blocked()
    idle = Visitor(turns, idle=True)
    await wait_all_tasks_blocked()
    with pytest.raises(QueueFull):
        async with turns.turn(lambda _: None, Ticket(idle=True)):
            raise AssertionError
    second = Visitor(turns)
    await wait_all_tasks_blocked()
    assert 2 == turns.waiting
    for visitor in (first, second, idle):
        visitor.leave.set()
    await asyncio.gather(*(visitor.task for visitor in (first, second, idle)))


async def test_changes_are_announced() -> None:
    """Whoever reports the state hears of every arrival, turn and end."""
    seen: list[tuple[bool, int]] = []
    turns = Turns(10, lambda: seen.append((turns.busy, turns.waiting)))
    first, second = Visitor(turns), Visitor(turns)
    await wait_all_tasks_blocked()
    first.leave.set()
    second.leave.set()
    await asyncio.gather(first.task, second.task)
    assert seen == [(True, 0), (True, 1), (False, 1), (False, 0), (True, 0), (False, 0)]


# Tenants.


async def served(clock: Clock, visitors: Sequence[Visitor], **lasts: float) -> str:
    """The tenants in the order in which they have the device; a turn lasts as long as it was to, unless `lasts` says
    otherwise.
    """
    order = ""
    while len(order) < len(visitors):
        await wait_all_tasks_blocked()
        (inside,) = [each for each in visitors if each.inside]
        whose = inside.ticket.whose
        order += whose
        clock.now += lasts.get(whose, inside.ticket.seconds or 0.0)
        inside.leave.set()
        await inside.task
    return order


async def lined_up(turns: Turns, *runs: tuple[str, float]) -> list[Visitor]:
    visitors = [Visitor(turns, whose=whose, seconds=seconds) for whose, seconds in runs]
    await wait_all_tasks_blocked()
    return visitors


async def test_tenants_take_turns() -> None:
    """Who fills the line delays themselves: another's run goes before all but what has begun, and so on in turn."""
    clock = Clock()
    turns = Turns(20, clock=clock)
    many = await lined_up(turns, *[("a", 2.0)] * 5)
    few = await lined_up(turns, *[("b", 2.0)] * 2)
    assert [[0], [2]] == [each.positions for each in few]
    assert [0, 1] == many[1].positions
    assert "ababaaa" == await served(clock, [*many, *few])


async def test_a_long_run_counts_for_more() -> None:
    """Tenants get equal time, not equally many turns; what a run really took is what counts."""
    clock = Clock()
    turns = Turns(20, clock=clock)
    line = await lined_up(turns, *[("a", 6.0)] * 2, *[("b", 2.0)] * 4)
    assert "abbbab" == await served(clock, line)
    line = await lined_up(turns, *[("a", 1.0)] * 2, *[("b", 2.0)] * 4)
    assert "abbbab" == await served(clock, line, a=6.0)


async def test_staying_away_saves_nothing_up() -> None:
    """Who comes late takes turns from now on, and does not make up for what others had before."""
    clock = Clock()
    turns = Turns(20, clock=clock)
    first, second, *rest = await lined_up(turns, *[("a", 2.0)] * 4)
    assert "a" == await served(clock, [first])
    await wait_all_tasks_blocked()
    late = await lined_up(turns, *[("b", 2.0)] * 3)
    assert "abab" + "ab" == await served(clock, [second, *rest, *late])


async def test_one_who_leaves_costs_their_tenant_nothing() -> None:
    """A place that is given up is forgotten: the tenant's next run stands where that one stood."""
    clock = Clock()
    turns = Turns(20, clock=clock)
    _, gone, *rest = line = await lined_up(turns, *[("a", 2.0)] * 2, *[("b", 2.0)] * 3)
    gone.task.cancel()
    await asyncio.gather(gone.task, return_exceptions=True)
    again = await lined_up(turns, ("a", 2.0))
    assert "abbab" == await served(clock, [line[0], *rest, *again])


async def test_a_tenant_has_its_share_of_the_places() -> None:
    """One alone leaves room for another, who is refused nothing until they hold as much; and told apart from full."""
    turns = Turns(10, share=0.5)
    visitors = await lined_up(turns, *[("a", 1.0)] * 6)  # one of them has the device
    assert 5 == turns.waiting
    for whose, places, reason in (("a", 0, "TENANT_SHARE"), ("b", 3, "TENANT_SHARE"), ("c", 1, "TENANT_SHARE")):
        visitors += await lined_up(turns, *[(whose, 1.0)] * places)
        with pytest.raises(QueueFull) as refused:
            async with turns.turn(lambda _: None, Ticket(whose=whose)):
                raise AssertionError
        assert (reason, True) == (refused.value.reason, (refused.value.retry_after or 0.0) >= 1.0)
    visitors += await lined_up(turns, ("d", 1.0))
    with pytest.raises(QueueFull) as refused:
        async with turns.turn(lambda _: None, Ticket(whose="e")):
            raise AssertionError
    assert "QUEUE_FULL" == refused.value.reason
    for each in visitors:
        each.leave.set()
    await asyncio.gather(*(each.task for each in visitors))


async def test_how_long_somebody_would_wait() -> None:
    """For what is before them in turn, and for the rest of what has begun; the whole line is more than that."""
    clock = Clock()
    turns = Turns(20, clock=clock)
    assert (0.0, 0.0) == (turns.seconds, turns.wait_of(Ticket(whose="b", seconds=9.0)))
    line = await lined_up(turns, *[("a", 4.0)] * 3)
    clock.now += 1.0
    assert 12.0 == turns.seconds
    assert 11.0 == turns.wait_of(Ticket(whose="a", seconds=9.0))
    assert 3.0 == turns.wait_of(Ticket(whose="b", seconds=9.0))
    assert 11.0 == turns.wait_of(Ticket(whose="b", idle=True))
    clock.now += 5.0
    assert 8.0 == turns.wait_of(Ticket(whose="a"))  # it takes longer than it should: no less than nothing is left
    assert 2 == turns.waiting  # asking takes no place
    await served(clock, line)


async def test_what_nobody_knows_counts_as_nothing() -> None:
    """Until a turn was measured; from then on as what the last one took."""
    clock = Clock()
    turns = Turns(20, clock=clock)
    line = [Visitor(turns, whose="a") for _ in range(3)]
    await wait_all_tasks_blocked()
    assert 0.0 == turns.wait_of(Ticket())
    clock.now += 5.0
    line[0].leave.set()
    await line[0].task
    await wait_all_tasks_blocked()
    assert (10.0, 10.0) == (turns.wait_of(Ticket(whose="a")), turns.seconds)
    await served(clock, line[1:])


async def test_one_that_nobody_waits_for_any_more_stands_behind() -> None:
    """Whatever came later goes first; it takes the place of an idle one, and where there is none it cannot stay."""
    turns = Turns(1)
    first, left = Visitor(turns), Visitor(turns)
    await wait_all_tasks_blocked()
    assert turns.sink(left.ticket)
    later = Visitor(turns)
    await wait_all_tasks_blocked()
    assert [[0, 1], [0]] == [each.positions for each in (left, later)]
    assert not turns.sink(later.ticket)
    turns.lift(later.ticket)
    for visitor in (first, later, left):
        await wait_all_tasks_blocked()
        assert visitor.inside
        visitor.leave.set()
    await asyncio.gather(*(visitor.task for visitor in (first, later, left)))
