"""Guard: every call ends within its budget or was not made; a failing server is left alone, then probed."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from anyio import wait_all_tasks_blocked

from cache.errors import TierError, TierResting, TierTimeout
from cache.guard import Breaker, GuardedStore
from cache.keys import Key
from cache.redis import RedisStore
from cache.store import StoredTier
from cache.tier import Outcome, TierName
from gateway.stack import Stack
from gateway.stack.ports import LOOPBACK, free_port
from tests import servers
from tests.cache.helpers import Clock, address_of, pause

_KEY = Key.of_record(address_of("clip"))


def test_a_breaker_in_every_state() -> None:
    """Closed, open, half-open, and each step between them, at the moments given."""
    clock = Clock(0.0)
    breaker = Breaker(failures=2, rest=10.0, clock=clock)
    history = []

    def step(what: str) -> None:
        match what:
            case "admit":
                try:
                    breaker.admit()
                except TierResting:
                    what = "refused"
            case "succeeded":
                breaker.succeeded()
            case "failed":
                breaker.failed()
            case _:
                clock.advance(float(what))
        history.append((what, breaker.state))

    for what in (
        *("admit", "failed", "admit", "succeeded", "admit", "failed"),  # a success starts the count again
        *("admit", "failed", "admit", "9.9", "admit", "0.1"),  # two in a row open it for 10 s
        *("admit", "admit", "failed", "admit"),  # one probe at a time; its failure opens it again, at once
        *("10", "admit", "succeeded", "admit", "failed", "admit"),  # its success closes it, with a fresh count
    ):
        step(what)

    assert [
        *[("admit", "closed"), ("failed", "closed"), ("admit", "closed"), ("succeeded", "closed")],
        *[("admit", "closed"), ("failed", "closed"), ("admit", "closed"), ("failed", "open")],
        *[("refused", "open"), ("9.9", "open"), ("refused", "open"), ("0.1", "half-open")],
        *[("admit", "half-open"), ("refused", "half-open"), ("failed", "open"), ("refused", "open")],
        *[("10", "half-open"), ("admit", "half-open"), ("succeeded", "closed"), ("admit", "closed")],
        *[("failed", "closed"), ("admit", "closed")],
    ] == history


def test_calls_that_were_under_way_do_not_end_the_rest() -> None:
    """Answers to calls from before the breaker opened count, but a late failure does not make it rest for less."""
    clock = Clock(0.0)
    breaker = Breaker(failures=1, rest=10.0, clock=clock)
    breaker.failed()
    clock.advance(5.0)
    breaker.failed()
    clock.advance(5.0)

    assert "open" == breaker.state


@dataclass
class ScriptedStore:
    """A store that does what it is told, and counts."""

    fault: BaseException | None = None
    answers: asyncio.Event = field(default_factory=asyncio.Event)  # calls wait for it
    begun: int = 0
    finished: int = 0
    closed: bool = False

    def __post_init__(self) -> None:
        self.answers.set()

    async def get(self, name: str, ttl: float | None) -> bytes | None:
        await self._act()
        return b"value"

    async def get_many(self, names: Sequence[str], ttl: float | None) -> list[bytes | None]:
        await self._act()
        return [b"value"] * len(names)

    async def put(self, name: str, data: bytes, ttl: float, *, replace: bool) -> bool:
        await self._act()
        return replace

    async def delete(self, name: str) -> None:
        await self._act()

    async def aclose(self) -> None:
        self.closed = True

    async def _act(self) -> None:
        self.begun += 1
        await self.answers.wait()
        self.finished += 1
        if self.fault is not None:
            raise self.fault


async def test_answers_pass_through() -> None:
    """A healthy store is heard as if nothing stood before it."""
    store = ScriptedStore()
    guarded = GuardedStore(store, Breaker(), budget=1.0)

    assert b"value" == await guarded.get("a", 1)
    assert [b"value", b"value"] == await guarded.get_many(["a", "b"], 1)
    assert (True, False) == (
        await guarded.put("a", b"", 1, replace=True),
        await guarded.put("a", b"", 1, replace=False),
    )
    await guarded.delete("a")
    await guarded.aclose()
    assert store.closed


async def test_a_store_that_never_answers_costs_its_budget() -> None:
    """Each call ends with TierTimeout after the budget; once the breaker is open it costs nothing."""
    store = ScriptedStore(answers=asyncio.Event())
    store.answers.clear()
    guarded = GuardedStore(store, Breaker(failures=2, rest=60.0), budget=0.02)

    started = time.perf_counter()
    for _ in range(2):
        with pytest.raises(TierTimeout):
            await guarded.get("a", 1)
    assert 0.03 < time.perf_counter() - started < 1.0

    for call in (guarded.get("a", 1), guarded.get_many(["a"], 1), guarded.delete("a")):
        with pytest.raises(TierResting):
            await call
    with pytest.raises(TierResting):
        await guarded.put("a", b"", 1, replace=False)
    assert 2 == store.begun


@pytest.mark.parametrize("fault", [TierError("down"), RuntimeError("a bug"), TimeoutError()], ids=repr)
async def test_every_failure_counts(fault: Exception) -> None:
    """Whatever a store raises is a failure, and in a row they open the breaker."""
    store = ScriptedStore(fault=fault)
    guarded = GuardedStore(store, Breaker(failures=3, rest=60.0), budget=1.0)

    for _ in range(3):
        with pytest.raises((TierError, RuntimeError)):
            await guarded.get("a", 1)
    with pytest.raises(TierResting):
        await guarded.get("a", 1)


@pytest.mark.parametrize("fault", [TierError("down"), RuntimeError("a bug")], ids=repr)
async def test_a_failed_probe_is_not_the_last_one(fault: Exception) -> None:
    """Whatever a probe fails with, there is another one after the next rest, and its success brings the tier back."""
    clock = Clock()
    store = ScriptedStore(fault=TierError("down"))
    guarded = GuardedStore(store, Breaker(failures=1, rest=10.0, clock=clock), budget=1.0)
    for failing in (store.fault, fault, fault):
        store.fault = failing
        with pytest.raises((TierError, RuntimeError)):
            await guarded.get("a", 1)
        clock.advance(10.0)

    store.fault = None
    assert b"value" == await guarded.get("a", 1)
    assert "closed" == guarded.breaker.state


async def test_one_probe_at_a_time() -> None:
    """While the probe is under way everybody else is turned away."""
    clock = Clock()
    store = ScriptedStore(fault=TierError("down"))
    guarded = GuardedStore(store, Breaker(failures=1, rest=10.0, clock=clock), budget=None)
    with pytest.raises(TierError):
        await guarded.get("a", 1)
    clock.advance(10.0)
    store.answers.clear()
    store.fault = None
    probe = asyncio.create_task(guarded.get("a", 1))
    await wait_all_tasks_blocked()

    with pytest.raises(TierResting):
        await guarded.get("a", 1)

    store.answers.set()
    assert b"value" == await probe
    assert 2 == store.begun


async def test_a_caller_that_leaves_does_not_cut_its_call_off() -> None:
    """The call goes on after its caller was cancelled, and counts when it ends."""
    store = ScriptedStore()
    store.answers.clear()
    guarded = GuardedStore(store, Breaker(), budget=None)
    caller = asyncio.create_task(guarded.get("a", 1))
    await wait_all_tasks_blocked()

    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (1, 0) == (store.begun, store.finished)

    store.answers.set()
    await wait_all_tasks_blocked()
    assert 1 == store.finished


async def test_an_abandoned_call_that_fails_is_nobodys_surprise() -> None:
    """A failure whose caller has left is counted by the breaker and raised nowhere."""
    store = ScriptedStore(fault=TierError("down"))
    store.answers.clear()
    guarded = GuardedStore(store, Breaker(failures=1, rest=60.0), budget=None)
    caller = asyncio.create_task(guarded.get("a", 1))
    await wait_all_tasks_blocked()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller

    store.answers.set()
    await wait_all_tasks_blocked()

    assert "open" == guarded.breaker.state


async def test_a_server_that_takes_no_writes_is_read_on() -> None:
    """Writes that fail in a row are left for a rest and probed; reads notice nothing of it."""
    clock = Clock()
    store = ScriptedStore()
    reading, writing = (Breaker(failures=2, rest=10.0, clock=clock) for _ in range(2))
    guarded = GuardedStore(store, reading, budget=1.0, writing=writing)
    for write in (guarded.put("a", b"", 1, replace=True), guarded.delete("a")):
        store.fault = TierError("full")
        with pytest.raises(TierError):
            await write
        store.fault = None
        assert b"value" == await guarded.get("a", 1)
    assert ("closed", "open") == (reading.state, writing.state)

    asked = store.begun
    with pytest.raises(TierResting):
        await guarded.put("a", b"", 1, replace=True)
    assert asked == store.begun
    clock.advance(10.0)
    await guarded.delete("a")
    assert ("closed", "closed") == (reading.state, writing.state)


async def test_writes_rest_while_reads_do_and_need_no_probe_of_theirs() -> None:
    """A server that cannot be read is written to no more; when the rest is over a write is tried, whoever reads."""
    clock = Clock()
    store = ScriptedStore(fault=TierError("down"))
    reading, writing = (Breaker(failures=1, rest=10.0, clock=clock) for _ in range(2))
    guarded = GuardedStore(store, reading, budget=1.0, writing=writing)
    with pytest.raises(TierError):
        await guarded.get("a", 1)
    store.fault = None

    with pytest.raises(TierResting):
        await guarded.put("a", b"", 1, replace=True)
    assert 1 == store.begun
    clock.advance(10.0)
    assert await guarded.put("a", b"", 1, replace=True)
    assert ("half-open", "closed") == (reading.state, writing.state)


async def test_closing_waits_for_what_is_under_way() -> None:
    """The store is closed after the last call has ended."""
    store = ScriptedStore()
    store.answers.clear()
    guarded = GuardedStore(store, Breaker(), budget=None)
    call = asyncio.create_task(guarded.get("a", 1))
    await wait_all_tasks_blocked()
    closing = asyncio.create_task(guarded.aclose())
    await wait_all_tasks_blocked()
    assert not store.closed

    store.answers.set()
    await closing
    assert store.closed
    assert b"value" == await call


def _tier(url: str, breaker: Breaker, budget: float) -> StoredTier:
    return StoredTier(
        TierName.L2, GuardedStore(RedisStore.connect(url, budget=budget, connections=4), breaker, budget=budget)
    )


async def test_a_hung_redis_costs_its_budget_and_then_nothing(breakable_redis: Stack) -> None:
    """A paused server costs about the budget per lookup, nothing once the breaker is open, and serves again later."""
    clock = Clock()
    tier = _tier(servers.redis_url(breakable_redis), Breaker(failures=3, rest=10.0, clock=clock), budget=0.25)
    assert await tier.put(_KEY, b"clip", 600.0)

    pause(breakable_redis.part("redis"))
    started = time.perf_counter()
    outcomes = [(await tier.get(_KEY, 600.0)).outcome for _ in range(3)]
    hung = time.perf_counter() - started
    started = time.perf_counter()
    outcomes += [(await tier.get(_KEY, 600.0)).outcome for _ in range(100)]
    resting = time.perf_counter() - started
    breakable_redis.part("redis").resume()
    clock.advance(10.0)

    assert [Outcome.TIMEOUT] * 3 + [Outcome.SKIPPED] * 100 == outcomes
    assert 0.7 < hung < 3.0
    assert resting < 0.25
    assert b"clip" == (await tier.get(_KEY, 600.0)).value
    await tier.aclose()


async def test_callers_that_leave_a_hung_redis_cost_it_no_wrong_answers(breakable_redis: Stack) -> None:
    """Cancelled in the middle of real commands, the connections still give each caller its own value."""
    tier = _tier(servers.redis_url(breakable_redis), Breaker(), budget=5.0)
    keys = [Key.of_record(address_of(f"clip {number}")) for number in range(8)]
    for key in keys:
        await tier.put(key, key.hex.encode(), 600.0)

    pause(breakable_redis.part("redis"))
    callers = [asyncio.create_task(tier.get(key, 600.0)) for key in keys]
    await wait_all_tasks_blocked()
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    breakable_redis.part("redis").resume()

    assert [key.hex.encode() for key in keys] == [(await tier.get(key, 600.0)).value for key in keys]
    await tier.aclose()


async def test_a_refused_port_is_an_error_at_once() -> None:
    """Where nobody listens a lookup is an error in no time, and a write raises."""
    tier = _tier(f"redis://{LOOPBACK}:{free_port()}/0", Breaker(failures=3, rest=60.0), budget=5.0)
    started = time.perf_counter()

    outcomes = [(await tier.get(_KEY, 600.0)).outcome for _ in range(2)]
    with pytest.raises(TierError):
        await tier.put(_KEY, b"clip", 600.0)
    outcomes.append((await tier.get(_KEY, 600.0)).outcome)
    outcomes += [lookup.outcome for lookup in await tier.get_many([_KEY, _KEY], 600.0)]

    assert [Outcome.ERROR] * 3 + [Outcome.SKIPPED] * 2 == outcomes
    assert time.perf_counter() - started < 2.0
    await tier.aclose()


async def test_a_redis_that_comes_back_is_used_again(breakable_redis: Stack) -> None:
    """Killed, it is an error and then left alone; restarted, the first probe is served and so is everybody after."""
    clock = Clock()
    tier = _tier(servers.redis_url(breakable_redis), Breaker(failures=2, rest=10.0, clock=clock), budget=2.0)
    keys = [Key.of_record(address_of(f"clip {number}")) for number in range(8)]
    await asyncio.gather(*(tier.put(key, b"clip", 600.0) for key in keys))  # several connections are open

    breakable_redis.part("redis").kill()
    outcomes = [(await tier.get(key, 600.0)).outcome for key in keys]
    await asyncio.to_thread(breakable_redis.restart, "redis")
    clock.advance(10.0)
    outcomes += [(await tier.get(key, 600.0)).outcome for key in keys]
    created = await asyncio.gather(*(tier.put(key, b"clip", 600.0) for key in keys))

    assert [Outcome.ERROR] * 2 + [Outcome.SKIPPED] * 6 + [Outcome.MISS] * 8 == outcomes
    assert [True] * 8 == created
    await tier.aclose()
