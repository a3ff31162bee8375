"""What of CosyVoice is the user's: the checkout of its code, and the folder of a model."""

from __future__ import annotations

import logging
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from inference.models import load, small
from inference.models.cosyvoice3 import checkout, folder
from inference.models.cosyvoice3.checkout import VARIABLE, NoCheckout, enter

DIGEST = "from inference.models.cosyvoice3.checkout import enter; print(enter().digest)"


@pytest.fixture
def speaker(tmp_path: Path) -> Path:
    return small.build(tmp_path / "model", family="cosyvoice3")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Another checkout than the one that this process is in."""
    return shutil.copytree(enter().folder, tmp_path / "CosyVoice", ignore=shutil.ignore_patterns("__pycache__", ".git"))


def opened(model: Path, **options: Any) -> Any:
    return load(str(model), name="small", device="cpu", **options)


# --- code ----------------------------------------------------------------------------------------------------------


def test_without_a_checkout_it_is_said_what_to_set(
    speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither loading nor building a small model goes any further, and both say the variable and the setting."""
    monkeypatch.delenv(VARIABLE)
    for attempt in (lambda: opened(speaker), lambda: small.build(tmp_path / "other", family="cosyvoice3")):
        with pytest.raises(NoCheckout, match=r"git clone --recursive .*set REPRISE_COSYVOICE, or `checkout`"):
            attempt()
    assert not (tmp_path / "other").exists()


def test_what_is_no_checkout_is_refused(code: Path, tmp_path: Path) -> None:
    """A folder without its code, or without its submodule, says how to get it."""
    with pytest.raises(NoCheckout, match="is no checkout of CosyVoice: git clone"):
        enter(str(tmp_path / "nowhere"))
    shutil.rmtree(code / "third_party")
    with pytest.raises(NoCheckout, match="git submodule update --init --recursive"):
        enter(str(code))


def test_a_process_has_one_checkout(code: Path, speaker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one, and a package of that name that was imported before, are never mixed with it."""
    with pytest.raises(NoCheckout, match="this process has another cosyvoice"):
        opened(speaker, checkout=str(code))
    stranger = ModuleType("cosyvoice")
    stranger.__file__ = "site-packages/cosyvoice/__init__.py"
    monkeypatch.setitem(sys.modules, "cosyvoice", stranger)
    with pytest.raises(NoCheckout, match="another cosyvoice, of site-packages/cosyvoice"):
        opened(speaker)


def test_the_setting_goes_before_the_environment(speaker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's own checkout is taken; a family that needs none refuses one."""
    place = str(enter().folder)
    monkeypatch.setenv(VARIABLE, "/nowhere")
    assert opened(speaker, checkout=place).description.family == "cosyvoice3"
    other = small.build(speaker.parent / "pocket", family="pocket-tts")
    with pytest.raises(ValueError, match="needs no checkout"):
        opened(other, checkout=place)


def test_what_is_lacking_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that CosyVoice needs, with the extra that has it; and a CosyVoice that has not what is needed."""
    with pytest.raises(NoCheckout, match="it is no CosyVoice that this adapter knows"):
        enter().named("cosyvoice.llm.llm.CosyVoice4LM")
    with pytest.raises(NoCheckout, match=r"has no cosyvoice\.vocoder\.Vocoder"):
        enter().named("cosyvoice.vocoder.Vocoder")
    monkeypatch.delitem(sys.modules, "cosyvoice.cli.frontend", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NoCheckout, match=r'needs onnxruntime, which is not installed here: pip install "reprise\[cosy'):
        enter().named("cosyvoice.cli.frontend.CosyVoiceFrontEnd")


def test_other_code_is_another_fingerprint(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a checkout lies, its digest is that of its code, to the letter."""

    def digest(place: Path) -> str:
        monkeypatch.setenv(VARIABLE, str(place))
        return subprocess.run([sys.executable, "-c", DIGEST], check=True, capture_output=True, text=True).stdout.strip()

    own = enter().digest
    assert digest(code) == own
    with (code / "cosyvoice" / "flow" / "flow.py").open("a") as file:
        file.write("# changed\n")
    assert digest(code) != own


def test_loading_leaves_the_process_as_it_was(speaker: Path) -> None:
    """CosyVoice seeds every generator while it is built, and sets up logging while it is imported."""
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    root = logging.getLogger()
    level, handlers, path = root.level, list(root.handlers), list(sys.path)
    opened(speaker)
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert (root.level, root.handlers, sys.path) == (level, handlers, path)


# --- a model's folder ----------------------------------------------------------------------------------------------


def edit(model: Path, change: Callable[[str], str]) -> None:
    file = model / folder.CONFIG
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before


RUNS_CODE = (
    "!apply:os.mkdir [{place}]",
    "!new:os.mkdir {{path: {place}}}",
    "!new:cosyvoice.utils.common.np.os.mkdir {{path: {place}}}",
    "!!python/object/apply:os.mkdir [{place}]",
    "!include:{place}",
)


@pytest.mark.parametrize("line", RUNS_CODE)
def test_a_folder_runs_no_code(speaker: Path, tmp_path: Path, line: str) -> None:
    """Its configuration may name what is known, and nothing else: neither on the way nor as one of the parts."""
    place = tmp_path / "made"
    for key in ("allowed_special: all", "        pre_lookahead_len: 3"):
        copy = shutil.copytree(speaker, tmp_path / f"copy-{len(key)}")
        edit(copy, lambda text, key=key: text.replace(key, f"{key.partition(':')[0]}: {line.format(place=place)}"))  # type: ignore[misc]
        with pytest.raises(ValueError, match=r"cosyvoice3\.yaml"):
            opened(copy)
    assert not place.exists()


def test_what_only_training_needs_is_not_looked_at(speaker: Path) -> None:
    """Discriminators, data and seeds, which published files have, may name whatever they like."""
    more = "\n".join(f"key{number}: {line.format(place='/nowhere')}" for number, line in enumerate(RUNS_CODE))
    edit(speaker, lambda text: f"{more}\n{text}\nhifigan: !new:cosyvoice.hifigan.hifigan.HiFiGan\n    other: 1\n")
    assert opened(speaker).description.family == "cosyvoice3"


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "a part is missing": (lambda text: text.replace("flow: !new", "flew: !new"), "it lacks flow"),
    "a reference to nothing": (
        lambda text: text.replace("!ref <sample_rate>", "!ref <rate>"),
        "it refers to rate, which",
    ),
    "a sum": (lambda text: text.replace("<chunk_size> * <", "<chunk_size> + <"), "it refers to chunk_size"),
    "a factor of words": (lambda text: text.replace("<chunk_size> * <", "chunk * <"), "invalid literal"),
    "a list": (lambda text: "- a list", "it is no mapping"),
    "no YAML": (lambda text: "{", "does not describe a CosyVoice 3"),
    "an argument of no class": (
        lambda text: text.replace("    input_size: 80", "    colour: red"),
        "does not describe",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_configuration_is_refused(speaker: Path, damage: str) -> None:
    """With the file, and what is wrong with it."""
    change, complaint = DAMAGE[damage]
    edit(speaker, change)
    with pytest.raises(ValueError, match=rf"cosyvoice3\.yaml.*{complaint}"):
        opened(speaker)


def test_what_a_folder_lacks_is_named(speaker: Path) -> None:
    """Its graphs, its weights, its language model; and weights of another network."""
    weights = torch.load(speaker / "hift.pt", weights_only=True)
    torch.save({f"generator.{name}": tensor for name, tensor in weights.items()}, speaker / "hift.pt")
    assert opened(speaker)  # as they are saved while they are trained
    torch.save(torch.load(speaker / "flow.pt", weights_only=True), speaker / "hift.pt")
    with pytest.raises(ValueError, match=r"hift\.pt holds the weights of another network"):
        opened(speaker)
    shutil.rmtree(speaker / folder.LANGUAGE_MODEL)
    with pytest.raises(ValueError, match=r"lacks a part of a CosyVoice 3|does not describe a CosyVoice 3"):
        opened(speaker)
    (speaker / "campplus.onnx").unlink()
    with pytest.raises(ValueError, match=r"lacks campplus\.onnx"):
        opened(speaker)


@pytest.mark.parametrize(
    ("part", "complaint"),
    [("flow.flow.CausalMaskedDiffWithDiT", "another way"), ("hifigan.generator.CausalHiFT", "rate")],
)
def test_a_cosyvoice_that_sounds_otherwise_is_refused(
    speaker: Path, part: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is loaded, and not by the first request."""
    kind = enter().named(f"cosyvoice.{part}{'Generator' if part.endswith('HiFT') else ''}")
    infer = kind.inference

    def otherwise(self: Any, *, speech_feat: torch.Tensor, finalize: bool) -> Any:
        samples, source = infer(self, speech_feat=speech_feat, finalize=finalize)
        return samples.repeat(1, 2), source

    monkeypatch.setattr(kind, "inference", otherwise)
    with pytest.raises(ValueError, match=complaint):
        opened(speaker)


def test_stored_speakers_are_never_opened(speaker: Path) -> None:
    """What lies in the folder beside what is needed changes nothing."""
    before = opened(speaker).description
    (speaker / "spk2info.pt").write_bytes(b"anything")
    assert opened(speaker).description == before


def test_numbers_are_read_as_yaml_means_them(speaker: Path) -> None:
    """Also those without a point, which the reader at hand would take for words."""
    built = folder.build(speaker, checkout.enter())
    assert built.sample_rate == 24_000
    assert built.flow.decoder.estimator.static_chunk_size == 50
    assert built.llm.sampling.keywords == {"top_p": 0.8, "top_k": 25, "win_size": 10, "tau_r": 0.1}
