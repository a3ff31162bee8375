"""Plan: a request made canonical, with the address of everything it can reach. Knows no model by name."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from google.protobuf.duration_pb2 import Duration
from pydantic import Field, model_validator

from cache.description import Description, Scalar, Scope, Stage
from cache.keys import Address, addresses, content_ids
from cache.near import MOST_DISTANCE, USUAL_DISTANCE, Likeness
from cache.record import Record
from cache.settings import Section
from cache.tags import WARMED, of_media
from gateway.errors import InvalidField
from gateway.reception import Medium
from reprise.v1.common_pb2 import CachePolicy, Similarity
from reprise.v1.media_pb2 import DELIVERY_INLINE, DELIVERY_NONE, DELIVERY_URL, Delivery

_MAX_SEED = 2**53
_MOST_LABELS, _LONGEST_LABEL = 8, 64
_KNOWN_MODES = frozenset(CachePolicy.Mode.values())
_MODES = {
    "": CachePolicy.MODE_USE,
    "use": CachePolicy.MODE_USE,
    "refresh": CachePolicy.MODE_REFRESH,
    "bypass": CachePolicy.MODE_BYPASS,
    "only-if-cached": CachePolicy.MODE_ONLY_IF_CACHED,
}


class DefaultPolicy(Section):
    """What holds for requests of a model, a tenant or both, as far as they say nothing else themselves."""

    model: str = ""  # empty: every model
    tenant: str = ""  # empty: every tenant
    mode: Literal["", "use", "refresh", "bypass", "only-if-cached"] = ""
    fresh: bool = False
    no_store: bool = False
    max_age: float | None = Field(None, ge=0)  # seconds

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.fresh and self.mode == "only-if-cached":
            raise ValueError("a fresh result is never cached: choose another mode")
        return self

    def applies(self, model: str, tenant: str) -> bool:
        return self.model in ("", model) and self.tenant in ("", tenant)

    @property
    def specificity(self) -> tuple[bool, bool]:
        """Model and tenant together come before the tenant alone, and that before the model alone."""
        return bool(self.tenant), bool(self.model)


def default_policy(defaults: Sequence[DefaultPolicy], model: str, tenant: str) -> DefaultPolicy:
    """The most specific of those that apply; no two of `defaults` are of the same model and tenant."""
    able = [default for default in defaults if default.applies(model, tenant)]
    return max(able, key=lambda default: default.specificity, default=_NO_DEFAULT)


_NO_DEFAULT = DefaultPolicy()


@dataclass(frozen=True, slots=True)
class Policy:
    """What a request wants of the cache, in terms of what may be read, reused and written."""

    read: bool = True  # answer with a stored result
    generate: bool = True
    reuse: bool = True  # use stored outputs of stages
    store: bool = True
    refresh: bool = False
    max_age: float | None = None  # seconds
    fresh: bool = False
    replayable: bool = False  # the request may be kept, to be made ahead
    labels: tuple[str, ...] = ()
    similarity: int | None = None  # bits by which a picture may look different whose encodings stand in
    lines: bool = False  # texts to be spoken that differ in punctuation, width or spacing are one

    def off(self) -> Policy:
        """The same while the cache is switched off for this request."""
        return replace(self, read=False, reuse=False, store=False)

    @property
    def replaces(self) -> bool:
        """What is stored gives way: it is being refreshed, or may be too old for this request."""
        return self.refresh or self.max_age is not None

    def young_enough(self, record: Record, now: float) -> bool:
        return self.max_age is None or now - record.made_at <= self.max_age

    @classmethod
    def of(cls, message: CachePolicy, default: DefaultPolicy = _NO_DEFAULT, *, seeded: bool = False) -> Policy:
        """The policy of a request that says `message`, and that has a seed or not (`seeded`).

        It overrides the default in what it says itself. A default variety is not for who asks for a certain result: by
        its seed, or by naming a mode. Raises InvalidField for what means nothing here.
        """
        if message.mode not in _KNOWN_MODES:
            raise InvalidField("cache_policy.mode", "must be one that this gateway knows")
        mode = message.mode or _MODES[default.mode]
        fresh = message.fresh or (default.fresh and not message.mode and not seeded)
        refresh, bypass = mode == CachePolicy.MODE_REFRESH, mode == CachePolicy.MODE_BYPASS
        only_if_cached = mode == CachePolicy.MODE_ONLY_IF_CACHED
        if fresh and only_if_cached:
            raise InvalidField("cache_policy.fresh", "a fresh result is never cached: choose another mode")
        return cls(
            read=not (refresh or bypass or fresh),
            generate=not only_if_cached,
            reuse=not (refresh or bypass),
            store=not (bypass or message.no_store or default.no_store),
            refresh=refresh,
            max_age=_seconds(message.max_age) if message.HasField("max_age") else default.max_age,
            fresh=fresh,
            replayable=message.replayable,
            labels=_labels(message),
            similarity=_bits(message.similarity),
            lines=message.similarity.lines,
        )


@dataclass(frozen=True, slots=True)
class StandIn:
    """A near-duplicate whose encodings are read in place of a picture's own."""

    identity: str
    likeness: Likeness


@dataclass(frozen=True, slots=True)
class Plan:
    """One request, understood."""

    description: Description
    parameters: Mapping[str, Scalar]
    media: Mapping[str, Medium]
    namespaces: Mapping[Scope, str]
    addresses: Mapping[str, Address]  # by stage
    policy: Policy
    identities: Mapping[str, str]  # of the media, by name
    wholes: Mapping[str, str]  # identities of what media are parts of, by name; without those that are whole
    tags: tuple[str, ...] = ()  # for whatever is made
    delivery: Delivery = DELIVERY_INLINE  # how the caller would have the file
    live: bool = False  # the caller listens to what is made as it is made
    folded: tuple[str, ...] = ()  # what was changed in a text before it was read
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict)  # by medium; none: the plan is exact
    idle: bool = False  # nobody waits for it

    @property
    def address(self) -> Address:
        """Where the result is, or will be."""
        return self.addresses[self.description.final.name]

    @property
    def by_url(self) -> bool:
        return self.delivery == DELIVERY_URL

    @property
    def in_chunks(self) -> bool:
        """The bytes go to the caller, unless a URL does."""
        return self.delivery != DELIVERY_NONE

    @property
    def affinity(self) -> str:
        """Requests with this in common should meet on one worker."""
        return self.addresses[self.description.affinity].content_id

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.description.active(self.parameters)

    @property
    def reachable(self) -> tuple[Stage, ...]:
        """Stages before the result whose outputs can be looked up as the request is written."""
        description = self.description
        return tuple(
            stage
            for stage in self.stages
            if stage.cached and stage is not description.final and not after_canonical(description, stage.name)
        )

    @property
    def media_tags(self) -> Mapping[str, tuple[str, ...]]:
        """By what each medium is found again, by name: itself, and the whole that it is a part of."""
        return {
            name: tuple(of_media(each) for each in (identity, self.wholes.get(name)) if each)
            for name, identity in self.identities.items()
        }

    @property
    def seed(self) -> int:
        return int(self.parameters.get("seed", 0))

    def ahead(self) -> Plan:
        """The same plan, to be made before anybody asks."""
        return replace(self, idle=True, tags=(*self.tags, WARMED))

    def without_media(self) -> Plan:
        """The same plan, for those who must not keep media alive."""
        return replace(self, media={})

    def anew(self, description: Description, parameters: Mapping[str, Scalar]) -> Plan:
        """The same request as another description of its model has it."""
        where = _addresses(description, parameters, self.identities, self.namespaces, {})
        return replace(self, description=description, parameters=parameters, addresses=where, stand_ins={})

    def as_made(self, made: Plan) -> Plan:
        """This caller's plan once the model has changed, and all who share the generation were planned anew."""
        if made.description == self.description:
            return self
        return self.anew(made.description, made.parameters)

    def with_stand_ins(self, stand_ins: Mapping[str, StandIn]) -> Plan:
        """The same request answered with what near-duplicates' encodings give, or exactly if there are none."""
        where = _addresses(self.description, self.parameters, self.identities, self.namespaces, stand_ins)
        return replace(self, addresses=where, stand_ins=stand_ins)


def after_canonical(description: Description, name: str) -> bool:
    """Whether only a worker can name this stage's output: it comes after what a canonicalising stage makes of it."""
    upstream = description.stage(name).upstream.values()
    return any(description.stage(each).canonicalises or after_canonical(description, each) for each in upstream)


def choose_seed(given: Mapping[str, Scalar], policy: Policy) -> dict[str, Scalar]:
    """The given parameters, with a seed drawn if variety is asked for. Raises InvalidField if both are."""
    if not policy.fresh:
        return dict(given)
    if "seed" in given:
        raise InvalidField("seed", "leave it out to get a fresh one, or do not ask for a fresh result")
    return {**given, "seed": secrets.randbelow(_MAX_SEED)}


def make_plan(
    description: Description,
    parameters: Mapping[str, Scalar],
    media: Mapping[str, Medium],
    namespaces: Mapping[Scope, str],
    policy: Policy,
    *,
    tags: tuple[str, ...] = (),
    delivery: Delivery = DELIVERY_INLINE,
    live: bool = False,
    folded: tuple[str, ...] = (),
) -> Plan:
    """`parameters` are complete and validated."""
    identities = {name: medium.identity for name, medium in media.items()}
    wholes = {name: medium.part_of for name, medium in media.items() if medium.part_of}
    where = _addresses(description, parameters, identities, namespaces, {})
    return Plan(
        description,
        parameters,
        media,
        namespaces,
        where,
        policy,
        identities,
        wholes,
        tags=tags,
        delivery=delivery,
        live=live,
        folded=folded,
    )


def _addresses(
    description: Description,
    parameters: Mapping[str, Scalar],
    identities: Mapping[str, str],
    namespaces: Mapping[Scope, str],
    stand_ins: Mapping[str, StandIn],
) -> dict[str, Address]:
    instead = {name: stand_in.identity for name, stand_in in stand_ins.items()}
    ids = content_ids(description, parameters, identities, instead=instead)
    return addresses(description, ids, namespaces, instead)


def _labels(message: CachePolicy) -> tuple[str, ...]:
    labels = tuple(message.labels[: _MOST_LABELS + 1])
    if len(labels) > _MOST_LABELS or not all(0 < len(label) <= _LONGEST_LABEL for label in labels):
        raise InvalidField("cache_policy.labels", f"at most {_MOST_LABELS}, of 1 to {_LONGEST_LABEL} characters each")
    return labels


def _bits(similarity: Similarity) -> int | None:
    if similarity.max_distance > MOST_DISTANCE:
        raise InvalidField("cache_policy.similarity.max_distance", f"must be at most {MOST_DISTANCE} bits")
    return (similarity.max_distance or USUAL_DISTANCE) if similarity.pictures else None


def _seconds(duration: Duration) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    if seconds < 0:
        raise InvalidField("cache_policy.max_age", "must not be negative")
    return seconds
