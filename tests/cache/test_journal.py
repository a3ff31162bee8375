"""Journal: short shared lists over a real Redis, under L2's budget and breaker."""

import asyncio
import time

import pytest
from redis.asyncio import Redis

from cache.errors import TierError, TierResting, TierTimeout
from cache.guard import Breaker, GuardedStore
from cache.journal import Journal
from cache.keys import Key
from cache.redis import RedisStore
from cache.store import StoredTier
from cache.tier import Outcome, TierName
from gateway.stack import Stack
from gateway.stack.ports import LOOPBACK, free_port
from tests import servers
from tests.cache.helpers import Clock, address_of, pause

NAME = "h/" + "0" * 32


def _opened(url: str, *, budget: float = 10.0, breaker: Breaker | None = None) -> tuple[Journal, GuardedStore]:
    store = RedisStore.connect(url, budget=budget, connections=4)
    guarded = GuardedStore(store, breaker or Breaker(), budget=budget)
    return Journal(store, guarded), guarded


async def test_the_newest_rows_stay(redis_url: str) -> None:
    """Rows come newest first, no more than are kept and no more than are asked for; other names have their own."""
    journal, guarded = _opened(redis_url)
    for number in range(7):
        await journal.append(NAME, b"row %d" % number, keep=4, ttl=60.0)

    assert [b"row 6", b"row 5", b"row 4", b"row 3"] == await journal.tail(NAME, 64)
    assert [b"row 6", b"row 5"] == await journal.tail(NAME, 2)
    assert [] == await journal.tail(NAME + "1", 64)
    await guarded.aclose()


async def test_all_processes_see_one_list(redis_url: str) -> None:
    """What many append at once is all there, each row once."""
    opened = [_opened(redis_url) for _ in range(3)]
    rows = [b"%d/%d" % (who, number) for who in range(3) for number in range(10)]
    await asyncio.gather(*(opened[row[0] - ord("0")][0].append(NAME, row, keep=64, ttl=60.0) for row in rows))

    assert sorted(rows) == sorted(await opened[0][0].tail(NAME, 64))
    for _, guarded in opened:
        await guarded.aclose()


async def test_a_list_lives_as_long_after_its_last_row(redis_url: str) -> None:
    """Each row starts the age of the whole list again; reading does not."""
    journal, guarded = _opened(redis_url)
    async with Redis.from_url(redis_url) as raw:
        await journal.append(NAME, b"row", keep=4, ttl=1000.0)
        await journal.append(NAME, b"row", keep=4, ttl=60.0)
        assert 0 < await raw.pttl(NAME) <= 60_000
        await raw.pexpire(NAME, 10_000)
        await journal.tail(NAME, 4)
        assert 0 < await raw.pttl(NAME) <= 10_000
    await guarded.aclose()


async def test_what_was_evicted_is_an_empty_list(redis_url: str) -> None:
    """A list that Redis let go of is a list without rows, and begins anew."""
    journal, guarded = _opened(redis_url)
    await journal.append(NAME, b"old", keep=4, ttl=60.0)
    async with Redis.from_url(redis_url) as raw:
        await raw.unlink(NAME)
    assert [] == await journal.tail(NAME, 4)
    await journal.append(NAME, b"new", keep=4, ttl=60.0)
    assert [b"new"] == await journal.tail(NAME, 4)
    await guarded.aclose()


async def test_another_type_under_the_name_is_an_error(redis_url: str) -> None:
    """It is refused by the server, and told as a fault of the tier, whichever way round."""
    journal, guarded = _opened(redis_url)
    async with Redis.from_url(redis_url) as raw:
        await raw.set(NAME, "not ours")
    with pytest.raises(TierError, match="ResponseError"):
        await journal.tail(NAME, 4)
    with pytest.raises(TierError, match="ResponseError"):
        await journal.append(NAME, b"row", keep=4, ttl=60.0)
    await guarded.aclose()


async def test_it_shares_the_breaker_of_its_tier(breakable_redis: Stack) -> None:
    """A hung server costs the budget until the breaker opens, for both together; then neither asks it, and it heals."""
    clock = Clock()
    breaker = Breaker(failures=2, rest=10.0, clock=clock)
    journal, guarded = _opened(servers.redis_url(breakable_redis), budget=0.25, breaker=breaker)
    tier, key = StoredTier(TierName.L2, guarded), Key.of_record(address_of("clip"))
    await journal.append(NAME, b"row", keep=4, ttl=60.0)

    pause(breakable_redis.part("redis"))
    started = time.perf_counter()
    with pytest.raises(TierTimeout):
        await journal.tail(NAME, 4)
    assert Outcome.TIMEOUT is (await tier.get(key, 60.0)).outcome
    assert time.perf_counter() - started < 3.0
    for _ in range(100):
        with pytest.raises(TierResting):
            await journal.append(NAME, b"row", keep=4, ttl=60.0)
    assert Outcome.SKIPPED is (await tier.get(key, 60.0)).outcome

    breakable_redis.part("redis").resume()
    clock.advance(10.0)
    assert [b"row"] == await journal.tail(NAME, 4)
    await guarded.aclose()


async def test_nobody_at_the_address_is_an_error_at_once() -> None:
    """Both methods say so in no time."""
    journal, guarded = _opened(f"redis://{LOOPBACK}:{free_port()}/0", budget=5.0)
    started = time.perf_counter()
    with pytest.raises(TierError):
        await journal.tail(NAME, 4)
    with pytest.raises(TierError):
        await journal.append(NAME, b"row", keep=4, ttl=60.0)
    assert time.perf_counter() - started < 2.0
    await guarded.aclose()
