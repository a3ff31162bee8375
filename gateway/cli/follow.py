"""`reprise watch` and `reprise cancel`: what else can be done with a generation, by the name that was printed."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.cli.options import call, console, gateway_options, out_file, refuse_unwritable, write
from gateway.cli.telling import Live, tell
from gateway.client import Client, Media
from reprise.v1.media_pb2 import CancelResponse


@click.command()
@click.argument("name")
@click.option("--out", "-o", type=out_file, help="Write the file here; - is standard output.")
@gateway_options
def watch(name: str, address: str, api_key: str, out: Path | None) -> None:
    """Follow the generation NAME until it is stored. Ctrl-C ends the watching, not the generation."""
    if out is not None:
        refuse_unwritable(out)
    out_to = console(out)

    async def follow(client: Client) -> tuple[Media, bytes | None]:
        with Live(out_to) as live:
            media = await client.rejoin(name, on_event=live.show)
        return media, await client.fetch(media) if out is not None else None

    media, data = call(address, api_key, follow)
    if out is not None and data is not None:
        write(out, data)
    tell(out_to, media, media.result.stored.state, out)


@click.command()
@click.argument("name")
@gateway_options
def cancel(name: str, address: str, api_key: str) -> None:
    """Give up the generation NAME. It goes on if somebody else waits for it too."""

    async def give_up(client: Client) -> CancelResponse:
        return await client.cancel(name)

    finished = call(address, api_key, give_up).finished
    console().print(f"generation {name} had finished already" if finished else f"cancelled generation {name}")
