"""What can go wrong with a run, as the gateway will hear of it.

    Refused              base: code, reason, message; field, retry_after and metadata where they apply
    ├── InvalidInput     INVALID_ARGUMENT: an input the model cannot take
    ├── PlanDiffers      FAILED_PRECONDITION: planned with another description than this worker's
    ├── MediaNeeded      FAILED_PRECONDITION: a stage must read a medium that the plan did not bring
    ├── NearGone         FAILED_PRECONDITION: the encodings of a near-duplicate that were counted on are not there
    ├── QueueFull        RESOURCE_EXHAUSTED: enough waits already; waiting helps
    ├── DeviceMemory     RESOURCE_EXHAUSTED: the device cannot hold this, even with nothing else on it
    ├── NotReady         UNAVAILABLE: loading or draining
    ├── NoSuchRun        NOT_FOUND: nobody of this name follows a run
    ├── Abandoned        CANCELLED: given up by those who followed
    └── Fault            INTERNAL: a fault of ours or of a model, always with the same neutral text

Messages reach logs and callers: none of them ever holds a prompt, a name or bytes of a request. `status.py` turns
these into google.rpc statuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import grpc


class Refused(Exception):
    """A run that gets no answer but this. Base of all, never raised itself.

    `reason` is for programs (UPPER_SNAKE, stable), `message` for people, `field` the path of the field at fault,
    `retry_after` the seconds after which trying again makes sense.
    """

    code: ClassVar[grpc.StatusCode]

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        field: str | None = None,
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})


class InvalidInput(Refused):
    """A field is missing, malformed or not what the model declares. `message` says what it must be."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, field: str, message: str) -> None:
        super().__init__("FIELD_INVALID", message, field=field)


class PlanDiffers(Refused):
    """The plan was made with another description than this worker's: describe again, plan again."""

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, message: str) -> None:
        super().__init__("PLAN_DIFFERS", message)


class MediaNeeded(Refused):
    """A stage must read a picture or a sound, and the plan holds its identity alone."""

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self) -> None:
        super().__init__("MEDIA_NEEDED", "a stage must read the media themselves: send the plan again with them")


class NearGone(Refused):
    """A plan reads the encodings of a near-duplicate, and they are gone. Its own picture's would not be those."""

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self) -> None:
        super().__init__("NEAR_GONE", "encodings that the plan borrows are gone: plan again without them")


class QueueFull(Refused):
    """As many runs wait for the device as may, or as many of this tenant as may."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, retry_after: float, reason: Literal["QUEUE_FULL", "TENANT_SHARE"] = "QUEUE_FULL") -> None:
        full = "the queue is full" if reason == "QUEUE_FULL" else "this tenant has its share of the queue"
        super().__init__(reason, full, retry_after=retry_after)


class DeviceMemory(Refused):
    """The device ran out of memory twice, the second time with everything reusable let go. Sizes in bytes."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, *, free: int, total: int) -> None:
        super().__init__(
            "DEVICE_MEMORY",
            "more than the device's memory holds: ask for fewer frames, fewer pixels or a shorter text",
            metadata={"device_bytes_free": str(free), "device_bytes_total": str(total)},
        )


class NotReady(Refused):
    """This worker takes no new runs: it is loading its models, or about to stop."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self, reason: Literal["LOADING", "DRAINING"], retry_after: float = 1.0) -> None:
        message = "loading models" if reason == "LOADING" else "shutting down: try another worker"
        super().__init__(reason, message, retry_after=retry_after)


class NoSuchRun(Refused):
    """Nobody of this name follows a run here."""

    code = grpc.StatusCode.NOT_FOUND

    def __init__(self) -> None:
        super().__init__("RUN_UNKNOWN", "no such follower, or its run has ended")


class Abandoned(Refused):
    """The run was given up by those who followed it."""

    code = grpc.StatusCode.CANCELLED

    def __init__(self) -> None:
        super().__init__("ABANDONED", "the run was given up by those who followed it")


class Fault(Refused):
    """A fault of ours or of a model. What it was stands in the log; the caller reads one sentence whatever it was."""

    code = grpc.StatusCode.INTERNAL

    def __init__(self) -> None:
        super().__init__("INTERNAL", "a fault on the worker's side; its log has more")
