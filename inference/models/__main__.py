"""`python -m inference.models check SOURCE`: what a model is, and whether a worker here could serve it."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import psutil

from inference.device import MIB, Device, open_device
from inference.models import FAMILIES, OF_CHECKOUTS
from inference.models.cosyvoice3.checkout import NoCheckout, enter
from inference.models.loading import compute_type
from inference.models.sources import Examined, examine


@click.group()
def main() -> None:
    """Look at models before a worker loads them."""


@main.command()
@click.argument("source")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="[default: the worker's]")
@click.option("--tell", type=click.Path(path_type=Path), hidden=True, help="Where to write the pinned source.")
def check(source: str, device: str, dtype: str | None, tell: Path | None) -> None:
    """Say what SOURCE is: a folder, or OWNER/NAME[@REVISION] of the hub. Fails if a worker here could not serve it."""
    try:
        model, opened = examine(source), open_device(device)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    place = opened.place.type
    kind = compute_type(place, dtype, model.pipeline)
    click.echo("\n".join(_told(model)))
    need, have = model.parameters * kind.itemsize, _bytes_of(opened)
    name = str(kind).removeprefix("torch.")
    click.echo(f"  weights as {name}: {_mib(need)}, on a {place} with {_mib(have)}")
    if problems := list(_problems(model, need, have)):
        raise click.ClickException("; ".join(problems))
    click.echo(f"  for a worker's configuration: {{name: NAME, source: {model.source}}}")
    if tell:
        tell.write_text(model.source, "utf-8")


def _told(model: Examined) -> list[str]:
    parts = [f"  {part.name:<16} {part.kind}, {part.parameters / 1e6:,.2f} M parameters" for part in model.parts]
    weights = "  random weights, made for trying things out" if model.random_weights else ""
    facts = [f"  licence: {model.licence or 'not stated'}", f"  revision: {model.revision or 'none, a folder'}"]
    return [f"{model.source}: {model.pipeline}", *parts, *facts, *filter(None, [weights])]


def _problems(model: Examined, need: int, have: int) -> list[str]:
    problems = []
    if model.pipeline not in FAMILIES:
        problems.append(f"it is of no known family: those are {', '.join(sorted(FAMILIES))}")
    if model.pipeline in OF_CHECKOUTS:
        try:
            enter()
        except NoCheckout as error:
            problems.append(str(error))
    if model.lacking:
        kind = "file of tensors" if model.pipeline in OF_CHECKOUTS else "safetensors file"
        problems.append(f"it has no {kind} for {', '.join(model.lacking)}")
    if need > have:
        problems.append("its weights alone do not fit")
    return problems


def _bytes_of(device: Device) -> int:
    return device.memory().total or int(psutil.virtual_memory().total)


def _mib(count: int) -> str:
    return f"{count / MIB:,.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
