"""Rows: one step of the demo each, what it was expected to be answered by, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.table import Table

from gateway.cli.reports import tier_word
from gateway.client import Client, Media
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import Stored

OUT = Path("out/demo")
R = TypeVar("R")  # what is asked for
RUN = pb.STAGE_OUTCOME_RUN
OUTCOMES = {
    pb.OUTCOME_HIT: "hit",
    pb.OUTCOME_MISS: "miss",
    pb.OUTCOME_COALESCED: "coalesced",
    pb.OUTCOME_BYPASS: "bypass",
}


@dataclass
class Row:
    """What one step of the demo asked for, and what came of it: media, or only a report of what would come."""

    name: str
    media: Sequence[Media]
    ms: float
    generations: int
    foreseen: pb.CacheReport | None = None
    wrong: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def reports(self) -> list[pb.CacheReport]:
        return [media.report for media in self.media] or ([self.foreseen] if self.foreseen is not None else [])

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(OUTCOMES[report.outcome] for report in self.reports)

    @property
    def outcome(self) -> str:
        return next((known for known in ("miss", "bypass", "coalesced", "hit") if self.outcomes[known]), "cancelled")

    @property
    def tier(self) -> str | None:
        tiers = {tier_word(report.tier) for report in self.reports if report.outcome == pb.OUTCOME_HIT}
        return tiers.pop() if len(tiers) == 1 else None

    def stages(self, outcome: pb.StageOutcome) -> list[str]:
        named = [stage.stage for report in self.reports for stage in report.stages if stage.outcome == outcome]
        return list(dict.fromkeys(named))

    @property
    def times_run(self) -> Counter[str]:
        led = [media for media in self.media if media.report.outcome != pb.OUTCOME_COALESCED]
        return Counter(stage.stage for media in led for stage in media.report.stages if stage.outcome == RUN)

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """Of stages that work sentence by sentence: for how many they ran, and of how many."""
        parted = [stage for report in self.reports for stage in report.stages if stage.parts]
        return {stage.stage: (sum(part.outcome == RUN for part in stage.parts), len(stage.parts)) for stage in parted}

    @property
    def answered_by(self) -> str:
        if self.foreseen is not None:
            return f"foreseen: {self.outcome}"
        if not self.media:
            return self.outcome
        if self.outcome == "hit":
            return self.tier or "tiers"
        return "worker" if len(self.media) == 1 else ", ".join(f"{n} {outcome}" for outcome, n in self.outcomes.items())

    def worded(self, stage: str) -> str:
        """A stage that ran, and for how many sentences if not for all."""
        run, of = self.parts.get(stage, (1, 1))
        return stage if run == of else f"{stage} {run}/{of}"

    @property
    def saved(self) -> float:
        return sum(media.report.device_seconds_saved for media in self.media)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "outcome": self.outcome,
            "tier": self.tier,
            "stages_run": self.stages(RUN),
            "stages_reused": self.stages(pb.STAGE_OUTCOME_REUSED),
            "generations": self.generations,
            "ms": round(self.ms, 1),
            "requests": len(self.media),
            "outcomes": dict(self.outcomes),
            "device_seconds_saved": round(self.saved, 3),
            "times_run": dict(self.times_run),
            "parts_run": {stage: list(counts) for stage, counts in self.parts.items()},
        }


class Scene(Generic[R]):
    """Rows about one kind of request, asked at two gateways. Subclasses say how a request is made and sent."""

    def __init__(self, doors: Sequence[str], console: Console) -> None:
        self.doors = doors
        self.console = console
        self.rows: list[Row] = []

    def asked(self, fields: dict[str, Any]) -> R:
        """The request with these fields, and what all requests of the scene have."""
        raise NotImplementedError

    async def send(self, client: Client, request: R) -> Media:
        raise NotImplementedError

    async def row(
        self,
        name: str,
        requests: Sequence[dict[str, Any]],
        *,
        tier: str | None = None,
        run: Set[str] = frozenset(),
        not_run: Set[str] = frozenset(),
        generations: int | None = None,
        at_once: bool = False,
        ask: Callable[[Client, R], Awaitable[Media]] | None = None,
    ) -> Row:
        """`at_once` spreads the requests over both gateways."""
        self.console.print(f"[bold]{name}[/] ...")
        ask = ask or self.send
        async with Client(self.doors[0]) as client, Client(self.doors[1]) as other:
            before = await count(client, other)
            started = time.perf_counter()
            asked = [self.asked(request) for request in requests]
            if at_once:
                doors = (client, other) * len(asked)
                media = list(await asyncio.gather(*(ask(door, each) for door, each in zip(doors, asked, strict=False))))
            else:
                media = [await ask(client, each) for each in asked]
            data = [await client.fetch(each) for each in media]
            ms = (time.perf_counter() - started) * 1000
            stored = [await client.until_stored(each) for each in media]
            row = Row(name, media, ms, await count(client, other) - before)
        row.wrong += deviations(row, tier, run, not_run, generations)
        row.wrong += [f"not stored: {state}" for state in stored if state != Stored.STATE_DURABLE]
        row.wrong += [f"{len(each)} bytes do not fit L2" for each in data if len(each) >= 1024 * 1024]
        self.rows.append(row)
        for number, (each, file_data) in enumerate(zip(media, data, strict=True), start=1):
            suffix = each.result.media_type.partition(";")[0].rpartition("/")[2]
            file = OUT / (f"{name}.{suffix}" if len(media) == 1 or at_once else f"{name}-{number}.{suffix}")
            file.write_bytes(file_data)
            row.files.append(file)
            if at_once:
                break
        return row


async def count(*clients: Client) -> int:
    """Generations so far."""
    return sum([(await client.stats()).generations for client in clients])


def deviations(row: Row, tier: str | None, run: Set[str], not_run: Set[str], generations: int | None) -> list[str]:
    ran = set(row.stages(RUN))
    wrong = []
    if tier is not None and (row.tier != tier or ran or row.generations):
        wrong.append(f"expected a hit from {tier} and no stage run")
    if run - ran:
        wrong.append(f"expected to run: {sorted(run - ran)}")
    if not_run & ran:
        wrong.append(f"expected not to run: {sorted(not_run & ran)}")
    if generations is not None and row.generations != generations:
        wrong.append(f"expected {generations} generations, counted {row.generations}")
    return wrong


def table(rows: Sequence[Row]) -> Table:
    shown = Table(box=None)
    for heading in ("row", "answered by", "stages run", "stages reused"):
        shown.add_column(heading, no_wrap=heading in ("row", "answered by"))
    for heading in ("generated", "ms", "device s saved"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(
            row.name,
            row.answered_by,
            ", ".join(map(row.worded, row.stages(RUN))) or "none",
            ", ".join(row.stages(pb.STAGE_OUTCOME_REUSED)) or "none",
            str(row.generations),
            f"{row.ms:,.0f}",
            f"{row.saved:.2f}",
        )
    return shown
