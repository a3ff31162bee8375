"""Fingerprints: what a stage runs on, as one hash. Equal fingerprints and equal inputs give equal outputs.

A fingerprint covers exactly what its stage depends on: weights, configuration, code version, compute type, attention
backend, and the versions of the libraries that do the work. The device, the number of threads and the batch are not in
it; the execution record of each entry has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from blake3 import blake3
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import nn

from cache.encoding import Value, encode, hash_of

# Of a configuration, what says where it comes from or how it is stored, and not what it does. The compute type is in
# `numerics`.
_PROVENANCE = frozenset(
    {"_name_or_path", "_diffusers_version", "_commit_hash", "transformers_version", "dtype", "torch_dtype"}
)


def of_stage(kind: str, code_version: int, parts: Mapping[str, Value]) -> str:
    """The fingerprint of a stage of this kind. Bump `code_version` whenever our own code makes it compute otherwise."""
    return hash_of("stage fingerprint", {"kind": kind, "code_version": code_version, "parts": parts})


def of_weights(*modules: nn.Module | None) -> str:
    """Hash of all parameters and stored buffers, as loaded: names, types, shapes and bytes, sorted by name.

    Loaded weights and not the files they came from, because one checkpoint comes in several shards, formats and stored
    types, and what a stage computes with is what was made of them.
    """
    hasher = blake3(max_threads=blake3.AUTO)
    for number, module in enumerate(modules):
        for name, tensor in sorted(module.state_dict().items() if module is not None else ()):
            _add(hasher, number, name, tensor)
    return hasher.hexdigest()


def of_hidden(module: nn.Module) -> str:
    """Hash of the tensors that a module and its parts keep and do not store: plain attributes, and buffers that are not
    persistent. Some are drawn at random when it is built.
    """
    stored = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    hasher = blake3(max_threads=blake3.AUTO)
    for name, part in module.named_modules():
        for key, tensor in sorted({**vars(part), **part._buffers}.items()):
            if isinstance(tensor, torch.Tensor) and id(tensor) not in stored:
                _add(hasher, name, key, tensor)
    return hasher.hexdigest()


def of_config(component: Any) -> Value:
    """The configuration of a model, scheduler or processor of diffusers or transformers, with the name of its class."""
    source = component if hasattr(component, "to_json_string") else component.config
    config = json.loads(source.to_json_string())
    kept = {key: value for key, value in config.items() if key not in _PROVENANCE}
    return {"class": type(component).__name__, "config": json.dumps(kept, sort_keys=True)}  # JSON: some hold infinities


def of_model(model: Any, *parts: nn.Module | None) -> Value:
    """Weights, configuration and numerics of a model; of its weights only those of `parts`, where they are named."""
    return {"weights": of_weights(*(parts or (model,))), "config": of_config(model), "numerics": numerics(model)}


def of_tokenizer(tokenizer: Any) -> Value:
    """What turns text into ids: vocabulary, merges, normalisation, special tokens and the length it cuts at."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    state = {key: value for key, value in backend.items() if key not in ("truncation", "padding")}  # of the last call
    return {
        "class": type(tokenizer).__name__,
        "backend": blake3(json.dumps(state, sort_keys=True).encode()).hexdigest(),
        "length": tokenizer.model_max_length,
        "padding": [tokenizer.pad_token_id, tokenizer.padding_side, tokenizer.truncation_side],
    }


def numerics(model: Any) -> Value:
    """How the numbers are computed: the type, the precision of float32 products, and the attention implementation."""
    processors = {_attention_of(processor) for processor in getattr(model, "attn_processors", {}).values()}
    own = getattr(model.config, "_attn_implementation", None)
    return {
        "type": _name_of(model.dtype),
        "float32_products": torch.get_float32_matmul_precision(),
        "attention": sorted(processors) if own is None else [own],
    }


def _attention_of(processor: Any) -> str:
    """Its class and, where it can have several, the backend it hands its products to."""
    name = type(processor).__name__
    if not hasattr(processor, "_attention_backend"):
        return name
    chosen = processor._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
    return f"{name} {getattr(chosen, 'value', chosen)}"


def versions(*distributions: str) -> Value:
    """Versions of installed libraries by name."""
    return {name: version(name) for name in distributions}


def installed(*distributions: str) -> dict[str, Value]:
    """Versions of those of these libraries that are installed."""
    found: dict[str, Value] = {}
    for name in distributions:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _add(hasher: Any, of: int | str, name: str, tensor: torch.Tensor) -> None:
    # The header is self-delimiting and tells the length of what follows, so no two states read the same.
    hasher.update(encode([of, name, _name_of(tensor.dtype), list(tensor.shape)]))
    data: Any = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    hasher.update(memoryview(data))


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
