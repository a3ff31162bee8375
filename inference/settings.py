"""Settings of a worker. Durations are seconds, sizes are bytes."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from cache.description import LONGEST_AGE, Scope
from cache.fair import SHARE
from cache.keys import Address
from cache.settings import ProcessSettings, Section
from cache.value import PolicyName

OTHERS = frozenset({"gateway"})  # sections of the file that a worker leaves to gateways


class RetentionSettings(Section):
    """Of a stage's outputs; None: as the model's family has it."""

    scope: Scope | None = None
    ttl: float | None = Field(None, gt=0)  # without access
    max_age: float | None = Field(None, gt=0, le=LONGEST_AGE)  # in any case; bans are kept for little longer


class ModelSettings(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")  # what requests call it
    source: str  # a folder, or a hub id: OWNER/NAME, or OWNER/NAME@REVISION
    dtype: Literal["float32", "float16", "bfloat16"] | None = None  # None: half on an accelerator, single on a CPU
    checkout: str | None = None  # the folder of a family's code that is no package; None: REPRISE_COSYVOICE names it
    stages: Mapping[str, RetentionSettings] = Field(default_factory=dict)  # by name of the stage


class WorkerSection(Section):
    name: str = Field(default_factory=socket.gethostname)  # unique in the deployment
    host: str = "127.0.0.1"
    port: int = Field(7410, ge=0, le=65535)  # 0: any free one, named in the log
    models: tuple[ModelSettings, ...] = ()  # or the short form, name: source
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int = Field(0, ge=0)  # of the processor for one operation, 0: torch's choice; bits may depend on it
    pool_bytes: int | None = Field(None, ge=0)  # of device memory, if runs leave as much; None: all that they leave
    pool_entries: int | None = Field(10, ge=0)  # None: the bytes are bound enough
    pool_share: float = Field(0.25, gt=0, le=1)  # of the pool's bytes that one output may take
    pool_policy: PolicyName = "value"  # who leaves when there is no room: cache/value.py
    host_pool_bytes: int | None = Field(None, ge=0)  # None: 1 GiB beside an accelerator, nothing on a processor
    favourites: tuple[str, ...] = ()  # addresses as reports give them; what they mean stays in the pool
    queue: int = Field(64, ge=0)  # runs that may wait for the device
    tenant_share: float = Field(SHARE, gt=0, le=1)  # of these places that one tenant may have, of what others leave
    spill_after: int | None = Field(1, ge=0)  # runs that wait here before others go to idle workers; None: none ever
    grace: float = Field(10.0, ge=0)  # how long queued work waits for its last follower to come back
    drain: float = Field(60.0, ge=0)  # how long a stopping worker lets runs finish
    reflection: bool = True

    @field_validator("models", mode="before")
    @classmethod
    def _read_short_form(cls, models: Any) -> Any:
        if isinstance(models, Mapping):
            return [{"name": name, "source": source} for name, source in models.items()]
        return models

    @field_validator("favourites")
    @classmethod
    def _are_addresses(cls, favourites: tuple[str, ...]) -> tuple[str, ...]:
        for favourite in favourites:
            Address.parse(favourite)
        return favourites

    @field_validator("models")
    @classmethod
    def _have_own_names(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        if len({model.name for model in models}) != len(models):
            raise ValueError("every model needs a name of its own")
        return models


class WorkerSettings(ProcessSettings):
    worker: WorkerSection = WorkerSection()
