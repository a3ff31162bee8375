"""Stock: what is at hand is counted, moved in order, and given back, whatever happens on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import structlog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.bans import Ban, Bans
from cache.condition import Condition
from cache.digest import Digest
from cache.keys import Address
from cache.record import Output, Record
from inference import tensors
from inference.device import DeviceThread
from inference.models.base import Tensors
from inference.pool import Hot, Pool
from inference.stock import Stock
from tests.inference.scripted_device import Clock, ScriptedDevice, out_of_memory
from tests.inference.worker_fixtures import PATIENCE, until

KIB = 1024


def address(number: int) -> Address:
    return Address("0" * 32, f"{number:064x}")


def record(number: int, *, ttl: float = 60.0, expires_at: float = 1e12) -> Record:
    return Record(
        address=address(number),
        model="m",
        revision="1",
        stage="text",
        fingerprint="f",
        output=Output(Digest.of(b""), "application/vnd.safetensors"),
        device_seconds=1.0,
        total_device_seconds=1.0,
        made_at=1000.0,
        touched_at=1000.0,
        ttl=ttl,
        expires_at=expires_at,
    )


def numbers(number: int, kib: int = 1) -> Tensors:
    return {"t": torch.full((kib * KIB // 4,), float(number))}


class Shelf:
    """A stock over a scripted device, with entries named by numbers."""

    def __init__(self, device: ScriptedDevice, pool: Pool, host: Pool, beside: DeviceThread) -> None:
        self.device, self.pool, self.host = device, pool, host
        self.stock = Stock(pool, host, beside)

    async def make(self, number: int, kib: int = 1) -> bool:
        """As a stage does: on the device, then kept."""
        return await self.stock.keep(Hot(self.device.adopt(numbers(number, kib)), kib * KIB, record(number)))

    async def bring(self, number: int, kib: int = 1) -> bool:
        return await self.stock.bring(record(number), tensors.to_bytes(numbers(number, kib)))

    @property
    def on_device(self) -> set[int]:
        return {number for number in range(100) if self.pool.peek(address(number))}

    @property
    def on_host(self) -> set[int]:
        return {number for number in range(100) if self.host.peek(address(number))}


@contextmanager
def shelf(
    *,
    pool: int = 2 * KIB,
    host: int = 8 * KIB,
    entries: int | None = None,
    device: ScriptedDevice | None = None,
) -> Iterator[Shelf]:
    used = device or ScriptedDevice()
    beside = DeviceThread(used, "beside", beside=True)
    try:
        yield Shelf(
            used,
            Pool(max_bytes=pool, max_entries=entries, clock=used.clock),
            Pool(max_bytes=host, clock=used.clock),
            beside,
        )
    finally:
        beside.close()


async def test_who_leaves_the_device_is_kept_in_the_hosts_memory() -> None:
    """And comes back from there, bit for bit, when it is wanted; it lies in one place at a time."""
    with shelf() as held:
        for number in (1, 2, 3):
            assert await held.make(number)
        assert (held.on_device, held.on_host) == ({2, 3}, {1})

        assert await held.stock.promote(address(1))
        assert (held.on_device, held.on_host) == ({1, 3}, {2})
        hot = held.pool.peek(address(1))
        assert hot is not None
        assert torch.equal(hot.tensors["t"], numbers(1)["t"])
        assert held.device.has(hot.tensors["t"])
        assert (held.stock.demotions, held.stock.promotions) == (2, 1)
        await until(lambda: held.device.used == held.pool.bytes == 2 * KIB)


async def test_what_is_made_again_lies_in_one_place() -> None:
    """Also where its earlier copy was on the way to the host just then."""
    with shelf() as held:
        for number in (1, 2, 3, 1):
            await held.make(number)
        assert (held.on_device, held.on_host) == ({3, 1}, {2})

        held.device.way_out.close()
        first = asyncio.create_task(held.make(4))  # 3 leaves
        await held.device.way_out.reached()
        again = asyncio.create_task(held.make(3))
        await until(lambda: address(3) in held.pool)
        held.device.way_out.open()
        await asyncio.gather(first, again)
        assert (held.on_device, held.on_host) == ({4, 3}, {1, 2})


async def test_the_top_ten_stay() -> None:
    """Entries are counted beside bytes; the eleventh moves to the host."""
    with shelf(pool=100 * KIB, host=100 * KIB, entries=10) as held:
        for number in range(11):
            await held.make(number)
        assert (held.on_device, held.on_host) == (set(range(1, 11)), {0})


async def test_room_is_free_before_it_is_used() -> None:
    """What has to leave is out before the newcomer comes in, so that the bound holds at every moment."""
    with shelf(device=ScriptedDevice(capacity=2 * KIB)) as held:
        for number in (1, 2, 3, 4):
            assert await held.bring(number)
        assert held.device.moves == [("in", KIB), ("in", KIB), ("out", KIB), ("in", KIB), ("out", KIB), ("in", KIB)]
        assert held.device.most_used == 2 * KIB


async def test_copies_take_the_time_of_their_bytes() -> None:
    """A promotion costs a copy out and a copy in where the pool is full, and nothing where it is not."""
    clock = Clock()
    with shelf(device=ScriptedDevice(bytes_per_second=KIB, clock=clock)) as held:
        await held.make(1)
        await held.make(2)
        assert clock.now == 1000.0
        await held.make(3)
        assert clock.now == 1001.0
        await held.stock.promote(address(1))
        assert clock.now == 1003.0


async def test_what_is_on_its_way_has_its_room_and_is_not_found() -> None:
    """Until it has arrived nobody leases it, nobody brings it twice, and its bytes are counted."""
    with shelf() as held:
        held.device.way_in.close()
        coming = asyncio.create_task(held.bring(1))
        await held.device.way_in.reached()
        assert held.pool.bytes == KIB
        assert held.pool.lease(address(1)) is None
        again = asyncio.create_task(held.bring(1))
        held.device.way_in.open()
        assert await coming
        assert await again
        assert held.pool.lease(address(1)) is not None
        assert held.device.moves == [("in", KIB)]


async def test_a_caller_that_leaves_does_not_leave_a_copy_without_room() -> None:
    """A copy under way goes on to its end, in the room it has."""
    with shelf() as held:
        held.device.way_in.close()
        coming = asyncio.create_task(held.bring(1))
        await held.device.way_in.reached()
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        assert held.pool.bytes == KIB
        held.device.way_in.open()
        await until(lambda: held.on_device == {1})
        assert held.device.used == held.pool.bytes == KIB


async def test_without_room_in_the_host_who_leaves_is_gone() -> None:
    """The tiers have it; nothing is copied for it."""
    with shelf(host=0) as held:
        for number in (1, 2, 3):
            await held.make(number)
        assert (held.on_device, held.on_host) == ({2, 3}, set())
        assert held.device.moves == []


async def test_a_demotion_that_fails_fails_nothing() -> None:
    """It is logged without words, the newcomer comes in, and no byte stays counted for what is gone."""

    def fail() -> None:
        raise RuntimeError("a secret cat")

    with shelf() as held, structlog.testing.capture_logs() as logs:
        held.device.trouble["out"] = [fail]
        for number in (1, 2, 3):
            assert await held.make(number)
        assert (held.on_device, held.on_host) == ({2, 3}, set())
        assert (held.host.bytes, held.stock.demotions) == (0, 0)
    assert [entry["event"] for entry in logs] == ["not demoted"]
    assert "secret" not in str(logs)


async def test_a_device_without_memory_gives_the_room_back() -> None:
    """What could not be copied stays where it was."""
    with shelf(pool=8 * KIB, device=ScriptedDevice(capacity=2 * KIB)) as held:
        await held.bring(1)
        await held.bring(2)
        assert not await held.bring(3)
        assert (held.pool.bytes, held.on_device) == (2 * KIB, {1, 2})


async def test_a_copy_that_fails_for_another_reason_says_so() -> None:
    """And gives its room back all the same."""

    def fail() -> None:
        raise RuntimeError("a fault")

    with shelf() as held:
        held.device.trouble["in"] = [fail]
        with pytest.raises(RuntimeError, match="a fault"):
            await held.bring(1)
        assert held.pool.bytes == 0


async def test_bytes_that_are_no_tensors_take_no_room() -> None:
    """They are refused before anything leaves for them."""
    with shelf() as held:
        with pytest.raises(ValueError, match="safetensors"):
            await held.stock.bring(record(1), b"nonsense")
        assert held.pool.bytes == 0


async def test_a_smaller_bound_moves_what_is_too_much() -> None:
    """To the host; what is leased stays."""
    with shelf(pool=4 * KIB) as held:
        for number in (1, 2, 3):
            await held.make(number)
        held.pool.lease(address(1))
        await held.stock.resize(KIB)
        assert (held.on_device, held.on_host) == ({1}, {2, 3})
        await until(lambda: held.device.used == KIB)


async def test_an_emptied_pool_lets_nothing_in() -> None:
    """What is on its way arrives and leaves again; what a run has leased stays; afterwards all is as before."""
    with shelf(pool=8 * KIB) as held:
        await held.make(1)
        await held.make(2)
        held.pool.lease(address(1))
        held.device.way_in.close()
        coming = asyncio.create_task(held.bring(3))
        await held.device.way_in.reached()
        asyncio.get_running_loop().call_later(0, held.device.way_in.open)

        async with held.stock.emptied(lambda: None):
            assert (held.on_device, held.on_host) == ({1}, {2, 3})
            assert held.device.used == KIB
            assert not await held.make(4)
            assert not await held.bring(5)
            assert not await held.stock.promote(address(2))
        await coming
        assert await held.stock.promote(address(2))


async def test_a_pinned_entry_stays_until_its_hard_age() -> None:
    """However long nobody asks for it; then its room is free again, and the next one made is pinned too."""
    clock = Clock()
    with shelf(device=ScriptedDevice(clock=clock)) as held:
        held.pool.pin(address(1))
        own = held.device.adopt(numbers(1))
        await held.stock.keep(Hot(own, KIB, record(1, ttl=10.0, expires_at=1500.0)))
        clock.now = 1400.0
        for number in (2, 3, 4):
            await held.make(number)
        assert held.pool.lease(address(1)) is not None
        held.pool.release(address(1))
        assert (held.pool.pinned, held.pool.missing) == (1, set())

        clock.now = 1500.0
        assert held.pool.lease(address(1)) is None
        await held.make(5)
        assert (held.pool.pinned, held.pool.missing) == (0, {address(1)})
        await held.make(1)
        assert held.pool.pinned == 1


async def test_what_is_there_already_can_be_pinned_and_unpinned() -> None:
    """Also while a run has leased it: then from when it is released."""
    with shelf() as held:
        await held.make(1)
        held.pool.lease(address(1))
        held.pool.pin(address(1))
        assert held.pool.pinned == 0
        held.pool.release(address(1))
        assert held.pool.pinned == 1
        await held.make(2)
        await held.make(3)
        assert held.on_device == {1, 3}
        held.pool.unpin(address(1))
        await held.make(4)
        await held.make(5)
        assert held.on_device == {4, 5}


async def test_a_newer_copy_takes_the_place_of_an_older_one() -> None:
    """Which may be too old for who wants it; an older one never comes back."""
    with shelf() as held:
        for made_at in (1000.0, 1001.0, 1000.5):
            assert await held.stock.bring(replace(record(1), made_at=made_at), tensors.to_bytes(numbers(1)))
        hot = held.pool.peek(address(1))
        assert hot is not None
        assert 1001.0 == hot.record.made_at


async def test_a_pin_is_no_excuse_to_keep_what_is_banned() -> None:
    """It goes at once, from both pools; what is made in its place is pinned."""
    with shelf() as held:
        held.pool.pin(address(1))
        await held.make(1)
        await held.make(2)
        await held.make(3)
        gone = await held.stock.let_go(Bans([Ban(2000.0, Condition(stage="text"))]))
        assert (gone.entries, gone.bytes) == (3, 3 * KIB)
        assert held.on_device == held.on_host == set()
        assert held.pool.missing == {address(1)}


async def test_emptying_takes_pins_too_and_remembers_them() -> None:
    """A run that needs all the memory there is comes before favourites."""
    with shelf() as held:
        held.pool.pin(address(1))
        await held.make(1)
        async with held.stock.emptied(lambda: None):
            assert held.device.used == 0
        assert (held.on_host, held.pool.missing) == ({1}, {address(1)})
        assert await held.stock.promote(address(1))
        assert held.pool.pinned == 1


# Law 10: whatever is done in whatever order, at once or one after the other, and whatever fails on the way.

_STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("make", "bring", "promote", "lease", "release", "pin", "unpin", "resize", "empty", "ban", "fail", "time")
        ),
        st.integers(0, 5),
        st.integers(1, 3),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps=_STEPS, host=st.integers(0, 4), capacity=st.integers(4, 12))
def test_bytes_are_reserved_before_use_and_given_back_once(
    steps: list[tuple[str, int, int]], host: int, capacity: int
) -> None:
    """After every step the device holds what the pool counts, never more than the bounds, and in the end nothing."""

    async def play() -> None:
        device = ScriptedDevice(capacity=capacity * KIB)
        with shelf(pool=4 * KIB, host=host * KIB, entries=3, device=device) as held:
            leases: list[Address] = []
            waiting: list[Coroutine[Any, Any, object]] = []
            for verb, number, kib in steps:
                do(held, verb, number, kib, leases, waiting)
                if verb in ("time", "release", "empty") or len(waiting) == 3:
                    await asyncio.gather(*waiting)
                    waiting.clear()
                    await check(held)
            await asyncio.gather(*waiting)
            await check(held)
            for leased in leases:
                held.pool.release(leased)
            for number in range(6):
                held.pool.unpin(address(number))
            held.pool.clear()
            held.host.clear()
            assert (held.pool.bytes, held.host.bytes, len(held.pool), len(held.host)) == (0, 0, 0, 0)
            await until(lambda: device.used == 0)

    def do(
        held: Shelf,
        verb: str,
        number: int,
        kib: int,
        leases: list[Address],
        waiting: list[Coroutine[Any, Any, object]],
    ) -> None:
        moves: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "make": lambda: make(held, number, kib),
            "bring": lambda: held.bring(number, kib),
            "promote": lambda: held.stock.promote(address(number)),
            "resize": lambda: held.stock.resize(kib * KIB),
            "empty": lambda: empty(held),
            "ban": lambda: held.stock.let_go(Bans([Ban(2000.0, Condition(digest=address(number).content_id))])),
        }
        match verb:
            case "lease":
                if held.pool.lease(address(number)) is not None:
                    leases.append(address(number))
            case "release":
                if leases:
                    held.pool.release(leases.pop(number % len(leases)))
            case "pin":
                held.pool.pin(address(number))
            case "unpin":
                held.pool.unpin(address(number))
            case "fail":
                held.device.trouble["in" if number % 2 else "out"].append(out_of_memory)
            case "time":
                held.device.clock.now += number * 15.0
            case _:
                waiting.append(moves[verb]())

    async def make(held: Shelf, number: int, kib: int) -> None:
        try:
            await held.make(number, kib)
        except torch.OutOfMemoryError:
            assert held.device.used + kib * KIB > held.device.capacity

    async def empty(held: Shelf) -> None:
        async with held.stock.emptied(lambda: None):
            pass

    async def check(held: Shelf) -> None:
        await until(lambda: held.device.used == held.pool.bytes)  # a thread lets go of its last work a little later
        assert len(held.pool) <= 3
        assert held.host.bytes <= held.host.max_bytes
        assert held.pool.bytes <= 4 * KIB
        assert not held.on_device & held.on_host
        assert held.pool.bytes == sum(hot.weight for _, hot in held.pool._entries.items())

    with structlog.testing.capture_logs():
        asyncio.run(asyncio.wait_for(play(), PATIENCE))
