"""Savings: device time saved and spent, and what looking costs, stage by stage, tier by tier, tenant by tenant."""

from __future__ import annotations

import re
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from cache.description import Scope
from cache.digest import Digest
from cache.keys import Address, Principal, namespace
from cache.record import Output, Record
from cache.tier import Lookup, TierName
from cache.tier import Outcome as Looked
from gateway.answer import Answer, Outcome
from gateway.cli.savings import Sum, advice, draw, summed
from gateway.identity import hash_key
from gateway.savings import OTHER, Savings
from reprise.v1 import cache_pb2
from reprise.v1 import common_pb2 as pb
from tests.gateway.test_cli import run
from tests.gateway.worker import COSTS, WHOLE_COST
from tests.gateway.world import SECRET, Desk, World, outcome

RUN, REUSED, NOT_NEEDED = pb.STAGE_OUTCOME_RUN, pb.STAGE_OUTCOME_REUSED, pb.STAGE_OUTCOME_NOT_NEEDED
ADDRESS = Address("0" * 32, "1" * 64)


async def table(desk: Desk) -> dict[tuple[str, str], cache_pb2.SavingsRow]:
    """Rows by stage and tier."""
    answer = await desk.client.savings()
    return {(row.stage, pb.Tier.Name(row.tier).removeprefix("TIER_")): row for row in answer.rows}


async def test_every_second_is_on_an_account(world: World) -> None:
    """What ran, what was had from which tier, what was saved by joining: the sums are those of the answers."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await desk.stored(await desk.animate())
    gate = worker.hold("step")
    two = [desk.follow("a dog") for _ in range(2)]
    for each in two:
        await each.seen("queued")
    gate.open()
    media = [await each.media() for each in two]
    media += [await desk.animate("a dog"), await desk.animate("a dog", playback_fps=24)]
    rows = await table(desk)

    spent = {stage: row.device_seconds_spent for (stage, tier), row in rows.items() if tier == "UNSPECIFIED"}
    assert {"text": 0.5, "picture": 0.5, "denoise": 8.0, "render": 0.75, "tokens": 0.0, "negative_tokens": 0.0} == spent
    assert (1, WHOLE_COST) == (rows["render", "L1"].reused, rows["render", "L1"].device_seconds_saved)
    joined = rows["render", "UNSPECIFIED"]
    assert (1, WHOLE_COST, 3) == (joined.reused, joined.device_seconds_saved, joined.ran)
    reused = [(stage, row.reused) for (stage, tier), row in rows.items() if row.reused and tier in ("L2", "L3")]
    assert [("denoise", 1), ("negative_tokens", 1), ("picture", 1)] == sorted(reused)
    saved = sum(row.device_seconds_saved for row in rows.values())
    stats = await desk.client.stats()
    assert saved == pytest.approx(stats.device_seconds_saved)
    assert sum(spent.values()) == pytest.approx(stats.device_seconds_spent)
    assert await desk.metric(
        "reprise_savings_device_seconds_saved_total", tenant=OTHER, model="small", stage="render", tier="l1"
    ) == pytest.approx(WHOLE_COST)


async def test_lookups_are_counted_where_they_were_made(world: World) -> None:
    """For the result, in each tier that was asked; for stages that a gateway can name, likewise; each takes time."""
    desk = await world.desk(await world.worker())
    await desk.stored(await desk.animate())
    await desk.animate()
    rows = await table(desk)

    counts = {key: row.lookups for key, row in rows.items() if row.lookups}
    assert {("render", "L1"): 2, ("render", "L2"): 1, ("render", "L3"): 1} == {
        key: count for key, count in counts.items() if key[0] == "render"
    }
    assert counts["picture", "L2"] == counts["picture", "L3"] == 1
    assert all(row.lookup_seconds > 0 for row in rows.values() if row.lookups)
    assert 2.0 == await desk.metric(
        "reprise_savings_lookups_total", tenant=OTHER, model="small", stage="render", tier="l1"
    )


async def test_what_is_bypassed_saves_nothing(world: World) -> None:
    """It is spent, nothing is looked up for it, nothing saved by it."""
    desk = await world.desk(await world.worker())
    await desk.animate(policy={"mode": pb.CachePolicy.MODE_BYPASS})
    rows = await table(desk)
    assert {"UNSPECIFIED"} == {tier for _, tier in rows}
    totals = [(row.device_seconds_saved, row.lookups) for row in rows.values()]
    assert {(0.0, 0)} == set(totals)
    assert WHOLE_COST == sum(row.device_seconds_spent for row in rows.values())


async def test_tenants_are_told_apart_if_operators_say_so(world: World, tmp_path: Path) -> None:
    """Under their namespace, never their name; all others together, so that their number has no effect."""
    keys = tmp_path / "keys.yaml"
    callers = [("op", "ops", "true"), ("ann", "a", "false"), ("bob", "b", "false"), ("cid", "c", "false")]
    keys.write_text(
        "\n".join(
            f"- {{key_sha256: {hash_key(user)!r}, tenant: {tenant}, user: {user}, operator: {operator}}}"
            for user, tenant, operator in callers
        )
    )
    identity = {"mode": "api_keys", "file": keys}
    desk = await world.desk(await world.worker(), identity=identity, api_key="op", savings_tenants=["a"])
    for user in ("ann", "bob", "cid"):
        client = await desk.connect(api_key=user)
        await desk.follow(client=client).media()
    spent: defaultdict[str, float] = defaultdict(float)
    for row in (await desk.client.savings()).rows:
        spent[row.tenant] += row.device_seconds_spent
    own = namespace(bytes.fromhex(SECRET), Scope.TENANT, Principal("a"))
    assert {own: WHOLE_COST, OTHER: 2 * WHOLE_COST - 2 * COSTS["picture"]} == spent


# By itself.


def answer(outcome: Outcome, *stages: pb.StageReport, total: float = 10.0, **fields: Any) -> Answer:
    record = Record(
        address=ADDRESS,
        model="m",
        revision="1",
        stage="file",
        fingerprint="1",
        output=Output(Digest("2" * 64, 1), "video/mp4"),
        device_seconds=1.0,
        total_device_seconds=total,
        made_at=0.0,
        touched_at=0.0,
        ttl=60.0,
        expires_at=60.0,
        tags=fields.pop("tags", ()),
    )
    return Answer(outcome, record, ADDRESS, fields.pop("lookups", ()), stages, **fields)


def row_of(savings: Savings, stage: str, tier: pb.Tier) -> cache_pb2.SavingsRow:
    (row,) = (row for row in savings.message(1.0).rows if (row.stage, row.tier) == (stage, tier))
    return row


def test_what_was_not_needed_is_saved_by_what_made_it_so() -> None:
    """The deepest output that was reused stands for all before it."""
    savings = Savings(CollectorRegistry())
    savings.enter(
        "t",
        answer(
            Outcome.MISS,
            pb.StageReport(stage="text", outcome=NOT_NEEDED),
            pb.StageReport(stage="voice", outcome=REUSED, tier=pb.TIER_POOL, device_seconds=0.5),
            pb.StageReport(stage="latents", outcome=REUSED, tier=pb.TIER_L2, device_seconds=6.0),
            pb.StageReport(stage="file", outcome=RUN, device_seconds=1.0),
        ),
    )
    assert 0.5 == row_of(savings, "voice", pb.TIER_POOL).device_seconds_saved
    assert 8.5 == row_of(savings, "latents", pb.TIER_L2).device_seconds_saved
    assert 1.0 == row_of(savings, "file", pb.TIER_UNSPECIFIED).device_seconds_spent


def test_a_tier_that_was_not_asked_has_no_account() -> None:
    """Resting or switched off, it took nobody's time."""
    savings = Savings(CollectorRegistry())
    asked = [
        Lookup(TierName.L1, Looked.OFF, None, 0, 0.1),
        Lookup(TierName.L2, Looked.SKIPPED, None, 0, 0.1),
        Lookup(TierName.L3, Looked.TIMEOUT, None, 0, 0.5),
    ]
    stage = pb.StageReport(stage="file", outcome=RUN, device_seconds=1.0)
    stage.lookups.add(tier=pb.TIER_L2, outcome=pb.LOOKUP_OUTCOME_SKIPPED, seconds=1.0)
    savings.enter("t", answer(Outcome.MISS, stage, lookups=asked))
    assert [pb.TIER_L3] == [row.tier for row in savings.message(1.0).rows if row.lookups]


def test_an_answer_without_reports_is_on_no_account() -> None:
    """And fails nobody."""
    savings = Savings(CollectorRegistry())
    savings.enter("t", answer(Outcome.MISS))
    assert [] == list(savings.message(1.0).rows)


def test_followers_do_not_pay_twice() -> None:
    """Who joined spent nothing and looked for no stage: that is on the account of who began."""
    savings = Savings(CollectorRegistry())
    stage = pb.StageReport(stage="file", outcome=RUN, device_seconds=1.0)
    stage.lookups.add(tier=pb.TIER_L2, outcome=pb.LOOKUP_OUTCOME_MISS, seconds=1.0)
    savings.enter("t", answer(Outcome.COALESCED, stage))
    (row,) = savings.message(1.0).rows
    assert (1, 10.0, 0, 0.0, 0) == (
        row.reused,
        row.device_seconds_saved,
        row.ran,
        row.device_seconds_spent,
        row.lookups,
    )


# The command.


def rows(*said: tuple[str, pb.Tier, float, float]) -> list[cache_pb2.SavingsRow]:
    return [
        cache_pb2.SavingsRow(
            model="m", stage=stage, tier=tier, device_seconds_saved=saved, lookups=3, lookup_seconds=seconds, reused=1
        )
        for stage, tier, saved, seconds in said
    ]


def test_rows_are_summed_and_losses_found() -> None:
    """By any of their dimensions; a loss is what takes longer to look for than it saves."""
    said = rows(("a", pb.TIER_L1, 5.0, 1.0), ("a", pb.TIER_L2, 1.0, 8.0), ("b", pb.TIER_L2, 3.0, 0.5))
    by_stage = summed(said, lambda row: row.stage)
    assert [("b", 2.5, False), ("a", -3.0, True)] == [(each.name, each.net, each.loses) for each in by_stage]
    assert not Sum("spent only", ran=1, spent=9.0).loses


def test_a_drawing_shows_what_is_more() -> None:
    """Bars of saved time are as long as the time is."""
    one, two = (
        Image.open(BytesIO(draw([("by stage", [Sum("a", saved=seconds), Sum("b", saved=10.0)])]))).convert("RGB")
        for seconds in (2.5, 5.0)
    )
    assert green(one) < green(two)
    assert Image.open(BytesIO(draw([]))).size[1] > 0


def green(image: Image.Image) -> int:
    colours = {colour: count for count, colour in image.getcolors(1_000_000) or ()}
    return colours[46, 125, 50]


async def test_reprise_savings(world: World, tmp_path: Path) -> None:
    """Prints sums of several gateways, names what is not worth its lookups, and draws."""
    worker = await world.worker()
    one, two = await world.desk(worker), await world.desk(worker)
    await one.stored(await one.animate())
    assert "hit from L2" == outcome(await two.animate())
    png = tmp_path / "savings.png"

    told = await run("savings", "--address", f"{one.address},{two.address}", "--png", png)

    assert 0 == told.exit_code
    lines = [line.split() for line in told.stdout.splitlines()]
    (render,) = (line for line in lines if line[:1] == ["render"])
    assert ["render", "1", "5.000", "1", "0.250"] == render[:5]
    assert re.search(r"^tier l3: \d+ lookups took .* `reprise switch tier l3 off` saves the wait", told.stdout, re.M)
    assert "stage render: " not in told.stdout
    assert "made ahead: 0 results" in told.stdout
    with Image.open(png) as drawn:
        assert "PNG" == drawn.format


def test_what_a_stage_saves_is_judged_as_what_it_is() -> None:
    """Stages are looked for together, so nobody is told to do without one; a tier can be switched off, at a price."""
    told = advice("stage", Sum("text", lookups=3, lookup_seconds=0.25))
    assert told.startswith(
        "3 lookups took 0.25 s, and what they found saved 0 s of a device so far: it was not found again"
    )
    assert "is cheap to make" in advice("stage", Sum("text", reused=2, saved=0.1, lookups=3, lookup_seconds=0.25))
    assert "`reprise switch tier l2 off`" in advice("tier", Sum("l2", lookups=3, lookup_seconds=0.25))
    assert "off" not in advice("tier", Sum("pool", lookups=3, lookup_seconds=0.25)).replace("so far", "")


async def test_a_chart_is_not_drawn_among_the_sums() -> None:
    """Standard output has those. Nor is a file of that name written."""
    for name in ("-", "./-"):
        told = await run("savings", "--png", name)
        assert (2, b"") == (told.exit_code, told.stdout_bytes)
        assert "--png" in told.stderr
        assert "name a file" in told.stderr


async def test_savings_without_a_gateway_says_so(tmp_path: Path) -> None:
    """Like every command."""
    told = await run("savings", "--address", "127.0.0.1:1")
    assert (1, True) == (told.exit_code, "no gateway answers at 127.0.0.1:1" in told.stderr)
