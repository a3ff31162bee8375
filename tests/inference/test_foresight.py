"""Foresight: what is foreseen is what a run then does, and looking leaves no trace. Also why stages of a run ran."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cache.keys import Address, Principal
from inference.models.i2vgen_xl import I2VGenXL
from reprise.v1 import common_pb2 as pb
from reprise.v1.inference_pb2 import ForeseeResponse, RunRequest
from tests.inference.worker_fixtures import ALICE, Bench, Heard, Pixels, open_bench
from tests.inference.worker_fixtures import ask as ask_model

OTHER = Pixels(colour=200)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "l3") as bench:
        yield bench


async def foresee(bench: Bench, request: RunRequest | None = None, **wanted: Any) -> ForeseeResponse:
    return await bench.engine.foresee(await bench.engine.plan(request or bench.ask(with_pixels=False, **wanted)))


def outcomes(reports: Any) -> dict[str, str]:
    return {each.stage: pb.StageOutcome.Name(each.outcome).removeprefix("STAGE_OUTCOME_") for each in reports}


def reasons(reports: Any) -> dict[str, str]:
    return {each.stage: pb.MissReason.Name(each.reason).removeprefix("MISS_REASON_") for each in reports if each.reason}


def traces(bench: Bench) -> dict[str, object]:
    """Everything a look could change."""
    files = {str(path): path.stat().st_mtime_ns for path in bench.folder.rglob("*") if path.is_file()}
    memory, pool = bench.tiers.memory.entries, bench.shop.pool
    order = [*memory._entries, *pool._entries._entries]
    ages = [entry.expires for entry in (*memory._entries.values(), *pool._entries._entries.values())]
    leases = [entry.leases for entry in pool._entries._entries.values()]
    counts = {tally.tier: dict(tally.outcomes) for tally in (each.tally for each in bench.tiers.shared)}
    return {
        **files,
        "order": order,
        "ages": ages,
        "leases": leases,
        "counts": counts,
        "absent": dict(bench.shop.hierarchy._absent),
    }


@pytest.mark.parametrize("kept", ["everywhere", "in the durable tier"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"prompt": "A   CAT"},
        {"prompt": "a dog"},
        {"seed": 1},
        {"fps": 9},
        {"picture": OTHER},
        {"prompt": "a dog", "picture": OTHER},
        {"reuse_nothing": True},
        {"max_age": 0.0},
        {"store_nothing": True, "fps": 10},
    ],
    ids=str,
)
async def test_what_is_foreseen_is_what_a_run_does(bench: Bench, change: dict[str, Any], kept: str) -> None:
    """Every stage's outcome, tier and reason, and its canonical address; no stage runs, and nothing changes."""
    await bench.run()
    if kept != "everywhere":
        bench.forget_memory()
    before, ran, generations = traces(bench), dict(bench.model.runs), bench.shop.generations
    foreseen = await foresee(bench, **change)
    after = traces(bench)
    assert before == after
    assert generations == bench.shop.generations
    assert {**ran, "tokens": ran["tokens"] + 1} == bench.model.runs  # what the request means is asked of the model

    heard = await bench.run(**change)
    finished = heard.finished
    assert outcomes(finished.stages) == outcomes(foreseen.stages)
    assert reasons(finished.stages) == reasons(foreseen.stages)
    assert {each.stage: each.tier for each in finished.stages} == {each.stage: each.tier for each in foreseen.stages}
    assert finished.canonical_address == foreseen.addresses["video"]
    reused = {each.stage: each.device_seconds for each in foreseen.stages if each.device_seconds}
    assert reused == {each.stage: each.device_seconds for each in finished.stages if each.stage in reused}


async def test_nothing_is_foreseen_of_an_empty_worker(bench: Bench) -> None:
    """Everything would run; no pixels are needed to say so."""
    foreseen = await foresee(bench)
    assert {"RUN"} == set(outcomes(foreseen.stages).values())
    assert {} == reasons(foreseen.stages)
    assert 0 == bench.shop.generations


async def test_spellings_of_one_meaning_have_one_address(bench: Bench) -> None:
    """That is what a gateway cannot know."""
    one, two, other = [(await foresee(bench, prompt=prompt)).addresses for prompt in ("a cat", "A  CAT", "a dog")]
    assert one["video"] == two["video"] != other["video"]
    assert one["tokens"] != two["tokens"]


async def test_it_is_foreseen_while_the_device_works(bench: Bench) -> None:
    """A run that holds the device is not waited for."""
    bench.model.step_gate.close()
    running = bench.begin()
    await bench.model.step_gate.reached()
    foreseen = await foresee(bench, seed=5)
    assert {"text": "REUSED", "moments": "REUSED", "denoise": "RUN"}.items() <= outcomes(foreseen.stages).items()
    bench.model.step_gate.open()
    await running.end()


async def test_a_run_says_why_its_stages_ran(bench: Bench) -> None:
    """Bytes that are gone, a damaged record, one too old for this request: each is told; what is new says nothing."""
    await bench.run()
    bench.forget_memory()
    addresses = {stage: Address.parse(text) for stage, text in (await foresee(bench)).addresses.items()}

    def record_file(stage: str) -> Path:
        (path,) = (bench.folder / "r").rglob(addresses[stage].content_id)
        return path

    await asyncio.to_thread(record_file("moments").write_bytes, b"damaged")
    assert {"moments": "DAMAGED"} == reasons((await foresee(bench, seed=1)).stages)
    assert {"moments": "DAMAGED"} == reasons((await bench.run(seed=1)).finished.stages)
    again = await bench.run(seed=2, max_age=0.0)
    assert {"text": "POLICY", "moments": "POLICY"} == reasons(again.finished.stages)


def tiny(model: I2VGenXL, **given: Any) -> RunRequest:
    sizes = {"width": 64, "height": 64, "num_frames": 2, "num_inference_steps": 2, "guidance_scale": 9.0}
    return ask_model(model.description, picture=Pixels(width=80, height=80), **{**sizes, **given})


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"prompt": "a  cat"},
        {"prompt": "a dog"},
        {"negative_prompt": "blur"},
        {"seed": 7},
        {"num_frames": 3},
        {"num_inference_steps": 3},
        {"guidance_scale": 1.0},
        {"motion_fps": 9},
        {"playback_fps": 9},
        {"format": "webm"},
        {"height": 128},
        {"width": 128},
        {"clip_skip": 0},
    ],
    ids=str,
)
async def test_the_real_model_does_what_was_foreseen(tmp_path: Path, model: I2VGenXL, change: dict[str, Any]) -> None:
    """Each parameter of the true architecture: which stages a change runs is known before."""
    async with open_bench(tmp_path / "l3", model=model) as bench:
        await bench._follow(tiny(model), Heard())
        foreseen = await foresee(bench, tiny(model, **change))
        assert 1 == bench.shop.generations
        heard = Heard()
        await bench._follow(tiny(model, **change), heard)
    assert outcomes(heard.finished.stages) == outcomes(foreseen.stages)
    assert {each.stage: each.tier for each in heard.finished.stages} == {
        each.stage: each.tier for each in foreseen.stages
    }


async def test_what_a_run_would_take_and_wait_for_is_foreseen(bench: Bench) -> None:
    """By the estimates that came with the plans: its own of what would run, and those of the runs before it."""
    await bench.run()
    gate = bench.model.gates["denoise"]
    gate.close()
    seconds = {"text": 1.0, "moments": 2.0, "denoise": 8.0, "video": 4.0}

    def asked(seed: int, principal: Principal = ALICE) -> RunRequest:
        request = bench.ask(seed=seed, principal=principal)
        request.estimates.update(seconds)
        return request

    running = bench.begin_request(asked(1))
    await gate.reached()
    waiting = bench.begin_request(asked(2))
    await waiting.hears(lambda heard: heard.positions == [0])
    mine, joined, theirs = [
        await foresee(bench, request) for request in (asked(3), asked(2), asked(3, Principal("other", "carol")))
    ]
    unknown = await foresee(bench, seed=3)

    plan, known = await bench.engine.plan(asked(3)), await bench.engine.plan(bench.ask())
    late, later = [await bench.engine.foresee(plan, within=within) for within in (1.0, 1000.0)]
    assert (0.0, 12.0, {"RUN"}) == (late.run_seconds, later.run_seconds, set(outcomes(late.stages).values()))
    assert late.wait_seconds > 1.0
    assert "REUSED" == outcomes((await bench.engine.foresee(known, within=1.0)).stages)["video"]
    assert 24.0 == bench.engine.status().queue_seconds
    assert [12.0, 12.0, 0.0] == [mine.run_seconds, joined.run_seconds, unknown.run_seconds]
    assert mine.wait_seconds == pytest.approx(24.0, abs=10.0)
    assert theirs.wait_seconds == pytest.approx(12.0, abs=10.0)  # in turn: not behind what waits there
    assert mine.wait_seconds - theirs.wait_seconds == pytest.approx(12.0, abs=1.0)
    assert [False, True, False] == [each.under_way for each in (mine, joined, theirs)]
    gate.open()
    for follower in (running, waiting):
        await follower.end()
