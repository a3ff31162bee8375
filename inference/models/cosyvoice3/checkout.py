"""Checkout: the user's copy of CosyVoice's repository, which is no package anywhere, as modules that can be imported.

It is code, and it is trusted as such: whoever names a checkout lets it run. It is entered without a change of
`sys.path`, by its folder alone, so that nothing else in it shadows what is installed; and a package called `cosyvoice`
that somebody installed (the one of that name on PyPI is another project) is never taken for it. Of Matcha-TTS, its
submodule, come the parts that speak and none that train.
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from blake3 import blake3

from cache.encoding import encode

VARIABLE = "REPRISE_COSYVOICE"  # of the environment: where the checkout lies, unless a model's settings say it
_MATCHA = Path("third_party/Matcha-TTS/matcha")
_HOW = "git clone --recursive https://github.com/FunAudioLLM/CosyVoice"


class NoCheckout(ValueError):
    """There is no checkout of CosyVoice, or what was named is none. Says what to set."""


@dataclass(frozen=True)
class Checkout:
    """A checkout whose modules can be imported in this process."""

    folder: Path
    digest: str  # of its code

    def named(self, path: str) -> Any:
        """What a dotted path of it names. Raises NoCheckout if it is not there, or needs what is not installed."""
        module, _, name = path.rpartition(".")
        try:
            with undisturbed():
                return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] in ("cosyvoice", "matcha"):
                raise NoCheckout(f"{self.folder} has no {path}: it is no CosyVoice that this adapter knows") from error
            raise NoCheckout(
                f'CosyVoice needs {error.name}, which is not installed here: pip install "reprise[cosyvoice3]"'
            ) from error
        except AttributeError as error:
            raise NoCheckout(f"{self.folder} has no {path}: it is no CosyVoice that this adapter knows") from error


def enter(folder: str | None = None) -> Checkout:
    """The checkout in this folder, else in the one that the environment names. Raises NoCheckout, also where this
    process has entered another one before.
    """
    named = folder or os.environ.get(VARIABLE, "")
    if not named:
        raise NoCheckout(
            f"CosyVoice 3 runs on a checkout of its repository ({_HOW}): "
            f"set {VARIABLE}, or `checkout` of the model in worker.models, to its folder"
        )
    root = Path(named).resolve()
    code, matcha = root / "cosyvoice", root / _MATCHA
    if not (code / "cli").is_dir():
        raise NoCheckout(
            f"{named} is no checkout of CosyVoice: {_HOW}, then set {VARIABLE} to the folder that it makes"
        )
    if not matcha.is_dir():
        raise NoCheckout(f"{named} lacks its submodule Matcha-TTS: git submodule update --init --recursive")
    _register("cosyvoice", code)
    _register("matcha", matcha)
    # Whose own beginning imports what only training needs.
    _register("matcha.utils", matcha / "utils")
    if "matcha.utils.pylogger" not in sys.modules:
        logger = ModuleType("matcha.utils.pylogger")
        logger.get_pylogger = logging.getLogger  # type: ignore[attr-defined]
        sys.modules[logger.__name__] = logger
    return Checkout(root, _digest(code, matcha))


@contextmanager
def undisturbed() -> Iterator[None]:
    """In which others may seed every generator, set up logging and warn of what is theirs to change, as they do while
    they are imported and built: after it, everything is as it was.
    """
    logger = logging.getLogger()
    level, handlers = logger.level, logger.handlers[:]
    states = random.getstate(), np.random.get_state()  # the global one is what they seed
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        logger.setLevel(level)
        logger.handlers[:] = handlers


def _register(name: str, folder: Path) -> None:
    """Make a package of this folder, without running what it begins with."""
    known = sys.modules.get(name)
    if known is None:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    elif [Path(path).resolve() for path in getattr(known, "__path__", ())] != [folder]:
        raise NoCheckout(f"{folder} cannot be entered: this process has another {name}, of {_place_of(known)}")


def _place_of(module: ModuleType) -> str:
    return ", ".join(getattr(module, "__path__", ())) or str(getattr(module, "__file__", "elsewhere"))


def _digest(*folders: Path) -> str:
    """Of all code in these folders."""
    hasher = blake3()
    for number, folder in enumerate(folders):
        for file in sorted(folder.rglob("*.py")):
            hasher.update(encode([number, file.relative_to(folder).as_posix(), file.read_bytes()]))
    return hasher.hexdigest()
