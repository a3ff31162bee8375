"""`reprise doctor`: what is wrong with a deployment, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import yaml
from rich.console import Console
from rich.text import Text

from cache.doctor import Finding, State, fail
from cache.settings import SettingsError, load
from gateway.cli.options import address_option, addresses_in, config_option, console, run
from gateway.doctor import examine
from gateway.settings import OTHERS, GatewaySettings

_STYLES = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}


@click.command()
@config_option
@address_option("")
@click.option("--edge", metavar="URL", default="", help="An Envoy that must answer, such as http://localhost:8080.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a list of findings.")
def doctor(config: Path, address: str, edge: str, as_json: bool) -> None:
    """Look at the settings, Redis, the object store, gateways, workers and their devices. Exit code 1 if any fails."""
    findings = _findings(config, address, edge)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _show(console(), findings)
    if any(finding.state is State.FAIL for finding in findings):
        raise click.exceptions.Exit(1)


def _findings(config: Path, address: str, edge: str) -> list[Finding]:
    try:
        settings = load(GatewaySettings, config, others=OTHERS)
    except SettingsError as error:
        return [
            fail("settings", str(error), "correct the file or the environment; deploy/reprise.yaml has every setting")
        ]
    return run(
        examine(settings, file=config, addresses=addresses_in(address), edge=edge, pool_bytes=_pool_bytes(config))
    )


def _pool_bytes(config: Path) -> int | None:
    """What the file says of the pools of workers, whose section is theirs to read and to judge."""
    section = (yaml.safe_load(config.read_text("utf-8")) or {}).get("worker") or {}
    said = section.get("pool_bytes") if isinstance(section, dict) else None
    return said if isinstance(said, int) else None


def _show(out: Console, findings: Sequence[Finding]) -> None:
    for finding in findings:
        line = Text.assemble((f"{finding.state.value:4}", _STYLES[finding.state]), f"  {finding.name}: {finding.what}")
        out.print(line)
        if finding.fix:
            out.print(Text(f"      {finding.fix}"))
    counts = {state: sum(finding.state is state for finding in findings) for state in State}
    out.print(f"{counts[State.OK]} ok, {counts[State.WARN]} to think about, {counts[State.FAIL]} wrong")
