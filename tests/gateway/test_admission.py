"""Who may begin a generation: by the time there is, by the places there are, and by whose they are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from gateway.client import Client
from gateway.identity import hash_key
from tests.gateway.test_control import invalidate, switch
from tests.gateway.worker import COSTS, UNAVAILABLE, ScriptedWorker
from tests.gateway.world import Desk, Follower, World, ask, eventually, outcome, picture, problem_of

DEVICE_SECONDS = 4.5  # of another prompt for a picture that is known: text, denoise, render


async def experienced(world: World, worker: ScriptedWorker, **section: Any) -> Desk:
    """A gateway that has seen one generation, and so knows what stages cost."""
    desk = await world.desk(worker, **section)
    assert "durable" == await desk.stored(await desk.animate())
    return desk


async def told_of(call: asyncio.Future[object]) -> dict[str, str]:
    """What a refusal says for programs."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return dict(info.metadata)


# Time.


async def test_less_time_than_the_device_takes_is_no_use(world: World) -> None:
    """Refused before any work, without a time to come again: how long it would take is told, by what such work cost."""
    worker = await world.worker()
    desk = await experienced(world, worker)
    hurried = Follower(desk.client, ask("a dog"), deadline=4.0)
    problem = await problem_of(hurried.task)
    told = await told_of(Follower(desk.client, ask("a dog"), deadline=4.0).task)  # type: ignore[arg-type]

    assert (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT", None) == (
        problem.code,
        problem.reason,
        problem.retry_after,
    )
    assert {"device_seconds": f"{DEVICE_SECONDS:.3f}", "wait_seconds": "0.000"} == told
    assert ([], 1, 1) == (hurried.events, len(worker.requests), worker.generations)
    assert "miss" == outcome(await desk.animate("a dog"))  # with all the time in the world


async def test_a_line_that_is_too_long_is_worth_waiting_for(world: World) -> None:
    """Refused before any work, and told after how long the line will be short enough."""
    worker = await world.worker()
    worker.queue_seconds = 60.0
    desk = await experienced(world, worker)
    problem = await problem_of(Follower(desk.client, ask("a dog"), deadline=20.0).task)

    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_TOO_LONG") == (problem.code, problem.reason)
    assert problem.retry_after == pytest.approx(1.25 * 60.0 + DEVICE_SECONDS - 20.0, abs=5.0)
    assert (1, 1) == (len(worker.requests), worker.generations)


async def test_who_is_in_time_is_let_in_unasked(world: World) -> None:
    """The worker is asked only where there is a doubt."""
    worker = await world.worker()
    worker.queue_seconds = 10.0
    desk = await experienced(world, worker)
    answered = await Follower(desk.client, ask("a dog"), deadline=20.0).media()

    assert ("miss", 0) == (outcome(answered), worker.foreseen)
    assert {} == dict(worker.requests[0].estimates)
    assert COSTS.items() >= dict(worker.requests[1].estimates).items() >= {("text", 0.25), ("denoise", 4.0)}


async def test_what_was_never_seen_is_let_in(world: World) -> None:
    """Where nothing is known there is no estimate, and a deadline is the caller's own affair."""
    worker = await world.worker()
    desk = await world.desk(worker)
    answered = await Follower(desk.client, ask("a dog"), deadline=8.0).media()

    assert ("miss", 0) == (outcome(answered), worker.foreseen)


async def test_only_what_must_run_counts(world: World) -> None:
    """The same video at another rate is not denoised again, which only its worker knows."""
    worker = await world.worker()
    desk = await experienced(world, worker)
    answered = await Follower(desk.client, ask(playback_fps=9), deadline=4.0).media()

    assert ("miss", 1, {"denoise": 1, "render": 2}) == (
        outcome(answered),
        worker.foreseen,
        {name: worker.ran[name] for name in ("denoise", "render")},
    )


async def test_what_would_come_too_late_is_not_said_to_take_too_long(world: World) -> None:
    """A short run behind a long line is worth asking for again, whatever a whole one would take."""
    worker = await world.worker()
    worker.queue_seconds = 60.0
    desk = await experienced(world, worker)
    problem = await problem_of(Follower(desk.client, ask(playback_fps=9), deadline=4.0).task)

    assert ("QUEUE_TOO_LONG", 1) == (problem.reason, worker.foreseen)


async def test_what_costs_no_device_is_never_refused(world: World) -> None:
    """A hit, a result that the worker knows by another spelling, and whoever joins, here or at the worker."""
    worker = await world.worker()
    worker.queue_seconds = 1000.0
    desk = await experienced(world, worker)
    other = await experienced(world, worker)
    gate = worker.hold("step")
    leader = desk.follow("a dog")
    await leader.seen("queued")
    hit = await Follower(desk.client, ask(), deadline=4.0).media()
    spelled = await Follower(desk.client, ask("A  CAT"), deadline=4.0).media()
    joined = [Follower(each.client, ask("a dog"), deadline=4.0) for each in (desk, other)]
    for each in joined:
        await each.seen("queued")
    gate.open()

    assert ["hit from L1", "hit from L2"] == [outcome(hit), outcome(spelled)]
    assert ["coalesced"] * 2 == [outcome(await each.media()) for each in joined]
    assert 2 == worker.generations


async def test_a_line_before_one_of_several_is_no_obstacle(world: World) -> None:
    """A home with a line leaves runs to those that are idle."""
    busy, free = await world.worker(), await world.worker()
    busy.queue_seconds = 1000.0
    free.queued = lambda stream: 0
    for shade in range(4):  # pictures have different homes
        desk = await world.desk(busy, free)  # of its own: one that has a run there does not take that worker for idle
        answered = await Follower(desk.client, ask("a dog", image=picture(shade)), deadline=15.0).media()
        assert "miss" == outcome(answered)


async def test_a_worker_that_cannot_say_refuses_nobody(world: World) -> None:
    """Who is in doubt is let in, and the run itself will tell."""
    worker = await world.worker()
    worker.queue_seconds = 1000.0
    worker.blind = UNAVAILABLE
    desk = await experienced(world, worker)
    answered = await Follower(desk.client, ask("a dog"), deadline=8.0).media()

    assert ("miss", 1) == (outcome(answered), worker.foreseen)


# Places.


def people(tmp_path: Path, *names: str) -> dict[str, object]:
    """Each a tenant of their own; "op" is an operator."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        "\n".join(
            f"- {{key_sha256: {hash_key(name)!r}, tenant: {name}, user: {name}, operator: {str(name == 'op').lower()}}}"
            for name in names
        )
    )
    return {"mode": "api_keys", "file": keys}


async def begun(desk: Desk, client: Client, prompts: Sequence[str]) -> list[Follower]:
    followers = [desk.follow(prompt, client=client) for prompt in prompts]
    for follower in followers:
        await follower.seen("queued")
    return followers


async def test_no_tenant_takes_every_place(world: World, tmp_path: Path) -> None:
    """One who asks for all leaves room for another, and is told why; what is under way can still be joined."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(
        worker, identity=people(tmp_path, "ann", "bob"), max_generations=10, tenant_share=0.5, api_key="ann"
    )
    bob = await desk.connect(api_key="bob")
    mine = await begun(desk, desk.client, [f"cat {number}" for number in range(5)])
    problem = await problem_of(desk.client.animate(ask("one more")))
    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_SHARE", 1.0) == (
        problem.code,
        problem.reason,
        problem.retry_after,
    )
    joined = await begun(desk, desk.client, ["cat 0"])
    theirs = await begun(desk, bob, [f"dog {number}" for number in range(3)])
    assert "TENANT_SHARE" == (await problem_of(bob.animate(ask("one more")))).reason
    assert 8 == len(worker.requests)
    gate.open()

    assert ["miss"] * 5 + ["coalesced"] + ["miss"] * 3 == [
        outcome(await each.media()) for each in (*mine, *joined, *theirs)
    ]


async def test_one_tenant_alone_may_have_a_share_of_all(world: World) -> None:
    """Few places are all theirs, so that a deployment of one tenant is bounded by what it is said to be bounded by."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, max_generations=4)
    running = await begun(desk, desk.client, [f"cat {number}" for number in range(4)])
    assert "GATEWAY_BUSY" == (await problem_of(desk.client.animate(ask("one more")))).reason
    gate.open()
    assert ["miss"] * 4 == [outcome(await each.media()) for each in running]


async def test_a_place_is_given_back_however_a_generation_ends(world: World) -> None:
    """Finished, refused by its worker, or cancelled before it was begun."""
    worker = await world.worker()
    desk = await world.desk(worker, max_generations=1)
    gate = worker.hold("step")
    follower = desk.follow("one")
    await desk.client.cancel(await follower.name())
    await problem_of(follower.task)
    gate.open()
    await eventually(lambda: _free(desk))


async def _free(desk: Desk) -> bool:
    try:
        await desk.animate("another")
    except grpc.aio.AioRpcError:
        return False
    return True


async def test_at_saturation_all_but_generations_is_answered(world: World, tmp_path: Path) -> None:
    """Health, reflection, what operators ask and order, what is cached, uploads, downloads and explanations."""
    worker = await world.worker()
    desk = await world.desk(worker, identity=people(tmp_path, "ann", "op"), max_generations=1, api_key="ann")
    known = await desk.animate("known")
    assert "durable" == await desk.stored(known)
    operator = await desk.connect(api_key="op")
    gate = worker.hold("step")
    (running,) = await begun(desk, desk.client, ["one"])

    for _ in range(3):  # refusing leaves everything as it was
        assert "GATEWAY_BUSY" == (await problem_of(desk.client.animate(ask("two")))).reason
        assert "hit from L1" == outcome(await desk.animate("known"))
        async with grpc.aio.insecure_channel(desk.address) as channel:
            for service in ("", "reprise.v1.MediaService", "reprise.v1.CacheService"):
                request = health_pb2.HealthCheckRequest(service=service)
                checked = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
                assert health_pb2.HealthCheckResponse.SERVING == checked.status
            listing = reflection_pb2.ServerReflectionRequest(list_services="")
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([listing]), timeout=5)
            assert [True] == [answer.HasField("list_services_response") async for answer in call]
        assert 1 == len((await operator.stats()).workers)
        assert "record" == (await operator.inspect(known.report.address)).kind
        assert [] == await switch(operator, model="small", on=True)
        assert await invalidate(operator, label="nobody's")
        assert (await desk.client.explain(ask("two"))).report.device_seconds_spent > 0
        uploaded = await desk.client.upload(picture(7))
        assert uploaded.digest.size > 0
        assert known.data == await desk.client.download(known.result.artifact)
    gate.open()
    assert "miss" == outcome(await running.media())
