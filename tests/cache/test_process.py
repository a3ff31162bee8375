"""Process: what every process of a deployment does first."""

import ctypes
import subprocess
import sys

import pytest

from cache.process import keep_large_buffers

# Bursts of large buffers, as messages are; prints the page faults they cost.
_CHURN = """
import resource, sys
from cache.process import keep_large_buffers
if sys.argv[1] == "kept":
    keep_large_buffers()
def burst():
    return len([b"x" * (megabytes << 20) for megabytes in (24, 3, 17, 9, 20, 24)])
burst()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    burst()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

# Threads that hold a buffer each at the same time; prints where glibc says these are.
_THREADS = """
import ctypes, sys, threading
from cache.process import keep_large_buffers
if sys.argv[1] == "kept":
    keep_large_buffers()
together = threading.Barrier(5)
def hold():
    held = b"x" * 2**20
    together.wait()
    together.wait()
for _ in range(4):
    threading.Thread(target=hold).start()
together.wait()
libc = ctypes.CDLL("libc.so.6")
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
together.wait()
"""


def _faults(mode: str) -> int:
    return int(_said(_CHURN, mode))


def _said(program: str, mode: str) -> bytes:
    return subprocess.run([sys.executable, "-c", program, mode], check=True, capture_output=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="tunes glibc")
def test_freed_memory_of_large_messages_is_kept_for_the_next() -> None:
    """After the call, large buffers that come and go cost next to no page faults."""
    kept = _faults("kept")

    assert kept < 1000
    assert 5 * kept < _faults("default")


@pytest.mark.skipif(sys.platform != "linux", reason="tunes glibc")
def test_it_is_kept_for_the_next_of_any_thread() -> None:
    """After the call there is one arena, where threads would have one each."""
    assert 1 == _said(_THREADS, "kept").count(b"<heap nr=")
    assert 1 < _said(_THREADS, "default").count(b"<heap nr=")


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no glibc, nothing happens."""

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)

    keep_large_buffers()
