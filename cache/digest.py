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
    def of(cls, data: bytes | memoryview) -> Digest:
        return cls(blake3(data).hexdigest(), len(data))

    @classmethod
    async def of_any_size(cls, data: bytes) -> Digest:
        """Like `of`, off the event loop where hashing takes longer than a loop may stand still."""
        return cls.of(data) if len(data) <= AT_ONCE else await asyncio.to_thread(cls.of, data)

    def names(self, data: bytes | memoryview) -> bool:
        """Whether these bytes are the ones this digest names."""
        return len(data) == self.size and blake3(data).hexdigest() == self.hex

    def __str__(self) -> str:
        return f"{self.hex}/{self.size}"
