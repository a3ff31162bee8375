from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import structlog
from anyio import wait_all_tasks_blocked
from blake3 import blake3
from opentelemetry.trace import StatusCode
from PIL import Image

from cache.digest import Digest
from cache.keys import Address
from cache.record import INLINE_LIMIT
from cache.settings import TelemetrySettings
from cache.switches import Subject, Switch
from cache.telemetry import set_up_logs
from inference import events, tensors
from inference.errors import Abandoned, DeviceMemory, Fault, MediaNeeded, NoSuchRun, NotReady, QueueFull
from inference.models.base import Artifact, Call, Output
from inference.models.i2vgen_xl import I2VGenXL
from reprise.v1.common_pb2 import MISS_REASON_EVICTED, LookupOutcome, Tier
from reprise.v1.inference_pb2 import RunRequest, RunResponse, StatusResponse
from tests.inference.worker_fixtures import (
    PATIENCE,
    STEPS,
    Bench,
    Following,
    GatedModel,
    Heard,
    Pixels,
    ask,
    open_bench,
    run_out_of_memory,
    until,
)

LARGE = 2 * 1024 * 1024 + 5  # bytes: an artifact of three chunks
ALL_RUN = dict.fromkeys(("tokens", "text", "moments", "denoise", "video"), ("RUN", "UNSPECIFIED"))
NOT_NEEDED = ("NOT_NEEDED", "UNSPECIFIED")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "l3") as bench:
        yield bench


def stage_runs(bench: Bench) -> dict[str, int]:
    return {name: count for name, count in bench.model.runs.items() if name != "tokens"}


# A run.


async def test_a_run_tells_its_steps_its_bytes_and_its_record_in_order(bench: Bench) -> None:
    """Progress, previews, chunks of 1 MiB, the result, then that it is durable; events are numbered from 1."""
    heard = await bench.run(size=LARGE)
    assert [event.sequence for event in heard.events] == list(range(1, len(heard.events) + 1))
    assert heard.steps == [("denoise", step) for step in range(1, STEPS + 1)]
    previews = [event.preview for event in heard.events if event.HasField("preview")]
    assert [preview.step for preview in previews] == list(range(1, STEPS + 1))
    assert all(preview.image.startswith(b"\xff\xd8") for preview in previews)
    chunks = [event.chunk for event in heard.events if event.HasField("chunk")]
    assert [(chunk.offset, len(chunk.data)) for chunk in chunks] == [
        (0, 1024 * 1024),
        (1024 * 1024, 1024 * 1024),
        (2 * 1024 * 1024, 5),
    ]
    assert [_kind(response) for response in heard.responses[-5:]] == [
        "event",
        "event",
        "event",
        "finished",
        "stored",
    ]
    assert heard.record.output.digest.names(heard.data)
    assert heard.record.output.media_type == "video/test"
    assert (heard.stages, heard.stored, heard.finished.joined) == (ALL_RUN, "DURABLE", False)
    assert heard.positions == []


def _kind(response: RunResponse) -> str:
    (kind,) = (descriptor.name for descriptor, _ in response.ListFields())
    return kind


async def test_a_record_says_what_its_output_cost_and_came_from(bench: Bench) -> None:
    """Own and total device time, upstream names, execution; small outputs lie inside, artifacts always beside it."""
    heard = await bench.run(size=1000)
    final = heard.record
    costs = {report.stage: report.device_seconds for report in heard.finished.stages}
    assert costs["tokens"] == 0.0
    assert all(costs[name] > 0.0 for name in ("text", "moments", "denoise", "video"))
    assert final.device_seconds == costs["video"]
    assert final.total_device_seconds == pytest.approx(sum(costs.values()))
    assert final.output.inline is None
    assert final.execution == {"device": "cpu", "dtype": "float32"}
    assert (final.model, final.revision, final.stage, final.fingerprint) == ("gated", "1", "video", "video/1")

    denoise = await bench.record_at(f"{final.address.namespace}/{final.upstream['latents']}")
    assert denoise is not None
    assert denoise.output.inline is not None
    assert tensors.from_bytes(denoise.output.inline)["latents"].shape == (1, 3, 8, 8)
    assert denoise.upstream.keys() == {"text", "moments"}
    assert denoise.total_device_seconds == pytest.approx(final.total_device_seconds - final.device_seconds)


async def test_a_record_names_the_media_it_depends_on(bench: Bench) -> None:
    """Through any number of stages, under every address; what came from text alone names none."""
    heard = await bench.run()
    (identity,) = {picture.identity for picture in bench.ask().pictures.values()}
    records = [record for space in set(bench.ask().namespaces.values()) for record in await bench.records(space)]
    tag = f"media:{identity}"
    named = {record.stage: tag in record.tags for record in records}
    assert {"text": False, "moments": True, "denoise": True, "video": True} == named
    assert tag in heard.record.tags
    assert heard.record.tags == heard.alias.tags


async def test_reports_say_what_looking_took(tmp_path: Path) -> None:
    """Which tiers were asked for each output and how long, the result's too; what is asked at once shares the time."""
    async with open_bench(tmp_path / "l3") as bench:
        first = await bench.run()
        bench.forget_memory()
        second = await bench.run(seed=7)

    def asked(heard: Heard) -> dict[str, list[str]]:
        return {
            report.stage: [
                f"{Tier.Name(each.tier)[5:]} {LookupOutcome.Name(each.outcome)[15:]}" for each in report.lookups
            ]
            for report in heard.finished.stages
        }

    nothing = ["L1 MISS", "L3 MISS"]
    assert {"tokens": [], "video": nothing} == {name: asked(first)[name] for name in ("tokens", "video")}
    assert asked(first)["text"][:2] == asked(first)["denoise"][:2] == asked(second)["video"] == nothing
    assert asked(second)["text"][:2] == asked(second)["moments"][:2] == ["L1 MISS", "L3 HIT"]
    seconds = [report.lookups[1].seconds for report in second.finished.stages if report.stage in ("text", "moments")]
    assert seconds[0] == seconds[1] > 0.0


async def test_the_result_is_had_under_both_its_names(bench: Bench) -> None:
    """The answer holds the record at the canonical address, and the same as found at the request's own."""
    request = bench.ask()
    heard = await bench.begin_request(request).end()
    assert heard.finished.canonical_address == str(heard.record.address)
    assert str(heard.alias.address) == request.addresses["video"]
    assert heard.alias.canonical == heard.record.address
    for address in (heard.finished.canonical_address, request.addresses["video"]):
        found = await bench.tiers.below_memory.fetch(Address.parse(address), 60.0)
        assert found.data == heard.data


async def test_nobody_looks_nobody_draws(bench: Bench) -> None:
    """Previews are made only while somebody follows."""
    model = bench.model
    model.step_gate.close()
    model.gates["video"].close()
    following = bench.begin()
    await model.step_gate.reached()
    await following.leave()
    model.step_gate.open()
    await model.gates["video"].reached()
    late = bench.begin()
    await late.hears(lambda heard: len(heard.steps) == STEPS)
    model.gates["video"].open()
    assert not any(event.HasField("preview") for event in (await late.end()).events)


# Equal requests.


async def test_many_equal_requests_are_one_run(bench: Bench) -> None:
    """64 at once cost one generation, and all are told the same."""
    bench.model.gates["denoise"].close()
    followers = [bench.begin(size=LARGE) for _ in range(64)]
    await bench.model.gates["denoise"].reached()
    bench.model.gates["denoise"].open()
    heard = [await follower.end() for follower in followers]
    assert stage_runs(bench) == dict.fromkeys(("text", "moments", "denoise", "video"), 1)
    assert bench.shop.generations == 1
    assert len({blake3(each.data).hexdigest() for each in heard}) == 1
    assert sorted(each.finished.joined for each in heard) == [False] + [True] * 63
    assert len({len(each.responses) for each in heard}) == 1


async def test_two_spellings_with_one_meaning_are_one_run(bench: Bench) -> None:
    """They meet under way, and both names are hits afterwards."""
    requests = [bench.ask(prompt=prompt) for prompt in ("a cat", "  A   CAT ")]
    assert requests[0].addresses["video"] != requests[1].addresses["video"]
    bench.model.gates["video"].close()
    followers = [bench.begin_request(request) for request in requests]
    await bench.model.gates["video"].reached()
    bench.model.gates["video"].open()
    heard = [await follower.end() for follower in followers]
    assert stage_runs(bench)["denoise"] == 1
    assert heard[0].data == heard[1].data
    assert heard[0].record == heard[1].record
    for request in requests:
        record = await bench.record_at(request.addresses["video"])
        assert record is not None
        assert record.canonical == heard[0].record.address


async def test_a_late_spelling_gets_its_name_too(tmp_path: Path) -> None:
    """One who joins when the result is being stored already finds it at its own address afterwards."""
    async with open_bench(tmp_path / "l3") as bench:
        late = bench.ask(prompt="A CAT")
        first = bench.begin()
        joined = None
        async with asyncio.timeout(PATIENCE):
            while joined is None:
                await asyncio.sleep(0)
                if any(response.HasField("finished") for response in first.heard.responses):
                    joined = bench.begin_request(late)
        heard = await joined.end()
        await first.end()
        assert stage_runs(bench)["denoise"] == 1
        assert heard.data == first.heard.data
        assert await bench.record_at(late.addresses["video"]) is not None


async def test_a_late_follower_hears_everything(bench: Bench) -> None:
    """What was told before it came is told first, then it follows like the others."""
    bench.model.gates["video"].close()
    first = bench.begin()
    await bench.model.gates["video"].reached()
    second = bench.begin()
    await second.hears(lambda heard: len(heard.steps) == STEPS)
    bench.model.gates["video"].open()
    one, two = await first.end(), await second.end()
    assert [event.SerializeToString() for event in one.events] == [event.SerializeToString() for event in two.events]
    assert (one.finished.joined, two.finished.joined) == (False, True)


async def test_a_known_result_is_answered_without_the_device(bench: Bench) -> None:
    """A second request with the same meaning is a hit, and its own spelling is remembered."""
    first = await bench.run()
    again = bench.ask(prompt="A cat")
    second = await bench.begin_request(again).end()
    assert bench.shop.generations == 1
    assert second.data == first.data
    assert second.record == first.record
    assert second.stages == {**dict.fromkeys(ALL_RUN, NOT_NEEDED), "video": ("REUSED", "L1")}
    assert second.stored == "DURABLE"
    assert (await bench.record_at(again.addresses["video"])) is not None


async def test_a_hit_heals_a_durable_tier_that_lost_it(bench: Bench) -> None:
    """What L1 still has and L3 has not any more is stored again."""
    first = await bench.run(size=INLINE_LIMIT + 1)
    stored = {kind: bench.stored(kind) for kind in ("r", "b")}
    for path in [path for path in bench.folder.rglob("*") if path.is_file()]:
        path.unlink()
    second = await bench.run(size=INLINE_LIMIT + 1)
    assert (second.data, second.stored) == (first.data, "DURABLE")
    assert bench.stored("b") == {first.record.output.digest.hex} <= stored["b"]
    assert first.record.address.content_id in bench.stored("r")


# Reuse of stages.


async def test_another_prompt_keeps_the_picture(bench: Bench) -> None:
    """Only what depends on the prompt runs again; the picture's encoding is still on the device."""
    await bench.run(prompt="a cat")
    heard = await bench.run(prompt="a dog", with_pixels=False)
    assert heard.stages == {**ALL_RUN, "moments": ("REUSED", "POOL")}
    assert stage_runs(bench) == {"text": 2, "moments": 1, "denoise": 2, "video": 2}


async def test_another_rendition_never_denoises(bench: Bench) -> None:
    """A change of playback decodes the stored latents; nothing before them is even looked at."""
    first = await bench.run(fps=8)
    second = await bench.run(fps=9, with_pixels=False)
    assert second.data != first.data
    assert second.stages == {
        "tokens": NOT_NEEDED,
        "text": NOT_NEEDED,
        "moments": NOT_NEEDED,
        "denoise": ("REUSED", "L1"),
        "video": ("RUN", "UNSPECIFIED"),
    }
    assert stage_runs(bench)["denoise"] == 1
    assert second.record.total_device_seconds > second.record.device_seconds
    reused = next(report for report in second.finished.stages if report.stage == "denoise")
    assert reused.device_seconds == next(r for r in first.finished.stages if r.stage == "denoise").device_seconds


async def test_reuse_survives_a_restart(bench: Bench) -> None:
    """With the pool and L1 empty, stages come from the durable tier, and are hot again afterwards."""
    await bench.run(prompt="a cat")
    bench.forget_memory()
    heard = await bench.run(prompt="a cat", seed=1, with_pixels=False)
    assert heard.stages == {
        "tokens": NOT_NEEDED,
        "text": ("REUSED", "L3"),
        "moments": ("REUSED", "L3"),
        "denoise": ("RUN", "UNSPECIFIED"),
        "video": ("RUN", "UNSPECIFIED"),
    }
    heard = await bench.run(prompt="a cat", seed=2, with_pixels=False)
    assert heard.stages["text"] == heard.stages["moments"] == ("REUSED", "POOL")


async def test_reuse_through_redis(tmp_path: Path, redis_url: str) -> None:
    """Another worker finds what the first one made in the shared tier that is faster."""
    async with open_bench(tmp_path / "l3", redis=redis_url) as bench:
        await bench.run()
    async with open_bench(tmp_path / "l3", redis=redis_url) as bench:
        heard = await bench.run(seed=1, with_pixels=False)
        assert heard.stages["moments"] == ("REUSED", "L2")
        heard = await bench.run(with_pixels=False)
        assert heard.stages["video"] == ("REUSED", "L2")
        assert bench.shop.generations == 1


async def test_an_encoding_that_redis_alone_has_is_stored_when_it_is_read(tmp_path: Path, redis_url: str) -> None:
    """Whatever made the durable tier miss it; what is not read stays as it is."""
    async with open_bench(tmp_path / "l3", redis=redis_url) as bench:
        bench.tiers.switches.turn(Switch(1.0, Subject.TIER, "l3", on=False))
        heard = await bench.run()
        assert ("NOT_STORED", set()) == (heard.stored, bench.stored("r"))
    async with open_bench(tmp_path / "l3", redis=redis_url) as bench:
        request = bench.ask(seed=1, with_pixels=False)
        moments = Address.parse(request.addresses["moments"])
        heard = await bench.begin_request(request).end()
        assert heard.stages["moments"] == ("REUSED", "L2")
        assert moments.content_id in bench.stored("r")
        assert heard.stored == "DURABLE"
        found = (await bench.tiers.below_memory.peek_many([moments]))[moments]
        assert found.record is not None
        assert ("l2", False) == (found.tier, found.record.pending)


async def test_an_output_of_its_own_that_was_not_stored_is_stored_when_it_is_read(bench: Bench) -> None:
    """From this process's memory, which knows that it may be alone."""
    bench.tiers.switches.turn(Switch(1.0, Subject.TIER, "l3", on=False))
    first = await bench.run(fps=8)
    assert ("NOT_STORED", set()) == (first.stored, bench.stored("r"))
    bench.tiers.switches.turn(Switch(2.0, Subject.TIER, "l3", on=True))
    second = await bench.run(fps=9, with_pixels=False)
    assert second.stages["denoise"] == ("REUSED", "L1")
    stored = await bench.records(second.record.address.namespace)
    assert {"denoise", "video"} == {record.stage for record in stored}


async def test_records_in_the_plan_are_used(bench: Bench) -> None:
    """What the gateway found needs no second lookup; where the bytes are inside, no tier is asked at all."""
    first = await bench.run()
    request = bench.ask(seed=1, with_pixels=False)
    moments = await bench.record_at(request.addresses["moments"])
    assert moments is not None
    assert moments.output.inline is not None
    request.records["moments"] = moments.to_bytes()
    bench.forget_memory()
    for path in (bench.folder / "r").rglob(moments.address.content_id):
        path.unlink()
    heard = await bench.begin_request(request).end()
    assert heard.stages["moments"] == ("REUSED", "UNSPECIFIED")
    assert heard.data != first.data


async def test_a_lost_blob_is_made_again(tmp_path: Path) -> None:
    """A record whose blob is gone costs its stage, not the request, and is whole again afterwards."""
    picture = Pixels(width=8, height=4)
    async with open_bench(tmp_path / "l3", model=_Large("moments")) as bench:
        await bench.run(picture=picture)
        request = bench.ask(seed=1, picture=picture)
        moments = await bench.record_at(request.addresses["moments"])
        assert moments is not None
        assert moments.output.inline is None
        bench.forget_memory()
        bench.lose_blob(moments.output.digest)
        heard = await bench.begin_request(request).end()
        assert heard.stages["moments"] == ("RUN", "UNSPECIFIED")
        reasons = {report.stage: report.reason for report in heard.finished.stages if report.reason}
        assert reasons == {"moments": MISS_REASON_EVICTED}
        bench.forget_memory()
        heard = await bench.run(seed=2, picture=picture, with_pixels=False)
        assert heard.stages["moments"] == ("REUSED", "L3")


async def test_a_lost_blob_can_need_the_media(tmp_path: Path) -> None:
    """When what was to be reused is gone and its stage reads pixels that the plan lacks, they are asked for."""
    async with open_bench(tmp_path / "l3", model=_Large("moments")) as bench:
        await bench.run()
        request = bench.ask(seed=1, with_pixels=False)
        moments = await bench.record_at(request.addresses["moments"])
        assert moments is not None
        bench.forget_memory()
        bench.lose_blob(moments.output.digest)
        assert isinstance(await bench.begin_request(request).refusal(), MediaNeeded)
        assert (await bench.run(seed=1)).stored == "DURABLE"


async def test_what_is_hot_serves_when_what_follows_is_lost(tmp_path: Path) -> None:
    """Latents that are gone are denoised again from what the device still holds."""
    async with open_bench(tmp_path / "l3", model=_Large("denoise")) as bench:
        first = await bench.run(fps=8)
        bench.tiers.memory.entries.clear()
        latents = await bench.record_at(f"{first.record.address.namespace}/{first.record.upstream['latents']}")
        assert latents is not None
        bench.lose_blob(latents.output.digest)
        heard = await bench.run(fps=9, with_pixels=False)
        assert heard.stages == {
            "tokens": NOT_NEEDED,
            "text": ("REUSED", "POOL"),
            "moments": ("REUSED", "POOL"),
            "denoise": ("RUN", "UNSPECIFIED"),
            "video": ("RUN", "UNSPECIFIED"),
        }
        assert heard.data != first.data
        bench.forget_memory()
        assert (await bench.run(fps=10, with_pixels=False)).stages["denoise"] == ("REUSED", "L3")


class _Large(GatedModel):
    """What one of its stages makes is too large to lie inside a record."""

    def __init__(self, large: str) -> None:
        super().__init__()
        self._large = large

    def run(self, stage: str, call: Call) -> Output:
        output = super().run(stage, call)
        if stage != self._large or isinstance(output, Artifact):
            return output
        return {name: tensor.repeat(1, INLINE_LIMIT // 8, *[1] * (tensor.dim() - 2)) for name, tensor in output.items()}


async def test_pixels_are_asked_for_when_they_are_needed(bench: Bench) -> None:
    """A plan without pixels is refused at once if a stage must read them, before it waits for anything."""
    refused = await bench.begin(with_pixels=False).refusal()
    assert (refused.reason, refused.code.name) == ("MEDIA_NEEDED", "FAILED_PRECONDITION")
    assert stage_runs(bench) == {}
    assert (await bench.run()).stages == ALL_RUN


# Near-duplicates.

OTHER = Pixels(colour=9)  # whose encodings stand in


async def test_borrowed_encodings_are_read_and_what_comes_of_them_is_kept_apart(bench: Bench) -> None:
    """The result is the one the other picture has, under an address that no exact request has, nor a third picture."""
    other = await bench.run(picture=OTHER)
    borrowing = await bench.run(near=OTHER, with_pixels=False)
    third = await bench.run(picture=Pixels(colour=8), near=OTHER, with_pixels=False)
    exact = await bench.run()

    reused = ("REUSED", "POOL")
    assert borrowing.stages == ALL_RUN | {"tokens": NOT_NEEDED, "text": reused, "moments": reused}
    assert other.data == borrowing.data == third.data
    assert exact.data != other.data
    assert len({heard.record.address for heard in (other, borrowing, third, exact)}) == 4
    assert stage_runs(bench)["moments"] == 2


async def test_what_rests_on_borrowed_encodings_is_reused_by_its_like_alone(bench: Bench) -> None:
    """Another file from the same latents, for the same picture with the same stand-in; the exact one denoises anew."""
    await bench.run(picture=OTHER)
    await bench.run(near=OTHER, with_pixels=False)
    bench.forget_memory()
    assert (await bench.run(near=OTHER, with_pixels=False, fps=9)).stages["denoise"] == ("REUSED", "L3")
    assert (await bench.run(fps=9)).stages["denoise"][0] == "RUN"


@pytest.mark.parametrize("with_pixels", [False, True])
async def test_nothing_is_encoded_under_anothers_name(bench: Bench, with_pixels: bool) -> None:
    """Without the encodings it counts on a plan is refused before any stage runs, also if it brings pixels."""
    refused = await bench.begin(near=OTHER, with_pixels=with_pixels).refusal()
    assert (refused.reason, refused.code.name) == ("NEAR_GONE", "FAILED_PRECONDITION")
    assert stage_runs(bench) == {}
    assert bench.stored("r") == set()


async def test_borrowed_encodings_that_go_while_a_run_waits_are_not_made(tmp_path: Path) -> None:
    """Their record is found and their bytes are not: the run is refused, and the other picture's name stays clean."""
    async with open_bench(tmp_path / "l3", model=_Large("moments")) as bench:
        first = await bench.run(picture=OTHER)
        encoded = await bench.record_at(bench.ask(picture=OTHER).addresses["moments"])
        assert encoded is not None
        bench.forget_memory()
        bench.lose_blob(encoded.output.digest)
        before = stage_runs(bench)
        assert (await bench.begin(near=OTHER).refusal()).reason == "NEAR_GONE"
        assert stage_runs(bench) == before
        again = await bench.run(picture=OTHER, reuse_nothing=True)
        assert (again.data, bench.model.runs["moments"]) == (first.data, 2)


# Policies.


async def test_store_nothing_leaves_no_trace(bench: Bench) -> None:
    """Neither tiers nor pool keep anything of it; the answer says so."""
    heard = await bench.run(store_nothing=True)
    assert heard.stored == "NOT_STORED"
    assert bench.stored("r") == bench.stored("b") == set()
    assert (len(bench.shop.pool), len(bench.tiers.memory.entries)) == (0, 0)
    assert (await bench.run()).stages == ALL_RUN


async def test_reuse_nothing_runs_every_stage(bench: Bench) -> None:
    """All is computed again, whatever there is, and pixels are needed for it."""
    first = await bench.run()
    again = await bench.run(reuse_nothing=True)
    assert again.stages == ALL_RUN
    assert again.data == first.data
    assert stage_runs(bench) == dict.fromkeys(("text", "moments", "denoise", "video"), 2)
    assert isinstance(await bench.begin(reuse_nothing=True, with_pixels=False).refusal(), MediaNeeded)


async def test_replace_puts_the_new_record_in_place(bench: Bench) -> None:
    """A refreshed result is what is found afterwards; without `replace` the first one stays."""
    first = await bench.run()
    address = first.finished.canonical_address
    kept = await bench.run(reuse_nothing=True)
    found = await bench.record_at(address)
    assert found is not None
    assert found.made_at == first.record.made_at < kept.record.made_at
    fresh = await bench.run(reuse_nothing=True, replace=True)
    found = await bench.record_at(address)
    assert found is not None
    assert found.made_at == fresh.record.made_at


async def test_nothing_older_than_wished_is_reused(bench: Bench) -> None:
    """An age of nothing makes everything run again, pool and all."""
    await bench.run()
    assert (await bench.run(max_age=3600.0)).stages["video"] == ("REUSED", "L1")
    assert (await bench.run(max_age=0.0, replace=True)).stages == ALL_RUN


async def test_no_stage_runs_before_it_is_told_that_the_run_has_the_device(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever follows knows what was running if the worker dies of it: the news has left before any stage begins."""
    monkeypatch.setattr(events, "_HEARD_WITHIN", PATIENCE)
    plan = await bench.engine.plan(bench.ask(pixels=True))
    async with aclosing(bench.engine.run(plan)) as responses:
        assert (await anext(responses)).begun.process == bench.shop.process
        await wait_all_tasks_blocked()
        assert stage_runs(bench) == {}
        more = [_kind(response) async for response in responses]
    assert "begun" not in more
    assert stage_runs(bench) != {}


async def test_a_follower_that_takes_nothing_delays_a_run_for_a_moment_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_HEARD_WITHIN", 0.0)
    async with aclosing(bench.engine.run(await bench.engine.plan(bench.ask(pixels=True)))) as responses:
        assert (await anext(responses)).HasField("begun")
        await until(lambda: bool(bench.model.runs["video"]))


# The queue.


async def test_those_who_wait_hear_their_position(bench: Bench) -> None:
    """Runs come one after the other in the order they came; a position is told at first and when it changes."""
    gate = bench.model.gates["denoise"]
    gate.close()
    first = bench.begin(seed=1)
    await gate.reached()
    others = []
    for number in (2, 3, 4):
        others.append(bench.begin(seed=number))
        await others[-1].hears(lambda heard: bool(heard.positions))
    status = bench.engine.status()
    assert (status.busy, status.queued, status.generations) == (True, 3, 1)
    gate.open()
    heard = [await each.end() for each in (first, *others)]
    assert [each.positions for each in heard] == [[], [0], [1, 0], [2, 1, 0]]
    assert bench.shop.generations == 4
    assert (bench.engine.status().busy, bench.engine.status().queued) == (False, 0)


async def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    """Who finds the queue full is told when to come again; an equal request still joins, and a hit is still served."""
    async with open_bench(tmp_path / "l3", queue=1) as bench:
        await bench.run(seed=9)
        gate = bench.model.gates["denoise"]
        gate.close()
        running = bench.begin(seed=1)
        await gate.reached()
        waiting = bench.begin(seed=2)
        await waiting.hears(lambda heard: heard.positions == [0])
        refused = await bench.begin(seed=3).refusal()
        assert isinstance(refused, QueueFull)
        assert refused.retry_after is not None
        assert refused.retry_after >= 1.0
        joined = bench.begin(seed=2)
        await joined.hears(lambda heard: heard.positions == [0])
        assert (await bench.run(seed=9)).stages["video"] == ("REUSED", "L1")
        gate.open()
        for follower in (running, waiting, joined):
            assert (await follower.end()).stored == "DURABLE"


async def test_nobodys_run_lets_everybody_go_first(bench: Bench) -> None:
    """At idle priority a run starts when no other waits, though those came later; its stages are stored as ever."""
    gate = bench.model.gates["denoise"]
    gate.close()
    running = bench.begin(seed=1)
    await gate.reached()
    idle = bench.begin(seed=2, idle_priority=True)
    await idle.hears(lambda heard: heard.positions == [0])
    later = bench.begin(seed=3)
    await idle.hears(lambda heard: heard.positions == [0, 1])
    gate.open()
    heard = [await each.end() for each in (running, later, idle)]
    began = [each.record.made_at for each in heard]
    assert sorted(began) == began
    assert ["DURABLE"] * 3 == [each.stored for each in heard]


async def test_a_run_somebody_joins_is_nobodys_no_longer(bench: Bench) -> None:
    """An equal request, in any spelling, makes a waiting idle run one like any other: it goes before idle ones."""
    gate = bench.model.gates["denoise"]
    gate.close()
    running = bench.begin(seed=1)
    await gate.reached()
    idle = [bench.begin(seed=seed, idle_priority=True) for seed in (2, 3)]
    await idle[1].hears(lambda heard: bool(heard.positions))
    await idle[0].hears(lambda heard: bool(heard.positions))
    last = max(idle, key=lambda each: each.heard.positions[-1])
    seed = 2 + idle.index(last)
    joined = bench.begin(seed=seed, prompt="A  CAT")
    await last.hears(lambda heard: heard.positions == [1, 0])
    gate.open()
    heard = [await each.end() for each in (running, *idle, joined)]
    assert heard[-1].finished.joined
    assert 3 == bench.shop.generations


async def test_a_run_whose_callers_have_left_lets_everybody_go_first(bench: Bench) -> None:
    """Its follower says so and stays, or goes; and once somebody waits for it again, it is like any other."""
    gate = bench.model.gates["denoise"]
    gate.close()
    running = bench.begin(seed=1)
    await gate.reached()
    line = []
    for seed in (2, 3, 4, 5):
        line.append(bench.begin(seed=seed, follower=str(seed)))
        await line[-1].hears(lambda heard: bool(heard.positions))
    left, back, gone, waiting = line
    for follower in ("2", "3"):
        bench.engine.attend(follower, waiting=False)
    await waiting.hears(lambda heard: heard.positions[-1] == 1)
    await gone.leave()
    await waiting.hears(lambda heard: heard.positions[-1] == 0)
    bench.engine.attend("3", waiting=True)
    again = bench.begin(seed=4)
    await back.hears(lambda heard: heard.positions[-1] == 1)
    gate.open()
    heard = [await each.end() for each in (running, waiting, back, again, left)]
    began = [each.record.made_at for each in heard]
    assert sorted(began) == began
    assert 5 == bench.shop.generations
    with pytest.raises(NoSuchRun):
        bench.engine.attend("2", waiting=True)


async def test_a_run_that_one_of_many_waits_for_keeps_its_place(bench: Bench) -> None:
    """Until the last of them has left."""
    gate = bench.model.gates["denoise"]
    gate.close()
    running = bench.begin(seed=1)
    await gate.reached()
    shared = [bench.begin(seed=2, follower=name) for name in ("a", "b")]
    await shared[0].hears(lambda heard: heard.positions == [0])
    other = bench.begin(seed=3)
    await other.hears(lambda heard: heard.positions == [1])
    bench.engine.attend("a", waiting=False)
    await wait_all_tasks_blocked()
    assert [1] == other.heard.positions
    bench.engine.attend("b", waiting=False)
    await other.hears(lambda heard: heard.positions == [1, 0])
    gate.open()
    for each in (running, *shared, other):
        await each.end()


async def test_only_so_many_runs_that_nobody_waits_for_are_kept(tmp_path: Path) -> None:
    """As many as may wait at all; what comes to that beyond them is dropped at once."""
    async with open_bench(tmp_path / "l3", queue=1) as bench:
        gate = bench.model.gates["denoise"]
        gate.close()
        running = bench.begin(seed=1)
        await gate.reached()
        kept, dropped = [await _deserted(bench, seed) for seed in (2, 3)]
        assert isinstance(await dropped.refusal(), Abandoned)
        await until(lambda: bench.shop.turns.waiting == 1)
        gate.open()
        for each in (running, kept):
            await each.end()
        assert 2 == bench.shop.generations


async def _deserted(bench: Bench, seed: int) -> Following:
    """Somebody who follows a run that waits, and says that nobody waits for it any more."""
    following = bench.begin(seed=seed, follower=str(seed))
    await following.hears(lambda heard: bool(heard.positions))
    bench.engine.attend(str(seed), waiting=False)
    return following


async def test_a_hit_never_waits(bench: Bench) -> None:
    """Text is understood and a known result served while the device is busy."""
    await bench.run(seed=1)
    bench.model.gates["denoise"].close()
    running = bench.begin(seed=2)
    await bench.model.gates["denoise"].reached()
    assert (await bench.run(seed=1, prompt="A CAT")).stages["video"] == ("REUSED", "L1")
    bench.model.gates["denoise"].open()
    await running.end()


async def test_inputs_come_near_while_a_run_waits(bench: Bench) -> None:
    """What it will read is on the device and leased before its turn comes."""
    await bench.run(picture=Pixels(1))
    bench.forget_memory()
    gate = bench.model.gates["denoise"]
    gate.close()
    running = bench.begin(picture=Pixels(2), prompt="a dog")
    await gate.reached()
    held = len(bench.shop.pool)
    waiting = bench.begin(picture=Pixels(1), seed=1, with_pixels=False)
    await until(lambda: len(bench.shop.pool) == held + 2)
    assert waiting.heard.positions == [0]
    before = bench.shop.pool.bytes
    bench.shop.pool.clear()
    assert 0 < bench.shop.pool.bytes <= before
    gate.open()
    heard = await waiting.end()
    await running.end()
    assert heard.stages["moments"] == heard.stages["text"] == ("REUSED", "L3")
    bench.shop.pool.clear()
    assert bench.shop.pool.bytes == 0


async def test_what_is_made_while_a_run_waits_is_not_made_again(bench: Bench) -> None:
    """Several tries on a new picture, asked for at once, encode it once."""
    gate = bench.model.gates["moments"]
    gate.close()
    tries = [bench.begin(prompt="a cat")]
    await gate.reached()
    tries += [bench.begin(prompt=prompt) for prompt in ("a dog", "a bird", "a fish", "a fox")]
    await until(lambda: bench.shop.turns.waiting == 4)
    gate.open()
    first, *others = [await each.end() for each in tries]
    assert first.stages == ALL_RUN
    assert all(heard.stages == {**ALL_RUN, "moments": ("REUSED", "POOL")} for heard in others)
    assert stage_runs(bench) == {"text": 5, "moments": 1, "denoise": 5, "video": 5}


async def test_a_pool_without_room_fails_nothing(tmp_path: Path) -> None:
    """With nothing kept on the device, inputs come from host memory at the run's turn."""
    async with open_bench(tmp_path / "l3", pool_bytes=0) as bench:
        await bench.run(seed=1)
        heard = await bench.run(seed=2, with_pixels=False)
        assert heard.stages["moments"] == ("REUSED", "L1")
        assert len(bench.shop.pool) == 0


# Memory.


async def test_out_of_memory_empties_the_pool_and_tries_again(bench: Bench) -> None:
    """One failed allocation costs what was hot, and nothing else."""
    await bench.run(picture=Pixels(1), prompt="a dog")
    assert len(bench.shop.pool) == 2
    bench.model.trouble["denoise"] = [run_out_of_memory]
    heard = await bench.run(picture=Pixels(2), prompt="a cat")
    assert heard.stored == "DURABLE"
    assert bench.model.runs["denoise"] == 3
    assert len(bench.shop.pool) == 0  # those of this run too: it goes on with what it holds


async def test_those_who_wait_give_their_leases_back_for_it(bench: Bench) -> None:
    """Memory held for a run that only waits is let go as well; that run reads its inputs again."""
    await bench.run(picture=Pixels(1))
    gate = bench.model.gates["denoise"]
    gate.close()
    bench.model.trouble["denoise"] = [run_out_of_memory]
    running = bench.begin(picture=Pixels(2), prompt="a dog")
    await gate.reached()
    waiting = bench.begin(picture=Pixels(1), seed=1, with_pixels=False)
    await waiting.hears(lambda heard: heard.positions == [0])
    await wait_all_tasks_blocked()
    gate.open()
    assert (await running.end()).stored == "DURABLE"
    heard = await waiting.end()
    assert heard.stages["moments"] == ("REUSED", "L1")
    assert stage_runs(bench)["moments"] == 2


async def test_out_of_memory_twice_is_told_and_forgotten(bench: Bench) -> None:
    """A run the device cannot hold is refused with sizes; the next one works."""
    bench.model.trouble["denoise"] = [run_out_of_memory, run_out_of_memory]
    refused = await bench.begin().refusal()
    assert isinstance(refused, DeviceMemory)
    assert refused.retry_after is None
    assert refused.metadata == {"device_bytes_free": "0", "device_bytes_total": "0"}
    heard = await bench.run(with_pixels=False)
    assert heard.stages["moments"] == ("REUSED", "L1")
    assert heard.stored == "DURABLE"


# Faults.


async def test_a_model_that_fails_is_a_fault_without_words(bench: Bench) -> None:
    """Every follower gets one neutral sentence, the log the way through the code and no text; the next one works."""

    prompt = "a secret cat"

    def fail() -> None:
        raise ValueError(prompt)

    bench.model.trouble["denoise"] = [fail]
    bench.model.gates["denoise"].close()
    with structlog.testing.capture_logs() as logs:
        followers = [bench.begin(prompt=prompt) for _ in range(2)]
        await bench.model.gates["denoise"].reached()
        bench.model.gates["denoise"].open()
        refusals = [await follower.refusal() for follower in followers]
    assert all(isinstance(refused, Fault) and "secret" not in str(refused) for refused in refusals)
    (entry,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert (entry["stage"], entry["error"]) == ("denoise", "ValueError")
    assert "worker_fixtures.py" in entry["traceback"]
    assert prompt not in str(entry)
    assert (await bench.run(prompt=prompt)).stored == "DURABLE"


async def test_a_fault_is_logged_with_the_trace_of_its_run(bench: Bench) -> None:
    """Also where the run goes on in a task of its own; the next run has another trace."""
    root, stream = logging.getLogger(), io.StringIO()
    before = (root.handlers[:], root.level, structlog.get_config())
    set_up_logs(TelemetrySettings(), stream)
    try:
        for _ in range(2):
            bench.model.trouble["denoise"] = [lambda: 1 // 0]
            assert isinstance(await bench.begin(with_pixels=True).refusal(), Fault)
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        structlog.configure(**before[2])

    logged = [line["trace_id"] for line in map(json.loads, stream.getvalue().splitlines()) if line["event"] == "fault"]
    traced = [f"{span.context.trace_id:032x}" for span in bench.spans if span.name == "worker.run"]
    assert traced == logged
    assert 2 == len(set(traced))


async def test_a_text_the_model_cannot_read_is_a_fault_too(bench: Bench) -> None:
    """A canonicalising stage that fails ends its request and no other."""
    bench.model.trouble["tokens"] = [lambda: 1 // 0]
    assert isinstance(await bench.begin().refusal(), Fault)
    assert (await bench.run()).stored == "DURABLE"


async def test_a_broken_durable_tier_fails_no_run(tmp_path: Path) -> None:
    """The result is delivered; the answer says that it is not stored."""
    folder = tmp_path / "l3"
    async with open_bench(folder) as bench:
        for path in folder.rglob("*"):
            path.unlink()
        folder.rmdir()
        folder.write_bytes(b"no folder any more")
        heard = await bench.run()
        assert heard.record.output.digest.names(heard.data)
        assert heard.stored == "NOT_STORED"
        folder.unlink()


# Leaving.


async def test_one_follower_leaves_the_others_stay(bench: Bench) -> None:
    """Even if it was the one who began."""
    bench.model.step_gate.close()
    leader, other = bench.begin(), bench.begin()
    await bench.model.step_gate.reached()
    await leader.leave()
    bench.model.step_gate.open()
    assert (await other.end()).stored == "DURABLE"
    assert stage_runs(bench)["denoise"] == 1


async def test_running_work_is_finished_for_nobody(tmp_path: Path) -> None:
    """When all have left, and however short the grace, what runs is finished and stored: the next request is a hit."""
    async with open_bench(tmp_path / "l3", grace=0.0) as bench:
        bench.model.step_gate.close()
        following = bench.begin()
        await bench.model.step_gate.reached()
        await following.leave()
        await wait_all_tasks_blocked()
        bench.model.step_gate.open()
        await bench.idle()
        assert (await bench.run(with_pixels=False)).stages["video"] == ("REUSED", "L1")
        assert bench.shop.generations == 1


async def test_queued_work_is_dropped_when_all_have_left(tmp_path: Path) -> None:
    """After the grace nobody's queued work is in nobody's way."""
    async with open_bench(tmp_path / "l3", grace=0.0) as bench:
        gate = bench.model.gates["denoise"]
        gate.close()
        running = bench.begin(seed=1)
        await gate.reached()
        queued = bench.begin(seed=2)
        await queued.hears(lambda heard: heard.positions == [0])
        await queued.leave()
        await until(lambda: bench.shop.turns.waiting == 0)
        gate.open()
        await running.end()
        assert bench.shop.generations == 1


async def test_one_who_comes_back_within_the_grace_finds_the_place_kept(bench: Bench) -> None:
    """A dropped stream picked up again costs no place in the queue and hears everything."""
    gate = bench.model.gates["denoise"]
    gate.close()
    running = bench.begin(seed=1)
    await gate.reached()
    queued = bench.begin(seed=2)
    await queued.hears(lambda heard: heard.positions == [0])
    await queued.leave()
    assert bench.shop.turns.waiting == 1
    again = bench.begin(seed=2)
    await again.hears(lambda heard: heard.positions == [0])
    assert bench.shop.turns.waiting == 1
    gate.open()
    assert (await again.end()).finished.joined
    await running.end()


async def test_abandoned_queued_work_is_dropped_at_once(bench: Bench) -> None:
    """Its follower's stream ends, and the queue is one shorter, without any grace."""
    gate = bench.model.gates["denoise"]
    gate.close()
    running = bench.begin(seed=1)
    await gate.reached()
    queued = bench.begin(seed=2, follower="f")
    await queued.hears(lambda heard: heard.positions == [0])
    bench.engine.abandon("f")
    assert isinstance(await queued.refusal(), Abandoned)
    await until(lambda: bench.shop.turns.waiting == 0)
    gate.open()
    await running.end()
    assert bench.shop.generations == 1


async def test_abandoned_running_work_stops_at_its_next_step(bench: Bench) -> None:
    """Nothing partial is stored; what was complete before is kept, and the next request works."""
    model = bench.model
    model.step_gate.close()
    following = bench.begin(follower="f")
    await model.step_gate.reached()
    bench.engine.abandon("f")
    assert isinstance(await following.refusal(), Abandoned)
    model.step_gate.open()
    await bench.idle()
    assert following.heard.steps == []
    heard = await bench.run(with_pixels=False)
    assert heard.stages == {
        "tokens": NOT_NEEDED,
        "text": ("REUSED", "POOL"),
        "moments": ("REUSED", "POOL"),
        "denoise": ("RUN", "UNSPECIFIED"),
        "video": ("RUN", "UNSPECIFIED"),
    }
    assert model.runs["denoise"] == 2


async def test_abandoning_leaves_others_their_run(bench: Bench) -> None:
    """One stream ends; the run goes on as long as somebody else follows it."""
    bench.model.step_gate.close()
    one, other = bench.begin(follower="one"), bench.begin(follower="other")
    await bench.model.step_gate.reached()
    bench.engine.abandon("one")
    assert isinstance(await one.refusal(), Abandoned)
    bench.model.step_gate.open()
    assert (await other.end()).stored == "DURABLE"
    assert isinstance(_refusal_of_abandon(bench, "other"), NoSuchRun)


async def test_all_followers_abandon_at_once(bench: Bench) -> None:
    """The last of several, told in the same moment, ends the work."""
    bench.model.step_gate.close()
    followers = [bench.begin(follower=name) for name in ("a", "b")]
    await bench.model.step_gate.reached()
    bench.engine.abandon("a")
    bench.engine.abandon("b")
    assert all([isinstance(await follower.refusal(), Abandoned) for follower in followers])
    bench.model.step_gate.open()
    await bench.idle()
    assert "video" not in bench.model.runs


async def test_who_comes_after_a_run_was_given_up_gets_a_new_one(bench: Bench) -> None:
    """It does not inherit the end of the old run, and waits for the device like any other."""
    bench.model.step_gate.close()
    gone = bench.begin(follower="f")
    await bench.model.step_gate.reached()
    bench.engine.abandon("f")
    following = bench.begin()
    await gone.refusal()
    await wait_all_tasks_blocked()
    assert bench.model.runs["denoise"] == 1
    bench.model.step_gate.open()
    heard = await following.end()
    assert (heard.stored, heard.finished.joined) == ("DURABLE", False)
    assert bench.model.runs["denoise"] == 2


async def test_nobody_of_that_name(bench: Bench) -> None:
    """Abandoning what is not followed, or not any more, is refused."""
    await bench.run(follower="f")
    assert isinstance(_refusal_of_abandon(bench, "f"), NoSuchRun)
    assert isinstance(_refusal_of_abandon(bench, ""), NoSuchRun)


def _refusal_of_abandon(bench: Bench, follower: str) -> Exception | None:
    try:
        bench.engine.abandon(follower)
    except NoSuchRun as refused:
        return refused
    return None


# The end.


async def test_draining_lets_runs_end_and_begins_none(bench: Bench) -> None:
    """Running and queued runs are finished and can be joined; new ones are refused."""
    gate = bench.model.gates["denoise"]
    gate.close()
    running = bench.begin(seed=1)
    await gate.reached()
    queued = bench.begin(seed=2)
    await queued.hears(lambda heard: heard.positions == [0])
    bench.engine.stop_accepting()
    assert bench.engine.status().state == StatusResponse.STATE_DRAINING
    refused = await bench.begin(seed=3).refusal()
    assert isinstance(refused, NotReady)
    assert refused.reason == "DRAINING"
    joined = bench.begin(seed=1)
    draining = asyncio.create_task(bench.engine.drain(PATIENCE))
    await wait_all_tasks_blocked()
    gate.open()
    await draining
    assert [(await each.end()).stored for each in (running, queued, joined)] == ["DURABLE"] * 3


async def test_draining_has_an_end(bench: Bench) -> None:
    """When patience is over, queued runs are dropped and the running one stops at its next step."""
    bench.model.step_gate.close()
    running = bench.begin(seed=1)
    await bench.model.step_gate.reached()
    queued = bench.begin(seed=2)
    await queued.hears(lambda heard: heard.positions == [0])
    bench.engine.stop_accepting()
    draining = asyncio.create_task(bench.engine.drain(0.0))
    refused = await queued.refusal()
    assert (refused.code.name, refused.reason) == ("UNAVAILABLE", "DRAINING")
    bench.model.step_gate.open()
    await draining
    assert (await running.refusal()).code.name in ("UNAVAILABLE", "CANCELLED")
    assert "video" not in bench.model.runs


# What is seen of it.


async def test_a_trace_has_the_run_the_wait_and_every_stage(bench: Bench) -> None:
    """Spans hang together, carry device seconds and tiers, and nothing of what was asked for."""
    await bench.run(prompt="a cat")
    first = len(bench.spans)
    await bench.run(prompt="a secret dog", seed=3)
    spans = {span.name: span for span in bench.spans[first:]}
    root = spans["worker.run"]
    assert {"worker.queue", "stage.text", "stage.moments", "stage.denoise", "stage.video", "cache.l3"} <= spans.keys()
    assert root.context is not None
    assert {span.context.trace_id for span in spans.values() if span.context} == {root.context.trace_id}
    denoise, moments = spans["stage.denoise"].attributes or {}, spans["stage.moments"].attributes or {}
    assert denoise["reprise.stage.outcome"] == "run"
    assert float(str(denoise["reprise.device_seconds"])) > 0.0
    assert (moments["reprise.stage.outcome"], moments["reprise.cache.tier"]) == ("reused", "pool")
    assert "secret" not in "".join(span.to_json() for span in spans.values())
    bench.model.trouble["denoise"] = [lambda: 1 // 0]
    await bench.begin(seed=4).refusal()
    assert next(span for span in bench.spans if span.status.status_code is StatusCode.ERROR).name == "stage.denoise"


async def test_status_counts_generations_and_the_pool(bench: Bench) -> None:
    """Hits and joins are no generations; the pool is counted in entries and bytes."""
    await bench.run()
    await bench.run()
    status = bench.engine.status()
    assert status.state == StatusResponse.STATE_READY
    assert (status.generations, status.queued, status.busy) == (1, 0, False)
    assert (status.pool_entries, status.pool_bytes) == (2, bench.shop.pool.bytes)
    assert status.model_bytes == 32  # eight numbers of four bytes


# The real model.


async def test_the_real_model_runs_and_is_reused(tmp_path: Path, model: I2VGenXL) -> None:
    """A small I2VGen-XL: another prompt keeps both encodings of the picture, another file format keeps the latents, and
    what comes out is what an engine makes that never saw any of it.
    """
    picture = Pixels(width=64, height=64)
    wanted = {"width": 64, "height": 64, "num_frames": 2, "num_inference_steps": 2, "guidance_scale": 9.0}

    def request(**more: object) -> RunRequest:
        made: RunRequest = ask(model.description, picture=picture, **{**wanted, **more})  # type: ignore[arg-type]
        return made

    async with open_bench(tmp_path / "one", model=model) as bench:
        first = await bench.begin_request(request(prompt="a cat runs")).end()
        assert {outcome for outcome, _ in first.stages.values()} == {"RUN"}
        second = await bench.begin_request(request(prompt="a dog runs")).end()
        assert second.stages["moments"] == second.stages["vision"] == ("REUSED", "POOL")
        assert second.stages["negative_text"] == ("REUSED", "POOL")
        third = await bench.begin_request(request(prompt="a dog runs", format="webm")).end()
        assert third.stages["denoise"] == ("REUSED", "L1")
        assert third.record.output.media_type == "video/webm"
        preview = next(event.preview.image for event in second.events if event.HasField("preview"))
        Image.open(io.BytesIO(preview)).verify()
    async with open_bench(tmp_path / "two", model=model) as bench:
        afresh = await bench.begin_request(request(prompt="a dog runs")).end()
        assert Digest.of(afresh.data) == Digest.of(second.data)
        assert afresh.record.address == second.record.address
