"""Requests as files: what the command line saves, compares and warms, and what a schedule warms.

A request is a message of the contract in JSON, as protobuf writes it: of the task whose fields it has. Its picture or
recording may be the path of a file, after an `@` and relative to the JSON: {"image": "@cat.jpg", "prompt": "snow
falls", "num_frames": 16}, {"voice": "@ann.wav", "text": "Good morning."}. A file holds one, or a list of them, or one a
line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError

from gateway.blueprint import LARGEST_FILE
from gateway.tasks import TASKS, Request, Task


class UnusableFile(ValueError):
    """A file cannot be used. Says which and what to change, to whoever wrote it: it may quote what stands there."""


def read_request(file: Path) -> Request:
    """Blocking. Raises UnusableFile."""
    return _request_of(file, fields_of(file))


def read_requests(file: Path) -> list[Request]:
    """All requests in a file, in their order. Blocking. Raises UnusableFile."""
    text = _text_of(file)
    try:
        found = json.loads(text)
    except ValueError:
        found = [_line_of(file, number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    listed = found if isinstance(found, list) else [found]
    if not all(isinstance(fields, dict) for fields in listed):
        raise UnusableFile(f"{file}: must hold objects with the fields of a request")
    return [_request_of(file, fields) for fields in listed]


def fields_of(file: Path) -> dict[str, Any]:
    """Raises UnusableFile."""
    try:
        fields = json.loads(_text_of(file))
    except ValueError as error:
        raise error if isinstance(error, UnusableFile) else UnusableFile(f"{file}: is not JSON") from None
    if not isinstance(fields, dict):
        raise UnusableFile(f"{file}: must be an object with the fields of a request")
    return fields


def task_in(fields: dict[str, Any]) -> Task:
    """The task that these fields are of; of several the first, of none the one that has most of them."""
    return max(TASKS, key=lambda task: len(fields.keys() & _names(task)))


def medium_beside(file: Path, fields: dict[str, Any]) -> Path | None:
    """The file with the picture or recording, if the request names one."""
    named = fields.get(task_in(fields).medium)
    return file.parent / named.removeprefix("@") if isinstance(named, str) and named.startswith("@") else None


def read_medium(medium: Path) -> bytes:
    """Raises UnusableFile."""
    try:
        if (size := medium.stat().st_size) > LARGEST_FILE:
            raise UnusableFile(f"{medium}: must have at most {LARGEST_FILE:,} bytes; it has {size:,}")
        return medium.read_bytes()
    except OSError as error:
        raise UnusableFile(f"{medium}: cannot be read: {error.strerror}") from None


def _text_of(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise UnusableFile(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UnusableFile(f"{file}: is not JSON") from None


def _line_of(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise UnusableFile(f"{file}: line {number} is not JSON") from None


def _names(task: Task) -> set[str]:
    """Names of a task's fields, in both ways that JSON may write them."""
    fields = task.request.DESCRIPTOR.fields
    return {field.name for field in fields} | {field.json_name for field in fields}


def _request_of(file: Path, fields: dict[str, Any]) -> Request:
    task, medium = task_in(fields), medium_beside(file, fields)
    said = {name: value for name, value in fields.items() if name != task.medium or medium is None}
    try:
        request: Request = ParseDict(said, task.request())
    except ParseError as error:
        raise UnusableFile(f"{file}: is no request: {error}") from None
    if medium is not None:
        task.give(request, read_medium(medium))
    return request
