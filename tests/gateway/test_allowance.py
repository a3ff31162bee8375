"""How many bytes each of many may bring, and how soon more."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from gateway.allowance import Allowance
from gateway.errors import Overloaded
from gateway.settings import GatewaySection
from tests.cache.helpers import Clock
from tests.gateway.test_admission import people
from tests.gateway.world import MIB, World, picture, problem_of


def test_a_full_bucket_takes_what_has_run_out_of_it() -> None:
    """It says when there is room again, and keeps its word; another one's is as empty as ever."""
    clock = Clock()
    allowance = Allowance(1000, 100.0, clock=clock)
    for _ in range(4):
        allowance.take("a", 250)
    with pytest.raises(Overloaded) as refused:
        allowance.take("a", 100)
    assert ("UPLOAD_SHARE", 10.0) == (refused.value.reason, refused.value.retry_after)
    allowance.take("b", 1000)
    clock.advance(9.9)
    with pytest.raises(Overloaded) as refused:
        allowance.take("a", 100)
    assert 1.0 == refused.value.retry_after
    clock.advance(0.2)
    allowance.take("a", 100)


def test_what_is_refused_takes_no_room() -> None:
    """However often it is tried."""
    allowance = Allowance(1000, 100.0, clock=Clock())
    allowance.take("a", 900)
    for _ in range(9):
        with pytest.raises(Overloaded):
            allowance.take("a", 200)
    allowance.take("a", 100)


def test_those_who_bring_nothing_any_more_are_forgotten() -> None:
    """As many as may come are no more to remember than those who came lately."""
    clock = Clock()
    allowance = Allowance(1000, 100.0, clock=clock)
    for number in range(10_000):
        allowance.take(str(number), 1000)
        clock.advance(1.0)
    assert len(allowance) < 2000


def test_a_gateway_takes_the_largest_file_there_may_be() -> None:
    """A bound below it would refuse that for good."""
    with pytest.raises(ValueError, match="max_upload_bytes"):
        GatewaySection(max_upload_bytes=16 * MIB - 1)


async def test_a_tenant_uploads_no_more_than_its_share(world: World, tmp_path: Path) -> None:
    """It is told when to come again, nothing is decoded or stored, and others upload; what it has sent can be used."""
    desk = await world.desk(
        await world.worker(), identity=people(tmp_path, "ann", "bob"), api_key="ann", max_upload_bytes=16 * MIB
    )
    bob = await desk.connect(api_key="bob")
    noise = [
        bytes([number]) * (5 * MIB) for number in range(4)
    ]  # no pictures: refused later, when they are looked into
    sent = await desk.client.upload(picture(1))
    for each in noise[:3]:
        assert "INVALID_ARGUMENT" == (await problem_of(desk.client.upload(each))).code.name
    problem = await problem_of(desk.client.upload(noise[3]))

    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPLOAD_SHARE") == (problem.code, problem.reason)
    assert 1.0 <= (problem.retry_after or 0.0) < 7200.0
    assert "INVALID_ARGUMENT" == (await problem_of(bob.upload(noise[3]))).code.name
    assert (await desk.animate(image_digest=sent.digest)).data
