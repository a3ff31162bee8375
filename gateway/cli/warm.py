"""`reprise warm`: have results made ahead, and see what that has earned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console

from gateway.cli.options import call, console, gateway_options
from gateway.cli.reports import add_up
from gateway.cli.requests import read_requests, request_file
from gateway.client import Client
from gateway.tasks import favourite_of
from reprise.v1 import cache_pb2 as pb

_LARGEST, _MOST = 48 * 1024 * 1024, 1000  # bytes and favourites of one call
_WORDS = {
    pb.WARM_OUTCOME_MADE: "made",
    pb.WARM_OUTCOME_THERE: "was there",
    pb.WARM_OUTCOME_JOINED: "being made already",
    pb.WARM_OUTCOME_OVER_BUDGET: "over budget",
    pb.WARM_OUTCOME_REFUSED: "refused",
}


@click.command()
@click.argument("files", metavar="[FILE.json]...", type=request_file, nargs=-1)
@click.option("--frequent", is_flag=True, help="And what was asked most often, of requests that may be kept.")
@click.option("--most", type=click.IntRange(1, 1000), default=20, show_default=True, help="Of what is frequent.")
@click.option(
    "--budget", type=click.FloatRange(min=0), default=0.0, help="Device seconds to spend. [default: no limit]"
)
@click.option("--tenant", default="", help="On behalf of this tenant. [default: your own]")
@click.option("--user", default="", help="On behalf of this user of the tenant.")
@click.option("--status", is_flag=True, help="Only show what making ahead has cost and earned.")
@gateway_options
def warm(
    files: tuple[Path, ...],
    frequent: bool,
    most: int,
    budget: float,
    tenant: str,
    user: str,
    status: bool,
    address: str,
    api_key: str,
) -> None:
    """Make the results of requests before they are asked, whenever no device has anything better to do.

    A file holds a request as `--save-request` of `reprise animate` and `reprise speak` writes it, or a list of them, or
    one a line.
    """
    out = console()
    if status:
        tell_earned(out, call(address, api_key, Client.savings).warm)
        return
    if not files and not frequent:
        raise click.UsageError("give files with requests, or --frequent")
    if user and not tenant:
        raise click.UsageError("give --tenant with --user")
    requests = [request for file in files for request in read_requests(file)]
    favourites = [favourite_of(request, tenant, user) for request in requests]
    calls = [pb.WarmRequest(favourites=batch, most=most, tenant=tenant) for batch in _batches(favourites)]
    if frequent:
        if not calls:
            calls.append(pb.WarmRequest(most=most, tenant=tenant))
        calls[-1].frequent = True
    call(address, api_key, lambda client: _follow(out, client, calls, budget))


def _batches(favourites: Sequence[pb.Favourite]) -> Iterator[list[pb.Favourite]]:
    """As many at once as a gateway takes: pictures are large."""
    batch: list[pb.Favourite] = []
    size = 0
    for favourite in favourites:
        if batch and (size + favourite.ByteSize() > _LARGEST or len(batch) == _MOST):
            yield batch
            batch, size = [], 0
        batch.append(favourite)
        size += favourite.ByteSize()
    if batch:
        yield batch


async def _follow(out: Console, client: Client, calls: Sequence[pb.WarmRequest], budget: float) -> None:
    """One budget for all calls, and one sum of them."""
    total, spent, done = pb.WarmSummary(), 0.0, 0
    with out.status("looking") as shown:
        for number, wanted in enumerate(calls):
            later = sum(len(each.favourites) for each in calls[number + 1 :])
            if budget and spent >= budget:
                total.over_budget += len(wanted.favourites)
                continue
            wanted.budget_device_seconds = budget and budget - spent
            async for response in client.warm(wanted):
                of = done + response.of + later
                shown.update(f"{done + response.done} of {of}, {spent + response.device_seconds_spent:.3f} device s")
                if response.HasField("warmed"):
                    out.print(f"{done + response.done:>4} of {of}: {_told(response.warmed)}", markup=False)
            spent, done = spent + response.device_seconds_spent, done + response.done
            add_up(total, response.summary)
    out.print(
        f"{total.made} made, {total.there} were there, {total.joined} joined, {total.over_budget} over budget, "
        f"{total.refused} refused; {spent:.3f} device s"
    )


def tell_earned(out: Console, earned: pb.WarmSavings) -> None:
    out.print(
        f"made ahead: {earned.made} results in {earned.device_seconds_spent:.3f} device s; "
        f"{earned.used} of what was made ahead asked for, {earned.hits} hits, {earned.device_seconds_saved:.3f} s saved"
    )


def _told(warmed: pb.Warmed) -> str:
    parts = [_WORDS[warmed.outcome]]
    if warmed.outcome == pb.WARM_OUTCOME_MADE:
        parts.append(f"{warmed.device_seconds:.3f} device s")
    if warmed.HasField("estimated_seconds"):
        parts.append(f"estimated {warmed.estimated_seconds:.3f}")
    if warmed.outcome == pb.WARM_OUTCOME_REFUSED:
        parts.append(f"{warmed.reason} {warmed.field}".rstrip())
    return ", ".join(parts)
