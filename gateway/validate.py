"""Fields of a request against what its model declares: complete parameters, or the one field that must be changed.

Whatever is looked up, keyed or run later works on the result of `complete` and on nothing else. It is a pure function:
the same request gives the same values, in the same types, whether a field was sent or taken from the defaults. So a
float that was sent as 9 and a float that is 9.0 by default are one value, and have one key.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from cache.description import Description, Parameter, Scalar
from gateway.errors import InvalidField

LONGEST_TEXT = 2000  # characters, where a model says nothing else
EXTRA = "extra"
M = TypeVar("M", bound=Message)
NOT_PARAMETERS = frozenset({"model", "image", "image_digest", "framing", "cache_policy", "delivery"})


# From bytes to a message, and from a message to names and values.


def parse(kind: type[M], message: bytes) -> M:
    """Raises InvalidField for bytes that are no message of this kind."""
    try:
        return kind.FromString(message)
    except DecodeError:
        raise InvalidField("request", "must be a message of the method's type") from None


def given_fields(
    message: Message, ignore: frozenset[str] = NOT_PARAMETERS
) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """What a request says, by parameter name: its own fields, and its `extra` map.

    A field that was not set is absent; so is an empty text or a zero where the wire cannot tell it from one that was
    not set. Raises InvalidField for an extra parameter without a value.
    """
    given: dict[str, Scalar] = {}
    for descriptor in message.DESCRIPTOR.fields:
        if descriptor.name in ignore or descriptor.name == EXTRA:
            continue
        if _is_set(message, descriptor):
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


def _extra_of(message: Message) -> dict[str, Scalar]:
    if EXTRA not in message.DESCRIPTOR.fields_by_name:
        return {}
    values: Mapping[str, Any] = getattr(message, EXTRA)
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


def _text(parameter: Parameter, value: Scalar) -> str:
    if not isinstance(value, str):
        raise _refused(parameter, "VALUE_TYPE")
    shortest, longest = _lengths(parameter)
    if len(_trimmed(value)) > longest * _MOST_COMPOSED:
        raise _refused(parameter, "TEXT_TOO_LONG")
    text = normalise(value)
    if _FORBIDDEN.search(text):
        raise _refused(parameter, "TEXT_CHARACTERS")
    if len(text) > longest:
        raise _refused(parameter, "TEXT_TOO_LONG")
    if len(text) < shortest:
        raise _refused(parameter, "TEXT_TOO_SHORT" if text else "VALUE_MISSING")
    return text


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
    characters = "; control characters are not allowed" if reason == "TEXT_CHARACTERS" else ""
    return InvalidField(field, f"must be {_expected(parameter)}{characters}", reason=reason)


def _expected(parameter: Parameter) -> str:
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
