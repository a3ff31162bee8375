"""Requests as files: what the command line saves, compares and warms, and what a schedule warms.

A request is an AnimateImageRequest in JSON, as protobuf writes it, in which the picture may be the path of a file,
after an `@` and relative to the JSON: {"image": "@cat.jpg", "prompt": "snow falls", "num_frames": 16}. A file holds
one, or a list of them, or one a line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError

from gateway.blueprint import LARGEST_FILE
from reprise.v1.media_pb2 import AnimateImageRequest


class UnusableFile(ValueError):
    """A file cannot be used. Says which and what to change, to whoever wrote it: it may quote what stands there."""


def read_request(file: Path) -> AnimateImageRequest:
    """Blocking. Raises UnusableFile."""
    return _request_of(file, fields_of(file))


def read_requests(file: Path) -> list[AnimateImageRequest]:
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


def picture_beside(file: Path, fields: dict[str, Any]) -> Path | None:
    """The file with the picture, if the request names one."""
    image = fields.get("image")
    named = isinstance(image, str) and image.startswith("@")
    return file.parent / str(image).removeprefix("@") if named else None


def read_picture(picture: Path) -> bytes:
    """Raises UnusableFile."""
    try:
        if (size := picture.stat().st_size) > LARGEST_FILE:
            raise UnusableFile(f"{picture}: must have at most {LARGEST_FILE:,} bytes; it has {size:,}")
        return picture.read_bytes()
    except OSError as error:
        raise UnusableFile(f"{picture}: cannot be read: {error.strerror}") from None


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


def _request_of(file: Path, fields: dict[str, Any]) -> AnimateImageRequest:
    picture = picture_beside(file, fields)
    try:
        request = ParseDict({k: v for k, v in fields.items() if k != "image" or picture is None}, AnimateImageRequest())
    except ParseError as error:
        raise UnusableFile(f"{file}: is no request: {error}") from None
    if picture is not None:
        request.image = read_picture(picture)
    return request
