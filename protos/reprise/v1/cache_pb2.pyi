from reprise.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("tiers", "requests", "device_seconds_spent", "device_seconds_saved", "generations", "write_behind", "workers", "uptime_seconds")
    TIERS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_SPENT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_SAVED_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    WRITE_BEHIND_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    tiers: _containers.RepeatedCompositeFieldContainer[TierStats]
    requests: _containers.RepeatedCompositeFieldContainer[OutcomeCount]
    device_seconds_spent: float
    device_seconds_saved: float
    generations: int
    write_behind: WriteBehindStats
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStats]
    uptime_seconds: float
    def __init__(self, tiers: _Optional[_Iterable[_Union[TierStats, _Mapping]]] = ..., requests: _Optional[_Iterable[_Union[OutcomeCount, _Mapping]]] = ..., device_seconds_spent: _Optional[float] = ..., device_seconds_saved: _Optional[float] = ..., generations: _Optional[int] = ..., write_behind: _Optional[_Union[WriteBehindStats, _Mapping]] = ..., workers: _Optional[_Iterable[_Union[WorkerStats, _Mapping]]] = ..., uptime_seconds: _Optional[float] = ...) -> None: ...

class OutcomeCount(_message.Message):
    __slots__ = ("outcome", "count")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    outcome: _common_pb2.Outcome
    count: int
    def __init__(self, outcome: _Optional[_Union[_common_pb2.Outcome, str]] = ..., count: _Optional[int] = ...) -> None: ...

class TierStats(_message.Message):
    __slots__ = ("tier", "lookups", "p50_seconds", "p99_seconds", "entries", "bytes", "capacity_bytes", "evictions", "breaker")
    TIER_FIELD_NUMBER: _ClassVar[int]
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    P50_SECONDS_FIELD_NUMBER: _ClassVar[int]
    P99_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    BREAKER_FIELD_NUMBER: _ClassVar[int]
    tier: _common_pb2.Tier
    lookups: _containers.RepeatedCompositeFieldContainer[LookupCount]
    p50_seconds: float
    p99_seconds: float
    entries: int
    bytes: int
    capacity_bytes: int
    evictions: int
    breaker: str
    def __init__(self, tier: _Optional[_Union[_common_pb2.Tier, str]] = ..., lookups: _Optional[_Iterable[_Union[LookupCount, _Mapping]]] = ..., p50_seconds: _Optional[float] = ..., p99_seconds: _Optional[float] = ..., entries: _Optional[int] = ..., bytes: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., evictions: _Optional[int] = ..., breaker: _Optional[str] = ...) -> None: ...

class LookupCount(_message.Message):
    __slots__ = ("outcome", "count")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    outcome: _common_pb2.LookupOutcome
    count: int
    def __init__(self, outcome: _Optional[_Union[_common_pb2.LookupOutcome, str]] = ..., count: _Optional[int] = ...) -> None: ...

class WriteBehindStats(_message.Message):
    __slots__ = ("entries", "bytes", "written", "failed", "dropped")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    entries: int
    bytes: int
    written: int
    failed: int
    dropped: int
    def __init__(self, entries: _Optional[int] = ..., bytes: _Optional[int] = ..., written: _Optional[int] = ..., failed: _Optional[int] = ..., dropped: _Optional[int] = ...) -> None: ...

class WorkerStats(_message.Message):
    __slots__ = ("address", "healthy", "models", "queued", "busy", "pool_bytes", "pool_entries")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    POOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    POOL_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    address: str
    healthy: bool
    models: _containers.RepeatedScalarFieldContainer[str]
    queued: int
    busy: bool
    pool_bytes: int
    pool_entries: int
    def __init__(self, address: _Optional[str] = ..., healthy: _Optional[bool] = ..., models: _Optional[_Iterable[str]] = ..., queued: _Optional[int] = ..., busy: _Optional[bool] = ..., pool_bytes: _Optional[int] = ..., pool_entries: _Optional[int] = ...) -> None: ...
