"""Sources: where a model comes from, a folder or `OWNER/NAME@REVISION` of the hub, and what is known of it unloaded.

    python -m inference.models check SOURCE

A name without a revision means whatever is newest there today; entries are safe from that, because they are named by
the weights themselves, but what a worker serves after its next start is not. `check` prints the name with its revision.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from inference.models.loading import has_random_weights

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_MODEL = (
    "{} is neither a folder nor a hub id of a model with a model_index.json or config.json and safetensors files"
)
_COSYVOICE, _COSYVOICE_CONFIG = "CosyVoice3", "cosyvoice3.yaml"
_COSYVOICE_WEIGHTS = {"llm": "llm.pt", "flow": "flow.pt", "hift": "hift.pt"}
_PIPELINE, _MODEL, _PROCESSOR = "model_index.json", "config.json", "processor_config.json"
# Of a repository without a pipeline, what there is to load; never the voices that some bring along.
_FETCHED, _LEFT = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"], ["voices/*"]
_FETCHED_OF_COSYVOICE = [
    _COSYVOICE_CONFIG,
    *_COSYVOICE_WEIGHTS.values(),
    "campplus.onnx",
    "speech_tokenizer_v3.onnx",
    "CosyVoice-BlankEN/*",
]
_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md")


@dataclass(frozen=True)
class Part:
    """A component with weights. `parameters` is their number; 0: it has none that are in a safetensors file."""

    name: str
    kind: str  # its class
    parameters: int


@dataclass(frozen=True)
class Examined:
    """What a model's folder says of it, without its weights being read."""

    source: str  # pinned to a revision where it has one
    pipeline: str  # its class
    parts: tuple[Part, ...]
    licence: str  # empty: it states none
    revision: str  # empty: a folder of one's own
    random_weights: bool

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def lacking(self) -> tuple[str, ...]:
        """Parts that must have weights and have none that may be read."""
        return tuple(part.name for part in self.parts if not part.parameters)


def folder_of(source: str) -> Path:
    """The folder of a model on this machine, fetched from the hub if need be. Raises ValueError for what is none."""
    if (folder := Path(source)).is_dir():
        return folder
    name, _, revision = source.partition("@")
    try:
        if _has(name, revision, _PIPELINE):
            return Path(DiffusionPipeline.download(name, revision=revision or None, use_safetensors=True))
        fetched = _FETCHED_OF_COSYVOICE if _has(name, revision, _COSYVOICE_CONFIG) else _FETCHED
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=fetched, ignore_patterns=_LEFT))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise ValueError(f"{_NO_MODEL.format(source)}, or the hub cannot be reached from here") from error


def codec_folder(folder: Path) -> Path:
    """The folder of the codec that a model of speech is for: within its own, or by its path or hub id, fetched if need
    be. Raises ValueError for a model that names none, or one that is not there.
    """
    named = _codec_of(folder)
    if not named:
        raise ValueError(f"{folder} names no codec")
    if (folder / named).is_dir():
        return folder / named
    if "/" not in named:  # no hub id of anybody's
        raise ValueError(f"{folder} has no folder {named} with its codec")
    return folder_of(named)


def pipeline_class(folder: Path) -> str:
    """The class that a model's folder names: of its pipeline, or, if it has none, of its model. Raises ValueError for
    a folder that holds no model.
    """
    try:
        if (folder / _PIPELINE).is_file():
            return str(_read(folder / _PIPELINE)["_class_name"])
        if (folder / _COSYVOICE_CONFIG).is_file():
            return _COSYVOICE
        return str(_read(folder / _MODEL)["architectures"][0])
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise ValueError(_NO_MODEL.format(folder)) from error


def examine(source: str) -> Examined:
    """What there is to know of a model before it is loaded. Raises ValueError for what is no model."""
    folder = folder_of(source)
    pipeline = pipeline_class(folder)
    # The hub's folders are called after the commit they are of.
    own = Path(source).is_dir()
    revision = folder.name if not own and _COMMIT.fullmatch(folder.name) else ""
    return Examined(
        source=f"{source.partition('@')[0]}@{revision}" if revision else source,
        pipeline=pipeline,
        parts=tuple(_parts(folder)),
        licence=_licence(folder, None if own else _card_of(source.partition("@")[0], revision)),
        revision=revision,
        random_weights=has_random_weights(str(folder)),
    )


def _has(name: str, revision: str, file: str) -> bool:
    """Whether a repository of the hub has such a file at its top."""
    try:
        hf_hub_download(name, file, revision=revision or None)
    except EntryNotFoundError:
        return False
    return True


def _parts(folder: Path) -> Iterator[Part]:
    if pipeline_class(folder) == _COSYVOICE:
        for part, file in _COSYVOICE_WEIGHTS.items():
            yield Part(part, _COSYVOICE, _tensors_in(folder / file))
        return
    if not (folder / _PIPELINE).is_file():
        yield _part("model", folder)
        if _codec_of(folder):
            yield _part("codec", codec_folder(folder))
        return
    for name, value in sorted(_read(folder / _PIPELINE).items()):
        if name.startswith("_") or not isinstance(value, list) or None in value:
            continue
        library, kind = value
        has_config = (folder / name / "config.json").is_file()  # schedulers, tokenizers and processors have others
        if has_config and library in ("diffusers", "transformers"):
            yield Part(name, str(kind), sum(map(_numbers_in, _weights(folder / name))))


def _part(name: str, folder: Path) -> Part:
    """Of a model in a folder of its own."""
    return Part(name, pipeline_class(folder), sum(map(_numbers_in, _weights(folder))))


def _codec_of(folder: Path) -> str:
    """The path or hub id of the codec that a model of speech names; empty: it names none."""
    if not (folder / _PROCESSOR).is_file():
        return ""
    return str(_read(folder / _PROCESSOR).get("audio_tokenizer", {}).get("audio_tokenizer_name_or_path", ""))


def _weights(folder: Path) -> list[Path]:
    """The files that are loaded by default: not the variants beside them."""
    for index in folder.glob("*.safetensors.index.json"):
        return [folder / file for file in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    names = ("diffusion_pytorch_model.safetensors", "model.safetensors")
    return [folder / name for name in names if (folder / name).is_file()]


def _numbers_in(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    with file.open("rb") as data:
        header = json.loads(data.read(int.from_bytes(data.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _tensors_in(file: Path) -> int:
    """How many numbers a file of tensors holds, by what it says of them; 0 for one that may not be read."""
    try:
        state = torch.load(file, map_location="meta", weights_only=True, mmap=True)
        return sum(tensor.numel() for tensor in state.values())
    except (OSError, RuntimeError, AttributeError, pickle.UnpicklingError):
        return 0


def _card_of(name: str, revision: str) -> Path | None:
    """The card of a model on the hub, which does not come with what is needed to load it."""
    try:
        return Path(hf_hub_download(name, "README.md", revision=revision or None))
    except (OSError, HfHubHTTPError, ValueError):
        return None


def _licence(folder: Path, card: Path | None = None) -> str:
    """As the model's card states it, else the name of the file that holds it."""
    card = card or folder / "README.md"
    text = card.read_text(errors="replace") if card.is_file() else ""
    if front := re.match(r"---\n(.*?)\n---", text, re.DOTALL):
        try:
            stated = yaml.safe_load(front[1])
        except yaml.YAMLError:
            stated = None
        if isinstance(stated, dict) and (licence := stated.get("license_name") or stated.get("license")):
            return str(licence)
    return next((f"see {name}" for name in _LICENCES if (folder / name).is_file()), "")


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content
