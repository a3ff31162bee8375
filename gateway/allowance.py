"""Allowance: how many bytes each of many may bring, and how soon they may bring more.

A bucket for each that leaks: full, it takes no more until enough has run out, which takes `seconds` for all of it. So
a bound on what comes is a bound on what is kept, where things are kept for as long. A dry bucket is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.errors import Overloaded

_SWEEP = 1024  # buckets, after which the dry ones are looked for


class Allowance:
    """Belongs to one event loop."""

    def __init__(self, most: int, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._rate = most / seconds  # bytes that run out of a bucket in a second
        self._clock = clock
        self._dry_at: dict[str, float] = {}  # when each bucket will be, if nothing comes
        self._sweep_at = _SWEEP

    def __len__(self) -> int:
        return len(self._dry_at)

    def take(self, whose: str, size: int) -> None:
        """Raises Overloaded, which says when there is room for so much."""
        now = self._clock()
        held = max(0.0, self._dry_at.get(whose, now) - now) * self._rate
        if (over := held + size - self._most) > 0:
            raise Overloaded("UPLOAD_SHARE", retry_after=max(1.0, over / self._rate))
        self._dry_at[whose] = now + (held + size) / self._rate
        if len(self._dry_at) > self._sweep_at:
            self._dry_at = {each: dry_at for each, dry_at in self._dry_at.items() if dry_at > now}
            self._sweep_at = _SWEEP + 2 * len(self._dry_at)
