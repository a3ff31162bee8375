"""How a model family describes itself: its parameters and its stages, as data.

A worker writes this description, a gateway plans by it, and both compute keys from it. The gateway knows no model by
name: which parameter touches which stage, what may be shared with whom and for how long, all of it stands here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cache.digest import Digest
from cache.encoding import VERSION

Scalar: TypeAlias = bool | int | float | str
HOUR = 3600.0
LONGEST_AGE = 7 * 24 * HOUR  # seconds that an entry of a deployment may live; bans are kept for longer


class Scope(StrEnum):
    """Who may find an entry again. Each scope is a namespace of its own; see `cache.keys.namespace`."""

    SHARED = "shared"
    TENANT = "tenant"
    USER = "user"
    SESSION = "session"


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Parameter(_Data):
    """One number or text of a request. What lies outside these bounds is refused before anything is looked up."""

    name: str
    kind: Literal["int", "float", "text", "choice"]
    default: int | float | str | None = None  # None: the caller must give it
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None  # for whole numbers
    min_length: int = 0  # characters, for text
    max_length: int | None = None
    choices: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()  # what a text must not have in it: what its model would take for a command
    spoken: bool = False  # a text to be read out: it must have something to say, and nothing invisible
    # Device time grows with it in proportion: of the stages that declare it, or, as with sizes, of all after them too.
    proportional: Literal["stage", "onward"] | None = None
    extra: bool = False  # travels in the request's `extra` map, because only some families have it
    unit: str = ""
    help: str = ""


class Recording(_Data):
    """What a recording must be like for its model. What is not is refused before anything is looked up."""

    min_seconds: float = Field(gt=0)
    max_seconds: float = Field(gt=0)
    min_sample_rate: int = Field(gt=0)  # samples per second


class When(_Data):
    """The stage exists only in requests whose parameter is above this bound; a text counts by its characters."""

    parameter: str
    above: float

    def holds(self, parameters: Mapping[str, Scalar]) -> bool:
        value = parameters[self.parameter]
        return (len(value) if isinstance(value, str) else float(value)) > self.above


class Stage(_Data):
    """One step of a generation, and everything that may change its output."""

    name: str
    kind: str  # stages of one kind are one computation: the text of a prompt and of a negative prompt share entries
    fingerprint: str  # of the weights, configuration, code version, numerics and libraries this stage runs on
    parameters: Mapping[str, str] = Field(default_factory=dict)  # role in the stage -> request parameter
    media: tuple[str, ...] = ()  # inputs known by content, e.g. ("image",)
    upstream: Mapping[str, str] = Field(default_factory=dict)  # role in the stage -> name of an earlier stage
    when: When | None = None
    # Runs once for every part of what this canonicalising stage gives: for every sentence of a text. See cache.parts.
    each: str = ""
    # It can take the output of this upstream stage in pieces, as they are made, and gives its own in pieces.
    follows: str = ""
    # Its pieces are told to callers as they are made: sound, of the rate that is its parameter "sample_rate".
    live: bool = False
    scope: Scope
    ttl: float  # seconds without access after which an entry is gone
    # Seconds after which an entry is never served again, accessed or not.
    max_age: float = Field(24 * HOUR, gt=0, le=LONGEST_AGE)
    canonicalises: bool = False  # its output, not its input, names what comes after it (text to token ids)
    cached: bool = True
    pooled: bool = False  # its output is worth keeping on the device


class Description(_Data):
    """A model at one revision. Each stage stands after what it needs; the last is the result."""

    schema_version: int = Field(default=VERSION, ge=VERSION, le=VERSION)
    model: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")  # part of object names
    revision: str
    family: str
    task: Literal["animate_image", "synthesize_speech"]
    random_weights: bool = False  # made locally for trying things out; said wherever a result shows
    parameters: tuple[Parameter, ...]
    stages: tuple[Stage, ...]
    recordings: Mapping[str, Recording] = Field(
        default_factory=dict
    )  # media that are sound, by name; others are pictures
    affinity: str  # the stage whose output is worth having hot; requests that share it go to one worker

    @model_validator(mode="after")
    def _is_a_graph(self) -> Self:
        names = {parameter.name for parameter in self.parameters}
        measured = {parameter.name for parameter in self.parameters if parameter.kind != "choice"}
        known: dict[str, Stage] = {}
        for stage in self.stages:
            if missing := set(stage.upstream.values()) - known.keys():
                raise ValueError(f"stage {stage.name} comes before what it needs: {sorted(missing)}")
            if missing := set(stage.parameters.values()) - names:
                raise ValueError(f"stage {stage.name} declares unknown parameters: {sorted(missing)}")
            if (when := stage.when) is not None and when.parameter not in measured:
                raise ValueError(f"stage {stage.name} is conditional on what cannot be measured: {when.parameter}")
            _check_parts(stage, known)
            _check_pieces(stage, known)
            known[stage.name] = stage
        if len(known) != len(self.stages) or len(names) != len(self.parameters):
            raise ValueError("names of stages and of parameters must be unique")
        if self.affinity not in known:
            raise ValueError(f"no stage named {self.affinity}")
        if any(stage.when is not None or stage.each for stage in (self.final, self.stage(self.affinity))):
            raise ValueError("every request has one result and one affinity; their stages cannot be conditional")
        self._check_live()
        return self

    def _check_live(self) -> None:
        whole = {parameter.name for parameter in self.parameters if parameter.kind == "int"}
        live = [stage for stage in self.stages if stage.live]
        if len(live) > 1 or self.final.live or self.final.follows:
            raise ValueError("the result is a file: one stage before it, at most, can be heard live")
        if any(stage.parameters.get("sample_rate") not in whole for stage in live):
            raise ValueError(f"stage {live[0].name} is heard live, and declares no sample_rate")

    @property
    def final(self) -> Stage:
        return self.stages[-1]

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def active(self, parameters: Mapping[str, Scalar]) -> tuple[Stage, ...]:
        """The stages that a request with these (complete) parameters has."""
        return tuple(stage for stage in self.stages if stage.when is None or stage.when.holds(parameters))

    def to_bytes(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Description:
        """Raises ValueError for anything that is not a description of this schema."""
        return cls.model_validate_json(data)

    @property
    def digest(self) -> Digest:
        return Digest.of(self.to_bytes())


def canonical_first(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """The stages that can run before anything else, to say what a request means: those that canonicalise and read
    nothing but parameters and each other.
    """
    first: dict[str, Stage] = {}
    stages = tuple(stages)
    there = {stage.name for stage in stages}
    for stage in stages:
        if stage.canonicalises and not stage.media and there.intersection(stage.upstream.values()) <= first.keys():
            first[stage.name] = stage
    return tuple(first.values())


def _check_parts(stage: Stage, earlier: Mapping[str, Stage]) -> None:
    if any("[" in name for name in (stage.name, *stage.upstream)):
        raise ValueError(f"stage {stage.name} has a bracket in a name, which is for its parts")
    if not stage.each:
        return
    if stage.canonicalises or stage.each not in {first.name for first in canonical_first(earlier.values())}:
        raise ValueError(f"stage {stage.name} runs for parts of what does not say first what a request means")
    _check_there(stage, earlier[stage.each])
    read = [earlier[name] for name in stage.upstream.values()]
    if stage.each not in {name for each in read for name in (each.name, each.each)}:
        raise ValueError(f"stage {stage.name} runs for parts, and reads none of {stage.each}")
    if any(each.each not in ("", stage.each) for each in read):
        raise ValueError(f"stage {stage.name} reads parts of another text than its own")


def _check_pieces(stage: Stage, earlier: Mapping[str, Stage]) -> None:
    if not stage.follows:
        return
    if stage.canonicalises or stage.follows not in stage.upstream.values():
        raise ValueError(f"stage {stage.name} follows what it does not read: {stage.follows}")
    if stage.each != earlier[stage.follows].each:
        raise ValueError(f"stage {stage.name} follows what runs for other parts: {stage.follows}")
    _check_there(stage, earlier[stage.follows])


def _check_there(stage: Stage, other: Stage) -> None:
    if other.when not in (None, stage.when):
        raise ValueError(f"stage {stage.name} cannot be without {other.name}, which is conditional")
