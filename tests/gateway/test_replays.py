"""Replays: what is kept grows old, is written anew while it goes on being asked, and never holds up an answer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from prometheus_client import CollectorRegistry

from cache.build import Tiers
from cache.description import Scope
from cache.keys import Principal, namespaces
from cache.purge import records
from cache.record import Record
from gateway.blueprint import Box
from gateway.control import Control
from gateway.darkroom import Darkroom
from gateway.framing import WHOLE, Framing
from gateway.plan import Plan, Policy, make_plan
from gateway.replays import STAGE, Replays
from gateway.settings import ReplaySection
from gateway.studio import Studio
from gateway.uploads import Uploads
from gateway.validate import complete
from reprise.v1.cache_pb2 import Favourite, InvalidateRequest
from tests.gateway.worker import family
from tests.gateway.world import PICTURE, SECRET, World, ask

ANN = Principal("acme", "ann")
DAY = 24 * 3600.0
SECRET_BYTES = bytes.fromhex(SECRET)


class Clock:
    """Starts three days ago, so that nothing has expired for the tiers, which know what time it is."""

    def __init__(self) -> None:
        self.now = time.time() - 3 * DAY

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def opened(world: World, clock: Clock, registry: CollectorRegistry) -> AsyncIterator[tuple[Replays, Tiers]]:
    async with AsyncExitStack() as stack:
        tiers = await world.tiers(world.cache)
        settings = ReplaySection(enabled=True)
        yield (
            await stack.enter_async_context(
                Replays(tiers, Uploads(tiers.through_memory), SECRET_BYTES, settings, registry, clock=clock)
            ),
            tiers,
        )


async def plan_of(prompt: str, revision: str = "r1", framing: Framing = WHOLE) -> Plan:
    description = family(revision=revision)
    with Darkroom() as darkroom:
        source = await darkroom.identify("0" * 32, PICTURE, framing)
    parameters = complete(description, {"prompt": prompt}, {})
    spaces = namespaces(SECRET_BYTES, ANN)
    return make_plan(description, parameters, {"image": source}, spaces, Policy(replayable=True))


async def kept(tiers: Tiers) -> list[Record]:
    return [record async for record in records(tiers, None) if record.stage == STAGE]


async def test_what_goes_on_being_asked_is_written_anew(world: World) -> None:
    """Not at every time it is asked, and early enough that it never grows too old."""
    clock = Clock()
    async with opened(world, clock, CollectorRegistry()) as (replays, tiers):
        plan, ages = await plan_of("a cat"), []
        for pause in (0.0, 0.0, 0.5 * DAY, 1.3 * DAY):
            clock.now += pause
            replays.note(plan, ANN, partial(ask, "a cat"))
            await replays.settled()
            ages.append([clock.now - record.made_at for record in await kept(tiers)])
    assert [[], [0.0], [0.5 * DAY], [0.0]] == [[round(age, 3) for age in each] for each in ages]


async def test_a_request_outlives_its_models_revision(world: World) -> None:
    """What is asked of one revision and of the next is one request, and can be made with either."""
    async with opened(world, Clock(), CollectorRegistry()) as (replays, tiers):
        for revision in ("r1", "r2"):
            replays.note(await plan_of("a cat", revision), ANN, partial(ask, "a cat", seed=7))
        await replays.settled()
        (record,) = await kept(tiers)
        assert "" == record.model == record.revision
        assert record.address.namespace not in namespaces(SECRET_BYTES, ANN).values()
        expected = Favourite(animate_image=ask("a cat", seed=7), tenant="acme", user="ann")
        assert [expected] == await replays.most_asked("acme", 5)
        assert [] == await replays.most_asked("other", 5)


async def test_what_comes_too_fast_is_left_out_and_counted(world: World) -> None:
    """A bounded number waits, of bounded size; nobody waits for them."""
    registry = CollectorRegistry()
    async with opened(world, Clock(), registry) as (replays, _):
        plan = await plan_of("a cat")
        for _ in range(300):
            replays.note(plan, ANN, partial(ask, "a cat"))
        assert 44.0 == registry.get_sample_value("reprise_replays_dropped_total")
        await replays.settled()
        other, large = await plan_of("a dog"), ask("a dog", image=bytes(16 * 1024 * 1024))
        for _ in range(5):
            replays.note(other, ANN, lambda: large)
        assert 46.0 == registry.get_sample_value("reprise_replays_dropped_total")


async def test_a_part_of_a_picture_goes_with_the_whole(world: World) -> None:
    """What is kept holds the whole file: a purge of the picture takes along what was asked of a part of it."""
    async with opened(world, Clock(), CollectorRegistry()) as (replays, tiers):
        plan = await plan_of("a cat", framing=Framing(Box(0, 0, 8, 8)))
        for _ in range(2):
            replays.note(plan, ANN, partial(ask, "a cat", framing={"width": 8, "height": 8}))
        await replays.settled()
        (favourite,) = await replays.most_asked("acme", 5)
        assert PICTURE == favourite.animate_image.image
        with Darkroom() as darkroom:
            await purged(tiers, darkroom, InvalidateRequest(picture=PICTURE))
        assert ([], []) == (await replays.most_asked("acme", 5), await kept(tiers))


async def purged(tiers: Tiers, darkroom: Darkroom, request: InvalidateRequest) -> None:
    with Studio() as studio:
        async for _ in Control(tiers, darkroom, studio, secret=SECRET_BYTES, model_of=str).invalidate(request, ANN):
            pass


async def test_only_namespaces_of_ours_are_read(world: World) -> None:
    """A favourite that lies with another tenant's is passed over: somebody put it there."""
    async with opened(world, Clock(), CollectorRegistry()) as (replays, _):
        plan = await plan_of("a cat")
        for _ in range(2):
            replays.note(plan, Principal("evil", "ann"), partial(ask, "a cat"))
        await replays.settled()
        assert plan.namespaces[Scope.TENANT] == namespaces(SECRET_BYTES, ANN)[Scope.TENANT]
        assert [] == await replays.most_asked("acme", 5)
