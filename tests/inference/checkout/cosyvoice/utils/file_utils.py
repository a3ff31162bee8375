"""Files."""

from __future__ import annotations

import logging

import torch

logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(levelname)s %(message)s")


def load_wav(wav: str, target_sr: int, min_sr: int = 16000) -> torch.Tensor:
    """Nobody has a file here, and nobody may ask for one."""
    raise AssertionError("recordings are given, and not read from files")
