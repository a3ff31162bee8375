from __future__ import annotations

import asyncio

import pytest
from anyio import wait_all_tasks_blocked

from inference.errors import QueueFull
from inference.turns import Ticket, Turns


class Visitor:
    """Takes a turn, and leaves when told."""

    def __init__(self, turns: Turns, *, idle: bool = False) -> None:
        self.positions: list[int] = []
        self.ticket = Ticket(idle=idle)
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
