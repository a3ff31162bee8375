"""Loading: from a folder or hub id to a pipeline in the right type, from safetensors and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from inference.models import ON_ACCELERATOR

MARKER = "reprise.json"  # in folders that `inference.models.small` made


def open_pipeline(kind: Any, source: str, dtype: torch.dtype | Mapping[str, torch.dtype]) -> Any:
    """The pipeline of this class that `source` holds, in host memory; `dtype` is for all parts or by their names, with
    "default" for the others.

    Raises ValueError for what cannot be loaded in this way.
    """
    with opening(source, kind.__name__):
        return kind.from_pretrained(source, dtype=dtype, use_safetensors=True)


@contextmanager
def opening(source: str, kind: str) -> Iterator[None]:
    """In which the parts of a model are loaded. Raises ValueError for those that are not there."""
    for library_logging in (diffusers_logging, transformers_logging):
        library_logging.disable_progress_bar()  # a server has no terminal
    try:
        yield
    except OSError as error:
        raise ValueError(f"{source} lacks a part of a {kind}, or has it in no safetensors file") from error


def compute_type(device: str, dtype: str | None, family: str) -> torch.dtype:
    """The type named, by default single precision on a CPU and elsewhere the family's. Raises ValueError."""
    name = dtype or ("float32" if torch.device(device).type == "cpu" else ON_ACCELERATOR.get(family, "float16"))
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"{name} is no floating point type of torch")
    return found


def has_random_weights(source: str) -> bool:
    marker = Path(source) / MARKER
    return marker.is_file() and bool(json.loads(marker.read_text()).get("random_weights"))


def modules_of(pipeline: DiffusionPipeline) -> list[torch.nn.Module]:
    """What holds a pipeline's weights."""
    return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
