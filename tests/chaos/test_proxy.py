"""A link does to answers what its fault says, and nothing else: what judges others is judged first."""

from __future__ import annotations

import asyncio
import random
import socket
import socketserver
import threading
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from gateway.stack.ports import LOOPBACK, free_port
from tests.chaos.proxy import SOUND, Fault, Link

WORDS = bytes(range(200))


class _Again(socketserver.BaseRequestHandler):
    """Says everything again."""

    def handle(self) -> None:
        with suppress(ConnectionError):
            while said := self.request.recv(1024):
                self.request.sendall(said)


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    with socketserver.ThreadingTCPServer((LOOPBACK, 0), _Again) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        link = Link(f"{LOOPBACK}:{free_port()}", f"{LOOPBACK}:{server.server_address[1]}", random.Random(1))
        try:
            yield link
        finally:
            await link.close()
            server.shutdown()


async def said(link: Link, words: bytes = WORDS) -> bytes:
    """What comes back before the connection ends; all that was sent, if nothing is wrong."""
    return await asyncio.to_thread(_said, int(link.here.rpartition(":")[2]), words)


def _said(port: int, words: bytes) -> bytes:
    answer = b""
    with socket.create_connection((LOOPBACK, port), timeout=10.0) as connection, suppress(ConnectionResetError):
        connection.sendall(words)
        while len(answer) < len(words) and (piece := connection.recv(1024)):
            answer += piece
    return answer


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        (SOUND, WORDS),
        (Fault(latency=0.001, bandwidth=1_000_000), WORDS),
        (Fault(cut=7), WORDS[:7]),
        (Fault(halve=True), WORDS[:100]),
        (Fault(reset=True), b""),
    ],
    ids=["sound", "late and narrow", "cut", "halved", "reset"],
)
async def test_an_answer_is_what_the_fault_leaves_of_it(link: Link, fault: Fault, answer: bytes) -> None:
    await link.set(fault)
    assert answer == await said(link)
    assert (1, len(answer), len(answer) < len(WORDS)) == (
        link.count.connections,
        link.count.answered,
        link.count.broken,
    )


async def test_a_bit_turns_in_some_bytes(link: Link) -> None:
    await link.set(Fault(flip=10))
    answer = await said(link)
    turned = [one ^ other for one, other in zip(answer, WORDS, strict=True) if one != other]
    assert 5 < len(turned) < 50
    assert {1} == {each.bit_count() for each in turned}
    assert len(turned) == link.count.broken


async def test_what_hangs_goes_on_when_it_is_mended(link: Link) -> None:
    await link.set(Fault(hang=True))
    waiting = asyncio.create_task(said(link))
    done, _ = await asyncio.wait({waiting}, timeout=0.2)
    assert not done
    await link.set(SOUND)
    assert WORDS == await waiting


async def test_a_link_that_refuses_lets_nobody_in_until_it_is_mended(link: Link) -> None:
    await link.set(SOUND)
    await link.set(Fault(refuse=True))
    with pytest.raises(ConnectionRefusedError):
        await said(link)
    await link.set(SOUND)
    assert WORDS == await said(link)


async def test_a_status_is_answered_to_every_request(link: Link) -> None:
    """With what it came with read to its end, so that the next request on the connection is one."""
    await link.set(Fault(status=503))
    asked = b"PUT /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
    answer = await said(link, asked + asked)
    assert answer.startswith(b"HTTP/1.1 503")
    assert 2 == link.count.broken
