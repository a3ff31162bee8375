"""A target that does not keep its promises: what the machinery here is tried on."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tests.fuzz.target import Target


def _broken(data: bytes) -> bool:
    if data[:1] == b"!":
        os.abort()
    if data[:1] == b"/":
        return bool(1 // 0)
    return bool(data)


TARGETS: Sequence[Target] = (Target("broken", _broken, lambda: [b"a!", b"/a"], longest=3),)
