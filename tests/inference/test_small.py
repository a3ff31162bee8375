from __future__ import annotations

import json
from pathlib import Path

import pytest

from cache.digest import Digest
from inference.models import load, small
from inference.models.base import weight_of
from inference.models.i2vgen_xl import I2VGenXL
from inference.models.loading import MARKER


def files(folder: Path) -> dict[str, str]:
    """Digest of every file by its path in the folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): str(Digest.of(path.read_bytes())) for path in found}


@pytest.mark.parametrize("family", small.FAMILIES)
def test_one_seed_gives_one_model(tmp_path: Path, family: str) -> None:
    """Built anywhere with one seed, every file is the same; with another, the weights and the note of it differ."""
    built = {name: files(small.build(tmp_path / name, seed, family=family)) for name, seed in SEEDS.items()}
    assert built["first"] == built["second"]
    different = {name for name, digest in built["first"].items() if built["other"][name] != digest}
    assert different == {name for name in built["first"] if name.endswith(WEIGHTS)} | {MARKER}


SEEDS = {"first": 0, "second": 0, "other": 1}
WEIGHTS = (".safetensors", ".pt", ".onnx")


def test_a_complete_folder_is_left_as_it_is(tmp_path: Path) -> None:
    """Building again does nothing; another seed or family replaces the model; what is not ours is never touched."""
    folder = small.build(tmp_path / "model")
    (folder / "note").write_text("kept")
    assert (small.build(folder) / "note").exists()
    assert not (small.build(folder, seed=1) / "note").exists()
    small.build(folder, family="wan-i2v")
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "WanImageToVideoPipeline"
    (folder / MARKER).unlink()
    with pytest.raises(ValueError, match="holds no small model"):
        small.build(folder)


@pytest.mark.parametrize("family", small.FAMILIES)
def test_the_folder_is_small_and_says_what_it_is(tmp_path: Path, family: str) -> None:
    """A few megabytes, marked as random weights, which the description repeats."""
    folder = small.build(tmp_path / "model", family=family)
    assert json.loads((folder / MARKER).read_text())["random_weights"] is True
    description = load(str(folder), name="small", device="cpu").description
    assert (description.random_weights, description.family) == (True, family)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 8 * 2**20


def test_a_family_without_a_small_model_is_refused(tmp_path: Path) -> None:
    """With the names of those that have one."""
    with pytest.raises(ValueError, match="cosyvoice3, i2vgen-xl, pocket-tts, svd, wan-i2v"):
        small.build(tmp_path / "model", family="sora")


def test_a_model_weighs_what_its_files_hold(small_folder: Path, model: I2VGenXL) -> None:
    """All its networks, as they lie on the device; what two of them share is counted once."""
    files = sum(path.stat().st_size for path in small_folder.rglob("*.safetensors"))
    assert files * 0.9 < weight_of(model.modules) <= files
    assert weight_of([model.pipeline.vae]) == weight_of([model.pipeline.vae, model.pipeline.vae.decoder])


@pytest.mark.parametrize("text", ["Ein Hund läuft", "猫が歩く", "🙂\u200d🙂", "\x00\x7f\ud7ff", "nai\u0308ve"])
def test_any_text_can_be_spelled_out(text: str, model: I2VGenXL) -> None:
    """What the vocabulary has no word for becomes bytes: nothing is unknown."""
    tokenizer = model.pipeline.tokenizer
    inner = tokenizer(text).input_ids[1:-1]
    assert inner
    assert tokenizer.unk_token_id not in inner


def test_a_sentence_fits_into_the_model(model: I2VGenXL) -> None:
    """Common words are single tokens, so that the end of an ordinary prompt still matters."""
    words = "a small cat walks slowly through the wet grass in the warm evening light"
    assert len(model.pipeline.tokenizer(words).input_ids) <= len(words.split()) + 4
