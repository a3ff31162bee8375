"""The small model, built once per test process: every class is real, only the weights are random."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference.models import load, small
from inference.models.i2vgen_xl import I2VGenXL


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # test processes share the processor, and bits depend on the number


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.build(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def model(small_folder: Path) -> I2VGenXL:
    return opened(small_folder)


def opened(folder: Path, dtype: str | None = None, device: str = "cpu") -> I2VGenXL:
    """A freshly loaded model, to change without harm to others."""
    model = load(str(folder), name="small", device=device, dtype=dtype)
    assert isinstance(model, I2VGenXL)
    return model
