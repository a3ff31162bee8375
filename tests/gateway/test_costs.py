"""Costs: what stages took lately, and what one will take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cache.description import Description, Parameter, Scalar
from cache.keys import Address
from gateway.costs import Costs
from gateway.history import Asked
from tests.gateway.worker import family, speaker

_PROPORTIONAL = {"num_frames": "onward", "num_inference_steps": "stage"}


def scaling() -> Description:
    """The scripted family, which says what its time grows with, and has a choice."""
    plain = family()
    parameters = [each.model_copy(update={"proportional": _PROPORTIONAL.get(each.name)}) for each in plain.parameters]
    parameters.append(Parameter(name="format", kind="choice", default="mp4", choices=("mp4", "webm")))
    stages = [
        stage.model_copy(update={"parameters": {**stage.parameters, "format": "format"}})
        if stage is plain.final
        else stage
        for stage in plain.stages
    ]
    return plain.model_copy(update={"parameters": tuple(parameters), "stages": tuple(stages)})


FAMILY = scaling()


def parameters(**given: Any) -> dict[str, Scalar]:
    return {each.name: given.get(each.name, each.default or 0) for each in FAMILY.parameters} | {"prompt": "a cat"}


def learned(*samples: tuple[str, dict[str, Any], float]) -> Costs:
    costs = Costs()
    for stage, given, seconds in samples:
        costs.learn(FAMILY, stage, parameters(**given), seconds)
    return costs


def test_what_was_never_seen_has_no_estimate() -> None:
    """Not for an unknown stage, nor for the same stage of another model or revision."""
    costs = learned(("denoise", {}, 4.0))
    assert costs.estimate(FAMILY, "render", parameters()) is None
    assert costs.estimate(FAMILY.model_copy(update={"revision": "r2"}), "denoise", parameters()) is None
    assert costs.estimate(FAMILY.model_copy(update={"model": "other"}), "denoise", parameters()) is None


def test_equal_work_costs_the_median_of_what_it_did() -> None:
    """Of the last five; what does not change the work (texts, seeds) makes no difference."""
    samples = [("denoise", {"seed": seed}, seconds) for seed, seconds in enumerate((99.0, 1.0, 2.0, 3.0, 100.0, 4.0))]
    assert 3.0 == learned(*samples).estimate(FAMILY, "denoise", parameters(prompt="a dog", seed=77))


@pytest.mark.parametrize(
    ("stage", "given", "expected"),
    [
        ("denoise", {"num_inference_steps": 4}, 8.0),
        ("denoise", {"num_inference_steps": 1, "num_frames": 64}, 8.0),
        ("render", {"num_frames": 32}, 1.0),  # through what it reads
        ("render", {"num_inference_steps": 50}, 0.5),  # a matter of the denoising alone
        ("render", {"playback_fps": 60}, 0.5),  # no one says that time grows with it
        ("picture", {"num_frames": 64}, 0.25),
    ],
)
def test_other_work_is_scaled(stage: str, given: dict[str, Any], expected: float) -> None:
    """In proportion to what the model says time grows with, for the stages that it reaches."""
    costs = learned(("denoise", {}, 4.0), ("render", {}, 0.5), ("picture", {}, 0.25))
    assert expected == pytest.approx(costs.estimate(FAMILY, stage, parameters(**given)))


def test_the_nearest_work_is_scaled() -> None:
    """Of several sizes the one whose ratio is smallest, because nothing is quite proportional."""
    costs = learned(("denoise", {"num_frames": 4}, 3.0), ("denoise", {"num_frames": 32}, 9.0))
    assert 4.5 == pytest.approx(costs.estimate(FAMILY, "denoise", parameters(num_frames=16)))
    assert 4.5 == pytest.approx(costs.estimate(FAMILY, "denoise", parameters(num_frames=6)))


def test_other_sorts_of_work_are_the_last_resort() -> None:
    """Another container, or a run without guidance, is other work: its cost counts while there is no better one."""
    costs = learned(("render", {"format": "webm"}, 2.0), ("denoise", {"guidance_scale": 1.0}, 2.0))
    assert 2.0 == costs.estimate(FAMILY, "render", parameters(format="mp4"))
    costs.learn(FAMILY, "render", parameters(format="mp4", num_frames=8), 0.25)
    costs.learn(FAMILY, "denoise", parameters(num_frames=8), 2.0)
    assert 0.5 == pytest.approx(costs.estimate(FAMILY, "render", parameters(format="mp4")))
    assert 4.0 == pytest.approx(costs.estimate(FAMILY, "denoise", parameters()))


def test_hearsay_gives_way_to_what_was_measured() -> None:
    """What others tell is believed for work that was not measured here, once."""
    costs = learned(("denoise", {}, 4.0))
    costs.learn(FAMILY, "denoise", parameters(), 100.0, hearsay=True)
    costs.learn(FAMILY, "render", parameters(), 1.0, hearsay=True)
    costs.learn(FAMILY, "render", parameters(), 100.0, hearsay=True)
    assert (4.0, 1.0) == tuple(costs.estimate(FAMILY, stage, parameters()) for stage in ("denoise", "render"))


def test_memory_is_bounded() -> None:
    """However many models, stages and sizes there are; the latest stay."""
    costs = Costs()
    for number in range(1000):
        model = FAMILY.model_copy(update={"revision": f"r{number}"})
        costs.learn(model, "denoise", parameters(), 1.0)
    for steps in range(1, 101):
        costs.learn(FAMILY, "denoise", parameters(num_inference_steps=steps), steps * 2.0)
    assert 512 == len(costs._known)
    assert 32 == max(map(len, costs._known.values()))
    assert 200.0 == costs.estimate(FAMILY, "denoise", parameters(num_inference_steps=100))


def test_nothing_breaks_at_zero() -> None:
    """Work of no time, and amounts that no proportion can be taken of, are no error."""
    costs = learned(("denoise", {"num_frames": 0}, 0.0))
    assert 0.0 == costs.estimate(FAMILY, "denoise", parameters())


def test_rows_teach_what_they_can() -> None:
    """A row of this model with all its fields and true numbers; no other does, and none does harm."""
    fields = parameters() | {"prompt": "digest"}
    good = Asked(
        Address("0" * 32, "1" * 64), 1.0, FAMILY.model, FAMILY.revision, fields, {}, {"denoise": 4.0, "x": 1.0}
    )
    costs = Costs()
    for row in (
        replace(good, revision="r2"),
        replace(good, fields={"num_frames": 16}),
        replace(good, fields=fields | {"num_frames": "many"}),
        replace(good, fields=fields | {"guidance_scale": "much"}),
        replace(good, seconds={"denoise": float("inf")}),
    ):
        costs.learn_row(FAMILY, row)
    assert costs.estimate(FAMILY, "denoise", parameters()) is None
    costs.learn_row(FAMILY, good)
    assert 8.0 == costs.estimate(FAMILY, "denoise", parameters(num_frames=32))


def test_all_stages_of_a_request_at_once() -> None:
    """Those of which something is known; of a stage that runs sentence by sentence also each sentence."""
    costs, description = Costs(), speaker()
    said = {each.name: each.default or 0 for each in description.parameters} | {"text": "A cat. A dog."}
    costs.learn(description, "voice", said, 0.5)
    costs.learn(description, "latents", said, 4.0)
    costs.learn(description, "latents", said, 2.0, part=True)

    assert {"voice": 0.5, "latents": 4.0, "latents[]": 2.0} == costs.estimates(description, description.stages, said)
