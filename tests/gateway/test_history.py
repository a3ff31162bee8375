"""History: what each caller asked lately, shared through a real Redis, and what it lets say of a miss."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from cache import tags
from cache.bans import Ban
from cache.condition import Condition
from cache.guard import Breaker, GuardedStore
from cache.hierarchy import Found
from cache.journal import Journal
from cache.keys import Address
from cache.reason import Reason
from cache.redis import RedisStore
from cache.tier import Lookup, Outcome, TierName
from gateway.answer import reason_message, reason_name
from gateway.history import ROWS, Asked, History, Past
from gateway.plan import Plan, Policy
from gateway.reasons import Hints, Seen, seen, why_not_served, with_reasons
from gateway.stack.ports import LOOPBACK, free_port
from reprise.v1 import common_pb2 as pb
from tests.cache.helpers import SECRET, Clock
from tests.gateway.test_plan import plan

HOUR = 3600.0
RAN = ("tokens", "text", "picture", "denoise", "render")


@asynccontextmanager
async def gateway(url: str = "", clock: Clock | None = None) -> AsyncIterator[History]:
    """The history of one gateway process."""
    registry = CollectorRegistry()
    if not url:
        async with History(None, SECRET, registry, clock=clock or Clock()) as history:
            yield history
        return
    store = RedisStore.connect(url, budget=5.0, connections=2)
    guarded = GuardedStore(store, Breaker(), budget=5.0)
    async with History(Journal(store, guarded), SECRET, registry, clock=clock or Clock()) as history:
        yield history
    await guarded.aclose()


def reports(*ran: str, reused: tuple[str, ...] = ()) -> list[pb.StageReport]:
    return [
        *(pb.StageReport(stage=stage, outcome=pb.STAGE_OUTCOME_RUN, device_seconds=1.5) for stage in ran),
        *(pb.StageReport(stage=stage, outcome=pb.STAGE_OUTCOME_REUSED) for stage in reused),
    ]


def made(history: History, plan: Plan, *ran: str) -> None:
    history.answered(plan, history.recall(plan), reports(*(ran or RAN)), ran=True)


async def recalled(history: History, plan: Plan) -> Past:
    past = history.recall(plan)
    await past.known()
    return past


def differing(past: Past) -> list[str] | None:
    nearest = past.nearest()
    return list(nearest.differing) if nearest is not None else None


# What is nearest.


async def test_the_nearest_request_differs_in_the_fewest_fields() -> None:
    """Then the latest counts; fields are named as in the request, the picture too."""
    clock = Clock()
    async with gateway(clock=clock) as history:
        for each in (plan("a dog", image="i2"), plan("a dog"), plan(num_frames=8), plan(num_frames=9, seed=1)):
            made(history, each)
            clock.advance(1.0)

        assert ["num_frames"] == differing(await recalled(history, plan()))
        assert ["seed"] == differing(await recalled(history, plan(num_frames=8, seed=2)))
        assert ["image"] == differing(await recalled(history, plan("a dog", image="i3")))
        assert [] == differing(await recalled(history, plan("a dog")))
        past = await recalled(history, plan("a cow", num_frames=8))
        nearest = past.nearest()
        assert nearest is not None
        assert (["prompt"], str(plan(num_frames=8).address)) == (list(nearest.differing), nearest.address)
        assert clock.now - 2.0 == nearest.asked_at.ToNanoseconds() / 1e9


async def test_nobody_hears_of_another_callers_requests(redis_url: str) -> None:
    """Not of another tenant's, not of a colleague's; here or by way of Redis."""
    async with gateway(redis_url) as history:
        made(history, plan())
        made(history, plan("a dog", user="v"))
    async with gateway(redis_url) as other:
        assert [] == differing(await recalled(other, plan()))
        assert ["prompt"] == differing(await recalled(other, plan("a cow", user="v")))
        assert differing(await recalled(other, plan(tenant="s"))) is None


async def test_other_models_are_not_near() -> None:
    """A request for another model is no neighbour, however alike its fields are."""
    async with gateway() as history:
        made(history, plan())
        other = plan()
        other = replace(other, description=other.description.model_copy(update={"model": "large"}))
        assert differing(await recalled(history, other)) is None


# What is kept, and where.


async def test_gateways_share_it_and_each_remembers_without_redis(redis_url: str) -> None:
    """A row made here is seen there; with nobody at Redis's address this process still has its own."""
    async with gateway(redis_url) as one:
        made(one, plan("a dog"))
        assert ["prompt"] == differing(await recalled(one, plan()))
    async with gateway(redis_url) as two:
        assert ["prompt"] == differing(await recalled(two, plan()))
    async with gateway(f"redis://{LOOPBACK}:{free_port()}/0") as alone:
        made(alone, plan("a dog"))
        assert ["prompt"] == differing(await recalled(alone, plan()))


async def test_a_hit_is_noted_once_per_half_of_its_life(redis_url: str) -> None:
    """However often it is asked for; its row says that the result was there, and nothing of other stages."""
    clock = Clock()
    ttl = plan().description.final.ttl
    async with Redis.from_url(redis_url) as raw, gateway(redis_url, clock) as history:

        async def rows() -> int:
            await history._waiting.join()
            (name,) = await raw.keys("h/*")
            return int(await raw.llen(name))

        for _ in range(100):
            history.hit(plan())
        assert 1 == await rows()
        clock.advance(ttl / 2 + 1.0)
        for _ in range(100):
            history.hit(plan())
        assert 2 == await rows()
        history.answered(plan(), await recalled(history, plan()), reports(*RAN), ran=False)  # joined a run
        assert 2 == await rows()
        made(history, plan())  # what was generated is always noted: its outputs are young again
        assert 3 == await rows()
        past = await recalled(history, plan())
        assert {"render"} == set(past.asked[-1].stages)
        assert set(RAN) == set(past.asked[0].stages)
        assert dict.fromkeys(RAN, 1.5) == past.asked[0].seconds


async def test_a_hit_at_hand_is_noted_like_any_other() -> None:
    """A remembered plan holds no picture, and the row of its hit says all the same which one it was."""
    clock = Clock()
    async with gateway(clock=clock) as history:
        history.hit(plan())
        clock.advance(plan().description.final.ttl / 2 + 1.0)
        history.hit(plan().without_media())
        past = await recalled(history, plan("a dog"))
        latest, first = past.asked
        assert first.fields == latest.fields
        nearest = past.nearest()
        assert nearest is not None
        assert (["prompt"], latest.asked_at) == (list(nearest.differing), nearest.asked_at.ToNanoseconds() / 1e9)


async def test_it_is_bounded(redis_url: str) -> None:
    """Sixty-four rows of a caller, in Redis for a day; and so many bytes here, the callers unheard of longest go."""
    async with Redis.from_url(redis_url) as raw, gateway(redis_url) as history:
        for seed in range(ROWS + 20):
            made(history, plan(seed=seed))
        await history._waiting.join()
        (name,) = await raw.keys("h/*")
        assert ROWS == await raw.llen(name) == len((await recalled(history, plan())).asked)
        assert 0 < await raw.pttl(name) <= 24 * HOUR * 1000
        row = max(len(data) for data in await raw.lrange(name, 0, -1))
        assert row < 1500  # bytes
    async with gateway() as crowded:
        crowded._rows.max_bytes = 10_000
        for user in map(str, range(100)):
            made(crowded, plan(user=user))
        assert crowded._rows.bytes <= 10_000
        assert differing(await recalled(crowded, plan(user="0"))) is None
        assert [] == differing(await recalled(crowded, plan(user="99")))


async def test_a_full_queue_drops_rows_and_says_so(redis_url: str) -> None:
    """What Redis cannot take in time is dropped and counted; nobody waits, and this process remembers."""
    registry = CollectorRegistry()
    store = RedisStore.connect(redis_url, budget=5.0, connections=2)
    guarded = GuardedStore(store, Breaker(), budget=5.0)
    async with History(Journal(store, guarded), SECRET, registry, clock=Clock()) as history:
        for user in range(1024 + 10):  # before the writer has had a turn
            history.hit(plan(user=str(user)))
        assert 10.0 == registry.get_sample_value("reprise_history_dropped_total")
        assert [] == differing(await recalled(history, plan(user="1033")))
    await guarded.aclose()


async def test_a_row_that_cannot_be_written_costs_no_other(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever went wrong with it."""
    append, broken = Journal.append, [True]

    async def append_or_break(journal: Journal, *arguments: Any, **options: Any) -> None:
        if broken:
            broken.pop()
            raise RuntimeError
        await append(journal, *arguments, **options)

    monkeypatch.setattr(Journal, "append", append_or_break)
    async with gateway(redis_url) as history:
        history.hit(plan("a cat"))
        history.hit(plan("a dog"))
    async with gateway(redis_url) as other:
        assert ["prompt"] == differing(await recalled(other, plan("a fish")))


async def test_leaving_writes_what_waits(redis_url: str) -> None:
    """A row noted just before the end is there afterwards."""
    async with gateway(redis_url) as history:
        history.hit(plan("a dog"))
    async with gateway(redis_url) as other:
        assert ["prompt"] == differing(await recalled(other, plan()))


async def test_nothing_that_was_said_is_in_a_row(redis_url: str) -> None:
    """Neither a text nor a picture's identity nor a name is in any key or value; equal texts of two callers differ."""
    canary = "a canary sings at midnight"
    async with Redis.from_url(redis_url) as raw:
        async with gateway(redis_url) as history:
            for user in ("ann-of-the-mine", "bob-of-the-mine"):
                made(history, plan(canary, negative_prompt=canary, image="canary-identity", user=user))
        stored = b""
        digests = []
        for name in await raw.keys("*"):
            rows = [row for row in await raw.lrange(name, 0, -1) if isinstance(row, bytes)]
            stored += str(name).encode() + b"".join(rows)
            digests += [Asked.from_bytes(row) for row in rows]
    assert len(stored) > 500
    for word in (canary, "canary", "midnight", "of-the-mine"):
        assert word.encode() not in stored
    first, second = (row.fields for row in digests if row is not None)
    assert 16 == first["num_frames"] == second["num_frames"]
    assert 6 == len({fields[name] for fields in (first, second) for name in ("prompt", "negative_prompt", "image")})


# What is read may have been written by anybody.


ROW = Asked(
    Address("0" * 32, "1" * 64), 1.0, "small", "r1", {"seed": 1, "prompt": "d"}, {"text": "2" * 64}, {"text": 1.5}
)


def test_a_row_survives_its_bytes() -> None:
    """Written and read, it is the same."""
    assert ROW == Asked.from_bytes(ROW.to_bytes())


@pytest.mark.parametrize(
    "changed",
    [
        *({0: 2}, {1: "x"}, {1: 5}, {2: "x"}, {2: float("nan")}, {2: None}, {3: b"m"}, {4: 1}, {5: "yes"}),
        *({6: [1]}, {6: {1: 1}}, {6: {"seed": b"1"}}, {6: {"s": float("inf")}}, {6: {"s" * 65: 1}}, {6: {"s": [1]}}),
        *({6: None}, {7: {"text": "2" * 64}}, {7: {"text": None}}, {7: [b"1"]}, {8: {"text": "1"}}),
        *({2: -1.0}, {2: 1e300}, {8: {"text": -1.0}}, {8: {str(number): 1.0 for number in range(257)}}),
    ],
    ids=str,
)
def test_a_row_of_another_shape_is_skipped(changed: dict[int, Any]) -> None:
    """Another schema, a wrong type, no number: it is as if it were not there."""
    parts = msgpack.unpackb(ROW.to_bytes())
    for position, value in changed.items():
        parts[position] = value
    assert Asked.from_bytes(msgpack.packb(parts)) is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers(0, 9) | st.text(), st.lists).map(msgpack.packb))
def test_any_bytes_are_read_without_harm(data: bytes) -> None:
    """Whatever lies in Redis, reading it raises nothing."""
    assert Asked.from_bytes(data) is None


async def test_good_rows_are_found_among_bad_ones(redis_url: str) -> None:
    """Bytes that are no row hide no others; a list that is no list is no list."""
    async with gateway(redis_url) as history:
        made(history, plan("a dog"))
    async with Redis.from_url(redis_url) as raw:
        (name,) = await raw.keys("h/*")
        await raw.lpush(name, b"junk", msgpack.packb([1, 2]))
        async with gateway(redis_url) as other:
            assert ["prompt"] == differing(await recalled(other, plan()))
        await raw.set(name, "text")
        async with gateway(redis_url) as other:
            assert differing(await recalled(other, plan())) is None


async def test_names_that_are_not_of_the_request_are_not_repeated(redis_url: str) -> None:
    """A row whose fields have other names differs in all of this request's, and tells none of its own."""
    async with gateway(redis_url) as history:
        made(history, plan())
    async with Redis.from_url(redis_url) as raw:
        (name,) = await raw.keys("h/*")
        (row,) = await raw.lrange(name, 0, -1)
        parts = msgpack.unpackb(row)
        parts[6] = {"anything at all": "said", "seed": 0}
        await raw.unlink(name)
        await raw.lpush(name, msgpack.packb(parts))
    async with gateway(redis_url) as other:
        past = await recalled(other, plan())
        assert differing(past) == sorted(past.fields.keys() - {"seed"})


# Why.


@pytest.mark.parametrize(
    ("age", "store", "other", "reason"),
    [
        (10.0, True, {}, Reason.EVICTED),
        (2 * HOUR + 1, True, {}, Reason.EXPIRED),
        (10.0, False, {}, Reason.POLICY),
        (10.0, True, {"seed": 1}, Reason.NEW),
    ],
)
async def test_history_tells_new_from_gone(age: float, store: bool, other: dict[str, Any], reason: Reason) -> None:
    """Asked within its life it was evicted, before that it expired; one that was not kept says so."""
    clock = Clock()
    async with gateway(clock=clock) as history:
        first = plan()
        first = replace(first, policy=Policy(store=store))
        made(history, first)
        clock.advance(age)
        wanted = plan(**other)
        past = await recalled(history, wanted)
        assert reason is past.why(wanted.address.content_id, wanted.description.final.ttl, clock.now)


def _found(*outcomes: Outcome, lost: bool = False) -> Found:
    tiers = (TierName.L2, TierName.L3)[: len(outcomes)]
    return Found(tuple(map(Lookup, tiers, outcomes)), lost=lost)


MISS, HIT, DOWN = Outcome.MISS, Outcome.HIT, Outcome.ERROR


@pytest.mark.parametrize(
    ("policy", "found", "asked_before", "reason"),
    [
        ({}, _found(MISS, MISS), False, Reason.NEW),
        ({}, _found(MISS, MISS), True, Reason.EVICTED),
        ({}, _found(MISS, Outcome.EXPIRED), True, Reason.EXPIRED),
        ({}, _found(Outcome.CORRUPT, MISS), True, Reason.DAMAGED),
        ({}, _found(MISS, MISS, lost=True), False, Reason.EVICTED),
        ({}, _found(MISS, DOWN), False, Reason.TIER_FAILED),
        ({}, _found(DOWN, MISS), False, Reason.NEW),  # the durable tier has answered
        ({}, _found(DOWN, MISS), True, Reason.TIER_FAILED),
        ({"read": False}, _found(), True, Reason.POLICY),
        ({"max_age": 1.0}, _found(MISS, HIT), True, Reason.POLICY),
        ({"max_age": 1.0}, _found(MISS, MISS), True, Reason.EVICTED),
    ],
)
async def test_why_a_result_was_not_served(
    policy: dict[str, Any], found: Found, asked_before: bool, reason: Reason
) -> None:
    """Policy first, then what the tiers saw, then the history of the caller."""
    async with gateway() as history:
        if asked_before:
            made(history, plan())
        wanted = plan()
        wanted = replace(wanted, policy=Policy(**policy))
        past = await recalled(history, wanted)
        assert reason is why_not_served(wanted, seen(wanted, found), past, Clock().now)


@pytest.mark.parametrize("image", ["part", "whole"])
async def test_what_fell_under_a_purge_of_the_picture_says_so(image: str) -> None:
    """It was invalidated and not evicted, also where only a part of the picture was asked for."""
    async with gateway() as history:
        wanted = plan(image="part", part_of="whole")
        made(history, wanted)
        history._bans.add(Ban(Clock().now, Condition(tags=(tags.of_media(image),))))
        past = await recalled(history, wanted)
        assert Reason.INVALIDATED is why_not_served(wanted, seen(wanted, _found(MISS, MISS)), past, Clock().now)


async def test_why_stages_run() -> None:
    """What the tiers or the worker saw of a stage goes before the history; others' reports are left alone."""
    async with gateway() as history:
        made(history, plan(seed=1))
        wanted = plan()
        told = reports(*RAN, reused=("negative_tokens",))
        told[1].reason = pb.MISS_REASON_EVICTED  # by the worker
        hints = Hints(Reason.TIER_FAILED, {"picture": Seen(Reason.DAMAGED)})
        past = await recalled(history, wanted)
        mine = with_reasons(wanted, told, hints, past, Clock().now)

        assert {
            "tokens": Reason.EVICTED,  # by the history
            "text": Reason.EVICTED,
            "picture": Reason.DAMAGED,
            "denoise": Reason.NEW,
            "render": Reason.TIER_FAILED,
            "negative_tokens": None,
        } == {report.stage: reason_name(report.reason) for report in mine}
        assert pb.MISS_REASON_UNSPECIFIED == told[0].reason

        wanted = replace(wanted, policy=Policy(reuse=False))
        mine = with_reasons(wanted, told, Hints(Reason.POLICY), past, Clock().now)
        assert {Reason.POLICY, None} == {reason_name(report.reason) for report in mine}


def test_every_reason_has_its_message() -> None:
    """They have the same names, here and in the contract."""
    assert set(pb.MissReason.keys()) == {
        "MISS_REASON_UNSPECIFIED",
        *(f"MISS_REASON_{reason.name}" for reason in Reason),
    }
    assert list(Reason) == [reason_name(reason_message(reason)) for reason in Reason]
    assert (None, pb.MISS_REASON_UNSPECIFIED) == (reason_name(pb.MISS_REASON_UNSPECIFIED), reason_message(None))
