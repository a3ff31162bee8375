"""Describing: what the descriptions of all model families have in common, so that each family's file says only what is
its own. `pictures.py` has what moving pictures share, `speech.py` what spoken texts do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from cache.description import HOUR, Description, Parameter, Recording, Scope, Stage, When

TEXT_TTL, RESULT_TTL = HOUR / 6, 2 * HOUR

Task: TypeAlias = Literal["animate_image", "synthesize_speech"]


def described(
    name: str,
    family: str,
    task: Task,
    parameters: Sequence[Parameter],
    stages: Sequence[Stage],
    *,
    affinity: str,
    random_weights: bool,
    recordings: Mapping[str, Recording] | None = None,
) -> Description:
    """A description whose revision is a hash of all that it says."""
    description = Description(
        model=name,
        revision="",
        family=family,
        task=task,
        random_weights=random_weights,
        parameters=tuple(parameters),
        stages=tuple(stages),
        recordings=recordings or {},
        affinity=affinity,
    )
    return description.model_copy(update={"revision": description.digest.hex[:16]})


def seed(of: str) -> Parameter:
    """`of` says what there are many of: videos, say."""
    return Parameter(
        name="seed",
        kind="int",
        default=42,
        minimum=0,
        maximum=2**53 - 1,
        help=f"Which of all possible {of}: the same seed and request give the same one.",
    )


# Stages. `prints` are the fingerprints by kind.


def canonical(
    prints: Mapping[str, str],
    kind: str,
    *,
    name: str = "",
    parameters: Mapping[str, str] | None = None,
    upstream: Mapping[str, str] | None = None,
    when: When | None = None,
) -> Stage:
    """Says what a request means, for next to nothing: its output names what follows, and is not kept."""
    return Stage(
        name=name or kind,
        kind=kind,
        fingerprint=prints[kind],
        parameters=parameters or {},
        upstream=upstream or {},
        when=when,
        scope=Scope.USER,
        ttl=TEXT_TTL,
        canonicalises=True,
        cached=False,
    )


def result(prints: Mapping[str, str], kind: str, upstream: Mapping[str, str], *parameters: str) -> Stage:
    """Final latents, or what is made of them."""
    return Stage(
        name=kind,
        kind=kind,
        fingerprint=prints[kind],
        parameters={parameter: parameter for parameter in parameters},
        upstream=upstream,
        scope=Scope.TENANT,
        ttl=RESULT_TTL,
    )
