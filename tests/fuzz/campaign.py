"""Campaigns: many inputs for some targets, each in processes of its own, followed while they run.

What kills a process is a finding like any other: it is noted, and a new process goes on with what is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.target import MODULES

_MOST_DEATHS = 5  # of one target's processes
_COVERED = re.compile(rb"cov: (\d+)")
_LAST_WORDS = 40  # lines


@dataclass
class Finding:
    """An input, and what became of it."""

    file: Path
    place: str
    told: str


@dataclass
class Progress:
    """How far one target has come."""

    name: str
    wanted: int
    guided: bool = True
    tried: int = 0
    taken: int = 0  # of those tried
    branches: int = 0  # reached
    slowest: float = 0.0  # seconds of processor time
    seconds: float = 0.0
    finished: bool = False
    findings: list[Finding] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tried / self.seconds if self.seconds else 0.0


async def run(
    names: Sequence[str],
    *,
    inputs: int,
    seed: int,
    folder: Path,
    at_once: int,
    show: Callable[[Sequence[Progress]], None] = lambda _: None,
) -> list[Progress]:
    """Try so many inputs on each of these targets. Below `folder` corpora are kept, and inputs that are findings."""
    progress = [Progress(name, inputs) for name in names]
    free = asyncio.Semaphore(at_once)
    fixed = {**os.environ, "PYTHONHASHSEED": "0"}  # the order of a set is no coincidence

    async def one(state: Progress) -> None:
        async with free:
            began, before = time.monotonic(), 0

            def tick() -> None:
                state.seconds = time.monotonic() - began
                show(progress)

            for death in range(_MOST_DEATHS):
                before = state.tried
                corpus, findings = (folder / kind / state.name for kind in ("corpus", "findings"))
                for each in (corpus, findings):
                    each.mkdir(parents=True, exist_ok=True)
                rest = [str(seed + death), str(inputs - before), str(corpus), str(findings)]
                command = [sys.executable, "-m", "tests.fuzz.guided", state.name, *rest]
                process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=fixed)
                if await _follow(process, state, before, tick) or not before < state.tried < inputs:
                    break
            state.finished = True
            tick()

    async with asyncio.TaskGroup() as group:
        for state in progress:
            group.create_task(one(state))
    return progress


async def _follow(process: Process, state: Progress, before: int, tick: Callable[[], None]) -> bool:
    """Whether the process came to its end, and not to another."""
    assert process.stdout is not None
    assert process.stderr is not None
    last_words: list[bytes] = []

    async def listen(lines: asyncio.StreamReader) -> None:
        async for line in lines:
            with suppress(ValueError):
                _note(json.loads(line), state, before)
            tick()

    async def overhear(lines: asyncio.StreamReader) -> None:
        async for line in lines:
            if covered := _COVERED.search(line):
                state.branches = int(covered[1])
            last_words.append(line)
            del last_words[:-_LAST_WORDS]

    try:
        await asyncio.gather(listen(process.stdout), overhear(process.stderr))
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status:
        told = b"".join(last_words).decode(errors="replace")
        named = re.search(r"Test unit written to (\S+)", told)
        state.findings.append(Finding(Path(named[1] if named else ""), f"process ended with {status}", told))
    return status == 0


def _note(said: dict[str, Any], state: Progress, before: int) -> None:
    match said:
        case {"guided": guided}:
            state.guided = guided
        case {"tried": tried, "taken": _, "slowest": slowest}:
            state.taken = said["taken"]
            state.tried, state.slowest = before + tried, max(state.slowest, slowest)
        case {"finding": file, "place": place, "told": told}:
            if place not in {finding.place for finding in state.findings}:
                state.findings.append(Finding(Path(file), place, told))


ALL = tuple(MODULES)
