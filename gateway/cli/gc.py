"""`reprise gc`: give the durable tier's space back. Runs beside the deployment, on a schedule of the operator's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from cache.build import build_tiers
from cache.errors import TierError
from cache.gc import MARGIN, Swept, sweep
from cache.settings import CacheSettings
from cache.sweep import Gone
from gateway.cli.options import config_option, console, read_settings, run

_MIB = 1024 * 1024
_STALL = 10.0  # seconds; nobody waits for a sweep, so it waits for a busy store


@click.command()
@config_option
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option(
    "--margin",
    type=click.FloatRange(min=60.0),
    default=MARGIN,
    show_default=True,
    help="Seconds; what was written later stays, whatever it is.",
)
@click.option(
    "--most",
    type=click.IntRange(min=0),
    default=None,
    metavar="MIB",
    help="MiB that one namespace may keep: a tenant's results, or a user's uploads and encodings. What was not used "
    "for longest goes first.",
)
def gc(config: Path, dry_run: bool, margin: float, most: int | None) -> None:
    """Remove from the object store what nobody can be served with any more."""
    settings = read_settings(config).cache
    if not settings.l3.enabled:
        raise click.ClickException("cache.l3 is not enabled: there is nothing to sweep")
    out = console()
    try:
        swept = run(_sweep(settings, out, dry_run=dry_run, margin=margin, most=most))
    except TierError as error:
        raise click.ClickException(
            f"the object store failed ({error}): `reprise doctor` may say why; another sweep goes on with the rest"
        ) from None
    out.print(_table(swept, dry_run=dry_run))
    if swept.unread:
        raise click.ClickException(
            f"{swept.unread} records could not be read, so the blobs of their namespaces stayed: sweep again later"
        )


async def _sweep(settings: CacheSettings, out: Console, *, dry_run: bool, margin: float, most: int | None) -> Swept:
    patient = settings.l3.model_copy(update={"stall": max(settings.l3.stall, _STALL)})
    tiers = await asyncio.to_thread(build_tiers, settings.model_copy(update={"l3": patient}), CollectorRegistry())
    async with tiers:
        assert tiers.objects is not None  # noqa: S101  # it is enabled
        with out.status("looking") as status:

            def tell(so_far: Swept) -> None:
                total = _total(so_far)
                status.update(
                    f"{so_far.namespaces} namespaces, {so_far.kept.entries:,} entries stay, "
                    f"{total.entries:,} go ({total.bytes / _MIB:,.1f} MiB)"
                )

            return await sweep(
                tiers.objects,
                settings.secret_bytes,
                margin=margin,
                most=most * _MIB if most is not None else None,
                dry_run=dry_run,
                tell=tell,
            )


def _table(swept: Swept, *, dry_run: bool) -> Table:
    table = Table("would go" if dry_run else "gone", "entries", "MiB", box=None, padding=(0, 2, 0, 0))
    rows = {**{why.value: gone for why, gone in swept.gone.items()}, "all together": _total(swept)}
    for name, gone in {**rows, f"what stays, in {swept.namespaces} namespaces": swept.kept}.items():
        table.add_row(name, f"{gone.entries:,}", f"{gone.bytes / _MIB:,.1f}")
    return table


def _total(swept: Swept) -> Gone:
    return Gone(*map(sum, zip(*swept.gone.values(), strict=True)))
