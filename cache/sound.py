"""Identity of a sound: what both the gateway, which decodes it, and the worker, which reads it, know it by."""

from __future__ import annotations

from cache.digest import Digest
from cache.encoding import hash_of


def sound_identity(sample_rate: int, samples: int, pcm: bytes) -> str:
    """Names decoded samples, 16-bit little-endian mono. Blocking: hashes `samples * 2` bytes."""
    # The rate is hashed beside the samples: the same bytes are another sound when they are played faster.
    heard = Digest.of(pcm).hex
    return hash_of("sound", {"sample_rate": sample_rate, "samples": samples, "pcm": heard})
