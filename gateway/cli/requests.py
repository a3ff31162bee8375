"""Requests as files, for commands: what is wrong with one is told as a command tells it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from google.protobuf.json_format import MessageToDict

from gateway import request_files
from gateway.request_files import UnusableFile
from gateway.tasks import Request, task_of

request_file = click.Path(exists=True, dir_okay=False, path_type=Path)


def read_request(file: Path) -> Request:
    """Raises ClickException, saying what is wrong with the file."""
    with _told():
        return request_files.read_request(file)


def read_requests(file: Path) -> list[Request]:
    """All that are in a file: one, a list, or one a line. Raises ClickException."""
    with _told():
        return request_files.read_requests(file)


def medium_of(file: Path) -> Path | None:
    """The picture or recording that a request's file names. Raises ClickException."""
    with _told():
        return request_files.medium_beside(file, request_files.fields_of(file))


def read_medium(medium: Path) -> bytes:
    """Raises ClickException."""
    with _told():
        return request_files.read_medium(medium)


def write_request(file: Path, request: Request, medium: Path | None) -> None:
    """Write a request; its picture or recording as a path, if it has one. Raises ClickException."""
    fields = MessageToDict(request, preserving_proto_field_name=True)
    if medium is not None:
        fields[task_of(request).medium] = "@" + os.path.relpath(medium, file.absolute().parent)
    try:
        file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise click.ClickException(f"{file}: cannot be written: {error.strerror}") from None


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except UnusableFile as error:
        raise click.ClickException(str(error)) from None
