"""The command: `python -m tests.fuzz`, or of some targets `python -m tests.fuzz picture sound --inputs 1000000`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tests.fuzz.campaign import ALL, Progress, run


@click.command()
@click.argument("targets", nargs=-1, type=click.Choice(ALL))
@click.option("--inputs", default=1_000_000, show_default=True, help="How many to try on each target.")
@click.option("--seed", default=0, help="Another one tries others.  [default: by the clock]")
@click.option("--folder", default="out/fuzz", show_default=True, type=click.Path(path_type=Path), help="For corpora.")
@click.option("--at-once", default=2, show_default=True, help="How many processes run side by side.")
def main(targets: Sequence[str], inputs: int, seed: int, folder: Path, at_once: int) -> None:
    """Try malformed inputs on the decoders of Reprise, and keep those that are findings below FOLDER/findings."""
    console, seed = Console(), seed or int(time.time()) % 1_000_000
    with Live(console=console, refresh_per_second=4) as live:

        def show(progress: Sequence[Progress]) -> None:
            live.update(_table(progress, seed))

        progress = asyncio.run(run(targets or ALL, inputs=inputs, seed=seed, folder=folder, at_once=at_once, show=show))
    found = [finding for each in progress for finding in each.findings]
    for finding in found:
        console.print(f"\n[bold red]{finding.place}[/]  {finding.file}")
        console.print(finding.told, markup=False, highlight=False)
    sys.exit(bool(found))


def _table(progress: Sequence[Progress], seed: int) -> Table:
    columns = ("target", "inputs", "taken", "branches", "inputs/s", "slowest", "time", "findings")
    table = Table(*columns, caption=f"seed {seed}")
    for each in progress:
        places = str(each.branches) if each.guided else "unguided"
        state = "[red]" if each.findings else "[green]" if each.finished else ""
        table.add_row(
            f"{state}{each.name}",
            f"{each.tried:,}",
            f"{each.taken:,}",
            places,
            f"{each.rate:,.0f}",
            f"{each.slowest * 1000:.1f} ms",
            f"{each.seconds:.0f} s",
            str(len(each.findings)),
        )
    return table


if __name__ == "__main__":
    main()
