"""Resident: what a process has and may have is read as the kernel tells it, and what it does not need goes back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cache.resident import limit_of_group, resident_bytes

MIB = 1024 * 1024
SECOND, FIRST = "sys/fs/cgroup", "sys/fs/cgroup/memory"

# A heap whose freed parts glibc keeps; prints how many MiB went back.
_HEAP = """
from cache.process import keep_large_buffers
from cache.resident import give_back, resident_bytes
keep_large_buffers()
buffers = [b"x" * (1 << 20) for _ in range(200)]
del buffers[:-1]
before = resident_bytes()
give_back()
print((before - resident_bytes()) >> 20)
"""


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/pod/gateway", {f"{SECOND}/pod/gateway/memory.max": "1000"}, 1000),
        ("0::/pod/gateway", {f"{SECOND}/pod/gateway/memory.max": "max", f"{SECOND}/pod/memory.max": "900"}, 900),
        ("0::/pod/gateway", {f"{SECOND}/pod/gateway/memory.max": "800", f"{SECOND}/pod/memory.max": "900"}, 800),
        ("0::/", {f"{SECOND}/memory.max": "700"}, 700),
        ("0::/", {}, None),
        ("0::/pod", {f"{SECOND}/pod/memory.max": "max"}, None),
        ("0::/pod", {f"{SECOND}/pod/memory.max": "not a number"}, None),
        ("3:cpu:/a\n4:memory:/a/b\n0::/", {f"{FIRST}/a/b/memory.limit_in_bytes": "600"}, 600),
        ("4:cpu,memory:/a", {f"{FIRST}/memory.limit_in_bytes": "500"}, 500),
        ("4:memory:/a", {f"{FIRST}/a/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("3:cpu:/a", {f"{FIRST}/a/memory.limit_in_bytes": "1"}, None),
        ("", {}, None),
    ],
)
def test_the_limit_is_the_least_of_all_groups_around(
    tmp_path: Path, groups: str, files: dict[str, str], limit: int | None
) -> None:
    """In either version of control groups; "max", and the number that the first version has for it, are none."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")

    assert limit == limit_of_group(tmp_path)


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert limit_of_group(tmp_path) is None


def test_what_is_resident_are_bytes() -> None:
    """More than an interpreter can do without, and as many more as are written to."""
    before = resident_bytes()
    held = b"x" * (64 * MIB)
    assert before > 4 * MIB
    assert resident_bytes() - before > 60 * MIB
    assert held


def test_freed_memory_goes_back_although_it_would_be_kept() -> None:
    """Also where something that is still used lies above it."""
    path = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", _HEAP], cwd=path, stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) > 150
