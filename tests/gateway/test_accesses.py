"""What requests look for is noted, so that other sizes of memory can be tried on it; and nothing else is."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cache.accesses import read_accesses
from reprise.v1 import common_pb2 as pb
from tests.gateway.world import World


async def test_hits_and_misses_are_noted_with_their_size_and_cost(world: World, tmp_path: Path) -> None:
    """One line for every answer that a cache of some size would have had; none for who joined or bypassed it."""
    worker = await world.worker()
    gate = worker.hold("step")
    desk = await world.desk(worker, accesses=str(tmp_path / "accesses"))
    leader = desk.follow("the secret cat")
    name = await leader.name()
    joiner = desk.follow("the secret cat")
    assert name != await joiner.name()
    gate.open()
    media = await leader.media()
    await joiner.media()
    await desk.animate("the secret cat")
    await desk.animate("another cat")
    await desk.animate("the secret cat", policy={"mode": pb.CachePolicy.MODE_BYPASS})
    await desk.close()

    file = tmp_path / "accesses" / "results-gateway.jsonl"
    first, second, third = (await asyncio.to_thread(read_accesses, [file]))["result"]
    assert first.key == second.key != third.key
    assert len(media.data) == first.size == second.size
    assert media.report.device_seconds_spent == first.cost == second.cost
    text = await asyncio.to_thread(file.read_text)
    assert "secret" not in text
    assert media.report.address.split("/")[1] not in text
