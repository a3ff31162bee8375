"""`reprise sizing`: how much of each memory a traffic needs, from what is recorded of it, else from assumptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from cache.accesses import read_accesses
from cache.description import Description
from cache.errors import TierError
from cache.settings import CacheSettings, SettingsError, load, read
from gateway.cli.options import address_option, addresses_in, call, console, key_option, run
from gateway.cli.sizes import Size, size_word
from gateway.cli.stack import data_option
from gateway.client import Client
from gateway.recorded import catalogue, of_encodings, of_gateways, of_models, of_results
from gateway.settings import OTHERS, GatewaySettings
from gateway.sizing import (
    FIGURES,
    OUTPUTS,
    TYPICAL,
    Asked,
    Bounds,
    Figure,
    Need,
    Sized,
    Source,
    Traffic,
    best,
    size,
)
from reprise.v1.cache_pb2 import SavingsResponse, StatsResponse

_Command = TypeVar("_Command", bound=Callable[..., Any])
_NO_SECRET = "0" * 63 + "1"  # of settings that no file gives: only their bounds are read


def _told(value: float, asked: Asked) -> str:
    match asked.unit:
        case "bytes":
            return size_word(value)
        case "share":
            return f"{value:.1%}"
    return f"{value:,.4g} {asked.unit}".rstrip() if value < 1000 else f"{value:,.0f} {asked.unit}".rstrip()


def _figure_options(command: _Command) -> _Command:
    for name, asked in reversed(list(FIGURES.items())):
        default = "worked out" if name == "encodings" else _told(asked.assumed, asked)
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            type=_type_of(asked),
            help=f"{asked.text}  [else {default}]",
        )(command)
    return command


def _type_of(asked: Asked) -> click.ParamType[Any]:
    match asked.unit:
        case "bytes":
            return Size()
        case "share":
            return click.FloatRange(0, 1)
        case "":
            return click.IntRange(min=1)
    return click.FloatRange(min=0, max=1e9)


@click.command()
@click.argument("traces", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@data_option
@click.option(
    "--config",
    envvar="REPRISE_CONFIG",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The deployment's YAML file: its bounds, and the models of its catalogue. [env: REPRISE_CONFIG]",
)
@address_option("")
@key_option
@_figure_options
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def sizing(
    traces: tuple[Path, ...],
    data: Path,
    config: Path | None,
    address: str,
    api_key: str,
    as_json: bool,
    **figures: float | None,
) -> None:
    """Say what L1, Redis, the object store and pools must hold, and how to write that into the configuration.

    TRACES are files that gateways and workers write to `telemetry.accesses_folder`; without any, those of the local
    stack, if there are. A figure that is given here counts; then what TRACES say, what gateways have counted, what the
    models' descriptions and the configuration say; the rest is assumed.
    """
    given = {name: Figure(value, Source.GIVEN) for name, value in figures.items() if value is not None}
    settings, worker = _settings(config), _worker(config)
    models, problem = _described(settings.cache if config else None)
    described = of_models(models)
    ttls = best(given, described)
    recorded = _recorded(traces, data / "accesses", ttls)
    counted = _counted(address, api_key, models)
    listed = [name for name in settings.gateway.workers if not name.startswith("dns:")]
    configured = {"workers": Figure(len(listed), Source.CONFIGURED, "gateway.workers")} if listed else {}
    traffic = best(given, recorded, counted, described, configured)
    sized = size(traffic, _bounds(settings, worker))
    if as_json:
        click.echo(json.dumps(_for_programs(traffic, sized), indent=2))
        return
    out = console()
    _show(out, traffic, sized)
    if problem:
        out.print(f"the models' descriptions are not known: {problem}", markup=False)


def _counted(address: str, api_key: str, models: Sequence[Description]) -> Mapping[str, Figure]:
    """What gateways have counted. Those of the environment are meant for every command: this one can do without."""
    try:
        return of_gateways([call(each, api_key, _ask) for each in addresses_in(address)], models) if address else {}
    except click.ClickException as error:
        if click.get_current_context().get_parameter_source("address") is not ParameterSource.ENVIRONMENT:
            raise
        click.echo(f"what gateways have counted is not known: {error.message}", err=True)
        return {}


async def _ask(client: Client) -> tuple[StatsResponse, SavingsResponse]:
    return await client.stats(), await client.savings()


def _settings(config: Path | None) -> GatewaySettings:
    if config is None:  # the defaults, whatever the environment says
        return GatewaySettings.model_construct(cache=CacheSettings.model_validate({"secret": _NO_SECRET}))
    try:
        return load(GatewaySettings, config, others=OTHERS)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def _worker(config: Path | None) -> Mapping[str, Any]:
    """The section of workers, which is theirs to judge."""
    section = read(config).get("worker") if config else {}
    return section if isinstance(section, dict) else {}


def _bounds(settings: GatewaySettings, worker: Mapping[str, Any]) -> Bounds:
    section, share = settings.gateway, worker.get("pool_share", Bounds.pool_share)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise click.ClickException(f"worker.pool_share: {share!r} is no share: write a number over 0, up to 1")
    beside = (
        settings.cache.write_behind.max_bytes,
        section.linger_bytes,
        section.max_unstored_bytes,
        section.max_departing_bytes,
        section.max_pixel_bytes,
        section.max_url_bytes,
        section.similarity.max_bytes,
    )
    return Bounds(settings.cache.l1.max_share, float(share), sum(beside))


def _described(settings: CacheSettings | None) -> tuple[list[Description], str]:
    """The models of the deployment, else why they are not known."""
    if settings is None or not settings.l3.enabled:
        return [], ""
    try:
        return run(catalogue(settings)), ""
    except (TierError, TimeoutError) as error:
        return [], f"the catalogue cannot be read ({error or 'it took too long'}): `reprise doctor` may say why"
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def _recorded(traces: Sequence[Path], folder: Path, ttls: Traffic) -> dict[str, Figure]:
    try:
        accesses = read_accesses(traces or sorted(folder.glob("*.jsonl*")))
    except OSError as error:
        raise click.ClickException(f"{error.filename}: cannot be read: {error.strerror}") from None
    found = {
        **of_encodings(accesses["stage"], ttls["encoding_ttl"]),
        **of_results(accesses["result"], ttls["result_ttl"]),
    }
    if traces and not found:
        raise click.ClickException(f"no accesses in {', '.join(map(str, traces))}: see telemetry.accesses_folder")
    return found


def _show(out: Console, traffic: Traffic, sized: Sized) -> None:
    table = Table("figure", "value", "from", "what it is of", box=None, padding=(0, 2, 0, 0))
    for name, asked in FIGURES.items():
        figure = traffic.figure(name)
        where = f"{figure.source.value}: {figure.where}" if figure.where else figure.source.value
        table.add_row(name, _told(figure.value, asked), where, asked.text)
    out.print(table)
    out.print()
    table = Table("tier", "of", "bytes", "holds", "setting", box=None, padding=(0, 2, 0, 0))
    for need in sized.needs:
        table.add_row(need.tier, need.of, size_word(need.bytes), need.holds, _written(need))
    out.print(table)
    out.print()
    for need in sized.needs:
        out.print(f"{need.tier}: {need.formula}", markup=False)
    out.print("Numbers at once are those of the average and three standard deviations more; settings are whole MiB.")
    busy, without = sized.devices.busy, sized.devices.without
    assumed = [name for name in FIGURES if traffic.figure(name).source is Source.ASSUMED]
    if assumed:
        out.print(_assumptions(assumed), markup=False)
    out.print(f"devices: {busy:,.1f} busy on average (new per second x device_seconds); without a cache {without:,.1f}")


def _assumptions(names: Sequence[str]) -> str:
    """What was taken for granted, and of what kind of traffic it would be true."""
    typical = {name: traffic for traffic, some in TYPICAL.items() for name in some}
    told = ", ".join(f"{name} (of {typical[name]})" if name in typical else name for name in names)
    return (
        f"Assumed: {told}; and that {OUTPUTS} outputs of a generation are stored: the text's encoding, final latents "
        "and the file, as of videos; of speech it is latents and a wave for each sentence. Say what you know, as with "
        "--device-seconds and --result-bytes, or name --address and the files of telemetry.accesses_folder."
    )


def _written(need: Need) -> str:
    """As it stands in the file that it is for."""
    lines = [f"{each.name}: {each.value}" for each in need.settings if each.file == "reprise.yaml"]
    lines += [f"{each.name} {each.value} in redis.conf" for each in need.settings if each.file == "redis.conf"]
    return "\n".join([*lines, *filter(None, [need.note])])


def _for_programs(traffic: Traffic, sized: Sized) -> dict[str, Any]:
    return {
        "figures": {
            name: {"value": figure.value, "unit": asked.unit, "from": figure.source.value, "where": figure.where}
            for name, asked in FIGURES.items()
            for figure in [traffic.figure(name)]
        },
        "needs": [asdict(need) | {"settings": [each._asdict() for each in need.settings]} for need in sized.needs],
        "devices": asdict(sized.devices),
    }
