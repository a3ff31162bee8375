"""Catalogue: the descriptions of models, stored so that hits are served with every worker gone.

A description is a blob. `models/<name>` is the one mutable object there is: it says which description is active.
Workers publish, gateways read.
"""

from __future__ import annotations

import json

from cache.description import Description
from cache.digest import Digest
from cache.encoding import VERSION
from cache.errors import TierError
from cache.hierarchy import Hierarchy
from cache.objects import ObjectsStore

PREFIX = "models/"
_OURS = PREFIX if VERSION == 1 else f"{PREFIX}{VERSION}/"  # what another version knows of a model is left to it
_TTL = 30 * 24 * 3600.0  # seconds without a look; for Redis only, the durable tier keeps it


class Catalogue:
    """`namespace` is the shared one: descriptions are nobody's secret."""

    def __init__(self, objects: ObjectsStore, hierarchy: Hierarchy, namespace: str) -> None:
        self._objects = objects
        self._hierarchy = hierarchy
        self._namespace = namespace

    async def publish(self, description: Description) -> None:
        """Store a description and make it the active one of its model. Raises TierError."""
        content = description.to_bytes()
        if not await self._hierarchy.keep(self._namespace, content, _TTL):
            raise TierError("the description could not be stored")
        await self._objects.put(_OURS + description.model, pointer_of(description), _TTL, replace=True)

    async def active(self, model: str) -> Description | None:
        """The active description of a model; None if there is none that can be read. Raises TierError."""
        pointer = await self._objects.get(_OURS + model, _TTL)
        if pointer is None or (digest := pointer_to(pointer)) is None:
            return None
        content, _, _ = await self._hierarchy.read(self._namespace, digest, _TTL)
        try:
            return Description.from_bytes(content) if content is not None else None
        except ValueError:
            return None  # of a schema this process does not know

    async def models(self) -> list[str]:
        """Names of all models ever published. Raises TierError."""
        names = [name.removeprefix(_OURS) for name in await self._objects.names(_OURS)]
        return sorted(name for name in names if "/" not in name)  # the others are of another version


def pointer_of(description: Description) -> bytes:
    """What `models/` says of a model whose active description this is."""
    digest = description.digest
    return json.dumps({"revision": description.revision, "hex": digest.hex, "size": digest.size}).encode()


def pointer_to(data: bytes) -> Digest | None:
    """The digest of the description that is active; None for what says none. Anybody may have written it."""
    try:
        fields = json.loads(data)
        return Digest(str(fields["hex"]), int(fields["size"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
