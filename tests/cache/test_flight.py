"""Flight: one generation for any number of callers, whoever comes late and whoever leaves."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from anyio import wait_all_tasks_blocked

from cache.flight import Deserted, Errands, Flight, Flights

Events = Flight[int]
NEVER = 3600.0


@dataclass
class Work:
    """A generation that publishes what it is told to; counts how often it began, and how it ended."""

    begun: int = 0
    cancelled: int = 0
    finished: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None

    async def __call__(self, flight: Events) -> None:
        self.begun += 1
        flight.publish(0)
        try:
            await self.done.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        flight.publish(1)
        self.finished += 1


@pytest.fixture
async def flights() -> AsyncIterator[Flights[str, int]]:
    """Flights whose deserted work goes on for longer than any test."""
    opened: Flights[str, int] = Flights(grace=NEVER)
    yield opened
    await opened.drain(0.0)


async def _follow(
    flights: Flights[str, int], lead: Callable[[Events], Awaitable[None]], key: str = "clip"
) -> list[int]:
    flight, _ = flights.join(key, lead)
    with flight.following():
        return [event async for event in flight.follow()]


async def test_what_nobody_can_join_any_more_is_counted_until_it_is_over(flights: Flights[str, int]) -> None:
    """Its device works on, and its followers are served."""
    works = [Work(), Work()]
    followers = []
    for work in works:
        followers.append(asyncio.create_task(_follow(flights, work)))
        await wait_all_tasks_blocked()
        flights.part()
    assert 2 == len(flights)
    for work in works:
        work.done.set()
    assert [[0, 1]] * 2 == list(await asyncio.gather(*followers))
    assert 0 == len(flights)


async def test_one_call_of_the_work_for_a_thousand_followers(flights: Flights[str, int]) -> None:
    """All callers of one key see every event of one generation, in order."""
    work = Work()
    followers = [asyncio.create_task(_follow(flights, work)) for _ in range(1000)]
    await wait_all_tasks_blocked()

    work.done.set()

    assert [[0, 1]] * 1000 == list(await asyncio.gather(*followers))
    assert (1, 1, 0) == (work.begun, work.finished, len(flights))


async def test_other_keys_are_other_flights(flights: Flights[str, int]) -> None:
    """Two keys are two generations."""
    work = Work()
    work.done.set()

    assert [0, 1] == await _follow(flights, work, "one") == await _follow(flights, work, "two")
    assert 2 == work.begun


async def test_the_first_to_join_leads(flights: Flights[str, int]) -> None:
    """Only the call that began the flight is told so."""
    work = Work()
    joined = [flights.join("clip", work) for _ in range(3)]

    assert [True, False, False] == [led for _, led in joined]
    assert 1 == len({id(flight) for flight, _ in joined})
    assert joined[0][0] is flights.get("clip")
    assert flights.get("other") is None


async def test_a_late_follower_gets_what_it_missed(flights: Flights[str, int]) -> None:
    """Past events come at once, later ones as they come; `start` skips what is known already."""
    work = Work()
    flight, _ = flights.join("clip", work)
    with flight.following():
        await wait_all_tasks_blocked()
        late = asyncio.create_task(_follow(flights, work))
        resumed = asyncio.create_task(_collect(flight, start=1))
        await wait_all_tasks_blocked()
        work.done.set()

        assert ([0, 1], [1]) == (await late, await resumed)
    assert [0, 1] == await _collect(flight)  # also after its end


async def _collect(flight: Events, start: int = 0) -> list[int]:
    return [event async for event in flight.follow(start)]


async def test_a_slow_follower_delays_nobody(flights: Flights[str, int]) -> None:
    """Each follower reads at its own pace; the log waits for no one."""
    work = Work()
    flight, _ = flights.join("clip", work)
    with flight.following():
        slow = flight.follow()
        assert 0 == await anext(slow)
        work.done.set()

        assert [0, 1] == await _follow(flights, work)
        assert 1 == await anext(slow)
        with pytest.raises(StopAsyncIteration):
            await anext(slow)


async def test_a_leader_can_wait_until_somebody_has_passed_on_what_it_told(flights: Flights[str, int]) -> None:
    """Who has taken an event has passed it on once it comes back for more; one of several is enough."""
    flight, _ = flights.join("clip", Work())
    with flight.following(), flight.following():
        quick, slow = flight.follow(), flight.follow()
        await wait_all_tasks_blocked()
        telling = asyncio.create_task(flight.told(patience=NEVER))
        assert (0, 0) == (await anext(quick), await anext(slow))
        await wait_all_tasks_blocked()
        assert not telling.done()
        more = asyncio.ensure_future(anext(quick))
        await telling
        more.cancel()


async def test_a_leader_waits_for_nobody_who_is_not_there(flights: Flights[str, int]) -> None:
    """Nor for followers who leave, nor for longer than it has patience."""
    flight, _ = flights.join("clip", Work())
    await wait_all_tasks_blocked()
    await flight.told(patience=NEVER)
    with flight.following():
        await flight.told(patience=0.0)
        telling = asyncio.create_task(flight.told(patience=NEVER))
        await wait_all_tasks_blocked()
    await telling


async def test_a_follower_can_stop_following(flights: Flights[str, int]) -> None:
    """When `until` holds after a wake, following ends without an error, and the others go on."""
    work, enough = Work(), False
    flight, _ = flights.join("clip", work)

    async def until_enough() -> list[int]:
        return [event async for event in flight.follow(until=lambda: enough)]

    with flight.following():
        stopping, staying = asyncio.create_task(until_enough()), asyncio.create_task(_collect(flight))
        await wait_all_tasks_blocked()
        enough = True
        flight.wake()
        assert [0] == await stopping

        work.done.set()
        assert [0, 1] == await staying


async def test_a_follower_that_leaves_takes_nobody_along(flights: Flights[str, int]) -> None:
    """Of several followers, the leader included, any may be cancelled; the others are served by one generation."""
    work = Work()
    followers = [asyncio.create_task(_follow(flights, work)) for _ in range(4)]
    await wait_all_tasks_blocked()

    followers[0].cancel()
    followers[2].cancel()
    await wait_all_tasks_blocked()
    work.done.set()

    results = await asyncio.gather(*followers, return_exceptions=True)
    assert [[0, 1], [0, 1]] == [result for result in results if isinstance(result, list)]
    assert (1, 0, 1) == (work.begun, work.cancelled, work.finished)


async def _desert(flights: Flights[str, int], work: Work) -> Events:
    flight, _ = flights.join("clip", work)
    with flight.following():
        await wait_all_tasks_blocked()
    return flight


async def test_who_returns_within_the_grace_is_served(flights: Flights[str, int]) -> None:
    """Deserted work goes on for a while, and whoever comes back finds it."""
    work = Work()
    await _desert(flights, work)
    returning = asyncio.create_task(_follow(flights, work))
    await wait_all_tasks_blocked()
    work.done.set()

    assert [0, 1] == await returning
    assert (1, 0) == (work.begun, work.cancelled)


async def test_work_that_stays_deserted_is_cancelled_once() -> None:
    """After the grace the work is told, once; whoever still looks gets Deserted."""
    flights: Flights[str, int] = Flights(grace=0.0)
    work = Work()
    flight = await _desert(flights, work)

    with pytest.raises(Deserted):
        await _collect(flight)
    assert (1, 1, 0) == (work.begun, work.cancelled, len(flights))


async def test_work_that_was_deserted_while_somebody_returned_goes_on() -> None:
    """The grace of an earlier departure does not end work that has a follower again."""
    flights: Flights[str, int] = Flights(grace=0.0)
    work = Work()
    flight, _ = flights.join("clip", work)
    with flight.following():
        await wait_all_tasks_blocked()
    with flight.following():  # before the loop turned
        await wait_all_tasks_blocked()
        assert 0 == work.cancelled
        work.done.set()
        assert [0, 1] == await _collect(flight)


async def test_the_grace_counts_from_the_last_departure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who leaves for the second time gets the whole grace again."""
    loop, now = asyncio.get_running_loop(), 0.0
    timers: list[tuple[float, Callable[..., None], tuple[object, ...], asyncio.Handle]] = []

    def call_later(seconds: float, callback: Callable[..., None], *args: object) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, loop)
        timers.append((now + seconds, callback, args, handle))
        return handle

    flights: Flights[str, int] = Flights(grace=10.0)
    work = Work()
    flight, _ = flights.join("clip", work)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "call_later", call_later)
        with flight.following():
            pass
        now = 9.0
        with flight.following():
            pass
        pending = sorted(at for at, _, _, handle in timers if not handle.cancelled())

    assert [19.0] == pending
    await flights.drain(0.0)


async def test_an_error_is_shared_once_and_forgotten(flights: Flights[str, int]) -> None:
    """Every follower gets the work's error after the events before it; the next caller starts anew."""
    failing = Work(error=ValueError("out of memory"))
    followers = [asyncio.create_task(_follow(flights, failing)) for _ in range(10)]
    await wait_all_tasks_blocked()
    flight = flights.get("clip")
    failing.done.set()

    results = await asyncio.gather(*followers, return_exceptions=True)
    assert 1 == len({id(result) for result in results})
    assert all(isinstance(result, ValueError) for result in results)
    assert flight is not None
    assert [0] == flight.events

    healthy = Work()
    healthy.done.set()
    assert [0, 1] == await _follow(flights, healthy)
    assert (1, 1) == (failing.begun, healthy.begun)


async def test_a_result_is_not_kept(flights: Flights[str, int]) -> None:
    """Once a flight has landed the next caller starts another one: keeping results is the tiers' work."""
    work = Work()
    work.done.set()

    await _follow(flights, work)
    await _follow(flights, work)

    assert 2 == work.begun


async def test_a_flight_can_be_joined_until_its_work_returns(flights: Flights[str, int]) -> None:
    """After the result, while the work still sees it stored, callers join and get the result."""
    stored = asyncio.Event()

    async def lead(flight: Events) -> None:
        flight.publish(7)
        await stored.wait()

    flight, _ = flights.join("clip", lead)
    with flight.following():
        await wait_all_tasks_blocked()
        late = asyncio.create_task(_follow(flights, lead))
        await wait_all_tasks_blocked()
        assert [7] == flight.events
        stored.set()
        assert [7] == await late


async def test_work_can_be_cancelled_whoever_follows(flights: Flights[str, int]) -> None:
    """`cancel` ends the work; all followers get Deserted and the next caller starts anew."""
    work = Work()
    followers = [asyncio.create_task(_follow(flights, work)) for _ in range(3)]
    await wait_all_tasks_blocked()
    flight = flights.get("clip")
    assert flight is not None

    flights.cancel(flight)
    flights.cancel(flight)

    results = await asyncio.gather(*followers, return_exceptions=True)
    assert [Deserted] * 3 == [type(result) for result in results]
    assert 1 == work.cancelled
    flights.cancel(flight)  # after its end: nothing

    work.done.set()
    assert [0, 1] == await _follow(flights, work)


async def test_who_comes_while_cancelled_work_cleans_up_begins_anew(flights: Flights[str, int]) -> None:
    """Nobody joins a flight that is ending because nobody wanted it, and its end leaves the new one alone."""
    cleaned = asyncio.Event()

    async def lead(flight: Events) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await cleaned.wait()

    flight, _ = flights.join("clip", lead)
    await wait_all_tasks_blocked()
    flights.cancel(flight)
    await wait_all_tasks_blocked()

    work = Work()
    follower = asyncio.create_task(_follow(flights, work))
    await wait_all_tasks_blocked()
    assert 2 == len(flights)
    cleaned.set()
    with pytest.raises(Deserted):
        [event async for event in flight.follow()]
    assert (1, False) == (len(flights), flights.get("clip") in (None, flight))
    work.done.set()
    assert [0, 1] == await follower


async def test_work_that_is_to_be_ended_goes_on_deserted() -> None:
    """A leader that said so is not told when everybody has left: its result is to be stored."""
    flights: Flights[str, int] = Flights(grace=0.0)
    work = Work()
    flight, _ = flights.join("clip", work)
    with flight.following():
        flight.goes_on = True
        await wait_all_tasks_blocked()
    for _ in range(3):
        await asyncio.sleep(0)
    work.done.set()

    assert [0, 1] == await _collect(flight)
    assert (0, 1) == (work.cancelled, work.finished)


async def test_work_that_is_cancelled_before_it_began_never_begins(flights: Flights[str, int]) -> None:
    """Cancelled in the same turn of the loop in which it was joined, the work does not run at all."""
    work = Work()
    flight, _ = flights.join("clip", work)
    flights.cancel(flight)

    with pytest.raises(Deserted), flight.following():
        await _collect(flight)
    assert (0, 0) == (work.begun, len(flights))


async def test_draining_waits_and_then_cancels(flights: Flights[str, int]) -> None:
    """Work that ends in time ends by itself, the rest is cancelled, and nothing is left."""
    quick, endless = Work(), Work()
    flights.join("quick", quick)
    flights.join("endless", endless)
    await wait_all_tasks_blocked()
    quick.done.set()

    await flights.drain(0.05)

    assert (1, 0) == (quick.finished, quick.cancelled)
    assert (0, 1) == (endless.finished, endless.cancelled)
    assert 0 == len(flights)


async def test_draining_nothing_is_done(flights: Flights[str, int]) -> None:
    """Without flights there is nothing to wait for."""
    await flights.drain(NEVER)


async def test_deserting_what_has_ended_cancels_nothing() -> None:
    """The last follower of a finished flight may leave at any time."""
    flights: Flights[str, int] = Flights(grace=0.0)
    work = Work()
    work.done.set()
    flight, _ = flights.join("clip", work)
    with flight.following():
        await _collect(flight)
        again, led = flights.join("clip", Work())
    await wait_all_tasks_blocked()

    assert led
    assert again is flights.get("clip")
    await flights.drain(0.0)


async def test_cancelled_work_ends_undisturbed_by_its_grace() -> None:
    """What cancelled work does to end well is not cancelled in turn when its followers leave on hearing of it."""
    flights: Flights[str, int] = Flights(grace=0.0)
    goodbye, said = asyncio.Event(), asyncio.Event()

    async def work(flight: Flight[int]) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await goodbye.wait()
            said.set()
            raise

    flight, _ = flights.join("clip", work)
    with flight.following():
        await wait_all_tasks_blocked()
        flights.cancel(flight)
    await wait_all_tasks_blocked()
    goodbye.set()

    with pytest.raises(Deserted):
        await _collect(flight)
    assert said.is_set()


async def test_whoever_wants_the_same_waits_for_the_same_errand() -> None:
    """A hundred callers of one key are one call; another key is another, and so is the same one afterwards."""
    errands, opened, calls = Errands[str, int](), asyncio.Event(), list[str]()

    async def look(key: str) -> int:
        calls.append(key)
        await opened.wait()
        return len(calls)

    asked = [asyncio.create_task(errands.share(key, partial(look, key))) for key in "a" * 100 + "b"]
    await wait_all_tasks_blocked()
    assert ["a", "b"] == calls
    opened.set()
    assert [2] * 101 == await asyncio.gather(*asked)
    assert 3 == await errands.share("a", partial(look, "a"))


async def test_an_errand_is_done_whoever_leaves() -> None:
    """The caller that began it may go; those that wait get what it brings, or its error."""
    errands, opened = Errands[str, int](), asyncio.Event()

    async def fail() -> int:
        await opened.wait()
        raise LookupError

    first = asyncio.create_task(errands.share("a", fail))
    await wait_all_tasks_blocked()
    others = [asyncio.create_task(errands.share("a", fail)) for _ in range(2)]
    await wait_all_tasks_blocked()
    first.cancel()
    await wait_all_tasks_blocked()
    opened.set()
    assert [asyncio.CancelledError, LookupError, LookupError] == [
        type(each) for each in await asyncio.gather(first, *others, return_exceptions=True)
    ]


async def test_a_flight_that_is_over_is_gone_at_once(flights: Flights[str, int]) -> None:
    """All that was heard in it leaves memory with its last follower, and waits for no search for rings."""
    work = Work()
    flight, _ = flights.join("key", work)
    with flight.following():
        work.done.set()
        assert [0, 1] == [event async for event in flight.follow()]
    await wait_all_tasks_blocked()
    left = weakref.ref(flight)
    gc.disable()
    try:
        del flight
        assert left() is None
    finally:
        gc.enable()
