"""Settings of a gateway. `deploy/reprise.yaml` explains each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from cache.crashes import REMEMBERED
from cache.description import LONGEST_AGE
from cache.fair import SHARE
from cache.settings import MIB, ProcessSettings, Section
from gateway.blueprint import LARGEST_FILE
from gateway.identity import IdentitySettings
from gateway.plan import DefaultPolicy

DAY = 24 * 3600.0
OTHERS = frozenset({"worker"})  # sections of the file that a gateway leaves to workers


class SimilaritySettings(Section):
    """Near-duplicates of pictures. A request that says what it wants is not overruled."""

    models: tuple[str, ...] = ()  # whose requests may use them unless they say no
    tenants: tuple[str, ...] = ()  # likewise
    max_bytes: int = Field(32 * MIB, ge=0)  # of looks to recognise pictures by, all together; 0: never

    def by_default(self, model: str, tenant: str) -> bool:
        return model in self.models or tenant in self.tenants


class ReplaySection(Section):
    """Whose requests are kept, so that they can be made ahead. What is asked with `replayable` is, if anything is."""

    enabled: bool = False
    models: tuple[str, ...] = ()  # and all for these models
    tenants: tuple[str, ...] = ()  # and all of these tenants
    max_age: float = Field(LONGEST_AGE, gt=0, le=LONGEST_AGE)  # seconds after it was last written that one is forgotten


class WarmEntry(Section):
    """What is made ahead, and when. One of all gateways does it each time."""

    at: str | None = Field(None, pattern=r"^([01]\d|2[0-3]):[0-5]\d$")  # HH:MM of every day, UTC
    every: float | None = Field(None, ge=1.0)  # or so many seconds
    tenant: str = Field(min_length=1)  # on whose behalf
    user: str = ""
    file: Path | None = None  # with requests, as for `reprise warm`
    frequent: bool = False  # what is asked often, of what may be kept
    most: int = Field(20, ge=1, le=1000)  # of what is frequent
    budget: float = Field(60.0, gt=0)  # device seconds, each time

    @model_validator(mode="after")
    def _when_and_what(self) -> Self:
        if (self.at is None) == (self.every is None):
            raise ValueError("say when: either `at` or `every`")
        if self.file is None and not self.frequent:
            raise ValueError("say what: `file`, `frequent` or both")
        return self


class GatewaySection(Section):
    name: str = "gateway"
    host: str = "127.0.0.1"
    port: int = Field(7400, ge=0, le=65535)
    advertise: str = ""  # host:port where other gateways reach this one; else host and port
    identity: IdentitySettings = IdentitySettings()
    http_port: int | None = Field(None, ge=0, le=65535)  # of artifacts by URL; 0: any; None: no HTTP here
    public_url: str = ""  # where clients reach the HTTP ports of all gateways, e.g. https://media.example.com
    url_lifetime: float = Field(300.0, ge=2.0)  # a URL is good for this long at most, and for half of it at least
    max_url_bytes: int = Field(256 * MIB, gt=0)  # of artifacts that are being sent by URL, all together
    workers: tuple[str, ...] = ()  # host:port each, or dns:///name:port for every address behind a name
    default_models: Mapping[str, str] = Field(default_factory=dict)  # task -> model; else the only one there is
    aliases: Mapping[str, str] = Field(default_factory=dict)  # what requests and orders may call it too -> model
    revisions: Mapping[str, str] = Field(default_factory=dict)  # model -> revision; else the newest healthy worker's
    default_seed: int = Field(42, ge=0, lt=2**53)
    policies: tuple[DefaultPolicy, ...] = ()  # of requests that say nothing else; the most specific one holds
    grace: float = Field(10.0, ge=0)  # how long work goes on after its last follower has left
    linger: float = Field(60.0, ge=0)  # how long a finished generation can still be watched
    heartbeat: float = Field(15.0, gt=0)  # a stream is never silent for longer
    linger_bytes: int = Field(128 * MIB, gt=0)  # of finished generations, all together
    max_memory_bytes: int | None = Field(None, gt=0)  # of this process; None: what its control group may have
    max_unstored_bytes: int = Field(256 * MIB, gt=0)  # of results until they are stored, all but one together
    max_departing_bytes: int = Field(256 * MIB, gt=0)  # of files that are read from tiers and sent, or one larger file
    max_pixel_bytes: int = Field(1024 * MIB, gt=0)  # of decoded media on their way to workers, all together
    max_upload_bytes: int = Field(4096 * MIB, ge=LARGEST_FILE)  # that one tenant may send here in two hours
    longest_generation: float = Field(3600.0, gt=0)
    quarantine: float = Field(600.0, ge=0, le=REMEMBERED)  # seconds that a worker's death is held against what it ran
    max_generations: int = Field(256, gt=0)  # under way at once in this gateway
    tenant_share: float = Field(SHARE, gt=0, le=1)  # of these that one tenant may have, of what others leave
    drain: float = Field(60.0, ge=0)  # how long a stopping gateway lets streams finish
    similarity: SimilaritySettings = SimilaritySettings()
    replay: ReplaySection = ReplaySection()
    warm: tuple[WarmEntry, ...] = ()  # made ahead on a schedule
    savings_tenants: tuple[str, ...] = ()  # with rows of their own in savings
    reflection: bool = True

    @field_validator("public_url")
    @classmethod
    def _is_a_prefix(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://[^/\s?#][^\s?#]*", url):
            raise ValueError("must be http(s)://host, with port and path where needed, and without a query")
        return url

    @field_validator("policies")
    @classmethod
    def _are_of_different_requests(cls, policies: tuple[DefaultPolicy, ...]) -> tuple[DefaultPolicy, ...]:
        if len({(policy.model, policy.tenant) for policy in policies}) != len(policies):
            raise ValueError("two of them are for the same model and tenant: make them one")
        return policies

    @model_validator(mode="after")
    def _call_models_what_workers_do(self) -> Self:
        """Elsewhere than in requests and orders another name would mean nothing."""
        named: Mapping[str, Iterable[str]] = {
            "aliases": self.aliases.values(),
            "revisions": self.revisions,
            "policies": (policy.model for policy in self.policies),
            "similarity.models": self.similarity.models,
            "replay.models": self.replay.models,
        }
        for setting, models in named.items():
            for model in self.aliases.keys() & models:
                raise ValueError(f"{setting}: {model} is another name of {self.aliases[model]}: write that")
        return self


class GatewaySettings(ProcessSettings):
    gateway: GatewaySection = GatewaySection()
