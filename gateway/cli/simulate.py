"""`reprise simulate`: what other sizes and policies would have saved, on recorded or synthetic accesses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil, log2
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cache.accesses import Access, read_accesses
from cache.redis import MAX_PAYLOAD
from cache.settings import MIB
from cache.simulate import OVERHEAD, Replay, ReplayPolicy, advise, ceiling, replay
from cache.synthetic import SYNTHETIC
from gateway.cli.chart import draw
from gateway.cli.options import console
from gateway.cli.sizes import Sizes, size_word
from gateway.cli.stack import data_option

_STEPS = 6  # sizes that are tried when none are given, each twice the one before


class _Names(click.ParamType[list[str]]):
    """Some of a few names, with commas in between."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        names = [part.strip() for part in str(value).split(",")]
        for name in names:
            if name not in self._known:
                self.fail(f"{name!r} is none of {', '.join(self._known)}", param, ctx)
        return names


@dataclass(frozen=True)
class _Place:
    """Something whose size is to be chosen."""

    name: str
    policies: list[ReplayPolicy]
    share: float = 1.0  # of all bytes that one entry may take
    max_weight: int | None = None


@click.command()
@click.argument("traces", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@data_option
@click.option("--synthetic", type=_Names(list(SYNTHETIC)), help=f"Instead of files: {', '.join(SYNTHETIC)}.")
@click.option(
    "--policy", type=_Names(["value", "lru"]), default="lru,value", show_default=True, help="Of L1 and pools."
)
@click.option("--sizes", type=Sizes(), help="To try, such as 64MiB,1GiB.  [default: six, up to all there is]")
@click.option("--entries", type=click.IntRange(min=1), help="Bound on the number of entries in L1 and pools too.")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.25,
    show_default=True,
    help="Of the bytes that one entry may take in L1 and pools.",
)
@click.option(
    "--ttl",
    type=click.FloatRange(min=0, min_open=True),
    default=7200.0,
    show_default=True,
    help="Seconds without access.",
)
@click.option(
    "--worth",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Device seconds an hour that a GiB must save to be worth having.",
)
@click.option("--lookups", type=click.IntRange(min=2), default=50_000, show_default=True, help="Of a synthetic trace.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of a synthetic trace, lookups a second.",
)
@click.option("--seed", type=int, default=42, show_default=True, help="Of a synthetic trace.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out/simulate"),
    show_default=True,
    help="Where charts go.",
)
def simulate(
    traces: tuple[Path, ...],
    data: Path,
    synthetic: list[str] | None,
    policy: list[ReplayPolicy],
    sizes: list[int] | None,
    entries: int | None,
    share: float,
    ttl: float,
    worth: float,
    lookups: int,
    rate: float,
    seed: int,
    out: Path,
) -> None:
    """Replay what was asked for against other sizes and policies, and advise sizes for L1, L2 and pools.

    TRACES are files that gateways and workers write to `telemetry.accesses_folder`; without any, those of the local
    stack. L1 and pools are simulated by what runs in them; L2 is an approximation of Redis with allkeys-lfu.
    """
    if traces and synthetic:
        raise click.UsageError("name files or --synthetic, not both")
    show = console()
    memory = [_Place("L1", policy, share), _Place("L2", ["lfu"], max_weight=MAX_PAYLOAD + OVERHEAD)]
    pool = [_Place("pool", policy, share)]
    folder = data / "accesses"  # where the local stack notes them
    for name, subject, accesses in _streams(traces, folder, synthetic or [], lookups, rate, seed):
        best = ceiling(accesses, ttl=ttl)
        tried = sizes or _sizes_up_to(best.peak_bytes)
        show.print(_summary(name, accesses, best))
        results: list[tuple[_Place, list[Replay]]] = []
        for place in memory if subject == "result" else pool:
            bound = None if place.name == "L2" else entries
            results += [
                (place, [_replay(accesses, place, each, size, ttl, bound) for size in tried]) for each in place.policies
            ]
        show.print(_table(results))
        _advise(show, accesses, results, worth)
        _draw(show, out, name, results, best)


def _streams(
    traces: Sequence[Path], folder: Path, synthetic: Sequence[str], lookups: int, rate: float, seed: int
) -> Iterator[tuple[str, str, list[Access]]]:
    """Name, subject, accesses."""
    for name in synthetic:
        yield name, "stage" if name == "stages" else "result", list(islice(SYNTHETIC[name](seed, rate), lookups))
    if synthetic:
        return
    try:
        recorded = read_accesses(traces or sorted(folder.glob("*.jsonl*")))
    except OSError as error:
        raise click.ClickException(f"{error.filename}: cannot be read: {error.strerror}") from None
    if not any(recorded.values()):
        where = ", ".join(map(str, traces)) or str(folder)
        raise click.ClickException(
            f"no accesses in {where}: set telemetry.accesses_folder and let requests come, name its files, say where "
            "the stack keeps everything (--data), or try --synthetic sessions"
        )
    for subject, accesses in recorded.items():
        if accesses:
            yield f"recorded {subject}s", subject, accesses


def _sizes_up_to(everything: int) -> list[int]:
    largest = 1 << ceil(log2(max(everything, 2**_STEPS)))
    return [largest >> step for step in reversed(range(_STEPS))]


def _replay(
    accesses: Sequence[Access], place: _Place, policy: ReplayPolicy, size: int, ttl: float, entries: int | None
) -> Replay:
    weight = place.max_weight if place.max_weight is not None else int(place.share * size)
    return replay(accesses, policy, size, ttl=ttl, max_entries=entries, max_weight=weight)


def _summary(name: str, accesses: Sequence[Access], best: Replay) -> str:
    return (
        f"\n{name}: {best.lookups:,} lookups of {len({access.key for access in accesses}):,} entries "
        f"in {best.seconds / 3600:.1f} h. Memory without end would hold up to {size_word(best.peak_bytes)} and save "
        f"{best.cost_saved:,.1f} of {best.cost_asked:,.1f} device seconds ({best.share_saved:.1%})"
    )


def _table(results: Sequence[tuple[_Place, list[Replay]]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("place", "policy"):
        table.add_column(title)
    for title in ("size", "hit rate", "byte hit rate", "device s saved", "of all", "saved per GiB"):
        table.add_column(title, justify="right")
    for place, replays in results:
        for each in replays:
            table.add_row(
                place.name,
                each.policy,
                size_word(each.max_bytes),
                f"{each.hit_rate:.1%}",
                f"{each.byte_hit_rate:.1%}",
                f"{each.cost_saved:,.1f}",
                f"{each.share_saved:.1%}",
                f"{each.saved_per_gib:,.1f}",
            )
    return table


def _advise(
    out: Console, accesses: Sequence[Access], results: Sequence[tuple[_Place, list[Replay]]], worth: float
) -> None:
    for place, replays in results:
        if len(replays) < 2:
            continue
        advice, (largest, least) = advise(replays, worth), _least(accesses, place)
        rate = f"{advice.next_gib:,.1f} device seconds an hour"  # from the size on that was found
        if advice.max_bytes is None:
            tried = max(replays[-1].max_bytes, least)
            told = f"more than {size_word(tried)} may pay: the last step still saved {rate} for each GiB"
        elif advice.max_bytes < least:
            told = (
                f"{size_word(least)}, the least in whole MiB that keeps its largest entry ({size_word(largest)}, and "
                f"one may take {place.share:.0%})"
            )
        else:
            told = f"{size_word(advice.max_bytes)}; from there on a GiB more saves {rate}"
        out.print(f"{place.name} with {replays[0].policy}: {told}")


def _least(accesses: Sequence[Access], place: _Place) -> tuple[int, int]:
    """Bytes of the largest entry that is ever kept there, and of a place that has room for it, in whole MiB."""
    weights = (access.size + OVERHEAD for access in accesses)
    largest = max((weight for weight in weights if place.max_weight is None or weight <= place.max_weight), default=0)
    return largest, max(1, ceil(largest / place.share / MIB)) * MIB


def _draw(out: Console, folder: Path, name: str, results: Sequence[tuple[_Place, list[Replay]]], best: Replay) -> None:
    curves = {
        f"{place.name} {replays[0].policy}": [(each.max_bytes, each.cost_saved) for each in replays]
        for place, replays in results
    }
    sizes = {size: size_word(size) for points in curves.values() for size, _ in points}
    file = folder / f"{name.replace(' ', '-')}.png"
    picture = draw(f"{name}: saved by size", curves, unit="device seconds saved", ceiling=best.cost_saved, sizes=sizes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    except OSError as error:
        raise click.ClickException(f"{file}: cannot be written: {error.strerror}") from None
    out.print(f"chart: {file}")
