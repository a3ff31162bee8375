from reprise.v1 import common_pb2 as _common_pb2
from reprise.v1 import media_pb2 as _media_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("descriptions", "worker", "started_at", "process")
    DESCRIPTIONS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    descriptions: _containers.RepeatedScalarFieldContainer[bytes]
    worker: str
    started_at: float
    process: str
    def __init__(self, descriptions: _Optional[_Iterable[bytes]] = ..., worker: _Optional[str] = ..., started_at: _Optional[float] = ..., process: _Optional[str] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("model", "revision", "parameters", "pictures", "sounds", "namespaces", "addresses", "records", "reuse_nothing", "store_nothing", "replace", "follower", "max_age", "idle", "must_run", "tags", "idle_priority", "estimates", "piece")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _common_pb2.ParameterValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_common_pb2.ParameterValue, _Mapping]] = ...) -> None: ...
    class PicturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Picture
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Picture, _Mapping]] = ...) -> None: ...
    class SoundsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Sound
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Sound, _Mapping]] = ...) -> None: ...
    class NamespacesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class AddressesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class RecordsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    class EstimatesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    SOUNDS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    REUSE_NOTHING_FIELD_NUMBER: _ClassVar[int]
    STORE_NOTHING_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    FOLLOWER_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    MUST_RUN_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    IDLE_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ESTIMATES_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    model: str
    revision: str
    parameters: _containers.MessageMap[str, _common_pb2.ParameterValue]
    pictures: _containers.MessageMap[str, Picture]
    sounds: _containers.MessageMap[str, Sound]
    namespaces: _containers.ScalarMap[str, str]
    addresses: _containers.ScalarMap[str, str]
    records: _containers.ScalarMap[str, bytes]
    reuse_nothing: bool
    store_nothing: bool
    replace: bool
    follower: str
    max_age: float
    idle: _containers.RepeatedScalarFieldContainer[str]
    must_run: bool
    tags: _containers.RepeatedScalarFieldContainer[str]
    idle_priority: bool
    estimates: _containers.ScalarMap[str, float]
    piece: MediaPiece
    def __init__(self, model: _Optional[str] = ..., revision: _Optional[str] = ..., parameters: _Optional[_Mapping[str, _common_pb2.ParameterValue]] = ..., pictures: _Optional[_Mapping[str, Picture]] = ..., sounds: _Optional[_Mapping[str, Sound]] = ..., namespaces: _Optional[_Mapping[str, str]] = ..., addresses: _Optional[_Mapping[str, str]] = ..., records: _Optional[_Mapping[str, bytes]] = ..., reuse_nothing: _Optional[bool] = ..., store_nothing: _Optional[bool] = ..., replace: _Optional[bool] = ..., follower: _Optional[str] = ..., max_age: _Optional[float] = ..., idle: _Optional[_Iterable[str]] = ..., must_run: _Optional[bool] = ..., tags: _Optional[_Iterable[str]] = ..., idle_priority: _Optional[bool] = ..., estimates: _Optional[_Mapping[str, float]] = ..., piece: _Optional[_Union[MediaPiece, _Mapping]] = ...) -> None: ...

class MediaPiece(_message.Message):
    __slots__ = ("name", "content")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    content: bytes
    def __init__(self, name: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class Picture(_message.Message):
    __slots__ = ("identity", "width", "height", "rgb", "near_identity", "part_of")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RGB_FIELD_NUMBER: _ClassVar[int]
    NEAR_IDENTITY_FIELD_NUMBER: _ClassVar[int]
    PART_OF_FIELD_NUMBER: _ClassVar[int]
    identity: str
    width: int
    height: int
    rgb: bytes
    near_identity: str
    part_of: str
    def __init__(self, identity: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., rgb: _Optional[bytes] = ..., near_identity: _Optional[str] = ..., part_of: _Optional[str] = ...) -> None: ...

class Sound(_message.Message):
    __slots__ = ("identity", "sample_rate", "samples", "pcm")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PCM_FIELD_NUMBER: _ClassVar[int]
    identity: str
    sample_rate: int
    samples: int
    pcm: bytes
    def __init__(self, identity: _Optional[str] = ..., sample_rate: _Optional[int] = ..., samples: _Optional[int] = ..., pcm: _Optional[bytes] = ...) -> None: ...

class RunResponse(_message.Message):
    __slots__ = ("event", "finished", "stored", "elsewhere", "begun")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    event: _media_pb2.GenerationEvent
    finished: Finished
    stored: _media_pb2.Stored
    elsewhere: Elsewhere
    begun: Begun
    def __init__(self, event: _Optional[_Union[_media_pb2.GenerationEvent, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., stored: _Optional[_Union[_media_pb2.Stored, _Mapping]] = ..., elsewhere: _Optional[_Union[Elsewhere, _Mapping]] = ..., begun: _Optional[_Union[Begun, _Mapping]] = ...) -> None: ...

class Begun(_message.Message):
    __slots__ = ("process",)
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    process: str
    def __init__(self, process: _Optional[str] = ...) -> None: ...

class Elsewhere(_message.Message):
    __slots__ = ("worker",)
    WORKER_FIELD_NUMBER: _ClassVar[int]
    worker: str
    def __init__(self, worker: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("record", "stages", "canonical_address", "alias", "joined")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    CANONICAL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    stages: _containers.RepeatedCompositeFieldContainer[_common_pb2.StageReport]
    canonical_address: str
    alias: bytes
    joined: bool
    def __init__(self, record: _Optional[bytes] = ..., stages: _Optional[_Iterable[_Union[_common_pb2.StageReport, _Mapping]]] = ..., canonical_address: _Optional[str] = ..., alias: _Optional[bytes] = ..., joined: _Optional[bool] = ...) -> None: ...

class ForeseeRequest(_message.Message):
    __slots__ = ("run", "within")
    RUN_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    run: RunRequest
    within: float
    def __init__(self, run: _Optional[_Union[RunRequest, _Mapping]] = ..., within: _Optional[float] = ...) -> None: ...

class ForeseeResponse(_message.Message):
    __slots__ = ("stages", "addresses", "under_way", "wait_seconds", "run_seconds")
    class AddressesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STAGES_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    UNDER_WAY_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RUN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedCompositeFieldContainer[_common_pb2.StageReport]
    addresses: _containers.ScalarMap[str, str]
    under_way: bool
    wait_seconds: float
    run_seconds: float
    def __init__(self, stages: _Optional[_Iterable[_Union[_common_pb2.StageReport, _Mapping]]] = ..., addresses: _Optional[_Mapping[str, str]] = ..., under_way: _Optional[bool] = ..., wait_seconds: _Optional[float] = ..., run_seconds: _Optional[float] = ...) -> None: ...

class AbandonRequest(_message.Message):
    __slots__ = ("follower",)
    FOLLOWER_FIELD_NUMBER: _ClassVar[int]
    follower: str
    def __init__(self, follower: _Optional[str] = ...) -> None: ...

class AbandonResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AttendRequest(_message.Message):
    __slots__ = ("follower", "waiting")
    FOLLOWER_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    follower: str
    waiting: bool
    def __init__(self, follower: _Optional[str] = ..., waiting: _Optional[bool] = ...) -> None: ...

class AttendResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("state", "queued", "busy", "generations", "pool_bytes", "pool_entries", "pool_evictions", "device_bytes_free", "device_bytes_total", "model_bytes", "host_bytes", "host_entries", "queue_seconds")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[StatusResponse.State]
        STATE_LOADING: _ClassVar[StatusResponse.State]
        STATE_READY: _ClassVar[StatusResponse.State]
        STATE_DRAINING: _ClassVar[StatusResponse.State]
    STATE_UNSPECIFIED: StatusResponse.State
    STATE_LOADING: StatusResponse.State
    STATE_READY: StatusResponse.State
    STATE_DRAINING: StatusResponse.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    POOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    POOL_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    POOL_EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FREE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    state: StatusResponse.State
    queued: int
    busy: bool
    generations: int
    pool_bytes: int
    pool_entries: int
    pool_evictions: int
    device_bytes_free: int
    device_bytes_total: int
    model_bytes: int
    host_bytes: int
    host_entries: int
    queue_seconds: float
    def __init__(self, state: _Optional[_Union[StatusResponse.State, str]] = ..., queued: _Optional[int] = ..., busy: _Optional[bool] = ..., generations: _Optional[int] = ..., pool_bytes: _Optional[int] = ..., pool_entries: _Optional[int] = ..., pool_evictions: _Optional[int] = ..., device_bytes_free: _Optional[int] = ..., device_bytes_total: _Optional[int] = ..., model_bytes: _Optional[int] = ..., host_bytes: _Optional[int] = ..., host_entries: _Optional[int] = ..., queue_seconds: _Optional[float] = ...) -> None: ...
