"""Digest: the name of a value, which is its BLAKE3-256 hash together with its size."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from blake3 import blake3

AT_ONCE = 4 * 1024 * 1024  # bytes that are hashed in about a millisecond; more is done off the event loop


@dataclass(frozen=True, slots=True)
class Digest:
    """Names immutable bytes. Two values with one digest are the same value."""

    hex: str
    size: int

    @classmethod
    def of(cls, *pieces: bytes | memoryview) -> Digest:
        """Of these bytes, one piece after the other."""
        hasher = blake3(*pieces[:1])
        for piece in pieces[1:]:
            hasher.update(piece)
        return cls(hasher.hexdigest(), sum(map(len, pieces)))

    @classmethod
    async def of_any_size(cls, *pieces: bytes) -> Digest:
        """Like `of`, off the event loop where hashing takes longer than a loop may stand still."""
        return cls.of(*pieces) if sum(map(len, pieces)) <= AT_ONCE else await asyncio.to_thread(cls.of, *pieces)

    def names(self, data: bytes | memoryview) -> bool:
        """Whether these bytes are the ones this digest names."""
        return len(data) == self.size and blake3(data).hexdigest() == self.hex

    def __str__(self) -> str:
        return f"{self.hex}/{self.size}"
