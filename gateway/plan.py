"""Plan: a request made canonical, with the address of everything it can reach. Knows no model by name."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from google.protobuf.duration_pb2 import Duration

from cache.description import Description, Scalar, Scope, Stage
from cache.keys import Address, addresses, content_ids
from cache.near import MOST_DISTANCE, USUAL_DISTANCE, Likeness
from gateway.darkroom import Source
from gateway.errors import InvalidField
from reprise.v1.common_pb2 import CachePolicy, Similarity

_MAX_SEED = 2**53


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
    similarity: int | None = None  # bits by which a picture may look different whose encodings stand in

    @property
    def replaces(self) -> bool:
        """What is stored gives way: it is being refreshed, or may be too old for this request."""
        return self.refresh or self.max_age is not None

    @classmethod
    def of(cls, message: CachePolicy) -> Policy:
        """Raises InvalidField for what means nothing here."""
        mode = message.mode
        if mode not in CachePolicy.Mode.values():
            raise InvalidField("cache_policy.mode", "must be one that this gateway knows")
        refresh, bypass = mode == CachePolicy.MODE_REFRESH, mode == CachePolicy.MODE_BYPASS
        only_if_cached = mode == CachePolicy.MODE_ONLY_IF_CACHED
        if message.fresh and only_if_cached:
            raise InvalidField("cache_policy.fresh", "a fresh result is never cached: choose another mode")
        return cls(
            read=not (refresh or bypass or message.fresh),
            generate=not only_if_cached,
            reuse=not (refresh or bypass),
            store=not (bypass or message.no_store),
            refresh=refresh,
            max_age=_seconds(message.max_age) if message.HasField("max_age") else None,
            fresh=message.fresh,
            similarity=_bits(message.similarity),
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
    media: Mapping[str, Source]
    namespaces: Mapping[Scope, str]
    addresses: Mapping[str, Address]  # by stage
    policy: Policy
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict)  # by medium; none: the plan is exact

    @property
    def address(self) -> Address:
        """Where the result is, or will be."""
        return self.addresses[self.description.final.name]

    @property
    def affinity(self) -> str:
        """Requests with this in common should meet on one worker."""
        return self.addresses[self.description.affinity].content_id

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.description.active(self.parameters)

    @property
    def seed(self) -> int:
        return int(self.parameters.get("seed", 0))

    def without_media(self) -> Plan:
        """The same plan, for those who must not keep pictures alive."""
        return replace(self, media={})

    def with_stand_ins(self, stand_ins: Mapping[str, StandIn]) -> Plan:
        """The same request answered with what near-duplicates' encodings give, or exactly if there are none."""
        return make_plan(self.description, self.parameters, self.media, self.namespaces, self.policy, stand_ins)


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
    media: Mapping[str, Source],
    namespaces: Mapping[Scope, str],
    policy: Policy,
    stand_ins: Mapping[str, StandIn] | None = None,
) -> Plan:
    """`parameters` are complete and validated."""
    instead = {name: stand_in.identity for name, stand_in in (stand_ins or {}).items()}
    identities = {name: source.identity for name, source in media.items()}
    ids = content_ids(description, parameters, identities, instead=instead)
    where = addresses(description, ids, namespaces, instead)
    return Plan(description, parameters, media, namespaces, where, policy, stand_ins or {})


def _bits(similarity: Similarity) -> int | None:
    if similarity.max_distance > MOST_DISTANCE:
        raise InvalidField("cache_policy.similarity.max_distance", f"must be at most {MOST_DISTANCE} bits")
    return (similarity.max_distance or USUAL_DISTANCE) if similarity.pictures else None


def _seconds(duration: Duration) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    if seconds < 0:
        raise InvalidField("cache_policy.max_age", "must not be negative")
    return seconds
