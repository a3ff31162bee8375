"""`reprise stats`: what the cache holds and how it does."""

from __future__ import annotations

import click
from rich.table import Table

from gateway.cli.options import call, console, gateway_options
from gateway.client import Client
from reprise.v1 import cache_pb2, common_pb2

_MIB = 1024 * 1024
_SPARED = (common_pb2.OUTCOME_HIT, common_pb2.OUTCOME_COALESCED)
_ANSWERED = (common_pb2.LOOKUP_OUTCOME_HIT, common_pb2.LOOKUP_OUTCOME_MISS)


@click.command()
@gateway_options
def stats(address: str, api_key: str) -> None:
    """Show hit rates, latencies and sizes of each tier, the workers, and what was saved."""

    async def ask(client: Client) -> cache_pb2.StatsResponse:
        return await client.stats()

    answer = call(address, api_key, ask)
    out = console()
    out.print(_tiers(answer))
    out.print("hit rates are of lookups: of files, and of each stage's record where no tier has the file")
    outcomes = ", ".join(f"{each.count} {_word(common_pb2.Outcome.Name(each.outcome))}" for each in answer.requests)
    out.print(f"answers: {outcomes or 'none yet'}{_share(answer)}; generations: {answer.generations}")
    out.print(f"device time: {answer.device_seconds_spent:.3f} s spent, {answer.device_seconds_saved:.3f} s saved")
    queue = answer.write_behind
    out.print(
        f"write-behind: {queue.entries} entries ({queue.bytes / _MIB:.1f} MiB) waiting, "
        f"{queue.written} written, {queue.failed} failed, {queue.dropped} dropped"
    )
    if answer.switched_off:
        out.print(f"switched off: {', '.join(answer.switched_off)}")
    for worker in answer.workers:
        state = ("busy" if worker.busy else "idle") if worker.healthy else "not there"
        out.print(
            f"worker {worker.address}: {state}, {worker.queued} queued, pool {worker.pool_entries} entries "
            f"({worker.pool_bytes / _MIB:.1f} MiB), {', '.join(worker.models)}"
        )


def _share(answer: cache_pb2.StatsResponse) -> str:
    """Of requests, those that no device worked for, in words."""
    spared = sum(each.count for each in answer.requests if each.outcome in _SPARED)
    asked = sum(each.count for each in answer.requests)
    return f" ({spared / asked:.0%} without a generation of their own)" if asked else ""


def _tiers(answer: cache_pb2.StatsResponse) -> Table:
    table = Table("tier", "hit rate", "lookups", "p50 ms", "p99 ms", "entries", "MiB", "evicted", "breaker", box=None)
    for tier in answer.tiers:
        counts = {each.outcome: each.count for each in tier.lookups}
        answered = sum(counts.get(outcome, 0) for outcome in _ANSWERED)
        rate = f"{counts.get(common_pb2.LOOKUP_OUTCOME_HIT, 0) / answered:.0%}" if answered else "-"
        lookups = ", ".join(
            f"{count} {_word(common_pb2.LookupOutcome.Name(outcome))}" for outcome, count in sorted(counts.items())
        )
        capacity = f" of {tier.capacity_bytes / _MIB:.0f}" if tier.capacity_bytes else ""
        table.add_row(
            _word(common_pb2.Tier.Name(tier.tier)),
            rate,
            lookups or "none",
            f"{tier.p50_seconds * 1000:.2f}",
            f"{tier.p99_seconds * 1000:.2f}",
            str(tier.entries) if tier.HasField("entries") else "-",
            f"{tier.bytes / _MIB:.1f}{capacity}" if tier.HasField("bytes") else "-",
            str(tier.evictions) if tier.HasField("evictions") else "-",
            tier.breaker or "-",
        )
    return table


def _word(name: str) -> str:
    for prefix in ("LOOKUP_OUTCOME_", "OUTCOME_", "TIER_"):
        name = name.removeprefix(prefix)
    return name.lower()
