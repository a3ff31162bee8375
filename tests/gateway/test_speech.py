"""Speech through a gateway: heard as it is made, and the same again whenever, wherever and however it is asked for."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from cache.digest import Digest
from gateway import live
from gateway.client import Client, Media
from gateway.identity import hash_key
from gateway.sounds import samples_of
from gateway.status import Problem
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import DELIVERY_NONE, DELIVERY_URL, GenerationEvent, SynthesizeSpeechRequest
from reprise.v1.media_pb2_grpc import MediaServiceStub
from tests.gateway.speech import VOICE, samples_in, voice, wav
from tests.gateway.worker import ScriptedWorker, family, speaker
from tests.gateway.world import (
    MIB,
    Desk,
    Follower,
    Heard,
    World,
    ask,
    eventually,
    heard,
    kinds,
    outcome,
    parts,
    picture,
    problem_of,
    say,
    stages,
)

LONG = 3600.0  # seconds; a grace that no test waits for
INVALID, EXHAUSTED, MISSING = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.NOT_FOUND,
)
REFRESH, BYPASS, ONLY = pb.CachePolicy.MODE_REFRESH, pb.CachePolicy.MODE_BYPASS, pb.CachePolicy.MODE_ONLY_IF_CACHED
TEXT = "A cat. A dog. A cat."


async def listened(desk: Desk, text: str = TEXT, **fields: Any) -> tuple[Media, Heard]:
    """A live request to its end: the answer, and all that was heard."""
    listener = desk.listen(text, **fields)
    return await listener.media(), heard(listener.events)


def of_file(media: Media) -> Heard:
    """What the file sounds like, cut every quarter of a second."""
    rate, pcm = samples_in(media.data)
    size = rate // 4 * 2
    return Heard([rate], [(at // 2, pcm[at : at + size]) for at in range(0, len(pcm), size)])


# Live.


FILES: dict[str, dict[str, Any]] = {
    "wav": {},
    "flac": {"format": "flac"},
    "a rate that has no whole quarter": {"sample_rate": 11025, "speed": 1.5},
}


@pytest.mark.parametrize("file", FILES)
async def test_speech_is_heard_as_it_is_made(world: World, file: str) -> None:
    """First what it is made of, then its samples a quarter of a second at a time, long before the file, and its own."""
    fields = FILES[file]
    worker = await world.worker(speaker())
    desk = await world.desk(worker)
    listener = desk.listen("A cat.", **fields)
    whole = await listener.media()
    again = worker.hold("sentence")
    second = desk.listen("A cat. A dog. And so on.", **fields)  # its first sentence is there
    await second.seen("samples")
    assert not again.opened.is_set()
    again.open()
    longer = await second.media()

    for media, events in ((whole, listener.events), (longer, second.events)):
        assert of_file(media) == heard(events)
        order = [kind for kind in kinds(events) if kind in ("sound", "samples", "chunk", "result")]
        assert order == sorted(order, key=["sound", "samples", "chunk", "result"].index)
        assert list(range(1, 1 + len(events))) == [event.sequence for event in events]
        assert media.result.first_audio_seconds > 0.0


async def test_whoever_does_not_listen_hears_nothing(world: World) -> None:
    """One flight for both: the numbers of what is not told are left out, and Watch goes on from any of them."""
    worker = await world.worker(speaker())
    gate = worker.hold("sentence")
    desk = await world.desk(worker)
    listener, reader = desk.listen(TEXT), desk.listen(TEXT, live=False)
    for follower in (listener, reader):
        await follower.seen("queued")
    gate.open()
    loud, quiet = await listener.media(), await reader.media()
    told = {event.sequence: event for event in listener.events}

    assert ["accepted", "queued", "progress", "progress", "chunk", "result"] == kinds(reader.events)
    assert (loud.data, ["coalesced", "miss"]) == (quiet.data, sorted(map(outcome, (loud, quiet))))
    assert (1, 1) == (worker.generations, len(worker.requests))
    assert 0.0 == quiet.result.first_audio_seconds < loud.result.first_audio_seconds
    for event in reader.events[1:-1]:
        assert told[event.sequence] == event
    for sequence in range(1, loud.last_sequence + 1):
        rest = [each async for each in desk.client.watch(quiet.name, sequence)]
        assert [event.sequence for event in reader.events if event.sequence >= sequence] == [
            event.sequence for event in rest[:-1]
        ]


SOURCES = ("memory", "Redis", "object store", "worker", "watched", "watched elsewhere")


@pytest.mark.parametrize("container", ["wav", "flac"])
@pytest.mark.parametrize("source", SOURCES)
async def test_it_sounds_the_same_wherever_it_comes_from(world: World, source: str, container: str) -> None:
    """Live and replayed bytes agree block by block, from every tier and through every gateway."""
    worker = await world.worker(speaker())
    desk, other = await world.desk(worker), await world.desk(worker)
    first = desk.listen(TEXT, format=container)
    made = await first.media()
    expected, events = heard(first.events), list[GenerationEvent]()
    if source.startswith("watched"):
        watching = desk if source == "watched" else other
        media = await watching.client.rejoin(made.name, on_event=events.append)
    else:
        await desk.stored(made)
        text, where = TEXT, desk
        if source == "worker":
            text = "a  CAT.  a dog.  a cat. "
        elif source != "memory":
            where = await world.desk(worker, cache=world.only("l2" if source == "Redis" else "l3"))
        late = where.listen(text, format=container)
        media, events = await late.media(), late.events
        tier = {"memory": "L1", "Redis": "L2", "object store": "L3", "worker": "L2"}[source]
        assert f"hit from {tier}" == outcome(media)

    assert of_file(made) == expected == heard(events)
    assert made.data == media.data
    assert 1 == worker.generations


@pytest.mark.parametrize("container", ["wav", "flac"])
async def test_a_listener_joins_in_the_middle(world: World, container: str) -> None:
    """Through the other gateway too: all that was said so far at once, then as it comes, and nothing twice."""
    worker = await world.worker(speaker())
    here, there = await world.desk(worker), await world.desk(worker)
    await here.speak(TEXT, format=container)
    gate = worker.hold("sentence")
    text = f"{TEXT} Nothing else."
    early = here.listen(text, format=container)
    await early.seen("samples")
    await gate.reached.wait()
    late = [here.listen(text, format=container), there.listen(text, format=container)]
    for each in late:
        await eventually(lambda each=each: _heard(each), wanted=lambda told: told == heard(early.events))  # type: ignore[misc]
    gate.open()
    media = [await each.media() for each in (early, *late)]

    assert [of_file(media[0])] * 3 == [heard(each.events) for each in (early, *late)]
    assert (1, 2) == (len({each.data for each in media}), worker.generations)


async def test_a_watched_stream_of_sound_goes_on_where_it_broke(world: World) -> None:
    """From the next event on, to samples that were made later; a file from elsewhere is heard from its beginning."""
    worker = await world.worker(speaker())
    desk = await world.desk(worker, grace=LONG)
    await desk.speak("A cat.")
    gate = worker.hold("sentence")
    listener = desk.listen("A cat. A dog.")
    last = await listener.seen("samples")
    await listener.leave()
    before = [event for event in listener.events if event.sequence <= last.sequence]
    watching = asyncio.create_task(_watched(desk, await listener.name(), last.sequence + 1))
    gate.open()
    after = await watching
    whole = await desk.speak("A cat. A dog.")

    assert of_file(whole) == heard([*before, *after])
    assert "stored" == kinds(after)[-1]


async def _watched(desk: Desk, name: str, start: int) -> list[GenerationEvent]:
    async with asyncio.timeout(10):
        return [event async for event in desk.client.watch(name, start)]


async def test_who_gives_up_takes_nobody_along(world: World) -> None:
    """Of three who hear the same, one cancels and one hangs up; the third hears all of it."""
    worker = await world.worker(speaker())
    gate = worker.hold("sentence")
    desk = await world.desk(worker)
    cancelling, leaving, staying = (desk.listen(TEXT) for _ in range(3))
    for each in (cancelling, leaving, staying):
        await each.seen("queued")
    await desk.client.cancel(await cancelling.name())
    assert grpc.StatusCode.CANCELLED == (await problem_of(cancelling.task)).code
    await leaving.leave()
    gate.open()

    assert of_file(await staying.media()) == heard(staying.events)
    assert (1, 0) == (worker.generations, worker.cancelled)


async def test_sound_that_is_not_told_is_silence(world: World) -> None:
    """While others listen, who does not gets signs of life."""
    worker = await world.worker(speaker())
    worker.step_seconds = 0.04
    desk = await world.desk(worker, heartbeat=0.1)
    listener, reader = desk.listen(TEXT * 3), desk.listen(TEXT * 3, live=False)
    await listener.media()
    await reader.media()

    last = max(place for place, kind in enumerate(kinds(reader.events)) if kind == "progress")
    assert "" in kinds(reader.events)[last:]


async def _heard(follower: Follower) -> Heard:
    return heard(follower.events)


# Two workers.


async def test_a_worker_that_dies_while_it_speaks_is_not_heard_twice(world: World) -> None:
    """Another one makes it again; what was heard already is not told again, and the rest follows."""
    workers = [await world.worker(speaker(), started_at=number) for number in (1.0, 2.0)]
    desk = await world.desk(*workers)
    await desk.speak("A cat.")
    gates = [worker.hold("sentence") for worker in workers]
    listener = desk.listen("A cat. A dog.")
    await listener.seen("samples")
    (speaking,) = (worker for worker in workers if worker.following)
    await speaking.die()
    for gate in gates:
        gate.open()

    assert of_file(await listener.media()) == heard(listener.events)


async def test_what_was_heard_is_in_the_file_or_refused(world: World) -> None:
    """A worker whose samples are not those of its file: who listened is told so, and hears it from its beginning."""
    worker = await world.worker(speaker())
    worker.twist_samples = lambda pcm: bytes(len(pcm))
    desk = await world.desk(worker)
    gate = worker.hold("begin")
    listener, reader = desk.listen(TEXT), desk.listen(TEXT, live=False)
    for each in (listener, reader):
        await each.seen("accepted")
    gate.open()
    problem = await problem_of(listener.task)
    quiet = await reader.media()
    retries: list[Problem] = []
    events: list[GenerationEvent] = []

    async def no_pause(_seconds: float) -> None: ...

    async with Client(desk.address, sleep=no_pause) as client:
        worker.twist_samples = lambda pcm: bytes(len(pcm))
        loud = await client.speak(
            say("Another one.", live=True),
            on_event=events.append,
            on_retry=lambda problem, _: retries.append(problem),
        )

    assert (grpc.StatusCode.UNAVAILABLE, "SOUND_CHANGED") == (problem.code, problem.reason)
    assert "miss" == outcome(quiet) or "coalesced" == outcome(quiet)
    assert ["SOUND_CHANGED"] == [each.reason for each in retries]
    begun = [place for place, event in enumerate(events) if event.HasField("sound")]
    assert 2 == len(begun)
    assert of_file(loud) == heard(events[begun[-1] :])


# What a hit costs.


async def test_a_flac_is_decoded_once_for_everybody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many listen to it, at once and later; its samples lie in memory within its bound, and a WAV has none."""
    decoded: list[str] = []

    def counted(file: bytes, media_type: str) -> tuple[int, bytes]:
        decoded.append(media_type)
        return samples_of(file, media_type)

    monkeypatch.setattr(live, "samples_of", counted)
    worker = await world.worker(speaker())
    first = await world.desk(worker)
    for container in ("flac", "wav"):
        await first.stored(await first.speak(TEXT, format=container))
    desk = await world.desk(worker)
    crowd = [desk.listen(TEXT, format="flac") for _ in range(10)]
    media = [await each.media() for each in crowd]
    before = await _memory(desk)
    again, sound = await listened(desk, format="flac")
    assert (1, "hit from L1") == (len(decoded), outcome(again))
    assert before == await _memory(desk)
    assert before > len(again.data) + len(sound.pcm)

    await desk.speak(TEXT)
    unheard = await _memory(desk)
    await listened(desk)
    assert unheard == await _memory(desk)
    assert (["audio/flac"], 1) == (decoded, len({each.data for each in media}))


async def _memory(desk: Desk) -> int:
    (l1, *_) = (await desk.client.stats()).tiers
    return l1.bytes


async def test_samples_that_find_no_room_in_memory_are_heard_all_the_same(world: World) -> None:
    """The reply stays in memory without them."""
    worker = await world.worker(speaker())
    silence = "A cat. " * 30
    small = world.only("l1", "l3", l1={"max_bytes": 500_000, "max_share": 1.0})
    desk = await world.desk(worker, cache=small)
    made = await desk.speak(silence, format="flac")
    assert len(made.data) < 400_000 < 500_000 < len(made.data) + len(of_file(made).pcm)
    for _ in range(2):
        media, sound = await listened(desk, silence, format="flac")
        assert ("hit from L1", of_file(made)) == (outcome(media), sound)


async def test_first_audio_is_measured(world: World) -> None:
    """In the result, as a metric by outcome and tier, and in the trace; of a hit it takes no longer than the answer."""
    worker = await world.worker(speaker())
    desk = await world.desk(worker)
    miss, _ = await listened(desk)
    await desk.stored(miss)
    hit, _ = await listened(desk)
    await desk.speak(TEXT)
    spans = [span.attributes for span in desk.spans if span.name.endswith("/SynthesizeSpeech") and span.attributes]

    assert [1, 1] == [
        await desk.metric("reprise_first_audio_seconds_count", outcome=name, tier=tier)
        for name, tier in (("miss", ""), ("hit", "l1"))
    ]
    measured = [media.result.first_audio_seconds for media in (miss, hit)]
    assert measured == [span["reprise.first_audio_seconds"] for span in spans if "reprise.first_audio_seconds" in span]
    assert 3 == len(spans)


async def test_speech_is_heard_in_a_loop(world: World) -> None:
    """Event by event, up to the result; what ends it badly is raised, and who leaves early hangs up."""
    worker = await world.worker(speaker())
    desk = await world.desk(worker)
    events = [event async for event in desk.client.listen(say(TEXT, live=True))]
    assert of_file(await desk.speak(TEXT)) == heard(events)
    assert "result" in kinds(events)[-1]
    assert "VALUE_MISSING" == (await problem_of(anext(desk.client.listen(say(""))))).reason

    gate = worker.hold("sentence")
    async with aclosing(desk.client.listen(say("Something else.", live=True))) as listening:
        await anext(listening)
    await eventually(lambda: _following(worker), wanted=lambda streams: streams == 0)
    gate.open()


async def _following(worker: ScriptedWorker) -> int:
    return worker.following


# Delivery.


async def test_the_file_comes_as_it_is_wanted(world: World) -> None:
    """Live besides a URL, or besides nothing at all; the result comes in any case, and names the file."""
    worker = await world.worker(speaker())
    desk = await world.desk(worker, http_port=0)
    inline, expected = await listened(desk)
    await desk.stored(inline)
    for text, how in ((TEXT, "hit from L1"), ("A bird.", "miss"), ("A bird.", "hit from L1")):
        by_url, sound = await listened(desk, text, delivery=DELIVERY_URL)
        nothing, again = await listened(desk, text, delivery=DELIVERY_NONE)
        fetched = await desk.client.fetch(by_url)
        assert how == outcome(by_url)
        assert (b"", b"", "") == (by_url.data, nothing.data, nothing.url)
        assert sound == again == of_file(Media(fetched, by_url.result, "", 0))
        assert fetched == await desk.client.download(nothing.result.artifact)
    assert expected == (await listened(desk, delivery=DELIVERY_NONE))[1]
    video = await desk.speak("Silently.", delivery=DELIVERY_NONE)
    assert (b"", "audio/wav") == (video.data, video.result.media_type)


async def test_a_large_file_and_its_samples_keep_their_order(world: World) -> None:
    """Live hits number their events one after the other, over files of several chunks."""
    worker = await world.worker(speaker())
    desk = await world.desk(worker)
    text = ". ".join(f"sentence {number}" for number in range(24))
    made = await desk.speak(text, sample_rate=48000)
    await desk.stored(made)
    listener = desk.listen(text, sample_rate=48000)
    media = await listener.media()

    assert len(media.data) > MIB
    assert ("hit from L1", made.data) == (outcome(media), media.data)
    assert list(range(1, 1 + len(listener.events))) == [event.sequence for event in listener.events]
    assert of_file(made) == heard(listener.events)


# Policies.


async def test_policies_mean_for_speech_what_they_mean(world: World) -> None:
    """Bypassed and refreshed it is made again and heard as it is; cached only, nothing is made."""
    worker = await world.worker(speaker())
    desk = await world.desk(worker)
    problem = await problem_of(desk.speak(TEXT, live=True, policy={"mode": ONLY}))
    assert (MISSING, "NOT_CACHED") == (problem.code, problem.reason)
    for policy, how in (
        ({"mode": BYPASS}, "bypass"),
        ({"no_store": True}, "miss"),
        ({}, "miss"),
        ({"mode": REFRESH}, "miss"),
        ({"mode": ONLY}, "hit from L1"),
        ({"max_age": Duration(seconds=60)}, "hit from L1"),
        ({"max_age": Duration()}, "miss"),
        ({"fresh": True}, "miss"),
    ):
        media, sound = await listened(desk, policy=policy)
        await desk.stored(media)
        assert (how, of_file(media)) == (outcome(media), sound), policy
    assert 6 == worker.generations


async def test_tenants_share_neither_voices_nor_speech(world: World, tmp_path: Path) -> None:
    """The same request of another tenant is made anew from the recording on; users of one tenant share it."""
    keys = tmp_path / "keys.yaml"
    people = {"ann": "a", "abe": "a", "bob": "b"}
    keys.write_text("\n".join(f"- {{key_sha256: {hash_key(u)!r}, tenant: {t}, user: {u}}}" for u, t in people.items()))
    worker = await world.worker(speaker())
    desk = await world.desk(worker, identity={"mode": "api_keys", "file": keys})
    ann, abe, bob = [await desk.connect(api_key=user) for user in people]
    gate = worker.hold("sentence")
    at_once = [desk.listen(TEXT, client=client) for client in (ann, bob)]
    for each in at_once:
        await each.seen("queued")
    gate.open()
    media = [await each.media() for each in at_once]
    for client, made in zip((ann, bob), media, strict=True):
        await client.until_stored(made)

    assert ["miss", "miss"] == list(map(outcome, media))
    assert (2, 2) == (worker.generations, worker.ran["voice"])
    assert media[0].data == media[1].data  # a pure function of what was asked
    assert "hit from L1" == outcome(await abe.speak(say(TEXT)))
    addresses = {each.report.address for each in media}
    assert 2 == len(addresses)
    mine = await ann.speak(say("Mine."))
    assert "ARTIFACT_UNKNOWN" == (await problem_of(bob.download(mine.result.artifact))).reason


# Sentences.


async def test_only_what_was_never_said_is_made(world: World) -> None:
    """An edited sentence runs alone; what it would have cost to say the others again is saved, and on their account."""
    worker = await world.worker(speaker())
    desk = await world.desk(worker)
    whole = await desk.speak("A cat. A dog. A bird.")
    await desk.stored(whole)
    edited = await desk.speak("A cat. A cow. A bird. A cow.")
    saved = await desk.client.savings()
    rows = {(row.stage, row.tier): row for row in saved.rows}

    assert {
        "latents": ["not_needed", "run", "not_needed", "reused"],
        "waveform": ["reused", "run", "reused", "reused"],
        "pace": ["run", "run", "run", "reused"],
    } == parts(edited.report)
    assert {"voice": "not_needed", "prefix": "reused", "latents": "run", "waveform": "run", "file": "run"} == {
        name: said for name, said in stages(edited.report.stages).items() if name not in ("tokens", "pace")
    }
    assert (4, 4) == (worker.ran["latents"], worker.ran["waveform"])
    assert 2.0 + 0.5 + 0.25 == edited.report.device_seconds_spent
    assert 0.5 + 0.25 + 3 * 2.5 + 0.25 - edited.report.device_seconds_spent == edited.report.device_seconds_saved
    assert (1, 2) == (rows["prefix", pb.TIER_L2].reused, rows["waveform", pb.TIER_L2].reused)
    assert sum(row.device_seconds_saved for row in saved.rows) == edited.report.device_seconds_saved
    assert (4, 4 * 2.0) == (
        rows["latents", pb.TIER_UNSPECIFIED].ran,
        rows["latents", pb.TIER_UNSPECIFIED].device_seconds_spent,
    )


RENDERED = {"pace", "file"}
SAID = {*RENDERED, "tokens", "latents", "waveform"}
CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {  # by the field that changes: the change, and what it runs
    "format": ({"format": "flac"}, RENDERED),
    "sample_rate": ({"sample_rate": 16000}, RENDERED),
    "speed": ({"speed": 2.0}, RENDERED),
    "seed": ({"seed": 7}, SAID),
    "instruction": ({"instruction": "happily"}, SAID),
    "temperature": ({"extra": {"temperature": 0.1}}, SAID),
    "pronunciations": ({"pronounced": {"cat": "K AE1 T"}}, SAID),
    "voice": ({"voice": voice(pitch=300)}, {*SAID, "voice", "prefix"}),
    "text": ({"text": "A cat. A cow."}, SAID),
}


@pytest.mark.parametrize("field", CHANGES)
async def test_a_change_runs_what_depends_on_it(world: World, field: str) -> None:
    """And the nearest earlier request differs in exactly that; why it was made is said of every sentence."""
    change, ran = CHANGES[field]
    worker = await world.worker(speaker())
    desk = await world.desk(worker)
    await desk.stored(await desk.speak())
    explained = await desk.client.explain(say(**change))
    media = await desk.speak(**change)

    assert ran == {stage for stage, said in stages(media.report.stages).items() if said == "run"}
    assert [field] == list(media.report.nearest.differing)
    assert (pb.MISS_REASON_NEW, pb.OUTCOME_MISS) == (media.report.reason, media.report.outcome)
    assert all(
        part.reason for stage in media.report.stages for part in stage.parts if part.outcome == pb.STAGE_OUTCOME_RUN
    )
    assert stages(explained.report.stages) == stages(media.report.stages)
    assert parts(explained.report) == parts(media.report)


async def test_the_same_sound_in_another_file_is_the_same_voice(world: World) -> None:
    """By its samples, not by its bytes; sent or uploaded."""
    worker = await world.worker(speaker())
    desk = await world.desk(worker)
    rate, pcm = samples_in(VOICE)
    padded = wav(pcm, rate) + b"LIST\4\0\0\0INFO"
    padded = padded[:4] + (len(padded) - 8).to_bytes(4, "little") + padded[8:]
    uploaded = await desk.client.upload(VOICE)
    assert (0, 1.0, rate) == (uploaded.width, uploaded.seconds, uploaded.sample_rate)
    assert Digest.of(VOICE).hex == uploaded.digest.hex
    made = await desk.speak(voice_digest=uploaded.digest)
    await desk.stored(made)

    assert padded != VOICE
    assert ["hit from L1"] * 2 == [outcome(await desk.speak(voice=each)) for each in (VOICE, padded)]
    assert "hit from L1" == outcome(await desk.speak(voice_digest=uploaded.digest))
    sound = worker.requests[0].sounds["voice"]
    assert (pcm, rate, len(pcm) // 2) == (sound.pcm, sound.sample_rate, sound.samples)
    assert (64, 48) == ((await desk.client.upload(picture(1, (64, 48)))).width, 48)


async def test_lines_that_differ_in_punctuation_are_one_if_that_is_wanted(world: World) -> None:
    """What was changed is said, by a hit and by an explanation too; nobody who does not ask for it is answered so."""
    worker = await world.worker(speaker())
    desk = await world.desk(worker)
    fold: dict[str, Any] = {"policy": {"similarity": pb.Similarity(lines=True)}}
    made = await desk.speak("A cat! A  dog", **fold)
    await desk.stored(made)
    hit = await desk.speak("A cat. A dog.", **fold)
    again = await desk.speak("A cat! A  dog", **fold)
    explained = await desk.client.explain(say("\uff21 cat... A dog.", **fold))
    exact = await desk.speak("A cat. A dog!")

    assert ["punctuation", "spacing"] == list(made.report.folded) == list(again.report.folded)
    assert ("hit from L1", []) == (outcome(hit), list(hit.report.folded))
    assert (pb.OUTCOME_HIT, ["punctuation", "width"]) == (explained.report.outcome, list(explained.report.folded))
    assert ("miss", []) == (outcome(exact), list(exact.report.folded))
    refused = await problem_of(desk.speak("A cat \uff1c\uff5cend\uff5c\uff1e", **fold))
    assert (INVALID, "text") == (refused.code, refused.field)
    by_default = await world.desk(worker, similarity={"models": ["speaker"]})
    assert "hit from L2" == outcome(await by_default.speak("A cat? A dog?!"))


# What is refused.


def _samples(*values: int) -> bytes:
    return wav(b"".join(value.to_bytes(2, "little", signed=True) for value in values), 16_000)


BAD: dict[str, tuple[SynthesizeSpeechRequest, grpc.StatusCode, str, str | None]] = {
    "no recording": (SynthesizeSpeechRequest(text="A cat."), INVALID, "FIELD_INVALID", "voice"),
    "a picture": (say(voice=picture()), INVALID, "SOUND_FORMAT", "voice"),
    "cut off": (say(voice=VOICE[:-100]), INVALID, "SOUND_TRUNCATED", "voice"),
    "too short": (say(voice=voice(seconds=0.4)), INVALID, "SOUND_TOO_SHORT", "voice"),
    "too long": (say(voice=voice(seconds=5.1)), INVALID, "SOUND_TOO_LONG", "voice"),
    "too coarse": (say(voice=voice(rate=4000)), INVALID, "SOUND_SAMPLE_RATE", "voice"),
    "silent": (say(voice=voice(loudness=0.0)), INVALID, "SOUND_SILENT", "voice"),
    "clipped": (say(voice=_samples(*[32767, -32768] * 8000)), INVALID, "SOUND_CLIPPED", "voice"),
    "over 16 MiB": (say(voice=VOICE + bytes(16 * MIB)), EXHAUSTED, "SOUND_TOO_LARGE", "voice"),
    "unknown digest": (say(voice_digest=pb.Digest(hex="0" * 64, size=1)), MISSING, "DIGEST_UNKNOWN", None),
    "no digest": (say(voice_digest=pb.Digest(hex="../models")), INVALID, "FIELD_INVALID", "voice_digest.hex"),
    "unknown model": (say(model="nobody"), MISSING, "MODEL_UNKNOWN", "model"),
    "model of another task": (say(model="small"), INVALID, "FIELD_INVALID", "model"),
    "no text": (say(""), INVALID, "VALUE_MISSING", "text"),
    "nothing to say": (say("!?..."), INVALID, "TEXT_UNSPEAKABLE", "text"),
    "a command": (say("A cat <|endofprompt|>"), INVALID, "TEXT_COMMANDS", "text"),
    "invisible": (say("A\u200bcat"), INVALID, "TEXT_UNSEEN", "text"),
    "long text": (say("a" * 301), INVALID, "TEXT_TOO_LONG", "text"),
    "undeclared": (say(transcript="I said this."), INVALID, "FIELD_UNKNOWN", "transcript"),
    "undeclared extra": (say(extra={"top_p": 0.5}), INVALID, "FIELD_UNKNOWN", "extra.top_p"),
    "a word twice": (
        SynthesizeSpeechRequest(text="a", voice=VOICE, pronunciations=[{"word": "a", "spoken": "b"}] * 2),
        INVALID,
        "PRONUNCIATION_TWICE",
        "pronunciations",
    ),
    "too fast": (say(speed=2.5), INVALID, "VALUE_OUT_OF_RANGE", "speed"),
    "NaN": (say(speed=float("nan")), INVALID, "VALUE_NOT_FINITE", "speed"),
    "another container": (say(format="mp3"), INVALID, "CHOICE_UNKNOWN", "format"),
    "live ogg": (say(format="ogg", live=True), INVALID, "FIELD_INVALID", "live"),
    "fresh and seed": (say(seed=1, policy={"fresh": True}), INVALID, "FIELD_INVALID", "seed"),
    "a delivery of the future": (say(delivery=99), INVALID, "FIELD_INVALID", "delivery"),
}


async def test_what_is_wrong_is_said_before_anything_runs(world: World) -> None:
    """Each bad request gets its code, its reason and the field to change; no worker runs, and no trace quotes it."""
    worker = await world.worker(speaker(), family())
    desk = await world.desk(worker)
    said = {}
    async with grpc.aio.insecure_channel(desk.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        stub: Any = MediaServiceStub(channel)
        for case, (request, *_) in BAD.items():
            problem = await problem_of(_drained(stub.SynthesizeSpeech(request)))
            said[case] = (problem.code, problem.reason, problem.field)

    assert {case: tuple(expected) for case, (_, *expected) in BAD.items()} == said
    assert [] == worker.requests
    assert not any("cat" in span.to_json() for span in desk.spans)
    assert "miss" == outcome(await desk.speak())
    ogg = await desk.speak(format="ogg")
    assert ("audio/ogg", 0.0) == (ogg.result.media_type, ogg.result.first_audio_seconds)


async def _drained(call: Any) -> None:
    async for _ in call:
        pass


async def test_two_tasks_side_by_side(world: World) -> None:
    """A gateway serves both, each with its own default model; neither is taken for the other."""
    worker = await world.worker(speaker(), family())
    desk = await world.desk(worker)
    spoken, shown = await desk.speak(), await desk.animate()
    assert ("audio/wav", "video/mp4") == (spoken.result.media_type, shown.result.media_type)
    alone = await desk.client.explain(say("Something else."))
    mixed = await desk.client.explain(say("Something else."), ask("a dog"))
    other = await desk.client.explain(ask("a dog"), say("Something else."))
    assert stages(alone.report.stages) == stages(mixed.report.stages)
    assert {"denoise": "run", "picture": "reused"}.items() <= stages(other.report.stages).items()


async def test_followers_are_told_by_sentence(world: World) -> None:
    """Progress says which sentence of how many."""
    worker = await world.worker(speaker())
    desk = await world.desk(worker)
    follower = Follower(desk.client, say("A cat. A dog."))
    await follower.media()
    told = [event.progress for event in follower.events if event.HasField("progress")]
    assert [(1, 2), (2, 2)] == [(each.part, each.parts) for each in told]
