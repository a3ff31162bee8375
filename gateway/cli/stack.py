"""`reprise up` and `reprise down`: everything real, on this machine, in one command."""

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from gateway.cli.options import USUAL_ADDRESS
from gateway.stack import Running, Stack, StackError
from gateway.stack.envoy import playground
from gateway.stack.local import FAMILIES, SMALL, USUAL, compose, refuse_missing
from gateway.stack.ports import LOOPBACK

_REMIND_EVERY = 10.0  # seconds between two lines about the same wait, where no spinner can turn

USUAL_DATA = Path(".reprise")
data_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--data",
    envvar="REPRISE_DATA",
    type=click.Path(file_okay=False, path_type=Path),
    default=USUAL_DATA,
    show_default=True,
    help="Where the stack keeps everything. [env: REPRISE_DATA]",
)


@click.command()
@data_option
@click.option("--gateways", type=click.IntRange(min=1), default=2, show_default=True, help="How many gateways.")
@click.option("--workers", type=click.IntRange(min=0), default=2, show_default=True, help="How many inference servers.")
@click.option("--port", type=click.IntRange(1, 65535), default=7400, show_default=True, help="Of the first gateway.")
@click.option(
    "--web-port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Of Envoy: gRPC and grpc-web for all gateways, and the playground. 0: no Envoy.",
)
@click.option(
    "--model",
    "chosen",
    type=click.Choice(SMALL),
    multiple=True,
    help="Which small models, of the true architecture and with random weights, the inference servers have: one for "
    f"pictures, one for speech. [default: {', '.join(USUAL.values())}]",
)
def up(data: Path, gateways: int, workers: int, port: int, web_port: int, chosen: tuple[str, ...]) -> None:
    """Start Redis, an S3 server, workers, gateways and Envoy."""
    console = Console(highlight=False)
    with shown(console) as watch, _said():
        stack = Stack(data, watch)
        stack.refuse_twice()
        families = _by_task(chosen)
        refuse_missing(workers=workers, web_port=web_port or None, families=families)
        parts = compose(
            data, port=port, gateways=gateways, workers=workers, web_port=web_port or None, families=families
        )
        running = stack.up(parts)
    console.print(_table(running, data.absolute()))
    console.print(f"\nEverything it keeps is in {data.absolute()}", soft_wrap=True)
    if web_port and playground():
        console.print(f"Playground: [bold]http://localhost:{web_port}[/]", soft_wrap=True)
    elif web_port:
        console.print(
            f"Playground: none; http://localhost:{web_port} has only gRPC and files. `make web` in a checkout "
            "builds it; reprise down, then reprise up serves it.",
            soft_wrap=True,
        )
    if exports := _exports(data, port):
        console.print("For the other commands, in this shell:")
        for export in exports:
            console.print(f"  {export}", soft_wrap=True)
    console.print("Next: [bold]reprise --help[/] for what it can do, [bold]reprise down[/] to stop it.", soft_wrap=True)


def _exports(data: Path, port: int) -> list[str]:
    """What a shell must know, so that other commands find this stack without options."""
    wanted = {"REPRISE_ADDRESS": f"{LOOPBACK}:{port}", "REPRISE_DATA": str(data.absolute())}
    usual = {"REPRISE_ADDRESS": USUAL_ADDRESS, "REPRISE_DATA": str(USUAL_DATA.absolute())}
    return [
        f"export {name}={shlex.quote(value)}"
        for name, value in wanted.items()
        if value != (os.environ.get(name) or usual[name])
    ]


@click.command()
@data_option
def down(data: Path) -> None:
    """Stop the stack. What it has stored stays."""
    console = Console(highlight=False)
    with shown(console) as watch, _said():
        ended = Stack(data, watch).down() if data.exists() else []
    console.print(f"Stopped: {', '.join(ended)}." if ended else f"Nothing was running in {data.absolute()}.")


class _Progress:
    """Turns a spinner on a terminal; elsewhere prints a line per step and a reminder when one takes long."""

    def __init__(self, console: Console, spin: Callable[[str], None]) -> None:
        self._console = console
        self._spin = spin
        self._last: tuple[str, str, int] | None = None

    def __call__(self, part: str, what: str, seconds: float) -> None:
        if what == "ready":
            self._console.print(f"{part}: ready in {seconds:.1f} s")
        elif self._console.is_terminal:
            self._spin(f"{part}: {what} {seconds:.0f} s")
        elif (now := (part, what, int(seconds / _REMIND_EVERY))) != self._last:
            self._last = now
            self._console.print(f"{part}: {what}" + (f", {seconds:.0f} s so far" if seconds > 1 else ""))


@contextmanager
def shown(console: Console) -> Iterator[_Progress]:
    with console.status("") as status:
        yield _Progress(console, status.update)


@contextmanager
def _said() -> Iterator[None]:
    """What went wrong is told in a sentence, not in a traceback."""
    try:
        yield
    except StackError as error:
        raise click.ClickException(str(error)) from error


def _by_task(chosen: Sequence[str]) -> Mapping[str, str]:
    """One family for each task. Raises click.UsageError for two of one."""
    named = {task: [family for family in chosen if family in families] for task, families in FAMILIES.items()}
    for families in named.values():
        if len(families) > 1:
            raise click.UsageError(f"choose one of {', '.join(families)}")
    return {task: families[0] if families else USUAL[task] for task, families in named.items()}


def _table(running: Sequence[Running], data: Path) -> Table:
    table = Table("part", "pid", "address", "log", box=None, padding=(0, 2, 0, 0))
    for each in running:
        log = each.part.log.relative_to(data) if each.part.log.is_relative_to(data) else each.part.log
        table.add_row(each.part.name, str(each.pid), each.part.address, str(log))
    return table
