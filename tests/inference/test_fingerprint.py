from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import I2VGenXLPipeline
from torch import nn

from cache.description import Description
from inference import fingerprint
from inference.models.i2vgen_xl import I2VGenXL, describe
from tests.inference.conftest import opened


def prints(description: Description) -> dict[str, str]:
    return {stage.kind: stage.fingerprint for stage in description.stages}


def nudge(module: nn.Module) -> None:
    """Changes one weight by a little."""
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 0.25


CHANGES: dict[str, tuple[Callable[[I2VGenXLPipeline], object], set[str]]] = {
    "tokenizer": (lambda p: p.tokenizer.add_tokens(["reprise"]), {"tokens"}),
    "text weights": (lambda p: nudge(p.text_encoder), {"text"}),
    "vision weights": (lambda p: nudge(p.image_encoder), {"vision"}),
    "vision crop": (lambda p: setattr(p.feature_extractor.crop_size, "width", 24), {"vision"}),
    "encoder weights": (lambda p: nudge(p.vae.encoder), {"moments"}),
    "decoder weights": (lambda p: nudge(p.vae.decoder), {"video"}),
    "latent scale": (lambda p: p.vae.register_to_config(scaling_factor=0.5), {"moments", "denoise", "video"}),
    "unet weights": (lambda p: nudge(p.unet), {"denoise"}),
    "unet attention": (lambda p: p.unet.set_default_attn_processor(), {"denoise"}),
    "schedule": (lambda p: p.scheduler.register_to_config(timestep_spacing="trailing"), {"denoise"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_by_the_stages_that_depend_on_it(change: str, small_folder: Path) -> None:
    """Changing one component changes the fingerprint of the stages that run on it, and of no others."""
    model = opened(small_folder)
    apply, expected = CHANGES[change]
    apply(model.pipeline)
    before, after = prints(model.description), prints(describe(model.pipeline, "small"))
    assert {kind for kind in before if before[kind] != after[kind]} == expected


def test_loading_again_changes_nothing(model: I2VGenXL, small_folder: Path, tmp_path: Path) -> None:
    """A model has one description, however often and from whatever path it is loaded."""
    elsewhere = shutil.copytree(small_folder, tmp_path / "elsewhere")
    assert opened(elsewhere).description == model.description


def test_the_compute_type_is_a_part_of_every_stage_that_computes(model: I2VGenXL, small_folder: Path) -> None:
    """Half precision gives other numbers, but the same token ids."""
    single, half = prints(model.description), prints(opened(small_folder, "bfloat16").description)
    assert {kind for kind in single if single[kind] == half[kind]} == {"tokens"}


def test_a_run_leaves_the_fingerprints_alone(model: I2VGenXL) -> None:
    """What the last call left in the tokenizer is no part of what it is."""
    model.pipeline.tokenizer("a cat", padding="max_length", max_length=9, truncation=True)
    assert prints(describe(model.pipeline, "small")) == prints(model.description)


def test_one_kind_of_stage_has_one_fingerprint(model: I2VGenXL) -> None:
    """The text of a prompt and of a negative prompt are one computation and share their entries."""
    stage = model.description.stage
    assert stage("text").fingerprint == stage("negative_text").fingerprint
    assert stage("tokens").fingerprint == stage("negative_tokens").fingerprint


def test_revisions_differ_with_what_is_described(model: I2VGenXL, small_folder: Path) -> None:
    """The revision names everything that the description says."""
    other = opened(small_folder)
    nudge(other.pipeline.unet)
    revisions = [
        describe(pipeline, name).revision
        for pipeline, name in ((model.pipeline, "small"), (other.pipeline, "small"), (model.pipeline, "tiny"))
    ]
    assert len(set(revisions)) == 3


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(nn.Linear(3, 2, dtype=torch.float64), id="type"),
        pytest.param(nn.Linear(2, 3), id="shape"),
        pytest.param(nn.Sequential(nn.Linear(3, 2)), id="name"),
        pytest.param(nn.Linear(3, 2), id="value"),
    ],
)
def test_weights_are_hashed_by_name_type_shape_and_value(other: nn.Module) -> None:
    """No two states of weights have one hash."""
    linear = nn.Linear(3, 2)
    for module in (linear, other):
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    if isinstance(other, nn.Linear) and other.weight.dtype == linear.weight.dtype:
        nn.init.constant_(other.bias, 1.0)
    assert fingerprint.of_weights(other) != fingerprint.of_weights(linear)
    assert fingerprint.of_weights(linear, None) != fingerprint.of_weights(None, linear)


def test_the_code_version_is_a_part(model: I2VGenXL) -> None:
    """A change of our own code ends the reuse of what the old code made."""
    assert len({fingerprint.of_stage("text", version, {"a": 1}) for version in (1, 2)}) == 2
