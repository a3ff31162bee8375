"""A worker obeys: nothing that is banned is reused, from the pool, from the tiers or out of a plan; and what it makes
says what it was made of, so that a ban can find it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cache import tags
from cache.bans import Ban
from cache.condition import Condition
from cache.description import Scope
from cache.keys import Address, namespaces
from cache.switches import Subject, Switch
from tests.inference.worker_fixtures import ALICE, SECRET, Bench, Pixels, open_bench

PICTURE = Pixels().message().identity


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        yield bench


def ban(*marks: str, **said: str) -> Ban:
    return Ban(time.time(), Condition(tags=marks, **said))  # type: ignore[arg-type]  # checked by the callee


async def test_what_is_made_says_what_it_was_made_of(bench: Bench) -> None:
    """The media and every ancestor, at whatever distance, wherever it came from; whose it is; the caller's marks."""
    request = bench.ask()
    request.tags.append("label:spring")
    await bench.begin_request(request).end()
    made = await bench.run(fps=9)  # denoise is reused: what it was made of is known from its record

    picture, own = tags.of_media(PICTURE), namespaces(SECRET, ALICE)
    record = made.record
    moments = await bench.record_at(request.addresses["moments"])
    (denoise,) = record.upstream.values()
    assert moments is not None
    assert {
        picture,
        *map(tags.of_stage, ("tokens", "text", "moments", "denoise")),
        tags.of_tenant(own[Scope.TENANT]),
        tags.of_user(own[Scope.USER]),
        tags.of_ancestor(denoise),
        tags.of_ancestor(moments.address.content_id),
        tags.of_ancestor(moments.output.digest.hex),
    } <= set(record.tags)
    assert "label:spring" in moments.tags
    assert "label:spring" not in record.tags  # asked for by another request
    assert picture in moments.tags
    assert not any(tags.is_lineage(tag) for tag in moments.tags if tag != picture)


async def test_a_stage_without_the_picture_is_not_made_of_it(bench: Bench) -> None:
    """The text's encoding stays when the picture's is purged."""
    request = bench.ask()
    await bench.run()
    await bench.tiers.orders.give(ban(tags.of_media(PICTURE)))

    again = await bench.run()

    assert {"text": "REUSED", "moments": "RUN", "denoise": "RUN", "video": "RUN"} == {
        stage: outcome for stage, (outcome, _) in again.stages.items() if stage != "tokens"
    }
    assert Address.parse(request.addresses["video"]) == again.alias.address


async def test_the_pool_lets_go_of_what_is_banned(bench: Bench) -> None:
    """At once, and of nothing else."""
    await bench.run()
    before = len(bench.shop.pool)

    heard = await bench.tiers.orders.give(ban(stage="moments"))

    assert before - 1 == len(bench.shop.pool)
    assert heard.processes[0].gone.entries >= 1
    assert 1 == bench.model.runs["moments"]
    await bench.run(seed=2)
    assert 2 == bench.model.runs["moments"]


async def test_what_is_banned_while_it_is_leased_serves_nobody_later(bench: Bench) -> None:
    """The run that has it goes on and is kept for nobody; the next one has it made anew."""
    await bench.run()
    bench.model.gates["denoise"].close()
    running = bench.begin(seed=2)
    await bench.model.gates["denoise"].reached()

    await bench.tiers.orders.give(ban(stage="moments"))
    bench.model.gates["denoise"].open()
    told = await running.end()
    again = await bench.run(seed=2)

    assert ("REUSED", "NOT_STORED") == (told.stages["moments"][0], told.stored)
    assert ("RUN", "DURABLE") == (again.stages["moments"][0], again.stored)
    assert told.data == again.data


async def test_nobody_joins_a_run_that_began_before_a_ban(bench: Bench) -> None:
    """Equal plans before it share one run, and one that comes after it begins another."""
    bench.model.gates["denoise"].close()
    first = bench.begin(with_pixels=True)
    await bench.model.gates["denoise"].reached()

    await bench.tiers.orders.give(ban(model="gated"))
    later = bench.begin(with_pixels=True)
    await later.hears(lambda heard: bool(heard.positions))
    bench.model.gates["denoise"].open()

    assert ["NOT_STORED", "DURABLE"] == [(await first.end()).stored, (await later.end()).stored]
    assert 2 == bench.model.runs["denoise"]


async def test_a_switch_parts_nobody(bench: Bench) -> None:
    """Only what has become wrong is not shared any more."""
    bench.model.gates["denoise"].close()
    first = bench.begin(with_pixels=True)
    await bench.model.gates["denoise"].reached()

    await bench.tiers.orders.give(Switch(time.time(), Subject.TIER, "l2", on=False))
    later = bench.begin(with_pixels=True)
    bench.model.gates["denoise"].open()
    await first.end()
    await later.end()

    assert 1 == bench.model.runs["denoise"]


async def test_a_banned_record_in_a_plan_is_not_believed(bench: Bench) -> None:
    """A gateway that has not heard yet may still send it."""
    request = bench.ask(seed=2)
    await bench.run()
    moments = await bench.record_at(request.addresses["moments"])
    assert moments is not None
    request.records["moments"] = moments.to_bytes()

    await bench.tiers.orders.give(ban(stage="moments"))
    told = await bench.begin_request(request).end()

    assert "RUN" == told.stages["moments"][0]


async def test_a_part_goes_with_the_whole_picture(bench: Bench) -> None:
    """What was made of a part of a picture is made of that picture."""
    request = bench.ask()
    request.pictures["image"].part_of = "the whole"
    await bench.begin_request(request).end()

    await bench.tiers.orders.give(ban(tags.of_media("the whole")))
    again = await bench.run()

    assert {"moments": "RUN", "denoise": "RUN"} == {name: again.stages[name][0] for name in ("moments", "denoise")}
