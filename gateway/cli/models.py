"""`reprise models`: which there are, what one takes, what one is before a worker loads it, and one more in the
configuration.

A model is looked at in a process of its own, which has torch.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cache.description import Description, Parameter
from cache.settings import SettingsError, read
from gateway.cli.animate import animate
from gateway.cli.options import call, config_option, console, gateway_options, word_for
from gateway.cli.speak import speak
from gateway.client import Client
from gateway.served import Served, served
from gateway.stack.local import SMALL, small_model
from gateway.tasks import ANIMATE, SPEAK
from gateway.validate import expected
from gateway.worker_models import Entry, add, entries, name_of, refuse

_COMMANDS = {ANIMATE.name: animate, SPEAK.name: speak}


@click.group()
def models() -> None:
    """Models of a deployment, and models before a worker loads them."""


def _looking(command: Callable[..., Any]) -> Callable[..., Any]:
    """What commands that look at a model are told."""
    dtypes = click.Choice(["float32", "float16", "bfloat16"])
    command = click.option("--dtype", type=dtypes, help="[default: the worker's]")(command)
    command = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")(command)
    return click.argument("source")(command)


@models.command()
@_looking
def check(source: str, device: str, dtype: str | None) -> None:
    """Say what SOURCE is: a folder, or OWNER/NAME[@REVISION] of the hub. Fails if a worker here could not serve it."""
    sys.exit(_check(source, device, dtype))


@models.command(name="add")
@_looking
@config_option
@click.option("--name", default="", help="What requests call it.  [default: the last word of SOURCE]")
def add_model(source: str, device: str, dtype: str | None, config: Path, name: str) -> None:
    """Check SOURCE as `check` does, and put it into `worker.models` of the configuration, pinned to its revision.

    The file keeps its comments and its order. A folder is written with its whole path.
    """
    name = name or name_of(source)
    try:
        refuse(config, name, dtype)
        entry = Entry(name, _checked(source, device, dtype), dtype)
        added = add(config, entry)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    if not added:
        click.echo(f"{name} is in {config} already, with this source: nothing was changed")
        return
    click.echo(f"added {name} to {config}: {entry.source}")
    if entry.of_hub and not entry.revision:
        click.echo(f"warning: {name} is not pinned to a revision: what a worker serves may change when it starts again")
    click.echo(f"next: start a worker, or restart those that run: python -m inference --config {config}")


def _checked(source: str, device: str, dtype: str | None) -> str:
    """The source as the configuration should have it. Ends the command where it does not check."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "source"
        if code := _check(source, device, dtype, "--tell", str(told)):
            raise click.exceptions.Exit(code)
        pinned = told.read_text("utf-8")
    return str(Path(source).absolute()) if Path(source).is_dir() else pinned


def _check(source: str, device: str, dtype: str | None, *more: str) -> int:
    if not importlib.util.find_spec("torch"):
        raise click.ClickException('PyTorch is not installed here: pip install "reprise[inference]"')
    options = ["--device", device, *(["--dtype", dtype] if dtype else []), *more]
    command = [sys.executable, "-P", "-m", "inference.models", "check", *options, "--", source]
    return subprocess.run(command, check=False).returncode  # noqa: S603  # our own program, no shell


def _serving(command: Callable[..., Any]) -> Callable[..., Any]:
    """What commands that tell of served models are told."""
    command = click.option("--json", "as_json", is_flag=True, help="For programs.")(command)
    return click.option(
        "--config",
        envvar="REPRISE_CONFIG",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="The deployment's YAML file. [env: REPRISE_CONFIG]",
    )(gateway_options(command))


@models.command()
@click.argument("name")
@_serving
def show(name: str, config: Path | None, address: str, api_key: str, as_json: bool) -> None:
    """Show what the model NAME takes: each parameter, how it is given, what it may be, and what it is otherwise."""
    try:
        content = read(config) if config else {}
        live, problem = _ask(address, api_key, _mapping(content, "revisions"))
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    if problem:
        raise click.ClickException(problem)
    name = _mapping(content, "aliases").get(name, name)
    if name not in live:
        raise click.ClickException(
            f"{name}: no worker serves it now; they serve {', '.join(sorted(live)) or 'nothing'}"
            + ("; their other names are known with --config" if config is None and live else "")
        )
    if (description := live[name].description) is None:
        raise click.ClickException(f"{name}: its workers cannot be asked from here: {', '.join(live[name].workers)}")
    if as_json:
        click.echo(json.dumps(_described(description), indent=2))
    else:
        _show_model(console(), description)


def _show_model(out: Console, model: Description) -> None:
    weights = ", random weights" if model.random_weights else ""
    out.print(f"{model.model}: {model.family}, revision {model.revision}{weights}", markup=False)
    out.print(f"asked for by reprise {_COMMANDS[model.task].name}", markup=False)
    for medium, recording in model.recordings.items():
        out.print(
            f"{medium}: a recording of {recording.min_seconds:g} to {recording.max_seconds:g} s, of at least "
            f"{recording.min_sample_rate:,} samples per second"
        )
    table = Table("parameter", "given by", "must be", "else", "what it is", box=None, padding=(0, 2, 0, 0))
    for parameter in model.parameters:
        default = "it must be given" if parameter.default is None else json.dumps(parameter.default, ensure_ascii=False)
        words = (parameter.name, _given_by(model, parameter), expected(parameter), default, parameter.help)
        table.add_row(*map(Text, words))
    out.print(table)


def _given_by(model: Description, parameter: Parameter) -> str:
    if parameter.extra:
        return f"--extra {parameter.name}=..."
    return word_for(parameter.name, _COMMANDS[model.task]) or "--request"


def _described(model: Description) -> dict[str, Any]:
    said = model.model_dump(
        mode="json", include={"model", "revision", "family", "task", "random_weights", "recordings"}
    )
    parameters = [
        {**parameter.model_dump(mode="json"), "given_by": _given_by(model, parameter), "must_be": expected(parameter)}
        for parameter in model.parameters
    ]
    return {**said, "parameters": parameters}


@models.command(name="list")
@_serving
def list_models(config: Path | None, address: str, api_key: str, as_json: bool) -> None:
    """Show the models of the configuration, what a gateway's workers serve of them, and the families there are."""
    try:
        content = read(config) if config else {}
        configured = entries(content)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    live, problem = _ask(address, api_key, _mapping(content, "revisions"))
    if as_json:
        click.echo(json.dumps(_for_programs(configured, live, problem), indent=2))
    else:
        _show(console(), config, configured, live, problem)


def _ask(address: str, api_key: str, pinned: Mapping[str, str]) -> tuple[dict[str, Served], str]:
    """What is served, else why that is not known: a configuration can be looked at without a gateway."""

    async def ask(client: Client) -> dict[str, Served]:
        return await served(client, pinned)

    try:
        return call(address, api_key, ask), ""
    except click.ClickException as error:
        return {}, error.message


def _mapping(content: Mapping[str, Any], setting: str) -> dict[str, str]:
    """A setting of the gateway's section that maps names."""
    section = content.get("gateway")
    names = section.get(setting) if isinstance(section, dict) else None
    return {str(name): str(value) for name, value in (names or {}).items()}


def _show(
    out: Console, config: Path | None, configured: Sequence[Entry], live: Mapping[str, Served], problem: str
) -> None:
    if not configured and config:
        out.print(f"{config} names no model: reprise models add SOURCE --config {config}", markup=False)
    for entry in configured:
        facts = [entry.source.partition("@")[0] if entry.revision else entry.source, _revision(entry)]
        out.print(f"{entry.name}: {', '.join([*facts, entry.dtype or 'dtype as the worker has it'])}", markup=False)
        if not problem:
            out.print(f"  {_told(live.get(entry.name))}", markup=False)
    for model in sorted(live.keys() - {entry.name for entry in configured}):
        out.print(f"{model}: {'not in the configuration' if config else 'served'}", markup=False)
        out.print(f"  {_told(live[model])}", markup=False)
    if problem:
        out.print(f"what is served is not known: {problem}", markup=False)
    elif not live:
        out.print("no worker serves a model now")
    out.print("families, each with a small model for trying things out:")
    for family in SMALL:
        out.print(f"  {family}: {small_model(family)}, with reprise up --model {family}", markup=False)


def _revision(entry: Entry) -> str:
    if not entry.of_hub:
        return "a folder"
    return f"revision {entry.revision}" if entry.revision else "not pinned"


def _told(model: Served | None) -> str:
    if model is None:
        return "no worker serves it"
    workers = [
        f"{address} (revision {revision or 'not told'})" if revision != model.active else address
        for address, revision in model.workers.items()
    ]
    return f"active: {model.active or 'revision not told'}, on {', '.join(workers)}"


def _for_programs(configured: Sequence[Entry], live: Mapping[str, Served], problem: str) -> dict[str, Any]:
    sources = {entry.name: entry for entry in configured}
    return {
        "models": [
            {
                "name": name,
                "configured": (entry := sources.get(name)) is not None,
                "source": entry.source if entry else None,
                "revision": (entry.revision or None) if entry else None,
                "dtype": entry.dtype if entry else None,
                "active": (live[name].active or None) if name in live else None,
                "workers": {address: revision or None for address, revision in live[name].workers.items()}
                if name in live
                else {},
            }
            for name in [*sources, *sorted(live.keys() - sources.keys())]
        ],
        "gateway": problem or "answers",
        "families": [{"name": family, "small": small_model(family)} for family in SMALL],
    }
