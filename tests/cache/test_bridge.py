"""The bridge from plain threads to an event loop of its own."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from cache.bridge import Bridge, Closed


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    bridge = Bridge("test")
    yield bridge
    bridge.close()


def test_a_call_returns_what_its_work_returns(bridge: Bridge) -> None:
    """The work runs on one loop, in one thread that is not the caller's."""

    async def work() -> tuple[int, int]:
        return threading.get_ident(), id(asyncio.get_running_loop())

    first, second = bridge.call(work()), bridge.call(work())

    assert first == second
    assert threading.get_ident() != first[0]


def test_a_call_raises_what_its_work_raises(bridge: Bridge) -> None:
    """Its errors are the caller's."""

    async def work() -> None:
        raise KeyError("name")

    with pytest.raises(KeyError, match="name"):
        bridge.call(work())


def test_patience_ends(bridge: Bridge) -> None:
    """Work that takes too long is cancelled, and the next call is served."""
    cancelled = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def quick() -> int:
        return 1

    with pytest.raises(TimeoutError):
        bridge.call(endless(), patience=0.0)
    assert cancelled.wait(10)
    assert 1 == bridge.call(quick())


def test_a_closed_bridge_runs_nothing() -> None:
    """Closing cancels what is under way, ends the thread, may be said twice; calls afterwards raise Closed."""
    bridge = Bridge("test")
    began, errors = threading.Event(), list[BaseException]()

    async def endless() -> None:
        began.set()
        await asyncio.Event().wait()

    def call() -> None:
        try:
            bridge.call(endless())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is looked at below
            errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    assert began.wait(10)
    bridge.close()
    bridge.close()
    caller.join(10)

    assert ["CancelledError"] == [type(error).__name__ for error in errors]
    assert "test" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(Closed):
        bridge.call(asyncio.sleep(0))


def test_the_loop_does_not_wait_for_itself(bridge: Bridge) -> None:
    """A call from the bridge's own loop could never return; it raises instead."""

    async def inner() -> None:
        bridge.call(asyncio.sleep(0))

    with pytest.raises(RuntimeError, match="itself"):
        bridge.call(inner())


def test_many_threads_call_at_once(bridge: Bridge) -> None:
    """Each gets its own answer."""
    answers: dict[int, int] = {}

    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    def call(number: int) -> None:
        answers[number] = bridge.call(double(number))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {number: 2 * number for number in range(32)} == answers
