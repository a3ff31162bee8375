"""A miss at its worker: what travels there, what is believed of what comes back, and what happens when it goes."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

import gateway
from cache import write_behind
from cache.description import Description
from cache.digest import Digest
from cache.errors import TierError
from cache.keys import Address
from cache.objects import ObjectsStore
from cache.record import Record
from cache.settings import CacheSettings
from gateway import models
from gateway import workers as fleet
from gateway.pictures import decode
from gateway.stack import Stack
from gateway.wire import serialize
from gateway.workers import _in_pieces
from reprise.v1 import common_pb2 as pb
from reprise.v1.inference_pb2 import Finished, RunRequest, StatusResponse
from tests import servers
from tests.gateway import worker as scripted
from tests.gateway.worker import Refusal, family
from tests.gateway.world import (
    MIB,
    Desk,
    Follower,
    World,
    ask,
    eventually,
    kinds,
    open_world,
    outcome,
    picture,
    problem_of,
    stages,
)

CANARY = "secret words"


# What a plan carries.


async def test_pixels_travel_when_the_picture_must_be_encoded(world: World) -> None:
    """They are the decoded ones of the identity; with a stored encoding the record travels in their place."""
    worker = await world.worker()
    first = await world.desk(worker)
    await first.stored(await first.animate())
    second = await world.desk(worker)
    await second.animate("a dog")
    cold, warm = worker.requests

    assert (16, 16, 16 * 16 * 3) == (cold.pictures["image"].width, cold.pictures["image"].height, len(_rgb(cold)))
    assert [] == list(cold.records)
    assert (cold.pictures["image"].identity, b"") == (warm.pictures["image"].identity, _rgb(warm))
    assert {"picture", "negative_tokens"} == set(warm.records)
    Record.from_bytes(warm.records["picture"], Address.parse(warm.addresses["picture"]))
    assert 1 == worker.ran["picture"]


async def test_pixels_travel_in_pieces(world: World) -> None:
    """A large picture arrives as it was decoded; no message holds more of it than a quarter of a MiB, and what was sent
    is let go of."""
    file = picture(7, (600, 400))
    worker = await world.worker()
    desk = await world.desk(worker)
    await desk.animate(image=file)
    contents = {"image": _rgb(worker.requests[0])}
    sent = [serialize(message) async for message in _in_pieces(RunRequest(model="small"), contents, asyncio.Lock())]
    messages = [RunRequest.FromString(each) for each in sent]

    assert decode(file).rgb == _rgb(worker.requests[0])
    assert "small" == messages[0].model
    assert _rgb(worker.requests[0]) == b"".join(message.piece.content for message in messages[1:])
    assert {"image"} == {message.piece.name for message in messages[1:]}
    assert max(message.ByteSize() for message in messages) < 256 * 1024 + 100
    assert {} == contents


def _rgb(request: RunRequest) -> bytes:
    return request.pictures["image"].rgb


async def test_a_worker_that_needs_the_pixels_gets_them(world: World) -> None:
    """A worker that cannot use the stored encoding asks for the media: the plan goes there again with the pixels."""
    worker = await world.worker()
    first = await world.desk(worker)
    await first.stored(await first.animate())
    second = await world.desk(worker)
    worker.refusals = [scripted.MEDIA_NEEDED]
    media = await second.animate("a dog")

    assert "miss" == outcome(media)
    _, without, again = worker.requests
    assert (b"", 16 * 16 * 3) == (_rgb(without), len(_rgb(again)))


async def test_a_plan_says_everything_but_who_asks(world: World) -> None:
    """All declared parameters with defaults filled in, normalised; a follower name of its own for each try."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await desk.animate("  a cafe\u0301  ", guidance_scale=7, extra={"size": 10})
    request = worker.requests[0]
    parameters = {name: getattr(value, value.WhichOneof("value")) for name, value in request.parameters.items()}

    expected = {"prompt": "a café", "negative_prompt": "", "guidance_scale": 7.0, "num_frames": 16, "playback_fps": 8}
    assert expected | {"num_inference_steps": 2, "seed": 42, "size": 10, "eta": 0.0} == parameters
    assert ("small", "r1", 32) == (request.model, request.revision, len(request.follower))
    assert {"shared", "tenant", "user", "session"} == set(request.namespaces)


# Workers that go.


async def test_a_worker_that_dies_in_the_middle_is_replaced(world: World) -> None:
    """Another worker does the work; the caller sees one stream, numbered without gaps, and no error."""
    workers = [await world.worker(), await world.worker()]
    gates = [worker.hold("step") for worker in workers]
    desk = await world.desk(*workers)
    follower, joiner = desk.follow(), desk.follow()
    await asyncio.gather(follower.seen("queued"), joiner.seen("queued"))
    home = next(worker for worker in workers if worker.requests)
    other = next(worker for worker in workers if worker is not home)
    for gate in gates:
        gate.open()
    home.hold("step")
    await home.die()
    media = [await follower.media(), await joiner.media()]

    assert ["coalesced", "miss"] == sorted(outcome(each) for each in media)
    assert list(range(1, len(follower.events) + 1)) == [event.sequence for event in follower.events]
    assert 1 == sum(event.HasField("accepted") for event in follower.events)
    assert ["chunk", "result"] == kinds(follower.events)[-2:]
    assert (1, 1) == (len(other.requests), other.generations)
    assert home.requests[0].follower != other.requests[0].follower


async def test_a_worker_that_declines_is_passed_over(world: World) -> None:
    """UNAVAILABLE of one worker sends the plan to another; of all of them it is told, with a time to retry."""
    workers = [await world.worker(), await world.worker()]
    desk = await world.desk(*workers)
    for worker in workers:
        worker.refusals = [scripted.UNAVAILABLE]
    problem = await problem_of(desk.client.animate(ask()))
    assert (grpc.StatusCode.UNAVAILABLE, "NO_WORKER", 2.0) == (problem.code, problem.reason, problem.retry_after)
    workers[0].refusals = [scripted.UNAVAILABLE]
    workers[1].refusals = []
    assert "miss" == outcome(await desk.animate("a dog"))
    assert "miss" == outcome(await desk.animate())
    assert 2 == sum(worker.generations for worker in workers)


async def test_a_result_whose_worker_died_before_storing_it_is_stored_here(world: World) -> None:
    """The gateway has the artifact and the record, and commits both, also under the worker's own address."""
    worker = await world.worker()
    await worker.publish()
    lost = world.only("l1")
    desk = await world.desk(worker)
    worker.hierarchy = (await world.tiers(lost)).below_memory  # its own writes go nowhere
    worker.hold("stored")
    media = await desk.animate()
    await worker.die()

    assert "durable" == await desk.stored(media)
    other = await world.desk()
    hit = await other.animate()
    assert ("hit from L2", media.data) == (outcome(hit), hit.data)
    survivor = await world.worker()
    third = await world.desk(survivor)
    assert "hit from L2" == outcome(await third.animate("A  CAT"))
    assert 0 == survivor.generations


async def test_what_nobody_may_store_is_not_stored_here_either(world: World) -> None:
    """A worker dies after the result of a request that forbade storing: nothing is committed."""
    worker = await world.worker()
    await worker.publish()
    worker.hold("stored")
    desk = await world.desk(worker)
    media = await desk.animate(policy={"no_store": True})
    await worker.die()
    assert "not_stored" == await desk.stored(media)
    other = await world.desk()
    assert "NO_WORKER" == (await problem_of(other.client.animate(ask()))).reason


async def test_with_every_worker_gone_hits_are_served(world: World) -> None:
    """By the gateway that saw the worker, and by one that has started since and only knows the catalogue."""
    worker = await world.worker()
    await worker.publish()
    desk = await world.desk(worker)
    made = await desk.animate()
    await desk.stored(made)
    await worker.die()
    await desk.sees(0)
    assert "hit from L1" == outcome(await desk.animate())
    young = await world.desk(worker.address)
    hit = await young.animate()
    assert ("hit from L2", made.data, True) == (outcome(hit), hit.data, hit.result.random_weights)
    for each in (desk, young):
        problem = await problem_of(each.client.animate(ask("a dog")))
        assert (grpc.StatusCode.UNAVAILABLE, "NO_WORKER", 2.0) == (problem.code, problem.reason, problem.retry_after)


async def test_a_worker_that_comes_back_is_used_again(world: World) -> None:
    """After a restart at the same address it is described again and gets plans."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await worker.die()
    await desk.sees(0)
    worker.descriptions = {"small": family(revision="r2")}
    await worker.start(int(worker.address.rpartition(":")[2]))
    await desk.sees(1)

    assert "miss" == outcome(await desk.animate())
    assert "r2" == worker.requests[0].revision


async def test_a_draining_worker_gets_nothing_new_and_finishes_what_it_has(world: World) -> None:
    """It says DRAINING: its run goes on to the end, and new work goes elsewhere or is refused."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker)
    running = desk.follow()
    await running.seen("queued")
    worker.say(StatusResponse.STATE_DRAINING)
    await desk.sees(0)
    problem = await problem_of(desk.client.animate(ask("a dog")))
    assert "NO_WORKER" == problem.reason
    gate.open()
    assert "miss" == outcome(await running.media())


# A model that changes between planning and running, as in a rolling update.


def changed(revision: str = "r2", **parameter: Any) -> Description:
    """The model as its next version has it: the last stage has another name, `num_frames` other limits."""
    old = family(revision=revision)
    parameters = [each.model_copy(update=parameter) if each.name == "num_frames" else each for each in old.parameters]
    stages = [*old.stages[:-1], old.stages[-1].model_copy(update={"name": "finish"})]
    return old.model_copy(update={"parameters": tuple(parameters), "stages": tuple(stages)})


async def test_a_request_whose_model_changed_meanwhile_is_planned_anew(world: World) -> None:
    """For everybody who shares it, in the same stream, with its media sent again; the result is the new model's."""
    worker = await world.worker()
    desk = await world.desk(worker)
    gate = worker.hold("refuse")
    worker.refusals = [scripted.PLAN_DIFFERS]
    followers = [desk.follow(seed=7)]
    await gate.reached.wait()
    followers.append(desk.follow(seed=7))
    await followers[1].seen("accepted")
    worker.descriptions = {"small": changed()}
    worker.costs = {**scripted.COSTS, "finish": 0.5}
    gate.open()
    media = [await follower.media() for follower in followers]

    assert ["miss", "coalesced"] == [outcome(each) for each in media]
    assert ["r1", "r2"] == [request.revision for request in worker.requests]
    assert 1 == worker.generations
    for each in media:
        assert (7, "run") == (each.result.seed, stages(each.report.stages)["finish"])
    assert 0.5 == {each.stage: each.device_seconds for each in media[0].report.stages}["finish"]
    again = await desk.animate(seed=7)
    assert ("hit from L1", media[0].report.address) == (outcome(again), again.report.address)
    assert again.data == media[0].data


async def test_a_drawn_seed_is_kept_when_a_request_is_planned_anew(world: World) -> None:
    """Its caller was told it already."""
    worker = await world.worker()
    desk = await world.desk(worker)
    worker.descriptions = {"small": family(revision="r2")}
    follower = desk.follow(policy={"fresh": True})
    media = await follower.media()
    assert (await follower.seen("accepted")).accepted.seed == media.result.seed
    assert ["r1", "r2"] == [request.revision for request in worker.requests]
    assert media.result.seed == worker.requests[1].parameters["seed"].int_value


async def test_who_still_serves_the_model_as_it_was_planned_runs_it(world: World) -> None:
    """No new plan is needed while another worker has the old one."""
    workers = [await world.worker(), await world.worker()]
    desk = await world.desk(*workers)
    await desk.stored(await desk.animate())
    (home,) = [worker for worker in workers if worker.requests]
    (other,) = [worker for worker in workers if worker is not home]
    home.descriptions = {"small": changed()}

    assert "miss" == outcome(await desk.animate("a dog"))
    assert (["r1", "r1"], ["r1"]) == tuple([each.revision for each in worker.requests] for worker in (home, other))
    assert (1, 1) == (home.generations, other.generations)


async def shared_while(world: World, description: Description, *fields: dict[str, Any]) -> tuple[Desk, list[Follower]]:
    """These requests share a generation, the first one leads it, and its model becomes another one before it runs."""
    worker = await world.worker()
    desk = await world.desk(worker)
    gate = worker.hold("refuse")
    worker.refusals = [scripted.PLAN_DIFFERS]
    followers = [desk.follow(**fields[0])]
    await gate.reached.wait()
    followers += [desk.follow(**each) for each in fields[1:]]
    for follower in followers[1:]:
        await follower.seen("accepted")
    worker.descriptions = {"small": description}
    worker.costs = {**scripted.COSTS, "finish": 0.5}
    gate.open()
    return desk, followers


@pytest.mark.parametrize("fields", [({}, {"num_frames": 16}), ({"num_frames": 16}, {})])
async def test_a_default_that_changed_changes_nothing_for_those_who_share_a_generation(
    world: World, fields: tuple[dict[str, Any], ...]
) -> None:
    """Some of them may have said what the others left to it; all get what it was when they asked."""
    desk, followers = await shared_while(world, changed(default=8), *fields)
    first, second = [await follower.media() for follower in followers]

    assert ["miss", "coalesced"] == [outcome(first), outcome(second)]
    assert first.report.address == second.report.address
    assert first.data == (await desk.animate(num_frames=16)).data != (await desk.animate()).data


@pytest.mark.parametrize("fields", [({}, {"num_frames": 16}), ({"num_frames": 16}, {})])
async def test_what_the_changed_model_does_not_take_is_told_to_who_said_it(
    world: World, fields: tuple[dict[str, Any], ...]
) -> None:
    """All who share the generation are told to ask again; only then who said it reads what it must be now."""
    desk, followers = await shared_while(world, changed(maximum=8, default=8), *fields)
    for follower in followers:
        problem = await problem_of(follower.media())
        assert (grpc.StatusCode.UNAVAILABLE, "WORKER_CHANGED") == (problem.code, problem.reason)
    problem = await problem_of(desk.animate(num_frames=16))
    assert (grpc.StatusCode.INVALID_ARGUMENT, "num_frames") == (problem.code, problem.field)
    assert "8" in problem.message
    assert "miss" == outcome(await desk.animate())


async def test_without_a_model_to_plan_for_the_caller_is_told_to_ask_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings name the revision that no worker has any more."""
    monkeypatch.setattr(models, "_PATIENCE", 0.01)
    worker = await world.worker()
    desk = await world.desk(worker, revisions={"small": "r1"})
    worker.descriptions = {"small": changed()}
    problem = await problem_of(desk.client.animate(ask()))
    assert (grpc.StatusCode.UNAVAILABLE, "WORKER_CHANGED", 1.0) == (problem.code, problem.reason, problem.retry_after)
    assert "ask again" in problem.message


class _Restless(dict[str, Description]):
    """Described in another way whenever that is asked, and never served."""

    asked = 1

    def get(self, key: Any, default: Any = None) -> Any:
        return None

    def values(self) -> Any:
        self.asked += 1
        return [family(revision=f"r{self.asked}")]


async def test_a_model_that_goes_on_changing_is_not_planned_for_ever(world: World) -> None:
    """Two new plans, then the caller is told to ask again."""
    worker = await world.worker()
    desk = await world.desk(worker)
    worker.descriptions = _Restless(worker.descriptions)
    problem = await problem_of(desk.client.animate(ask()))
    assert (grpc.StatusCode.UNAVAILABLE, "WORKER_CHANGED") == (problem.code, problem.reason)
    assert ["r1", "r2", "r3"] == [request.revision for request in worker.requests]


# What is held of results.


async def test_a_result_is_held_once_while_it_is_being_stored(world: World) -> None:
    """Not as it came, as a file, as a reply and as events: a gateway may wait for the store with hundreds of them."""
    size = 4 * MIB
    worker = await world.worker()
    worker.hold("stored")
    desk = await world.desk(worker)
    await desk.animate(extra={"size": 1})
    tracemalloc.start()
    try:
        made = await desk.animate("a dog", extra={"size": size})
        ours = [
            tracemalloc.Filter(True, str(Path(gateway.__file__).parent / name)) for name in ("forward.py", "wire.py")
        ]
        traces = tracemalloc.take_snapshot().filter_traces(ours).statistics("filename")
    finally:
        tracemalloc.stop()

    assert size == len(made.data)
    assert 1.0 <= sum(each.size for each in traces) / size < 1.1


async def test_results_that_have_no_room_until_others_are_stored_wait_at_their_workers(world: World) -> None:
    """The second one's caller sees it made, and has it as soon as the first one is stored."""
    worker = await world.worker()
    first_stored = worker.hold("stored")
    desk = await world.desk(worker, max_unstored_bytes=1500)
    first = await desk.animate(extra={"size": 1000})
    second_made = worker.hold("stored").reached
    follower = desk.follow("a dog", extra={"size": 1000})
    await second_made.wait()
    await eventually(lambda: desk.metric("reprise_unstored_waiting"))
    assert "hit from L1" == outcome(await desk.animate(extra={"size": 1000}))
    assert "chunk" not in kinds(follower.events)
    assert 1000 == await desk.metric("reprise_unstored_bytes")
    first_stored.open()

    assert 1000 == len((await follower.media()).data)
    assert "durable" == await desk.stored(first)


async def test_a_result_that_waits_for_room_is_made_elsewhere_once_its_worker_hangs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the worker is given up, and not when there is room for what will never come."""
    monkeypatch.setattr(fleet, "_SIGN_OF_LIFE", 2.0)
    holder = await world.worker(family("alpha"))
    workers = [await world.worker(family("beta")) for _ in range(2)]
    for worker in (holder, *workers):
        worker.speaks_every = 0.05
    desk = await world.desk(holder, *workers, max_unstored_bytes=1500)
    gates = [worker.hold("stored") for worker in (holder, *workers)]
    await desk.animate(model="alpha", extra={"size": 1000})
    follower = desk.follow("a dog", model="beta", extra={"size": 1000})
    await eventually(lambda: desk.metric("reprise_unstored_waiting"))
    lost, other = sorted(workers, key=lambda worker: -len(worker.requests))
    lost.speaks_every = None

    async def asked() -> bool:
        return bool(other.requests)

    await eventually(asked)
    for gate in gates:
        gate.open()
    assert 1000 == len((await follower.media()).data)


@pytest.mark.parametrize("fate", ["stored", "given up"])
@pytest.mark.parametrize("size", [1000, 16 * MIB], ids=["sent to its end", "half sent"])
async def test_a_result_that_waits_for_room_behind_lost_workers_comes_in(
    world: World, monkeypatch: pytest.MonkeyPatch, size: int, fate: str
) -> None:
    """All the room is held by a result that this gateway stores itself, and the worker of the next one dies, too: what
    it had sent is read once that has ended, however it did, and what is missing is made elsewhere.
    """
    monkeypatch.setattr(write_behind, "_PAUSES", (0.0, 0.0))
    holder = await world.worker(family("alpha"))
    workers = [await world.worker(family("beta")) for _ in range(2)]
    gates = [worker.hold("stored") for worker in (holder, *workers)]
    desk = await world.desk(holder, *workers, max_unstored_bytes=size * 3 // 2)
    held = await desk.animate(model="alpha", extra={"size": size})
    writing, may_end, put = asyncio.Event(), asyncio.Event(), ObjectsStore.put

    async def put_late(store: ObjectsStore, name: str, data: bytes, ttl: float, *, replace: bool) -> bool:
        writing.set()
        await may_end.wait()
        if fate == "given up":
            raise TierError("full")
        return await put(store, name, data, ttl, replace=replace)

    monkeypatch.setattr(ObjectsStore, "put", put_late)
    await holder.die()
    await writing.wait()
    follower = desk.follow("a dog", model="beta", extra={"size": size})
    await eventually(lambda: desk.metric("reprise_unstored_waiting"))
    lost = next(worker for worker in workers if worker.requests)
    await lost.die()
    assert "chunk" not in kinds(follower.events)
    may_end.set()
    for gate in gates:
        gate.open()

    assert size == len((await follower.media()).data)
    assert {"stored": "durable", "given up": "not_stored"}[fate] == await desk.stored(held)
    await eventually(lambda: desk.metric("reprise_unstored_bytes"), wanted=lambda left: left == 0)


async def test_results_of_workers_that_are_lost_give_their_room_back(world: World) -> None:
    """What a worker left half sent is not counted: the next result has the room."""
    workers = [await world.worker(), await world.worker()]
    desk = await world.desk(*workers, max_unstored_bytes=1500)
    for worker in workers:
        worker.silent_end = True
    assert "WORKER_ENDED_EARLY" == (await problem_of(desk.client.animate(ask(extra={"size": 1000})))).reason
    for worker in workers:
        worker.silent_end = False
    assert 1000 == len((await desk.animate("a dog", extra={"size": 1000})).data)


# Refusals and lies.


@pytest.mark.parametrize(
    ("refusal", "code", "reason", "field", "retry_after"),
    [
        (scripted.PLAN_DIFFERS, grpc.StatusCode.UNAVAILABLE, "WORKER_CHANGED", None, 1.0),
        (scripted.QUEUE_FULL, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", None, 7.0),
        (scripted.DEVICE_MEMORY, grpc.StatusCode.RESOURCE_EXHAUSTED, "DEVICE_MEMORY", None, None),
        (scripted.BAD_FRAMES, grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", "num_frames", None),
        (Refusal(grpc.StatusCode.INTERNAL, CANARY), grpc.StatusCode.INTERNAL, "WORKER_FAULT", None, None),
    ],
    ids=["plan differs", "queue full", "device memory", "bad input", "fault"],
)
async def test_a_workers_refusal_is_told_in_our_words(
    world: World, refusal: Refusal, code: grpc.StatusCode, reason: str, field: str | None, retry_after: float | None
) -> None:
    """Every follower hears it; of the worker's words only the field and the delay are passed on; the next one runs."""
    worker = await world.worker()
    gate = worker.hold("refuse")
    worker.refusals = [refusal]
    desk = await world.desk(worker)
    followers = [desk.follow(), desk.follow()]
    await asyncio.gather(*(follower.seen("accepted") for follower in followers))
    gate.open()
    for follower in followers:
        problem = await problem_of(follower.task)
        assert (code, reason, field, retry_after) == (
            problem.code,
            problem.reason,
            problem.field,
            problem.retry_after,
        )
        assert CANARY not in problem.message
    assert "miss" == outcome(await desk.animate())


def other_address(finished: Finished) -> None:
    record = Record.from_bytes(finished.record)
    other = Address(record.address.namespace, "0" * 64)
    finished.alias = record.alias(other).to_bytes()


def foreign_namespace(finished: Finished) -> None:
    record = Record.from_bytes(finished.record)
    foreign = Address("f" * 32, record.address.content_id)
    finished.record = record.alias(foreign).to_bytes()
    finished.canonical_address = str(foreign)


def other_output(finished: Finished) -> None:
    alias = Record.from_bytes(finished.alias)
    changed = alias.to_bytes().replace(alias.output.digest.hex.encode(), Digest.of(b"else").hex.encode())
    finished.alias = changed


def no_record(finished: Finished) -> None:
    finished.record = b"\x80"


@pytest.mark.parametrize("lie", [other_address, foreign_namespace, other_output, no_record])
async def test_a_record_that_is_not_this_results_is_not_believed(world: World, lie: Callable[[Finished], None]) -> None:
    """INTERNAL, in one neutral sentence; the gateway keeps and commits nothing of it."""
    worker = await world.worker()
    worker.twist = lie
    await _is_refused_and_forgotten(world, worker)


@pytest.mark.parametrize(
    "lie",
    [bytes.upper, lambda data: data[:-1], lambda data: data + b"0", lambda data: b""],
    ids=["other", "short", "long", "none"],
)
async def test_bytes_that_are_not_what_their_record_names_reach_nobody(
    world: World, lie: Callable[[bytes], bytes]
) -> None:
    """INTERNAL, and not a byte of them has been sent or kept."""
    worker = await world.worker()
    worker.twist_bytes = lie
    await _is_refused_and_forgotten(world, worker)


async def test_a_stream_that_ends_without_a_result_is_a_fault(world: World) -> None:
    """INTERNAL rather than half an answer."""
    worker = await world.worker()
    worker.silent_end = True
    await _is_refused_and_forgotten(world, worker)


async def _is_refused_and_forgotten(world: World, worker: scripted.ScriptedWorker) -> None:
    worker.hierarchy = (await world.tiers(world.only("l1"))).below_memory  # so that what is stored, the gateway stored
    desk = await world.desk(worker)
    follower = desk.follow()
    problem = await problem_of(follower.task)
    assert (grpc.StatusCode.INTERNAL, "a fault on our side: retry once, then report the trace id") == (
        problem.code,
        problem.message,
    )
    assert problem.reason.startswith("WORKER_")
    assert not any(event.HasField("chunk") or event.HasField("result") for event in follower.events)
    assert 0.0 == await desk.metric("reprise_write_behind", what="written")
    only = ask(policy={"mode": pb.CachePolicy.MODE_ONLY_IF_CACHED})
    assert "NOT_CACHED" == (await problem_of(desk.client.animate(only))).reason
    worker.twist, worker.twist_bytes, worker.silent_end = lambda finished: None, lambda data: data, False
    assert "miss" == outcome(await desk.animate())


# Tiers that fail.


@pytest.mark.parametrize("fault", ["dead", "hung"])
async def test_without_redis_requests_are_served(breakable_redis: Stack, tmp_path: Path, fault: str) -> None:
    """Misses are generated, hits come from memory and from the object store, and what failed stands in the report."""
    async with open_world(servers.redis_url(breakable_redis), tmp_path / "objects", strict=True) as world:
        worker = await world.worker()
        desk = await world.desk(worker)
        made = await desk.animate()
        await desk.stored(made)
        redis = breakable_redis.part("redis")
        await asyncio.to_thread(redis.kill if fault == "dead" else redis.pause)

        assert "hit from L1" == outcome(await desk.animate())
        miss = await desk.animate("a dog")
        failed = pb.LOOKUP_OUTCOME_ERROR if fault == "dead" else pb.LOOKUP_OUTCOME_TIMEOUT
        assert ("miss", failed) == (outcome(miss), miss.report.lookups[1].outcome)
        assert "durable" == await desk.stored(miss)
        other = await world.desk(worker)
        assert ["hit from L3"] * 2 == [outcome(await other.animate()), outcome(await other.animate("a dog"))]
        await asyncio.to_thread(redis.resume)


@pytest.mark.parametrize("fault", ["dead", "hung"])
async def test_without_the_object_store_requests_are_served(
    redis_url: str, breakable_objects: Stack, fault: str
) -> None:
    """Hits come from Redis, misses are generated and delivered; what could not be stored durably is said so."""
    store = servers.bucket(breakable_objects)
    async with open_world(redis_url, store, strict=True) as world:
        worker = await world.worker()
        desk = await world.desk(worker)
        made = await desk.animate()
        await desk.stored(made)
        objects = breakable_objects.part("objects")
        await asyncio.to_thread(objects.kill if fault == "dead" else objects.pause)

        other = await world.desk(worker)
        assert "hit from L2" == outcome(await other.animate())
        media = await other.animate("a dog")
        assert ("miss", 1000) == (outcome(media), len(media.data))
        assert "hit from L1" == outcome(await other.animate("a dog"))
        worker.hold("stored")
        await asyncio.to_thread(objects.resume)


@pytest.mark.parametrize("again", ["a new reader", "who made it"])
async def test_what_the_object_store_did_not_take_is_told_as_such_and_stored_once_it_is_back(
    redis_url: str, breakable_objects: Stack, again: str
) -> None:
    """A hit does not call durable what Redis or memory alone has; the next one has it stored, and says so."""
    async with open_world(redis_url, servers.bucket(breakable_objects)) as world:
        worker = await world.worker()
        maker, reader = await world.desk(worker), await world.desk(worker)
        await asyncio.to_thread(breakable_objects.part("objects").kill)
        made = await maker.animate()
        assert "not_stored" == await maker.stored(made)
        desk = reader if again == "a new reader" else maker
        first = "hit from L2" if again == "a new reader" else "hit from L1"
        for expected in (first, "hit from L1"):
            hit = await desk.animate()
            assert (expected, "pending", made.data) == (outcome(hit), await desk.stored(hit), hit.data)

        await asyncio.to_thread(breakable_objects.restart, "objects")

        async def told() -> str:
            return await desk.stored(await desk.animate())

        assert "durable" == await eventually(told, wanted=lambda state: state != "pending")
        assert ["durable"] * 2 == [await told() for _ in range(2)]
        assert (1, 0) == (
            await desk.metric("reprise_write_behind", what="healed"),
            await desk.metric("reprise_write_behind", what="failed"),
        )
        young = await world.desk(worker)
        hit = await young.animate()
        assert ("hit from L2", "durable") == (outcome(hit), await young.stored(hit))
        cold = await world.desk(worker, cache=world.only("l3"))
        hit = await cold.animate()
        assert ("hit from L3", "durable", made.data) == (outcome(hit), await cold.stored(hit), hit.data)
        assert 1 == worker.generations


async def test_settings_of_a_test_are_as_strict_as_the_defaults(redis_url: str, tmp_path: Path) -> None:
    """The faults above are met with the budgets of a real deployment."""
    async with open_world(redis_url, tmp_path, strict=True) as world:
        defaults = CacheSettings.model_validate({"secret": "5e" * 32})
        assert (defaults.l2.budget, defaults.l3.stall) == (world.cache.l2.budget, world.cache.l3.stall)
