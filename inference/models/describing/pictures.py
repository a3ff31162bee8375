"""Pictures: the parameters and stages that families of moving pictures have in common."""

from __future__ import annotations

from collections.abc import Mapping

from cache.description import HOUR, Parameter, Scope, Stage, When
from inference import rendition
from inference.models.describing import TEXT_TTL

_PICTURE_TTL = HOUR / 2

GUIDED = When(parameter="guidance_scale", above=1.0)


# Parameters.


def prompt(note: str) -> Parameter:
    """`note` says how much of a text the model reads."""
    return Parameter(
        name="prompt", kind="text", min_length=1, max_length=2000, help=f"What happens in the video. {note}"
    )


def negative_prompt() -> Parameter:
    return Parameter(
        name="negative_prompt",
        kind="text",
        default="",
        max_length=2000,
        help="What to steer away from. Without guidance (guidance_scale up to 1) it is not used.",
    )


def side(name: str, default: int, multiple_of: int, fits: str) -> Parameter:
    """`fits` says what is done to a picture of another shape."""
    return Parameter(
        name=name,
        kind="int",
        default=default,
        minimum=64,
        maximum=1280,
        multiple_of=multiple_of,
        unit="px",
        proportional="onward",
        help=f"The video's {name}; the picture is {fits}.",
    )


def num_frames(default: int, maximum: int, *, minimum: int = 1, note: str = "") -> Parameter:
    return Parameter(
        name="num_frames",
        kind="int",
        default=default,
        minimum=minimum,
        maximum=maximum,
        unit="frames",
        proportional="onward",
        help=f"Length of the video.{note}",
    )


def num_inference_steps(default: int) -> Parameter:
    return Parameter(
        name="num_inference_steps",
        kind="int",
        default=default,
        minimum=1,
        maximum=200,
        unit="steps",
        proportional="stage",
        help="Steps of denoising: more are slower and finer.",
    )


def guidance_scale(default: float, meaning: str) -> Parameter:
    return Parameter(
        name="guidance_scale",
        kind="float",
        default=default,
        minimum=1.0,  # what is below computes the same as 1, and would be other keys for one result
        maximum=30.0,
        help=meaning,
    )


def motion_fps(default: int) -> Parameter:
    return Parameter(
        name="motion_fps",
        kind="int",
        default=default,
        minimum=1,
        maximum=60,
        unit="frames/s",
        help="The rate the model imagines the frames at: a lower one asks for more motion between two of them.",
    )


def file(fps: int) -> tuple[Parameter, Parameter]:
    """What only the finished file depends on."""
    rate = Parameter(
        name="playback_fps",
        kind="int",
        default=fps,
        minimum=1,
        maximum=60,
        unit="frames/s",
        help="The rate the file is played at. Changing it computes no frame again.",
    )
    container = Parameter(
        name="format",
        kind="choice",
        default="mp4",
        choices=tuple(rendition.CONTAINERS),
        help="Container of the file. Changing it computes no frame again.",
    )
    return rate, container


# Stages. `prints` are the fingerprints by kind.


def text(
    prints: Mapping[str, str], name: str, tokens: str, *parameters: str, kind: str = "text", when: When | None = None
) -> Stage:
    """An encoding of the text whose ids the stage `tokens` gives."""
    return Stage(
        name=name,
        kind=kind,
        fingerprint=prints[kind],
        parameters={parameter: parameter for parameter in parameters},
        upstream={"tokens": tokens},
        when=when,
        scope=Scope.USER,
        ttl=TEXT_TTL,
        pooled=True,
    )


def picture(prints: Mapping[str, str], kind: str, *parameters: str, upstream: Mapping[str, str] | None = None) -> Stage:
    """An encoding of the picture."""
    return Stage(
        name=kind,
        kind=kind,
        fingerprint=prints[kind],
        parameters={parameter: parameter for parameter in parameters},
        media=("image",),
        upstream=upstream or {},
        scope=Scope.SHARED,
        ttl=_PICTURE_TTL,
        pooled=True,
    )
