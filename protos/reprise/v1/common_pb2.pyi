import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_L1: _ClassVar[Tier]
    TIER_L2: _ClassVar[Tier]
    TIER_L3: _ClassVar[Tier]
    TIER_POOL: _ClassVar[Tier]

class LookupOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOOKUP_OUTCOME_UNSPECIFIED: _ClassVar[LookupOutcome]
    LOOKUP_OUTCOME_HIT: _ClassVar[LookupOutcome]
    LOOKUP_OUTCOME_MISS: _ClassVar[LookupOutcome]
    LOOKUP_OUTCOME_EXPIRED: _ClassVar[LookupOutcome]
    LOOKUP_OUTCOME_CORRUPT: _ClassVar[LookupOutcome]
    LOOKUP_OUTCOME_ERROR: _ClassVar[LookupOutcome]
    LOOKUP_OUTCOME_TIMEOUT: _ClassVar[LookupOutcome]
    LOOKUP_OUTCOME_SKIPPED: _ClassVar[LookupOutcome]
    LOOKUP_OUTCOME_INVALIDATED: _ClassVar[LookupOutcome]
    LOOKUP_OUTCOME_OFF: _ClassVar[LookupOutcome]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_HIT: _ClassVar[Outcome]
    OUTCOME_MISS: _ClassVar[Outcome]
    OUTCOME_COALESCED: _ClassVar[Outcome]
    OUTCOME_BYPASS: _ClassVar[Outcome]

class StageOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_OUTCOME_UNSPECIFIED: _ClassVar[StageOutcome]
    STAGE_OUTCOME_REUSED: _ClassVar[StageOutcome]
    STAGE_OUTCOME_RUN: _ClassVar[StageOutcome]
    STAGE_OUTCOME_NOT_NEEDED: _ClassVar[StageOutcome]

class MissReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MISS_REASON_UNSPECIFIED: _ClassVar[MissReason]
    MISS_REASON_NEW: _ClassVar[MissReason]
    MISS_REASON_EXPIRED: _ClassVar[MissReason]
    MISS_REASON_EVICTED: _ClassVar[MissReason]
    MISS_REASON_INVALIDATED: _ClassVar[MissReason]
    MISS_REASON_POLICY: _ClassVar[MissReason]
    MISS_REASON_TIER_FAILED: _ClassVar[MissReason]
    MISS_REASON_DAMAGED: _ClassVar[MissReason]
    MISS_REASON_NEVER_KEPT: _ClassVar[MissReason]
TIER_UNSPECIFIED: Tier
TIER_L1: Tier
TIER_L2: Tier
TIER_L3: Tier
TIER_POOL: Tier
LOOKUP_OUTCOME_UNSPECIFIED: LookupOutcome
LOOKUP_OUTCOME_HIT: LookupOutcome
LOOKUP_OUTCOME_MISS: LookupOutcome
LOOKUP_OUTCOME_EXPIRED: LookupOutcome
LOOKUP_OUTCOME_CORRUPT: LookupOutcome
LOOKUP_OUTCOME_ERROR: LookupOutcome
LOOKUP_OUTCOME_TIMEOUT: LookupOutcome
LOOKUP_OUTCOME_SKIPPED: LookupOutcome
LOOKUP_OUTCOME_INVALIDATED: LookupOutcome
LOOKUP_OUTCOME_OFF: LookupOutcome
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_HIT: Outcome
OUTCOME_MISS: Outcome
OUTCOME_COALESCED: Outcome
OUTCOME_BYPASS: Outcome
STAGE_OUTCOME_UNSPECIFIED: StageOutcome
STAGE_OUTCOME_REUSED: StageOutcome
STAGE_OUTCOME_RUN: StageOutcome
STAGE_OUTCOME_NOT_NEEDED: StageOutcome
MISS_REASON_UNSPECIFIED: MissReason
MISS_REASON_NEW: MissReason
MISS_REASON_EXPIRED: MissReason
MISS_REASON_EVICTED: MissReason
MISS_REASON_INVALIDATED: MissReason
MISS_REASON_POLICY: MissReason
MISS_REASON_TIER_FAILED: MissReason
MISS_REASON_DAMAGED: MissReason
MISS_REASON_NEVER_KEPT: MissReason

class Digest(_message.Message):
    __slots__ = ("hex", "size")
    HEX_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    hex: str
    size: int
    def __init__(self, hex: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class ParameterValue(_message.Message):
    __slots__ = ("int_value", "float_value", "text_value")
    INT_VALUE_FIELD_NUMBER: _ClassVar[int]
    FLOAT_VALUE_FIELD_NUMBER: _ClassVar[int]
    TEXT_VALUE_FIELD_NUMBER: _ClassVar[int]
    int_value: int
    float_value: float
    text_value: str
    def __init__(self, int_value: _Optional[int] = ..., float_value: _Optional[float] = ..., text_value: _Optional[str] = ...) -> None: ...

class TierLookup(_message.Message):
    __slots__ = ("tier", "outcome", "seconds")
    TIER_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    tier: Tier
    outcome: LookupOutcome
    seconds: float
    def __init__(self, tier: _Optional[_Union[Tier, str]] = ..., outcome: _Optional[_Union[LookupOutcome, str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class StageReport(_message.Message):
    __slots__ = ("stage", "outcome", "tier", "device_seconds", "reason", "estimated", "parts", "lookups")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    outcome: StageOutcome
    tier: Tier
    device_seconds: float
    reason: MissReason
    estimated: bool
    parts: _containers.RepeatedCompositeFieldContainer[PartReport]
    lookups: _containers.RepeatedCompositeFieldContainer[TierLookup]
    def __init__(self, stage: _Optional[str] = ..., outcome: _Optional[_Union[StageOutcome, str]] = ..., tier: _Optional[_Union[Tier, str]] = ..., device_seconds: _Optional[float] = ..., reason: _Optional[_Union[MissReason, str]] = ..., estimated: _Optional[bool] = ..., parts: _Optional[_Iterable[_Union[PartReport, _Mapping]]] = ..., lookups: _Optional[_Iterable[_Union[TierLookup, _Mapping]]] = ...) -> None: ...

class PartReport(_message.Message):
    __slots__ = ("outcome", "tier", "device_seconds", "reason")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    outcome: StageOutcome
    tier: Tier
    device_seconds: float
    reason: MissReason
    def __init__(self, outcome: _Optional[_Union[StageOutcome, str]] = ..., tier: _Optional[_Union[Tier, str]] = ..., device_seconds: _Optional[float] = ..., reason: _Optional[_Union[MissReason, str]] = ...) -> None: ...

class Nearest(_message.Message):
    __slots__ = ("address", "asked_at", "differing")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ASKED_AT_FIELD_NUMBER: _ClassVar[int]
    DIFFERING_FIELD_NUMBER: _ClassVar[int]
    address: str
    asked_at: _timestamp_pb2.Timestamp
    differing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, address: _Optional[str] = ..., asked_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., differing: _Optional[_Iterable[str]] = ...) -> None: ...

class CacheReport(_message.Message):
    __slots__ = ("outcome", "tier", "lookups", "stages", "device_seconds_spent", "device_seconds_saved", "made_at", "address", "reason", "nearest", "similar", "folded")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_SPENT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_SAVED_FIELD_NUMBER: _ClassVar[int]
    MADE_AT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NEAREST_FIELD_NUMBER: _ClassVar[int]
    SIMILAR_FIELD_NUMBER: _ClassVar[int]
    FOLDED_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    tier: Tier
    lookups: _containers.RepeatedCompositeFieldContainer[TierLookup]
    stages: _containers.RepeatedCompositeFieldContainer[StageReport]
    device_seconds_spent: float
    device_seconds_saved: float
    made_at: _timestamp_pb2.Timestamp
    address: str
    reason: MissReason
    nearest: Nearest
    similar: _containers.RepeatedCompositeFieldContainer[SimilarPicture]
    folded: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, outcome: _Optional[_Union[Outcome, str]] = ..., tier: _Optional[_Union[Tier, str]] = ..., lookups: _Optional[_Iterable[_Union[TierLookup, _Mapping]]] = ..., stages: _Optional[_Iterable[_Union[StageReport, _Mapping]]] = ..., device_seconds_spent: _Optional[float] = ..., device_seconds_saved: _Optional[float] = ..., made_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., address: _Optional[str] = ..., reason: _Optional[_Union[MissReason, str]] = ..., nearest: _Optional[_Union[Nearest, _Mapping]] = ..., similar: _Optional[_Iterable[_Union[SimilarPicture, _Mapping]]] = ..., folded: _Optional[_Iterable[str]] = ...) -> None: ...

class Similarity(_message.Message):
    __slots__ = ("pictures", "max_distance", "lines")
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    MAX_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    pictures: bool
    max_distance: int
    lines: bool
    def __init__(self, pictures: _Optional[bool] = ..., max_distance: _Optional[int] = ..., lines: _Optional[bool] = ...) -> None: ...

class SimilarPicture(_message.Message):
    __slots__ = ("media", "distance", "thumbnail_difference", "identity")
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    media: str
    distance: int
    thumbnail_difference: float
    identity: str
    def __init__(self, media: _Optional[str] = ..., distance: _Optional[int] = ..., thumbnail_difference: _Optional[float] = ..., identity: _Optional[str] = ...) -> None: ...

class CachePolicy(_message.Message):
    __slots__ = ("mode", "no_store", "max_age", "fresh", "labels", "similarity", "replayable")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_UNSPECIFIED: _ClassVar[CachePolicy.Mode]
        MODE_USE: _ClassVar[CachePolicy.Mode]
        MODE_REFRESH: _ClassVar[CachePolicy.Mode]
        MODE_BYPASS: _ClassVar[CachePolicy.Mode]
        MODE_ONLY_IF_CACHED: _ClassVar[CachePolicy.Mode]
    MODE_UNSPECIFIED: CachePolicy.Mode
    MODE_USE: CachePolicy.Mode
    MODE_REFRESH: CachePolicy.Mode
    MODE_BYPASS: CachePolicy.Mode
    MODE_ONLY_IF_CACHED: CachePolicy.Mode
    MODE_FIELD_NUMBER: _ClassVar[int]
    NO_STORE_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    REPLAYABLE_FIELD_NUMBER: _ClassVar[int]
    mode: CachePolicy.Mode
    no_store: bool
    max_age: _duration_pb2.Duration
    fresh: bool
    labels: _containers.RepeatedScalarFieldContainer[str]
    similarity: Similarity
    replayable: bool
    def __init__(self, mode: _Optional[_Union[CachePolicy.Mode, str]] = ..., no_store: _Optional[bool] = ..., max_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., fresh: _Optional[bool] = ..., labels: _Optional[_Iterable[str]] = ..., similarity: _Optional[_Union[Similarity, _Mapping]] = ..., replayable: _Optional[bool] = ...) -> None: ...
