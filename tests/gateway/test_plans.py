"""Remembered plans: recalled for the same request of the same caller and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cache.description import Description
from cache.digest import Digest
from cache.keys import Principal
from gateway.identity import hash_key
from gateway.plan import Plan, Policy
from gateway.plans import Plans, asked
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import AnimateImageRequest
from tests.gateway.test_plan import plan, source
from tests.gateway.world import World, ask, outcome, problem_of

ADA = Principal("acme", "ada", "tab-1")
FILE = Digest.of(b"a file")
REQUESTS = {
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
    "digest": {"image_digest": pb.Digest(hex="0" * 64, size=1)},
}


def request(name: str = "nothing") -> AnimateImageRequest:
    asking = ask(**{"prompt": "a cat"} | REQUESTS[name])
    asking.ClearField("image")
    return asking


def remembered(made: Plan) -> tuple[Plans, Description]:
    plans = Plans()
    plans.remember(asked(request(), ADA, FILE), made)
    return plans, made.description


def test_a_recalled_plan_is_the_one_that_was_made() -> None:
    """Complete save for its picture, which is the request's own, and so is the policy."""
    made = plan()
    plans, description = remembered(made)
    known = plans.recall(asked(request(), ADA, FILE), description)

    assert known is not None
    assert {} == known.media
    policy, picture = Policy(max_age=1.0), source("i1")
    assert replace(made, media={"image": picture}, policy=policy) == known.again({"image": picture}, policy)


def test_every_part_of_a_request_matters() -> None:
    """Whoever asks, with whatever file, for whatever else: each difference is another request."""
    principals = [ADA, *(replace(ADA, **{part: "x"}) for part in ("tenant", "user", "session"))]
    files = [FILE, Digest.of(b"another"), Digest(FILE.hex, FILE.size + 1)]
    keys = {
        *(asked(request(), principal, FILE) for principal in principals),
        *(asked(request(), ADA, file) for file in files),
        *(asked(request(name), ADA, FILE) for name in REQUESTS),
    }
    assert len(principals) + len(files) + len(REQUESTS) - 2 == len(keys)  # the plain one is in all three
    assert None not in keys


def test_a_plan_belongs_to_the_description_it_was_made_by() -> None:
    """A worker that describes its model again may mean something else by the same request."""
    plans, description = remembered(plan())
    again = Description.from_bytes(description.to_bytes())
    assert again == description
    assert plans.recall(asked(request(), ADA, FILE), again) is None


def test_what_is_remembered_is_bounded() -> None:
    """In number, in bytes and in time; a request that is itself large is not remembered."""
    now = 0.0
    plans = Plans(max_entries=2, max_bytes=50_000, clock=lambda: now)
    made = plan()
    keys = [asked(request(name), ADA, FILE) for name in ("nothing", "seed", "model")]
    for key in keys:
        plans.remember(key, made)
    assert [False, True, True] == [plans.recall(key, made.description) is not None for key in keys]

    plans.remember(keys[0], replace(made, parameters={**made.parameters, "prompt": "a" * 20_000}))
    assert plans.recall(keys[0], made.description) is None
    assert plans.plans.bytes <= 50_000

    now = 3600.0
    assert plans.recall(keys[2], made.description) is None
    assert asked(ask(prompt="a" * 70_000), ADA, FILE) is None


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
