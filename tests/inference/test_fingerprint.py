from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from inference import fingerprint
from inference.models.i2vgen_xl import I2VGenXL, describe
from tests.inference.conftest import opened
from tests.inference.proof import nudge, prints


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
