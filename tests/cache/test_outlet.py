"""Outlet: on a full disk nothing fails; what has no room is dropped, counted, and tears no later line."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from prometheus_client import CollectorRegistry

from cache import outlet
from cache.accesses import AccessLog, read_accesses
from cache.outlet import LineFile, Outlet, watch_outlets
from cache.settings import TelemetrySettings
from cache.telemetry import SpanFile, set_up_logs
from tests.cache.helpers import SECRET, address_of, record_of

FULL = Path("/dev/full")  # a device that never has room
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _nothing_dropped_yet() -> Iterator[None]:
    outlet.dropped.clear()
    yield
    outlet.dropped.clear()


@contextmanager
def room(size: int) -> Iterator[None]:
    """Files of this process may grow to so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _line(text: str) -> logging.LogRecord:
    return logging.LogRecord("lines", logging.INFO, "", 0, text, None, None)


def _full(path: Path) -> Path:
    path.symlink_to(FULL)
    return path


def test_what_has_no_room_is_dropped_and_counted() -> None:
    registry = CollectorRegistry()
    watch_outlets(registry)
    with Outlet(FULL, "log").as_text() as lines:
        for number in range(3):
            lines.write(f"line {number}\n")
    told = {of: registry.get_sample_value("reprise_lines_dropped", {"of": of}) for of in ("log", "spans", "accesses")}
    assert {"log": 3.0, "spans": 0.0, "accesses": 0.0} == told


def test_a_line_that_was_torn_ends_before_the_next_one_that_has_room(tmp_path: Path) -> None:
    """Of the second there was room for a part; the third had none; none of them comes later."""
    file = tmp_path / "log"
    with Outlet(file, "log").as_text() as lines:
        with room(len("first\nsec")):
            lines.write("first\n")
            lines.write("second\n")
            lines.write("third\n")
        lines.write("fourth\n")
        lines.write("fifth\n")
    assert "first\nsec\nfourth\nfifth\n" == file.read_text()
    assert 2 == outlet.dropped["log"]


def test_a_line_in_pieces_of_which_one_had_no_room_ends_before_the_next(tmp_path: Path) -> None:
    """The piece that was written was whole; what was to follow it was not."""
    file = tmp_path / "log"
    with Outlet(file, "log").as_text() as lines:
        with room(len("one")):
            print("one", "two", file=lines)
        print('{"next": 1}', file=lines)
        print('{"next": 2}', file=lines)
    assert 'one\n{"next": 1}\n{"next": 2}\n' == file.read_text()


def test_what_nobody_reads_any_more_is_dropped_and_counted() -> None:
    """As when the collector of a process's log has died."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe, Outlet(pipe.fileno(), "log").as_text() as lines:
        lines.write("heard\n")
        os.close(reader)
        lines.write("unheard\n")
    assert 1 == outlet.dropped["log"]


def test_a_line_that_another_process_has_torn_ends_before_ours(tmp_path: Path) -> None:
    """It was left without room, and has been replaced. Nothing is added to lines that are whole."""
    file = tmp_path / "log"
    for before in (b"", b"whole\n", b"whole\nto"):
        file.write_bytes(before)
        with file.open("ab") as inherited, Outlet(inherited.fileno(), "log").as_text() as lines:
            lines.write("ours\n")
        assert before + b"\n" * before.endswith(b"to") + b"ours\n" == file.read_bytes()


def test_a_line_that_comes_in_pieces_stays_one(tmp_path: Path) -> None:
    with Outlet(tmp_path / "log", "log").as_text() as lines:
        print("one", "two", file=lines)
        print("three", file=lines)
    assert "one two\nthree\n" == (tmp_path / "log").read_text()
    assert not outlet.dropped


def test_who_logs_does_not_notice(capfd: pytest.CaptureFixture[str]) -> None:
    """Nor does anybody complain of it elsewhere."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, structlog.get_config())
    try:
        with Outlet(FULL, "log").as_text() as stream:
            set_up_logs(TelemetrySettings(), stream)
            structlog.get_logger("ours").warning("said")
            logging.getLogger("theirs").error("said")
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        structlog.configure(**before[2])
    assert 2 == outlet.dropped["log"]
    assert ("", "") == capfd.readouterr()


def test_a_process_that_cannot_say_a_word_ends_as_it_would() -> None:
    """Lines, a library's bar of progress and the last flush: none of them is an error."""
    program = (
        "from cache.outlet import speak_freely as s; s(); import sys; print('a'); sys.stderr.write('b'); print('c')"
    )
    with FULL.open("wb") as full:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=full, stderr=full, check=False)
    assert 0 == done.returncode


def test_a_process_without_standard_streams_has_none_afterwards() -> None:
    program = (
        "from cache.outlet import speak_freely; speak_freely(); import sys; assert sys.stderr is sys.stdout is None"
    )
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, program], cwd=ROOT, check=False)
    assert 0 == done.returncode


async def test_accesses_that_have_no_room_are_dropped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with AccessLog(_full(tmp_path / "results.jsonl"), "result", SECRET) as log:
        for name in ("one", "two"):
            log.note(address_of(name), record_of(b"a clip", name=name))
    assert 2 == outlet.dropped["accesses"]
    assert ("", "") == capfd.readouterr()


def test_spans_that_have_no_room_are_dropped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(SpanFile(_full(tmp_path / "spans.jsonl"))))
    provider.get_tracer("test").start_span("request").end()
    provider.shutdown()
    assert 1 == outlet.dropped["spans"]
    assert ("", "") == capfd.readouterr()


async def test_accesses_are_written_once_there_is_room_for_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process begins without it, and says nothing of what it could not write."""
    file, make = tmp_path / "new" / "results.jsonl", Path.mkdir
    lacks = [True, True]  # when it begins, and at the first line

    def mkdir(path: Path, **options: bool) -> None:
        if lacks:
            lacks.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        make(path, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    async with AccessLog(file, "result", SECRET) as log:
        for name in ("one", "two"):
            log.note(address_of(name), record_of(b"a clip", name=name))
    assert 1 == outlet.dropped["accesses"]
    assert 1 == len(read_accesses([file])["result"])


def test_a_file_that_may_not_be_written_is_refused_at_once(tmp_path: Path) -> None:
    """It would never be written, and nobody would know."""
    (tmp_path / "lines").mkdir()
    with pytest.raises(IsADirectoryError):
        LineFile(tmp_path / "lines", most=1000, of="accesses")


def test_a_full_file_makes_room_for_the_next(tmp_path: Path) -> None:
    """One older file is kept."""
    lines = LineFile(tmp_path / "lines", most=25, of="spans")
    for number in range(6):
        lines.emit(_line(json.dumps({"line": number})))
    lines.close()
    kept = [(tmp_path / name).read_text().split("\n")[:-1] for name in ("lines.1", "lines")]
    assert [['{"line": 2}', '{"line": 3}'], ['{"line": 4}', '{"line": 5}']] == kept
