"""Frequency: counts over a real Redis, of days by an injected clock, under L2's budget and breaker."""

import asyncio

import pytest
from redis.asyncio import Redis

from cache.errors import TierError
from cache.frequency import DAYS, Frequency
from cache.guard import Breaker, GuardedStore
from cache.redis import RedisStore
from gateway.stack.ports import LOOPBACK, free_port
from tests.cache.helpers import Clock

DAY = 24 * 3600.0
GROUP, OTHER = "0" * 32, "1" * 32


def _opened(url: str, clock: Clock, *, budget: float = 10.0) -> tuple[Frequency, GuardedStore]:
    store = RedisStore.connect(url, budget=budget, connections=4)
    guarded = GuardedStore(store, Breaker(), budget=budget)
    return Frequency(store, guarded, clock=clock), guarded


async def test_the_most_frequent_come_first(redis_url: str) -> None:
    """Counted by all processes together, each group by itself; what was asked too seldom is left out."""
    opened = [_opened(redis_url, Clock(100 * DAY)) for _ in range(2)]
    (one, _), (two, _) = opened
    for name, times in (("a", 1), ("b", 5), ("c", 2)):
        counts = [await (one, two)[number % 2].asked(GROUP, name) for number in range(times)]
        assert list(range(1, times + 1)) == counts
    await one.asked(OTHER, "z")

    assert ["b", "c", "a"] == await two.most(GROUP)
    assert ["b", "c"] == await two.most(GROUP, least=2)
    await one.forget(GROUP)
    assert ([], ["z"]) == (await two.most(GROUP), await two.most(OTHER))
    for _, guarded in opened:
        await guarded.aclose()


async def test_a_day_is_worth_half_of_the_next(redis_url: str) -> None:
    """Three times two days ago is less than once today; how often it was asked does not shrink meanwhile."""
    clock = Clock(100 * DAY)
    frequency, guarded = _opened(redis_url, clock)
    for _ in range(3):
        await frequency.asked(GROUP, "old")
    clock.now += 2 * DAY
    await frequency.asked(GROUP, "new")

    assert ["new", "old"] == await frequency.most(GROUP)
    assert 4 == await frequency.asked(GROUP, "old")
    assert ["old", "new"] == await frequency.most(GROUP)
    await guarded.aclose()


async def test_after_a_week_nobody_remembers(redis_url: str) -> None:
    """Neither do we look that far back, nor does Redis keep it much longer."""
    clock = Clock(100 * DAY)
    frequency, guarded = _opened(redis_url, clock)
    await frequency.asked(GROUP, "old")
    async with Redis.from_url(redis_url) as raw:
        (key,) = await raw.keys("f/*")
        assert DAYS * DAY * 1000 < await raw.pttl(key) <= (DAYS + 1) * DAY * 1000
    clock.now += (DAYS - 1) * DAY
    assert ["old"] == await frequency.most(GROUP)
    clock.now += DAY
    assert [] == await frequency.most(GROUP)
    assert 1 == await frequency.asked(GROUP, "old")
    await guarded.aclose()


async def test_a_day_holds_a_bounded_number(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least frequent ones give way."""
    monkeypatch.setattr("cache.frequency._MOST", 3)
    frequency, guarded = _opened(redis_url, Clock(100 * DAY))
    for name in "abc":
        await asyncio.gather(*(frequency.asked(GROUP, name) for _ in range(2)))
    await frequency.asked(GROUP, "d")
    assert ["a", "b", "c"] == await frequency.most(GROUP)
    await guarded.aclose()


async def test_faults_are_the_tiers(redis_url: str) -> None:
    """A server that is gone is told as such, within the budget."""
    frequency, guarded = _opened(f"redis://{LOOPBACK}:{free_port()}/0", Clock(0.0), budget=0.5)
    for call in (frequency.asked(GROUP, "a"), frequency.most(GROUP), frequency.forget(GROUP)):
        with pytest.raises(TierError):
            await call
    await guarded.aclose()
