"""Speech through the engine: sentence by sentence, heard while it is made, and no sentence made twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from anyio import wait_all_tasks_blocked
from opentelemetry.trace import StatusCode

from cache.description import Description, Scope
from cache.keys import Address, Principal, namespace
from cache.record import INLINE_LIMIT, Record
from inference.errors import Abandoned, DeviceMemory, Fault, InvalidInput, MediaNeeded
from inference.favourites import Favourites
from reprise.v1 import common_pb2 as pb
from tests.inference.speech_fixtures import (
    RATE,
    Recorded,
    SpokenModel,
    ask_speech,
    file_rate,
    file_sound,
    live_sound,
    nothing,
    parts,
)
from tests.inference.worker_fixtures import ALICE, SECRET, Bench, Following, Heard, open_bench, run_out_of_memory, until

TEXT = "Good morning. How are you. I am well"  # frames: 6, 9, 9; pieces of sound: 3, 5, 5
RUN, REUSED, NOT_NEEDED = ("RUN", "UNSPECIFIED"), ("REUSED", "L1"), ("NOT_NEEDED", "UNSPECIFIED")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "l3", model=SpokenModel()) as bench:
        yield bench


def spoken(bench: Bench) -> SpokenModel:
    assert isinstance(bench.model, SpokenModel)
    return bench.model


def begin(bench: Bench, text: str = TEXT, **wanted: Any) -> Following:
    return bench.begin_request(ask_speech(bench.model.description, text, **wanted))


def checked(heard: Heard) -> Heard:
    """Whatever ran was heard live, and was the file's sound bit for bit; nothing else was heard."""
    assert file_sound(heard)
    assert live_sound(heard) == (file_sound(heard) if heard.stages["file"] == RUN else b"")
    return heard


async def say(bench: Bench, text: str = TEXT, **wanted: Any) -> Heard:
    return checked(await begin(bench, text, **wanted).end())


async def alone(folder: Path, text: str = TEXT, **wanted: Any) -> bytes:
    """What a worker makes that never made anything else."""
    async with open_bench(folder / "alone", model=SpokenModel()) as bench:
        return (await say(bench, text, store_nothing=True, **wanted)).data


def runs(bench: Bench) -> dict[str, int]:
    """How often each stage ran on the device, since this was last asked."""
    counts = {name: count for name, count in bench.model.runs.items() if name != "tokens"}
    bench.model.runs.clear()
    return counts


def everything(sentences: int) -> dict[str, int]:
    each = dict.fromkeys(("latents", "waveform", "pace"), sentences)
    return {"voice": 1, "prefix": 1, **each, "file": 1}


def sentences(ran: int, paced: int) -> dict[str, int]:
    """So many sentences were spoken; of so many the sound was paced."""
    spoken = dict.fromkeys(("latents", "waveform"), ran) if ran else {}
    return {**spoken, "pace": paced, "file": 1}


async def addresses(bench: Bench, text: str = TEXT, **wanted: Any) -> dict[str, Address]:
    """Where everything of a text lies, by stage and place."""
    plan = await bench.engine.plan(ask_speech(bench.model.description, text, **wanted))
    bench.model.runs.subtract(["tokens"])
    return {name: Address.parse(text) for name, text in (await bench.engine.foresee(plan)).addresses.items()}


async def record_files(bench: Bench, text: str, *stages: str) -> list[Path]:
    where = await addresses(bench, text)
    return [path for stage in stages for path in (bench.folder / "r").rglob(where[stage].content_id)]


# What runs.


async def test_a_text_is_spoken_sentence_by_sentence(bench: Bench) -> None:
    """Every sentence once, everything before and after them once; all are stored, and all are told, part by part."""
    heard = await say(bench)
    assert everything(3) == runs(bench)
    assert heard.stages == dict.fromkeys(heard.stages, RUN)
    assert ["RUN"] * 3 == parts(heard, "latents") == parts(heard, "waveform") == parts(heard, "pace")
    assert [] == parts(heard, "voice") == parts(heard, "tokens") == parts(heard, "file")
    assert (heard.stored, len(file_sound(heard))) == ("DURABLE", (6 + 9 + 9) * 3 * 2)


async def test_the_same_text_again_is_a_hit(bench: Bench) -> None:
    """In any spelling: the file comes from the tiers, nothing runs, nothing is heard while it is made."""
    first = await say(bench)
    again = await say(bench, "  good MORNING.  how are you. i am well. ")
    assert again.data == first.data
    assert again.stages == {**dict.fromkeys(first.stages, NOT_NEEDED), "file": REUSED}
    assert everything(3) == runs(bench)
    assert 1 == bench.shop.generations


@pytest.mark.parametrize(
    ("text", "spoken_anew", "paced", "latents", "waveform"),
    [
        (
            "Good morning. How is she. I am well",
            1,
            3,
            ["NOT_NEEDED", "RUN", "NOT_NEEDED"],
            ["REUSED L1", "RUN", "REUSED L1"],
        ),
        ("I am well. Good morning. How are you", 0, 3, ["NOT_NEEDED"] * 3, ["REUSED L1"] * 3),
        ("How are you. How are you", 0, 1, ["NOT_NEEDED"] * 2, ["REUSED L1"] * 2),
        (
            "Well. I am well. Well. Good morning. Well",
            1,
            3,
            ["RUN", "NOT_NEEDED", "REUSED", "NOT_NEEDED", "REUSED"],
            ["RUN", "REUSED L1", "REUSED", "REUSED L1", "REUSED"],
        ),
        ("Good morning", 0, 1, ["NOT_NEEDED"], ["REUSED L1"]),
        ("Hello", 1, 1, ["RUN"], ["RUN"]),
    ],
    ids=["edited", "swapped", "repeated", "new and repeated", "cut off", "another text"],
)
async def test_only_what_was_never_said_is_spoken(
    bench: Bench,
    tmp_path: Path,
    text: str,
    spoken_anew: int,
    paced: int,
    latents: list[str],
    waveform: list[str],
) -> None:
    """Wherever it was said; and the file is what it is when everything is made for it."""
    await say(bench)
    runs(bench)
    heard = await say(bench, text)
    assert sentences(spoken_anew, paced) == runs(bench)
    assert (latents, waveform) == (parts(heard, "latents"), parts(heard, "waveform"))
    assert await alone(tmp_path, text) == heard.data


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": "flac"}, sentences(0, 3)),
        ({"speed": 2.0}, sentences(0, 3)),
        ({"speed": 0.7, "sample_rate": 2 * RATE}, sentences(0, 3)),
        ({"sample_rate": 6}, sentences(0, 3)),
        ({"seed": 7}, sentences(3, 3)),
        ({"voice": Recorded(pitch=3)}, everything(3)),
        ({"voice": Recorded(sample_rate=2 * RATE)}, everything(3)),
    ],
    ids=str,
)
async def test_another_file_of_the_same_speech(
    bench: Bench, tmp_path: Path, change: dict[str, Any], expected: dict[str, int]
) -> None:
    """Format, speed and rate speak nothing again; a seed speaks everything again in the known voice; a voice is new."""
    first = await say(bench)
    runs(bench)
    heard = await say(bench, **change)
    assert expected == runs(bench)
    assert heard.data != first.data
    assert change.get("sample_rate", RATE) == file_rate(heard)
    assert await alone(tmp_path, **change) == heard.data


async def test_a_worker_that_starts_finds_what_was_said(tmp_path: Path, redis_url: str) -> None:
    """Sentences and voices come from the tiers behind it, and none is spoken again."""
    async with open_bench(tmp_path / "l3", model=SpokenModel(), redis=redis_url) as bench:
        await say(bench)
    async with open_bench(tmp_path / "l3", model=SpokenModel(), redis=redis_url) as bench:
        heard = await say(bench, "I am well. Are you well", with_sound=False)
        assert sentences(1, 2) == runs(bench)
        assert ["REUSED L2", "RUN"] == parts(heard, "waveform")
        assert ("REUSED", "L2") == heard.stages["prefix"]
        assert (await say(bench, with_sound=False)).stages["file"] == ("REUSED", "L2")


async def test_the_voice_itself_is_asked_for_when_it_must_be_heard(bench: Bench) -> None:
    """With its identity alone a known voice speaks; an unknown one is refused before anything waits."""
    assert isinstance(await begin(bench, with_sound=False).refusal(), MediaNeeded)
    assert {} == runs(bench)
    await say(bench)
    await say(bench, "Hello", with_sound=False)
    assert isinstance(await begin(bench, "Hello", voice=Recorded(pitch=9), with_sound=False).refusal(), MediaNeeded)


async def test_a_text_the_model_refuses_is_refused_by_its_field(bench: Bench) -> None:
    """As the model says it, in a run and in foresight; and it is nobody's fault."""
    with structlog.testing.capture_logs() as logs:
        refused = await begin(bench, " . ").refusal()
        plan = await bench.engine.plan(ask_speech(bench.model.description, "..."))
        with pytest.raises(InvalidInput):
            await bench.engine.foresee(plan)
    assert isinstance(refused, InvalidInput)
    assert ("text", "INVALID_ARGUMENT") == (refused.field, refused.code.name)
    assert [] == [entry for entry in logs if entry["log_level"] == "error"]
    assert 0 == bench.shop.generations


# Policies.


@pytest.mark.parametrize(
    ("policy", "known_again", "new_again"),
    [
        ({"reuse_nothing": True, "replace": True}, everything(3), everything(1)),
        ({"reuse_nothing": True, "store_nothing": True}, everything(3), everything(1)),
        ({"store_nothing": True}, {}, everything(1)),
        ({"max_age": 0.0}, everything(3), everything(1)),
        ({"max_age": 3600.0}, {}, sentences(0, 1)),
    ],
    ids=["refresh", "bypass", "no store", "nothing old", "young enough"],
)
async def test_policies_hold_for_every_sentence(
    bench: Bench, policy: dict[str, Any], known_again: dict[str, int], new_again: dict[str, int]
) -> None:
    """A known text asked for again under a policy, and a new sentence asked for twice under it."""
    known = await say(bench)
    runs(bench)
    again = await say(bench, **policy)
    assert (known.data, known_again) == (again.data, runs(bench))
    await say(bench, "Hello", voice=Recorded(pitch=9), **policy)
    assert everything(1) == runs(bench)
    await say(bench, "Hello. Hello", voice=Recorded(pitch=9), **policy)
    assert new_again == runs(bench)


async def test_what_must_not_be_stored_is_not(bench: Bench) -> None:
    """No sentence, no voice, no file; and what was stored before stays as it was."""
    heard = await say(bench, store_nothing=True)
    assert set() == bench.stored("r") | bench.stored("b")
    assert heard.stored == "NOT_STORED"
    assert 0 == len(bench.shop.pool)


async def test_a_refresh_replaces_every_sentence(bench: Bench) -> None:
    """What is found afterwards was made by it."""
    await say(bench)
    before = {record.address: record.made_at for record in await tenant_records(bench)}
    await say(bench, reuse_nothing=True, replace=True)
    after = {record.address: record.made_at for record in await tenant_records(bench)}
    assert before.keys() == after.keys()
    assert all(after[address] > before[address] for address in before)


async def tenant_records(bench: Bench) -> list[Record]:
    spaces = ask_speech(bench.model.description).namespaces
    return await bench.records(spaces[Scope.TENANT.value])


async def test_tenants_share_nothing_that_was_said(bench: Bench) -> None:
    """The same sentence in the same voice is spoken for each; users of one tenant share it."""
    mine = await say(bench)
    runs(bench)
    theirs = await say(bench, principal=Principal("evil", "alice", "s1"))
    assert everything(3) == runs(bench)
    assert mine.data == theirs.data
    assert theirs.record.address.content_id == mine.record.address.content_id
    assert theirs.record.address.namespace != mine.record.address.namespace
    await say(bench, "How are you", principal=Principal("acme", "bob", "s2"))
    assert sentences(0, 1) == runs(bench)


# What is lost.


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        (["waveform[1]"], {"waveform": 1, "pace": 3, "file": 1}),
        (["waveform[1]", "latents[1]"], {"latents": 1, "waveform": 1, "pace": 3, "file": 1}),
        (["latents[1]"], {"pace": 3, "file": 1}),
        (["waveform[1]", "latents[1]", "prefix", "voice"], everything(1) | {"pace": 3}),
    ],
    ids=["its sound", "all of it", "what nobody reads", "the voice too"],
)
@pytest.mark.parametrize("damage", [False, True], ids=["gone", "damaged"])
async def test_a_lost_sentence_is_made_again(
    bench: Bench, lost: list[str], expected: dict[str, int], damage: bool
) -> None:
    """It alone, from as far back as nothing is left; and it is whole again afterwards."""
    await say(bench)
    bench.forget_memory()
    for path in await record_files(bench, TEXT, *lost):
        await asyncio.to_thread(path.write_bytes, b"damaged") if damage else await asyncio.to_thread(path.unlink)
    runs(bench)
    heard = await say(bench, format="flac")
    assert expected == runs(bench)
    told = {
        report.stage: [pb.MissReason.Name(part.reason)[12:] for part in report.parts if part.reason]
        for report in heard.finished.stages
    }
    ran = {name.partition("[")[0] for name in lost if "[" in name} & expected.keys()
    assert {name: ["DAMAGED"] for name in ran if damage} == {name: said for name, said in told.items() if said}
    bench.forget_memory()
    await say(bench, speed=2.0)
    assert sentences(0, 3) == runs(bench)


async def test_a_sentence_whose_bytes_are_gone_is_made_again(tmp_path: Path) -> None:
    """Its record says that it is there; reading it shows that it is not, in the middle of a run's beginning."""
    model = SpokenModel()
    model.samples_per_frame = 4000
    quick: dict[str, Any] = {"speed": 2000.0}
    async with open_bench(tmp_path / "l3", model=model) as bench:
        await say(bench, **quick)
        where = await addresses(bench, **quick)
        record = await bench.record_at(str(where["waveform[2]"]))
        assert record is not None
        assert record.output.digest.size > INLINE_LIMIT
        bench.forget_memory()
        bench.lose_blob(record.output.digest)
        runs(bench)
        heard = await say(bench, format="flac", **quick)
        assert {"waveform": 1, "pace": 3, "file": 1} == runs(bench)
        assert ["REUSED L3", "REUSED L3", "RUN"] == parts(heard, "waveform")
        (waveform,) = (report for report in heard.finished.stages if report.stage == "waveform")
        assert pb.MISS_REASON_EVICTED == waveform.reason == waveform.parts[2].reason
        bench.forget_memory()
        assert ["REUSED L3"] * 3 == parts(await say(bench, format="flac", speed=3000.0), "waveform")


async def test_memory_that_runs_out_costs_the_sentence_and_is_not_heard(bench: Bench, tmp_path: Path) -> None:
    """The sentence begins anew once everything reusable has left the device; those before it do not."""
    spoken(bench).piece_trouble.extend([nothing] * 6 + [run_out_of_memory])  # the fourth piece of the second sentence
    heard = await say(bench)
    assert everything(3) | {"latents": 4, "waveform": 4, "pace": 4} == runs(bench)
    assert await alone(tmp_path) == heard.data
    assert 0 == len(bench.shop.pool)
    steps = [step for stage, step in heard.steps if stage == "latents"]
    assert [*range(1, 7), *range(1, 9), *range(1, 10), *range(1, 10)] == steps


async def test_memory_that_is_never_enough_ends_the_run(bench: Bench) -> None:
    """It is refused with sizes; the sentences before stay, and the next run goes on from there."""
    spoken(bench).piece_trouble.extend([nothing] * 4 + [run_out_of_memory] + [nothing] * 2 + [run_out_of_memory])
    assert isinstance(await begin(bench).refusal(), DeviceMemory)
    (failed,) = [span for span in bench.spans if span.status.status_code is StatusCode.ERROR and span.parent]
    assert "stage.waveform" == failed.name
    runs(bench)
    heard = await say(bench)
    assert sentences(2, 3) == runs(bench)
    assert ["REUSED L1", "RUN", "RUN"] == parts(heard, "waveform")


# Leaving and failing.


@pytest.mark.parametrize("where", ["a step", "a piece"])
async def test_a_text_given_up_in_its_second_sentence(bench: Bench, tmp_path: Path, where: str) -> None:
    """Nothing of that sentence is kept, all of the first is: who asks again hears all, made from the second on."""
    model = spoken(bench)
    between = model.step_gate if where == "a step" else model.piece_gate
    if where == "a step":
        model.frame_trouble.extend([nothing] * 8 + [between.close])  # the first sentence has six frames
    else:
        model.piece_trouble.extend([nothing] * 4 + [between.close])  # and its sound three pieces
    following = begin(bench, follower="f")
    await between.reached()
    bench.engine.abandon("f")
    assert isinstance(await following.refusal(), Abandoned)
    between.open()
    await bench.idle()
    assert 2 == model.runs["latents"]
    where_it_is = await addresses(bench)
    kept = {name for name, address in where_it_is.items() if await bench.record_at(str(address)) is not None}
    assert {"voice", "prefix", "latents[0]", "waveform[0]"} == kept
    runs(bench)
    heard = await say(bench, with_sound=False)
    assert sentences(2, 3) == runs(bench)
    assert ["REUSED L1", "RUN", "RUN"] == parts(heard, "waveform")
    assert await alone(tmp_path) == heard.data


@pytest.mark.parametrize("stage", ["latents", "waveform"])
async def test_a_stage_that_fails_in_the_middle_is_a_fault_of_its_own(bench: Bench, stage: str) -> None:
    """The log and the trace name the stage, leader or follower, and nothing of the text; the first sentence is kept."""
    model = spoken(bench)
    trouble = model.frame_trouble if stage == "latents" else model.piece_trouble
    trouble.extend([nothing] * (8 if stage == "latents" else 4) + [lambda: 1 // 0])
    with structlog.testing.capture_logs() as logs:
        assert isinstance(await begin(bench).refusal(), Fault)
    (entry,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert (stage, "ZeroDivisionError") == (entry["stage"], entry["error"])
    (failed,) = [span for span in bench.spans if span.status.status_code is StatusCode.ERROR and span.parent]
    assert f"stage.{stage}" == failed.name
    runs(bench)
    assert ["REUSED L1", "RUN", "RUN"] == parts(await say(bench), "waveform")
    assert sentences(2, 3) == runs(bench)


async def test_nobody_is_left_and_the_text_is_spoken_to_its_end(bench: Bench) -> None:
    """Running work is finished for nobody: who comes later finds the file."""
    model = spoken(bench)
    model.piece_gate.close()
    following = begin(bench)
    await model.piece_gate.reached()
    await following.leave()
    model.piece_gate.open()
    await bench.idle()
    assert (await say(bench, with_sound=False)).stages["file"] == REUSED
    assert everything(3) == runs(bench)


# At once.


async def test_equal_texts_at_once_are_spoken_once(bench: Bench) -> None:
    """In any spelling; all hear the same sound, live, and get the same file."""
    model = spoken(bench)
    model.gates["prefix"].close()
    spellings = [TEXT, TEXT.upper(), TEXT.replace(" ", "   "), TEXT + "."] * 8
    followers = [begin(bench, text) for text in spellings]
    await model.gates["prefix"].reached()
    model.gates["prefix"].open()
    heard = [checked(await follower.end()) for follower in followers]
    assert everything(3) == runs(bench)
    assert 1 == len({each.data for each in heard})
    assert [False] + [True] * 31 == sorted(each.finished.joined for each in heard)


async def test_a_late_listener_hears_everything(bench: Bench) -> None:
    """From the first sample on, however much had been heard before it came."""
    model = spoken(bench)
    model.gates["file"].close()
    first = begin(bench)
    await model.gates["file"].reached()
    late = begin(bench)
    whole = await alone(bench.folder.parent)
    await late.hears(lambda heard: live_sound(heard) == whole.partition(b"\n")[2])
    model.gates["file"].open()
    one, two = [checked(await each.end()) for each in (first, late)]
    assert [event.SerializeToString() for event in one.events] == [event.SerializeToString() for event in two.events]


async def test_texts_at_once_sound_as_they_do_alone(bench: Bench, tmp_path: Path) -> None:
    """Whatever they share with each other: each file is, bit for bit, what a worker makes that does nothing else."""
    texts = ["One two. Three", "Three. One two. Four", "Four. Four. Five", "One two three four", "Three"]
    heard = [checked(await each.end()) for each in [begin(bench, text, seed=n % 2) for n, text in enumerate(texts)]]
    for number, (text, each) in enumerate(zip(texts, heard, strict=True)):
        assert await alone(tmp_path / str(number), text, seed=number % 2) == each.data
    # By the one seed "One two", "Three", "Four", "Five"; by the other "Three", "One two", "Four", "One two three four".
    assert {"latents": 8, "waveform": 8, "voice": 1, "prefix": 1}.items() <= runs(bench).items()


async def test_sentences_are_heard_before_the_text_is_spoken(bench: Bench) -> None:
    """Sound is there while the first sentence is still being made, not after it; nothing is heard out of turn."""
    model = spoken(bench)
    model.frame_trouble.extend([nothing] * 4 + [model.step_gate.close])  # the first sentence has six frames
    following = begin(bench, sample_rate=RATE)
    await model.step_gate.reached()
    await following.hears(lambda heard: len(live_sound(heard)) == 12 * 2)  # of twice two frames, three samples each
    assert [("latents", step) for step in (1, 2, 3, 4)] == following.heard.steps
    assert not following.heard.data
    model.step_gate.open()
    checked(await following.end())


async def test_steps_say_of_which_sentence_they_are(bench: Bench) -> None:
    """Counted by place: a sentence that came before, in this text or another one, is not made again."""
    await say(bench, "Two")
    heard = await say(bench, "One. Two. One. Three four")
    told = [event.progress for event in heard.events if event.HasField("progress")]
    assert {("latents", 1, 4): 3, ("latents", 4, 4): 6} == {
        (each.stage, each.part, each.parts): each.steps for each in told
    }


async def test_a_stage_that_is_kept_is_heard_as_well(tmp_path: Path) -> None:
    """Where a family keeps what is heard live, what was found of it is told like what is made."""
    model = SpokenModel()
    stages = [stage.model_copy(update={"cached": True}) if stage.live else stage for stage in model.description.stages]
    model.description = Description.model_validate(model.description.model_copy(update={"stages": tuple(stages)}))
    async with open_bench(tmp_path / "l3", model=model) as bench:
        await say(bench)
        runs(bench)
        heard = await say(bench, "How are you. Hello. Good morning")
        assert sentences(1, 1) == runs(bench)
        assert ["REUSED L1", "RUN", "REUSED L1"] == parts(heard, "pace")


# What is said of it.


async def test_reports_add_up(bench: Bench) -> None:
    """A stage that ran cost what its parts that ran did; one that was reused, what all its places had cost."""
    first = {report.stage: report for report in (await say(bench, "One. Two")).finished.stages}
    heard = {report.stage: report for report in (await say(bench, "One. Three. One. Three")).finished.stages}
    waveform = heard["waveform"]
    assert [part.device_seconds for part in waveform.parts[::2]] == [first["waveform"].parts[0].device_seconds] * 2
    assert waveform.device_seconds == waveform.parts[1].device_seconds == waveform.parts[3].device_seconds > 0.0
    again = {report.stage: report for report in (await say(bench, "One. Two. One", speed=2.0)).finished.stages}
    assert "REUSED" == pb.StageOutcome.Name(again["waveform"].outcome)[14:]
    assert (
        pytest.approx(sum(part.device_seconds for part in again["waveform"].parts)) == again["waveform"].device_seconds
    )
    assert pb.TIER_L1 == again["waveform"].tier
    assert 2 == len({part.device_seconds for part in again["waveform"].parts})


async def test_records_of_sentences_are_records_of_their_stage(bench: Bench) -> None:
    """Under the name that the description gives; with what they were made of, and what it would cost to have them."""
    heard = await say(bench, "One. Two. One")
    records = await tenant_records(bench)
    kept = [record.stage for record in records if record.canonical is None]
    assert ["file", "latents", "latents", "prefix", "voice", "waveform", "waveform"] == sorted(kept)
    file, voice = heard.record, ask_speech(bench.model.description).sounds["voice"].identity
    places = {f"pcm[{place}]" for place in range(3)}
    assert places | {f"{place}.waveform" for place in places} == file.upstream.keys()
    assert file.upstream["pcm[0]"] == file.upstream["pcm[2]"] != file.upstream["pcm[1]"]
    assert {
        f"media:{voice}",
        *(f"via:{stage}" for stage in ("voice", "prefix", "tokens", "latents", "waveform", "pace")),
    } <= set(file.tags)
    assert not any("[" in tag for record in records for tag in record.tags)
    spent = [report.device_seconds for report in heard.finished.stages]
    assert pytest.approx(sum(spent)) == file.total_device_seconds
    (one, _) = (record for record in records if record.stage == "waveform")
    assert {f"of:{one.upstream['latents']}", f"media:{voice}", "via:tokens"} <= set(one.tags)
    found = next(record for record in records if record.address.content_id == one.upstream["latents"])
    assert pytest.approx(found.total_device_seconds + one.device_seconds) == one.total_device_seconds


async def test_a_favourite_file_means_its_voice(bench: Bench) -> None:
    """Though what the file is made of at once is never kept: what is worth having at hand is found behind it."""
    heard = await say(bench)
    bench.forget_memory()
    shared = namespace(SECRET, Scope.SHARED, Principal(""))
    wanted = Favourites(bench.shop, bench.engine.models, [heard.record.address], bench.tiers.orders.pins, shared=shared)
    await wanted.load()
    assert 1 == bench.shop.pool.pinned == len(bench.shop.pool)  # what every sentence reads
    assert ("REUSED", "POOL") == (await say(bench, "Hello", with_sound=False)).stages["prefix"]


async def test_a_reused_sentence_costs_what_it_cost(bench: Bench) -> None:
    """What a file would cost from nothing counts what is reused, and the voice that all sentences share once."""
    first = await say(bench, "One. Two. Three")
    heard = await say(bench, "Three. Two. One")
    before, after = first.finished.stages, heard.finished.stages
    shared = sum(
        report.device_seconds for report in before if report.stage in ("voice", "prefix", "latents", "waveform")
    )
    own = sum(report.device_seconds for report in after if report.stage in ("pace", "file"))
    assert pytest.approx(shared + own) == heard.record.total_device_seconds


async def test_what_is_seen_from_outside_has_whole_names(bench: Bench) -> None:
    """Spans say which part, metrics count every sentence; neither has a name that only one request has."""
    await say(bench, "One. Two")
    await say(bench, "Two. Three. Two")
    spans = [span for span in bench.spans if span.name.startswith("stage.")]
    assert {"stage.voice", "stage.prefix", "stage.latents", "stage.waveform", "stage.pace", "stage.file"} == {
        span.name for span in spans
    }
    ran = [dict(span.attributes or {}) for span in spans if span.name == "stage.latents"]
    assert [1, 2, 2] == [each["reprise.stage.part"] for each in ran]
    assert all(float(str(each["reprise.device_seconds"])) > 0.0 for each in ran)
    assert "reprise.stage.part" not in dict(next(s for s in spans if s.name == "stage.file").attributes or {})
    reused = [span for span in spans if (span.attributes or {}).get("reprise.stage.outcome") == "reused"]
    assert {"stage.waveform", "stage.prefix"} == {span.name for span in reused}
    labels = {"stage": "latents"}
    assert 3.0 == bench._registry.get_sample_value("reprise_stage_seconds_count", labels)


async def test_a_purge_by_what_was_said_finds_the_sentences(bench: Bench) -> None:
    """What is made of a text is tagged with it: the sentence, and every file that the sentence is in."""
    await say(bench, "One. Two")
    tokens = (await addresses(bench, "One. Two"))["tokens"].content_id
    other = await say(bench, "Three. Two")
    assert f"of:{tokens}" in other.record.tags
    third = await say(bench, "Three. Four")
    assert f"of:{tokens}" not in third.record.tags


# Foresight and handover.


@pytest.mark.parametrize("kept", ["everywhere", "in the durable tier"])
@pytest.mark.parametrize(
    ("text", "change"),
    [
        (TEXT, {}),
        (TEXT.upper(), {}),
        ("Good morning. Hello. I am well. Hello", {}),
        ("I am well. I am well", {}),
        (TEXT, {"seed": 1}),
        (TEXT, {"format": "flac"}),
        (TEXT, {"speed": 2.0}),
        ("Hello", {"voice": Recorded(pitch=9)}),
        (TEXT, {"reuse_nothing": True}),
        (TEXT, {"max_age": 0.0}),
        ("Hello. Good morning", {"store_nothing": True}),
        (TEXT, {"principal": Principal("other")}),
    ],
    ids=str,
)
async def test_what_is_foreseen_is_what_a_run_does(bench: Bench, text: str, change: dict[str, Any], kept: str) -> None:
    """Of every stage and every part: outcome, tier and reason; and where the file lies. No stage runs for it."""
    await say(bench)
    if kept != "everywhere":
        bench.forget_memory()
    runs(bench)
    plan = await bench.engine.plan(ask_speech(bench.model.description, text, with_sound=False, **change))
    foreseen = await bench.engine.foresee(plan)
    assert {} == runs(bench)
    heard = await say(bench, text, **change)

    def told(reports: Any) -> list[tuple[Any, ...]]:
        return [
            (each.stage, each.outcome, each.tier, each.reason, [(p.outcome, p.tier, p.reason) for p in each.parts])
            for each in reports
        ]

    assert told(heard.finished.stages) == told(foreseen.stages)
    assert heard.finished.canonical_address == foreseen.addresses["file"]


async def test_every_place_is_foreseen_at_its_address(bench: Bench) -> None:
    """Under the stage's name and the place; what has no parts under its own; equal sentences at one address."""
    where = await addresses(bench, "One. Two. One")
    places = {f"{stage}[{place}]" for stage in ("latents", "waveform", "pace") for place in range(3)}
    assert {"voice", "prefix", "tokens", "file"} | places == where.keys()
    assert where["waveform[0]"] == where["waveform[2]"] != where["waveform[1]"]
    await say(bench, "One. Two. One")
    for name in ("voice", "prefix", "file", *sorted(places)):
        record = await bench.record_at(str(where[name]))
        assert (record is None) == name.startswith("pace"), name
        assert record is None or name.partition("[")[0] == record.stage


async def test_a_new_voice_is_encoded_once_before_its_texts_are_spread(bench: Bench) -> None:
    """Texts in a new voice stay together until others can find what was made of it; then the later ones leave."""
    model = spoken(bench)
    model.step_gate.close()
    model.gates["voice"].close()
    texts = [begin(bench, "Hello one", idle=("one:1",))]
    await model.gates["voice"].reached()
    for name in ("two", "three"):
        texts.append(begin(bench, f"Hello {name}", idle=("one:1",)))
        await texts[-1].hears(lambda heard: bool(heard.positions))
    await wait_all_tasks_blocked()
    assert [[], [], []] == [each.heard.elsewhere for each in texts]
    model.gates["voice"].open()
    await texts[2].hears(lambda heard: heard.elsewhere == ["one:1"])
    model.step_gate.open()
    for each in texts[:2]:
        checked(await each.end())
    await texts[2].leave()
    assert 1 == model.runs["voice"]


async def test_leases_of_sentences_are_given_back(bench: Bench) -> None:
    """However a run of many sentences ends, nothing stays leased on the device."""
    await say(bench)
    await say(bench, ". ".join(f"Line {number}" for number in range(64)))
    spoken(bench).frame_trouble.append(lambda: 1 // 0)
    assert isinstance(await begin(bench, "Never").refusal(), Fault)
    assert 2 == len(bench.shop.pool)  # the voice, and its prefix
    bench.shop.pool.clear()
    assert 0 == bench.shop.pool.bytes


async def test_it_is_alice_who_speaks(bench: Bench) -> None:
    """Records carry the marks of whoever had them made and of the voice they speak in, so that they go with these."""
    await say(bench)
    spaces = ask_speech(bench.model.description, principal=ALICE).namespaces
    for record in await tenant_records(bench):
        assert {f"tenant:{spaces['tenant']}", f"user:{spaces['user']}"} <= set(record.tags)
        assert f"media:{Recorded().message().identity}" in record.tags
    await until(lambda: bench.engine.under_way == 0)
