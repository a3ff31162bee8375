"""Departures: what a gateway holds of files that it reads and sends stays within a bound, and everybody has a turn."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial

import grpc
import pytest
from anyio import wait_all_tasks_blocked
from hypothesis import given
from hypothesis import strategies as st

from gateway.departures import Departures, Reader
from gateway.errors import Overloaded
from gateway.wire import CHUNK_BYTES as PIECE
from gateway.wire import Reply
from reprise.v1.media_pb2 import DownloadRequest
from reprise.v1.media_pb2_grpc import MediaServiceStub
from tests.gateway.test_pictures import file_of, noise
from tests.gateway.world import MIB, World, ask, eventually, outcome, problem_of

BOUND = 100 * PIECE
FOREVER = 1e9
_OWN_CHANNEL = (  # which takes no more than 64 KiB that nobody has read
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.http2.bdp_probe", 0),
)


async def read(departures: Departures, reader: Reader, size: int) -> int:
    """What is held while a file is read."""
    with reader.departure.being_read():
        await reader.departure.reserve(size)
        held = departures.bytes
        await asyncio.sleep(0)
    return held


@given(st.lists(st.integers(0, 120), max_size=12))
def test_all_are_sent_and_no_more_is_held_than_fits(sizes: list[int]) -> None:
    """Many at once, of any size; over the bound is at most one that is alone; nothing is left in the end."""
    held = asyncio.run(_all_are_sent([size * PIECE for size in sizes]))

    assert len(sizes) == len(held)
    assert all(bytes_ <= BOUND or bytes_ in {2 * size * PIECE for size in sizes} for bytes_ in held)


async def _all_are_sent(sizes: list[int]) -> list[int]:
    departures = Departures(BOUND, patience=FOREVER, longest_wait=FOREVER)

    async def send(number: int, size: int) -> int:
        with departures.one(number) as reader:
            held = await read(departures, reader, size)
            await asyncio.sleep(0)  # it is being sent
            return held

    held = await asyncio.gather(*(send(number, size) for number, size in enumerate(sizes)))
    assert (0, []) == (departures.bytes, departures.line)
    return held


async def test_a_file_counts_twice_while_it_is_read_and_once_while_it_is_sent() -> None:
    departures = Departures(BOUND)
    with departures.one("a") as reader:
        assert 20 * PIECE == await read(departures, reader, 10 * PIECE)
        assert 10 * PIECE == departures.bytes
    assert 0 == departures.bytes


async def test_a_file_of_one_message_waits_for_nobody() -> None:
    departures = Departures(1)
    with departures.one("large") as large, departures.one("small") as small:
        await read(departures, large, 2 * PIECE)
        await read(departures, small, PIECE)
        assert 2 * PIECE == departures.bytes


async def test_who_shares_a_read_shares_what_is_reserved() -> None:
    """Given back once: when the last of them has been sent it. Who comes after the read has one of his own."""
    departures = Departures(BOUND)
    with departures.one("a") as first:
        with departures.one("a") as second:
            assert first.departure is second.departure
            await read(departures, first, 10 * PIECE)
        assert 10 * PIECE == departures.bytes
        with departures.one("a") as late:
            assert late.departure is not first.departure
    assert 0 == departures.bytes


async def test_a_read_that_all_have_left_gives_back_at_its_end() -> None:
    departures = Departures(BOUND)
    with departures.one("a") as reader:
        reading = asyncio.create_task(read(departures, reader, 10 * PIECE))
        await asyncio.sleep(0)
    assert 20 * PIECE == departures.bytes
    await reading
    assert 0 == departures.bytes


async def test_the_line_is_served_in_turn() -> None:
    """A small one that would fit waits behind a large one that does not; one that leaves holds nobody up."""
    departures, log = Departures(BOUND), list[str]()

    async def send(name: str, size: int) -> None:
        with departures.one(name) as reader:
            await read(departures, reader, size)
            log.append(name)

    with departures.one("first") as first:
        await read(departures, first, 40 * PIECE)
        waiting = [asyncio.create_task(send(*each)) for each in (("left", 45 * PIECE), ("large", 40 * PIECE))]
        waiting.append(asyncio.create_task(send("small", 2 * PIECE)))
        await wait_all_tasks_blocked()
        assert ([], 3) == (log, len(departures.line))
        waiting[0].cancel()
    await asyncio.wait(waiting)
    assert (["large", "small"], 0, []) == (log, departures.bytes, departures.line)


async def test_nobody_waits_for_ever() -> None:
    """Who has waited for as long as anybody may is told to come again, and holds nothing."""
    departures = Departures(BOUND, patience=FOREVER, longest_wait=0.0)
    with departures.one("held") as held, departures.one("late") as late:
        await read(departures, held, 50 * PIECE)
        with pytest.raises(Overloaded) as caught:
            await read(departures, late, 50 * PIECE)
        assert ("GATEWAY_BUSY", 1.0) == (caught.value.reason, caught.value.retry_after)
        assert (50 * PIECE, []) == (departures.bytes, departures.line)


async def test_who_stands_still_gives_way() -> None:
    """Of two who stand still the one who did so for longer, as one is enough: what it would have been sent is let go of
    at once, and it is told when it moves.
    """
    now, ended = 0.0, list[str]()
    departures = Departures(BOUND, patience=0.0, longest_wait=FOREVER, clock=lambda: now)

    def messages(name: str) -> Iterator[bytes]:
        try:
            yield b"first"
            yield b"second"
        finally:
            ended.append(name)

    with departures.one(1) as longest, departures.one(2) as lately, departures.one(3) as waits:
        for name, reader in (("longest", longest), ("lately", lately)):
            await read(departures, reader, 40 * PIECE)
            reader.takes(messages(name))
            assert b"first" == next(reader)
            now += 1.0
        await read(departures, waits, 30 * PIECE)

        assert (["longest"], 70 * PIECE) == (ended, departures.bytes)
        assert b"second" == next(lately)
        with pytest.raises(Overloaded) as caught:
            next(longest)
        assert ("GATEWAY_BUSY", 1.0) == (caught.value.reason, caught.value.retry_after)
    assert (0, []) == (departures.bytes, departures.line)


async def test_who_moves_does_not_give_way() -> None:
    """Nor does who shares a file with somebody who moves."""
    now = [0.0]
    departures = Departures(BOUND, patience=0.01, longest_wait=0.05, clock=lambda: now[0])
    with departures.one(1) as still, departures.one(1) as moves, departures.one(2) as waits:
        await read(departures, still, 50 * PIECE)
        for reader in (still, moves):
            reader.takes(iter((b"first", b"second")))
            next(reader)
            now[0] += 0.006  # the one who shares it has moved since
        with pytest.raises(Overloaded):
            await read(departures, waits, 50 * PIECE)
        assert [b"second"] * 2 == [next(still), next(moves)]


async def test_who_stands_still_gives_way_though_others_come_and_go() -> None:
    """Whatever there is news of meanwhile, more often than anybody has patience for."""
    now = 0.0
    departures = Departures(BOUND, patience=FOREVER, longest_wait=FOREVER, clock=lambda: now)
    with departures.one("still") as still, departures.one("waits") as waits:
        await read(departures, still, 60 * PIECE)
        still.takes(iter((b"first", b"second")))
        next(still)
        waiting = asyncio.create_task(read(departures, waits, 25 * PIECE))
        await wait_all_tasks_blocked()
        now = 2 * FOREVER
        departures.look_again()
        assert 50 * PIECE == await waiting
        with pytest.raises(Overloaded):
            next(still)


async def test_nobody_waits_for_a_size_that_a_caller_has_claimed() -> None:
    """It waits until nobody else does, and holds nothing if there is no such file."""
    departures = Departures(BOUND, patience=FOREVER, longest_wait=FOREVER)
    with departures.one("held") as held, departures.one("claim", claimed=True) as claim:
        await read(departures, held, 20 * PIECE)
        claiming = asyncio.create_task(read(departures, claim, 2**60))
        await wait_all_tasks_blocked()
        with departures.one("believed") as believed:
            assert 60 * PIECE == await read(departures, believed, 20 * PIECE)
        assert not claiming.done()
        claim.departure.found_nothing()
        held.departure.leave(held)
        await claiming
        claim.departure.found_nothing()
        claim.departure.settle()
        assert 0 == departures.bytes


async def test_whom_nobody_waits_for_any_more_leaves_the_line() -> None:
    departures = Departures(BOUND, patience=FOREVER, longest_wait=FOREVER)
    with departures.one("held") as held:
        await read(departures, held, 50 * PIECE)
        with departures.one("leaves") as leaves:
            waiting = asyncio.create_task(read(departures, leaves, 50 * PIECE))
            await wait_all_tasks_blocked()
        with pytest.raises(Overloaded):
            await waiting
        assert [] == departures.line


async def test_the_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.departures._MOST_WAITING", 1)
    departures = Departures(BOUND, patience=FOREVER, longest_wait=FOREVER)
    with departures.one("held") as held, departures.one("waits") as waits, departures.one("late") as late:
        await read(departures, held, 50 * PIECE)
        waiting = asyncio.create_task(read(departures, waits, 50 * PIECE))
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded):
            await read(departures, late, PIECE * 2)
        held.departure.leave(held)
        await waiting


# A real gateway.


@pytest.mark.parametrize("how", ["hit", "download"])
async def test_a_caller_who_stands_still_is_told_to_ask_again(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """There is room for one file: the one who waits gets his, the other hears why he did not get the rest. Nobody holds
    that file any more by then, which counts here for more than what is said of it.
    """
    monkeypatch.setattr("gateway.serve.Departures", partial(Departures, patience=0.0, longest_wait=FOREVER))
    size = 16 * MIB
    worker = await world.worker()
    maker = await world.desk(worker)
    made = [await maker.animate(name, extra={"size": size}) for name in ("one", "two")]
    assert ["durable"] * 2 == [await maker.stored(each) for each in made]
    desk = await world.desk(worker, cache=world.only("l3"), max_departing_bytes=1)
    copies = partial(_copies, made[0].result.artifact.hex)
    before = copies()
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(desk.address, options=_OWN_CHANNEL))
        stub = MediaServiceStub(channel)
        still = aiter(stub.AnimateImage(ask("one", extra={"size": size})))
        await anext(still)
        await eventually(lambda: desk.metric("reprise_departing_bytes"), wanted=lambda held: held == size)
        assert before + 1 == copies()
        if how == "hit":
            assert "hit from L3" == outcome(await desk.animate("two", extra={"size": size}))
        else:
            assert made[1].data == await desk.client.download(made[1].result.artifact)
        assert before == copies()

        async def rest() -> None:
            async for _ in still:
                pass

        problem = await problem_of(rest())
    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "GATEWAY_BUSY", 1.0) == (
        problem.code,
        problem.reason,
        problem.retry_after,
    )
    await eventually(lambda: desk.metric("reprise_departing_bytes"), wanted=lambda held: held == 0)


async def test_a_download_from_memory_waits_for_nobody(world: World) -> None:
    """Whichever of its caller's namespaces the file lies in, and however many stand still."""
    desk = await world.desk(await world.worker(), max_departing_bytes=1)
    uploaded = (await desk.client.upload(file_of(noise((900, 700)), "PNG"))).digest
    assert uploaded.size > PIECE
    await desk.client.download(uploaded)
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(desk.address, options=_OWN_CHANNEL))
        for _ in range(3):
            still = aiter(MediaServiceStub(channel).Download(DownloadRequest(artifact=uploaded)))
            await anext(still)
            assert 0 == await desk.metric("reprise_departing_bytes")


def _copies(digest: str) -> int:
    """How often a file is held in wire form."""
    gc.collect()
    replies = [each for each in gc.get_objects() if type(each) is Reply]  # asking others for their class wakes them
    return sum(reply.record.output.digest.hex == digest for reply in replies)


async def test_equal_requests_share_the_room_and_the_read(world: World) -> None:
    """Twenty at once through a gateway whose room is smaller than one file: one read, and everybody is answered."""
    size = 4 * MIB
    worker = await world.worker()
    maker = await world.desk(worker)
    made = await maker.animate(extra={"size": size})
    assert "durable" == await maker.stored(made)
    desk = await world.desk(worker, cache=world.only("l3"), max_departing_bytes=1)
    hits = await asyncio.gather(*(desk.animate(extra={"size": size}) for _ in range(20)))
    files = await asyncio.gather(*(desk.client.download(made.result.artifact) for _ in range(20)))

    assert {made.data} == {each.data for each in hits} == set(files)
    served = await desk.metric("reprise_cache_served_bytes_total", tier="l3")
    assert size * 2 <= served < size * 20
    await eventually(lambda: desk.metric("reprise_departing_bytes"), wanted=lambda held: held == 0)
