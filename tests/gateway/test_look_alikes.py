"""Near-duplicates end to end: asked for, within a tenant, checked, named; and never in the way of the exact."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from PIL import Image, ImageDraw
from skimage import data

from cache import tags
from cache.bans import Ban
from cache.condition import Condition
from cache.description import Scope
from cache.keys import Address, Key, Principal, namespaces
from cache.near import look_of
from gateway.client import Media
from gateway.darkroom import Source
from gateway.identity import hash_key
from gateway.look_alikes import LookAlikes
from gateway.pictures import decode
from gateway.plan import Plan
from reprise.v1 import common_pb2 as pb
from reprise.v1.cache_pb2 import Favourite, WarmRequest
from tests.cache.helpers import SECRET
from tests.gateway import worker as scripted
from tests.gateway.test_pictures import file_of
from tests.gateway.test_plan import plan
from tests.gateway.worker import ScriptedWorker
from tests.gateway.world import Desk, World, ask, outcome, problem_of, stages

ALLOWED: dict[str, Any] = {"similarity": {"pictures": True}}
DENIED: dict[str, Any] = {"similarity": {"pictures": False}}
PHOTO = Image.fromarray(data.astronaut())


def jpeg(image: Image.Image = PHOTO, quality: int = 90) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def captioned(image: Image.Image = PHOTO) -> Image.Image:
    changed = image.copy()
    ImageDraw.Draw(changed).text((20, 470), "SALE", fill="white", font_size=24)
    return changed


ORIGINAL, AGAIN = jpeg(), jpeg(quality=80)
IDENTITY = decode(ORIGINAL).identity


async def made_from(desk: Desk, file: bytes = ORIGINAL, **policy: Any) -> Media:
    """A result whose encodings are stored."""
    media = await desk.animate(image=file, policy=policy)
    assert "durable" == await desk.stored(media)
    return media


def similar(media: Media) -> list[str]:
    return [each.identity for each in media.report.similar]


# Asked for


@pytest.mark.parametrize("policy", [{}, DENIED], ids=["unsaid", "denied"])
async def test_nothing_stands_in_unasked(world: World, policy: dict[str, Any]) -> None:
    """The default is exact: a picture coded anew is another picture, and is encoded."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await made_from(desk)
    media = await desk.animate(image=AGAIN, policy=policy)

    assert ("miss", []) == (outcome(media), similar(media))
    assert 2 == worker.ran["picture"]


async def test_encodings_of_a_near_duplicate_are_reused_and_named(world: World) -> None:
    """The picture is not encoded again; the answer says whose encoding it was, how far away, in all its views."""
    worker = await world.worker()
    desk = await world.desk(worker)
    exact = await made_from(desk)
    media = await desk.animate(image=AGAIN, policy=ALLOWED)

    assert "miss" == outcome(media)
    assert ("reused", "run") == (stages(media.report.stages)["picture"], stages(media.report.stages)["denoise"])
    assert 1 == worker.ran["picture"]
    (named,) = media.report.similar
    assert ("image", IDENTITY) == (named.media, named.identity)
    assert named.distance <= 8
    assert 0 < named.thumbnail_difference <= 2
    assert media.cache_status == f"reprise; fwd=uri-miss; detail=new; similar={named.distance}"
    assert exact.report.address != media.report.address
    assert b"" == worker.requests[1].pictures["image"].rgb
    told = [dict(span.attributes or {}).get("reprise.similar") for span in desk.spans]
    assert [0, 1] == [count for count in told if count is not None]


async def test_what_rests_on_a_near_duplicate_is_found_again_and_named_again(world: World) -> None:
    """From memory, and from the tiers by another gateway that knows both pictures."""
    worker = await world.worker()
    desk, other = await world.desk(worker), await world.desk(worker)
    await made_from(desk)
    await other.animate(image=ORIGINAL)
    first = await made_from(desk, AGAIN, **ALLOWED)
    again = [await each.animate(image=AGAIN, policy=ALLOWED) for each in (desk, other)]

    assert ["hit from L1", "hit from L2"] == [outcome(each) for each in again]
    assert [[IDENTITY]] * 2 == [similar(each) for each in again]
    assert all(first.data == each.data for each in again)
    assert 2 == worker.generations


async def test_the_exact_request_never_meets_the_near_one(world: World) -> None:
    """Afterwards the exact one runs with its own encoding, and is what both get from then on."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await made_from(desk)
    near = await made_from(desk, AGAIN, **ALLOWED)
    exact = await made_from(desk, AGAIN)

    assert ("miss", []) == (outcome(exact), similar(exact))
    assert (2, 3) == (worker.ran["picture"], worker.ran["denoise"])
    assert near.report.address != exact.report.address
    assert near.data != exact.data
    allowed = await desk.animate(image=AGAIN, policy=ALLOWED)
    assert ("hit from L1", [], exact.data) == (outcome(allowed), similar(allowed), allowed.data)
    other = await desk.animate("a dog", image=AGAIN, policy=ALLOWED)  # its own encoding is there now
    assert ([], "reused", 2) == (similar(other), stages(other.report.stages)["picture"], worker.ran["picture"])


async def test_the_original_is_never_touched(world: World) -> None:
    """What stands in is read: its record stays the one that was made from its own pixels."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await made_from(desk)
    await made_from(desk, AGAIN, **ALLOWED)
    media = await desk.animate("a dog", image=ORIGINAL)

    assert ([], "reused") == (similar(media), stages(media.report.stages)["picture"])
    assert 1 == worker.ran["picture"]


async def test_scaled_down_is_the_same_picture(world: World) -> None:
    """Half as wide and as high, it stands in as well; a smaller one does not."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await made_from(desk)
    half, third = (jpeg(PHOTO.resize((side, side), Image.Resampling.LANCZOS), 95) for side in (256, 170))

    assert [IDENTITY] == similar(await desk.animate(image=half, policy=ALLOWED))
    assert [] == similar(await desk.animate(image=third, policy=ALLOWED))


async def test_an_operator_can_decide_for_models_and_tenants(world: World) -> None:
    """The default of a model or of a tenant holds where a request says nothing, and only there."""
    worker = await world.worker()
    for section, expected in (
        ({"models": ["small"]}, [IDENTITY]),
        ({"tenants": ["local"]}, [IDENTITY]),
        ({"models": ["large"], "tenants": ["acme"]}, []),
    ):
        desk = await world.desk(worker, similarity=section)
        await desk.animate(image=ORIGINAL)
        file = jpeg(quality=79 + len(world.desks))
        assert [] == similar(await desk.animate(image=file, policy=DENIED | {"no_store": True}))
        assert expected == similar(await desk.animate(image=file)), section


async def test_the_bound_of_a_request_is_kept(world: World) -> None:
    """A request that allows less than the nearest one's distance runs exactly; who asks for too much is refused."""
    worker = await world.worker()
    desk = await world.desk(worker)
    rocket = Image.fromarray(data.rocket())
    original, photo = jpeg(rocket), jpeg(rocket, quality=60)
    await made_from(desk, original)
    apart = (look(original).hash ^ look(photo).hash).bit_count()
    assert 1 < apart <= 16

    def within(most: int) -> dict[str, Any]:
        return {"similarity": {"pictures": True, "max_distance": most}, "no_store": True}

    assert [] == similar(await desk.animate(image=photo, policy=within(apart - 1)))
    assert [decode(original).identity] == similar(await desk.animate(image=photo, policy=within(apart)))
    problem = await problem_of(desk.animate(image=photo, policy=within(17)))
    assert ("cache_policy.similarity.max_distance", "INVALID_ARGUMENT") == (problem.field, problem.code.name)


def look(file: bytes) -> Any:
    picture = decode(file)
    return look_of(picture.width, picture.height, picture.rgb)


# Within a tenant


async def test_other_tenants_pictures_never_stand_in(world: World, tmp_path: Path) -> None:
    """Their encodings may be shared, but whose pictures look like yours is nobody's business."""
    keys = tmp_path / "keys.yaml"
    people = {"ann": "a", "abe": "a", "bob": "b"}
    keys.write_text("\n".join(f"- {{key_sha256: {hash_key(u)!r}, tenant: {t}, user: {u}}}" for u, t in people.items()))
    worker = await world.worker()
    desk = await world.desk(worker, identity={"mode": "api_keys", "file": keys})
    ann, abe, bob = [await desk.connect(api_key=user) for user in people]

    await ann.until_stored(await ann.animate(ask(image=ORIGINAL)))
    assert [] == similar(await bob.animate(ask(image=AGAIN, policy=ALLOWED)))
    assert 2 == worker.ran["picture"]
    assert [IDENTITY] == similar(await abe.animate(ask(image=jpeg(quality=85), policy=ALLOWED)))


# Checked


@pytest.mark.parametrize(
    "other",
    [
        captioned(),
        PHOTO.convert("L").convert("RGB"),
        PHOTO.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        PHOTO.crop((6, 6, 512, 512)).resize((512, 512)),
        PHOTO.resize((512, 500)),
    ],
    ids=["captioned", "made grey", "flipped", "cut", "squeezed"],
)
async def test_an_edited_picture_is_another_picture(world: World, other: Image.Image) -> None:
    """What the hash alone would take for the same is told apart by its pixels, and encoded."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await made_from(desk)
    media = await desk.animate(image=jpeg(other), policy=ALLOWED)

    assert ([], 2) == (similar(media), worker.ran["picture"])


async def test_pictures_that_collide_stay_apart(world: World) -> None:
    """Two flat pictures have one hash and look alike; there is nothing in them to tell that they are one: exact."""
    worker = await world.worker()
    desk = await world.desk(worker)
    red, other = (Image.new("RGB", (64, 64), colour) for colour in ((200, 0, 0), (201, 0, 0)))
    files = [file_of(image) for image in (red, other)]
    assert look(files[0]).hash == look(files[1]).hash
    await made_from(desk, files[0])

    assert [] == similar(await desk.animate(image=files[1], policy=ALLOWED))
    assert 2 == worker.ran["picture"]


# What is not there


async def test_policies_that_reuse_nothing_borrow_nothing(world: World) -> None:
    """Bypass and refresh run every stage; what must not be old is not borrowed when it is."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await made_from(desk)
    for policy in (
        {"mode": pb.CachePolicy.MODE_BYPASS},
        {"max_age": Duration()},
        {"mode": pb.CachePolicy.MODE_REFRESH},
    ):
        assert [] == similar(await desk.animate(image=AGAIN, policy=ALLOWED | policy)), policy
    assert 4 == worker.ran["picture"]


async def test_what_was_not_to_be_stored_stands_in_for_nothing(world: World) -> None:
    """A picture sent with `no_store` leaves no look behind, also where others have stored its encodings."""
    worker = await world.worker()
    await made_from(await world.desk(worker))
    for policy, expected in (({"no_store": True}, []), ({}, [IDENTITY])):
        desk = await world.desk(worker)
        await desk.animate("a dog", image=ORIGINAL, policy=policy)
        assert expected == similar(await desk.animate(image=AGAIN, policy=ALLOWED | {"no_store": True}))


async def test_only_cached_finds_what_rests_on_a_near_duplicate(world: World) -> None:
    """It is an answer from the cache; without one there is none, and nothing runs."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await made_from(desk)
    only = ALLOWED | {"mode": pb.CachePolicy.MODE_ONLY_IF_CACHED}
    assert "NOT_CACHED" == (await problem_of(desk.animate(image=AGAIN, policy=only))).reason
    await made_from(desk, AGAIN, **ALLOWED)

    assert ("hit from L1", [IDENTITY]) == (
        outcome(media := await desk.animate(image=AGAIN, policy=only)),
        similar(media),
    )


async def test_encodings_that_are_gone_are_made_anew_from_the_own_picture(world: World) -> None:
    """The worker refuses to encode under another's name; the same stream goes on exactly, and says so."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await made_from(desk)
    worker.refusals = [scripted.NEAR_GONE]
    follower = desk.follow(image=AGAIN, policy=ALLOWED)
    media = await follower.media()

    assert ("miss", [], 2) == (outcome(media), similar(media), worker.ran["picture"])
    assert ["", IDENTITY, ""] == [each.pictures["image"].near_identity for each in worker.requests]
    assert 1 == sum(event.HasField("accepted") for event in follower.events)
    assert list(range(1, len(follower.events) + 1)) == [event.sequence for event in follower.events]
    again = await desk.animate(image=AGAIN)
    assert ("hit from L1", media.data) == (outcome(again), again.data)
    assert again.report.address == media.report.address


async def test_what_is_made_ahead_on_a_near_duplicate_is_still_nobodys_hurry(world: World) -> None:
    """Its run waits behind every other: with the encodings that it borrows, and once these are gone."""
    worker = await world.worker()
    desk = await world.desk(worker, similarity={"models": ["small"]})
    await made_from(desk)
    worker.refusals = [scripted.NEAR_GONE]
    favourite = Favourite(animate_image=ask(image=AGAIN))
    async for _ in desk.client.warm(WarmRequest(favourites=[favourite])):
        pass

    told = [(each.pictures["image"].near_identity, each.idle_priority, list(each.tags)) for each in worker.requests]
    assert [("", False, []), (IDENTITY, True, [tags.WARMED]), ("", True, [tags.WARMED])] == told


async def test_a_picture_without_its_encodings_stands_in_for_nothing(world: World) -> None:
    """A look is a hint: with the records gone from every tier the request is exact from the start."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await made_from(desk)
    await _forget(world, worker, "picture")

    assert [] == similar(await desk.animate(image=AGAIN, policy=ALLOWED))
    assert ["", ""] == [each.pictures["image"].near_identity for each in worker.requests]


async def test_the_nearest_that_has_its_encodings_stands_in(world: World) -> None:
    """Of several the nearest; one that is nearer and has none is passed over."""
    worker = await world.worker()
    desk = await world.desk(worker)
    for file in (AGAIN, ORIGINAL):
        await made_from(desk, file)
    asked: dict[str, Any] = {"image": jpeg(quality=79), "policy": ALLOWED | {"no_store": True}}
    assert [decode(AGAIN).identity] == similar(await desk.animate(**asked))
    await _forget(world, worker, "picture")  # of the first request

    assert [IDENTITY] == similar(await desk.animate(**asked))
    assert 2 == worker.ran["picture"]


async def _forget(world: World, worker: ScriptedWorker, stage: str) -> None:
    address = Address.parse(worker.requests[0].addresses[stage])
    tiers = await world.tiers(world.cache)
    for tier in tiers.below_memory.tiers:
        await tier.delete(Key.of_record(address))


async def test_near_requests_at_once_are_one_generation(world: World) -> None:
    """Equal requests that borrow meet like any other."""
    worker = await world.worker()
    desk = await world.desk(worker)
    await made_from(desk)
    gate = worker.hold("step")
    followers = [desk.follow(image=AGAIN, policy=ALLOWED) for _ in range(3)]
    for follower in followers:
        await follower.seen("queued")
    gate.open()
    media = [await follower.media() for follower in followers]

    assert ["coalesced", "coalesced", "miss"] == sorted(outcome(each) for each in media)
    assert [[IDENTITY]] * 3 == [similar(each) for each in media]
    assert 2 == worker.generations


async def test_looks_are_bounded(world: World) -> None:
    """The picture not asked for since longest is forgotten first, and is then no candidate any more."""
    worker = await world.worker()
    desk = await world.desk(worker, similarity={"max_bytes": 2 * 13_000})
    others = [jpeg(Image.fromarray(each())) for each in (data.rocket, data.coffee)]
    asked: dict[str, Any] = {"image": AGAIN, "policy": ALLOWED | {"no_store": True}}
    for file in (ORIGINAL, others[0], ORIGINAL, others[1]):
        await made_from(desk, file)
    assert [IDENTITY] == similar(await desk.animate(**asked))
    await made_from(desk, jpeg(Image.fromarray(data.chelsea())))
    await made_from(desk, jpeg(Image.fromarray(data.camera()).convert("RGB")))
    assert [] == similar(await desk.animate(**asked))


async def test_looks_grow_old() -> None:
    """A picture nobody asked for in two hours is forgotten, whatever room there is."""
    now = 1000.0
    hierarchy: Any = None
    alikes = LookAlikes(hierarchy, max_bytes=10**6, clock=lambda: now)

    def remember(image: str) -> None:
        alikes.remember(looked_at(plan(image=image)))

    remember("one")
    now += 7000
    remember("two")
    assert 2 == len(alikes)
    now += 300
    remember("three")
    assert 2 == len(alikes)
    now += 7000
    remember("four")
    assert 2 == len(alikes)


def looked_at(planned: Plan) -> Plan:
    """The same plan, whose picture was decoded to make it."""
    source = planned.media["image"]
    assert isinstance(source, Source)
    source.look = look(ORIGINAL)
    return planned


def remembered(**said: Any) -> LookAlikes:
    """Looks of one picture, asked for so."""
    hierarchy: Any = None
    alikes = LookAlikes(hierarchy, max_bytes=10**6)
    alikes.remember(looked_at(plan(**said)))
    assert 1 == len(alikes)
    return alikes


async def left(alikes: LookAlikes, *marks: str) -> int:
    """How many looks are left after a purge of what has these tags."""
    await alikes.obey(Ban(1000.0, Condition(tags=marks)))
    return len(alikes)


@pytest.mark.parametrize(("picture", "expected"), [("part", 0), ("whole", 0), ("other", 1)])
async def test_a_purge_of_a_picture_takes_its_looks(picture: str, expected: int) -> None:
    """That of the picture itself, and those of parts of it."""
    assert expected == await left(remembered(image="part", part_of="whole"), tags.of_media(picture))


T, OTHER = (tags.of_tenant(namespaces(SECRET, Principal(tenant))[Scope.TENANT]) for tenant in ("t", "other"))


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ((T,), 0),
        ((OTHER,), 1),
        ((T, "user:u"), 0),
        ((OTHER, "user:u"), 1),
        (("user:u",), 0),
        (("label:l",), 0),
        ((), 0),
        ((T, "media:i1"), 0),
        ((OTHER, "media:i1"), 1),
    ],
)
async def test_a_purge_takes_the_looks_that_it_may_be_about(marks: tuple[str, ...], expected: int) -> None:
    """All of a tenant, and all there are where nobody can tell whose they are or what they were asked for."""
    assert expected == await left(remembered(tenant="t"), *marks)


async def test_it_can_be_switched_off(world: World) -> None:
    """With no bytes for looks nothing is looked at, and whatever is asked for is answered exactly."""
    worker = await world.worker()
    desk = await world.desk(worker, similarity={"max_bytes": 0})
    await made_from(desk)

    assert [] == similar(await desk.animate(image=AGAIN, policy=ALLOWED))
