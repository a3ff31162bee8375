"""`reprise inspect KEY`: where an entry lies, and how it was made."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import click
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text

from gateway.cli.options import call, console, gateway_options
from gateway.cli.reports import tier_word
from gateway.client import Client
from reprise.v1 import cache_pb2, common_pb2


@click.command()
@click.argument("key")
@gateway_options
def inspect(key: str, address: str, api_key: str) -> None:
    """Look at KEY: an address as answers name it, or the name of a record (r/...) or blob (b/...)."""

    async def ask(client: Client) -> cache_pb2.InspectResponse:
        return await client.inspect(key)

    answer = call(address, api_key, ask)
    out = console()
    out.print(f"{answer.kind} {answer.hex} in namespace {answer.namespace}")
    out.print(_copies(answer))
    if answer.HasField("record"):
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, value in _rows(answer.record):
            table.add_row(name, Text(value))
        out.print(table)


def _copies(answer: cache_pb2.InspectResponse) -> Table:
    table = Table("tier", "what it has", "bytes", "ms", box=None, padding=(0, 2, 0, 0))
    for copy in answer.copies:
        table.add_row(
            tier_word(copy.tier),
            common_pb2.LookupOutcome.Name(copy.outcome).removeprefix("LOOKUP_OUTCOME_").lower(),
            f"{copy.bytes:,}" if copy.bytes else "-",
            f"{copy.seconds * 1000:.2f}",
        )
    return table


def _rows(record: cache_pb2.RecordInfo) -> Iterator[tuple[str, str]]:
    """What there is to say; empty fields say nothing."""
    rows = [
        ("model", f"{record.model} {record.revision}".strip()),
        ("stage", record.stage),
        ("fingerprint", record.fingerprint),
        ("output", f"{record.artifact.hex}, {record.artifact.size:,} bytes, {record.media_type}"),
        ("lies", "in the record" if record.inlined else "beside it, as a blob"),
        ("device seconds", f"{record.device_seconds:.3f}; {record.total_device_seconds:.3f} with everything upstream"),
        ("made", _moment(record.made_at)),
        ("touched", f"{_moment(record.touched_at)}, gone {record.ttl.seconds:,} s later"),
        ("never served after", _moment(record.expires_at)),
        *((f"upstream {role}", content_id) for role, content_id in sorted(record.upstream.items())),
        ("tags", ", ".join(record.tags)),
        ("execution", ", ".join(f"{name} {value}" for name, value in sorted(record.execution.items()))),
        ("canonical address", record.canonical),
    ]
    return ((name, value) for name, value in rows if value)


def _moment(moment: Timestamp) -> str:
    return datetime.fromtimestamp(moment.seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
