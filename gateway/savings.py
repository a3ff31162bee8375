"""Savings: what reuse saved and what looking for it cost, by stage, tier, model and tenant. Feeds Prometheus and the
operators' Savings from one place.

Two kinds of seconds meet here. Saved and spent is device time, from measured costs. A lookup costs no device: it is
wall time that a request waited for it. An output that is looked for longer than it would take to make is not worth it,
whichever machine it is that waits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cache.bounded import Bounded
from cache.keys import Address
from cache.tags import WARMED
from cache.tier import Outcome as LookupOutcome
from cache.tier import TierName
from gateway.answer import Answer, Outcome, tier_message, tier_name
from gateway.parts import is_repeat
from reprise.v1 import cache_pb2
from reprise.v1 import common_pb2 as pb

OTHER = "other"  # tenants that no setting names share one row: who could name any number could ask for any number
_NOT_ASKED = (LookupOutcome.SKIPPED, LookupOutcome.OFF)
_NOT_ASKED_MESSAGES = (pb.LOOKUP_OUTCOME_SKIPPED, pb.LOOKUP_OUTCOME_OFF)
_MOST_REMEMBERED = 10_000  # results made ahead that were asked for
_DAY = 24 * 3600.0


class Account(NamedTuple):
    tenant: str
    model: str
    stage: str
    tier: TierName | None  # None: what ran, and what was saved by joining a generation


@dataclass(slots=True)
class Row:
    """See SavingsRow of the contract. Seconds throughout."""

    reused: int = 0
    saved: float = 0.0
    ran: int = 0
    spent: float = 0.0
    lookups: int = 0
    lookup_seconds: float = 0.0

    def reuse(self, seconds: float) -> None:
        self.reused += 1
        self.saved += seconds

    def run(self, seconds: float) -> None:
        self.ran += 1
        self.spent += seconds

    def look(self, seconds: float) -> None:
        self.lookups += 1
        self.lookup_seconds += seconds


@dataclass(slots=True)
class Ahead:
    """See WarmSavings of the contract."""

    made: int = 0
    spent: float = 0.0
    used: int = 0
    hits: int = 0
    saved: float = 0.0


class Savings(Collector):
    """`tenants` are the namespaces of those that have rows of their own."""

    def __init__(self, registry: CollectorRegistry, tenants: Collection[str] = ()) -> None:
        self._tenants = frozenset(tenants)
        self._rows: dict[Account, Row] = {}
        self._used: Bounded[tuple[Address, float], bool] = Bounded(max_bytes=_MOST_REMEMBERED)
        self.ahead = Ahead()
        registry.register(self)

    def enter(self, tenant: str, answer: Answer, *, warming: bool = False) -> None:
        """One answer; `warming` if nobody had asked for it, which is on account only where something was made."""
        if not answer.stages:  # a worker that says nothing of its stages leaves nothing to account for
            return
        whose = tenant if tenant in self._tenants else OTHER
        model, final = answer.record.model, answer.stages[-1].stage

        def row(stage: str, tier: TierName | None) -> Row:
            account = Account(whose, model, stage, tier)
            found = self._rows.get(account)
            if found is None:
                found = self._rows[account] = Row()
            return found

        for lookup in answer.lookups:
            if lookup.outcome not in _NOT_ASKED:
                row(final, lookup.tier).look(lookup.seconds)
        if answer.outcome is not Outcome.COALESCED:  # else these are on the account of who began it
            for report in answer.stages:
                for asked in report.lookups:
                    if asked.outcome not in _NOT_ASKED_MESSAGES:
                        row(report.stage, tier_name(asked.tier)).look(asked.seconds)
                for seconds in _ran(report):
                    row(report.stage, None).run(seconds)
        if warming and answer.outcome is not Outcome.MISS:
            return
        if warming:
            self.ahead.made += 1
            self.ahead.spent += answer.device_seconds_spent
        for stage, tier, seconds in _saved(answer):
            row(stage, tier).reuse(seconds)
        if answer.outcome is Outcome.HIT and WARMED in answer.record.tags:
            self._paid(answer)

    def _paid(self, answer: Answer) -> None:
        self.ahead.hits += 1
        self.ahead.saved += answer.device_seconds_saved
        which, now = (answer.record.canonical or answer.record.address, answer.record.made_at), answer.record.made_at
        if self._used.peek(which, now) is None:
            self.ahead.used += 1
            self._used.put(which, True, weight=1, now=now, ttl=_DAY)

    def message(self, uptime: float) -> cache_pb2.SavingsResponse:
        return cache_pb2.SavingsResponse(
            rows=[
                cache_pb2.SavingsRow(
                    model=account.model,
                    stage=account.stage,
                    tier=tier_message(account.tier),
                    tenant=account.tenant,
                    reused=row.reused,
                    device_seconds_saved=row.saved,
                    ran=row.ran,
                    device_seconds_spent=row.spent,
                    lookups=row.lookups,
                    lookup_seconds=row.lookup_seconds,
                )
                for account, row in sorted(self._rows.items(), key=lambda item: _in_order(item[0]))
            ],
            warm=cache_pb2.WarmSavings(
                made=self.ahead.made,
                device_seconds_spent=self.ahead.spent,
                used=self.ahead.used,
                hits=self.ahead.hits,
                device_seconds_saved=self.ahead.saved,
            ),
            uptime_seconds=uptime,
        )

    # For Prometheus, in the thread of whoever asks.

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        rows = list(self._rows.items())
        labels = ["tenant", "model", "stage", "tier"]
        for name, text, attribute in (
            ("reprise_savings_reused", "Outputs reused", "reused"),
            ("reprise_savings_device_seconds_saved", "Device time that reused outputs would have taken", "saved"),
            ("reprise_savings_device_seconds_spent", "Device time of stages that ran", "spent"),
            ("reprise_savings_lookups", "Lookups, of results and of stages' outputs", "lookups"),
            ("reprise_savings_lookup_seconds", "Wall time of these lookups", "lookup_seconds"),
        ):
            family = CounterMetricFamily(name, text, labels=labels)
            for account, row in rows:
                tier = account.tier.value if account.tier is not None else ""
                family.add_metric([account.tenant, account.model, account.stage, tier], getattr(row, attribute))
            yield family
        ahead = self.ahead
        yield CounterMetricFamily("reprise_warm_made", "Results made ahead", ahead.made)
        yield CounterMetricFamily("reprise_warm_device_seconds_spent", "Device time of making ahead", ahead.spent)
        yield CounterMetricFamily("reprise_warm_used", "Results made ahead and then asked for", ahead.used)
        yield CounterMetricFamily("reprise_warm_hits", "Hits on results made ahead", ahead.hits)
        yield CounterMetricFamily("reprise_warm_device_seconds_saved", "Device time of these hits", ahead.saved)


def _saved(answer: Answer) -> Iterator[tuple[str, TierName | None, float]]:
    """Stage, tier and seconds of everything that this answer did not have to make."""
    final = answer.stages[-1].stage
    match answer.outcome:
        case Outcome.HIT:
            yield final, answer.tier, answer.device_seconds_saved
        case Outcome.COALESCED:
            yield final, None, answer.device_seconds_saved
        case _:
            reused = [(report.stage, output) for report in answer.stages for output in _reused(report)]
            rest = max(0.0, answer.device_seconds_saved - sum(output.device_seconds for _, output in reused))
            for number, (stage, output) in enumerate(reused, start=1):
                # What was not even needed goes to the last one, the deepest in the graph: it stands for all before it.
                own = output.device_seconds + (rest if number == len(reused) else 0.0)
                yield stage, tier_name(output.tier), own


def _ran(report: pb.StageReport) -> list[float]:
    """Device seconds of each time that a stage ran."""
    return [each.device_seconds for each in report.parts or [report] if each.outcome == pb.STAGE_OUTCOME_RUN]


def _reused(report: pb.StageReport) -> list[pb.StageReport | pb.PartReport]:
    """Outputs of a stage that came from a tier: parts of a text count one by one, and what it says again does not."""
    if not report.parts:
        return [report] if report.outcome == pb.STAGE_OUTCOME_REUSED else []
    return [part for part in report.parts if part.outcome == pb.STAGE_OUTCOME_REUSED and not is_repeat(part)]


def _in_order(account: Account) -> tuple[str, str, str, str]:
    return account.tenant, account.model, account.stage, account.tier.value if account.tier is not None else ""
