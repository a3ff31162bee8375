"""Which description of a model is the active one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from cache.description import Description
from cache.errors import TierError
from gateway import models as module
from gateway.errors import InvalidField, NotFound, Unavailable
from gateway.models import Models
from gateway.settings import GatewaySection
from reprise.v1.cache_pb2 import InvalidateRequest, SwitchRequest
from tests.cache.helpers import Clock
from tests.gateway.worker import family, speaker
from tests.gateway.world import World, ask, outcome, problem_of

TASK = "animate_image"


class LiveWorkers:
    """Stands for the fleet: the newest healthy worker's descriptions, and those of older ones."""

    def __init__(self, *descriptions: Description) -> None:
        self.descriptions = list(descriptions)

    def newest_description(self, model: str, revision: str | None = None) -> Description | None:
        able = [each for each in self.descriptions if each.model == model and revision in (None, each.revision)]
        return able[-1] if able else None

    def models(self) -> set[str]:
        return {each.model for each in self.descriptions}


class Shelf:
    """Stands for the catalogue, and counts how often it is looked at."""

    def __init__(self, *descriptions: Description, fault: Exception | None = None) -> None:
        self.descriptions = {each.model: each for each in descriptions}
        self.looks = 0
        self.fault = fault
        self.hang: asyncio.Event | None = None

    async def models(self) -> list[str]:
        self.looks += 1
        if self.hang is not None:
            await self.hang.wait()
        if self.fault is not None:
            raise self.fault
        return sorted(self.descriptions)

    async def active(self, model: str) -> Description | None:
        return self.descriptions.get(model)


def models_of(fleet: Any = None, shelf: Any = None, clock: Clock | None = None, **settings: Any) -> Models:
    options: dict[str, Any] = {"revisions": {}, "defaults": {}, "aliases": {}} | settings
    workers: Any = fleet or LiveWorkers()
    return Models(workers, shelf, clock=clock or Clock(), **options)


async def test_live_workers_go_before_the_catalogue() -> None:
    """And once they are gone, what they said last."""
    fleet, shelf = LiveWorkers(family(revision="live")), Shelf(family(revision="old"))
    models = models_of(fleet, shelf)
    await models.recall()
    assert "live" == (await models.describe("small", TASK)).revision
    fleet.descriptions.clear()
    assert "live" == (await models.describe("small", TASK)).revision


async def test_the_catalogue_knows_models_without_a_worker() -> None:
    """Also those that were published after the gateway started."""
    shelf, clock = Shelf(), Clock()
    models = models_of(shelf=shelf, clock=clock)
    await models.recall()
    with pytest.raises(Unavailable) as caught:
        await models.describe("small", TASK)
    assert ("NEVER_DESCRIBED", 2.0) == (caught.value.reason, caught.value.retry_after)
    shelf.descriptions["small"] = family()
    clock.advance(2.0)
    assert "small" == (await models.describe("small", TASK)).model


async def test_models_that_do_not_exist_do_not_wear_the_catalogue_out() -> None:
    """It is looked at once in two seconds, however many ask for whatever names."""
    shelf, clock = Shelf(family()), Clock()
    models = models_of(shelf=shelf, clock=clock)
    await models.recall()
    for number in range(50):
        with pytest.raises(NotFound) as caught:
            await models.describe(f"m{number}", TASK)
        assert "MODEL_UNKNOWN" == caught.value.reason
    assert 1 == shelf.looks
    clock.advance(2.0)
    with pytest.raises(NotFound):
        await models.describe("m", TASK)
    assert 2 == shelf.looks


async def test_a_configured_revision_is_the_only_one() -> None:
    """Newer ones are not taken; while nobody has described it, the model is unavailable rather than unknown."""
    fleet = LiveWorkers(family(revision="r1"), family(revision="r2"))
    assert "r2" == (await models_of(fleet).describe("small", TASK)).revision
    assert "r1" == (await models_of(fleet, revisions={"small": "r1"}).describe("small", TASK)).revision
    with pytest.raises(Unavailable):
        await models_of(fleet, revisions={"small": "r3"}).describe("small", TASK)


async def test_the_default_is_the_tasks() -> None:
    """The configured one, else the first by name that does this task."""
    fleet = LiveWorkers(family("b"), family("a", task="synthesize_speech"), family("c"))
    assert "b" == (await models_of(fleet).describe("", TASK)).model
    assert "a" == (await models_of(fleet).describe("", "synthesize_speech")).model
    assert "c" == (await models_of(fleet, defaults={TASK: "c"}).describe("", TASK)).model
    with pytest.raises(InvalidField) as caught:
        await models_of(fleet).describe("a", TASK)
    assert "model" == caught.value.field


async def test_a_model_may_have_a_name_that_its_callers_know(world: World) -> None:
    """By either name it is the same model with the same results; one that nobody serves is missed as any other."""
    worker = await world.worker(family("small"))
    desk = await world.desk(worker, aliases={"clips": "small", "films": "large"})
    made = await desk.animate(model="small")
    await desk.stored(made)
    again = await desk.animate(model="clips")

    assert ("hit from L1", made.data) == (outcome(again), again.data)
    assert "small" == worker.requests[0].model
    assert "MODEL_UNKNOWN" == (await problem_of(desk.animate(model="films"))).reason


async def test_operators_may_call_a_model_by_its_other_name(world: World) -> None:
    """What is ordered by it is of the model."""
    desk = await world.desk(await world.worker(family("small")), aliases={"clips": "small"})
    await desk.stored(await desk.animate())
    switched = await desk.client.switch(SwitchRequest(model="clips"))
    off = await desk.animate()
    await desk.client.switch(SwitchRequest(model="clips", on=True))
    *_, last = [each async for each in desk.client.invalidate(InvalidateRequest(model="clips"))]

    assert (["model small"], "bypass") == (list(switched.switched_off), outcome(off))
    assert last.receipt.outputs > 0
    assert "miss" == outcome(await desk.animate())


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("aliases", {"clips": "small", "films": "clips"}),
        ("revisions", {"clips": "r1"}),
        ("policies", [{"model": "clips", "fresh": True}]),
        ("similarity", {"models": ["clips"]}),
        ("replay", {"models": ["clips"]}),
    ],
)
def test_settings_name_models_as_workers_do(setting: str, named: Any) -> None:
    """Another name would be that of no model there; whoever writes one is told which to write."""
    content = {"aliases": {"clips": "small"}} | {setting: named}
    with pytest.raises(ValidationError, match=rf"{setting}.*: clips is another name of small: write that"):
        GatewaySection.model_validate(content)


@pytest.mark.parametrize("fault", ["error", "hang"])
async def test_a_catalogue_that_fails_is_done_without(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither fails nor holds up a gateway: what live workers say is enough."""
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    shelf = Shelf(fault=TierError("scripted"))
    if fault == "hang":
        shelf.hang = asyncio.Event()
    models = models_of(LiveWorkers(family()), shelf)
    async with asyncio.timeout(5):
        await models.recall()
    assert "small" == (await models.describe("small", TASK)).model
    assert 1 == shelf.looks


async def test_a_gateway_that_knows_nothing_says_when_to_come_back(world: World) -> None:
    """UNAVAILABLE before any worker has spoken, NOT_FOUND for a name that nobody has once they have."""
    desk = await world.desk()
    problem = await problem_of(desk.client.animate(ask(model="small")))
    assert ("UNAVAILABLE", "NEVER_DESCRIBED", 2.0) == (problem.code.name, problem.reason, problem.retry_after)
    other = await world.desk(await world.worker())
    problem = await problem_of(other.client.animate(ask(model="large")))
    assert ("NOT_FOUND", "MODEL_UNKNOWN", "model") == (problem.code.name, problem.reason, problem.field)


async def test_who_asks_for_another_model_is_told_some_that_are_served() -> None:
    """Of the task that was meant: those of workers and of the catalogue, a few if they are many."""
    fleet = LiveWorkers(speaker(), *(family(model=f"m{number}") for number in range(9)))
    models = models_of(fleet, Shelf(family(model="kept")))
    await models.recall()
    for name, task, told in (
        ("large", TASK, "served here; ask for kept, m0, m1, m2, m3, m4, m5, m6 and 2 more"),
        ("large", "synthesize_speech", "served here; ask for speaker"),
        ("m1", "synthesize_speech", "this model does another task, animate_image; ask for speaker"),
        ("", "dance", "no model does dance"),
        ("large", "dance", "no model of this name is served here; none does dance"),
    ):
        with pytest.raises((NotFound, InvalidField)) as caught:
            await models.describe(name, task)
        assert ("model", True) == (caught.value.field, caught.value.message.endswith(told)), caught.value.message


async def test_a_new_revision_is_another_model_to_the_cache(world: World) -> None:
    """The newest worker's revision is planned for and runs there; stages that did not change are reused."""
    old = await world.worker(family(revision="r1"), started_at=1.0)
    desk = await world.desk(old)
    await desk.stored(await desk.animate())
    changed = family(revision="r2")
    stages = [stage.model_copy(update={"fingerprint": f"{stage.fingerprint}x"}) for stage in changed.stages[-2:]]
    new = await world.worker(changed.model_copy(update={"stages": (*changed.stages[:-2], *stages)}), started_at=2.0)
    both = await world.desk(old, new)

    assert "miss" == outcome(await both.animate())
    assert (1, 1) == (len(old.requests), len(new.requests))
    assert {"denoise": 1, "render": 1} == dict(new.ran)
