"""Plan: a request made canonical, with the address of everything it can reach. Knows no model by name."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from google.protobuf.duration_pb2 import Duration

from cache.description import Description, Scalar, Scope, Stage
from cache.keys import Address, addresses, content_ids
from cache.record import Record
from cache.tags import WARMED
from gateway.darkroom import Source
from gateway.errors import InvalidField
from reprise.v1.common_pb2 import CachePolicy

_MAX_SEED = 2**53
_MOST_LABELS, _LONGEST_LABEL = 8, 64


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
            replayable=message.replayable,
            labels=_labels(message),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """One request, understood."""

    description: Description
    parameters: Mapping[str, Scalar]
    media: Mapping[str, Source]
    namespaces: Mapping[Scope, str]
    addresses: Mapping[str, Address]  # by stage
    policy: Policy
    identities: Mapping[str, str]  # of the media, by name
    tags: tuple[str, ...] = ()  # for whatever is made
    by_url: bool = False  # the caller would rather have a URL than the bytes
    idle: bool = False  # nobody waits for it

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
    def reachable(self) -> tuple[Stage, ...]:
        """Stages before the result whose outputs can be looked up as the request is written."""
        description = self.description
        return tuple(
            stage
            for stage in self.stages
            if stage.cached and stage is not description.final and not after_canonical(description, stage.name)
        )

    @property
    def seed(self) -> int:
        return int(self.parameters.get("seed", 0))

    def ahead(self) -> Plan:
        """The same plan, to be made before anybody asks."""
        return replace(self, idle=True, tags=(*self.tags, WARMED))

    def without_media(self) -> Plan:
        """The same plan, for those who must not keep pictures alive."""
        return replace(self, media={})


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
    media: Mapping[str, Source],
    namespaces: Mapping[Scope, str],
    policy: Policy,
    *,
    tags: tuple[str, ...] = (),
    by_url: bool = False,
) -> Plan:
    """`parameters` are complete and validated."""
    identities = {name: source.identity for name, source in media.items()}
    where = addresses(description, content_ids(description, parameters, identities), namespaces)
    return Plan(description, parameters, media, namespaces, where, policy, identities, tags, by_url)


def _labels(message: CachePolicy) -> tuple[str, ...]:
    labels = tuple(message.labels)
    if len(labels) > _MOST_LABELS or not all(0 < len(label) <= _LONGEST_LABEL for label in labels):
        raise InvalidField("cache_policy.labels", f"at most {_MOST_LABELS}, of 1 to {_LONGEST_LABEL} characters each")
    return labels


def _seconds(duration: Duration) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    if seconds < 0:
        raise InvalidField("cache_policy.max_age", "must not be negative")
    return seconds
