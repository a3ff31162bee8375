"""What callers send: requests as bytes off the wire, names of generations, URLs, and credentials."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from cache.description import Description
from cache.digest import Digest
from cache.encoding import encode
from cache.keys import Principal
from cache.switches import Switches
from gateway.darkroom import Darkroom
from gateway.errors import InvalidField, NotFound, PermissionDenied, Refused, Unauthenticated
from gateway.identity import ApiKeys, KeyFileError, TrustedHeader, hash_key, read_keys
from gateway.large import opened
from gateway.links import PATH, Link, Links
from gateway.peers import Names
from gateway.planning import Planner
from gateway.studio import Studio
from gateway.tasks import ANIMATE, SPEAK, Task
from gateway.uploads import Uploads
from gateway.validate import parse
from tests.fuzz.target import Target
from tests.gateway import recordings
from tests.gateway.worker import family, speaker
from tests.gateway.world import PICTURE, ask, say

_SECRET = bytes(range(32))
_PRINCIPAL = Principal("tenant", "user", "session")
_PICTURE, _RECORDING = "0c" * 32, "0d" * 32
_VOICE = (recordings.voice(0.55, 8_000) // 256 + 128).astype("uint8")


class _Known:
    """Stands for workers: what they have described."""

    def __init__(self, *descriptions: Description) -> None:
        self._by_name = {each.model: each for each in descriptions}

    async def describe(self, model: str, task: str) -> Description:
        found = self._by_name.get(model) or next(each for each in self._by_name.values() if each.task == task)
        if found.task != task:
            raise InvalidField("model", "this model does another task")
        return found


class _Uploaded:
    """Stands for the tiers: two files were uploaded."""

    async def fetch(self, _: str, file: Digest) -> bytes:
        if (content := {_PICTURE: PICTURE, _RECORDING: recordings.wav(_VOICE, 8_000)}.get(file.hex)) is None:
            raise NotFound("DIGEST_UNKNOWN")
        return content

    async def used(self, *_: object) -> None:
        return None


_loop = asyncio.new_event_loop()
_planner = Planner(
    cast("Any", _Known(family(), speaker())),
    Darkroom(threads=1),
    Studio(threads=1),
    cast("Uploads", _Uploaded()),
    Switches(),
    secret=_SECRET,
    default_seed=42,
)


def _request(task: Task, data: bytes) -> bool:
    """Understood, twice alike and as it would be after a way over the wire; or refused by name."""
    try:
        bare, file = opened(task.request, data, task.medium)
        plan = _loop.run_until_complete(_planner.plan(bare, _PRINCIPAL, file=file))
    except Refused as refused:
        return _refused(refused)
    request = parse(task.request, data)
    assert (task.file_of(request) if request.WhichOneof(task.source) == task.medium else None) == file
    encode(dict(plan.parameters))
    again = parse(task.request, request.SerializeToString())
    if not plan.policy.fresh:
        assert _loop.run_until_complete(_planner.plan(again, _PRINCIPAL)).addresses == plan.addresses
    assert plan.address in plan.addresses.values()
    assert plan.affinity
    assert all(stage in plan.stages for stage in plan.reachable)
    return True


def _refused(refused: Refused) -> bool:
    assert type(refused) in (InvalidField, NotFound)
    assert refused.reason.isupper()
    assert refused.field or isinstance(refused, NotFound)
    return False


def _animations() -> list[bytes]:
    requests = (
        ask(),
        ask(extra={"eta": 1}, policy={"mode": 2, "labels": ["a"], "no_store": True}, seed=7, num_frames=8),
        ask(
            image_digest={"hex": _PICTURE, "size": 9}, model="small", framing={"width": 8, "height": 9, "rotation": 90}
        ),
        ask("é" * 20, negative_prompt="rain", guidance_scale=1.0, delivery=2, policy={"max_age": {"seconds": 1}}),
        ask(policy={"fresh": True, "similarity": {"pictures": True, "max_distance": 4}}),
    )
    return [request.SerializeToString() for request in requests]


def _speeches() -> list[bytes]:
    named = {"hex": _RECORDING, "size": 9}
    requests = (
        say(voice=recordings.wav(_VOICE, 8_000)),
        say(voice_digest=named, pronounced={"cat": "k a t"}, extra={"temperature": 0.5}, live=True),
        say(
            "１２３ <a> „x“…",
            voice_digest=named,
            policy={"similarity": {"lines": True}},
            speed=1.5,
        ),
    )
    return [request.SerializeToString() for request in requests]


# Who asks, and what they name

_header = TrustedHeader()
_keys = ApiKeys({hash_key("key"): _header.identify([("x-reprise-tenant", "t")])})
_links = Links(_SECRET, "http://localhost", lifetime=300.0, clock=lambda: 0.0)
_tokens = Names(_SECRET, "localhost:1")


class _File:
    """A file of keys that has these bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_bytes(self) -> bytes:
        return self._data


def _caller(data: bytes) -> bool:
    """Names, URLs, headers and files of keys: each is right, or refused in the one way it has."""
    text = data.decode("utf-8", "replace")
    taken = False
    lines = [line.partition(":") for line in text.splitlines()]
    metadata = [(name, value if len(value) % 2 else value.encode()) for name, _, value in lines]
    for identifier in (_header, _keys):
        with suppress(Unauthenticated, InvalidField):
            taken |= bool(identifier.identify(cast("Any", metadata)))
    with suppress(NotFound):
        taken |= bool(_tokens.home_of(text))
    with suppress(PermissionDenied, NotFound):
        taken |= bool(_links.open(text))
    with suppress(KeyFileError):
        taken |= bool(read_keys(cast("Path", _File(data))))
    return taken


def _callers() -> list[bytes]:
    link = Link("0a" * 16, "0b" * 16, Digest(_PICTURE, 9), "video/mp4", 100)
    return [
        b"x-reprise-tenant:cats\nx-reprise-user:ann\nx-reprise-session:1",
        b"authorization:Bearer key",
        b"x-api-key:key",
        _tokens.make().encode(),
        f"{PATH}{_PICTURE}/{_links._sealed(link)}".encode(),
        f"- {{key_sha256: '{_PICTURE}', tenant: cats, user: ann, operator: true}}\n- key_sha256: &a [1]\n".encode(),
        b"- key_sha256: !!bool yes",
    ]


TARGETS: Sequence[Target] = (
    Target("animate", lambda data: _request(ANIMATE, data), _animations),
    Target("speak", lambda data: _request(SPEAK, data), _speeches, longest=8192),
    Target("caller", _caller, _callers),
)
