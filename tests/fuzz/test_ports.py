"""Live ports under malformed traffic: a gateway goes on serving, and has its memory, tasks and descriptors back."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.stack.envoy import envoy
from gateway.stack.ports import LOOPBACK, free_port
from tests import servers
from tests.fuzz.frames import MIB, Attack, attacks, random_attacks, web_attacks
from tests.gateway.conftest import world as world
from tests.gateway.world import Desk, World, eventually, outcome

SERVING = health_pb2.HealthCheckResponse.SERVING
_AT_ONCE = 16  # connections
_HEARD_OUT = 0.3  # seconds that a connection listens after it has said all
_SLOWEST = 5.0  # seconds in which a health check is answered, on a machine with other things to do
_MOST_GROWN = 64 * MIB  # of the process, attackers included
_PROCESS = psutil.Process()


async def strike(port: int, attack: Attack) -> bytes:
    """Say it all, listen a moment, and leave; what was answered."""
    heard = bytearray()
    reader, writer = await asyncio.open_connection(LOOPBACK, port)

    async def listen() -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(65_536):
                heard.extend(piece[: 65_536 - len(heard)])

    listening = asyncio.create_task(listen())
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(10.0):
            for piece in attack.pieces:
                writer.write(piece)
                await writer.drain()
    await asyncio.wait({listening}, timeout=_HEARD_OUT)
    listening.cancel()
    writer.transport.abort()
    await asyncio.gather(listening, return_exceptions=True)
    return bytes(heard)


async def strike_all(port: int, several: Iterable[Attack]) -> dict[str, bytes]:
    free = asyncio.Semaphore(_AT_ONCE)
    answers: dict[str, bytes] = {}

    async def one(attack: Attack) -> None:
        async with free:
            answers[attack.name] = await strike(port, attack)

    async with asyncio.TaskGroup() as group:
        for attack in several:
            group.create_task(one(attack))
    return answers


@asynccontextmanager
async def probed(address: str) -> AsyncIterator[list[float]]:
    """Ask for health all the while, as an orchestrator does: seconds that each answer took. Envoy's own answer is one
    too: it takes a gateway that shares its loop with the attackers for ill when they keep it busy.
    """
    took: list[float] = []

    async def probe(stub: health_pb2_grpc.HealthStub) -> None:
        while True:
            began = time.monotonic()
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_SLOWEST)
            except grpc.aio.AioRpcError as error:
                if error.details() != "no healthy upstream":
                    raise
            else:
                assert answer.status == SERVING
            took.append(time.monotonic() - began)
            await asyncio.sleep(0.02)

    async with grpc.aio.insecure_channel(address) as channel:
        probing = asyncio.create_task(probe(health_pb2_grpc.HealthStub(channel)))
        try:
            yield took
        finally:
            probing.cancel()
            await asyncio.wait({probing})
        if not probing.cancelled():
            probing.result()


async def held() -> tuple[int, int]:
    """Descriptors and tasks of this process."""
    return _PROCESS.num_fds(), len(asyncio.all_tasks())


async def back_to(before: tuple[int, int]) -> tuple[int, int]:
    """What is held once it is no more than before, or in the end."""
    with suppress(TimeoutError):
        return await eventually(held, wanted=lambda now: now[0] <= before[0] and now[1] <= before[1])
    return await held()


async def accepted(desk: Desk) -> int:
    """Connections that the gateway has taken. Descriptors alone would not tell them from those it has to its stores."""
    taken = (each for each in _PROCESS.net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED)
    return sum(each.laddr.port == desk.gateway.port for each in taken)


def memory() -> int:
    gc.collect()
    return int(_PROCESS.memory_info().rss)


async def warm(desk: Desk, attack: Attack) -> None:
    """Whatever is made once, for all calls and connections, is made, and nothing is under way."""
    await desk.stored(await desk.animate())
    await strike_all(desk.gateway.port, [attack._replace(name=str(number)) for number in range(2 * _AT_ONCE)])


async def test_a_gateway_outlives_malformed_traffic(world: World) -> None:
    """Each attack alone, hundreds of random ones, and the floods: health is answered all the while; what was held for
    them is given back."""
    desk = await world.desk(await world.worker())
    several = [*attacks()]
    await warm(desk, several[1])
    before, rss = await held(), memory()
    async with probed(desk.address) as took:
        answers = await strike_all(desk.gateway.port, [*several, *random_attacks(20_261, 300)])
    after, grown = await back_to(before), memory() - rss

    assert len(several) + 300 == len(answers)
    assert len(took) > 10
    assert max(took) < _SLOWEST
    assert (after[0] <= before[0], after[1] <= before[1]) == (True, True), (before, after)
    assert grown < _MOST_GROWN
    assert "hit from L1" == outcome(await desk.animate())
    assert "miss" == outcome(await desk.animate("another one"))


async def test_two_hundred_connections_that_say_little_keep_nobody_out(world: World) -> None:
    """Some have begun a preface, some a call; when they leave, nothing of theirs stays."""
    desk = await world.desk(await world.worker())
    by_name = {attack.name: attack for attack in attacks()}
    await warm(desk, by_name["half a preface"])
    before = await accepted(desk)
    writers = []
    for number in range(200):
        _, writer = await asyncio.open_connection(LOOPBACK, desk.gateway.port)
        name = "63 MiB announced, and silence" if number % 2 else "half a preface"
        writer.write(b"".join(by_name[name].pieces))
        writers.append(writer)
    await eventually(lambda: accepted(desk), wanted=lambda now: now >= before + 200)
    async with probed(desk.address) as took:
        answered = [outcome(await desk.animate(f"cat {number}")) for number in range(5)]
    for writer in writers:
        writer.transport.abort()
    await eventually(lambda: accepted(desk), wanted=lambda now: now == before)

    assert ["miss"] * 5 == answered
    assert max(took) < _SLOWEST


async def test_envoy_and_the_gateway_outlive_malformed_grpc_web(world: World, tmp_path: Path) -> None:
    """Whatever a browser's caller writes, the next request is answered; health is, all the while."""
    desk = await world.desk(await world.worker())
    await desk.stored(await desk.animate())
    port, data = free_port(), tmp_path / "data"
    part = envoy(port, [desk.address], [], data / "envoy", data / "logs" / "envoy.log")
    with servers.leashed(data) as stack:
        await asyncio.to_thread(stack.up, [part])
        several = [*web_attacks()]
        good = several[0]._replace(name="good", pieces=[_health(port)])
        await strike_all(port, several)
        before, rss = await held(), memory()
        async with probed(desk.address) as took, probed(part.address) as through:
            answers = await strike_all(port, [*several, *random_attacks(20_262, 100)])
        after = await back_to(before)
        last = await eventually(lambda: strike(port, good), wanted=_is_well)
        alive = psutil.Process(stack.part("envoy").pid).is_running()
        await asyncio.to_thread(stack.down)

    assert len(several) + 100 == len(answers)
    assert min(len(took), len(through)) > 5
    assert max(*took, *through) < _SLOWEST
    assert (after[0] <= before[0], after[1] <= before[1]) == (True, True), (before, after)
    assert memory() - rss < _MOST_GROWN
    assert alive
    assert b"HTTP/1.1 200 OK" in last
    refused = [name for name, answer in answers.items() if answer.startswith(b"HTTP/1.1 400")]
    assert {"chunks that are none", "two lengths", "no HTTP"} <= set(refused)


def _is_well(answer: bytes) -> bool:
    return b"grpc-status:0" in answer.replace(b" ", b"")


def _health(port: int) -> bytes:
    """A right call of grpc-web."""
    head = "POST /grpc.health.v1.Health/Check HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/grpc-web+proto"
    return f"{head}\r\nx-grpc-web: 1\r\ncontent-length: 5\r\n\r\n".encode() + bytes(5)
