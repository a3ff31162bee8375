"""Peers: a generation lives in one gateway, and any gateway can be asked about it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.encoding import encode
from cache.keys import Principal
from gateway.errors import NotFound, Unauthenticated
from gateway.identity import Caller, Local
from gateway.peers import HEADER, Names, PeerIdentifier, Peers
from gateway.seals import seal, unseal
from reprise.v1.media_pb2 import GenerationEvent, Stored, WatchRequest
from tests.gateway.world import Desk, World, eventually, kinds, outcome, problem_of

SECRET = bytes(32)
OTHER = bytes([1]) * 32


async def test_a_generation_is_watched_through_another_gateway(world: World) -> None:
    """Its events are the same there, from the one asked for to `stored`, and nothing runs twice."""
    worker = await world.worker()
    gate = worker.hold("finished")
    first, second = await world.desk(worker), await world.desk(worker)
    follower = first.follow()
    name = await follower.name()
    watching = asyncio.create_task(_all(second, name, 2))
    await gate.reached.wait()
    gate.open()
    media, watched = await follower.media(), await watching

    assert [event.sequence for event in watched] == list(range(2, 2 + len(watched)))
    assert kinds(follower.events)[1:] == kinds(watched)[:-1]
    assert Stored.STATE_DURABLE == watched[-1].stored.state
    assert media.data == b"".join(event.chunk.data for event in watched)
    assert 1 == worker.generations


async def test_a_generation_is_cancelled_through_another_gateway(world: World) -> None:
    """Its work stops, and its caller is told that it was cancelled."""
    worker = await world.worker()
    worker.hold("step")
    first, second = await world.desk(worker), await world.desk(worker)
    follower = first.follow()
    await follower.seen("queued")
    await second.client.cancel(await follower.name())

    problem = await problem_of(follower.media())
    assert (grpc.StatusCode.CANCELLED, "CANCELLED_BY_CALLER") == (problem.code, problem.reason)
    await eventually(lambda: _value(worker.cancelled))


async def test_somebody_elses_generation_is_unknown_at_every_gateway(world: World, tmp_path: Path) -> None:
    """The caller's identity goes along when a question is passed on: another tenant learns nothing."""
    worker = await world.worker()
    worker.hold("finished")
    first = await world.desk(worker)
    other = await world.desk(worker)
    name = await first.follow().name()
    request = WatchRequest(name=name)
    stranger = Caller(Principal("stranger", "local"))
    async with Peers(world.cache.secret_bytes) as peers:
        with pytest.raises(NotFound):
            await anext(peers.watch(first.address, request, stranger))
    assert "GENERATION_UNKNOWN" == (await problem_of(_all(other, "made-up"))).reason


async def test_a_name_whose_gateway_is_gone_is_unknown(world: World) -> None:
    """NOT_FOUND tells to ask for the media again, which another gateway answers from the tiers."""
    worker = await world.worker()
    first, second = await world.desk(worker), await world.desk(worker)
    made = await first.animate()
    await first.stored(made)
    await first.close()

    assert "GENERATION_UNKNOWN" == (await problem_of(_all(second, made.name))).reason
    assert "hit from L2" == outcome(await second.animate())


@given(st.recursive(st.text() | st.integers() | st.binary(), lambda inner: st.lists(inner, max_size=3), max_leaves=6))
def test_what_was_sealed_is_unsealed_for_its_purpose_alone(value: object) -> None:
    """A sealed text opens with the same secret for the same purpose, and with nothing else."""
    text = seal(SECRET, "a", value)  # type: ignore[arg-type]
    assert text[0].isalpha()  # no command takes it for an option

    assert encode(value) == encode(unseal(SECRET, "a", text))  # type: ignore[arg-type]
    for secret, domain in ((OTHER, "a"), (SECRET, "b")):
        with pytest.raises(ValueError, match="sealed"):
            unseal(secret, domain, text)


@given(st.text())
def test_no_other_text_is_unsealed(text: str) -> None:
    """Whatever a caller writes as a name is refused with the same answer."""
    with pytest.raises(NotFound):
        Names(SECRET, "here:1").home_of(text)


def test_a_name_says_where_its_generation_lives() -> None:
    """Any gateway with the secret reads it; names are not guessable and never the same."""
    names = Names(SECRET, "10.0.0.1:7400")
    first, second = names.make(), names.make()

    assert first != second
    assert "10.0.0.1:7400" == Names(SECRET, "elsewhere:1").home_of(first)


def test_a_sealed_caller_is_believed_for_a_minute() -> None:
    """Another gateway's word on who asks holds shortly; somebody's own word never does."""
    now = 1000.0
    peers = Peers(SECRET, clock=lambda: now)
    caller = Caller(Principal("t", "u", "s"), operator=True)
    identifier = PeerIdentifier(SECRET, Local(), clock=lambda: now)
    header = peers._on_behalf_of(caller)

    assert caller == identifier.identify(header)
    assert Local().identify(()) == identifier.identify(())
    now += 61.0
    for pairs in (header, ((HEADER, "me"),), ((HEADER, seal(OTHER, "caller", ["t", "u", "s", True, 2000.0])),)):
        with pytest.raises(Unauthenticated):
            identifier.identify(pairs)


async def _value(value: object) -> object:
    return value


async def _all(desk: Desk, name: str, start: int = 1) -> list[GenerationEvent]:
    return [event async for event in desk.client.watch(name, start)]
