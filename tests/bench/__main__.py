"""`python -m tests.bench`: measure, tell, and leave the figures in out/bench/."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import uvloop
from rich.console import Console

from cache.process import keep_large_buffers
from tests.bench.aims import verdicts
from tests.bench.figures import Cell, Figures
from tests.bench.load import Slice, closed_loop
from tests.bench.processor import MEASURED, OTHERS, clock_of
from tests.bench.report import chart, tell
from tests.bench.rig import Rig, standing
from tests.bench.subjects import HERE, KIB, SIZES, Subject, prepared

STEP_SECONDS = 0.05  # how long a generation takes


@dataclass(frozen=True)
class Options:
    rounds: int
    seconds: float  # of a turn
    sizes: Sequence[int]
    only: Sequence[str]


async def measure(options: Options, data: Path, console: Console) -> Figures:
    """Every subject takes its turn in every round, so that what changes on the machine meets all of them."""
    with standing(data, step_seconds=STEP_SECONDS) as base:
        async with prepared(base, data, options.sizes) as (rig, subjects):
            chosen = [each for each in subjects if not options.only or each.name in options.only]
            turns = [(each, Cell(each.name, each.size, n)) for each in chosen for n in each.clients]
            for subject, cell in turns:
                await _turn(rig, subject, cell.clients, options.seconds / 4)  # connections, caches and memory warm
            for number in range(1, options.rounds + 1):
                console.print(f"round {number} of {options.rounds} ...")
                for subject, cell in turns:
                    cell.rounds.append(await _turn(rig, subject, cell.clients, options.seconds * subject.turn))
            return Figures(cell for _, cell in turns)


async def _turn(rig: Rig, subject: Subject, clients: int, seconds: float) -> Slice:
    return await closed_loop(
        subject.ask,
        clients=clients,
        seconds=seconds,
        processor=time.process_time if subject.server == HERE else clock_of(rig.pids[subject.server]),
        beside=subject.beside,
        others=subject.others,
    )


@click.command()
@click.option("--quick", is_flag=True, help="Fewer and shorter rounds: figures to look at, not to keep.")
@click.option("--rounds", type=click.IntRange(1), default=None, help="How often each subject takes its turn.")
@click.option("--seconds", type=click.FloatRange(0), default=None, help="How long a turn lasts.")
@click.option("--size", "sizes", type=int, multiple=True, help="Size of files in KiB; may be given several times.")
@click.option("--only", multiple=True, metavar="NAME", help="Only subjects of this name; may be given several times.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/bench"))
@click.option(
    "--json", "file", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Else OUT/bench.json"
)
def main(
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    sizes: tuple[int, ...],
    only: tuple[str, ...],
    out: Path,
    file: Path | None,
) -> None:
    """Measure hits, misses and crowds against the floors of this machine."""
    options = Options(
        rounds or (2 if quick else 5),
        seconds if seconds is not None else (0.1 if quick else 0.3),
        tuple(size * KIB for size in sizes) or SIZES,
        only,
    )
    console = Console(highlight=False, width=None if Console().is_terminal else 150)
    keep_large_buffers()
    out.mkdir(parents=True, exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="reprise-bench-"))
    try:
        figures = uvloop.run(measure(options, data, console))
    finally:
        shutil.rmtree(data, ignore_errors=True)
    told = verdicts(figures)
    tell(console, figures, told)
    report = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}",
        "cores": {"measured": sorted(MEASURED), "others": sorted(OTHERS)},
        "rounds": options.rounds,
        "seconds": options.seconds,
        "cells": [cell.as_json() for cell in figures.cells],
        "aims": [verdict.as_json() for verdict in told],
    }
    (file or out / "bench.json").write_text(json.dumps(report, indent=1))
    chart(figures).save(out / "bench.png")
    console.print(
        f"\n{file or out / 'bench.json'} has every figure, {out / 'bench.png'} shows the hits", soft_wrap=True
    )


if __name__ == "__main__":
    main()
