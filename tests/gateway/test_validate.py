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
from gateway.validate import complete, given_fields, normalise
from reprise.v1.common_pb2 import Digest, ParameterValue
from reprise.v1.media_pb2 import AnimateImageRequest, GenerationEvent, Result

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
