"""`worker.models` of a settings file: what it says, and one model more in it.

A file that people look after keeps its comments, its order and its blank lines: the new model is put in where the
parser says that the last one ends, and every other character stays. What comes out is read again before it is written;
if it does not say exactly what the old file said and the new model, nothing is written.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cache.settings import SettingsError, read

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # as requests call a model
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@.+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FORMS = "must be a list of {name: NAME, source: SOURCE}, or NAME: SOURCE each"


@dataclass(frozen=True)
class Entry:
    """A model as the file has it. `dtype` is None where the worker is left to choose."""

    name: str
    source: str
    dtype: str | None = None

    @property
    def of_hub(self) -> bool:
        """It is OWNER/NAME of the hub, and no folder as far as can be seen from here."""
        return bool(_HUB_ID.fullmatch(self.source)) and not Path(self.source).is_dir()

    @property
    def revision(self) -> str:
        """The commit of the hub that it is pinned to; empty where there is none. A branch or a tag may move."""
        revision = self.source.partition("@")[2] if self.of_hub else ""
        return revision if _COMMIT.fullmatch(revision) else ""

    def fields(self) -> dict[str, str]:
        return {"name": self.name, "source": self.source, **({"dtype": self.dtype} if self.dtype else {})}


def name_of(source: str) -> str:
    """What a model of this source may be called; empty if nothing can be made of it."""
    last = Path(source.partition("@")[0] if not Path(source).is_dir() else source).absolute().name
    return re.sub(r"[^a-z0-9._-]+", "-", last.lower()).lstrip("._-")[:64]


def entries(content: Mapping[str, Any]) -> tuple[Entry, ...]:
    """The models of a file's content, which may have both forms. Raises SettingsError."""
    section = content.get("worker") or {}
    if not isinstance(section, dict):
        raise SettingsError("worker: must be a mapping")
    models = section.get("models") or []
    if isinstance(models, dict):
        models = [{"name": name, "source": source} for name, source in models.items()]
    if not isinstance(models, list) or not all(isinstance(each, dict) for each in models):
        raise SettingsError(f"worker.models: {_FORMS}")
    found = tuple(Entry(*(each.get(name) for name in ("name", "source", "dtype"))) for each in models)
    if not all(isinstance(each.name, str) and isinstance(each.source, str) for each in found):
        raise SettingsError(f"worker.models: {_FORMS}")
    return found


def refuse(file: Path, name: str, dtype: str | None) -> None:
    """What can be known before a model is looked at: that it could not be added. Raises SettingsError."""
    if not NAME.fullmatch(name):
        raise SettingsError("the name must be of a-z, 0-9, '.', '_' and '-', 64 at most: give another one with --name")
    content = read(file)
    there = entries(content)
    if dtype and there and isinstance(content["worker"]["models"], dict):
        raise SettingsError(
            f"{file}: worker.models has the short form, NAME: SOURCE, which has no place for a dtype: leave --dtype "
            "out, or make it a list of {name: NAME, source: SOURCE, dtype: DTYPE}"
        )
    if not all(os.access(path, os.W_OK) for path in (file, file.resolve().parent)):
        raise SettingsError(f"{file}: cannot be written: no permission for it or for its folder")


def add(file: Path, entry: Entry) -> bool:
    """Put a model into the file. False: it is there already, and nothing was written.

    The file is replaced at once or not at all, and keeps its owner and its mode. Raises SettingsError where the name is
    that of another model, or the file cannot be written.
    """
    refuse(file, entry.name, entry.dtype)
    content = read(file)
    for there in entries(content):
        if there == entry:
            return False
        if there.name == entry.name:
            other = f"source {there.source}" if there.source != entry.source else f"dtype {there.dtype or 'null'}"
            raise SettingsError(
                f"{file}: there is a model {entry.name} with {other}: give this one another name with --name, "
                "or change that one in the file"
            )
    try:
        changed = _changed(file.read_bytes().decode(), content, entry)
    except (ValueError, yaml.YAMLError):
        raise SettingsError(
            f"{file}: is written in a way that is not known here; put this into worker.models: {_flow(entry.fields())}"
        ) from None
    try:
        _replace(file.resolve(), changed.encode())
    except OSError as error:
        raise SettingsError(f"{file}: cannot be written: {error.strerror}") from None
    return True


def _changed(text: str, content: dict[str, Any], entry: Entry) -> str:
    """The text with the model in it. Raises ValueError or YAMLError if that would say anything else."""
    changed = _with(text, entry)
    if yaml.safe_load(changed) != _expected(content, entry):
        raise ValueError("not what was meant")
    return changed


def _expected(content: dict[str, Any], entry: Entry) -> dict[str, Any]:
    section = content.get("worker") or {}
    models = section.get("models") or []
    grown = {**models, entry.name: entry.source} if isinstance(models, dict) else [*models, entry.fields()]
    return {**content, "worker": {**section, "models": grown}}


# Where the new model goes, and how it is written there.


def _with(text: str, entry: Entry) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    item = _flow(entry.fields())
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    found = _value(root, "worker")
    if found is None:
        gap = newline * (1 if text.endswith("\n") else 2) if text else ""
        return f"{text}{gap}worker:{newline}  models:{newline}    - {item}{newline}"
    key, worker = found
    inside = _value(worker, "models")
    if inside is not None:
        models = inside[1]
        if isinstance(models, yaml.CollectionNode) and models.value:
            return _appended(text, models, entry, newline)
        return _put(text, models.start_mark.index, models.end_mark.index, f"[{item}]")
    if not isinstance(worker, yaml.CollectionNode) or not worker.value:  # empty, or null in one of its spellings
        text, column = _put(text, worker.start_mark.index, worker.end_mark.index, ""), key.start_mark.column + 2
    elif worker.flow_style:
        return _put(text, worker.start_mark.index + 1, worker.start_mark.index + 1, f"models: [{item}], ")
    else:
        column = worker.start_mark.column
    return _after_line(text, key.end_mark.index, f"{newline}{' ' * column}models:{newline}{' ' * column}  - {item}")


def _appended(text: str, models: yaml.CollectionNode, entry: Entry, newline: str) -> str:
    """The model after the last one of the list or the mapping, written as that one is."""
    end = _end(models.value[-1])
    short = isinstance(models, yaml.MappingNode)
    if models.flow_style:
        item = _flow({entry.name: entry.source})[1:-1] if short else _flow(entry.fields())
        return _put(text, end, end, f", {item}")
    column = " " * models.start_mark.column
    if short:
        return _after_line(text, end, f"{newline}{column}{_flow({entry.name: entry.source})[1:-1]}")
    if models.value[-1].flow_style:
        return _after_line(text, end, f"{newline}{column}- {_flow(entry.fields())}")
    lines = [_flow({name: value})[1:-1] for name, value in entry.fields().items()]
    return _after_line(text, end, f"{newline}{column}- " + f"{newline}{column}  ".join(lines))


def _value(node: yaml.Node | None, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((key, value) for key, value in pairs if key.value == name), None)


def _end(node: yaml.Node | tuple[yaml.Node, yaml.Node]) -> int:
    """Where the last word of a node ends. The parser takes blocks to go on until whatever comes next."""
    if isinstance(node, tuple):
        return _end(node[1])
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        return _end(node.value[-1])
    return int(node.end_mark.index)


def _put(text: str, start: int, end: int, words: str) -> str:
    gap = " " if words and text[start - 1 : start] == ":" else ""
    return f"{text[:start]}{gap}{words}{text[end:]}"


def _after_line(text: str, index: int, lines: str) -> str:
    end = re.compile(r"\r?\n|\Z").search(text, index)
    assert end is not None  # noqa: S101  # every text has an end
    return f"{text[: end.start()]}{lines}{text[end.start() :]}"


def _flow(fields: Mapping[str, str]) -> str:
    """On one line, quoted where it must be."""
    written: str = yaml.safe_dump(
        dict(fields), default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return written.strip()


def _replace(file: Path, data: bytes) -> None:
    """Raises OSError, and has changed nothing then."""
    was = file.stat()
    number, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    beside = Path(name)
    try:
        with os.fdopen(number, "wb") as out:
            out.write(data)
            made = os.fstat(out.fileno())
            if (was.st_uid, was.st_gid) != (made.st_uid, made.st_gid):
                os.fchown(out.fileno(), was.st_uid, was.st_gid)
            os.fchmod(out.fileno(), stat.S_IMODE(was.st_mode))
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
