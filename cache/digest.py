"""Digest: the name of a value, which is its BLAKE3-256 hash together with its size."""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3


@dataclass(frozen=True, slots=True)
class Digest:
    """Names immutable bytes. Two values with one digest are the same value."""

    hex: str
    size: int

    @classmethod
    def of(cls, data: bytes | memoryview) -> Digest:
        return cls(blake3(data).hexdigest(), len(data))

    def names(self, data: bytes | memoryview) -> bool:
        """Whether these bytes are the ones this digest names."""
        return len(data) == self.size and blake3(data).hexdigest() == self.hex

    def __str__(self) -> str:
        return f"{self.hex}/{self.size}"
