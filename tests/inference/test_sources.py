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
from tests.inference.scripted_device import ScriptedDevice

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


@pytest.fixture
def speaker(tmp_path: Path) -> Path:
    """A model without a pipeline, with a codec in a folder of its own."""
    return small.build(tmp_path / "speaker", family="pocket-tts")


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


def test_a_model_without_a_pipeline_is_told_as_it_is(speaker: Path) -> None:
    """The class of its configuration, and the numbers in it and in its codec; what it lacks is told."""
    examined = examine(str(speaker))
    pipeline = opened(speaker).pipeline
    counts = {
        name: sum(tensor.numel() for tensor in part.state_dict().values())
        for name, part in (("model", pipeline.model), ("codec", pipeline.codec))
    }
    assert {part.name: part.parameters for part in examined.parts} == counts
    kinds = {part.name: part.kind for part in examined.parts}
    assert kinds == {"model": "PocketTTSForConditionalGeneration", "codec": "PocketTTSAudioTokenizerModel"}
    assert (examined.pipeline, examined.random_weights, examined.lacking) == (kinds["model"], True, ())
    assert check(speaker, "--device", "cpu").output.endswith(f"{{name: NAME, source: {speaker}}}\n")
    (speaker / "audio_tokenizer" / "model.safetensors").unlink()
    assert "no safetensors file for codec" in check(speaker).output


def test_a_model_of_no_known_family_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """One without a codec, and a configuration that names no class."""
    (tmp_path / "config.json").write_text('{"architectures": ["SomeModel"]}')
    assert "it is of no known family: those are " in check(tmp_path).output
    for config in ("{}", "[]", '{"architectures": []}', "no JSON"):
        (tmp_path / "config.json").write_text(config)
        assert "neither a folder nor a hub id" in check(tmp_path).output


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


@pytest.mark.parametrize(("family", "kind"), [("svd", "float16"), ("wan-i2v", "bfloat16"), ("pocket-tts", "float32")])
def test_memory_on_an_accelerator_is_told_as_the_family_runs_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kind: str
) -> None:
    """Half precision is no matter of course."""
    monkeypatch.setattr("inference.models.__main__.open_device", lambda wanted: ScriptedDevice())
    monkeypatch.setattr(ScriptedDevice, "place", torch.device("cuda"))
    assert f"weights as {kind}: " in check(small.build(tmp_path / family, family=family)).output


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
    assert (
        "no known family: those are CosyVoice3, I2VGenXLPipeline, PocketTTSForConditionalGeneration, " in unknown.output
    )
    assert "neither a folder nor a hub id" in nothing.output


def test_a_model_of_a_checkout_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CosyVoice's files of tensors are counted without being read; what lacks is told, and so is its code."""
    folder = small.build(tmp_path / "speaker", family="cosyvoice3")
    counts = {
        part: sum(tensor.numel() for tensor in torch.load(folder / f"{part}.pt", weights_only=True).values())
        for part in ("llm", "flow", "hift")
    }
    examined = examine(str(folder))
    assert {part.name: part.parameters for part in examined.parts} == counts
    assert (examined.pipeline, examined.random_weights, examined.lacking) == ("CosyVoice3", True, ())
    assert check(folder, "--device", "cpu").output.endswith(f"{{name: NAME, source: {folder}}}\n")
    (folder / "flow.pt").write_bytes(b"no tensors")
    (folder / "hift.pt").unlink()
    assert "it has no file of tensors for flow, hift" in check(folder).output
    monkeypatch.delenv("REPRISE_COSYVOICE")
    assert "set REPRISE_COSYVOICE, or `checkout`" in check(folder).output


@pytest.mark.parametrize("family", ["svd", "pocket-tts", "cosyvoice3"])
def test_a_model_of_the_hub_is_pinned(tmp_path: Path, family: str) -> None:
    """A name means the newest revision and is told with it; a name with a revision means that one."""
    hub = tmp_path / "home" / "hub"
    for commit, licence in zip(COMMITS, ("mit", "openrail"), strict=True):
        copy = published(small.build(tmp_path / family, family=family), hub / "models--someone--model", commit)
        (copy / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    (hub / "models--someone--model" / "snapshots" / COMMITS[0] / MARKER).unlink()

    newest, pinned, missing = checked_offline(
        tmp_path / "home", *(f"someone/model{end}" for end in ("", f"@{COMMITS[0]}", "@" + "3" * 40))
    )
    assert f"licence: openrail\n  revision: {COMMITS[1]}" in newest
    assert f"{{name: NAME, source: someone/model@{COMMITS[1]}}}\n" in newest
    assert "random weights" in newest
    assert f"licence: mit\n  revision: {COMMITS[0]}" in pinned
    assert "random weights" not in pinned
    assert "neither a folder nor a hub id" in missing


def test_a_codec_of_the_hub_is_found(speaker: Path, tmp_path: Path) -> None:
    """A model that names its codec by a hub id has that one."""
    hub = tmp_path / "home" / "hub"
    published(
        Path(shutil.move(speaker / "audio_tokenizer", tmp_path / "codec")), hub / "models--someone--codec", COMMITS[0]
    )
    processor = speaker / "processor_config.json"
    config = json.loads(processor.read_text())
    config["audio_tokenizer"]["audio_tokenizer_name_or_path"] = "someone/codec"
    processor.write_text(json.dumps(config))
    (told,) = checked_offline(tmp_path / "home", str(speaker))
    assert "codec            PocketTTSAudioTokenizerModel, 0.3" in told
    assert told.endswith(f"{{name: NAME, source: {speaker}}}\n")


def published(folder: Path, repository: Path, commit: str) -> Path:
    """A folder as the hub's own files keep it, as the newest commit."""
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(folder, repository / "snapshots" / commit))


def checked_offline(home: Path, *sources: str) -> list[str]:
    """What is told of each, by a process of its own, because the library reads its environment when it is imported."""
    told = subprocess.run(
        [sys.executable, "-c", CHECK_EACH, *sources],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return told[:-1].split("\0")
