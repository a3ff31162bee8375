"""Accesses: written without delay and without names, read whatever the file looks like."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cache import accesses
from cache.accesses import Access, AccessLog, access_log, read_accesses
from tests.cache.helpers import NAMESPACE, NOW, SECRET, Clock, address_of, record_of


async def _written(file: Path, *names: str, secret: bytes = SECRET) -> list[Access]:
    clock = Clock()
    async with AccessLog(file, "result", secret, clock=clock) as log:
        for name in names:
            clock.advance(1.5)
            log.note(address_of(name), record_of(b"a clip", name=name))
    return read_accesses([file])["result"]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def test_a_line_has_a_time_a_key_a_size_and_a_cost(tmp_path: Path) -> None:
    """What is written is read again, all of it once the log is closed."""
    read = await _written(tmp_path / "new" / "results.jsonl", "one", "two", "one")

    assert [(NOW + 1.5, 6, 4.0), (NOW + 3.0, 6, 4.0), (NOW + 4.5, 6, 4.0)] == [
        (each.at, each.size, each.cost) for each in read
    ]
    assert read[0].key == read[2].key != read[1].key


async def test_a_key_is_not_the_address_and_needs_the_secret(tmp_path: Path) -> None:
    """Nobody finds an entry by its line; another deployment's lines never meet this one's."""
    (line,) = await _written(tmp_path / "a", "one")
    (foreign,) = await _written(tmp_path / "b", "one", secret=bytes(32))

    address = address_of("one")
    text = (tmp_path / "a").read_text()
    assert {"at", "of", "key", "size", "cost"} == json.loads(text).keys()
    assert address.content_id[:16] not in text
    assert NAMESPACE not in text
    assert line.key != foreign.key


async def test_a_log_without_a_folder_is_none(tmp_path: Path) -> None:
    """It has to be asked for; then each process has a file of its own."""
    async with access_log("", "gateway-1", "result", SECRET) as none:
        assert none is None
    async with access_log(str(tmp_path), "gateway-1", "result", SECRET) as log:
        assert log is not None

    assert [tmp_path / "results-gateway-1.jsonl"] == _files(tmp_path)


async def test_a_slow_disk_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that find no room are dropped and counted."""
    monkeypatch.setattr(accesses, "_WAITING", 3)
    log = AccessLog(tmp_path / "results.jsonl", "result", SECRET)  # whose writer has not begun
    for name in "abcde":
        log.note(address_of(name), record_of(b"a clip", name=name))
    assert 2 == log.dropped

    async with log:
        pass
    assert 3 == len(read_accesses([tmp_path / "results.jsonl"])["result"])


async def test_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is rotated once; what is older is gone."""
    monkeypatch.setattr(accesses, "_FILE_BYTES", 1000)
    await _written(tmp_path / "results.jsonl", *map(str, range(100)))

    files = _files(tmp_path)
    assert ["results.jsonl", "results.jsonl.1"] == [file.name for file in files]
    assert all(file.stat().st_size <= 1000 for file in files)
    assert NOW + 150.0 == read_accesses(files)["result"][-1].at


async def test_several_files_are_one_stream_in_order_of_time(tmp_path: Path) -> None:
    """Of several gateways; what is of stages is kept apart from what is of results."""
    for name, of, times in (("a", "result", (1, 4)), ("b", "result", (2, 3)), ("c", "stage", (9,))):
        lines = [json.dumps({"at": at, "of": of, "key": f"{name}{at}", "size": 1, "cost": 1.0}) for at in times]
        (tmp_path / name).write_text("\n".join(lines))

    read = await asyncio.to_thread(read_accesses, _files(tmp_path))

    assert [1, 2, 3, 4] == [each.at for each in read["result"]]
    assert ["c9"] == [each.key for each in read["stage"]]


@pytest.mark.parametrize(
    "line",
    [
        '{"at": 1, "of": "result", "key": "a", "si',
        "",
        "[1, 2]",
        "17",
        "\xff\xfe",
        '{"at": 1, "of": "result", "key": "a", "size": 1}',
        '{"at": 1, "of": "other", "key": "a", "size": 1, "cost": 1}',
        '{"at": 1, "of": ["result"], "key": "a", "size": 1, "cost": 1}',
        '{"at": NaN, "of": "result", "key": "a", "size": 1, "cost": 1}',
        '{"at": 1, "of": "result", "key": "a", "size": 1, "cost": Infinity}',
        '{"at": 1, "of": "result", "key": "a", "size": Infinity, "cost": 1}',
        '{"at": 1, "of": "result", "key": "a", "size": -1, "cost": 1}',
        '{"at": 1, "of": "result", "key": "a", "size": 1, "cost": -1}',
        '{"at": null, "of": "result", "key": "a", "size": 1, "cost": 1}',
        '{"at": 1, "of": "result", "key": "a", "size": 1, "cost": "much"}',
    ],
)
async def test_a_line_that_says_nothing_is_passed_over(tmp_path: Path, line: str) -> None:
    """Half written, of another kind, or with numbers that are none."""
    good = '{"at": 1, "of": "result", "key": "a", "size": 1, "cost": 1}'
    (tmp_path / "file").write_text(f"{line}\n{good}\n", encoding="latin-1")

    assert [Access(1.0, "a", 1, 1.0)] == read_accesses([tmp_path / "file"])["result"]
