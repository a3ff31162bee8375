"""Arrivals: what a gateway holds until it is stored stays within a bound, and everything comes in in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from anyio import wait_all_tasks_blocked
from hypothesis import given
from hypothesis import strategies as st

from gateway.arrivals import Arrivals

BOUND = 100
Chunks = list[int]


@given(st.lists(st.lists(st.integers(0, 60), max_size=6), max_size=12))
def test_all_come_in_and_no_more_is_held_than_fits(results: list[Chunks]) -> None:
    """Many at once, in chunks of any size; over the bound is at most the one that could not come in otherwise."""
    held = asyncio.run(_all_come(results))

    assert max(held, default=0) <= BOUND + max(map(sum, results), default=0)


@given(st.lists(st.tuples(st.lists(st.integers(0, 60), max_size=6), st.booleans()), max_size=12))
def test_all_come_in_beside_those_that_break_off(results: list[tuple[Chunks, bool]]) -> None:
    """Whose worker is lost after any of their chunks, and who come once more from their first byte."""
    broken = [number for number, (_, breaks) in enumerate(results) if breaks]
    held = asyncio.run(_all_come([chunks for chunks, _ in results], broken))

    assert max(held, default=0) <= BOUND + max((sum(chunks) for chunks, _ in results), default=0)


async def _all_come(results: list[Chunks], broken: Sequence[int] = ()) -> list[int]:
    arrivals, held = Arrivals(BOUND), list[int]()

    async def come(chunks: Chunks, *, breaks: bool) -> None:
        with arrivals.one() as arrival:
            for sent in [chunks[: len(chunks) // 2]] * breaks + [chunks]:
                arrival.begin()
                for size in sent:
                    await arrival.take(size)
                    held.append(arrivals.bytes)
                    await asyncio.sleep(0)
            arrival.end()
            await asyncio.sleep(0)  # it is being stored

    await asyncio.gather(*(come(chunks, breaks=number in broken) for number, chunks in enumerate(results)))
    assert (0, 0, []) == (arrivals.bytes, arrivals.whole, arrivals.coming)
    return held


async def test_what_is_stored_makes_room_for_the_next() -> None:
    """The second result waits for as long as the first one is held; one that is small enough for both does not."""
    arrivals, came = Arrivals(BOUND), list[int]()

    async def come(size: int) -> None:
        with arrivals.one() as arrival:
            await arrival.take(size)
            came.append(size)

    with arrivals.one() as first:
        await first.take(80)
        first.end()
        others = [asyncio.create_task(come(size)) for size in (30, 20)]
        await wait_all_tasks_blocked()
        assert [20] == came
    await asyncio.gather(*others)
    assert [20, 30] == came


async def test_one_that_is_larger_than_all_the_room_comes_in_alone() -> None:
    """It waits until nothing else is held, and then for nothing."""
    arrivals, came = Arrivals(BOUND), list[int]()

    async def come() -> None:
        with arrivals.one() as arrival:
            for size in (70, 70, 70):
                await arrival.take(size)
                came.append(size)

    with arrivals.one() as first:
        await first.take(80)
        first.end()
        large = asyncio.create_task(come())
        await wait_all_tasks_blocked()
        assert [] == came
    await large
    assert [70, 70, 70] == came


async def test_what_comes_once_more_counts_once() -> None:
    """A worker is lost in the middle of its result, and another one sends it from its first byte."""
    arrivals = Arrivals(BOUND)
    with arrivals.one() as arrival:
        await arrival.take(80)
        arrival.begin()
        await arrival.take(90)
        assert 90 == arrivals.bytes
    assert 0 == arrivals.bytes
