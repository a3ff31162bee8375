"""Identity of a picture: what both the gateway, which decodes it, and the worker, which reads it, know it by."""

from __future__ import annotations

from cache.digest import Digest
from cache.encoding import hash_of


def picture_identity(width: int, height: int, rgb: bytes) -> str:
    """Names decoded pixels, 8-bit RGB rows from the top. Blocking: hashes `height * width * 3` bytes."""
    # The size is hashed beside the pixels: the same bytes are another picture when the rows are longer.
    pixels = Digest.of(rgb).hex
    return hash_of("picture", {"mode": "RGB", "width": width, "height": height, "pixels": pixels})
