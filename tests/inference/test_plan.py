from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cache.description import HOUR, Scope, Stage, canonical_first
from cache.digest import Digest
from cache.keys import Principal
from cache.record import Output, Record
from cache.work import Work, divide
from inference.errors import InvalidInput, PlanDiffers
from inference.meaning import meaning_of
from inference.media import Picture
from inference.models.base import Artifact
from inference.models.i2vgen_xl import I2VGenXL
from inference.plan import Plan, call_for, lacks_media, read_plan
from reprise.v1.common_pb2 import ParameterValue
from reprise.v1.inference_pb2 import RunRequest
from tests.inference.speech_fixtures import RATE, Recorded, SpokenModel, ask_speech
from tests.inference.worker_fixtures import GatedModel, Pixels, ask

MODEL = GatedModel()
MODELS = {"gated": MODEL}


def read(request: RunRequest) -> Plan:
    return read_plan(request, MODELS)


def ask_anew(**wanted: object) -> RunRequest:
    request: RunRequest = ask(MODEL.description, **wanted)  # type: ignore[arg-type]  # checked by the callee
    return request


def test_a_plan_holds_what_the_request_says() -> None:
    """Parameters in their declared types, pictures, policy, and the address of every stage."""
    request = ask_anew(prompt="a dog", seed=7, strength=0.5, replace=True, max_age=60.0, follower="f")
    plan = read(request)
    assert plan.parameters == {"prompt": "a dog", "seed": 7, "strength": 0.5, "fps": 8, "size": 1000}
    image = plan.media["image"]
    assert isinstance(image, Picture)
    assert (image.width, image.height) == (8, 4)
    assert {name: str(address) for name, address in plan.addresses.items()} == dict(request.addresses)
    assert plan.address == plan.addresses["video"]
    assert (plan.replace, plan.reuse_nothing, plan.store_nothing, plan.max_age, plan.follower) == (
        True,
        False,
        False,
        60.0,
        "f",
    )


def edit(change: Callable[[RunRequest], object]) -> RunRequest:
    request = ask_anew()
    change(request)
    return request


@pytest.mark.parametrize(
    "change",
    [
        lambda request: setattr(request, "model", "other"),
        lambda request: setattr(request, "revision", "2"),
        lambda request: request.addresses.pop("video"),
        lambda request: request.addresses.update({"text": request.addresses["video"]}),
        lambda request: request.addresses.update({"upscale": request.addresses["video"]}),
        lambda request: request.namespaces.update({"tenant": "f" * 32}),
        lambda request: request.parameters["seed"].CopyFrom(ParameterValue(int_value=43)),
        lambda request: request.pictures["image"].CopyFrom(Pixels(colour=9).message()),
    ],
    ids=["model", "revision", "no result", "address", "unknown stage", "namespace", "parameter", "picture"],
)
def test_a_plan_of_another_description_is_refused(change: Callable[[RunRequest], object]) -> None:
    """Another model or revision, or any address this worker would compute otherwise: describe again, plan again."""
    with pytest.raises(PlanDiffers) as refused:
        read(edit(change))
    assert refused.value.reason == "PLAN_DIFFERS"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda request: request.parameters.pop("seed"), "seed"),
        (lambda request: request.parameters["seed"].CopyFrom(ParameterValue(float_value=1.0)), "seed"),
        (lambda request: request.parameters["strength"].CopyFrom(ParameterValue(int_value=1)), "strength"),
        (lambda request: request.parameters["strength"].CopyFrom(ParameterValue(float_value=float("nan"))), "strength"),
        (lambda request: request.parameters["strength"].CopyFrom(ParameterValue(float_value=float("inf"))), "strength"),
        (lambda request: request.parameters["prompt"].CopyFrom(ParameterValue()), "prompt"),
        (lambda request: request.parameters["eta"].CopyFrom(ParameterValue(float_value=1.0)), "parameters"),
        (lambda request: request.pictures.pop("image"), "image"),
        (lambda request: setattr(request.pictures["image"], "rgb", b"123"), "image"),
        (lambda request: setattr(request.pictures["image"], "width", 9), "image"),
        (lambda request: setattr(request.pictures["image"], "identity", "0" * 64), "image"),
        (lambda request: request.namespaces.pop("session"), "namespaces"),
    ],
    ids=[
        "missing",
        "float for int",
        "int for float",
        "not a number",
        "infinite",
        "no value",
        "not declared",
        "no picture",
        "too few pixels",
        "another width",
        "another identity",
        "no namespace",
    ],
)
def test_a_malformed_input_is_named(change: Callable[[RunRequest], object], field: str) -> None:
    """What is missing, of another type, or a picture that is not what its identity says, is refused by its field."""
    with pytest.raises(InvalidInput) as refused:
        read(edit(change))
    assert refused.value.field == field


def test_an_identity_is_enough_while_nobody_must_look() -> None:
    """A plan without pixels is a plan; whether it can be run depends on what is cached."""
    plan = read(ask_anew(with_pixels=False))
    assert not plan.media["image"].there
    assert plan.addresses == read(ask_anew()).addresses


def test_records_are_believed_only_at_their_address() -> None:
    """A record of another address, and bytes that are none, count as not given."""
    request = ask_anew()
    plan = read(request)
    record = Record(
        address=plan.addresses["moments"],
        model="gated",
        revision="1",
        stage="moments",
        fingerprint="moments/1",
        output=Output(Digest.of(b"x"), "application/vnd.safetensors", b"x"),
        device_seconds=1.0,
        total_device_seconds=1.0,
        made_at=1.0,
        touched_at=1.0,
        ttl=HOUR,
        expires_at=1e12,
    )
    request.records["moments"] = record.to_bytes()
    request.records["text"] = record.to_bytes()
    request.records["denoise"] = b"nonsense"
    request.records["upscale"] = record.to_bytes()
    assert read(request).records == {"moments": record}


def test_spellings_of_one_meaning_share_their_canonical_addresses() -> None:
    """What follows a canonicalising stage is named by what that made of the request."""
    first, second, other = (read(ask_anew(prompt=prompt)) for prompt in ("A  Cat", "a cat", "a dog"))
    assert first.address != second.address

    def meaning(plan: Plan) -> dict[str, str]:
        output = MODEL.run("tokens", call_for(plan, plan.stages[0], {}))
        assert not isinstance(output, Artifact)
        digest = Digest.of(output["ids"].numpy().tobytes())
        addresses = meaning_of(plan, {"tokens": output}, {"tokens": digest}).addresses
        return {name: str(address) for name, address in addresses.items() if name != "tokens"}

    assert meaning(first) == meaning(second)
    assert meaning(first)["moments"] == meaning(other)["moments"] == str(first.addresses["moments"])
    assert all(meaning(first)[name] != meaning(other)[name] for name in ("text", "denoise", "video"))


def test_owners_do_not_share() -> None:
    """What a tenant or user made is at another address for anybody else; only the picture's encoding is shared."""
    alice = read(ask_anew(principal=Principal("acme", "alice")))
    bob = read(ask_anew(principal=Principal("acme", "bob")))
    eve = read(ask_anew(principal=Principal("evil", "alice")))
    assert alice.addresses["moments"] == eve.addresses["moments"]
    assert alice.addresses["video"] == bob.addresses["video"] != eve.addresses["video"]
    assert alice.addresses["text"] != bob.addresses["text"]


def names(work: Work) -> tuple[list[str], list[str]]:
    return [stage.name for stage in work.run], [stage.name for stage in work.reuse]


@pytest.mark.parametrize(
    ("readable", "run", "reuse"),
    [
        (set(), ["text", "moments", "denoise", "video"], []),
        ({"moments"}, ["text", "denoise", "video"], ["moments"]),
        ({"text", "moments"}, ["denoise", "video"], ["text", "moments"]),
        ({"denoise"}, ["video"], ["denoise"]),
        ({"text", "moments", "denoise"}, ["video"], ["denoise"]),
        ({"text", "moments", "denoise", "video"}, ["video"], ["denoise"]),
    ],
    ids=["nothing", "picture", "both", "latents", "all before", "all"],
)
def test_only_what_is_missing_runs(readable: set[str], run: list[str], reuse: list[str]) -> None:
    """Walking back from the result, a stage runs if it is needed and cannot be read."""
    assert names(divide(MODEL.description.stages, {"tokens"}, readable)) == (run, reuse)


def test_pixels_are_needed_where_a_stage_that_runs_reads_them() -> None:
    """With the picture's encoding cached, its pixels are not."""
    media = read(ask_anew(with_pixels=False)).media
    assert lacks_media(divide(MODEL.description.stages, {"tokens"}, set()), media)
    assert not lacks_media(divide(MODEL.description.stages, {"tokens"}, {"moments"}), media)


def test_a_stage_sees_what_it_declares_and_nothing_else() -> None:
    """Parameters by role, pictures as RGB images, upstream by role."""
    plan = read(ask_anew())
    tokens, text, moments, denoise, _ = plan.stages
    given = {name: {"t": torch.zeros(1)} for name in ("tokens", "text", "moments")}
    assert call_for(plan, tokens, {}).parameters == {"text": "a cat"}
    assert call_for(plan, text, given).upstream.keys() == {"tokens"}
    image = call_for(plan, moments, given).media["image"]
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (8, 4), (7, 0, 248))
    assert call_for(plan, denoise, given).parameters == {"seed": 42, "strength": 1.0}
    assert call_for(plan, denoise, given).upstream.keys() == {"text", "moments"}


def test_only_stages_without_media_run_before_anything_is_known() -> None:
    """A stage that canonicalises after one that needs a device waits for its turn like others."""

    def stage(name: str, *upstream: str, media: tuple[str, ...] = (), canonicalises: bool = False) -> Stage:
        return Stage(
            name=name,
            kind=name,
            fingerprint="1",
            upstream={each: each for each in upstream},
            media=media,
            canonicalises=canonicalises,
            scope=Scope.TENANT,
            ttl=1.0,
        )

    stages = (
        stage("normal", canonicalises=True),
        stage("ids", "normal", canonicalises=True),
        stage("voice", media=("sample",), canonicalises=True),
        stage("both", "ids", "voice", canonicalises=True),
        stage("sound", "both"),
    )
    assert [stage.name for stage in canonical_first(stages)] == ["normal", "ids"]


def test_the_real_model_is_planned_alike(model: I2VGenXL) -> None:
    """Both sides compute the same addresses for a model with conditional stages."""
    description = model.description
    guided, plain = (
        read_plan(ask(description, prompt="a cat", guidance_scale=scale), {description.model: model})
        for scale in (9.0, 1.0)
    )
    assert [stage.name for stage in canonical_first(guided.stages)] == ["tokens", "negative_tokens"]
    assert [stage.name for stage in canonical_first(plain.stages)] == ["tokens"]
    assert "negative_text" not in plain.addresses


# Sounds.

SPOKEN = SpokenModel()


def read_speech(request: RunRequest) -> Plan:
    return read_plan(request, {"spoken": SPOKEN})


def edit_speech(change: Callable[[RunRequest], object]) -> RunRequest:
    request = ask_speech(SPOKEN.description)
    change(request)
    return request


def test_a_recording_is_a_medium_like_a_picture() -> None:
    """Known by identity, checked by it, and given to its stage as samples on the host; no picture is asked for."""
    plan = read_speech(ask_speech(SPOKEN.description, voice=Recorded(pitch=3, samples=5)))
    voice, prefix, *_ = plan.stages
    call = call_for(plan, voice, {})
    assert call.media == {}
    assert call.sounds["voice"].sample_rate == RATE
    assert call.sounds["voice"].pcm.dtype is torch.int16
    assert call.sounds["voice"].pcm.tolist() == [-125, -122, -119, -116, -113]
    assert call_for(plan, prefix, {"voice": {"t": torch.zeros(1)}}).sounds == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda request: request.sounds.pop("voice"),
        lambda request: setattr(request.sounds["voice"], "pcm", b"123"),
        lambda request: setattr(request.sounds["voice"], "samples", 12),
        lambda request: setattr(request.sounds["voice"], "identity", "0" * 64),
        lambda request: setattr(request.sounds["voice"], "sample_rate", RATE + 1),
        lambda request: (request.sounds.pop("voice"), request.pictures["voice"].CopyFrom(Pixels().message())),
    ],
    ids=["none", "other bytes", "another length", "another identity", "another rate", "a picture"],
)
def test_a_malformed_recording_is_named(change: Callable[[RunRequest], object]) -> None:
    """What is missing, or not what its identity says, is refused by its field."""
    with pytest.raises(InvalidInput) as refused:
        read_speech(edit_speech(change))
    assert refused.value.field == "voice"


def test_samples_are_needed_where_a_stage_that_runs_reads_them() -> None:
    """With what was made of the voice cached, the voice itself is not."""
    request = ask_speech(SPOKEN.description, with_sound=False)
    plan = read_speech(request)
    assert plan.addresses == read_speech(ask_speech(SPOKEN.description)).addresses
    assert lacks_media(divide(SPOKEN.description.stages, {"tokens"}, set()), plan.media)
    assert not lacks_media(divide(SPOKEN.description.stages, {"tokens"}, {"prefix"}), plan.media)


def test_another_recording_is_another_plan() -> None:
    """The address says whose voice it is; that of another is refused."""
    request = ask_speech(SPOKEN.description)
    request.sounds["voice"].CopyFrom(Recorded(pitch=9).message())
    with pytest.raises(PlanDiffers):
        read_speech(request)
