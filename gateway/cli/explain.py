"""`reprise explain`: what a request would reuse and what it would compute, without running it."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from gateway.cli.options import call, console, gateway_options
from gateway.cli.reports import nearest_line, reason_word, tier_word
from gateway.cli.requests import read_request, request_file
from gateway.client import Client
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import ExplainResponse

_WORDS = {
    pb.STAGE_OUTCOME_REUSED: "reused",
    pb.STAGE_OUTCOME_RUN: "run",
    pb.STAGE_OUTCOME_NOT_NEEDED: "not needed",
}


@click.command()
@click.argument("first", metavar="A.json", type=request_file)
@click.argument("second", metavar="[B.json]", type=request_file, required=False)
@gateway_options
def explain(first: Path, second: Path | None, address: str, api_key: str) -> None:
    """Say what the request in A.json would be answered with; or, with B.json, what B computes again after A.

    Nothing is run, and nothing is stored. `--save-request A.json` of `reprise animate` and
    `reprise speak` writes such a file.
    """
    request, after = read_request(second or first), read_request(first) if second is not None else None

    async def ask(client: Client) -> ExplainResponse:
        return await client.explain(request, after)

    title = f"{second} after {first}" if second is not None else str(first)
    _show(console(), title, call(address, api_key, ask))


def _show(out: Console, title: str, explained: ExplainResponse) -> None:
    report = explained.report
    why = f" ({reason_word(report.reason)})" if report.reason else ""
    if not report.stages:
        out.print(f"{title}: would be refused: not cached{why}, and its policy forbids to generate", markup=False)
    else:
        outcome = pb.Outcome.Name(report.outcome).removeprefix("OUTCOME_").lower()
        out.print(f"{title}: would be a {outcome}{why}", markup=False)
        out.print(_table(report))
        out.print(f"device time: {_total(report)} to spend, {report.device_seconds_saved:.3f} s saved")
    if (line := nearest_line(report)) is not None:
        out.print(line)
    if report.outcome == pb.OUTCOME_MISS and not explained.worker_asked:
        out.print("No worker could say more: texts are judged as they are written.")


def _table(report: pb.CacheReport) -> Table:
    table = Table(box=None)
    for column in ("stage", "would be", "from", "why", "device s"):
        table.add_column(column, justify="right" if column == "device s" else "left")
    for stage in report.stages:
        source = tier_word(stage.tier) if stage.tier else "the request before"
        table.add_row(
            stage.stage,
            _becomes(stage),
            source if stage.outcome == pb.STAGE_OUTCOME_REUSED else "",
            reason_word(stage.reason) if stage.reason else "",
            _seconds(stage),
        )
    return table


def _becomes(stage: pb.StageReport) -> str:
    """What would become of a stage; of one that runs for every sentence, for how many of them."""
    same = sum(part.outcome == stage.outcome for part in stage.parts)
    of = f", {same} of {len(stage.parts)} sentences" if stage.parts else ""
    return f"{_WORDS[stage.outcome]}{of}" if stage.outcome != pb.STAGE_OUTCOME_NOT_NEEDED else _WORDS[stage.outcome]


def _seconds(stage: pb.StageReport) -> str:
    if stage.outcome == pb.STAGE_OUTCOME_NOT_NEEDED:
        return ""
    if stage.outcome == pb.STAGE_OUTCOME_RUN and not stage.estimated:
        return "unknown"
    return f"{'about ' if stage.estimated else ''}{stage.device_seconds:.3f}"


def _total(report: pb.CacheReport) -> str:
    """What is known of it: a stage of unknown cost makes it a lower bound."""
    running = [stage for stage in report.stages if stage.outcome == pb.STAGE_OUTCOME_RUN]
    if not running:
        return "0 s"
    bound = "about" if all(stage.estimated for stage in running) else "more than"
    return f"{bound} {report.device_seconds_spent:.3f} s"
