import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from reprise.v1 import common_pb2 as _common_pb2
from reprise.v1 import media_pb2 as _media_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WarmOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WARM_OUTCOME_UNSPECIFIED: _ClassVar[WarmOutcome]
    WARM_OUTCOME_MADE: _ClassVar[WarmOutcome]
    WARM_OUTCOME_THERE: _ClassVar[WarmOutcome]
    WARM_OUTCOME_JOINED: _ClassVar[WarmOutcome]
    WARM_OUTCOME_OVER_BUDGET: _ClassVar[WarmOutcome]
    WARM_OUTCOME_REFUSED: _ClassVar[WarmOutcome]
WARM_OUTCOME_UNSPECIFIED: WarmOutcome
WARM_OUTCOME_MADE: WarmOutcome
WARM_OUTCOME_THERE: WarmOutcome
WARM_OUTCOME_JOINED: WarmOutcome
WARM_OUTCOME_OVER_BUDGET: WarmOutcome
WARM_OUTCOME_REFUSED: WarmOutcome

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("tiers", "requests", "device_seconds_spent", "device_seconds_saved", "generations", "write_behind", "workers", "uptime_seconds", "switched_off")
    TIERS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_SPENT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_SAVED_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    WRITE_BEHIND_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SWITCHED_OFF_FIELD_NUMBER: _ClassVar[int]
    tiers: _containers.RepeatedCompositeFieldContainer[TierStats]
    requests: _containers.RepeatedCompositeFieldContainer[OutcomeCount]
    device_seconds_spent: float
    device_seconds_saved: float
    generations: int
    write_behind: WriteBehindStats
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStats]
    uptime_seconds: float
    switched_off: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, tiers: _Optional[_Iterable[_Union[TierStats, _Mapping]]] = ..., requests: _Optional[_Iterable[_Union[OutcomeCount, _Mapping]]] = ..., device_seconds_spent: _Optional[float] = ..., device_seconds_saved: _Optional[float] = ..., generations: _Optional[int] = ..., write_behind: _Optional[_Union[WriteBehindStats, _Mapping]] = ..., workers: _Optional[_Iterable[_Union[WorkerStats, _Mapping]]] = ..., uptime_seconds: _Optional[float] = ..., switched_off: _Optional[_Iterable[str]] = ...) -> None: ...

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

class InvalidateRequest(_message.Message):
    __slots__ = ("model", "revision", "stage", "tenant", "user", "label", "digest", "picture", "older_than", "dry_run", "recording")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    OLDER_THAN_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    RECORDING_FIELD_NUMBER: _ClassVar[int]
    model: str
    revision: str
    stage: str
    tenant: str
    user: str
    label: str
    digest: str
    picture: bytes
    older_than: _duration_pb2.Duration
    dry_run: bool
    recording: bytes
    def __init__(self, model: _Optional[str] = ..., revision: _Optional[str] = ..., stage: _Optional[str] = ..., tenant: _Optional[str] = ..., user: _Optional[str] = ..., label: _Optional[str] = ..., digest: _Optional[str] = ..., picture: _Optional[bytes] = ..., older_than: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., dry_run: _Optional[bool] = ..., recording: _Optional[bytes] = ...) -> None: ...

class InvalidateResponse(_message.Message):
    __slots__ = ("heard", "records_read", "receipt")
    HEARD_FIELD_NUMBER: _ClassVar[int]
    RECORDS_READ_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    heard: Heard
    records_read: int
    receipt: Receipt
    def __init__(self, heard: _Optional[_Union[Heard, _Mapping]] = ..., records_read: _Optional[int] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class Heard(_message.Message):
    __slots__ = ("durable", "told", "processes")
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    TOLD_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    durable: bool
    told: int
    processes: _containers.RepeatedCompositeFieldContainer[Hearing]
    def __init__(self, durable: _Optional[bool] = ..., told: _Optional[int] = ..., processes: _Optional[_Iterable[_Union[Hearing, _Mapping]]] = ...) -> None: ...

class Hearing(_message.Message):
    __slots__ = ("process", "entries", "bytes")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    process: str
    entries: int
    bytes: int
    def __init__(self, process: _Optional[str] = ..., entries: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("outputs", "tiers", "unreached")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    UNREACHED_FIELD_NUMBER: _ClassVar[int]
    outputs: int
    tiers: _containers.RepeatedCompositeFieldContainer[Removal]
    unreached: _containers.RepeatedScalarFieldContainer[_common_pb2.Tier]
    def __init__(self, outputs: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[Removal, _Mapping]]] = ..., unreached: _Optional[_Iterable[_Union[_common_pb2.Tier, str]]] = ...) -> None: ...

class Removal(_message.Message):
    __slots__ = ("tier", "entries", "bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: _common_pb2.Tier
    entries: int
    bytes: int
    def __init__(self, tier: _Optional[_Union[_common_pb2.Tier, str]] = ..., entries: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class SwitchRequest(_message.Message):
    __slots__ = ("tier", "model", "tenant", "on")
    TIER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ON_FIELD_NUMBER: _ClassVar[int]
    tier: _common_pb2.Tier
    model: str
    tenant: str
    on: bool
    def __init__(self, tier: _Optional[_Union[_common_pb2.Tier, str]] = ..., model: _Optional[str] = ..., tenant: _Optional[str] = ..., on: _Optional[bool] = ...) -> None: ...

class SwitchResponse(_message.Message):
    __slots__ = ("heard", "switched_off")
    HEARD_FIELD_NUMBER: _ClassVar[int]
    SWITCHED_OFF_FIELD_NUMBER: _ClassVar[int]
    heard: Heard
    switched_off: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, heard: _Optional[_Union[Heard, _Mapping]] = ..., switched_off: _Optional[_Iterable[str]] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("address", "on")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ON_FIELD_NUMBER: _ClassVar[int]
    address: str
    on: bool
    def __init__(self, address: _Optional[str] = ..., on: _Optional[bool] = ...) -> None: ...

class PinResponse(_message.Message):
    __slots__ = ("heard", "pinned")
    HEARD_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    heard: Heard
    pinned: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, heard: _Optional[_Union[Heard, _Mapping]] = ..., pinned: _Optional[_Iterable[str]] = ...) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: str
    def __init__(self, key: _Optional[str] = ...) -> None: ...

class InspectResponse(_message.Message):
    __slots__ = ("kind", "namespace", "hex", "copies", "record")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    HEX_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    kind: str
    namespace: str
    hex: str
    copies: _containers.RepeatedCompositeFieldContainer[TierCopy]
    record: RecordInfo
    def __init__(self, kind: _Optional[str] = ..., namespace: _Optional[str] = ..., hex: _Optional[str] = ..., copies: _Optional[_Iterable[_Union[TierCopy, _Mapping]]] = ..., record: _Optional[_Union[RecordInfo, _Mapping]] = ...) -> None: ...

class TierCopy(_message.Message):
    __slots__ = ("tier", "outcome", "bytes", "seconds")
    TIER_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    tier: _common_pb2.Tier
    outcome: _common_pb2.LookupOutcome
    bytes: int
    seconds: float
    def __init__(self, tier: _Optional[_Union[_common_pb2.Tier, str]] = ..., outcome: _Optional[_Union[_common_pb2.LookupOutcome, str]] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class RecordInfo(_message.Message):
    __slots__ = ("model", "revision", "stage", "fingerprint", "artifact", "media_type", "inlined", "device_seconds", "total_device_seconds", "made_at", "touched_at", "expires_at", "ttl", "upstream", "tags", "execution", "canonical")
    class UpstreamEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ExecutionEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    INLINED_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_DEVICE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MADE_AT_FIELD_NUMBER: _ClassVar[int]
    TOUCHED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    CANONICAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    revision: str
    stage: str
    fingerprint: str
    artifact: _common_pb2.Digest
    media_type: str
    inlined: bool
    device_seconds: float
    total_device_seconds: float
    made_at: _timestamp_pb2.Timestamp
    touched_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    ttl: _duration_pb2.Duration
    upstream: _containers.ScalarMap[str, str]
    tags: _containers.RepeatedScalarFieldContainer[str]
    execution: _containers.ScalarMap[str, str]
    canonical: str
    def __init__(self, model: _Optional[str] = ..., revision: _Optional[str] = ..., stage: _Optional[str] = ..., fingerprint: _Optional[str] = ..., artifact: _Optional[_Union[_common_pb2.Digest, _Mapping]] = ..., media_type: _Optional[str] = ..., inlined: _Optional[bool] = ..., device_seconds: _Optional[float] = ..., total_device_seconds: _Optional[float] = ..., made_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., touched_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., upstream: _Optional[_Mapping[str, str]] = ..., tags: _Optional[_Iterable[str]] = ..., execution: _Optional[_Mapping[str, str]] = ..., canonical: _Optional[str] = ...) -> None: ...

class Favourite(_message.Message):
    __slots__ = ("animate_image", "synthesize_speech", "tenant", "user")
    ANIMATE_IMAGE_FIELD_NUMBER: _ClassVar[int]
    SYNTHESIZE_SPEECH_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    animate_image: _media_pb2.AnimateImageRequest
    synthesize_speech: _media_pb2.SynthesizeSpeechRequest
    tenant: str
    user: str
    def __init__(self, animate_image: _Optional[_Union[_media_pb2.AnimateImageRequest, _Mapping]] = ..., synthesize_speech: _Optional[_Union[_media_pb2.SynthesizeSpeechRequest, _Mapping]] = ..., tenant: _Optional[str] = ..., user: _Optional[str] = ...) -> None: ...

class WarmRequest(_message.Message):
    __slots__ = ("favourites", "frequent", "budget_device_seconds", "most", "tenant")
    FAVOURITES_FIELD_NUMBER: _ClassVar[int]
    FREQUENT_FIELD_NUMBER: _ClassVar[int]
    BUDGET_DEVICE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    favourites: _containers.RepeatedCompositeFieldContainer[Favourite]
    frequent: bool
    budget_device_seconds: float
    most: int
    tenant: str
    def __init__(self, favourites: _Optional[_Iterable[_Union[Favourite, _Mapping]]] = ..., frequent: _Optional[bool] = ..., budget_device_seconds: _Optional[float] = ..., most: _Optional[int] = ..., tenant: _Optional[str] = ...) -> None: ...

class WarmResponse(_message.Message):
    __slots__ = ("done", "of", "device_seconds_spent", "warmed", "summary")
    DONE_FIELD_NUMBER: _ClassVar[int]
    OF_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_SPENT_FIELD_NUMBER: _ClassVar[int]
    WARMED_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    done: int
    of: int
    device_seconds_spent: float
    warmed: Warmed
    summary: WarmSummary
    def __init__(self, done: _Optional[int] = ..., of: _Optional[int] = ..., device_seconds_spent: _Optional[float] = ..., warmed: _Optional[_Union[Warmed, _Mapping]] = ..., summary: _Optional[_Union[WarmSummary, _Mapping]] = ...) -> None: ...

class Warmed(_message.Message):
    __slots__ = ("position", "outcome", "address", "device_seconds", "estimated_seconds", "reason", "field")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    position: int
    outcome: WarmOutcome
    address: str
    device_seconds: float
    estimated_seconds: float
    reason: str
    field: str
    def __init__(self, position: _Optional[int] = ..., outcome: _Optional[_Union[WarmOutcome, str]] = ..., address: _Optional[str] = ..., device_seconds: _Optional[float] = ..., estimated_seconds: _Optional[float] = ..., reason: _Optional[str] = ..., field: _Optional[str] = ...) -> None: ...

class WarmSummary(_message.Message):
    __slots__ = ("made", "there", "joined", "over_budget", "refused")
    MADE_FIELD_NUMBER: _ClassVar[int]
    THERE_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    OVER_BUDGET_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    made: int
    there: int
    joined: int
    over_budget: int
    refused: int
    def __init__(self, made: _Optional[int] = ..., there: _Optional[int] = ..., joined: _Optional[int] = ..., over_budget: _Optional[int] = ..., refused: _Optional[int] = ...) -> None: ...

class SavingsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SavingsResponse(_message.Message):
    __slots__ = ("rows", "warm", "uptime_seconds")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WARM_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[SavingsRow]
    warm: WarmSavings
    uptime_seconds: float
    def __init__(self, rows: _Optional[_Iterable[_Union[SavingsRow, _Mapping]]] = ..., warm: _Optional[_Union[WarmSavings, _Mapping]] = ..., uptime_seconds: _Optional[float] = ...) -> None: ...

class SavingsRow(_message.Message):
    __slots__ = ("model", "stage", "tier", "tenant", "reused", "device_seconds_saved", "ran", "device_seconds_spent", "lookups", "lookup_seconds")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_SAVED_FIELD_NUMBER: _ClassVar[int]
    RAN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_SPENT_FIELD_NUMBER: _ClassVar[int]
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    stage: str
    tier: _common_pb2.Tier
    tenant: str
    reused: int
    device_seconds_saved: float
    ran: int
    device_seconds_spent: float
    lookups: int
    lookup_seconds: float
    def __init__(self, model: _Optional[str] = ..., stage: _Optional[str] = ..., tier: _Optional[_Union[_common_pb2.Tier, str]] = ..., tenant: _Optional[str] = ..., reused: _Optional[int] = ..., device_seconds_saved: _Optional[float] = ..., ran: _Optional[int] = ..., device_seconds_spent: _Optional[float] = ..., lookups: _Optional[int] = ..., lookup_seconds: _Optional[float] = ...) -> None: ...

class WarmSavings(_message.Message):
    __slots__ = ("made", "device_seconds_spent", "hits", "device_seconds_saved", "used")
    MADE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_SPENT_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_SAVED_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    made: int
    device_seconds_spent: float
    hits: int
    device_seconds_saved: float
    used: int
    def __init__(self, made: _Optional[int] = ..., device_seconds_spent: _Optional[float] = ..., hits: _Optional[int] = ..., device_seconds_saved: _Optional[float] = ..., used: _Optional[int] = ...) -> None: ...
