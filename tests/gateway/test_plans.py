"""Remembered plans: recalled for the same request of the same caller and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache.bans import Ban
from cache.condition import Condition
from cache.digest import Digest
from cache.keys import Principal
from cache.switches import Subject, Switch
from gateway.identity import hash_key
from gateway.plan import Policy
from gateway.plans import Known, Plans, asked
from reprise.v1 import common_pb2 as pb
from reprise.v1.cache_pb2 import InvalidateRequest
from reprise.v1.inference_pb2 import StatusResponse
from tests.gateway.test_plan import plan
from tests.gateway.worker import family
from tests.gateway.world import World, ask, outcome, picture, problem_of

ADA = Principal("acme", "ada", "tab-1")
TASK = "animate_image"
REQUESTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "prompt": {"prompt": "a dog"},
    "negative prompt": {"negative_prompt": "a dog"},
    "model": {"model": "small"},
    "number": {"num_frames": 8},
    "number by default": {"num_frames": 16},
    "seed": {"seed": 0},
    "extra": {"extra": {"size": 1}},
    "extra value": {"extra": {"size": 2}},
    "policy": {"policy": {"no_store": True}},
    "mode": {"policy": {"mode": pb.CachePolicy.MODE_REFRESH}},
    "picture": {"image": picture(shade=1)},
    "digest": {"image_digest": pb.Digest(hex="0" * 64, size=1)},
}


def message(name: str = "nothing") -> bytes:
    return ask(**{"prompt": "a cat"} | REQUESTS[name]).SerializeToString()


def test_a_recalled_plan_is_the_one_that_was_made() -> None:
    """Complete save for its picture, which would be kept alive by it."""
    plans, made = Plans(), plan()
    plans.remember(asked(TASK, message(), ADA), "small", made, Digest("0" * 64, 1))
    known = plans.recall(asked(TASK, message(), ADA))
    assert known == Known("small", replace(made, media={}), Digest("0" * 64, 1))


def test_every_part_of_a_request_matters() -> None:
    """Whoever asks, for whatever: each difference makes another request."""
    principals = [ADA, *(replace(ADA, **{part: "x"}) for part in ("tenant", "user", "session"))]
    keys = {
        *(asked(TASK, message(), principal) for principal in principals),
        *(asked(TASK, message(name), ADA) for name in REQUESTS),
        asked("synthesize_speech", message(), ADA),  # the same bytes, and another question
    }
    assert len(principals) + len(REQUESTS) == len(keys)  # the plain one is in both
    assert None not in keys


def test_variety_is_not_remembered() -> None:
    """The same request for a fresh result is another one each time."""
    plans, made = Plans(), plan()
    plans.remember(asked(TASK, message(), ADA), "", replace(made, policy=Policy(read=False, fresh=True)))
    assert plans.recall(asked(TASK, message(), ADA)) is None


def test_what_is_remembered_is_bounded() -> None:
    """In number, in bytes and in time; a message that takes long to hash is not remembered."""
    now = 0.0
    plans = Plans(max_entries=2, max_bytes=50_000, clock=lambda: now)
    made = plan()
    keys = [asked(TASK, message(name), ADA) for name in ("nothing", "seed", "model")]
    for key in keys:
        plans.remember(key, "", made)
    assert [False, True, True] == [plans.recall(key) is not None for key in keys]

    plans.remember(keys[0], "", replace(made, parameters={**made.parameters, "prompt": "a" * 20_000}))
    assert plans.recall(keys[0]) is None
    assert plans.known.bytes <= 50_000

    now = 3600.0
    assert plans.recall(keys[2]) is None
    plans.remember(asked(TASK, bytes(2**20 + 1), ADA), "", made)
    assert 0 == sum(plans.recall(key) is not None for key in (*keys, None))


async def test_what_was_said_is_forgotten_at_a_purge() -> None:
    """Whatever it is about: no prompt outlives it here. Any other order changes nothing."""
    plans = Plans()
    for condition in (Condition(tags=("user:u",)), Condition(model="small")):
        plans.remember(asked(TASK, message(), ADA), "", plan())
        await plans.obey(Switch(1.0, Subject.MODEL, "small", False))
        assert plans.recall(asked(TASK, message(), ADA)) is not None
        await plans.obey(Ban(1.0, condition))
        assert 0 == len(plans.known)


async def test_no_text_is_remembered_as_its_caller_wrote_it(world: World, opened: list[Plans]) -> None:
    """It may be far longer than what is made of it, which alone is counted."""
    desk = await world.desk(await world.worker())
    await desk.animate(f"a cat{' ' * 900_000}")
    ((_, known),) = opened[0].known.items()
    assert "'a cat'" in repr(known)
    assert " " * 100 not in repr(known)


async def test_a_gateway_forgets_what_a_purged_user_said(world: World, opened: list[Plans]) -> None:
    """The order reaches it as it reaches everything else that remembers."""
    desk = await world.desk(await world.worker())
    await desk.animate()
    assert [1] == [len(plans.known) for plans in opened]
    async for _ in desk.client.invalidate(InvalidateRequest(tenant="local", user="local")):
        pass
    assert [0] == [len(plans.known) for plans in opened]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Plans]:
    """What the gateways of a test remember."""
    made: list[Plans] = []

    def opens() -> Plans:
        made.append(Plans())
        return made[-1]

    monkeypatch.setattr("gateway.serve.Plans", opens)
    return made


async def test_a_request_means_what_its_model_says_now(world: World) -> None:
    """Once a newer revision is there, what was remembered of the old one answers nothing any more."""
    old, other = family(), family(revision="r2")
    stages = tuple(stage.model_copy(update={"fingerprint": "other weights"}) for stage in other.stages)
    newer = await world.worker(other.model_copy(update={"stages": stages}), started_at=2.0)
    newer.say(StatusResponse.STATE_LOADING)
    desk = await world.desk(await world.worker(old), newer.address)
    before = [await desk.animate() for _ in range(3)]
    newer.say(StatusResponse.STATE_READY)
    await desk.sees(2)
    after = [await desk.animate() for _ in range(2)]

    assert ["miss", "hit from L1", "hit from L1"] == [outcome(media) for media in before]
    assert ["miss", "hit from L1"] == [outcome(media) for media in after]
    assert [1, 1] == [len({media.report.address for media in media}) for media in (before, after)]
    assert before[0].report.address != after[0].report.address


async def test_the_same_request_again_is_the_same_plan(world: World) -> None:
    """What a gateway remembers leads to the address that another one works out anew."""
    worker = await world.worker()
    desk = await world.desk(worker)
    made = await desk.animate(guidance_scale=3.0)
    await desk.stored(made)
    again = await desk.animate(guidance_scale=3.0)
    other = await (await world.desk(worker)).animate(guidance_scale=3.0)

    assert ["hit from L1", "hit from L2"] == [outcome(media) for media in (again, other)]
    assert 1 == len({media.report.address for media in (made, again, other)})
    assert 1 == len({str(media.result.artifact) for media in (made, again, other)})


async def test_a_remembered_request_can_be_generated_again(world: World) -> None:
    """Without its result in any tier it is a miss like the first one, with the pixels the worker needs."""
    worker = await world.worker()
    desk = await world.desk(worker, cache=world.only())
    for generation in (1, 2):
        assert ("miss", generation) == (outcome(await desk.animate(policy={"no_store": True})), worker.generations)
    assert 2 == worker.ran["picture"]


@pytest.mark.parametrize("mode", [pb.CachePolicy.MODE_REFRESH, pb.CachePolicy.MODE_BYPASS])
async def test_a_remembered_policy_holds(world: World, mode: pb.CachePolicy.Mode) -> None:
    """A request that wants nothing from the cache gets nothing from it, however often it is sent."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await desk.stored(await desk.animate())
    for generations in (2, 3):
        await desk.stored(await desk.animate(policy={"mode": mode}))  # or the next one joins it
        assert generations == worker.generations


@pytest.mark.parametrize("field", ["tenant", "user"])
async def test_callers_share_no_memory(world: World, tmp_path: Path, field: str) -> None:
    """What one caller uploaded and used is not found by another who sends the very same request."""
    keys = tmp_path / "keys.yaml"
    names = {"tenant": [("a", "u"), ("b", "u")], "user": [("a", "u"), ("a", "v")]}[field]
    keys.write_text(
        "\n".join(
            f"- {{key_sha256: {hash_key(f'key-{number}')!r}, tenant: {tenant}, user: {user}}}"
            for number, (tenant, user) in enumerate(names)
        )
    )
    desk = await world.desk(
        await world.worker(), identity={"mode": "api_keys", "file": keys}, api_key="key-0", sample=1.0
    )
    other = await desk.connect(api_key="key-1")
    uploaded = await desk.client.upload(ask().image)
    named = ask(image_digest=uploaded.digest)
    for _ in range(2):
        await desk.client.animate(named)

    assert "DIGEST_UNKNOWN" == (await problem_of(other.animate(named))).reason
