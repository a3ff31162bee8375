"""Explain: what a request would be answered with is what it is answered with, and asking changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from redis import Redis

from cache.settings import CacheSettings
from gateway import workers
from gateway.identity import hash_key
from gateway.stack.ports import LOOPBACK, free_port
from gateway.stack.redis import flush
from reprise.v1 import common_pb2 as pb
from reprise.v1.inference_pb2 import Finished
from reprise.v1.media_pb2 import ExplainRequest, ExplainResponse
from reprise.v1.media_pb2_grpc import MediaServiceStub
from tests.gateway.worker import Refusal, family
from tests.gateway.world import Desk, World, ask, outcome, picture, problem_of, stages

REFRESH, BYPASS, ONLY = pb.CachePolicy.MODE_REFRESH, pb.CachePolicy.MODE_BYPASS, pb.CachePolicy.MODE_ONLY_IF_CACHED
RUN_ALL = dict.fromkeys(("tokens", "text", "negative_tokens", "picture", "denoise", "render"), "run")


async def explain(
    desk: Desk, prompt: str = "a cat", after: dict[str, Any] | None = None, **fields: Any
) -> ExplainResponse:
    earlier = ask(**after) if after is not None else None
    return await desk.client.explain(ask(prompt, **fields), earlier)


def said(report: pb.CacheReport) -> str:
    return pb.Outcome.Name(report.outcome).removeprefix("OUTCOME_").lower()


def name(reason: pb.MissReason) -> str:
    return pb.MissReason.Name(reason).removeprefix("MISS_REASON_").lower()


def reasons(report: pb.CacheReport) -> dict[str, str]:
    """Why each stage that runs does."""
    return {each.stage: name(each.reason) for each in report.stages if each.reason}


def everything(cache: CacheSettings, objects: Path, desk: Desk) -> dict[str, object]:
    """All that is stored anywhere, how long Redis will keep it, what memory holds, and what was counted."""
    with Redis.from_url(cache.l2.url.get_secret_value()) as raw:
        keys = [key for key in raw.keys("*") if isinstance(key, bytes)]
        shared: dict[str, object] = {str(key): raw.dump(key) for key in keys}
        shared |= {f"age of {key!r}": raw.pttl(key) for key in keys}
    files: dict[str, object] = {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in objects.rglob("*") if path.is_file()
    }
    lookups = {
        f"{sample.name} {sample.labels}": sample.value
        for metric in desk.registry.collect()
        for sample in metric.samples
        if metric.name in ("reprise_cache_lookups", "reprise_generations", "reprise_misses", "reprise_answers")
        or (metric.name == "reprise_cache_entries" and sample.labels["tier"] == "l1")
    }
    return shared | files | lookups


def unchanged(before: dict[str, object], after: dict[str, object]) -> bool:
    """Nothing came or went, and nothing became younger."""
    aged = {key for key in before if key.startswith("age of")}
    return before.keys() == after.keys() and all(
        before[key] >= after[key] if key in aged else before[key] == after[key]  # type: ignore[operator]
        for key in before
    )


CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "another spelling": {"prompt": "A  CAT"},
    "prompt": {"prompt": "a dog"},
    "negative prompt": {"negative_prompt": "blur"},
    "picture": {"image": picture(9)},
    "seed": {"seed": 7},
    "frames": {"num_frames": 8},
    "rate of the file": {"playback_fps": 24},
    "no guidance": {"guidance_scale": 1.0},
    "two things": {"prompt": "a dog", "num_frames": 8},
    "refresh": {"policy": {"mode": REFRESH}},
    "bypass": {"policy": {"mode": BYPASS}},
    "kept nowhere": {"seed": 8, "policy": {"no_store": True}},
    "no age at all": {"policy": {"max_age": Duration()}},
    "only if cached": {"policy": {"mode": ONLY}},
}


@pytest.mark.parametrize("tier", ["memory", "shared tiers"])
@pytest.mark.parametrize("change", CHANGES)
async def test_what_is_explained_is_what_happens(world: World, tmp_path: Path, change: str, tier: str) -> None:
    """Outcome, stages, reasons and nearest request are those of the report afterwards; asking changed nothing."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await desk.stored(await desk.animate())
    if tier != "memory":
        desk = await world.desk(worker)
    asked = CHANGES[change]
    before = await asyncio.to_thread(everything, world.cache, tmp_path / "objects", desk)
    explained = await explain(desk, **asked)
    again = await explain(desk, **asked)
    after = await asyncio.to_thread(everything, world.cache, tmp_path / "objects", desk)
    media = await desk.animate(**asked)

    assert unchanged(before, after)
    assert again.report.stages == explained.report.stages
    assert said(media.report) == said(explained.report)
    assert media.report.tier == explained.report.tier
    assert stages(media.report.stages) == stages(explained.report.stages)
    assert media.report.address == explained.report.address
    assert (reasons(media.report), media.report.reason) == (reasons(explained.report), explained.report.reason)
    if media.report.reason:
        assert media.report.nearest == explained.report.nearest
    spent = explained.report.device_seconds_spent, explained.report.device_seconds_saved
    assert spent == pytest.approx((media.report.device_seconds_spent, media.report.device_seconds_saved))


async def test_nothing_is_known_of_the_first_request(world: World) -> None:
    """Everything would run because it is new; what it costs nobody knows; there is no earlier request."""
    worker = await world.worker()
    desk = await world.desk(worker)
    explained = await explain(desk)
    assert ("miss", True) == (said(explained.report), explained.worker_asked)
    assert RUN_ALL == stages(explained.report.stages)
    assert dict.fromkeys(RUN_ALL, "new") == reasons(explained.report)
    assert [(0.0, False)] * 6 == [(each.device_seconds, each.estimated) for each in explained.report.stages]
    assert not explained.report.HasField("nearest")
    assert (0, 0, 1) == (worker.generations, len(worker.requests), worker.foreseen)


async def test_device_time_is_estimated_from_what_it_took(world: World) -> None:
    """Of stages that would run, from equal work or in proportion; a gateway that has just started knows it too."""
    description = family()
    grown = {"num_frames": "onward", "num_inference_steps": "stage"}
    parameters = [each.model_copy(update={"proportional": grown.get(each.name)}) for each in description.parameters]
    worker = await world.worker(description.model_copy(update={"parameters": tuple(parameters)}))
    first = await world.desk(worker)
    await first.stored(await first.animate())
    await first.close()
    desk = await world.desk(worker)
    explained = await explain(desk, num_inference_steps=4, num_frames=8)
    report = explained.report

    told = {each.stage: (each.device_seconds, each.estimated) for each in report.stages if each.device_seconds}
    assert {"picture": (0.5, False), "text": (0.25, False), "denoise": (4.0, True), "render": (0.125, True)} == told
    assert ["num_frames", "num_inference_steps"] == list(report.nearest.differing)
    assert (4.125, 0.75) == (report.device_seconds_spent, report.device_seconds_saved)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({}, {}, {**dict.fromkeys(RUN_ALL, "not_needed"), "render": "reused"}),
        ({}, {"prompt": "A  CAT"}, {**dict.fromkeys(RUN_ALL, "not_needed"), "render": "reused"}),
        ({}, {"playback_fps": 24}, {**dict.fromkeys(RUN_ALL, "not_needed"), "denoise": "reused", "render": "run"}),
        (
            {},
            {"prompt": "a dog"},
            {**RUN_ALL, "negative_tokens": "reused", "picture": "reused"},
        ),
        ({"policy": {"no_store": True}}, {"playback_fps": 24}, RUN_ALL),
        ({}, {"policy": {"mode": REFRESH}}, RUN_ALL),
        ({"policy": {"mode": ONLY}}, {}, RUN_ALL),
    ],
)
async def test_what_is_left_after_another_request(
    world: World, first: dict[str, Any], second: dict[str, Any], expected: dict[str, str]
) -> None:
    """What the first one makes would be reused, from no tier in particular; then it is so."""
    worker = await world.worker()
    desk = await world.desk(worker)
    explained = await explain(desk, after=first, **second)
    assert (expected, True) == (stages(explained.report.stages), explained.worker_asked)
    assert {pb.TIER_UNSPECIFIED} == {each.tier for each in explained.report.stages}
    assert 0 == worker.generations

    if first.get("policy", {}).get("mode") != ONLY:
        await desk.stored(await desk.animate(**first))
    media = await desk.animate(**second)
    assert expected == stages(media.report.stages)
    if explained.report.reason:
        assert reasons(media.report) == reasons(explained.report)
        assert media.report.nearest.differing == explained.report.nearest.differing


async def test_after_another_request_the_field_that_differs_is_told(world: World) -> None:
    """The earlier request of the question is the nearest one, whatever was really asked before."""
    desk = await world.desk(await world.worker())
    await desk.stored(await desk.animate("a horse", num_frames=4))
    explained = await explain(desk, "a dog", after={"prompt": "a dog", "seed": 5}, seed=6)
    assert ["seed"] == list(explained.report.nearest.differing)
    assert {"denoise": "new", "render": "new"} == reasons(explained.report)


async def test_a_request_that_would_be_refused_has_no_outcome(world: World) -> None:
    """Only if cached, and it is not: no stage, the reason, and what was asked most like it."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await desk.stored(await desk.animate())
    explained = await explain(desk, seed=3, policy={"mode": ONLY})
    report = explained.report
    assert (pb.OUTCOME_UNSPECIFIED, []) == (report.outcome, list(report.stages))
    assert ("new", ["seed"]) == (name(report.reason), list(report.nearest.differing))
    assert 0 == worker.foreseen


# With parts gone.


async def test_without_a_worker_requests_are_judged_as_they_are_written(world: World) -> None:
    """What this caller had made in the same words is taken to be there; another spelling may be another meaning."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await desk.stored(await desk.animate())
    await worker.die()
    await desk.sees(0)
    explained = await explain(desk, playback_fps=24)
    expected = {**dict.fromkeys(RUN_ALL, "not_needed"), "denoise": "reused", "render": "run"}
    assert (expected, False) == (stages(explained.report.stages), explained.worker_asked)
    assert 0.25 == explained.report.device_seconds_spent
    spelled = await explain(desk, "A  CAT")
    assert {**RUN_ALL, "negative_tokens": "reused", "picture": "reused"} == stages(spelled.report.stages)
    assert "hit" == said((await explain(desk)).report)


@pytest.mark.parametrize("fault", ["silent", "unavailable", "another plan"])
async def test_a_worker_that_cannot_say_is_not_waited_for(
    world: World, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs, or refuses: the tiers answer alone, and it says so."""
    monkeypatch.setattr(workers, "_FORESEE_TIMEOUT", 0.1)
    worker = await world.worker()
    desk = await world.desk(worker)
    match fault:
        case "silent":
            gate = worker.hold("foresee")
        case "unavailable":
            worker.blind = Refusal(grpc.StatusCode.UNAVAILABLE, "LOADING")
        case _:
            worker.blind = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "PLAN_DIFFERS")
    explained = await explain(desk)
    assert (RUN_ALL, False) == (stages(explained.report.stages), explained.worker_asked)
    if fault == "silent":
        gate.open()


async def test_without_redis_this_gateway_remembers_alone(world: World) -> None:
    """With nobody at its address, reasons and the nearest request come from memory, here and in reports."""
    nobody = world.cache.l2.model_copy(update={"url": f"redis://{LOOPBACK}:{free_port()}/0"})
    cache = CacheSettings.model_validate(
        {**world.cache.model_dump(), "secret": "5e" * 32, "l2": {**nobody.model_dump(), "budget": 1.0}}
    )
    worker = await world.worker()
    desk = await world.desk(worker, cache=cache)
    await desk.animate()
    explained = await explain(desk, seed=3)
    assert ["seed"] == list(explained.report.nearest.differing)
    media = await desk.animate(seed=3)
    assert (["seed"], "new") == (list(media.report.nearest.differing), name(media.report.reason))


# Why.


async def gone_by_flushing(world: World, objects: Path, desk: Desk) -> None:
    flush(int(world.cache.l2.url.get_secret_value().rpartition(":")[2].partition("/")[0]))
    for path in (path for kind in "rb" for path in (objects / kind).rglob("*")):
        if path.is_file():
            path.unlink()


async def test_what_is_gone_is_told_from_what_is_new(world: World, tmp_path: Path) -> None:
    """Everything lost from every tier: the same gateway says evicted; one that has never heard of it, new."""
    worker = await world.worker()
    desk = await world.desk(worker, cache=world.only("l2", "l3"))
    await desk.stored(await desk.animate())
    other = await world.desk(worker, cache=world.only("l2", "l3"))
    await gone_by_flushing(world, tmp_path / "objects", desk)
    strange = await explain(other)
    assert {"new"} == {*reasons(strange.report).values(), name(strange.report.reason)}
    explained, media = await explain(desk), await desk.animate()
    for report in (explained.report, media.report):
        assert {"evicted"} == {*reasons(report).values(), name(report.reason)}
        assert [] == list(report.nearest.differing)
    assert "reprise; fwd=uri-miss; detail=evicted" == media.cache_status
    assert 1.0 == await desk.metric("reprise_misses_total", reason="evicted", field="none")


async def test_damage_and_loss_are_told(world: World, tmp_path: Path) -> None:
    """A damaged picture encoding, and a result whose bytes are gone: the stage and the request say so."""
    worker = await world.worker()
    settings = world.only("l3")
    desk = await world.desk(worker, cache=settings)
    made = await desk.animate(extra={"size": 200_000})
    await desk.stored(made)
    plan = worker.requests[0].addresses

    def harm() -> None:
        flush(int(world.cache.l2.url.get_secret_value().rpartition(":")[2].partition("/")[0]))
        (record,) = (tmp_path / "objects" / "r").rglob(plan["picture"].partition("/")[2])
        record.write_bytes(b"damaged")
        (blob,) = (tmp_path / "objects" / "b").rglob(made.result.artifact.hex)
        blob.unlink()

    await asyncio.to_thread(harm)
    desk = await world.desk(worker, cache=settings)  # the first one remembers for a second what was not there
    media = await desk.animate(seed=5)
    assert "damaged" == reasons(media.report)["picture"]
    again = await desk.animate(extra={"size": 200_000})
    assert ("evicted", "evicted") == (name(again.report.reason), reasons(again.report)["render"])


async def test_what_was_not_kept_is_not_there_by_policy(world: World) -> None:
    """An earlier request forbade to store it; a request that forbids to read it says policy too."""
    desk = await world.desk(await world.worker())
    await desk.animate(policy={"no_store": True})
    media = await desk.animate()
    assert {"policy"} == {*reasons(media.report).values(), name(media.report.reason)}
    media = await desk.animate(policy={"mode": BYPASS})
    assert ("bypass", "policy") == (outcome(media), name(media.report.reason))
    assert "reprise; fwd=request" == media.cache_status


async def test_misses_are_counted_by_reason_and_field(world: World) -> None:
    """The one field that differs, several, or none; hits are no misses."""
    desk = await world.desk(await world.worker())
    for asked in (
        {},
        {},
        {"seed": 3},
        {"prompt": "a dog"},
        {"prompt": "a cow", "num_frames": 3},
        {"image": picture(9)},
    ):
        await desk.animate(**asked)
    for field, count in (("none", 1), ("seed", 1), ("prompt", 1), ("several", 1), ("image", 1)):
        assert float(count) == await desk.metric("reprise_misses_total", reason="new", field=field)


async def test_followers_hear_of_their_own_requests(world: World, tmp_path: Path) -> None:
    """Two users of a tenant share one generation; each is told what was nearest of its own."""
    keys = tmp_path / "keys.yaml"
    entries = [f"- {{key_sha256: {hash_key(user)!r}, tenant: t, user: {user}}}" for user in ("ann", "bob")]
    keys.write_text("\n".join(entries))
    worker = await world.worker()
    desk = await world.desk(worker, api_key="ann", identity={"mode": "api_keys", "file": keys})
    bob = await desk.connect(api_key="bob")
    await desk.stored(await desk.animate(seed=1))
    gate = worker.hold("step")
    ann_follows, bob_follows = desk.follow(seed=2), desk.follow(seed=2, client=bob)
    await asyncio.gather(ann_follows.seen("queued"), bob_follows.seen("queued"))
    gate.open()
    anns, bobs = await ann_follows.media(), await bob_follows.media()
    assert ({"miss", "coalesced"}, 2) == ({outcome(anns), outcome(bobs)}, worker.generations)
    assert ["seed"] == list(anns.report.nearest.differing)
    assert not bobs.report.HasField("nearest")
    explained = await bob.explain(ask(seed=3))
    assert ["seed"] == list(explained.report.nearest.differing)  # of the one that bob joined


async def test_what_was_had_from_a_tier_was_asked_too(world: World, tmp_path: Path) -> None:
    """A colleague who never generated anything is told of the result that was found for them."""
    keys = tmp_path / "keys.yaml"
    entries = [f"- {{key_sha256: {hash_key(user)!r}, tenant: t, user: {user}}}" for user in ("ann", "bob")]
    keys.write_text("\n".join(entries))
    desk = await world.desk(await world.worker(), api_key="ann", identity={"mode": "api_keys", "file": keys})
    bob = await desk.connect(api_key="bob")
    await desk.stored(await desk.animate())
    assert not (await bob.explain(ask(seed=3))).report.HasField("nearest")
    assert "hit from L1" == outcome(await bob.animate(ask()))
    assert ["seed"] == list((await bob.explain(ask(seed=3))).report.nearest.differing)


async def test_a_stage_that_nobody_asked_for_is_not_reported(world: World) -> None:
    """Whatever a worker says it did: a report has the stages of its request."""
    worker = await world.worker()

    def boast(finished: Finished) -> None:
        finished.stages.add(stage="strange", outcome=pb.STAGE_OUTCOME_RUN, device_seconds=1.0)

    worker.twist = boast
    media = await (await world.desk(worker)).animate()
    assert RUN_ALL == stages(media.report.stages)


# What is wrong with the question.


async def test_errors_are_those_of_the_request(world: World) -> None:
    """The same field, in the question and in the request before; and there must be a question."""
    desk = await world.desk(await world.worker())
    for wrong in (explain(desk, num_frames=65), explain(desk, after={"num_frames": 65})):
        problem = await problem_of(wrong)
        assert ("num_frames", grpc.StatusCode.INVALID_ARGUMENT) == (problem.field, problem.code)
    assert "MODEL_UNKNOWN" == (await problem_of(explain(desk, model="large"))).reason
    async with grpc.aio.insecure_channel(desk.address) as channel:
        problem = await problem_of(MediaServiceStub(channel).Explain(ExplainRequest()))
    assert ("animate_image", grpc.StatusCode.INVALID_ARGUMENT) == (problem.field, problem.code)


async def test_what_only_a_worker_can_refuse_is_refused(world: World) -> None:
    """An input the model cannot take is told as it would be told of the request."""
    worker = await world.worker()
    worker.blind = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INPUT_INVALID")
    assert grpc.StatusCode.INVALID_ARGUMENT == (await problem_of(explain(await world.desk(worker)))).code
