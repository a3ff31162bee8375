"""`reprise trace ID`: one request's waterfall of tiers, waits and stages, drawn from the local span files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from gateway.cli.options import console
from gateway.cli.stack import data_option

_BAR = 40  # characters
_SHOWN = (
    "reprise.outcome",
    "reprise.cache.result",
    "reprise.cache.bytes",
    "reprise.stage.outcome",
    "reprise.device_seconds",
    "server.address",
    "reprise.worker.elsewhere",
)


@dataclass(frozen=True)
class _Span:
    name: str
    id: str
    parent: str | None
    service: str
    start: float  # seconds since the epoch
    end: float
    attributes: dict[str, Any]
    failed: bool


@click.command()
@click.argument("trace_id")
@data_option
def trace(trace_id: str, data: Path) -> None:
    """Draw the request that `reprise animate` named TRACE_ID."""
    spans = list(_read(data / "spans", trace_id.lower()))
    if not spans:
        raise click.ClickException(
            f"no spans of trace {trace_id} in {data.absolute() / 'spans'}: is it the right --data, and was it sampled?"
        )
    console().print(_waterfall(spans))


def _read(folder: Path, trace_id: str) -> Iterator[_Span]:
    for file in sorted(folder.glob("*.jsonl*")):
        with file.open() as lines:
            for line in lines:
                if trace_id in line and (span := _parse(line, trace_id)) is not None:
                    yield span


def _parse(line: str, trace_id: str) -> _Span | None:
    try:
        fields = json.loads(line)
    except ValueError:
        return None  # a line that is being written
    if fields["context"]["trace_id"].removeprefix("0x") != trace_id:
        return None
    return _Span(
        name=fields["name"],
        id=fields["context"]["span_id"],
        parent=fields["parent_id"],
        service=fields["resource"]["attributes"].get("service.instance.id", ""),
        start=_seconds(fields["start_time"]),
        end=_seconds(fields["end_time"]),
        attributes=fields["attributes"],
        failed=fields["status"]["status_code"] == "ERROR",
    )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _waterfall(spans: Sequence[_Span]) -> Table:
    origin, end = min(span.start for span in spans), max(span.end for span in spans)
    table = Table("span", "where", "start ms", "ms", "", "", box=None, padding=(0, 1, 0, 0))
    for span, depth in _in_order(spans):
        table.add_row(
            Text("  " * depth + span.name, style="red" if span.failed else ""),
            span.service,
            f"{(span.start - origin) * 1000:.1f}",
            f"{(span.end - span.start) * 1000:.1f}",
            _bar(span, origin, max(end - origin, 1e-9)),
            _details(span),
        )
    return table


def _in_order(spans: Sequence[_Span]) -> Iterator[tuple[_Span, int]]:
    known = {span.id for span in spans}

    def below(parent: str | None, depth: int) -> Iterator[tuple[_Span, int]]:
        children = [span for span in spans if (span.parent if span.parent in known else None) == parent]
        for child in sorted(children, key=lambda span: span.start):
            yield child, depth
            yield from below(child.id, depth + 1)

    return below(None, 0)


def _bar(span: _Span, origin: float, total: float) -> Text:
    left = min(_BAR - 1, int((span.start - origin) / total * _BAR))
    width = max(1, min(_BAR - left, round((span.end - span.start) / total * _BAR)))
    return Text(" " * left + ("░" if _reused(span) else "█") * width, style="red" if span.failed else "cyan")


def _reused(span: _Span) -> bool:
    return bool(span.attributes.get("reprise.stage.outcome") == "reused")


def _details(span: _Span) -> str:
    shown = []
    reused = _reused(span)
    for name in (*_SHOWN, "reprise.cache.tier") if reused else _SHOWN:
        value = span.attributes.get(name)
        if value not in (None, "", 0):
            saved = reused and name == "reprise.device_seconds"
            label = "device seconds saved" if saved else name.rpartition(".")[2].replace("_", " ")
            shown.append(f"{label} {value:.3f}" if isinstance(value, float) else f"{label} {value}")
    return ", ".join(shown)
