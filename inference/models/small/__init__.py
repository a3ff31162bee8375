"""Small models of the true architectures with random weights, for machines without a checkpoint or an accelerator.

    python -m inference.models.small DIR [--family NAME] [--seed N]

Every class, layer kind and file is the one a real checkpoint has; only widths and depths are small, and nobody trained
it, which is written into the folder and said wherever a result shows. What a caller may change changes the result here
too: freshly made networks hide some of their inputs (layers that start at zero, embeddings too faint to be seen after
rounding to pixels), so those are made loud enough to matter.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

from inference.models.loading import MARKER

# What a family is called in descriptions -> the module of its small model, with a `pipeline` and a `CODE_VERSION`.
FAMILIES = {
    "cosyvoice3": "inference.models.small.cosyvoice3",
    "i2vgen-xl": "inference.models.small.i2vgen_xl",
    "pocket-tts": "inference.models.small.pocket_tts",
    "svd": "inference.models.small.svd",
    "wan-i2v": "inference.models.small.wan_i2v",
}


def build(folder: Path, seed: int = 0, *, family: str = "i2vgen-xl") -> Path:
    """Writes the family's model into `folder` unless it is there already. Equal seeds give identical files.

    Raises ValueError for an unknown family, and for a folder that holds something else: nothing is overwritten but an
    earlier small model.
    """
    if family not in FAMILIES:
        raise ValueError(f"there is no small model of {family}; there is one of {', '.join(sorted(FAMILIES))}")
    module = importlib.import_module(FAMILIES[family])
    # Says that the weights are random. A folder that has it is complete, because it arrives with everything else.
    marker: dict[str, object] = {
        "random_weights": True,
        "family": family,
        "seed": seed,
        "code_version": module.CODE_VERSION,
    }
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise ValueError(f"{folder} is not empty and holds no small model")
        if json.loads((folder / MARKER).read_text()) == marker:
            return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module.pipeline().save_pretrained(made, safe_serialization=True)
        (made / MARKER).write_text(json.dumps(marker))
        _let_others_read(made)
        _put_in_place(made, folder, marker)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _put_in_place(made: Path, folder: Path, marker: dict[str, object]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(made, folder)
    except OSError:  # somebody else built the same in the meantime
        if json.loads((folder / MARKER).read_text()) != marker:
            raise


def _let_others_read(folder: Path) -> None:
    # Temporary folders and weight files are made for their owner only.
    folder.chmod(0o755)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
