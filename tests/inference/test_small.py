from __future__ import annotations

import json
from pathlib import Path

import pytest

from cache.digest import Digest
from inference.models import small
from inference.models.i2vgen_xl import I2VGenXL
from inference.models.loading import MARKER


def files(folder: Path) -> dict[str, str]:
    """Digest of every file by its path in the folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): str(Digest.of(path.read_bytes())) for path in found}


def test_one_seed_gives_one_model(small_folder: Path, tmp_path: Path) -> None:
    """Built anywhere with the same seed, every file is the same."""
    assert files(small.build(tmp_path / "again")) == files(small_folder)


def test_another_seed_gives_other_weights(small_folder: Path, tmp_path: Path) -> None:
    """The seed changes the weights and nothing else but the note of it."""
    here, there = files(small_folder), files(small.build(tmp_path / "other", seed=1))
    different = {Path(name).name for name in here if here[name] != there[name]}
    assert different == {"model.safetensors", "diffusion_pytorch_model.safetensors", MARKER}


def test_a_complete_folder_is_left_as_it_is(tmp_path: Path) -> None:
    """Building again does nothing; another seed replaces the model; what is not ours is never touched."""
    folder = small.build(tmp_path / "model")
    (folder / "note").write_text("kept")
    assert (small.build(folder) / "note").exists()
    assert not (small.build(folder, seed=1) / "note").exists()
    (folder / MARKER).unlink()
    with pytest.raises(ValueError, match="holds no small model"):
        small.build(folder)


def test_the_folder_is_small_and_says_what_it_is(small_folder: Path, model: I2VGenXL) -> None:
    """A few megabytes, marked as random weights, which the description repeats."""
    assert json.loads((small_folder / MARKER).read_text())["random_weights"] is True
    assert model.description.random_weights
    assert sum(path.stat().st_size for path in small_folder.rglob("*") if path.is_file()) < 6 * 2**20


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
