"""Description: a model as data, refused unless it is a graph that every request can be planned by."""

import json
from typing import Any

import pytest
from hypothesis import given

from cache.description import HOUR, Description, Scope, When
from cache.digest import Digest
from tests.cache.families import descriptions, picture_family, speech_family


def _changed(**changes: Any) -> dict[str, Any]:
    return picture_family().model_dump() | changes


def _with_stage(name: str, /, family: Description | None = None, **changes: Any) -> dict[str, Any]:
    fields = (family or picture_family()).model_dump()
    fields["stages"] = tuple(stage | changes if stage["name"] == name else stage for stage in fields["stages"])
    return fields


@given(descriptions(conditional=True))
def test_what_is_written_is_read(description: Description) -> None:
    """A description comes back from its bytes equal, and with the same digest."""
    again = Description.from_bytes(description.to_bytes())

    assert description == again
    assert description.digest == again.digest == Digest.of(description.to_bytes())


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        (_with_stage("text", upstream={"tokens": "denoise"}), "comes before what it needs"),
        (_with_stage("text", upstream={"tokens": "text"}), "comes before what it needs"),
        (_with_stage("text", parameters={"text": "lyrics"}), "unknown parameters"),
        (_with_stage("text", name="tokens"), "comes before|must be unique"),
        (_changed(parameters=picture_family().parameters + picture_family().parameters[:1]), "must be unique"),
        (_changed(affinity="sound"), "no stage named sound"),
        (_changed(stages=()), "no stage named picture"),
        (_with_stage("text", when=When(parameter="lyrics", above=0)), "cannot be measured: lyrics"),
        (_with_stage("pace", speech_family(), when=When(parameter="format", above=0)), "cannot be measured: format"),
        (_with_stage("render", when=When(parameter="steps", above=3)), "cannot be conditional"),
        (_with_stage("picture", when=When(parameter="steps", above=3)), "cannot be conditional"),
        (_with_stage("text", ttl=float("inf")), "finite"),
        (_with_stage("text", max_age=float("nan")), "finite"),
        (_with_stage("text", max_age=7 * 24 * HOUR + 1.0), "less than or equal"),
        (_with_stage("text", scope="everyone"), "scope"),
        (_with_stage("text", colour="red"), "colour"),
        (_changed(model="../small"), "model"),
        (_changed(schema_version=2), "schema_version"),
    ],
)
def test_what_no_request_could_be_planned_by_is_refused(fields: dict[str, Any], complaint: str) -> None:
    """A description that is not a graph, names what it lacks, or cannot be written down, says so at once."""
    with pytest.raises(ValueError, match=complaint):
        Description.model_validate(fields)


def _speech(name: str, /, **changes: Any) -> dict[str, Any]:
    return _with_stage(name, speech_family(), **changes)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        (_speech("voice", name="voice[0]"), "comes before|has a bracket"),
        (_speech("file", name="file[0]"), "file\\[0\\] has a bracket"),
        (_speech("file", upstream={"pcm[0]": "pace"}), "file has a bracket"),
        (_speech("latents", each="voice"), "latents runs for parts of what does not say first"),
        (_speech("latents", each="words"), "latents runs for parts of what does not say first"),
        (_speech("latents", each="latents"), "latents runs for parts of what does not say first"),
        (_speech("tokens", media=("voice",)), "latents runs for parts of what does not say first"),
        (_speech("tokens", upstream={"as": "voice"}), "latents runs for parts of what does not say first"),
        (_speech("latents", canonicalises=True), "latents runs for parts of what does not say first"),
        (_speech("latents", upstream={"as": "voice"}), "latents runs for parts, and reads none of tokens"),
        (_speech("tokens", when=When(parameter="seed", above=3)), "latents cannot be without tokens"),
        (_speech("file", each="tokens"), "cannot be conditional"),
        (speech_family().model_dump() | {"affinity": "latents"}, "cannot be conditional"),
        (_speech("waveform", follows="voice"), "waveform follows what it does not read: voice"),
        (_speech("waveform", follows="waveform"), "waveform follows what it does not read: waveform"),
        (_speech("latents", follows="prefix"), "latents follows what runs for other parts: prefix"),
        (_speech("latents", when=When(parameter="seed", above=3)), "waveform cannot be without latents"),
        (_speech("file", upstream={"pcm": "voice"}, follows="voice"), "the result is a file"),
        (_speech("file", live=True), "the result is a file"),
        (_speech("waveform", live=True, parameters={"sample_rate": "sample_rate"}), "one stage before it, at most"),
        (_speech("pace", parameters={}), "pace is heard live, and declares no sample_rate"),
        (_speech("pace", parameters={"sample_rate": "speed"}), "pace is heard live, and declares no sample_rate"),
    ],
)
def test_parts_and_pieces_that_could_not_be_had_are_refused(fields: dict[str, Any], complaint: str) -> None:
    """Parts come of what is known before everything else and go to what reads them; pieces go from a stage to one for
    the same part; and one stage at most is heard live.
    """
    with pytest.raises(ValueError, match=complaint):
        Description.model_validate(fields)


def test_parts_of_two_texts_are_not_mixed() -> None:
    """A stage that runs for the sentences of one text cannot read one of another's: there is no saying which."""
    fields = speech_family().model_dump()
    tokens, latents = (stage for stage in fields["stages"] if stage["name"] in ("tokens", "latents"))
    notes = tokens | {"name": "notes", "kind": "notes"}
    song = latents | {"name": "song", "each": "notes", "upstream": {"notes": "notes"}}
    mixed = latents | {"upstream": {"tokens": "tokens", "song": "song"}}
    stages = [stage for stage in fields["stages"] if stage["name"] != "latents"]

    with pytest.raises(ValueError, match="latents reads parts of another text than its own"):
        Description.model_validate(fields | {"stages": (*stages[:3], notes, song, mixed, *stages[3:])})


def test_a_description_of_speech_is_one() -> None:
    """The family whose changes are refused above can itself be planned by."""
    assert speech_family() == Description.from_bytes(speech_family().to_bytes())


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b"\xff", b'{"schema_version": 2}', b"[" * 100_000])
def test_other_bytes_are_refused(data: bytes) -> None:
    """Bytes that are not a description of this schema raise ValueError."""
    with pytest.raises(ValueError, match="Description"):
        Description.from_bytes(data)


def test_numbers_are_not_taken_for_texts() -> None:
    """Types are strict: a revision that is a number is refused, not turned into text."""
    fields = json.loads(picture_family().to_bytes()) | {"revision": 7}

    with pytest.raises(ValueError, match="revision"):
        Description.from_bytes(json.dumps(fields).encode())


def test_it_cannot_be_changed() -> None:
    """A description is immutable: its digest is its name."""
    with pytest.raises(ValueError, match="frozen"):
        picture_family().revision = "r2"  # type: ignore[misc]


def test_stages_exist_under_their_condition_only() -> None:
    """Without guidance a request has no negative prompt; at the bound itself there is none either."""
    description = picture_family()
    names = {scale: [stage.name for stage in description.active({"guidance_scale": scale})] for scale in (1.0, 1.5, 2)}

    everything = [stage.name for stage in description.stages]
    without = [name for name in everything if name != "negative_tokens"]
    assert {1.0: without, 1.5: everything, 2: everything} == names


def test_a_text_counts_by_its_characters() -> None:
    """A stage may exist only where something is written: one character is enough, and a digit is no number."""
    when = When(parameter="negative_prompt", above=0)
    description = Description.model_validate(_with_stage("negative_tokens", when=when))
    there = {
        text: "negative_tokens" in [stage.name for stage in description.active({"negative_prompt": text})]
        for text in ("", "0", "blurry")
    }

    assert there == {"": False, "0": True, "blurry": True}


def test_the_last_stage_is_the_result() -> None:
    """`final` is the last stage and `stage` finds any by name."""
    description = picture_family()

    assert "render" == description.final.name
    assert Scope.SHARED is description.stage("picture").scope
