"""Forms: what a component of a pipeline returned, as one safetensors file, and back as it was.

Beside the tensors the file says how they hang together: tuples, lists, mappings, the output classes of diffusers and
transformers, and the distribution a VAE returns, of which the parameters are kept and no sample. Strides are part of
it, because they change later sums. Reading runs no code: a class is only ever looked up among those already imported,
and must be one of the kinds above.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import safetensors.torch
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import BaseOutput
from transformers.utils import ModelOutput

from inference import tensors
from inference.models.base import Tensors

_SCALARS = (bool, int, float, str)
_MOST_SPREAD = 64  # of the memory a tensor is laid out in, per number in it: strides may say anything
_Form = dict[str, Any]  # what JSON can say


class NotStorable(ValueError):
    """This output has no form that could be read back exactly."""


def to_bytes(output: Any, device: torch.device) -> bytes:
    """One file of this output, all of whose tensors are on `device`. Raises NotStorable."""
    held: dict[str, torch.Tensor] = {}
    form = _form_of(output, held, device)
    if not held:
        raise NotStorable("no tensors")
    try:
        data: bytes = safetensors.torch.save(
            {name: _on_host(tensor) for name, tensor in held.items()}, metadata={"form": json.dumps(form)}
        )
    except (TypeError, KeyError, ValueError, RuntimeError, NotImplementedError) as error:
        raise NotStorable(type(error).__name__) from error  # a type of numbers or a layout the format has no name for
    return data


def from_bytes(data: bytes, device: torch.device) -> Any:
    """The output, its tensors fresh and on `device`. Raises ValueError for anything `to_bytes` did not write."""
    held = tensors.from_bytes(data)
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return _output_of(json.loads(header["__metadata__"]["form"]), held, device, {})
    except (KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError("not the form of an output") from error


def _form_of(output: Any, held: dict[str, torch.Tensor], device: torch.device) -> _Form:
    def inner(item: Any) -> _Form:
        return _form_of(item, held, device)

    if output is None or type(output) in _SCALARS:
        return {"value": output}
    if isinstance(output, torch.Tensor):
        return {"tensor": _name_of(output, held, device), "strides": list(output.stride())}
    if type(output) in (tuple, list):
        return {type(output).__name__: [inner(item) for item in output]}
    if type(output) is DiagonalGaussianDistribution:
        return {"gaussian": inner(output.parameters), "deterministic": bool(output.deterministic)}
    if isinstance(output, BaseOutput | ModelOutput):
        return _class_form_of(output, {name: inner(getattr(output, name)) for name in _fields_of(output)})
    if type(output) is dict and all(isinstance(key, str) for key in output):
        return {"dict": {key: inner(item) for key, item in output.items()}}
    raise NotStorable(f"a {type(output).__name__}")


def _fields_of(output: Any) -> list[str]:
    fields = [field.name for field in dataclasses.fields(output)] if dataclasses.is_dataclass(output) else []
    if not set(output.keys()) <= set(fields):
        raise NotStorable("an output with more than its class has")
    return fields


def _class_form_of(output: Any, fields: _Form) -> _Form:
    module, name = type(output).__module__, type(output).__qualname__
    if getattr(sys.modules.get(module), name, None) is not type(output):
        raise NotStorable("a class that could not be found again")
    return {"class": [module, name], "fields": fields}


def _name_of(tensor: torch.Tensor, held: dict[str, torch.Tensor], device: torch.device) -> str:
    """The tensor's name in the file; the same one for a tensor that is there twice."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        raise NotStorable(f"a {type(tensor).__name__} of layout {tensor.layout}")
    if tensor.device != device:
        raise NotStorable("a tensor on another device")
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise NotStorable("a tensor that repeats itself")
    if _spread(tensor, tensor.stride()) > _MOST_SPREAD * tensor.numel():
        raise NotStorable("a tensor that lies scattered")
    for name, known in held.items():
        if known is tensor:
            return name
    held[str(len(held))] = tensor
    return str(len(held) - 1)


def _output_of(form: _Form, held: Tensors, device: torch.device, made: dict[str, torch.Tensor]) -> Any:
    def inner(item: _Form) -> Any:
        return _output_of(item, held, device, made)

    match form:
        case {"value": value}:
            return value
        case {"tensor": name, "strides": strides}:
            if name not in made:
                made[name] = _fresh(held[name], strides, device)
            return made[name]
        case {"tuple": items}:
            return tuple(inner(item) for item in items)
        case {"list": items}:
            return [inner(item) for item in items]
        case {"dict": items}:
            return {key: inner(item) for key, item in items.items()}
        case {"gaussian": parameters, "deterministic": deterministic}:
            return DiagonalGaussianDistribution(inner(parameters), deterministic=deterministic)
        case {"class": [module, name], "fields": fields}:
            return _class_of(module, name)(**{field: inner(item) for field, item in fields.items()})
    raise ValueError("not the form of an output")


def _class_of(module: str, name: str) -> Any:
    found = getattr(sys.modules.get(module), name, None)
    if not (isinstance(found, type) and issubclass(found, BaseOutput | ModelOutput)):
        raise ValueError("not a class of outputs")  # noqa: TRY004 - what is wrong is the file
    return found


def _fresh(tensor: torch.Tensor, strides: list[int], device: torch.device) -> torch.Tensor:
    """A tensor of its own memory, so that whoever changes it changes nothing else, laid out as it was."""
    if _spread(tensor, strides) > _MOST_SPREAD * tensor.numel():
        raise ValueError("not the form of an output")
    laid_out = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=device)
    return laid_out.copy_(tensor)


def _spread(tensor: torch.Tensor, strides: Sequence[int]) -> int:
    """How many numbers' room it takes with these strides."""
    if not tensor.numel():
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
