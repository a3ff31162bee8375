"""Lag: what holds an event loop up is seen from outside, and for how long."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from cache.lag import EVERY, LoopLag


async def test_a_loop_that_stands_still_is_seen_for_as_long_as_it_did() -> None:
    """Of three turns the second comes 0.7 s late: one observation, and its seconds; the others come in time."""
    registry, now, turns = CollectorRegistry(), 100.0, 0
    third = asyncio.Event()

    async def sleep(seconds: float) -> None:
        nonlocal now, turns
        turns += 1
        now += seconds + (0.7 if turns == 2 else 0.0)
        if turns > 3:
            third.set()
            await asyncio.Event().wait()

    async with LoopLag(registry, clock=lambda: now, sleep=sleep):
        await third.wait()

    def read(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"reprise_event_loop_lag_seconds_{name}", labels)

    assert EVERY < 0.5
    assert (3, 2, 2, 3) == (
        read("count"),
        read("bucket", le="0.001"),
        read("bucket", le="0.5"),
        read("bucket", le="1.0"),
    )
    assert abs((read("sum") or 0) - 0.7) < 1e-6


async def test_tasks_that_are_not_done_are_counted_when_somebody_looks() -> None:
    """From another thread, as metrics are served: each that waits is one more, and none is left when it is closed."""
    registry = CollectorRegistry()

    async def look() -> float | None:
        return await asyncio.to_thread(registry.get_sample_value, "reprise_asyncio_tasks")

    async with LoopLag(registry):
        before = await look()
        assert before == len(asyncio.all_tasks())
        waiting = [asyncio.create_task(asyncio.Event().wait()) for _ in range(100)]
        assert before + 100 == await look()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert before == await look()
    assert 0 == await look()


async def test_the_loop_it_is_opened_in_is_watched_until_it_is_closed() -> None:
    """By the loop's own clock; nothing of it is left."""
    registry = CollectorRegistry()
    before = asyncio.all_tasks()
    async with LoopLag(registry):
        async with asyncio.timeout(10.0):
            while not registry.get_sample_value("reprise_event_loop_lag_seconds_count"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert before == asyncio.all_tasks()
