"""Outlet: where a process writes lines, its log above all, and what never fails it.

On a full disk, or where whoever read the log is gone, a write raises OSError, in the middle of whatever had something
to say: a request, a library that shows how far a model is loaded, the interpreter that flushes at the end. Here what
has no room, or nobody takes, is dropped and counted, and the next line that is written begins on a line of its own.
Nothing is buffered, so nothing waits for the room to come.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import stat
import sys
from collections import Counter
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, Gauge

Lines: TypeAlias = Literal["log", "spans", "accesses"]
dropped: Counter[Lines] = Counter()  # by this process
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Outlet(io.FileIO):
    """A file to append to. `of` says what its lines are."""

    def __init__(self, file: Path | int, of: Lines) -> None:
        mode, ours = ("w", False) if isinstance(file, int) else ("a", True)
        super().__init__(file, mode, closefd=ours)
        self._of = of
        self._within = self._ends_within_a_line()  # the last byte that was written ends no line
        self._torn = self._within  # and what was to follow it has been dropped

    def write(self, data: Any) -> int:
        """Never fails. Says that all was written, whatever was."""
        whole = b"\n" + data if self._torn else bytes(data)
        written = self._as_much_as_has_room(whole)
        if written:
            self._within = whole[written - 1 : written] != b"\n"
        if written < len(whole):
            dropped[self._of] += 1
        self._torn = self._within and written < len(whole)
        return len(data)

    def _as_much_as_has_room(self, data: bytes) -> int:
        done = 0
        while done < len(data):
            try:
                more = super().write(data[done:])
            except OSError:
                break
            if not more:  # nobody reads at the other end of a pipe that does not wait
                break
            done += more
        return done

    def _ends_within_a_line(self) -> bool:
        """Whether somebody before us was left without room there."""
        about = os.fstat(self.fileno())
        if not stat.S_ISREG(about.st_mode) or not about.st_size:
            return False
        try:
            with Path(f"/proc/self/fd/{self.fileno()}").open("rb") as lines:
                lines.seek(-1, os.SEEK_END)
                return lines.read(1) != b"\n"
        except OSError:  # not everybody who may write there may read
            return False

    def as_text(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(self, encoding="utf-8", errors="backslashreplace", write_through=True)


class LineFile(RotatingFileHandler):
    """Lines in a file of at most so many bytes, beside the one before it. Its folder is made.

    Raises OSError if it cannot be written for another reason than want of room.
    """

    def __init__(self, path: Path, *, most: int, of: Lines) -> None:
        super().__init__(path, maxBytes=most, backupCount=1, delay=True)
        self.setFormatter(logging.Formatter("%(message)s"))
        self._of = of
        try:
            self.stream = self._open()
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise

    def _open(self) -> io.TextIOWrapper:
        path = Path(self.baseFilename)
        path.parent.mkdir(parents=True, exist_ok=True)
        return Outlet(path, self._of).as_text()

    def handleError(self, record: logging.LogRecord) -> None:
        """For want of room there is no file; it is tried again with the next line."""
        if isinstance(sys.exception(), OSError):
            dropped[self._of] += 1
        else:
            super().handleError(record)


def speak_freely() -> None:
    """Whatever this process says from here on, its own code or a library, fails nobody."""
    sys.stdout, sys.stderr = (
        stream and Outlet(stream.fileno(), "log").as_text() for stream in (sys.stdout, sys.stderr)
    )


def watch_outlets(registry: CollectorRegistry) -> None:
    gauge = Gauge("reprise_lines_dropped", "Lines that had no room where they belong", ["of"], registry=registry)
    for of in get_args(Lines):
        gauge.labels(of).set_function(partial(dropped.__getitem__, of))
