"""Plan: what a run may be answered with, checked against this worker's own description before anything happens.

The gateway names every stage's output from the request as it was written. Here the same pure functions compute those
names again, and a plan that says otherwise is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from opentelemetry.context import Context
from PIL import Image

from cache import tags
from cache.description import Description, Parameter, Scalar, Scope, Stage
from cache.keys import Address, addresses, borrowed, content_ids
from cache.parts import whole_name
from cache.record import NotARecord, Record
from cache.work import Work
from inference.errors import InvalidInput, PlanDiffers
from inference.media import Medium, Picture, Sound, identities, read_media, stand_ins
from inference.models import base
from inference.models.base import Call, Model, Tensors
from reprise.v1 import inference_pb2
from reprise.v1.common_pb2 import ParameterValue

_KINDS = {"int": "int_value", "float": "float_value", "text": "text_value", "choice": "text_value"}


@dataclass(frozen=True, slots=True)
class Plan:
    """One request, understood."""

    model: Model = field(repr=False)
    parameters: Mapping[str, Scalar] = field(repr=False)
    media: Mapping[str, Picture | Sound]
    namespaces: Mapping[Scope, str]
    addresses: Mapping[str, Address]  # by stage, of the request as written
    records: Mapping[str, Record]  # by stage, those the gateway found
    reuse_nothing: bool = False
    store_nothing: bool = False
    replace: bool = False
    max_age: float | None = None  # seconds
    follower: str = ""
    idle_priority: bool = False  # nobody waits for it
    tags: frozenset[str] = frozenset()  # for whatever is made
    idle: tuple[str, ...] = ()  # addresses of workers that could run this at once, the best first
    must_run: bool = False  # here, whatever is idle
    estimates: Mapping[str, float] = field(default_factory=dict)  # device seconds, by stage; "stage[]" of its parts
    parent: Context | None = None  # the caller's trace

    @property
    def description(self) -> Description:
        return self.model.description

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.description.active(self.parameters)

    @property
    def instead(self) -> dict[str, str]:
        """The near-duplicates whose encodings are borrowed, by medium."""
        return stand_ins(self.media)

    @property
    def address(self) -> Address:
        """Of the result, as the request was written."""
        return self.addresses[self.description.final.name]

    def seconds_of(self, run: Iterable[Stage]) -> float | None:
        """Device seconds that these stages should take, each part of a text a stage of its own. None: nobody knows."""
        total = 0.0
        for stage in run:
            whole = whole_name(stage.name)
            seconds = self.estimates.get(whole if stage.name == whole else f"{whole}[]")
            if seconds is None:
                return None
            total += seconds
        return total

    @property
    def tenant(self) -> str:
        """The namespace of the tenant it is run for."""
        return self.namespaces[Scope.TENANT]

    def brought(self, stage: str, canonical: Address, now: float) -> Record | None:
        """The record that the gateway found for a stage, if it is of this canonical address and can be used."""
        record = self.records.get(stage)
        if record is None or record.canonical not in (None, canonical) or record.expired(now):
            return None
        return record if self.young_enough(record, now) else None

    def young_enough(self, record: Record, now: float) -> bool:
        return self.max_age is None or now - record.made_at <= self.max_age


def read_plan(
    request: inference_pb2.RunRequest,
    models: Mapping[str, Model],
    contents: Mapping[str, bytes] | None = None,
    parent: Context | None = None,
) -> Plan:
    """The plan in a request, with the contents of media that came beside it, by name.

    Blocking: it hashes media. Raises InvalidInput and PlanDiffers.
    """
    model = models.get(request.model)
    if model is None or model.description.revision != request.revision:
        raise PlanDiffers("this worker does not serve that model in that revision")
    description = model.description
    parameters = _parameters(request, description)
    wanted = (name for stage in description.active(parameters) for name in stage.media)
    media = read_media(request, description, wanted, contents or {})
    namespaces = _namespaces(request)
    return Plan(
        model=model,
        parameters=parameters,
        media=media,
        namespaces=namespaces,
        addresses=(own := _addresses(request, description, parameters, media, namespaces)),
        records=_records(request, own),
        reuse_nothing=request.reuse_nothing,
        store_nothing=request.store_nothing,
        replace=request.replace,
        max_age=request.max_age if request.HasField("max_age") else None,
        follower=request.follower,
        idle_priority=request.idle_priority,
        tags=frozenset({*request.tags, tags.of_tenant(namespaces[Scope.TENANT]), tags.of_user(namespaces[Scope.USER])}),
        idle=tuple(request.idle),
        must_run=request.must_run,
        estimates=dict(request.estimates),
        parent=parent,
    )


def lacks_loan(work: Work, instead: Mapping[str, str]) -> bool:
    """Whether a stage must run whose output was to be a near-duplicate's, which this picture's pixels cannot give."""
    return any(borrowed(stage, instead) for stage in work.run)


def lacks_media(work: Work, media: Mapping[str, Medium]) -> bool:
    """Whether a stage that must run reads a medium whose bytes are not there."""
    return any(not media[name].there for stage in work.run for name in stage.media)


def call_for(
    plan: Plan,
    stage: Stage,
    outputs: Mapping[str, Tensors],
    *,
    step: Callable[[int, int], None] = lambda done, of: None,
    preview: Callable[[Image.Image], None] | None = None,
    piece: Callable[[Tensors], None] = lambda piece: None,
    fed: bool = False,
) -> Call:
    """What a run of this stage is given: what it declares, and nothing else. `fed`: all but the upstream that it
    follows, which it will be fed. Copies pixels and samples.
    """
    there = {other.name for other in plan.stages}
    opened = {name: plan.media[name].opened() for name in stage.media}
    return Call(
        parameters={role: plan.parameters[name] for role, name in stage.parameters.items()},
        media={name: medium for name, medium in opened.items() if isinstance(medium, Image.Image)},
        upstream={
            role: outputs[name]
            for role, name in stage.upstream.items()
            if whole_name(name) in there and not (fed and name == stage.follows)
        },
        step=step,
        preview=preview,
        sounds={name: medium for name, medium in opened.items() if isinstance(medium, base.Sound)},
        piece=piece,
    )


def _parameters(request: inference_pb2.RunRequest, description: Description) -> dict[str, Scalar]:
    declared = {parameter.name: parameter for parameter in description.parameters}
    if unknown := sorted(request.parameters.keys() - declared.keys()):
        # Told by its place and not by its name, which is the caller's to choose.
        raise InvalidInput("parameters", f"{len(unknown)} of them are not declared by this model")
    return {name: _value(request, parameter) for name, parameter in declared.items()}


def _value(request: inference_pb2.RunRequest, parameter: Parameter) -> Scalar:
    if parameter.name not in request.parameters:
        raise InvalidInput(parameter.name, "must be given")
    message: ParameterValue = request.parameters[parameter.name]
    if message.WhichOneof("value") != _KINDS[parameter.kind]:
        raise InvalidInput(parameter.name, f"must be of the kind {parameter.kind}")
    value: Scalar = getattr(message, _KINDS[parameter.kind])
    if isinstance(value, float) and value - value != 0.0:
        raise InvalidInput(parameter.name, "must be finite")
    return value


def _namespaces(request: inference_pb2.RunRequest) -> dict[Scope, str]:
    if missing := [scope.value for scope in Scope if scope.value not in request.namespaces]:
        raise InvalidInput("namespaces", f"must have one for the scope {missing[0]}")
    return {scope: request.namespaces[scope.value] for scope in Scope}


def _addresses(
    request: inference_pb2.RunRequest,
    description: Description,
    parameters: Mapping[str, Scalar],
    media: Mapping[str, Medium],
    namespaces: Mapping[Scope, str],
) -> dict[str, Address]:
    instead = stand_ins(media)
    try:
        ids = content_ids(description, parameters, identities(media), instead=instead)
    except ValueError as error:  # a text that has no UTF-8
        raise InvalidInput("parameters", "must be text in Unicode") from error
    own = addresses(description, ids, namespaces, instead)
    theirs = dict(request.addresses)
    if description.final.name not in theirs or any(
        name not in own or str(own[name]) != address for name, address in theirs.items()
    ):
        raise PlanDiffers("an address in the plan is not the one this worker computes")
    return own


def _records(request: inference_pb2.RunRequest, addresses: Mapping[str, Address]) -> dict[str, Record]:
    """Those that can be believed: of the very address they are given for. The others are looked up again."""
    records: dict[str, Record] = {}
    for stage, data in request.records.items():
        if stage in addresses:
            try:
                records[stage] = Record.from_bytes(data, addresses[stage])
            except NotARecord:
                continue
    return records
