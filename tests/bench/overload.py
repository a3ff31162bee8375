"""`python -m tests.bench.overload`: what is asked is 1, 2, 4 and 8 times what the worker can do. How much of it is done
in time, how soon are the others refused, and does anybody else notice? Then all tiers are emptied under load.

Redis, the S3 server and two gateways are real. The worker is the scripted one of the tests, with one device and a line
before it: a generation takes what it takes, so what can be done is known exactly. Requests come at random, whether or
not earlier ones are answered; every one has a deadline, and our client's usual tries within it.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate, count
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import click
import grpc
import uvloop
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.table import Table

from gateway.budget import RetryBudget
from gateway.client import Client, Media
from gateway.identity import hash_key
from gateway.stack.redis import flush
from gateway.status import Problem, explain_error
from reprise.v1 import common_pb2 as pb
from reprise.v1.cache_pb2 import SwitchRequest
from tests.bench.restart import empty, request
from tests.bench.rig import Servers, serving
from tests.bench.worker import STEPS

TIMES = (1, 2, 4, 8)
LINE = 64  # runs that may wait at the worker
DEADLINE = 5.0  # seconds, of every request
WINDOW = 3  # seconds over which goodput is taken after the tiers were emptied
BACK = 0.9  # of what it was before: what counts as recovered
_GATEWAYS = ("gateway-1", "gateway-2")
_FLEET = 4  # clients, each with a budget of its own
_KNOWN = 8  # lines that are cached, asked for beside the load
_HITS, _CHECKS = 10.0, 2.0  # of them, and of health checks and operators' questions, a second
_DEMAND = 4  # times what the worker can do, where tiers are emptied
_EXPONENT = 0.9  # how steeply lines fall (Zipf), where tiers are emptied
_PEOPLE = ("noisy", "quiet", "op")


@dataclass
class Flow:
    """What became of one kind of requests."""

    asked: int = 0
    answered: list[float] = field(default_factory=list)  # seconds each took, its tries all together
    in_time: int = 0  # answers while the load lasted
    refused: Counter[str] = field(default_factory=Counter)  # requests, by the last reason
    failed: Counter[str] = field(default_factory=Counter)  # those that ended otherwise
    refusals: list[float] = field(default_factory=list)  # seconds each took, that of every try
    unsaid: int = 0  # refusals that did not say when to come again, though that helps

    async def ask(self, client: Client, line: int, until: float) -> Media | None:
        """One request, with as many tries as the client makes of it. None: it was not answered."""
        self.asked += 1
        began = attempt = time.perf_counter()

        def refused(problem: Problem, pause: float = 0.0) -> None:
            nonlocal attempt
            now = time.perf_counter()
            self.refusals.append(now - attempt)
            self.unsaid += problem.retry_after is None and problem.reason != "DEADLINE_TOO_SHORT"
            attempt = now + pause

        try:
            media = await client.animate(request(line), deadline=DEADLINE, on_retry=refused)
        except grpc.aio.AioRpcError as error:
            problem = explain_error(error)
            if problem.code is grpc.StatusCode.RESOURCE_EXHAUSTED or problem.reason == "DEADLINE_TOO_SHORT":
                refused(problem)
                self.refused[problem.reason] += 1
            else:
                self.failed[problem.reason or problem.code.name] += 1
            return None
        now = time.perf_counter()
        self.answered.append(now - began)
        self.in_time += now <= until
        return media


@dataclass
class Level:
    """One load, and what was asked beside it."""

    times: float
    capacity: float  # generations per second
    seconds: float
    load: Flow = field(default_factory=Flow)
    hits: Flow = field(default_factory=Flow)
    checks: int = 0
    checks_refused: int = 0

    @property
    def goodput(self) -> float:
        """Of what the worker can do, what was answered while the load lasted."""
        return self.load.in_time / (self.capacity * self.seconds)


@dataclass
class Recovery:
    """Requests by when they were made, in seconds since the tiers were empty, and whether they were answered."""

    flow: Flow = field(default_factory=Flow)
    asks: list[tuple[float, bool]] = field(default_factory=list)
    emptying: float = 0.0  # when that began, on the same clock
    generated: Counter[int] = field(default_factory=Counter)  # how often each line was, since then

    @property
    def before(self) -> float:
        return self.goodput(float("-inf"), self.emptying)

    @property
    def seconds(self) -> int | None:
        """After which goodput stays at 90 % of what it was, over every few seconds from then on. None: never."""
        last = int(max(at for at, _ in self.asks)) + 1 - WINDOW
        low = [at for at in range(last + 1) if self.goodput(at, at + WINDOW) < BACK * self.before]
        back = max(low, default=-1) + 1
        return back if back <= last else None

    def goodput(self, begin: float, end: float) -> float:
        """Of what was asked then, the part that was answered."""
        asked = [answered for at, answered in self.asks if begin <= at < end]
        return sum(asked) / len(asked) if asked else 1.0


class Fleet:
    """Clients of the two gateways, by whose they are."""

    def __init__(self, clients: dict[str, list[Client]], addresses: Sequence[str]) -> None:
        self.clients = clients
        self.addresses = addresses

    @property
    def operator(self) -> Client:
        return self.clients["op"][0]


@asynccontextmanager
async def fleet_of(addresses: Sequence[str]) -> AsyncIterator[Fleet]:
    one, other = addresses
    async with AsyncExitStack() as stack:
        clients: dict[str, list[Client]] = {}
        for whose in _PEOPLE:
            for number in range(_FLEET):
                address = f"{one},{other}" if number % 2 else f"{other},{one}"
                client = Client(address, api_key=whose, budget=RetryBudget())
                clients.setdefault(whose, []).append(await stack.enter_async_context(client))
        yield Fleet(clients, addresses)


async def steadily(rate: float, seconds: float, act: Callable[[int], Awaitable[object]], *, seed: int) -> None:
    """Acts so many times a second, at random and whether or not earlier ones are over; returns when all are."""
    chance = random.Random(seed)
    at, started = chance.expovariate(rate), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in count():
            if at >= seconds:
                return
            await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
            group.create_task(_act(act, number))
            at += chance.expovariate(rate)


async def _act(act: Callable[[int], Awaitable[object]], number: int) -> None:
    await act(number)


async def level(fleet: Fleet, lines: count[int], times: float, capacity: float, seconds: float) -> Level:
    """So many times what the worker can do, all of it new; beside it hits, health checks and an operator."""
    told = Level(times, capacity, seconds)
    until = time.perf_counter() + seconds
    noisy = fleet.clients["noisy"]
    async with asyncio.TaskGroup() as group:
        group.create_task(
            steadily(
                times * capacity,
                seconds,
                lambda number: told.load.ask(noisy[number % _FLEET], next(lines), until),
                seed=int(times),
            )
        )
        group.create_task(
            steadily(
                _HITS, seconds, lambda number: told.hits.ask(noisy[number % _FLEET], number % _KNOWN, until), seed=100
            )
        )
        group.create_task(steadily(_CHECKS, seconds, lambda number: _check(fleet, told), seed=200))
    return told


async def _check(fleet: Fleet, told: Level) -> None:
    """What keeps a deployment running: probes, and an operator's look at it."""
    told.checks += 1
    try:
        for address in fleet.addresses:
            async with grpc.aio.insecure_channel(address) as channel:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
        await fleet.operator.stats()
    except grpc.aio.AioRpcError:
        told.checks_refused += 1


async def neighbours(fleet: Fleet, lines: count[int], capacity: float, seconds: float) -> tuple[Flow, Flow, Flow]:
    """A quiet tenant, with a tenth of what the worker can do; first alone, then beside one with 8 times as much."""
    alone, beside, noise = Flow(), Flow(), Flow()

    async def quiet(flow: Flow, number: int) -> None:
        await flow.ask(fleet.clients["quiet"][number % _FLEET], next(lines), until)

    until = time.perf_counter() + seconds
    await steadily(capacity / 10, seconds, lambda number: quiet(alone, number), seed=1)
    until = time.perf_counter() + seconds
    noisy = fleet.clients["noisy"]
    async with asyncio.TaskGroup() as group:
        group.create_task(
            steadily(
                TIMES[-1] * capacity,
                seconds,
                lambda number: noise.ask(noisy[number % _FLEET], next(lines), until),
                seed=2,
            )
        )
        group.create_task(steadily(capacity / 10, seconds, lambda number: quiet(beside, number), seed=1))
    return alone, beside, noise


async def emptied(fleet: Fleet, servers: Servers, *, rate: float, lines: int, before: float, after: float) -> Recovery:
    """Requests for a few lines that are all cached; after `before` seconds no tier has anything, in no process."""
    first, weights = 1_000_000, list(accumulate(1 / (rank + 1) ** _EXPONENT for rank in range(lines)))
    chance = random.Random(3)
    drawn = chance.choices(range(first, first + lines), cum_weights=weights, k=round(4 * rate * (before + after)))
    told, noisy = Recovery(), fleet.clients["noisy"]
    left = iter(range(first, first + lines))

    async def fill(client: Client) -> None:
        for line in left:
            await client.animate(request(line))

    await asyncio.gather(*map(fill, noisy))
    asked: list[tuple[float, int, Media | None]] = []

    async def ask(number: int) -> None:
        at = time.perf_counter()
        asked.append((at, drawn[number], await told.flow.ask(noisy[number % _FLEET], drawn[number], float("inf"))))

    async def empty_all() -> tuple[float, float]:
        await asyncio.sleep(before)
        began = time.perf_counter()
        await fleet.operator.switch(SwitchRequest(tier=pb.TIER_L1, on=False))
        await asyncio.to_thread(empty, servers.storage)
        await asyncio.to_thread(flush, servers.storage.part("redis").part.port)
        await fleet.operator.switch(SwitchRequest(tier=pb.TIER_L1, on=True))
        return began, time.perf_counter()

    emptying = asyncio.create_task(empty_all())
    await steadily(rate, before + after, ask, seed=4)
    began, zero = await emptying
    told.emptying = began - zero
    told.asks = [(at - zero, media is not None) for at, _, media in asked]
    told.generated.update(
        line
        for at, line, media in asked
        if at >= zero and media is not None and media.report.outcome == pb.OUTCOME_MISS
    )
    return told


async def measure(
    data: Path, *, step_seconds: float, seconds: float, lines: int, after: float, console: Console
) -> dict[str, Any]:
    capacity = 1 / (STEPS * step_seconds)
    people = data / "keys.yaml"
    people.write_text(
        yaml.safe_dump(
            [
                {"key_sha256": hash_key(whose), "tenant": whose, "user": whose, "operator": whose == "op"}
                for whose in _PEOPLE
            ]
        )
    )
    section = {"identity": {"mode": "api_keys", "file": str(people)}}
    with serving(data, gateways=_GATEWAYS, step_seconds=step_seconds, line=LINE, section=section) as servers:
        async with fleet_of(servers.addresses) as fleet:
            fresh = count(100_000)
            for line in range(_KNOWN):  # so that they are cached, and what a generation costs is known
                await fleet.clients["noisy"][line % _FLEET].animate(request(line))
            levels = []
            for times in TIMES:
                console.print(f"{times} times what can be done, for {seconds:.0f} s ...")
                levels.append(await level(fleet, fresh, times, capacity, seconds))
                await asyncio.sleep(2 * STEPS * step_seconds)  # the line is empty by then: all had their deadline
            console.print("a quiet tenant beside a noisy one ...")
            alone, beside, noise = await neighbours(fleet, fresh, capacity, seconds)
            console.print("all tiers are emptied under load ...")
            recovery = await emptied(
                fleet, servers, rate=_DEMAND * capacity, lines=lines, before=seconds / 2, after=after
            )
    return {
        "capacity": capacity,
        "deadline": DEADLINE,
        "levels": [_told_level(each) for each in levels],
        "quiet": {"alone": _told(alone), "beside": _told(beside), "noisy": _told(noise)},
        "emptied": {
            "rate": _DEMAND * capacity,
            "lines": lines,
            "before": round(recovery.before, 3),
            "at_once": round(recovery.goodput(0, WINDOW), 3),
            "seconds": recovery.seconds,
            "generated": recovery.generated.total(),
            "again": recovery.generated.total() - len(recovery.generated),
            "flow": _told(recovery.flow),
        },
    }


def _told(flow: Flow) -> dict[str, Any]:
    return {
        "asked": flow.asked,
        "answered": len(flow.answered),
        "refused": dict(flow.refused),
        "failed": dict(flow.failed),
        "tries": round((flow.asked + len(flow.refusals) - flow.refused.total()) / max(1, flow.asked), 2),
        "without_a_time": flow.unsaid,
        "ms": _percentiles(flow.answered),
        "refusal_ms": _percentiles(flow.refusals),
    }


def _told_level(level: Level) -> dict[str, Any]:
    return {
        "times": level.times,
        "goodput": round(level.goodput, 3),
        "load": _told(level.load),
        "hits": _told(level.hits),
        "checks": level.checks,
        "checks_refused": level.checks_refused,
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """In milliseconds."""
    if len(seconds) < 2:
        return None
    return {"p50": round(1000 * median(seconds), 1), "p99": round(1000 * quantiles(seconds, n=100)[-1], 1)}


@click.command()
@click.option("--quick", is_flag=True, help="Seconds instead of minutes: counts to look at, not to keep.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/bench"))
def main(quick: bool, out: Path) -> None:
    """Ask for more than can be done, and empty all tiers meanwhile."""
    step_seconds, seconds, lines, after = (0.1, 4.0, 12, 10.0) if quick else (0.1, 20.0, 200, 60.0)
    console = Console(highlight=False, width=None if Console().is_terminal else 150)
    out.mkdir(parents=True, exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="reprise-overload-"))
    try:
        told = uvloop.run(
            measure(data, step_seconds=step_seconds, seconds=seconds, lines=lines, after=after, console=console)
        )
    finally:
        shutil.rmtree(data, ignore_errors=True)
    _print(console, told)
    (out / "overload.json").write_text(json.dumps(told, indent=1))
    console.print(f"\n{out / 'overload.json'} has it too", soft_wrap=True)


def _print(console: Console, told: dict[str, Any]) -> None:
    table = Table(box=None)
    for heading in ("load", "goodput", "asked", "answered", "refused", "failed", "tries", "refusal ms p50, p99"):
        table.add_column(heading, justify="right")
    for heading in ("hits ms p50, p99", "hits failed", "checks failed"):
        table.add_column(heading, justify="right")
    for each in told["levels"]:
        load, hits = each["load"], each["hits"]
        table.add_row(
            f"{each['times']}x",
            f"{each['goodput']:.0%}",
            str(load["asked"]),
            str(load["answered"]),
            f"{sum(load['refused'].values()) / load['asked']:.0%}",
            str(sum(load["failed"].values())),
            f"{load['tries']:.2f}",
            _pair(load["refusal_ms"]),
            _pair(hits["ms"]),
            str(hits["asked"] - hits["answered"]),
            f"{each['checks_refused']} of {each['checks']}",
        )
    console.print(table)
    alone, beside, emptied = told["quiet"]["alone"], told["quiet"]["beside"], told["emptied"]
    console.print(
        f"\na quiet tenant's misses: {_pair(alone['ms'])} ms alone, {_pair(beside['ms'])} ms beside a noisy one; "
        f"{beside['asked'] - beside['answered']} of {beside['asked']} not answered"
    )
    back = f"back for good after {emptied['seconds']} s" if emptied["seconds"] is not None else "never back"
    console.print(
        f"all tiers emptied at {emptied['rate']:.0f} requests/s for {emptied['lines']} lines: goodput "
        f"{emptied['before']:.0%} before, {emptied['at_once']:.0%} in the first {WINDOW} s, {back}; "
        f"{emptied['generated']} generations, {emptied['again']} of them of lines made already"
    )


def _pair(percentiles: dict[str, float] | None) -> str:
    return f"{percentiles['p50']:.0f}, {percentiles['p99']:.0f}" if percentiles else "-"


if __name__ == "__main__":
    main()
