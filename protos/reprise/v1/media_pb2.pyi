import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from reprise.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Delivery(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DELIVERY_UNSPECIFIED: _ClassVar[Delivery]
    DELIVERY_INLINE: _ClassVar[Delivery]
    DELIVERY_URL: _ClassVar[Delivery]
    DELIVERY_NONE: _ClassVar[Delivery]
DELIVERY_UNSPECIFIED: Delivery
DELIVERY_INLINE: Delivery
DELIVERY_URL: Delivery
DELIVERY_NONE: Delivery

class AnimateImageRequest(_message.Message):
    __slots__ = ("model", "image", "image_digest", "prompt", "negative_prompt", "width", "height", "num_frames", "num_inference_steps", "guidance_scale", "motion_fps", "playback_fps", "format", "seed", "extra", "cache_policy", "delivery", "framing")
    class ExtraEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _common_pb2.ParameterValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_common_pb2.ParameterValue, _Mapping]] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_FRAMES_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    MOTION_FPS_FIELD_NUMBER: _ClassVar[int]
    PLAYBACK_FPS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    EXTRA_FIELD_NUMBER: _ClassVar[int]
    CACHE_POLICY_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    FRAMING_FIELD_NUMBER: _ClassVar[int]
    model: str
    image: bytes
    image_digest: _common_pb2.Digest
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    motion_fps: int
    playback_fps: int
    format: str
    seed: int
    extra: _containers.MessageMap[str, _common_pb2.ParameterValue]
    cache_policy: _common_pb2.CachePolicy
    delivery: Delivery
    framing: Framing
    def __init__(self, model: _Optional[str] = ..., image: _Optional[bytes] = ..., image_digest: _Optional[_Union[_common_pb2.Digest, _Mapping]] = ..., prompt: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., num_frames: _Optional[int] = ..., num_inference_steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., motion_fps: _Optional[int] = ..., playback_fps: _Optional[int] = ..., format: _Optional[str] = ..., seed: _Optional[int] = ..., extra: _Optional[_Mapping[str, _common_pb2.ParameterValue]] = ..., cache_policy: _Optional[_Union[_common_pb2.CachePolicy, _Mapping]] = ..., delivery: _Optional[_Union[Delivery, str]] = ..., framing: _Optional[_Union[Framing, _Mapping]] = ...) -> None: ...

class Framing(_message.Message):
    __slots__ = ("left", "top", "width", "height", "rotation")
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    left: int
    top: int
    width: int
    height: int
    rotation: int
    def __init__(self, left: _Optional[int] = ..., top: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., rotation: _Optional[int] = ...) -> None: ...

class AnimateImageResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: GenerationEvent
    def __init__(self, event: _Optional[_Union[GenerationEvent, _Mapping]] = ...) -> None: ...

class SynthesizeSpeechRequest(_message.Message):
    __slots__ = ("model", "voice", "voice_digest", "transcript", "text", "instruction", "pronunciations", "speed", "format", "sample_rate", "seed", "extra", "cache_policy", "delivery", "live")
    class ExtraEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _common_pb2.ParameterValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_common_pb2.ParameterValue, _Mapping]] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VOICE_FIELD_NUMBER: _ClassVar[int]
    VOICE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TRANSCRIPT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    PRONUNCIATIONS_FIELD_NUMBER: _ClassVar[int]
    SPEED_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    EXTRA_FIELD_NUMBER: _ClassVar[int]
    CACHE_POLICY_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    model: str
    voice: bytes
    voice_digest: _common_pb2.Digest
    transcript: str
    text: str
    instruction: str
    pronunciations: _containers.RepeatedCompositeFieldContainer[Pronunciation]
    speed: float
    format: str
    sample_rate: int
    seed: int
    extra: _containers.MessageMap[str, _common_pb2.ParameterValue]
    cache_policy: _common_pb2.CachePolicy
    delivery: Delivery
    live: bool
    def __init__(self, model: _Optional[str] = ..., voice: _Optional[bytes] = ..., voice_digest: _Optional[_Union[_common_pb2.Digest, _Mapping]] = ..., transcript: _Optional[str] = ..., text: _Optional[str] = ..., instruction: _Optional[str] = ..., pronunciations: _Optional[_Iterable[_Union[Pronunciation, _Mapping]]] = ..., speed: _Optional[float] = ..., format: _Optional[str] = ..., sample_rate: _Optional[int] = ..., seed: _Optional[int] = ..., extra: _Optional[_Mapping[str, _common_pb2.ParameterValue]] = ..., cache_policy: _Optional[_Union[_common_pb2.CachePolicy, _Mapping]] = ..., delivery: _Optional[_Union[Delivery, str]] = ..., live: _Optional[bool] = ...) -> None: ...

class Pronunciation(_message.Message):
    __slots__ = ("word", "spoken")
    WORD_FIELD_NUMBER: _ClassVar[int]
    SPOKEN_FIELD_NUMBER: _ClassVar[int]
    word: str
    spoken: str
    def __init__(self, word: _Optional[str] = ..., spoken: _Optional[str] = ...) -> None: ...

class SynthesizeSpeechResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: GenerationEvent
    def __init__(self, event: _Optional[_Union[GenerationEvent, _Mapping]] = ...) -> None: ...

class GenerationEvent(_message.Message):
    __slots__ = ("sequence", "accepted", "queued", "progress", "preview", "chunk", "result", "stored", "sound", "samples")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    SOUND_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    accepted: Accepted
    queued: Queued
    progress: Progress
    preview: Preview
    chunk: Chunk
    result: Result
    stored: Stored
    sound: SoundHeader
    samples: Samples
    def __init__(self, sequence: _Optional[int] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., queued: _Optional[_Union[Queued, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., stored: _Optional[_Union[Stored, _Mapping]] = ..., sound: _Optional[_Union[SoundHeader, _Mapping]] = ..., samples: _Optional[_Union[Samples, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("name", "seed", "stages")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    name: str
    seed: int
    stages: _containers.RepeatedCompositeFieldContainer[_common_pb2.StageReport]
    def __init__(self, name: _Optional[str] = ..., seed: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[_common_pb2.StageReport, _Mapping]]] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: int
    def __init__(self, position: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("stage", "step", "steps", "part", "parts")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    step: int
    steps: int
    part: int
    parts: int
    def __init__(self, stage: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., part: _Optional[int] = ..., parts: _Optional[int] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("image", "step")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    step: int
    def __init__(self, image: _Optional[bytes] = ..., step: _Optional[int] = ...) -> None: ...

class SoundHeader(_message.Message):
    __slots__ = ("sample_rate",)
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    sample_rate: int
    def __init__(self, sample_rate: _Optional[int] = ...) -> None: ...

class Samples(_message.Message):
    __slots__ = ("offset", "pcm")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PCM_FIELD_NUMBER: _ClassVar[int]
    offset: int
    pcm: bytes
    def __init__(self, offset: _Optional[int] = ..., pcm: _Optional[bytes] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("artifact", "media_type", "report", "seed", "trace_id", "random_weights", "stored", "url", "url_expires_at", "first_audio_seconds")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    RANDOM_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    URL_EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    FIRST_AUDIO_SECONDS_FIELD_NUMBER: _ClassVar[int]
    artifact: _common_pb2.Digest
    media_type: str
    report: _common_pb2.CacheReport
    seed: int
    trace_id: str
    random_weights: bool
    stored: Stored
    url: str
    url_expires_at: _timestamp_pb2.Timestamp
    first_audio_seconds: float
    def __init__(self, artifact: _Optional[_Union[_common_pb2.Digest, _Mapping]] = ..., media_type: _Optional[str] = ..., report: _Optional[_Union[_common_pb2.CacheReport, _Mapping]] = ..., seed: _Optional[int] = ..., trace_id: _Optional[str] = ..., random_weights: _Optional[bool] = ..., stored: _Optional[_Union[Stored, _Mapping]] = ..., url: _Optional[str] = ..., url_expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., first_audio_seconds: _Optional[float] = ...) -> None: ...

class Stored(_message.Message):
    __slots__ = ("state",)
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Stored.State]
        STATE_PENDING: _ClassVar[Stored.State]
        STATE_DURABLE: _ClassVar[Stored.State]
        STATE_NOT_STORED: _ClassVar[Stored.State]
    STATE_UNSPECIFIED: Stored.State
    STATE_PENDING: Stored.State
    STATE_DURABLE: Stored.State
    STATE_NOT_STORED: Stored.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: Stored.State
    def __init__(self, state: _Optional[_Union[Stored.State, str]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("name", "from_sequence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    from_sequence: int
    def __init__(self, name: _Optional[str] = ..., from_sequence: _Optional[int] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: GenerationEvent
    def __init__(self, event: _Optional[_Union[GenerationEvent, _Mapping]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("finished",)
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    finished: bool
    def __init__(self, finished: _Optional[bool] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...

class UploadResponse(_message.Message):
    __slots__ = ("digest", "width", "height", "seconds", "sample_rate")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    digest: _common_pb2.Digest
    width: int
    height: int
    seconds: float
    sample_rate: int
    def __init__(self, digest: _Optional[_Union[_common_pb2.Digest, _Mapping]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., seconds: _Optional[float] = ..., sample_rate: _Optional[int] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("artifact", "offset")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    artifact: _common_pb2.Digest
    offset: int
    def __init__(self, artifact: _Optional[_Union[_common_pb2.Digest, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class DownloadResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: Chunk
    def __init__(self, chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("animate_image", "synthesize_speech", "after_animate_image", "after_synthesize_speech")
    ANIMATE_IMAGE_FIELD_NUMBER: _ClassVar[int]
    SYNTHESIZE_SPEECH_FIELD_NUMBER: _ClassVar[int]
    AFTER_ANIMATE_IMAGE_FIELD_NUMBER: _ClassVar[int]
    AFTER_SYNTHESIZE_SPEECH_FIELD_NUMBER: _ClassVar[int]
    animate_image: AnimateImageRequest
    synthesize_speech: SynthesizeSpeechRequest
    after_animate_image: AnimateImageRequest
    after_synthesize_speech: SynthesizeSpeechRequest
    def __init__(self, animate_image: _Optional[_Union[AnimateImageRequest, _Mapping]] = ..., synthesize_speech: _Optional[_Union[SynthesizeSpeechRequest, _Mapping]] = ..., after_animate_image: _Optional[_Union[AnimateImageRequest, _Mapping]] = ..., after_synthesize_speech: _Optional[_Union[SynthesizeSpeechRequest, _Mapping]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("report", "worker_asked")
    REPORT_FIELD_NUMBER: _ClassVar[int]
    WORKER_ASKED_FIELD_NUMBER: _ClassVar[int]
    report: _common_pb2.CacheReport
    worker_asked: bool
    def __init__(self, report: _Optional[_Union[_common_pb2.CacheReport, _Mapping]] = ..., worker_asked: _Optional[bool] = ...) -> None: ...
