"""Operations: what stages would compute at true size, counted without weights, without memory and without a device.

The stages run as they are, on the processor: steps, guidance, chunks of frames, latents, schedulers and files. Only the
networks are elsewhere: on torch's `meta` device, where an operation has a shape and no numbers. Each call of one goes
there, is counted, and comes back as zeros of its shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

_HERE = torch.device("cpu")


class Operations:
    """Floating-point operations of matrix products, convolutions and attention so far; other ones are not counted."""

    def __init__(self) -> None:
        self.so_far = 0
        self._known: dict[Any, tuple[int, Any]] = {}  # by call and shapes: all steps of a schedule are one

    def take(self, pipeline: Any) -> None:
        """Count what the networks of this pipeline, which are on `meta`, are asked for."""
        for module in {id(part): part for part in pipeline.components.values() if isinstance(part, nn.Module)}.values():
            _pretend(module)
            methods = ("encode", "decode") if hasattr(module, "encode") else ("forward",)
            for name in methods:
                setattr(module, name, self._counted(module, getattr(module, name)))
            if (norm := getattr(module, "final_layer_norm", None)) is not None:  # a text encoder's, used by itself
                norm.forward = self._counted(norm, norm.forward)

    def _counted(self, module: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if isinstance(module, PreTrainedModel):
                args = args[:1]  # then comes a mask, which it would look into, and which changes no product
            leaves, form = tree_flatten((args, kwargs))
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            if any(tensor.is_meta for tensor in tensors):
                return call(*args, **kwargs)  # from within a network that is being counted
            shapes = (id(module), call.__name__, str(form), *(_shape(leaf) for leaf in leaves))
            if shapes not in self._known:
                args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
                with FlopCounterMode(display=False) as counter:
                    made = call(*args, **kwargs)
                self._known[shapes] = counter.get_total_flops(), made
            operations, made = self._known[shapes]
            self.so_far += operations
            return tree_map(_here, made)

        return counted


def _pretend(module: nn.Module) -> None:
    """It says that it is here, so that it is given tensors that are."""
    module.to("meta")  # what was not made there by itself
    kind = type(module)
    own = {"device": _HERE, "to": lambda self, *args, **kwargs: self}
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}  # by which transformers knows it
    module.__class__ = type(kind.__name__, (kind,), own | names)


def _shape(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else repr(leaf)


def _here(made: Any) -> Any:
    if isinstance(made, torch.Tensor):
        return torch.zeros(made.shape, dtype=made.dtype)
    if isinstance(made, DiagonalGaussianDistribution):
        return DiagonalGaussianDistribution(_here(made.parameters))
    return made
