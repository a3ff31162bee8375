"""Links that can be broken: a process of its own which passes bytes on between us and a server, well or badly.

`python -m tests.chaos.proxy` reads a line of JSON for each order from its input and answers each with a line: what
passed over every link so far. It ends with its input, and so with whoever started it.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Self

import uvloop

_PIECE = 64 * 1024


@dataclass(frozen=True)
class Fault:
    """What is wrong with a link; as it stands here, nothing. Of what a server answers, if not said otherwise."""

    latency: float = 0.0  # seconds by which each piece comes late
    hang: bool = False  # connections stand, and nothing passes in any direction
    refuse: bool = False  # those there are end, and no more are taken
    reset: bool = False  # they end as soon as a server answers
    cut: int = 0  # an answer ends after so many bytes, and the connection with it
    halve: bool = False  # it ends in the middle of its first piece
    flip: int = 0  # a bit turns in one byte of so many, wherever chance wants it
    bandwidth: int = 0  # bytes per second and connection
    status: int = 0  # the server is not asked: every HTTP request gets this status


SOUND = Fault()


@dataclass
class Count:
    """What passed over a link."""

    connections: int = 0
    answered: int = 0  # bytes
    broken: int = 0  # answers that were cut, reset or refused, bits that were turned


class Link:
    """One listening socket and what stands behind it. `here` and `there` are host:port, or the path of a socket."""

    def __init__(self, here: str, there: str, chance: random.Random) -> None:
        self.count = Count()
        self.here, self._there = here, there
        self._chance = chance
        self._fault = SOUND
        self._mended = asyncio.Event()
        self._mended.set()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    async def set(self, fault: Fault) -> None:
        if fault.status != self._fault.status:
            self._abort()  # who is answered by us and who by the server differs by connection
        self._fault = fault
        (self._mended.clear if fault.hang else self._mended.set)()
        if fault.refuse:
            await self.close()
        elif self._server is None:
            self._server = await _listen(self.here, self._serve)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._abort()
        for task in (serving := list(self._serving)):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    def _abort(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.count.connections += 1
        self._open.add(to_client)
        task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]  # there is one
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        to_server: asyncio.StreamWriter | None = None
        try:
            with suppress(OSError, EOFError, asyncio.LimitOverrunError, ValueError, asyncio.CancelledError):
                await self._mended.wait()
                if self._fault.status:
                    await self._answer_ourselves(client, to_client)
                    return
                server, to_server = await _connect(self._there)
                self._open.add(to_server)
                answer = _Answer()
                ways = {
                    asyncio.create_task(self._ask(client, to_server, answer)),
                    asyncio.create_task(self._tell(server, to_client, answer)),
                }
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        finally:
            for writer in (to_client, to_server):
                if writer is not None:
                    self._open.discard(writer)
                    writer.transport.abort() if self._fault.reset else writer.close()

    async def _ask(self, client: asyncio.StreamReader, server: asyncio.StreamWriter, answer: _Answer) -> None:
        while piece := await client.read(_PIECE):
            await self._mended.wait()
            answer.told = 0
            server.write(piece)
            await server.drain()

    async def _tell(self, server: asyncio.StreamReader, client: asyncio.StreamWriter, answer: _Answer) -> None:
        while piece := await server.read(_PIECE):
            await self._mended.wait()
            fault = self._fault
            if pause := fault.latency + (len(piece) / fault.bandwidth if fault.bandwidth else 0.0):
                await asyncio.sleep(pause)
            told = self._spoiled(piece, fault, answer.told)
            client.write(told)
            await client.drain()
            answer.told += len(told)
            self.count.answered += len(told)
            if len(told) < len(piece):
                self.count.broken += 1
                return

    def _spoiled(self, piece: bytes, fault: Fault, told: int) -> bytes:
        if fault.reset:
            return b""
        if fault.halve and not told:
            return piece[: len(piece) // 2]
        if fault.cut:
            piece = piece[: max(0, fault.cut - told)]
        return self._turned(piece, fault.flip) if fault.flip else piece

    def _turned(self, piece: bytes, each: int) -> bytes:
        turned = bytearray(piece)
        place = int(self._chance.expovariate(1 / each))
        while place < len(turned):
            turned[place] ^= 1 << self._chance.randrange(8)
            self.count.broken += 1
            place += 1 + int(self._chance.expovariate(1 / each))
        return bytes(turned)

    async def _answer_ourselves(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        body = b"<Error><Code>SlowDown</Code></Error>"
        while head := await client.readuntil(b"\r\n\r\n"):
            await client.readexactly(_length_of_body(head))
            status = self._fault.status
            if not status:
                return
            self.count.broken += 1
            to_client.write(b"HTTP/1.1 %d Fault\r\ncontent-length: %d\r\n\r\n" % (status, len(body)))
            to_client.write(b"" if head.startswith(b"HEAD") else body)
            await to_client.drain()


@dataclass
class _Answer:
    told: int = 0  # bytes since the last question


def _length_of_body(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return int(value)
    return 0


async def _listen(
    here: str, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> asyncio.Server:
    if "/" in here:
        return await asyncio.start_unix_server(serve, here)
    host, _, port = here.rpartition(":")
    return await asyncio.start_server(serve, host, int(port), backlog=1024)


async def _connect(there: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = there.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _obey() -> None:
    links: dict[str, Link] = {}
    orders = asyncio.StreamReader(limit=1024 * 1024)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        for name, wanted in json.loads(line).items():
            if name not in links:
                links[name] = Link(wanted["here"], wanted["there"], random.Random(name))
            await links[name].set(Fault(**wanted["fault"]))
        sys.stdout.write(json.dumps({name: asdict(link.count) for name, link in links.items()}) + "\n")
        sys.stdout.flush()
    for link in links.values():
        await link.close()


class Links:
    """All links of a stack, from the outside. Use as a context manager; `wanted` maps names to (here, there)."""

    def __init__(self, wanted: Mapping[str, tuple[str, str]]) -> None:
        self._wanted = dict(wanted)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.chaos.proxy"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.break_(self._wanted, SOUND)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.communicate()

    def break_(self, names: Iterable[str], fault: Fault) -> None:
        """Whatever was wrong with these before."""
        orders = {}
        for name in names:
            here, there = self._wanted[name]
            orders[name] = {"here": here, "there": there, "fault": asdict(fault)}
        self._say(orders)

    def mend(self) -> None:
        self.break_(self._wanted, SOUND)

    def named(self, *parts: str) -> list[str]:
        """The links whose names hold one of these words: of a process, or to a server."""
        return [name for name in self._wanted if any(part in name.split(" to ") for part in parts)]

    def counts(self) -> dict[str, Count]:
        return {name: Count(**count) for name, count in self._say({}).items()}

    def _say(self, orders: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(orders).encode() + b"\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


if __name__ == "__main__":
    uvloop.run(_obey())
