"""Validation: what a model declares is what a request may say, and every refusal names the field and the range."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.description import Description, Parameter, Scalar, Scope, Stage
from cache.encoding import encode
from gateway.errors import InvalidField
from gateway.validate import complete, folded, given_fields, normalise
from reprise.v1.common_pb2 import Digest, ParameterValue
from reprise.v1.media_pb2 import (
    DELIVERY_NONE,
    AnimateImageRequest,
    GenerationEvent,
    Pronunciation,
    Result,
    SynthesizeSpeechRequest,
)

BIG = 2**53 - 1
PARAMETERS = (
    Parameter(name="prompt", kind="text"),
    Parameter(name="negative_prompt", kind="text", default="", max_length=100),
    Parameter(name="width", kind="int", default=512, minimum=64, maximum=1024, multiple_of=8, unit="pixels"),
    Parameter(name="num_frames", kind="int", default=16, minimum=1, maximum=64, unit="frames"),
    Parameter(name="guidance_scale", kind="float", default=9, minimum=0, maximum=30.5),
    Parameter(name="seed", kind="int", default=0, minimum=0, maximum=BIG),
    Parameter(name="format", kind="choice", default="mp4", choices=("mp4", "webm")),
    Parameter(name="eta", kind="float", default=0.0, minimum=0.0, maximum=1.0, extra=True),
    Parameter(name="clip_skip", kind="int", default=0, minimum=0, maximum=3, extra=True),
    Parameter(name="style", kind="text", default="plain", min_length=3, max_length=10, extra=True),
    Parameter(name="shift", kind="float", default=1.0, extra=True, unit="stops"),
)
DESCRIPTION = Description(
    model="small",
    revision="1",
    family="test",
    task="animate_image",
    parameters=PARAMETERS,
    stages=(Stage(name="render", kind="render", fingerprint="f", scope=Scope.TENANT, ttl=60.0),),
    affinity="render",
)
BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


def completed(**fields: Any) -> dict[str, Scalar]:
    """Fields are sent where they are declared to be."""
    sent = {"prompt": "a cat", **fields}
    extra = {name: value for name, value in sent.items() if BY_NAME[name].extra}
    own = {name: value for name, value in sent.items() if not BY_NAME[name].extra}
    return complete(DESCRIPTION, own, extra)


def path_of(name: str) -> str:
    return f"extra.{name}" if BY_NAME[name].extra else name


def refusal_of(**fields: Any) -> InvalidField:
    with pytest.raises(InvalidField) as caught:
        completed(**fields)
    return caught.value


# Completing


def test_what_is_not_given_is_the_models_default() -> None:
    """A request that says only what it must has every parameter, in the declared order and types."""
    expected = {
        "prompt": "a cat",
        "negative_prompt": "",
        "width": 512,
        "num_frames": 16,
        "guidance_scale": 9.0,
        "seed": 0,
        "format": "mp4",
        "eta": 0.0,
        "clip_skip": 0,
        "style": "plain",
        "shift": 1.0,
    }
    actual = completed()

    assert list(expected.items()) == list(actual.items())
    assert {name: type(value) for name, value in expected.items()} == {
        name: type(value) for name, value in actual.items()
    }


def test_what_is_given_goes_before_defaults() -> None:
    """Everything may be said, in its own field or in the map."""
    sent: dict[str, Any] = {
        "prompt": "a dog",
        "width": 64,
        "guidance_scale": 7.5,
        "format": "webm",
        "eta": 0.5,
        "seed": 7,
    }

    assert {**completed(), **sent} == completed(**sent)


def test_a_deployments_defaults_go_between() -> None:
    """The deployment's seed holds unless the request says another; one that the model does not have is no error."""
    defaults: dict[str, Scalar] = {"seed": 42, "motion_fps": 8}

    assert 42 == complete(DESCRIPTION, {"prompt": "x"}, {}, defaults)["seed"]
    assert 7 == complete(DESCRIPTION, {"prompt": "x", "seed": 7}, {}, defaults)["seed"]
    assert "motion_fps" not in complete(DESCRIPTION, {"prompt": "x"}, {}, defaults)


def test_one_value_has_one_key() -> None:
    """A number sent as 9, as 9.0, or not at all because the default is 9, is the same bytes in a key."""
    spellings = [completed(), completed(guidance_scale=9), completed(guidance_scale=9.0)]

    assert 1 == len({encode(parameters) for parameters in spellings})


# Refusing


def test_what_must_be_given_is_missed_by_name() -> None:
    """A request without its prompt learns that it needs one."""
    with pytest.raises(InvalidField) as caught:
        complete(DESCRIPTION, {}, {})

    assert ("prompt", "VALUE_MISSING", "must be a text of 1 to 2000 characters") == (
        caught.value.field,
        caught.value.reason,
        caught.value.message,
    )


RANGES = {
    "width": "from 64 to 1024 pixels",
    "num_frames": "from 1 to 64 frames",
    "guidance_scale": "from 0 to 30.5",
    "seed": f"from 0 to {BIG}",
    "eta": "from 0 to 1",
    "clip_skip": "from 0 to 3",
}
BOUNDED = [parameter for parameter in PARAMETERS if parameter.name in RANGES]
NO_NUMBERS: dict[str, Any] = {
    "2^31": 2**31,
    "2^63": 2**63,
    "2^64-1": 2**64 - 1,
    "-2^63": -(2**63),
    "2^1100": 2**1100,
    "NaN": math.nan,
    "Inf": math.inf,
    "-Inf": -math.inf,
    "True": True,
    "text": "1",
}


def test_every_number_with_bounds_is_tried() -> None:
    """The list that the next tests walk is complete."""
    assert {p.name for p in PARAMETERS if p.minimum is not None} == set(RANGES)


@pytest.mark.parametrize("parameter", BOUNDED, ids=lambda parameter: parameter.name)
@pytest.mark.parametrize("value", NO_NUMBERS.values(), ids=NO_NUMBERS.keys())
def test_what_no_number_may_be(parameter: Parameter, value: Any) -> None:
    """Every number far outside its range, or none at all, is refused by name, range and unit."""
    if parameter.name == "seed" and value == 2**31:
        assert value == completed(seed=value)["seed"]
        return
    error = refusal_of(**{parameter.name: value})

    assert path_of(parameter.name) == error.field
    assert RANGES[parameter.name] in error.message


@pytest.mark.parametrize("parameter", BOUNDED, ids=lambda parameter: parameter.name)
def test_the_next_number_outside_is_refused(parameter: Parameter) -> None:
    """One below the least and one above the greatest value are outside."""
    step = parameter.multiple_of or 1
    for value in ((parameter.minimum or 0) - step, (parameter.maximum or 0) + step):
        error = refusal_of(**{parameter.name: int(value) if parameter.kind == "int" else value})

        assert (path_of(parameter.name), "VALUE_OUT_OF_RANGE") == (error.field, error.reason)
        assert RANGES[parameter.name] in error.message


@pytest.mark.parametrize("parameter", BOUNDED, ids=lambda parameter: parameter.name)
def test_bounds_belong_to_the_range(parameter: Parameter) -> None:
    """The least and the greatest value are allowed."""
    for bound in (parameter.minimum, parameter.maximum):
        value = int(bound or 0) if parameter.kind == "int" else bound

        assert value == completed(**{parameter.name: value})[parameter.name]


@pytest.mark.parametrize(
    ("fields", "field", "reason", "message"),
    [
        ({"width": 63}, "width", "VALUE_OUT_OF_RANGE", "a whole number from 64 to 1024 pixels, a multiple of 8"),
        ({"width": 100}, "width", "VALUE_NOT_MULTIPLE", "a whole number from 64 to 1024 pixels, a multiple of 8"),
        ({"width": 512.0}, "width", "VALUE_TYPE", "a whole number from 64 to 1024 pixels, a multiple of 8"),
        ({"num_frames": 65}, "num_frames", "VALUE_OUT_OF_RANGE", "a whole number from 1 to 64 frames"),
        ({"guidance_scale": 31}, "guidance_scale", "VALUE_OUT_OF_RANGE", "a finite number from 0 to 30.5"),
        ({"guidance_scale": math.nan}, "guidance_scale", "VALUE_NOT_FINITE", "a finite number from 0 to 30.5"),
        ({"seed": 2**53}, "seed", "VALUE_OUT_OF_RANGE", "a whole number from 0 to 9007199254740991"),
        ({"format": "avi"}, "format", "CHOICE_UNKNOWN", "one of mp4, webm"),
        ({"format": "MP4"}, "format", "CHOICE_UNKNOWN", "one of mp4, webm"),
        ({"format": 4}, "format", "VALUE_TYPE", "one of mp4, webm"),
        ({"eta": 1.5}, "extra.eta", "VALUE_OUT_OF_RANGE", "a finite number from 0 to 1"),
        ({"shift": math.inf}, "extra.shift", "VALUE_NOT_FINITE", "a finite number of stops"),
        ({"style": "xy"}, "extra.style", "TEXT_TOO_SHORT", "a text of 3 to 10 characters"),
        ({"style": "x" * 11}, "extra.style", "TEXT_TOO_LONG", "a text of 3 to 10 characters"),
        ({"prompt": 5}, "prompt", "VALUE_TYPE", "a text of 1 to 2000 characters"),
        ({"prompt": " \n"}, "prompt", "VALUE_MISSING", "a text of 1 to 2000 characters"),
        ({"prompt": "x" * 2001}, "prompt", "TEXT_TOO_LONG", "a text of 1 to 2000 characters"),
    ],
    ids=map(str, range(17)),
)
def test_a_refusal_says_what_it_must_be(fields: dict[str, Any], field: str, reason: str, message: str) -> None:
    """The field by its path in the request, a reason for programs, and the range with its unit for people."""
    error = refusal_of(**fields)

    assert (field, reason, f"must be {message}") == (error.field, error.reason, error.message)


@pytest.mark.parametrize(
    ("own", "extra", "field", "reason"),
    [
        ({"motion_fps": 8}, {}, "motion_fps", "FIELD_UNKNOWN"),
        ({}, {"cfg_rescale": 0.5}, "extra.cfg_rescale", "FIELD_UNKNOWN"),
        ({"eta": 0.5}, {}, "eta", "FIELD_MISPLACED"),
        ({}, {"num_frames": 8}, "extra.num_frames", "FIELD_MISPLACED"),
    ],
    ids=["undeclared", "undeclared extra", "extra as a field", "field as extra"],
)
def test_what_is_not_declared_is_refused(
    own: dict[str, Scalar], extra: dict[str, Scalar], field: str, reason: str
) -> None:
    """A parameter that the model does not have, or has elsewhere, is never ignored."""
    with pytest.raises(InvalidField) as caught:
        complete(DESCRIPTION, {"prompt": "x", **own}, extra)

    assert (field, reason) == (caught.value.field, caught.value.reason)


@pytest.mark.parametrize("name", ["a secret wish", "", "Eta", "x" * 65, "eta\n", "eta.beta"])
def test_a_name_that_is_no_parameters_is_not_repeated(name: str) -> None:
    """What a caller writes as a name may be anything, and so is not quoted in the error."""
    with pytest.raises(InvalidField) as caught:
        complete(DESCRIPTION, {"prompt": "x"}, {name: 1})

    assert "extra" == caught.value.field


@given(
    st.dictionaries(
        st.sampled_from(sorted(BY_NAME)),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    )
)
def test_whatever_is_sent_is_complete_or_refused_by_name(fields: dict[str, Any]) -> None:
    """Values of any type give complete parameters of the declared types, or InvalidField for one of the fields sent."""
    types = {"int": int, "float": float, "text": str, "choice": str}
    try:
        parameters, refused = completed(**fields), None
    except InvalidField as error:
        parameters, refused = {}, error.field

    if refused is not None:
        assert refused in {path_of(name) for name in fields}
    else:
        assert {p.name: types[p.kind] for p in PARAMETERS} == {name: type(v) for name, v in parameters.items()}
        assert encode(parameters)


# Texts


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("  a cat \n", "a cat"),
        ("one\r\ntwo\rthree\nfour", "one\ntwo\nthree\nfour"),
        ("\u00a0\u3000a cat\u2003", "a cat"),
        ("cafe\u0301", "caf\u00e9"),
        ("①ﬁ", "①ﬁ"),  # NFKC would make 1fi of it
        ("two  spaces\tand a tab", "two  spaces\tand a tab"),
        ("猫が走る", "猫が走る"),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
    ids=map(str, range(8)),
)
def test_texts_have_one_spelling(sent: str, expected: str) -> None:
    """Line ends, composition and outer white space are made one; nothing inside is changed otherwise."""
    assert expected == completed(prompt=sent)["prompt"]


@given(st.text())
def test_normalising_again_changes_nothing(text: str) -> None:
    """The result is its own spelling, in NFC, without carriage returns."""
    once = normalise(text)

    assert once == normalise(once)
    assert once == unicodedata.normalize("NFC", once)
    assert "\r" not in once


@pytest.mark.parametrize(
    "character", ["\x00", "\x07", "\x0b", "\x0c", "\x1b", "\x1f", "\x7f", "\x85", "\x9f", "\ud800"]
)
@pytest.mark.parametrize("shape", ["a{}b", "{}b", "a{}"])
def test_control_characters_are_refused(character: str, shape: str) -> None:
    """Control characters and lone surrogates are refused wherever they stand, at the ends too."""
    error = refusal_of(prompt=shape.format(character))

    assert ("prompt", "TEXT_CHARACTERS") == (error.field, error.reason)
    assert "control characters are not allowed" in error.message


def test_length_is_counted_after_normalising() -> None:
    """What composes to 2000 characters is 2000 characters long, and white space around it does not count."""
    decomposed = "e\u0301" * 2000

    assert "\u00e9" * 2000 == completed(prompt="  " * 9000 + decomposed)["prompt"]
    assert "TEXT_TOO_LONG" == refusal_of(prompt=decomposed + "e").reason


def test_a_text_of_the_longest_message_is_refused_unread() -> None:
    """Sixteen million characters are refused by their number, before they are composed or looked at."""
    assert "TEXT_TOO_LONG" == refusal_of(prompt="e\u0301" * 8_000_000 + "\x00").reason


@given(st.integers(min_value=0, max_value=0x10FFFF))
def test_no_character_composes_out_of_more_than_four(code: int) -> None:
    """The bound that lets long texts be refused before they are composed holds for all of Unicode."""
    character = chr(code)
    if unicodedata.normalize("NFC", character) == character:
        assert len(unicodedata.normalize("NFD", character)) <= 4


# Reading a request


def test_an_empty_request_gives_nothing() -> None:
    """Fields that were not set are absent, whatever their type."""
    assert ({}, {}) == given_fields(AnimateImageRequest())


def test_fields_are_read_by_descriptor() -> None:
    """Every field that is a parameter is read under its own name, zeros included where the wire can tell them."""
    request = AnimateImageRequest(
        model="small",
        image=b"...",
        prompt="a cat",
        negative_prompt="rain",
        width=512,
        height=0,
        num_frames=8,
        num_inference_steps=4,
        guidance_scale=0.0,
        motion_fps=7,
        playback_fps=24,
        format="webm",
        seed=0,
    )
    request.cache_policy.no_store = True

    given, extra = given_fields(request)

    assert {
        "prompt": "a cat",
        "negative_prompt": "rain",
        "width": 512,
        "height": 0,
        "num_frames": 8,
        "num_inference_steps": 4,
        "guidance_scale": 0.0,
        "motion_fps": 7,
        "playback_fps": 24,
        "format": "webm",
        "seed": 0,
    } == given
    assert {} == extra


def test_no_parameter_of_the_contract_is_left_out() -> None:
    """Whatever field is added to the request is a parameter, unless it is listed as something else."""
    request = AnimateImageRequest(prompt="p", negative_prompt="n", format="f")
    names = {field.name for field in AnimateImageRequest.DESCRIPTOR.fields}
    for field in AnimateImageRequest.DESCRIPTOR.fields:
        if field.has_presence and field.cpp_type != field.CPPTYPE_MESSAGE and field.name != "image":
            setattr(request, field.name, 1)

    assert names - {"model", "image", "image_digest", "framing", "cache_policy", "delivery", "extra"} == set(
        given_fields(request)[0]
    )


def test_the_extra_map_keeps_its_types() -> None:
    """A whole number stays one, a float a float, a text a text."""
    request = AnimateImageRequest(
        extra={
            "clip_skip": ParameterValue(int_value=1),
            "eta": ParameterValue(float_value=1.0),
            "style": ParameterValue(text_value=""),
        }
    )
    _, extra = given_fields(request)

    assert {"clip_skip": (int, 1), "eta": (float, 1.0), "style": (str, "")} == {
        name: (type(value), value) for name, value in extra.items()
    }


def test_an_extra_parameter_without_a_value_is_refused() -> None:
    """A name alone says nothing."""
    with pytest.raises(InvalidField) as caught:
        given_fields(AnimateImageRequest(extra={"eta": ParameterValue()}))

    assert ("extra.eta", "VALUE_MISSING") == (caught.value.field, caught.value.reason)


def test_an_empty_prompt_is_refused_and_other_empty_texts_are_defaults() -> None:
    """Unset and empty are one on the wire: a text that must be given is then missing, others take their defaults."""
    given, extra = given_fields(AnimateImageRequest(prompt="", negative_prompt="", format=""))
    with pytest.raises(InvalidField) as caught:
        complete(DESCRIPTION, given, extra)

    assert ("prompt", "VALUE_MISSING") == (caught.value.field, caught.value.reason)
    assert completed() == complete(DESCRIPTION, *given_fields(AnimateImageRequest(prompt="a cat")))


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_seeds_beyond_the_range_of_the_wire_types_are_refused(value: int) -> None:
    """What the wire can hold and the model cannot take is named like everything else."""
    given, extra = given_fields(AnimateImageRequest(prompt="x", seed=value))
    with pytest.raises(InvalidField) as caught:
        complete(DESCRIPTION, given, extra)

    assert "seed" == caught.value.field


@pytest.mark.parametrize(
    "message",
    [AnimateImageRequest(image_digest=Digest(hex="00")), Result(), GenerationEvent()],
    ids=["digest", "message", "messages"],
)
def test_a_field_that_can_be_no_parameter_must_be_ignored_by_name(message: Any) -> None:
    """Media and messages are never taken for parameters by oversight."""
    with pytest.raises(TypeError, match="must be read by name"):
        given_fields(message, ignore=frozenset())


# Texts to be spoken

SPEECH = Description(
    model="voice",
    revision="1",
    family="test",
    task="synthesize_speech",
    parameters=(
        Parameter(name="text", kind="text", max_length=40, spoken=True, refuses=("<|", "|>", "[laughter]")),
        Parameter(name="transcript", kind="text", default="", max_length=100, refuses=("<|",)),
        Parameter(name="pronunciations", kind="text", default="", max_length=1000),
        Parameter(name="greeting", kind="text", default="", spoken=True, extra=True),
        Parameter(name="speed", kind="float", default=1.0, minimum=0.5, maximum=2.0),
        Parameter(name="format", kind="choice", default="wav", choices=("wav", "flac", "ogg")),
        Parameter(name="sample_rate", kind="int", default=24_000, minimum=8_000, maximum=48_000),
        Parameter(name="seed", kind="int", default=0, minimum=0, maximum=BIG),
    ),
    stages=(Stage(name="speech", kind="speech", fingerprint="f", scope=Scope.TENANT, ttl=60.0),),
    affinity="speech",
)


def spoken(text: str, **fields: Any) -> dict[str, Scalar]:
    return complete(SPEECH, {"text": text, **fields}, {})


def unspoken(text: str, **fields: Any) -> InvalidField:
    with pytest.raises(InvalidField) as caught:
        spoken(text, **fields)
    return caught.value


@pytest.mark.parametrize(
    "text",
    ["a", "7", "你", "ก็", "א", "½", "\u2163", "a\ufe0f", "葛\U000e0100", "❤️ 1", "“hm”", "x < y > z", "[laughte]"],
)
def test_whatever_has_something_to_say_is_spoken(text: str) -> None:
    """A letter or a digit in any script is enough, and variants of characters are characters."""
    assert text == spoken(text)["text"]


@pytest.mark.parametrize("text", ["...", "!?", "。。。", "—", "😀", "\u0301", "$", "_ _"])
def test_a_text_without_a_letter_or_digit_is_refused(text: str) -> None:
    """There would be nothing to hear, or anything."""
    refusal = unspoken(text)

    assert ("text", "TEXT_UNSPEAKABLE") == (refusal.field, refusal.reason)
    assert "a text of 1 to 40 characters with at least one letter or digit" in refusal.message


@pytest.mark.parametrize(
    "character",
    [
        *("\u200b", "\u200c", "\u200d", "\u200e", "\u200f", "\u202a", "\u202e", "\u2060", "\u2066", "\u2069"),
        *("\ufeff", "\u00ad", "\u061c", "\u180e", "\u3164", "\u115f", "\uffa0", "\ue000", "\uf8ff", "\U000e0041"),
        *("\U000f0000", "\U00100000", "\u2064", "\u034f"),
    ],
)
def test_what_nobody_sees_is_not_spoken(character: str) -> None:
    """Two texts that look alike are one text. It is said what to remove, and not what the text was."""
    refusal = unspoken(f"secret{character} word")

    assert ("text", "TEXT_UNSEEN") == (refusal.field, refusal.reason)
    assert "no width, of direction and of private use" in refusal.message
    assert "secret" not in refusal.message
    assert f"secret{character}" == spoken("a", transcript=f"secret{character}")["transcript"]


def test_every_character_that_unicode_calls_ignorable_is_seen_or_refused() -> None:
    """Those of format, by their category, but for signs that show."""
    shown = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}
    shown |= {0xFFF9, 0xFFFA, 0xFFFB}  # of annotations between lines
    formats = [code for code in range(0x110000) if unicodedata.category(chr(code)) == "Cf" and code not in shown]

    assert 100 < len(formats)
    for code in formats:
        assert "TEXT_UNSEEN" == unspoken(f"a{chr(code)}").reason


@pytest.mark.parametrize("text", ["<|endofprompt|>", "so <| so", "|> x", "ha [laughter] ha"])
def test_what_a_model_would_take_for_a_command_is_refused(text: str) -> None:
    """The field is named and what it must not hold, which its model declares; the text is not repeated."""
    refusal = unspoken(text)

    assert ("text", "TEXT_COMMANDS") == (refusal.field, refusal.reason)
    assert refusal.message.endswith("without what this model takes for commands: <| |> [laughter]")


def test_commands_are_found_as_they_are_written() -> None:
    """In another case they are words; those of another field are no matter of this one."""
    assert "[Laughter]" == spoken("[Laughter]")["text"]
    assert "TEXT_COMMANDS" == unspoken("a", transcript="<|x").reason
    assert "[laughter]" == spoken("a", transcript="[laughter]")["transcript"]


def test_a_composed_spelling_hides_no_command() -> None:
    """What is looked for is looked for in the one spelling of a text."""
    commands = Parameter(name="text", kind="text", refuses=("[\u01d0]",))
    description = SPEECH.model_copy(update={"parameters": (commands,)})
    with pytest.raises(InvalidField):
        complete(description, {"text": "ha [i\u030c]"}, {})


def test_a_text_that_may_be_left_out_may_be_empty() -> None:
    """Nothing to say is no fault where nothing need be said."""
    assert "" == complete(SPEECH, {"text": "a"}, {"greeting": " "})["greeting"]
    with pytest.raises(InvalidField) as caught:
        complete(SPEECH, {"text": "a"}, {"greeting": "?"})
    assert "extra.greeting" == caught.value.field


# Folded texts


def test_only_what_is_spoken_is_folded() -> None:
    """Of all texts; and numbers stay as they are."""
    parameters = complete(SPEECH, {"text": "Hold,  please!", "transcript": "Hold,  please!"}, {"greeting": "Ｈｉ"})
    result, kinds = folded(SPEECH, parameters)

    assert {**parameters, "text": "Hold, please.", "greeting": "Hi."} == result
    assert ("punctuation", "width", "spacing") == kinds


def test_folding_says_nothing_where_nothing_changed() -> None:
    """A line that is its own folded line is read as it came."""
    parameters = complete(SPEECH, {"text": "Hold, please."}, {})

    assert (parameters, ()) == folded(SPEECH, parameters)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("＜｜endofprompt｜＞", "TEXT_COMMANDS"), ("a" * 40, "TEXT_TOO_LONG")],
    ids=["commands", "length"],
)
def test_what_folding_makes_is_validated_like_what_comes(text: str, reason: str) -> None:
    """Wide letters that are harmless as they are become marks of command; and a line may grow."""
    parameters = spoken(text)
    with pytest.raises(InvalidField) as caught:
        folded(SPEECH, parameters)

    assert ("text", reason) == (caught.value.field, caught.value.reason)


# Reading a request for speech


def test_the_fields_of_a_request_for_speech_are_read_by_descriptor() -> None:
    """Media, and what is no matter of the result, are not among them."""
    request = SynthesizeSpeechRequest(
        model="voice",
        voice=b"...",
        transcript="t",
        text="x",
        instruction="i",
        pronunciations=[Pronunciation(word="b", spoken="2"), Pronunciation(word="a", spoken="1")],
        speed=1.5,
        format="flac",
        sample_rate=16_000,
        seed=0,
        extra={"greeting": ParameterValue(text_value="hi")},
        delivery=DELIVERY_NONE,
        live=True,
    )
    request.cache_policy.no_store = True

    expected = {"transcript": "t", "text": "x", "instruction": "i", "pronunciations": "a\t1\nb\t2"}
    assert (
        {**expected, "speed": 1.5, "format": "flac", "sample_rate": 16_000, "seed": 0},
        {"greeting": "hi"},
    ) == given_fields(request)
    assert ({}, {}) == given_fields(SynthesizeSpeechRequest(voice_digest=Digest(hex="00")))


def pronounced(*pairs: tuple[str, str]) -> str | None:
    request = SynthesizeSpeechRequest(pronunciations=[Pronunciation(word=w, spoken=s) for w, s in pairs])
    value = given_fields(request)[0].get("pronunciations")
    return None if value is None else str(value)


@given(st.permutations([("tomato", "t a"), ("Bass", "b eI s"), ("caf\u00e9", "k"), ("行", "xíng")]))
def test_pronunciations_are_one_text_in_whatever_order_they_come(pairs: list[tuple[str, str]]) -> None:
    """Spelled in the one way, without white space around, and as they are when they are validated."""
    text = pronounced(*[(unicodedata.normalize("NFD", f" {word}"), f"{sound}  ") for word, sound in pairs])

    assert "Bass\tb eI s\ncaf\u00e9\tk\ntomato\tt a\n行\txíng" == text
    assert text == spoken("a", pronunciations=text)["pronunciations"]


def test_no_pronunciations_are_no_value() -> None:
    """Nobody has said anything."""
    assert pronounced() is None


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([("a", "1"), ("a", "2")], "PRONUNCIATION_TWICE"),
        ([("caf\u00e9", "1"), ("cafe\u0301 ", "1")], "PRONUNCIATION_TWICE"),
        ([("", "1")], "VALUE_MISSING"),
        ([("a", " ")], "VALUE_MISSING"),
        ([("a\tb", "1")], "TEXT_CHARACTERS"),
        ([("a", "1\n2")], "TEXT_CHARACTERS"),
        ([("a", "1\r2")], "TEXT_CHARACTERS"),
        ([("a" * 101, "1")], "TEXT_TOO_LONG"),
        ([(str(number), "1") for number in range(101)], "PRONUNCIATIONS_TOO_MANY"),
    ],
    ids=["twice", "spelled twice", "no word", "no sound", "tab", "line", "return", "long", "many"],
)
def test_pronunciations_that_are_none_are_refused(pairs: list[tuple[str, str]], reason: str) -> None:
    """The field is named, and what to change; no word is repeated."""
    with pytest.raises(InvalidField) as caught:
        pronounced(*pairs)

    assert ("pronunciations", reason) == (caught.value.field, caught.value.reason)


def test_one_word_cannot_be_passed_off_as_two() -> None:
    """What stands between words and between lines stands in no word: different lists are different texts."""
    assert 3 == len({pronounced(("a", "b c")), pronounced(("a b", "c")), pronounced(("a", "b"), ("c", "d"))})


def test_a_model_without_pronunciations_is_told_none() -> None:
    """The field that must be left out is named."""
    request = SynthesizeSpeechRequest(text="x", pronunciations=[Pronunciation(word="a", spoken="1")])
    parameters = tuple(each for each in SPEECH.parameters if each.name != "pronunciations")
    with pytest.raises(InvalidField) as caught:
        complete(SPEECH.model_copy(update={"parameters": parameters}), *given_fields(request))

    assert ("pronunciations", "FIELD_UNKNOWN") == (caught.value.field, caught.value.reason)
