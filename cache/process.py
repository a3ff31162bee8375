"""What every process of a deployment does first."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


def keep_large_buffers() -> None:
    """Make glibc keep freed memory of large messages for the next one instead of giving it back page by page.

    With its defaults every message over 128 KiB is mapped, faulted in and unmapped again, which costs several times the
    work on it. For the next one of whatever thread: with an arena for each, each keeps what the others cannot use. Does
    nothing on other C libraries.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 * 1024 * 1024)
    mallopt(_M_TRIM_THRESHOLD, 1024 * 1024 * 1024)
    mallopt(_M_TOP_PAD, 64 * 1024 * 1024)
    mallopt(_M_ARENA_MAX, 1)
