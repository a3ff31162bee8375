"""Folder: a CosyVoice 3 model as it is published, opened as data.

    cosyvoice3.yaml             how its networks are built, and with what
    llm.pt, flow.pt, hift.pt    their weights
    CosyVoice-BlankEN/          the language model that llm.pt was trained from: its configuration and tokenizer
    speech_tokenizer_v3.onnx    tokens of a recording
    campplus.onnx               what tells speakers apart

Its YAML file names classes to be built and functions to be called, and the loader that CosyVoice uses builds and calls
whatever it says. Here it may name what such a file has to name and nothing else; of the weights, only tensors are read;
`spk2info.pt`, speakers stored by others, is never opened. So a folder can lie, but it cannot run code.
"""

from __future__ import annotations

import functools
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from blake3 import blake3
from torch import nn

from cache.encoding import Value
from inference.models.base import Tensors
from inference.models.cosyvoice3.checkout import Checkout, NoCheckout, undisturbed

CONFIG = "cosyvoice3.yaml"
LANGUAGE_MODEL = "CosyVoice-BlankEN"
WEIGHTS = {"llm": "llm.pt", "flow": "flow.pt", "hift": "hift.pt"}
GRAPHS = {"speech tokenizer": "speech_tokenizer_v3.onnx", "speaker": "campplus.onnx"}
_NEEDED = ("llm", "flow", "hift", "get_tokenizer", "feat_extractor", "sample_rate", "allowed_special")
_PLAIN, _KINDS = "tag:yaml.org,2002", frozenset({"map", "seq", "str", "int", "float", "bool", "null"})
_EXPONENT = re.compile(r"[-+]?\d+e[-+]?\d+")
_MAY_BE_NAMED = frozenset(
    {
        "cosyvoice.llm.llm.CosyVoice3LM",
        "cosyvoice.llm.llm.Qwen2Encoder",
        "cosyvoice.utils.common.ras_sampling",
        "cosyvoice.flow.flow.CausalMaskedDiffWithDiT",
        "cosyvoice.flow.flow_matching.CausalConditionalCFM",
        "cosyvoice.flow.DiT.dit.DiT",
        "cosyvoice.transformer.upsample_encoder.PreLookaheadLayer",
        "cosyvoice.hifigan.generator.CausalHiFTGenerator",
        "cosyvoice.hifigan.f0_predictor.CausalConvRNNF0Predictor",
        "cosyvoice.tokenizer.tokenizer.get_qwen_tokenizer",
        "matcha.utils.audio.mel_spectrogram",
        "omegaconf.DictConfig",
    }
)


@dataclass(frozen=True)
class Built:
    """What the YAML file describes, with the weights that it happens to begin with."""

    llm: Any  # cosyvoice.llm.llm.CosyVoice3LM
    flow: Any  # cosyvoice.flow.flow.CausalMaskedDiffWithDiT
    hift: Any  # cosyvoice.hifigan.generator.CausalHiFTGenerator
    get_tokenizer: Callable[[], Any]
    feat_extractor: Callable[..., torch.Tensor]
    sample_rate: int
    allowed_special: str
    config: dict[str, Value]  # of each of them, what the file says

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"llm": self.llm, "flow": self.flow, "hift": self.hift}


def build(folder: Path, checkout: Checkout) -> Built:
    """The networks in this folder, without its weights; in the order of the file, for the noise that they keep is drawn
    while they are built. Raises ValueError for what is no such folder, NoCheckout where the code for it is not there.
    """
    try:
        text = (folder / CONFIG).read_text("utf-8")
        with undisturbed():
            made, config = _Building(checkout, {"qwen_pretrain_path": str(folder / LANGUAGE_MODEL)}).build(text)
    except NoCheckout:
        raise
    except (OSError, yaml.YAMLError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{folder / CONFIG} does not describe a CosyVoice 3: {error}") from error
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    return Built(**made, config=config)


def read_weights(folder: Path, part: str) -> Tensors:
    """The weights of one part. Raises ValueError for a file that is not there, or holds anything but tensors."""
    file = folder / WEIGHTS[part]
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{file} has more than tensors in it, or is damaged: it is not read") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError(f"{file} has more than tensors in it: it is not read")
    # As vocoders are saved while they are trained.
    return {name.removeprefix("generator."): tensor for name, tensor in state.items()}


def fill(built: Built, folder: Path) -> None:
    """Put the folder's weights into what was built, in single precision. Raises ValueError for others than it has."""
    for part, module in built.modules.items():
        try:
            module.float().load_state_dict(read_weights(folder, part), strict=True)
        except RuntimeError as error:
            raise ValueError(f"{folder / WEIGHTS[part]} holds the weights of another network") from error
        module.eval()


def graphs(folder: Path) -> dict[str, Path]:
    """The files of its ONNX graphs. Raises ValueError for one that is not there."""
    found = {name: folder / file for name, file in GRAPHS.items()}
    if missing := [file.name for file in found.values() if not file.is_file()]:
        raise ValueError(f"{folder} lacks {', '.join(missing)}")
    return found


def digest_of(file: Path) -> str:
    """Of a file's bytes."""
    with file.open("rb") as data:
        return blake3(data.read(), max_threads=blake3.AUTO).hexdigest()


class _Building:
    """Reads HyperPyYAML as far as such a file needs it: `!new:` builds a class, `!name:` keeps a function with some of
    its arguments, `!ref <key>` is what stands at another key, times a number perhaps. Of the top, only what is needed
    is looked at: training has its own.
    """

    def __init__(self, checkout: Checkout, known: dict[str, Any]) -> None:
        self._checkout = checkout
        self._made = dict(known)

    def build(self, text: str) -> tuple[dict[str, Any], dict[str, Value]]:
        root = yaml.compose(text, yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise ValueError("it is no mapping")  # noqa: TRY004  # of the file, and not of an argument
        nodes = {str(key.value): node for key, node in root.value}
        config: dict[str, Value] = {}
        for name in (key for key in nodes if key in _NEEDED):
            self._top(name, nodes)
            config[name] = self._said(nodes[name], nodes)
        if missing := sorted(set(_NEEDED) - self._made.keys()):
            raise ValueError(f"it lacks {', '.join(missing)}")
        return {name: self._made[name] for name in _NEEDED}, config

    def _top(self, name: str, nodes: dict[str, yaml.Node]) -> Any:
        if name not in self._made:
            if name not in nodes:
                raise ValueError(f"it refers to {name}, which it does not have")
            self._made[name] = self._value(nodes[name], nodes)
        return self._made[name]

    def _value(self, node: yaml.Node, nodes: dict[str, yaml.Node]) -> Any:
        tag = node.tag
        if tag == "!ref":
            return self._referred(str(node.value), nodes)
        if tag.startswith(("!new:", "!name:")):
            kind, _, path = tag.partition(":")
            arguments = {} if isinstance(node, yaml.ScalarNode) else self._mapping(node, nodes)
            if path not in _MAY_BE_NAMED:
                raise ValueError(f"it names {path}, which is no part of a CosyVoice 3")
            if path == "omegaconf.DictConfig":  # names with values, and nothing else that is asked of it
                return SimpleNamespace(**arguments["content"])
            target = self._checkout.named(path)
            if kind == "!new":
                return target(**arguments)
            # A tokenizer that is kept for all who ask would be changed for all of them.
            return functools.partial(getattr(target, "__wrapped__", target), **arguments)
        if tag.rpartition(":")[0] != _PLAIN or tag.rpartition(":")[2] not in _KINDS:
            raise ValueError(f"it has a tag that is not known: {tag}")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, nodes)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(each, nodes) for each in node.value]
        if isinstance(node, yaml.ScalarNode) and node.style is None and _EXPONENT.fullmatch(str(node.value)):
            return float(node.value)  # to YAML 1.1, which is read here, a number without a point is none
        return yaml.SafeLoader("").construct_object(node)

    def _mapping(self, node: yaml.Node, nodes: dict[str, yaml.Node]) -> dict[str, Any]:
        return {str(key.value): self._value(value, nodes) for key, value in node.value}

    def _referred(self, text: str, nodes: dict[str, yaml.Node]) -> Any:
        """`<key>`, or a product: `<key> * <other> * 2`."""
        value: Any = None
        for number, factor in enumerate(part.strip() for part in text.split("*")):
            known = factor.startswith("<") and factor.endswith(">")
            one = self._top(factor[1:-1], nodes) if known else int(factor)
            value = one if number == 0 else value * one
        return value

    def _said(self, node: yaml.Node, nodes: dict[str, yaml.Node]) -> Value:
        """What a node says, its references followed, but not where files lie."""
        if node.tag == "!ref":
            names = [part.strip()[1:-1] for part in str(node.value).split("*") if part.strip().startswith("<")]
            return [str(node.value), *(self._said(nodes[name], nodes) for name in names if name in nodes)]
        if isinstance(node, yaml.MappingNode):
            return [node.tag, {str(key.value): self._said(value, nodes) for key, value in node.value}]
        if isinstance(node, yaml.SequenceNode):
            return [self._said(each, nodes) for each in node.value]
        return str(node.value)
