"""Where models come from, and what is told of them before they are loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from inference.models import small
from inference.models.__main__ import main
from inference.models.loading import MARKER
from inference.models.sources import examine
from tests.inference.proof import opened

CHECK_EACH = """
import sys
from click.testing import CliRunner
from inference.models.__main__ import main
print(*(CliRunner().invoke(main, ["check", source]).output for source in sys.argv[1:]), sep="\\0")
"""
COMMITS = ["1" * 40, "2" * 40]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.build(tmp_path / "model", family="svd")


def check(*words: object) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, words)])


def test_a_folder_is_told_as_it_is(folder: Path) -> None:
    """Its class, the numbers in every part that has weights, and no revision."""
    examined = examine(str(folder))
    pipeline = opened(folder).pipeline
    counts = {
        name: sum(tensor.numel() for tensor in part.state_dict().values())
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
    }
    assert {part.name: part.parameters for part in examined.parts} == counts
    assert (examined.pipeline, examined.revision) == ("StableVideoDiffusionPipeline", "")
    assert (examined.random_weights, examined.lacking) == (True, ())


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# Hello", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: community\n---\n", "community"),
        ("---\n: [\n---\n", "see LICENSE.md"),
        ("# A card that says nothing", "see LICENSE.md"),
    ],
)
def test_a_licence_is_what_the_card_states(folder: Path, card: str, licence: str) -> None:
    """Else it is told where it can be read, and if nowhere, that it is not stated."""
    assert "licence: not stated" in check(folder).output
    (folder / "LICENSE.md").write_text("all of it")
    (folder / "README.md").write_text(card)
    assert examine(str(folder)).licence == licence


def test_shards_are_counted_once_and_variants_not_at_all(folder: Path) -> None:
    """What counts is what would be loaded."""
    before = examine(str(folder)).parameters
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
    assert examine(str(folder)).parameters == before
    shard = weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
    index = {"weight_map": dict.fromkeys(load_file(shard), shard.name)}
    weights.with_suffix(".safetensors.index.json").write_text(json.dumps(index))
    assert examine(str(folder)).parameters == before


def test_what_a_worker_could_serve_is_ready_to_be_configured(folder: Path) -> None:
    """Memory is told in the type a worker would use, and the last line is for its configuration."""
    result = check(folder, "--device", "cpu")
    mib = examine(str(folder)).parameters * 4 / 2**20
    assert result.exit_code == 0
    assert f"weights as float32: {mib:,.1f} MiB, on a cpu with " in result.output
    assert result.output.endswith(f"{{name: NAME, source: {folder}}}\n")
    assert f"weights as bfloat16: {mib / 2:,.1f} MiB" in check(folder, "--dtype", "bfloat16", "--device", "cpu").output


def test_what_a_worker_could_not_serve_fails_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown family, pickled weights, too little memory, or no model at all: in a sentence, with exit code 1."""
    with monkeypatch.context() as patch:
        patch.setattr("inference.models.__main__._bytes_of", lambda device: 2**20)
        small_machine = check(folder)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    pickled = check(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "SomePipeline"}))
    unknown, nothing = check(folder), check(folder.parent)
    results = [small_machine, pickled, unknown, nothing]
    assert [result.exit_code for result in results] == [1] * 4
    assert "its weights alone do not fit" in small_machine.output
    assert "no safetensors file for vae" in pickled.output
    assert "no known family: those are I2VGenXLPipeline, StableVideo" in unknown.output
    assert "neither a folder nor a hub id" in nothing.output


def test_a_model_of_the_hub_is_pinned(folder: Path, tmp_path: Path) -> None:
    """A name means the newest revision and is told with it; a name with a revision means that one."""
    cache = tmp_path / "home" / "hub" / "models--someone--svd"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(COMMITS[1])
    for commit, licence in zip(COMMITS, ("mit", "openrail"), strict=True):
        copy = shutil.copytree(folder, cache / "snapshots" / commit)
        (copy / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    (cache / "snapshots" / COMMITS[0] / MARKER).unlink()

    sources = [f"someone/svd{end}" for end in ("", f"@{COMMITS[0]}", "@" + "3" * 40)]
    told = subprocess.run(  # a process of its own, because the library reads its environment when it is imported
        [sys.executable, "-c", CHECK_EACH, *sources],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    newest, pinned, missing = told.split("\0")
    assert f"licence: openrail\n  revision: {COMMITS[1]}" in newest
    assert f"{{name: NAME, source: someone/svd@{COMMITS[1]}}}\n" in newest
    assert "random weights" in newest
    assert f"licence: mit\n  revision: {COMMITS[0]}" in pinned
    assert "random weights" not in pinned
    assert "neither a folder nor a hub id" in missing
