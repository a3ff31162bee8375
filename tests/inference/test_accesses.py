"""What runs need on the device is noted, so that other sizes of the pool can be tried on it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from cache.accesses import AccessLog, read_accesses
from tests.inference.worker_fixtures import SECRET, open_bench


async def test_every_run_notes_the_outputs_it_needs_in_the_pool(tmp_path: Path) -> None:
    """Made or found again, once for each run. A result that is known needs nothing, and no pool keeps latents."""
    file = tmp_path / "stages.jsonl"
    async with AccessLog(file, "stage", SECRET) as log, open_bench(tmp_path / "l3", accesses=log) as bench:
        await bench.run()
        await bench.run(seed=8)  # made of the same picture and the same text
        await bench.run(seed=8)  # known as a whole

    accesses = read_accesses([file])["stage"]
    assert [2, 2] == sorted(Counter(access.key for access in accesses).values())
    assert all(access.cost > 0 and access.size > 0 for access in accesses)
