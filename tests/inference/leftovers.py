"""Leftovers: memory that holds a known byte when it is handed out, so that who reads what nobody wrote is found out.

A process that has just begun gets zeros, and one that has worked for a while anything: without this such code gives
other bytes once in many runs.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

LEFTOVERS = (0xFE, 0x01, 0xFD, 0xFC)  # as 16 bits: small negative numbers, such as motion could be, and 257

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc fills memory by itself")

_M_PERTURB = -6  # of its malloc.h


@contextmanager
def memory_full_of(byte: int) -> Iterator[None]:
    """All that malloc and its relatives hand out in this process, to any library, is full of this byte (0..254)."""
    libc = ctypes.CDLL(None)
    assert libc.mallopt(_M_PERTURB, byte ^ 0xFF)  # which fills what it hands out with the complement
    try:
        yield
    finally:
        libc.mallopt(_M_PERTURB, 0)
