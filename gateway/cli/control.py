"""`reprise invalidate`, `reprise switch` and `reprise pin`: what operators order."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from gateway.cli.options import call, console, gateway_options
from gateway.cli.requests import read_medium
from gateway.client import Client
from reprise.v1 import cache_pb2 as pb
from reprise.v1 import common_pb2

_TIERS = {"l1": common_pb2.TIER_L1, "l2": common_pb2.TIER_L2, "l3": common_pb2.TIER_L3}


@click.command()
@click.option("--model", default="", help="Made by this model.")
@click.option("--revision", default="", help="At this revision.")
@click.option("--stage", default="", help="Outputs of this stage, and what was made of them.")
@click.option("--tenant", default="", help="Made on behalf of this tenant.")
@click.option("--user", default="", help="Made on behalf of this user of the tenant.")
@click.option("--label", default="", help="Asked for with this label.")
@click.option("--digest", default="", metavar="HEX", help="This entry or output, and all that was made of it.")
@click.option("--picture", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Made from this picture.")
@click.option("--voice", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Made from this recording.")
@click.option("--older-than", type=click.FloatRange(min=0), metavar="SECONDS", help="Made longer ago. 0: everything.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@gateway_options
def invalidate(
    address: str,
    api_key: str,
    picture: Path | None,
    voice: Path | None,
    older_than: float | None,
    dry_run: bool,
    **said: str,
) -> None:
    """Invalidate the entries for which all of this holds, everywhere, and what was made of them."""
    request = pb.InvalidateRequest(dry_run=dry_run)
    if picture is not None:
        request.picture = read_medium(picture)
    if voice is not None:
        request.recording = read_medium(voice)
    for field, text in said.items():
        setattr(request, field, text)
    if older_than is not None:
        request.older_than.FromMilliseconds(round(older_than * 1000))
    out = console()

    async def order(client: Client) -> None:
        with out.status("looking through what is stored") as status:
            async for response in client.invalidate(request):
                if response.HasField("heard"):
                    _tell_heard(out, response.heard)
                if response.HasField("receipt"):
                    _tell_receipt(out, response, dry_run)
                else:
                    status.update(f"{response.records_read:,} records read")

    call(address, api_key, order)


@click.command()
@click.argument("subject", type=click.Choice(["tier", "model", "tenant"]))
@click.argument("name")
@click.argument("state", type=click.Choice(["on", "off"]))
@gateway_options
def switch(subject: str, name: str, state: str, address: str, api_key: str) -> None:
    """Take a tier (l1, l2, l3), a model or a tenant off the cache while everything runs, or put it back."""
    request = pb.SwitchRequest(on=state == "on")
    match subject:
        case "tier":
            if name.lower() not in _TIERS:
                raise click.BadParameter("must be l1, l2 or l3", param_hint="NAME")
            request.tier = _TIERS[name.lower()]
        case "model":
            request.model = name
        case _:
            request.tenant = name

    async def order(client: Client) -> tuple[pb.SwitchResponse, set[str]]:
        served = {model for worker in (await client.stats()).workers for model in worker.models}
        return await client.switch(request), served

    out = console()
    response, served = call(address, api_key, order)
    _tell_heard(out, response.heard)
    if request.HasField("model") and served and name not in served:
        out.print(f"[yellow]no worker serves {escape(name)} now[/]; they serve {escape(', '.join(sorted(served)))}")
    out.print(f"off: {', '.join(response.switched_off) or 'nothing'}")


@click.command()
@click.argument("pinned", metavar="ADDRESS")
@click.option("--off", is_flag=True, help="Let go of it again.")
@gateway_options
def pin(pinned: str, off: bool, address: str, api_key: str) -> None:
    """Keep an encoding on the device of every worker of its model, whatever else comes.

    ADDRESS is as reports give it; that of a video means the encodings of its picture.
    """

    async def order(client: Client) -> pb.PinResponse:
        return await client.pin(pinned, on=not off)

    out = console()
    response = call(address, api_key, order)
    _tell_heard(out, response.heard)
    out.print(f"pinned: {', '.join(response.pinned) or 'nothing'}", soft_wrap=True)


def _tell_heard(out: Console, heard: pb.Heard) -> None:
    out.print(f"heard by {len(heard.processes)} of {heard.told} processes: {_names(heard)}")
    if not heard.durable:
        out.print("[yellow]not written down[/]: a process that starts later, or is cut off now, will not know of it")


def _names(heard: pb.Heard) -> str:
    return ", ".join(
        f"{each.process} (let go of {each.entries} entries in memory)" if each.entries else each.process
        for each in heard.processes
    )


def _tell_receipt(out: Console, response: pb.InvalidateResponse, dry_run: bool) -> None:
    receipt = response.receipt
    if dry_run:
        out.print(f"{receipt.outputs} outputs would go, of {response.records_read:,} records")
        return
    out.print(f"{receipt.outputs} outputs went, of {response.records_read:,} records")
    for removal in receipt.tiers:
        out.print(f"  {_name(removal.tier)}: {removal.entries} entries, {removal.bytes:,} bytes")
    for tier in receipt.unreached:
        out.print(f"[yellow]{_name(tier)} could not be reached in full[/]: say it again")


def _name(tier: common_pb2.Tier) -> str:
    return common_pb2.Tier.Name(tier).removeprefix("TIER_")
