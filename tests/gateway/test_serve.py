"""A gateway as a process: what it opens, how it is traced, and how it leaves."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from structlog.testing import capture_logs

from cache.settings import SettingsError
from gateway.client import Client
from gateway.stack.ports import free_port
from reprise.v1 import common_pb2 as pb
from tests.gateway.world import SECRET, Desk, Follower, World, ask, eventually, kinds, outcome, problem_of

ANIMATE = "reprise.v1.MediaService/AnimateImage"
SERVICES = ["", "reprise.v1.MediaService", "reprise.v1.CacheService"]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def tree(spans: Sequence[ReadableSpan], root: ReadableSpan) -> dict[str, list[str]]:
    """Names of the spans below each span of one trace, in the order of their start."""
    mine = [span for span in spans if span.context.trace_id == root.context.trace_id]
    names = {span.context.span_id: span.name for span in mine}
    below: dict[str, list[str]] = {}
    for span in sorted(mine, key=lambda span: span.start_time or 0):
        if span.parent is not None:
            below.setdefault(names[span.parent.span_id], []).append(span.name)
    return below


def roots(desk: Desk) -> list[ReadableSpan]:
    return sorted((span for span in desk.spans if span.name == ANIMATE), key=lambda span: span.start_time or 0)


async def ended(desk: Desk, name: str) -> None:
    async def look() -> bool:
        return any(span.name == name for span in desk.spans)

    await eventually(look)


# Traces.


async def test_a_miss_is_one_tree(world: World) -> None:
    """The request, a span for each tier it asked, the generation and the worker it went to, whose own spans go on."""
    worker = await world.worker()
    desk = await world.desk(worker, sample=0.0)
    media = await desk.animate()
    await desk.stored(media)
    await ended(desk, "reprise.generate")

    (root,) = roots(desk)
    below = {ANIMATE: ["cache.l1", "cache.l2", "cache.l3", "reprise.generate"], "reprise.generate": ["reprise.worker"]}
    assert below == tree(desk.spans, root)
    assert f"{root.context.trace_id:032x}" == media.result.trace_id
    (sent,) = worker.metadata
    (at_worker,) = [span for span in desk.spans if span.name == "reprise.worker"]
    assert sent["traceparent"].startswith(f"00-{media.result.trace_id}-{at_worker.context.span_id:016x}-")
    assert root.attributes is not None
    assert ("miss", 1000) == (root.attributes["reprise.outcome"], root.attributes["reprise.bytes"])
    assert "cat" not in "".join(span.to_json() for span in desk.spans)


async def test_a_hit_is_traced_as_often_as_it_is_sampled(world: World) -> None:
    """Never at a ratio of 0, always at 1, and always when its caller samples: then in the caller's trace."""
    worker = await world.worker()
    first = await world.desk(worker, sample=0.0)
    await first.stored(await first.animate())
    assert "" == (await first.animate()).result.trace_id
    assert 1 == len(roots(first))
    second = await world.desk(worker, sample=1.0)
    hits = [await second.animate(), await second.animate()]
    traced = [tree(second.spans, root) for root in roots(second)]
    assert [{ANIMATE: ["cache.l1", "cache.l2"]}, {ANIMATE: ["cache.l1"]}] == traced
    assert [f"{root.context.trace_id:032x}" for root in roots(second)] == [hit.result.trace_id for hit in hits]

    trace, parent = "ab" * 16, "cd" * 8
    traced_client = Client(first.address)
    traced_client._metadata = (("traceparent", f"00-{trace}-{parent}-01"),)
    async with traced_client:
        media = await traced_client.animate(ask())
    assert ("hit from L1", trace) == (outcome(media), media.result.trace_id)


async def test_who_joins_is_linked_to_whom_it_joined(world: World) -> None:
    """A coalesced request has a trace of its own, a link to the leader's, and the leader's id as an attribute."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker)
    leader = desk.follow()
    await leader.seen("queued")
    follower = desk.follow()
    await follower.seen("queued")
    gate.open()
    media = [await leader.media(), await follower.media()]

    async def both() -> list[ReadableSpan]:
        return roots(desk)

    led, joined = await eventually(both, wanted=lambda spans: len(spans) == 2)
    assert [media[0].result.trace_id, media[1].result.trace_id] == [f"{s.context.trace_id:032x}" for s in (led, joined)]
    assert [led.context.span_id] == [link.context.span_id for link in joined.links]
    assert joined.attributes is not None
    assert media[0].result.trace_id == joined.attributes["reprise.flight.leader_trace_id"]
    assert "coalesced" == joined.attributes["reprise.outcome"]
    assert ["cache.l1", "cache.l2", "cache.l3"] == tree(desk.spans, joined)[ANIMATE]


async def test_an_error_is_traced_once(world: World) -> None:
    """Whether it comes before any plan, from the policy, or from the generation; with its reason and no words."""
    worker = await world.worker()
    desk = await world.desk(worker, sample=0.0)
    await problem_of(desk.client.animate(ask("")))
    await problem_of(desk.client.animate(ask(policy={"mode": pb.CachePolicy.MODE_ONLY_IF_CACHED})))
    await worker.die()
    await desk.sees(0)
    await problem_of(desk.client.animate(ask()))
    expected = [("VALUE_MISSING", "ERROR"), ("NOT_CACHED", "ERROR"), ("NO_WORKER", "ERROR")]
    assert expected == [(span.status.description, span.status.status_code.name) for span in roots(desk)]


# Leaving.


async def test_a_gateway_says_that_it_leaves_and_lets_streams_finish(world: World) -> None:
    """First health is NOT_SERVING for every service while requests are still taken; then running streams end."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker)
    running = desk.follow()
    await running.seen("queued")
    async with grpc.aio.insecure_channel(desk.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def states() -> set[int]:
            answers = [await health.Check(health_pb2.HealthCheckRequest(service=name)) for name in SERVICES]
            return {answer.status for answer in answers}

        assert {SERVING} == await states()
        leaving = asyncio.create_task(desk.gateway.leave(notice=0.5, drain=10.0))
        await eventually(states, wanted=lambda seen: seen == {NOT_SERVING})
        late = desk.follow("a dog")
        await late.seen("queued")
        assert not leaving.done()
        await leaving_closes(desk)
        gate.open()
        assert ["miss", "miss"] == [outcome(await running.media()), outcome(await late.media())]
        await leaving


async def leaving_closes(desk: Desk) -> None:
    """Wait until the gateway takes no connections any more."""

    async def refused() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", desk.gateway.port)
        except ConnectionRefusedError:
            return True
        writer.close()
        await writer.wait_closed()
        return False

    await eventually(refused)


async def test_a_stream_that_takes_too_long_is_cut_and_its_work_is_not_lost(world: World) -> None:
    """Over the time for draining a caller is told to ask again; what was under way is drained and found by the next."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, drain=10.0, grace=10.0)
    running = desk.follow()
    await running.seen("queued")
    await desk.gateway.leave(notice=0.0, drain=0.0)
    cut = await problem_of(running.task)
    assert (grpc.StatusCode.UNAVAILABLE, "GATEWAY_LEAVING", 1.0) == (cut.code, cut.reason, cut.retry_after)
    closing = asyncio.create_task(desk.close())
    gate.open()
    await closing
    other = await world.desk(worker)
    assert ("hit from L2", 1) == (outcome(await other.animate()), worker.generations)


async def test_told_to_hurry_a_gateway_waits_for_nothing(world: World) -> None:
    """Streams and whoever comes are told to ask again; a run is left to its worker, which stores it."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, drain=3600.0, grace=3600.0)
    running = desk.follow()
    await running.seen("queued")
    async with asyncio.timeout(10):
        await desk.gateway.end()
        cut, late = await problem_of(running.task), await problem_of(desk.client.animate(ask()))
        await desk.close()
    assert [("GATEWAY_LEAVING", 1.0)] * 2 == [(each.reason, each.retry_after) for each in (cut, late)]
    gate.open()


async def test_services_can_be_listed(world: World) -> None:
    """By reflection, unless it is switched off."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    for allowed in (True, False):
        desk = await world.desk(reflection=allowed)
        async with grpc.aio.insecure_channel(desk.address) as channel:
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
            if not allowed:
                assert grpc.StatusCode.UNIMPLEMENTED == (await problem_of(anext(aiter(call)))).code
                continue
            async for answer in call:
                names = {service.name for service in answer.list_services_response.service}
                assert {*SERVICES[1:], "grpc.health.v1.Health"} <= names


async def test_a_port_in_use_is_told_in_a_sentence(world: World) -> None:
    """It names the setting, and nothing stays open."""
    desk = await world.desk()
    with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{desk.gateway.port}"):
        await world.desk(port=desk.gateway.port)


# The process.


def config(tmp_path: Path, redis_url: str, **gateway: object) -> Path:
    file = tmp_path / "reprise.yaml"
    content = {
        "cache": {"secret": SECRET, "l2": {"url": redis_url}, "l3": {"url": f"file://{tmp_path}/objects"}},
        "gateway": gateway,
        "worker": {"of": "somebody else"},
    }
    file.write_text(yaml.safe_dump(content))
    return file


def command(file: Path) -> list[str]:
    return [sys.executable, "-m", "gateway", "--config", str(file)]


async def test_a_process_serves_until_it_is_told_to_stop(world: World, redis_url: str, tmp_path: Path) -> None:
    """SIGTERM: a running stream finishes, and the process exits with 0."""
    worker = await world.worker()
    gate = worker.hold("step")
    port = free_port()
    file = config(tmp_path, redis_url, port=port, workers=[worker.address], drain=10.0)
    process = await asyncio.create_subprocess_exec(*command(file), stderr=asyncio.subprocess.PIPE)
    try:
        async with Client(f"127.0.0.1:{port}") as client:

            async def follow() -> Follower | None:
                follower = Follower(client, ask())
                named = asyncio.create_task(follower.name())
                await asyncio.wait({follower.task, named}, return_when=asyncio.FIRST_COMPLETED)
                named.cancel()
                await asyncio.gather(named, *([follower.task] if follower.task.done() else []), return_exceptions=True)
                return follower if follower.events else None

            follower = await eventually(follow)
            assert follower is not None
            await follower.seen("queued")
            process.send_signal(signal.SIGTERM)
            gate.open()
            assert "miss" == outcome(await follower.media())
            assert ["chunk", "result"] == kinds(follower.events)[-2:]
        async with asyncio.timeout(20):
            _, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (0, False) == (process.returncode, b"Traceback" in log)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prot": 1}, "gateway.prot"),
        ({"public_url": "media.example.com"}, "gateway.public_url: Value error, must be http(s)://host"),
        ({"identity": {"mode": "api_keys", "file": "/nowhere/keys.yaml"}}, "/nowhere/keys.yaml: cannot be read"),
        ({"policies": [{"model": "m"}, {"model": "m", "fresh": True}]}, "gateway.policies: Value error, two of them"),
        ({"policies": [{"fresh": True, "mode": "only-if-cached"}]}, "gateway.policies.0: Value error, a fresh result"),
    ],
    ids=["unknown key", "no URL", "no key file", "two policies for one", "a policy of contradictions"],
)
def test_what_is_wrong_with_the_settings_is_said_in_a_line(
    redis_url: str, tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    """On the last line of the error output, without a traceback; the process exits with 1."""
    words = command(config(tmp_path, redis_url, **settings))
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (1, False) == (done.returncode, "Traceback" in done.stderr)
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("method", ["MediaService/AnimateImage", "MediaService/Cancel", "CacheService/Stats"])
async def test_a_call_that_carries_no_message_is_refused(world: World, method: str) -> None:
    """It is told so at once, whatever the method, instead of being left without an answer."""
    desk = await world.desk()
    async with grpc.aio.insecure_channel(desk.address) as channel:
        call: Any = channel.stream_stream(f"/reprise.v1.{method}")(iter(()))
        problem = await problem_of(asyncio.wait_for(call.read(), 10))

    assert (grpc.StatusCode.INVALID_ARGUMENT, "request") == (problem.code, problem.field)


@pytest.mark.parametrize("method", ["MediaService/AnimateImage", "MediaService/Cancel", "CacheService/Stats"])
async def test_bytes_that_are_no_message_are_refused(world: World, method: str) -> None:
    """They are the caller's mistake, told as one, and no entry of the log."""
    desk = await world.desk()
    with capture_logs() as entries:
        async with grpc.aio.insecure_channel(desk.address) as channel:
            ask_for: Any = channel.unary_stream(f"/reprise.v1.{method}")
            problem = await problem_of(asyncio.wait_for(ask_for(b"\xff\xff garbage").read(), 10))

    assert (grpc.StatusCode.INVALID_ARGUMENT, "request") == (problem.code, problem.field)
    assert [] == entries


async def test_an_error_tells_its_trace(world: World) -> None:
    """The trace id that a caller is asked to report comes with the error, and is that of its span."""
    desk = await world.desk(await world.worker())
    refused = await problem_of(desk.client.animate(ask("")))
    unanswered = await problem_of(desk.client.animate(ask(policy={"mode": pb.CachePolicy.MODE_ONLY_IF_CACHED})))

    traces = {f"{span.context.trace_id:032x}" for span in roots(desk)}
    assert {refused.trace_id, unanswered.trace_id} == traces
