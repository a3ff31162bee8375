"""B: how much there may be of everything, for ever. Memory has bounds that hold whatever comes."""

from __future__ import annotations

import asyncio
import json
import sys

from tests.chaos.case import Scene, case

MIB = 1024 * 1024


@case(
    "B1 keys",
    fault="a million different requests, of as many callers, with as many pictures",
    promise="memory, its ghosts, what is known to be absent, history and looks stay within their bounds",
    share=True,
)
async def many_keys(scene: Scene) -> None:
    sheet, count = scene.sheet, scene.size(1_000_000, 10_000)
    remembering = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos.keys", str(count)), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await remembering.communicate()
    found = json.loads(told)
    sheet.tell("entries in memory", found["entries"])
    sheet.at_most("bytes in memory", found["bytes"], found["max_bytes"])
    sheet.at_most("looks of pictures", found["looks"], found["max_looks"])
    sheet.at_least("looks of pictures, as many as fit", found["looks"], min(count, found["max_looks"]) * 0.9)
    grown = (found["resident"] - found["resident_half"]) / MIB
    if scene.full:  # by then everything is full
        sheet.at_most("MiB that the second half added", grown, 64)
    sheet.tell("MiB resident", found["resident"] / MIB)
