"""Plan: what a run may be answered with, checked against this worker's own description before anything happens.

The gateway names every stage's output from the request as it was written. Here the same pure functions compute those
names again, and a plan that says otherwise is refused. Once the canonicalising stages have run, the outputs after them
have another name, which all spellings of one meaning share: the canonical one. Work is done under canonical names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from opentelemetry.context import Context
from PIL import Image

from cache import tags
from cache.description import Description, Parameter, Scalar, Scope, Stage
from cache.digest import Digest
from cache.keys import Address, addresses, borrowed, content_ids
from cache.picture import picture_identity
from cache.record import NotARecord, Record
from cache.work import Work
from inference.errors import InvalidInput, PlanDiffers
from inference.models.base import Call, Model, Tensors
from reprise.v1 import inference_pb2
from reprise.v1.common_pb2 import ParameterValue

_KINDS = {"int": "int_value", "float": "float_value", "text": "text_value", "choice": "text_value"}


@dataclass(frozen=True, slots=True)
class Picture:
    """8-bit RGB rows, `width * height * 3` bytes; no bytes where only the identity is known."""

    identity: str
    width: int
    height: int
    rgb: bytes = field(repr=False)
    near_identity: str = ""  # of the near-duplicate whose encodings are read in its place
    part_of: str = ""  # identity of the whole picture, where this is a part of one


@dataclass(frozen=True, slots=True)
class Plan:
    """One request, understood."""

    model: Model = field(repr=False)
    parameters: Mapping[str, Scalar] = field(repr=False)
    pictures: Mapping[str, Picture]
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
        return _instead(self.pictures)

    @property
    def address(self) -> Address:
        """Of the result, as the request was written."""
        return self.addresses[self.description.final.name]

    def brought(self, stage: str, canonical: Address, now: float) -> Record | None:
        """The record that the gateway found for a stage, if it is of this canonical address and can be used."""
        record = self.records.get(stage)
        if record is None or record.canonical not in (None, canonical) or record.expired(now):
            return None
        return record if self.young_enough(record, now) else None

    def young_enough(self, record: Record, now: float) -> bool:
        return self.max_age is None or now - record.made_at <= self.max_age


@dataclass(frozen=True, slots=True)
class Meaning:
    """A plan in terms of what its canonicalising stages made of it."""

    outputs: Mapping[str, Tensors] = field(repr=False)  # of those stages, on the device
    digests: Mapping[str, Digest]  # likewise
    ids: Mapping[str, str]  # canonical content id of every stage
    addresses: Mapping[str, Address]  # canonical


def read_plan(request: inference_pb2.RunRequest, models: Mapping[str, Model], parent: Context | None = None) -> Plan:
    """The plan in a request. Blocking: it hashes pictures. Raises InvalidInput and PlanDiffers."""
    model = models.get(request.model)
    if model is None or model.description.revision != request.revision:
        raise PlanDiffers("this worker does not serve that model in that revision")
    description = model.description
    parameters = _parameters(request, description)
    pictures = _pictures(request, description.active(parameters))
    namespaces = _namespaces(request)
    return Plan(
        model=model,
        parameters=parameters,
        pictures=pictures,
        namespaces=namespaces,
        addresses=(own := _addresses(request, description, parameters, pictures, namespaces)),
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
        parent=parent,
    )


def canonical_first(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages that can run before anything else, to say what a request means: those that canonicalise and read
    nothing but parameters and each other.
    """
    first: dict[str, Stage] = {}
    active = {stage.name for stage in stages}
    for stage in stages:
        if stage.canonicalises and not stage.media and active.intersection(stage.upstream.values()) <= first.keys():
            first[stage.name] = stage
    return tuple(first.values())


def meaning_of(plan: Plan, outputs: Mapping[str, Tensors], digests: Mapping[str, Digest]) -> Meaning:
    """The plan's names once the outputs of `canonical_first` are known."""
    media = {name: picture.identity for name, picture in plan.pictures.items()}
    ids = content_ids(plan.description, plan.parameters, media, digests, plan.instead)
    return Meaning(outputs, digests, ids, addresses(plan.description, ids, plan.namespaces, plan.instead))


def lacks_loan(work: Work, instead: Mapping[str, str]) -> bool:
    """Whether a stage must run whose output was to be a near-duplicate's, which this picture's pixels cannot give."""
    return any(borrowed(stage, instead) for stage in work.run)


def lacks_media(work: Work, pictures: Mapping[str, Picture]) -> bool:
    """Whether a stage that must run reads a picture whose pixels are not there."""
    return any(not pictures[name].rgb for stage in work.run for name in stage.media)


def call_for(
    plan: Plan,
    stage: Stage,
    outputs: Mapping[str, Tensors],
    *,
    step: Callable[[int, int], None] = lambda done, of: None,
    preview: Callable[[Image.Image], None] | None = None,
) -> Call:
    """What a run of this stage is given: what it declares, and nothing else. Copies pixels."""
    active = {other.name for other in plan.stages}
    return Call(
        parameters={role: plan.parameters[name] for role, name in stage.parameters.items()},
        media={name: _image(plan.pictures[name]) for name in stage.media},
        upstream={role: outputs[name] for role, name in stage.upstream.items() if name in active},
        step=step,
        preview=preview,
    )


def _image(picture: Picture) -> Image.Image:
    return Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)


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


def _pictures(request: inference_pb2.RunRequest, stages: Sequence[Stage]) -> dict[str, Picture]:
    wanted = {name for stage in stages for name in stage.media}
    if missing := sorted(wanted - request.pictures.keys()):
        raise InvalidInput(missing[0], "must be given")
    return {name: _picture(name, request.pictures[name]) for name in wanted}


def _picture(name: str, message: inference_pb2.Picture) -> Picture:
    picture = Picture(
        message.identity, message.width, message.height, message.rgb, message.near_identity, message.part_of
    )
    if not picture.rgb:
        return picture
    if len(picture.rgb) != picture.width * picture.height * 3:
        raise InvalidInput(name, "must have width * height * 3 bytes of pixels")
    if picture_identity(picture.width, picture.height, picture.rgb) != picture.identity:
        raise InvalidInput(name, "must have the identity of its own pixels")
    return picture


def _instead(pictures: Mapping[str, Picture]) -> dict[str, str]:
    return {name: picture.near_identity for name, picture in pictures.items() if picture.near_identity}


def _namespaces(request: inference_pb2.RunRequest) -> dict[Scope, str]:
    if missing := [scope.value for scope in Scope if scope.value not in request.namespaces]:
        raise InvalidInput("namespaces", f"must have one for the scope {missing[0]}")
    return {scope: request.namespaces[scope.value] for scope in Scope}


def _addresses(
    request: inference_pb2.RunRequest,
    description: Description,
    parameters: Mapping[str, Scalar],
    pictures: Mapping[str, Picture],
    namespaces: Mapping[Scope, str],
) -> dict[str, Address]:
    identities, instead = {name: picture.identity for name, picture in pictures.items()}, _instead(pictures)
    try:
        ids = content_ids(description, parameters, identities, instead=instead)
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
