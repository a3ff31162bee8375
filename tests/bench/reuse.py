"""Reuse measured: `python -m tests.bench.reuse [--device cuda --size true]`. Where reuse pays, and where it does not.

First the reference article's table: tries on one picture with other prompts, without the cache and with it: how long
encoding the picture takes, how long all of it, how much memory at the peak, and how often the encoding was there. Then,
for every model family, what each stage has of a request's device time; and what is saved by changing one thing and
reusing the rest, which follows from the stages' declarations.

The article's size (512 x 512, 16 frames, 50 steps) is what `--size true` means; the small model has its own. Shares at
true size are counted and not timed, so they need no device: see `operations.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from inference.device import MIB, open_device
from tests.bench import memory
from tests.bench.memory import Told, Try
from tests.bench.shares import SUBJECTS, Change, Subject, changes, counted, measured, saved

ARTICLE = {"width": 512, "height": 512, "frames": 16, "steps": 50}
CLAIMED = 0.158  # of the total, by encoding the picture once: the article's


@dataclass(frozen=True)
class Family:
    """Shares by stage, and what changes save."""

    subject: Subject
    operations: float  # of the whole request at true size
    counted: Mapping[str, float]
    measured: Mapping[str, float]
    changes: Sequence[Change]


@dataclass(frozen=True)
class Found:
    tries: Told | None
    families: Sequence[Family]


def look_into(subject: Subject, folder: Path, rounds: int, size: Mapping[str, int]) -> Family:
    spent, small = counted(subject, folder), measured(subject, folder, rounds, size)
    return Family(subject, spent.total, spent.shares, small.shares, changes(spent))


def tell_tries(out: Console, told: Told) -> None:
    """As the article has it."""
    table = Table("", "without: encode s", "total s", "peak MiB", "cached: encode s", "total s", "peak MiB", box=None)
    table.add_column("encoding")
    for number, (one, other) in enumerate(zip(told.without, told.cached, strict=True), start=1):
        table.add_row(f"try {number}", *_figures(one), *_figures(other), "made" if other.encoded else "reused")
    sums = [(_sum(runs), max(run.peak for run in runs)) for runs in (told.without, told.cached)]
    cells = [cell for (encode, total), peak in sums for cell in (f"{encode:.4f}", f"{total:.3f}", f"{peak / MIB:.2f}")]
    reused = sum(not run.encoded for run in told.cached)
    table.add_row("all", *cells, f"{reused} of {len(told.cached)} reused: {reused / len(told.cached):.0%} hits")
    out.print(table)
    ((encode, total), peak), ((encode_cached, total_cached), peak_cached) = sums
    out.print(
        f"with the cache: {encode_cached / encode:.1%} of the time of encoding the picture, "
        f"{total_cached / total:.1%} of the total, {peak_cached / peak:.1%} of the peak"
    )
    shares = [run.picture / run.total for run in told.without]
    share = statistics.median(shares)
    out.print(
        f"encoding the picture is {share:.2%} of a run here, so that reusing it can save "
        f"{share * reused / len(told.cached):.2%} of these tries (the article says {CLAIMED:.1%})"
    )


def _sum(runs: Sequence[Try]) -> tuple[float, float]:
    return sum(run.picture for run in runs), sum(run.total for run in runs)


def _figures(run: Try) -> tuple[str, str, str]:
    return f"{run.picture:.4f}", f"{run.total:.3f}", f"{run.peak / MIB:.2f}"


def tell_family(out: Console, family: Family) -> None:
    told = f": {family.subject.says}" if family.subject.says else ""
    teras = family.operations / 1e12
    out.print(f"\n[b]{family.subject.name}[/]{told}; {f'{teras:,.0f}' if teras > 100 else f'{teras:.3g}'} TFLOP")
    table = Table("stage", "counted, true size", "timed, small", box=None, padding=(0, 2, 0, 0))
    for stage, share in family.counted.items():
        table.add_row(stage, f"{share:.3%}", f"{family.measured.get(stage, 0.0):.2%}")
    out.print(table)
    table = Table("what you change", "saved, true size", "small", "runs again", box=None, padding=(0, 2, 0, 0))
    for change in family.changes:
        shares = (saved(change, each) for each in (family.counted, family.measured))
        true, small = (f"{share:.2%}" for share in shares)
        table.add_row(", ".join(change.inputs), true, small, ", ".join(change.runs) or "nothing")
    out.print(table)


async def measure(options: argparse.Namespace, out: Console) -> Found:
    if options.size == "true":
        for name, value in ARTICLE.items():
            if getattr(options, name) is None:
                setattr(options, name, value)
    told, families = None, []
    small = memory.asked(options) if options.size == "small" else {}
    with tempfile.TemporaryDirectory() as folder:
        if options.tries:
            device = await asyncio.to_thread(open_device, options.device, options.threads)
            out.print(f"I2VGen-XL, {options.size} size, on {device.kind}, torch {torch.__version__}")
            async with memory.standing(device, options, Path(folder)) as bench:
                told = await memory.tries(bench, options.tries)
            tell_tries(out, told)
        for subject in SUBJECTS:
            if subject.name in (options.only or [subject.name]):
                family = await asyncio.to_thread(look_into, subject, Path(folder), options.rounds, small)
                families.append(family)
                tell_family(out, family)
    return Found(told, families)


def parser() -> argparse.ArgumentParser:
    arguments = memory.parser()
    arguments.description = (__doc__ or "").partition("\n")[0]
    names = [subject.name for subject in SUBJECTS]
    arguments.set_defaults(tries=5)  # 0: shares alone
    arguments.add_argument("--only", action="append", choices=names, help="of the model families")
    arguments.add_argument("--rounds", type=int, default=3, help="of the small models")
    return arguments


if __name__ == "__main__":
    asyncio.run(measure(parser().parse_args(), Console(width=160)))
