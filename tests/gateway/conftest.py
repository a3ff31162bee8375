"""What tests of a whole gateway ask for."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.world import World, open_world


@pytest.fixture
async def world(redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """Tiers that hold nothing: memory, a real Redis, a folder."""
    async with open_world(redis_url, tmp_path / "objects") as world:
        yield world
