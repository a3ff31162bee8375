"""What can go wrong with a request, as its caller will hear of it.

    Refused                 base: code, reason, message; field, retry_after and metadata where they apply
    ├── InvalidField        INVALID_ARGUMENT: a field must be changed
    ├── TooLarge            RESOURCE_EXHAUSTED: an input must be made smaller; waiting does not help
    ├── OutOfRange          OUT_OF_RANGE: an offset beyond the end
    ├── Unauthenticated     UNAUTHENTICATED: no credentials, or unknown ones
    ├── PermissionDenied    PERMISSION_DENIED: known, and not allowed
    ├── NotFound            NOT_FOUND: no such thing, or not the caller's
    ├── Overloaded          RESOURCE_EXHAUSTED: too much at once; waiting helps where `retry_after` says so
    ├── Unavailable         UNAVAILABLE: a part that is needed cannot be reached; waiting helps
    ├── Quarantined         FAILED_PRECONDITION: workers died of it, so it is not run for a while
    ├── DeadlineExceeded    DEADLINE_EXCEEDED: a deadline passed before the answer was there, or is bound to
    ├── Cancelled           CANCELLED: the work was given up
    └── Internal            INTERNAL: a fault of ours, always with the same neutral text

A message reaches logs and callers alike, so none of them ever holds a prompt, a name or bytes of a request: it says
what is allowed, not what was sent. `gateway.status` turns these into google.rpc statuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, TypeAlias

import grpc

NotFoundReason: TypeAlias = Literal[
    "MODEL_UNKNOWN",
    "DIGEST_UNKNOWN",
    "NOT_CACHED",
    "GENERATION_UNKNOWN",
    "ARTIFACT_UNKNOWN",
    "URL_EXPIRED",
    "ENTRY_UNKNOWN",
]
UnavailableReason: TypeAlias = Literal[
    "NO_WORKER",
    "NEVER_DESCRIBED",
    "STORE_UNREACHABLE",
    "WORKER_CHANGED",
    "WORKERS_DIED",
    "SOUND_CHANGED",
    "GATEWAY_LEAVING",
]
OverloadedReason: TypeAlias = Literal[
    "QUEUE_FULL", "QUEUE_TOO_LONG", "TENANT_SHARE", "UPLOAD_SHARE", "DEVICE_MEMORY", "GATEWAY_BUSY", "MEMORY_SHORT"
]

_NOT_FOUND: dict[NotFoundReason, str] = {
    "MODEL_UNKNOWN": "no model of this name is served here",
    "DIGEST_UNKNOWN": "nothing of this digest was uploaded, or too long ago: upload it again",
    "NOT_CACHED": "not cached, and only-if-cached forbids to generate it: ask with `use`, or later",
    "GENERATION_UNKNOWN": "no such generation, or it finished too long ago: ask for the media itself again",
    "ARTIFACT_UNKNOWN": "no such artifact: ask for the media itself again",
    "URL_EXPIRED": "this URL has expired: ask for the media itself again",
    "ENTRY_UNKNOWN": "nothing lies under this key in any tier",
}
_UNAVAILABLE: dict[UnavailableReason, str] = {
    "NO_WORKER": "not cached, and no worker that serves this model can be reached",
    "NEVER_DESCRIBED": "no worker has described this model yet",
    "STORE_UNREACHABLE": "the store cannot be reached",
    "WORKER_CHANGED": "the model changed at its workers while this was planned: ask again",
    "WORKERS_DIED": "two workers died before they had begun with this: ask again",
    "SOUND_CHANGED": "what was heard is not what was made in the end: ask again, and hear it from its beginning",
    "GATEWAY_LEAVING": "this gateway ends: ask again, another one answers",
}
_OVERLOADED: dict[OverloadedReason, str] = {
    "QUEUE_FULL": "the queue is full",
    "QUEUE_TOO_LONG": "the queue is longer than there is time",
    "TENANT_SHARE": "this tenant has its share of what may wait or run",
    "UPLOAD_SHARE": "this tenant has uploaded as much as it may for now",
    "DEVICE_MEMORY": "more than the device's memory holds: ask for fewer frames or fewer pixels",
    "GATEWAY_BUSY": "too many requests at once",
    "MEMORY_SHORT": "this gateway is short of memory",
}


class Refused(Exception):
    """A request that gets no answer but this. Base of all, never raised itself.

    `reason` is for programs (UPPER_SNAKE, stable), `message` for people, `field` the path of the field to change in
    the request ("num_frames", "extra.eta"), `retry_after` the seconds after which trying again makes sense.
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


class InvalidField(Refused):
    """A field is missing, malformed, out of range or not declared. `message` says what it must be."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(
        self,
        field: str,
        message: str,
        *,
        reason: str = "FIELD_INVALID",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, field=field, metadata=metadata)


class TooLarge(Refused):
    """An input is larger than any request may bring. `message` says how large it may be."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, field: str, message: str, *, reason: str = "TOO_LARGE") -> None:
        super().__init__(reason, message, field=field)


class OutOfRange(Refused):
    """An offset lies beyond the end."""

    code = grpc.StatusCode.OUT_OF_RANGE

    def __init__(self, field: str, message: str, *, reason: str = "OFFSET_BEYOND_END") -> None:
        super().__init__(reason, message, field=field)


class Unauthenticated(Refused):
    """Nobody knows who asks."""

    code = grpc.StatusCode.UNAUTHENTICATED

    def __init__(
        self, message: str, *, reason: Literal["CREDENTIALS_MISSING", "CREDENTIALS_UNKNOWN"] = "CREDENTIALS_MISSING"
    ) -> None:
        super().__init__(reason, message)


class PermissionDenied(Refused):
    """The caller is known, and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED

    def __init__(self, message: str = "for operators only", *, reason: str = "OPERATORS_ONLY") -> None:
        super().__init__(reason, message)


class NotFound(Refused):
    """No such thing. Things of other tenants are answered in the same words as things that never were."""

    code = grpc.StatusCode.NOT_FOUND

    def __init__(
        self,
        reason: NotFoundReason,
        message: str | None = None,
        *,
        field: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message or _NOT_FOUND[reason], field=field, metadata=metadata)


class Overloaded(Refused):
    """More was asked than can be held. With `retry_after`, waiting helps; without it, only asking for less."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(
        self,
        reason: OverloadedReason = "QUEUE_FULL",
        message: str | None = None,
        *,
        retry_after: float | None = 1.0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message or _OVERLOADED[reason], retry_after=retry_after, metadata=metadata)


class Unavailable(Refused):
    """A part that the answer needs cannot be reached now."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(
        self,
        reason: UnavailableReason,
        message: str | None = None,
        *,
        retry_after: float = 1.0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message or _UNAVAILABLE[reason], retry_after=retry_after, metadata=metadata)


class Quarantined(Refused):
    """Workers died of this very request, one after the other. Nobody tries it again before `left` seconds are over."""

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, left: float) -> None:
        super().__init__(
            "QUARANTINED",
            f"workers died while they ran this, so it is not run again for {left:.0f} s: change the request, or tell "
            "those who run this service",
            metadata={"seconds_left": f"{left:.0f}"},
        )


class DeadlineExceeded(Refused):
    """The answer was not there in time, or cannot be. Work that was begun may go on, and may be asked for again."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED

    def __init__(
        self,
        message: str = "the answer was not there in time",
        *,
        reason: Literal["DEADLINE_PASSED", "DEADLINE_TOO_SHORT"] = "DEADLINE_PASSED",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata=metadata)


class Cancelled(Refused):
    """The work was given up before it was done."""

    code = grpc.StatusCode.CANCELLED

    def __init__(
        self,
        message: str = "the generation was given up by those who had asked for it",
        *,
        reason: Literal["CANCELLED_BY_CALLER", "ABANDONED"] = "CANCELLED_BY_CALLER",
    ) -> None:
        super().__init__(reason, message)


class Internal(Refused):
    """A fault of ours. What it was stands in the log; the caller reads this one sentence whatever it was."""

    code = grpc.StatusCode.INTERNAL

    def __init__(self, reason: str = "INTERNAL") -> None:
        super().__init__(reason, "a fault on our side: retry once, then report the trace id")
