"""Speech: the parameters and stages that families of speech in a recorded voice have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from cache.description import Description, Parameter, Recording, Scope, Stage
from inference import sound_files
from inference.models.describing import RESULT_TTL, described

MEDIUM = "voice"  # what the recording is called in requests

_HEARD = Recording(min_seconds=1.0, max_seconds=30.0, min_sample_rate=16_000)


def spoken(
    name: str, family: str, parameters: Sequence[Parameter], stages: Sequence[Stage], *, random_weights: bool
) -> Description:
    """The description of a model that speaks; `voice` is the stage that all requests of one voice share."""
    return described(
        name,
        family,
        "synthesize_speech",
        parameters,
        stages,
        recordings={MEDIUM: _HEARD},
        affinity="voice",
        random_weights=random_weights,
    )


# Parameters.


def text(refuses: Sequence[str], *, max_length: int, note: str) -> Parameter:
    """`refuses` is what the model would take for a command, `note` how it reads."""
    return Parameter(
        name="text",
        kind="text",
        min_length=1,
        max_length=max_length,
        refuses=tuple(refuses),
        spoken=True,
        help=f"What to say. {note}",
    )


_BESIDE = {
    "transcript": "What is said in the recording, from which the speech then goes on. Empty: its voice alone is heard.",
    "instruction": "How to say it: a language or dialect, a mood, a pace.",
}


def beside(name: Literal["transcript", "instruction"], refuses: Sequence[str], *, max_length: int) -> Parameter:
    """A text that comes with the one that is said, or does not."""
    return Parameter(
        name=name, kind="text", default="", max_length=max_length, refuses=tuple(refuses), help=_BESIDE[name]
    )


def speed(again: str = "Changing it never runs the model again.") -> Parameter:
    """`again` says what runs when it is changed."""
    return Parameter(
        name="speed",
        kind="float",
        default=1.0,
        minimum=0.5,
        maximum=2.0,
        help=f"How fast: 2 is twice as fast, at the same pitch. {again}",
    )


def sample_rate(native: int) -> Parameter:
    return Parameter(
        name="sample_rate",
        kind="int",
        default=native,
        minimum=8000,
        maximum=48000,
        unit="samples/s",
        help="Of the file. Changing it never runs the model again.",
    )


def file_format() -> Parameter:
    return Parameter(
        name="format",
        kind="choice",
        default="wav",
        choices=tuple(sound_files.CONTAINERS),
        help='Container of the file; "ogg" is Opus. Changing it never runs the model again.',
    )


# Stages. `prints` are the fingerprints by kind.


def voice(prints: Mapping[str, str], kind: str, upstream: Mapping[str, str] | None = None) -> Stage:
    """What is made of the recording alone: of the recording itself where it has no upstream."""
    return Stage(
        name=kind,
        kind=kind,
        fingerprint=prints[kind],
        media=() if upstream else (MEDIUM,),
        upstream=upstream or {},
        scope=Scope.TENANT,
        ttl=RESULT_TTL,
        pooled=True,
    )


def each(
    prints: Mapping[str, str],
    kind: str,
    upstream: Mapping[str, str],
    *parameters: str,
    follows: str = "",
    live: bool = False,
    cached: bool = True,
) -> Stage:
    """One sentence of what the stage `tokens` makes of the text."""
    return Stage(
        name=kind,
        kind=kind,
        fingerprint=prints[kind],
        parameters={parameter: parameter for parameter in parameters},
        upstream=upstream,
        each="tokens",
        follows=follows,
        live=live,
        scope=Scope.TENANT,
        ttl=RESULT_TTL,
        cached=cached,
    )
