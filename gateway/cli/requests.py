"""Requests as files: what `animate` saves and runs again, and `explain` compares.

A file is an AnimateImageRequest in JSON, as protobuf writes it, in which the picture may be the path of a file, after
an `@` and relative to the JSON: {"image": "@cat.jpg", "prompt": "snow falls", "num_frames": 16}
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from gateway.blueprint import LARGEST_FILE
from reprise.v1.media_pb2 import AnimateImageRequest

request_file = click.Path(exists=True, dir_okay=False, path_type=Path)


def read_request(file: Path) -> AnimateImageRequest:
    """Raises ClickException, saying what is wrong with the file."""
    fields = _fields(file)
    picture = _beside(file, fields)
    if picture is not None:
        del fields["image"]
    try:
        request = ParseDict(fields, AnimateImageRequest())
    except ParseError as error:
        raise click.ClickException(f"{file}: is no request: {error}") from None
    if picture is not None:
        request.image = read_picture(picture)
    return request


def picture_of(file: Path) -> Path | None:
    """The picture that a request's file names. Raises ClickException."""
    return _beside(file, _fields(file))


def _fields(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise click.ClickException(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise click.ClickException(f"{file}: is not JSON") from None
    if not isinstance(fields, dict):
        raise click.ClickException(f"{file}: must be an object with the fields of a request")
    return fields


def _beside(file: Path, fields: dict[str, Any]) -> Path | None:
    """The file with the picture, if the request names one."""
    image = fields.get("image")
    named = isinstance(image, str) and image.startswith("@")
    return file.parent / str(image).removeprefix("@") if named else None


def write_request(file: Path, request: AnimateImageRequest, picture: Path | None) -> None:
    """Write a request; its picture as a path, if it has one. Raises ClickException."""
    fields = MessageToDict(request, preserving_proto_field_name=True)
    if picture is not None:
        fields["image"] = "@" + os.path.relpath(picture, file.absolute().parent)
    try:
        file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise click.ClickException(f"{file}: cannot be written: {error.strerror}") from None


def read_picture(picture: Path) -> bytes:
    """Raises ClickException."""
    try:
        if (size := picture.stat().st_size) > LARGEST_FILE:
            raise click.ClickException(f"{picture}: must have at most {LARGEST_FILE:,} bytes; it has {size:,}")
        return picture.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{picture}: cannot be read: {error.strerror}") from None
