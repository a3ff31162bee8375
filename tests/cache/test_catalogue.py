"""Catalogue: descriptions that outlive their workers."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache.catalogue import Catalogue
from cache.description import Description
from cache.errors import TierError
from cache.hierarchy import Hierarchy
from cache.objects import ObjectsStore
from cache.store import StoredTier
from cache.tier import TierName
from cache.write_behind import WriteBehind
from tests.cache.families import picture_family
from tests.cache.helpers import NAMESPACE, ScriptedTier


@dataclass
class Bench:
    catalogue: Catalogue
    objects: ObjectsStore
    folder: Path


@pytest.fixture
def objects(tmp_path: Path) -> ObjectsStore:
    return ObjectsStore.connect(f"file://{tmp_path}", stall=10.0)


@pytest.fixture
async def bench(objects: ObjectsStore, tmp_path: Path) -> AsyncIterator[Bench]:
    tier = StoredTier(TierName.L3, objects)
    async with WriteBehind([tier], max_bytes=1_000_000, max_entries=10) as writer:
        yield Bench(Catalogue(objects, Hierarchy([tier], writer), NAMESPACE), objects, tmp_path)


def _revision(name: str, model: str = "small") -> Description:
    return picture_family().model_copy(update={"revision": name, "model": model})


async def test_what_was_published_is_active(bench: Bench) -> None:
    """The description comes back equal; a newer one takes its place, an older one can be made active again."""
    for name in ("r1", "r2", "r1"):
        await bench.catalogue.publish(_revision(name))
        assert _revision(name) == await bench.catalogue.active("small")


async def test_models_are_listed(bench: Bench) -> None:
    """Every model ever published, once, in order."""
    for model in ("small", "large-1.5", "small"):
        await bench.catalogue.publish(_revision("r1", model))

    assert ["large-1.5", "small"] == await bench.catalogue.models()


async def test_a_model_never_described_is_none(bench: Bench) -> None:
    """Nothing published, nothing active."""
    assert await bench.catalogue.active("small") is None
    assert [] == await bench.catalogue.models()


@pytest.mark.parametrize(
    "pointer",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"hex": "00"}',
        b'{"hex": "00", "size": "many"}',
        b'{"hex":"0","size":1e999}',
    ],
)
async def test_a_pointer_nobody_can_read_is_none(bench: Bench, pointer: bytes) -> None:
    """Damage of the one mutable object is like its absence, until the next worker publishes."""
    await bench.objects.put("models/small", pointer, 1.0, replace=True)

    assert await bench.catalogue.active("small") is None
    await bench.catalogue.publish(_revision("r1"))
    assert _revision("r1") == await bench.catalogue.active("small")


async def test_a_description_that_is_gone_is_none(bench: Bench) -> None:
    """A pointer to nothing is no description."""
    await bench.catalogue.publish(_revision("r1"))
    await bench.objects.delete(next(iter(await bench.objects.names("b/"))))

    assert await bench.catalogue.active("small") is None


async def test_what_another_version_knows_of_a_model_is_no_model(bench: Bench) -> None:
    """It says so below a folder of its own, and takes nothing from ours."""
    await bench.catalogue.publish(_revision("r1"))
    await bench.objects.put("models/2/other", b"{}", 60.0, replace=True)
    assert [_revision("r1").model] == await bench.catalogue.models()


async def test_a_description_of_another_schema_is_none(bench: Bench) -> None:
    """A description this process does not understand is not acted upon."""
    newer = _revision("r1").model_copy(update={"schema_version": 2})
    await bench.catalogue.publish(newer)

    assert await bench.catalogue.active("small") is None


async def test_publishing_fails_loudly(objects: ObjectsStore) -> None:
    """When the description could not be stored, nothing points to it and the publisher is told."""
    tier = ScriptedTier(TierName.L3, failing_puts=99)

    async def no_pause(seconds: float) -> None: ...

    async with WriteBehind([tier], max_bytes=1_000_000, max_entries=10, pause=no_pause) as writer:
        catalogue = Catalogue(objects, Hierarchy([tier], writer), NAMESPACE)
        with pytest.raises(TierError):
            await catalogue.publish(_revision("r1"))

    assert [] == await objects.names("models/")
