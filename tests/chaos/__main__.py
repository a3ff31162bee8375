"""`python -m tests.chaos`: break the stack in every way of the matrix, and show what its clients see of it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import click
import uvloop
from rich.console import Console

import tests.chaos.cases  # noqa: F401  # registers them
from tests.chaos.case import CASES, Case, in_order
from tests.chaos.play import Play, Played
from tests.chaos.report import Show, chart, write
from tests.chaos.world import World, standing


async def _play(world: World, cases: list[Case], show: Show, *, full: bool) -> list[Played]:
    play, played = Play(world, full=full), list[Played]()
    for case in cases:
        with show.case(case) as told:
            played.append(await play.case(case, told))
        show.verdict(played[-1])
    if lost := await play.lost():
        show.lost(lost)
        played[-1].findings += lost
    return played


@click.command()
@click.option("--only", multiple=True, metavar="CASE", help="Only this case, as R3; all of its kind, as R; or more.")
@click.option("--quick", is_flag=True, help="The share that runs among the tests, in its size there.")
@click.option("--list", "listed", is_flag=True, help="Say which cases there are, and play none.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/chaos"))
@click.option("--keep-logs", is_flag=True, help="Leave the processes' logs in OUT/logs.")
def main(only: tuple[str, ...], quick: bool, listed: bool, out: Path, keep_logs: bool) -> None:
    """Break the stack in every way of the fault matrix. Fails if a promise is broken."""
    console = Console(highlight=False, width=None if Console().is_terminal else 150)
    chosen = [
        case for case in in_order(CASES.values()) if (case.share or not quick or only) and _is_meant(case.name, only)
    ]
    if listed or not chosen:
        for case in chosen or CASES.values():
            console.print(f"[bold]{case.name}[/]  {case.fault}\n    {case.promise}")
        sys.exit(0 if listed else 2)
    out.mkdir(parents=True, exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="reprise-chaos-"))
    try:
        console.print("starting two gateways, two workers, Redis and an S3 server ...")
        with standing(data / "stack") as world:
            played = uvloop.run(_play(world, chosen, Show(console), full=not quick))
    finally:
        if keep_logs:
            shutil.copytree(data / "stack" / "logs", out / "logs", dirs_exist_ok=True)
        shutil.rmtree(data, ignore_errors=True)
    write(out / "report.json", played)
    chart(played).save(out / "timeline.png")
    kept = sum(each.kept for each in played)
    console.print(f"\n{kept} of {len(played)} cases kept their promises; {out}/report.json, {out}/timeline.png")
    sys.exit(kept < len(played))


def _is_meant(name: str, only: tuple[str, ...]) -> bool:
    return not only or any(name == each or name.startswith(f"{each} ") or name[:1] == each for each in only)


if __name__ == "__main__":
    main()
