"""Tasks: what can be asked for. All that differs between them by name stands here, once.

A task's name is that of its field in every message of the contract that can hold a request of any kind, and the task
in a model's description. Its requests have one input that is known by content: a field of that name holds the file
itself, another one the digest of a file that was uploaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from google.protobuf.message import Message

from reprise.v1 import common_pb2 as pb
from reprise.v1.cache_pb2 import Favourite
from reprise.v1.media_pb2 import AnimateImageRequest, SynthesizeSpeechRequest

Request: TypeAlias = AnimateImageRequest | SynthesizeSpeechRequest


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    method: str  # of MediaService
    request: type[Request]
    medium: str  # the input known by content
    source: str  # the ways to give it, as the contract calls their choice

    @property
    def digest(self) -> str:
        """The field that names an uploaded file."""
        return f"{self.medium}_digest"

    def file_of(self, request: Request) -> bytes:
        """The file that came with a request; empty if it names one instead, or brings none."""
        file: bytes = getattr(request, self.medium)
        return file

    def named_in(self, request: Request) -> pb.Digest | None:
        """The digest of the uploaded file that a request names, if it names one."""
        named: pb.Digest = getattr(request, self.digest)
        return named if request.HasField(self.digest) else None

    def give(self, request: Request, file: bytes) -> None:
        """Put the file itself into a request."""
        setattr(request, self.medium, file)


ANIMATE = Task("animate_image", "AnimateImage", AnimateImageRequest, "image", "picture")
SPEAK = Task("synthesize_speech", "SynthesizeSpeech", SynthesizeSpeechRequest, "voice", "recording")
TASKS = (ANIMATE, SPEAK)


def task_of(request: Request) -> Task:
    return next(task for task in TASKS if isinstance(request, task.request))


def request_in(message: Message, prefix: str = "") -> Request | None:
    """The request in a message that has a field for each task, of the task's name after a prefix. None: it has none."""
    for task in TASKS:
        if message.HasField(f"{prefix}{task.name}"):
            request: Request = getattr(message, f"{prefix}{task.name}")
            return request
    return None


def put_request(message: Message, request: Request, prefix: str = "") -> None:
    """The reverse: the message holds a copy of it."""
    getattr(message, f"{prefix}{task_of(request).name}").CopyFrom(request)


def favourite_of(request: Request, tenant: str, user: str) -> Favourite:
    favourite = Favourite(tenant=tenant, user=user)
    put_request(favourite, request)
    return favourite


def quieten(request: Request) -> None:
    """Take from a request what it wants of delivery and cache, but for its labels and for what changes its meaning."""
    said = request.cache_policy
    kept = pb.CachePolicy(labels=said.labels)
    if said.HasField("similarity"):  # how lines are read is part of what is asked for
        kept.similarity.lines = said.similarity.lines
    said.CopyFrom(kept)
    request.ClearField("delivery")
    if isinstance(request, SynthesizeSpeechRequest):
        request.ClearField("live")
