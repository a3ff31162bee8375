"""Speech made before it is asked: favourites beside videos, lines that are asked often, and requests as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.request_files import UnusableFile, read_request, read_requests, task_in
from gateway.tasks import ANIMATE, SPEAK, Request, favourite_of, quieten, request_in
from reprise.v1 import cache_pb2
from reprise.v1 import common_pb2 as pb
from reprise.v1.cache_pb2 import InvalidateRequest
from reprise.v1.media_pb2 import DELIVERY_NONE, AnimateImageRequest, Pronunciation, SynthesizeSpeechRequest
from tests.gateway.speech import VOICE, voice
from tests.gateway.test_warm import kept, outcomes, warm
from tests.gateway.worker import family, speaker
from tests.gateway.world import PICTURE, World, ask, eventually, heard, outcome, say

REPLAYABLE = {"replayable": True}


async def test_favourites_of_both_kinds_are_made_ahead(world: World) -> None:
    """At idle priority, each once, within one budget that knows what a sentence costs; then they are hits, live too."""
    worker = await world.worker(speaker(), family())
    desk = await world.desk(worker)
    texts = ("A cat. A dog.", "A dog. A cow.", "A cat. A bird. A mouse. A louse.")
    wanted: list[Request] = [say(texts[0], live=True, delivery=DELIVERY_NONE), ask("a cat"), *map(say, texts[1:])]
    favourites = [favourite_of(request, "", "") for request in wanted]
    responses = await warm(desk.client, *favourites, budget_device_seconds=18.0)
    listener = desk.listen(texts[1])
    media = await listener.media()

    assert ["made", "made", "made", "over_budget"] == outcomes(responses)
    assert [6.0, 5.0, 2.75] == [each.warmed.device_seconds for each in responses[1:4]]
    told = [each.warmed for each in responses if each.HasField("warmed")]
    assert (2.75, 7.75) == (told[2].estimated_seconds, told[3].estimated_seconds)
    assert all(request.idle_priority for request in worker.requests)
    assert ("hit from L1", True) == (outcome(media), bool(heard(listener.events).blocks))
    assert ["REFUSED"] == [
        cache_pb2.WarmOutcome.Name(each.warmed.outcome).removeprefix("WARM_OUTCOME_")
        for each in await warm(desk.client, favourite_of(say(voice=PICTURE), "", ""))
        if each.HasField("warmed")
    ]


async def test_lines_that_are_asked_often_are_made_again(world: World) -> None:
    """With the recording, sent or uploaded, and read as it was meant; a purge of the recording takes them along."""
    worker = await world.worker(speaker())
    desk = await world.desk(worker, replay={"enabled": True})
    uploaded = await desk.client.upload(voice(pitch=300))
    folding: dict[str, Any] = {**REPLAYABLE, "similarity": pb.Similarity(lines=True)}
    for _ in range(2):
        made = await desk.speak("Uploaded.", voice_digest=uploaded.digest, policy=REPLAYABLE)
        folded = await desk.speak("Folded?!", policy=folding, live=True)
        await desk.speak("Not to be kept.")
    await eventually(lambda: warm(desk.client, frequent=True), wanted=lambda said: 2 == len(outcomes(said)))
    await kept(world, b"Uploaded", 1)
    async for _ in desk.client.invalidate(InvalidateRequest(model="speaker")):
        pass
    before = worker.generations
    responses = await warm(desk.client, frequent=True)

    assert ["made", "made"] == outcomes(responses)
    assert before + 2 == worker.generations
    assert {made.report.address, folded.report.address} == {
        each.warmed.address for each in responses if each.HasField("warmed")
    }
    for answer in (
        await desk.speak("Uploaded.", voice=voice(pitch=300)),
        await desk.speak("Folded.", policy={"similarity": pb.Similarity(lines=True)}),
    ):
        assert "hit from L1" == outcome(answer)

    async for _ in desk.client.invalidate(InvalidateRequest(recording=voice(pitch=300))):
        pass
    assert 1 == len(outcomes(await warm(desk.client, frequent=True)))
    assert "miss" == outcome(await desk.speak("Uploaded.", voice=voice(pitch=300)))


def test_what_is_kept_of_a_request_is_what_it_means() -> None:
    """Delivery, liveness and policy go; labels stay, and how a line is read, said either way or not at all."""
    for similarity in ({}, {"similarity": pb.Similarity(lines=True)}, {"similarity": pb.Similarity()}):
        request = say(live=True, delivery=DELIVERY_NONE, policy={"labels": ["a"], "no_store": True, **similarity})
        quieten(request)
        assert say(policy={"labels": ["a"], **similarity}) == request


# Files.


def test_a_file_is_of_the_task_whose_fields_it_has(tmp_path: Path) -> None:
    """Both kinds in one list; media by path, each in its own field; names as either spelling of JSON has them."""
    (tmp_path / "ann.wav").write_bytes(VOICE)
    (tmp_path / "cat.png").write_bytes(PICTURE)
    file = tmp_path / "requests.json"
    marks = [{"word": "cat", "spoken": "K"}]
    file.write_text(
        json.dumps(
            [
                {"image": "@cat.png", "prompt": "a cat"},
                {"voice": "@ann.wav", "text": "A cat.", "pronunciations": marks, "sampleRate": 16000},
                {"voice_digest": {"hex": "0", "size": 1}, "text": "A cat."},
            ]
        )
    )
    video, spoken, named = read_requests(file)

    assert AnimateImageRequest(image=PICTURE, prompt="a cat") == video
    expected = say("A cat.", sample_rate=16000, pronounced={"cat": "K"})
    expected.ClearField("cache_policy")
    assert (expected, [Pronunciation(word="cat", spoken="K")]) == (spoken, list(expected.pronunciations))
    assert SynthesizeSpeechRequest(text="A cat.", voice_digest=pb.Digest(hex="0", size=1)) == named
    assert (ANIMATE, SPEAK, ANIMATE) == (task_in({"seed": 1}), task_in({"sampleRate": 1}), task_in({}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"voice": "@none.wav", "text": "a"}, "none.wav: cannot be read"),
        ({"voice": "@large.wav", "text": "a"}, "must have at most 16,777,216 bytes"),
        ({"text": "a", "prompt": "b", "speed": 2}, 'no field named "prompt"'),
        ({"text": 3}, "is no request"),
    ],
    ids=["missing", "large", "of both kinds", "wrong type"],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    """Which file, and what."""
    (tmp_path / "large.wav").write_bytes(bytes(16 * 1024 * 1024 + 1))
    file = tmp_path / "a.json"
    file.write_text(json.dumps(fields))
    with pytest.raises(UnusableFile, match=said):
        read_request(file)


def test_a_favourite_holds_any_request() -> None:
    """What goes in comes out; nothing is in one that was never filled."""
    for request in (say(), ask()):
        favourite = favourite_of(request, "acme", "ann")
        assert (request, "acme", "ann") == (request_in(favourite), favourite.tenant, favourite.user)
    assert request_in(cache_pb2.Favourite()) is None
