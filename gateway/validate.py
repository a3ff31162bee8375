"""Fields of a request against what its model declares: complete parameters, or the one field that must be changed.

Whatever is looked up, keyed or run later works on the result of `complete` and on nothing else. It is a pure function:
the same request gives the same values, in the same types, whether a field was sent or taken from the defaults. So a
float that was sent as 9 and a float that is 9.0 by default are one value, and have one key.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from cache.description import Description, Parameter, Scalar
from gateway.errors import InvalidField
from gateway.folding import KINDS, fold
from reprise.v1.media_pb2 import AnimateImageRequest, Pronunciation, SynthesizeSpeechRequest

_MOST_NAMED = 8  # of what a text must not have in it
LONGEST_TEXT = 2000  # characters, where a model says nothing else
EXTRA = "extra"
_MOST_EXTRA = 256  # parameters in it; a message has room for millions
M = TypeVar("M", bound=Message)
_NEVER = {"model", "cache_policy", "delivery"}
NOT_PARAMETERS: Mapping[str, frozenset[str]] = {  # of each request; whatever else it has is a parameter
    AnimateImageRequest.DESCRIPTOR.name: frozenset({*_NEVER, "image", "image_digest", "framing"}),
    SynthesizeSpeechRequest.DESCRIPTOR.name: frozenset({*_NEVER, "voice", "voice_digest", "live"}),
}


# From bytes to a message, and from a message to names and values.


def parse(kind: type[M], message: bytes) -> M:
    """Raises InvalidField for bytes that are no message of this kind."""
    try:
        return kind.FromString(message)
    except DecodeError:
        raise InvalidField("request", "must be a message of the method's type") from None


def given_fields(message: Message, ignore: frozenset[str] | None = None) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """What a request says, by parameter name: its own fields, and its `extra` map.

    A field that was not set is absent; so is an empty text or a zero where the wire cannot tell it from one that was
    not set. Pronunciations are one text. Raises InvalidField for an extra parameter without a value, and for
    pronunciations that are none.
    """
    if ignore is None:
        ignore = NOT_PARAMETERS.get(message.DESCRIPTOR.name, frozenset())
    given: dict[str, Scalar] = {}
    for descriptor in message.DESCRIPTOR.fields:
        if descriptor.name in ignore or descriptor.name == EXTRA:
            continue
        if (
            descriptor.message_type is not None
            and descriptor.message_type.full_name == Pronunciation.DESCRIPTOR.full_name
        ):
            if listed := getattr(message, descriptor.name):
                given[descriptor.name] = _pronounced(descriptor.name, listed)
        elif _is_set(message, descriptor):
            given[descriptor.name] = getattr(message, descriptor.name)
    return given, _extra_of(message)


_NUMBERS_AND_TEXTS = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
        FieldDescriptor.CPPTYPE_FLOAT,
        FieldDescriptor.CPPTYPE_DOUBLE,
        FieldDescriptor.CPPTYPE_STRING,
    }
)


def _is_set(message: Message, descriptor: Any) -> bool:  # upb has a descriptor class of its own
    if descriptor.is_repeated or descriptor.cpp_type not in _NUMBERS_AND_TEXTS:
        raise TypeError(f"the field {descriptor.name} is no parameter: it must be read by name and ignored here")
    if descriptor.type == FieldDescriptor.TYPE_BYTES:
        raise TypeError(f"the field {descriptor.name} is media: it must be read by name and ignored here")
    if descriptor.has_presence:
        return message.HasField(descriptor.name)
    return bool(getattr(message, descriptor.name))


_MOST_PRONUNCIATIONS, _LONGEST_PRONUNCIATION = 100, 100


def _pronounced(field: str, listed: Sequence[Pronunciation]) -> str:
    """The one text that says how words are pronounced, in whatever order they were given: a line for each, sorted."""
    if len(listed) > _MOST_PRONUNCIATIONS:
        raise InvalidField(field, f"must be at most {_MOST_PRONUNCIATIONS} of them", reason="PRONUNCIATIONS_TOO_MANY")
    spoken: dict[str, str] = {}
    for each in listed:
        if max(len(each.word), len(each.spoken)) > _LONGEST_PRONUNCIATION:
            message = f"each must be a text of at most {_LONGEST_PRONUNCIATION} characters, and so its word"
            raise InvalidField(field, message, reason="TEXT_TOO_LONG")
        word, sound = normalise(each.word), normalise(each.spoken)
        if not word or not sound:
            raise InvalidField(field, "must have a word and how it is spoken, each", reason="VALUE_MISSING")
        if any(character in text for text in (word, sound) for character in "\t\n"):
            raise InvalidField(field, "must have no tabs and no new lines", reason="TEXT_CHARACTERS")
        if word in spoken:
            raise InvalidField(field, "must have no word twice", reason="PRONUNCIATION_TWICE")
        spoken[word] = sound
    return "\n".join(f"{word}\t{sound}" for word, sound in sorted(spoken.items()))


def _extra_of(message: Message) -> dict[str, Scalar]:
    if EXTRA not in message.DESCRIPTOR.fields_by_name:
        return {}
    values: Mapping[str, Any] = getattr(message, EXTRA)
    if len(values) > _MOST_EXTRA:
        raise InvalidField(EXTRA, f"must be at most {_MOST_EXTRA} of them", reason="FIELD_UNKNOWN")
    extra: dict[str, Scalar] = {}
    for name, value in values.items():
        member = value.WhichOneof("value")
        if member is None:
            raise InvalidField(_path(name), "must have a value", reason="VALUE_MISSING")
        extra[name] = getattr(value, member)
    return extra


# From names and values to complete parameters.


def complete(
    description: Description,
    given: Mapping[str, Scalar],
    extra: Mapping[str, Scalar],
    defaults: Mapping[str, Scalar] | None = None,
) -> dict[str, Scalar]:
    """Every parameter the model declares, in its declared type: as given, else by default.

    `defaults` are the deployment's (a seed, say); they go before the model's own where the model has such a parameter.
    Raises InvalidField, naming the field and saying what it must be.
    """
    declared = {parameter.name: parameter for parameter in description.parameters}
    for name in given:
        _check_place(name, declared.get(name), is_extra=False)
    for name in extra:
        _check_place(name, declared.get(name), is_extra=True)
    sent = {**(defaults or {}), **given, **extra}
    return {name: _value_of(parameter, sent.get(name, parameter.default)) for name, parameter in declared.items()}


def folded(description: Description, parameters: Mapping[str, Scalar]) -> tuple[dict[str, Scalar], tuple[str, ...]]:
    """Complete parameters with every spoken text folded, and which kinds of things that changed (see `folding`).

    Raises InvalidField for a text that is none any more: folding may make marks of command out of harmless letters.
    """
    result, kinds = dict(parameters), set[str]()
    for parameter in description.parameters:
        if parameter.spoken:
            line, changed = fold(str(parameters[parameter.name]))
            result[parameter.name] = _text(parameter, line)
            kinds.update(changed)
    return result, tuple(kind for kind in KINDS if kind in kinds)


def normalise(text: str) -> str:
    """The one spelling of a text: line ends as \\n, NFC, no outer white space. Applying it again changes nothing.

    Not NFKC, which changes what a speech model says.
    """
    return unicodedata.normalize("NFC", _trimmed(text)).strip(_WHITE_SPACE)


def _check_place(name: str, parameter: Parameter | None, *, is_extra: bool) -> None:
    field = _path(name) if is_extra else name
    if parameter is None:
        raise InvalidField(field, "this model has no such parameter; leave it out", reason="FIELD_UNKNOWN")
    if parameter.extra and not is_extra:
        raise InvalidField(field, f"must be sent in the map `{EXTRA}`", reason="FIELD_MISPLACED")
    if is_extra and not parameter.extra:
        raise InvalidField(field, f"must be sent as a field of its own, not in `{EXTRA}`", reason="FIELD_MISPLACED")


_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def _path(name: str) -> str:
    # A name is chosen by the caller. What does not look like a parameter's is not repeated in an error.
    return f"{EXTRA}.{name}" if _NAME.fullmatch(name) else EXTRA


def _value_of(parameter: Parameter, value: Scalar | None) -> Scalar:
    if value is None:
        raise _refused(parameter, "VALUE_MISSING")
    match parameter.kind:
        case "int":
            return _whole_number(parameter, value)
        case "float":
            return _number(parameter, value)
        case "text":
            return _text(parameter, value)
        case "choice":
            return _choice(parameter, value)


def _whole_number(parameter: Parameter, value: Scalar) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refused(parameter, "VALUE_TYPE")
    _check_range(parameter, value)
    if parameter.multiple_of and value % parameter.multiple_of:
        raise _refused(parameter, "VALUE_NOT_MULTIPLE")
    return value


def _number(parameter: Parameter, value: Scalar) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(parameter, "VALUE_TYPE")
    try:
        number = float(value)
    except OverflowError:
        raise _refused(parameter, "VALUE_OUT_OF_RANGE") from None
    if not math.isfinite(number):
        raise _refused(parameter, "VALUE_NOT_FINITE")
    _check_range(parameter, number)
    return number


def _check_range(parameter: Parameter, value: float) -> None:
    if parameter.minimum is not None and value < parameter.minimum:
        raise _refused(parameter, "VALUE_OUT_OF_RANGE")
    if parameter.maximum is not None and value > parameter.maximum:
        raise _refused(parameter, "VALUE_OUT_OF_RANGE")


# What `str.strip` calls white space, without the control characters among it: those are refused wherever they stand.
_WHITE_SPACE = "\t\n" + "".join(
    character
    for character in map(chr, range(0x3001))
    if character.isspace() and unicodedata.category(character) != "Cc"
)
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# Composing makes one character out of four at most. A text longer than this stays too long, and is not composed at
# all: that would take a second for the longest message.
_MOST_COMPOSED = 4
_MOST_SENT = 1_000_000  # characters with outer white space: even to look for that in a whole message takes long


def _text(parameter: Parameter, value: Scalar) -> str:
    if not isinstance(value, str):
        raise _refused(parameter, "VALUE_TYPE")
    shortest, longest = _lengths(parameter)
    if len(value) > _MOST_SENT or len(_trimmed(value)) > longest * _MOST_COMPOSED:
        raise _refused(parameter, "TEXT_TOO_LONG")
    text = normalise(value)
    if _FORBIDDEN.search(text):
        raise _refused(parameter, "TEXT_CHARACTERS")
    if len(text) > longest:
        raise _refused(parameter, "TEXT_TOO_LONG")
    if len(text) < shortest:
        raise _refused(parameter, "TEXT_TOO_SHORT" if text else "VALUE_MISSING")
    if any(mark in text for mark in parameter.refuses):
        raise _refused(parameter, "TEXT_COMMANDS")
    if parameter.spoken and text:
        _check_spoken(parameter, text)
    return text


# Characters that show nothing, as far as they are no variant of what stands before them (Unicode's default ignorables).
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]"
)


def _check_spoken(parameter: Parameter, text: str) -> None:
    categories = {unicodedata.category(character) for character in text}
    if "Co" in categories or _UNSEEN.search(text):
        raise _refused(parameter, "TEXT_UNSEEN")
    if not any(category[0] in "LN" for category in categories):
        raise _refused(parameter, "TEXT_UNSPEAKABLE")


def _trimmed(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip(_WHITE_SPACE)


def _lengths(parameter: Parameter) -> tuple[int, int]:
    """Fewest and most characters. A text that must be given must not be empty."""
    required = 1 if parameter.default is None else 0
    longest = LONGEST_TEXT if parameter.max_length is None else parameter.max_length
    return max(parameter.min_length, required), longest


def _choice(parameter: Parameter, value: Scalar) -> str:
    if not isinstance(value, str):
        raise _refused(parameter, "VALUE_TYPE")
    if value not in parameter.choices:
        raise _refused(parameter, "CHOICE_UNKNOWN")
    return value


# What to change, in words.


def _refused(parameter: Parameter, reason: str) -> InvalidField:
    field = f"{EXTRA}.{parameter.name}" if parameter.extra else parameter.name
    return InvalidField(field, f"must be {expected(parameter)}{_besides(parameter, reason)}", reason=reason)


def _besides(parameter: Parameter, reason: str) -> str:
    match reason:
        case "TEXT_CHARACTERS":
            return "; control characters are not allowed"
        case "TEXT_COMMANDS":
            some = " ".join(parameter.refuses[:_MOST_NAMED])
            return (
                f" without what this model takes for commands: {some}{' ...' * (len(parameter.refuses) > _MOST_NAMED)}"
            )
        case "TEXT_UNSEEN":
            return "; characters of no width, of direction and of private use are not allowed: remove them"
        case "TEXT_UNSPEAKABLE":
            return " with at least one letter or digit"
    return ""


def expected(parameter: Parameter) -> str:
    """What it takes, in words."""
    match parameter.kind:
        case "int":
            step = f", a multiple of {parameter.multiple_of}" if parameter.multiple_of else ""
            return f"a whole number{_range(parameter)}{step}"
        case "float":
            return f"a finite number{_range(parameter)}"
        case "text":
            shortest, longest = _lengths(parameter)
            return f"a text of {shortest} to {longest} characters"
        case "choice":
            return f"one of {', '.join(parameter.choices)}"


def _range(parameter: Parameter) -> str:
    unit = f" {parameter.unit}" if parameter.unit else ""
    low, high = parameter.minimum, parameter.maximum
    if low is not None and high is not None:
        return f" from {_plain(low)} to {_plain(high)}{unit}"
    if low is not None:
        return f" of at least {_plain(low)}{unit}"
    if high is not None:
        return f" of at most {_plain(high)}{unit}"
    return f" of {parameter.unit}" if parameter.unit else ""


def _plain(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else str(bound)
