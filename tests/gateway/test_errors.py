"""The tree of errors: complete, consistent, and drawn as it is."""

from __future__ import annotations

import re

import grpc
import pytest

import gateway.errors as errors
from gateway.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidField,
    NotFound,
    OutOfRange,
    Overloaded,
    PermissionDenied,
    Quarantined,
    Refused,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

ONE_OF_EACH: list[Refused] = [
    InvalidField("num_frames", "must be a whole number from 8 to 64 frames"),
    TooLarge("image", "must be a file of at most 16 MiB"),
    OutOfRange("offset", "must be at most the artifact's size"),
    Unauthenticated("send a key"),
    PermissionDenied(),
    NotFound("MODEL_UNKNOWN"),
    Overloaded(),
    Unavailable("NO_WORKER"),
    Quarantined(600.0),
    DeadlineExceeded(),
    Cancelled(),
    Internal(),
]


def every_subclass(cls: type[Refused]) -> set[type[Refused]]:
    return {sub for direct in cls.__subclasses__() for sub in {direct, *every_subclass(direct)}}


def test_list_of_one_of_each_is_complete() -> None:
    """Whoever adds an error adds it to the list that these tests and those of `status` walk."""
    assert every_subclass(Refused) == {type(error) for error in ONE_OF_EACH}


def test_tree_in_the_docstring() -> None:
    """The drawn tree holds every class with the code it has."""
    drawn = dict(re.findall(r"[├└]── (\w+)\s+([A-Z_]+):", errors.__doc__ or ""))

    assert {cls.__name__: cls.code.name for cls in every_subclass(Refused)} == drawn


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_every_error_is_told_in_full(error: Refused) -> None:
    """Every error has a stable reason for programs and a sentence for people, which is also its text."""
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{2,62}", error.reason)
    assert error.message
    assert str(error) == error.message


@pytest.mark.parametrize(
    ("reasons", "build"),
    [
        (errors._NOT_FOUND, NotFound),
        (errors._UNAVAILABLE, Unavailable),
        (errors._OVERLOADED, Overloaded),
    ],
    ids=["NotFound", "Unavailable", "Overloaded"],
)
def test_every_reason_has_words(reasons: dict[str, str], build: type[Refused]) -> None:
    """An error with one of several reasons says something else for each of them."""
    messages = [build(reason).message for reason in reasons]  # type: ignore[call-arg]

    assert list(reasons.values()) == messages
    assert len(reasons) == len(set(messages))


def test_waiting_helps_only_where_it_says_so() -> None:
    """A delay is given where trying again makes sense, and nowhere else."""
    with_delay = {type(error) for error in ONE_OF_EACH if error.retry_after is not None}

    assert {Overloaded, Unavailable} == with_delay
    assert Overloaded("DEVICE_MEMORY", retry_after=None).retry_after is None


def test_two_kinds_of_too_much() -> None:
    """Too large an input and too full a queue share a code; only the second has a delay."""
    assert TooLarge.code == Overloaded.code == grpc.StatusCode.RESOURCE_EXHAUSTED
