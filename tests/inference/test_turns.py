from __future__ import annotations

import asyncio

import pytest
from anyio import wait_all_tasks_blocked

from inference.errors import QueueFull
from inference.turns import Turns


class Visitor:
    """Takes a turn, and leaves when told."""

    def __init__(self, turns: Turns) -> None:
        self.positions: list[int] = []
        self.leave = asyncio.Event()
        self.inside = False
        self.task = asyncio.create_task(self._visit(turns))

    async def _visit(self, turns: Turns) -> None:
        async with turns.turn(self.positions.append):
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
