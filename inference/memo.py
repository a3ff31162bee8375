"""Memo: puts the cache under an existing pipeline of diffusers, which is not changed and knows nothing of it.

    from cache.alone import Cache
    from inference.memo import remember

    memo = remember(pipeline, Cache.open("/var/cache/reprise"))

From then on the pipeline's encoders (texts, pictures, the VAE's `encode`) are asked once per input, by whoever shares
the store. Every result equals the plain pipeline's bit for bit: the key is the encoder's fingerprint and its exact
arguments, what is stored is exactly what it returned, and of a VAE that is the distribution, from which the pipeline
goes on to draw with the generator it would have used. What could not be exact is not cached but passed through and
counted, with its reason:

| bypass | because |
|---|---|
| input | an argument is more than tensors and plain values |
| output | what came back could not be read back exactly |
| random | it drew from a global generator, which a hit would not move |
| training, gradients | more is wanted than the values |
| adapters | weights that nobody hashes take part |
| weights | they cannot be read: quantised, or not there |
| closed | the cache is closed |

Whether weights or switches were changed meanwhile is looked at in every call: a few numbers of every parameter. If they
were, the fingerprint is taken anew. The kind of device is part of the key; the number of threads, which may change bits
too, is recorded and not keyed.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import structlog
import torch
from blake3 import blake3
from torch import nn

from cache.alone import DAY, Cache
from cache.bridge import Closed
from cache.encoding import Value
from cache.purge import Receipt
from cache.record import Record
from inference import cuda, fingerprint, forms

CODE_VERSION = 1  # of how calls are named and their outputs stored: bump when either changes
ENCODERS: tuple[tuple[str, str], ...] = (
    ("text_encoder", "forward"),
    ("text_encoder_2", "forward"),
    ("text_encoder_3", "forward"),
    ("image_encoder", "forward"),
    ("vae", "encode"),
)
MEDIA_TYPE = "application/x-safetensors"

_PROBE = 16  # numbers of every parameter that are looked at in every call
_PROVENANCE = frozenset({"name_or_path"})  # of a component's own attributes, what says where it is from
_log = structlog.get_logger(__name__)


@dataclass
class Counts:
    """What became of the calls of one component."""

    run: int = 0
    reused: int = 0
    bypassed: Counter[str] = field(default_factory=Counter)  # by reason; these ran too, uncounted above
    seconds: float = 0.0  # that those that ran took


class Bypass(Exception):
    """This call cannot be answered exactly from a cache. Its only argument is the reason."""


def remember(
    pipeline: Any,
    cache: Cache,
    *,
    model: str = "",
    tags: Sequence[str] = (),
    encoders: Sequence[tuple[str, str]] = ENCODERS,
    ttl: float = DAY,
    max_age: float = 30 * DAY,
) -> Memo:
    """Put the cache under the pipeline's encoders, until the memo is closed.

    `model` names what the entries are recorded under, by default the pipeline's class. `ttl` (seconds without access)
    and `max_age` (seconds in all) are those of the entries. Raises ValueError if there is nothing to remember, or if
    the pipeline already does.
    """
    memo = Memo(cache, model or type(pipeline).__name__, tags, ttl, max_age)
    for name, method in encoders:
        component = getattr(pipeline, name, None)
        if isinstance(component, nn.Module) and hasattr(component, method):
            memo.wrap(component, name, method)
    if not memo.counts:
        raise ValueError(f"a {type(pipeline).__name__} has none of {', '.join(name for name, _ in encoders)}")
    return memo


class Memo:
    """The encoders of one pipeline under a cache. Use as a context manager, or close it, to have them back plain."""

    def __init__(self, cache: Cache, model: str, tags: Sequence[str], ttl: float, max_age: float) -> None:
        self.cache = cache
        self.counts: dict[str, Counts] = {}  # by stage: component and method, such as "vae.encode"
        self._model = model
        self._tags = tuple(tags)
        self._ttl = ttl
        self._max_age = max_age
        self._restore: list[Callable[[], None]] = []

    @contextmanager
    def tagged(self, *tags: str) -> Iterator[None]:
        """What is stored within the block carries these tags too."""
        before, self._tags = self._tags, (*self._tags, *tags)
        try:
            yield
        finally:
            self._tags = before

    def invalidate(
        self,
        *,
        stage: str = "",
        revision: str = "",
        tag: str = "",
        digest: str = "",
        older_than: float | None = None,
        where: Callable[[Record], bool] | None = None,
    ) -> Receipt:
        """Remove this model's entries for which all that is said holds; all of them if nothing is."""
        return self.cache.invalidate(
            model=self._model,
            stage=stage,
            revision=revision,
            tag=tag,
            digest=digest,
            older_than=older_than,
            where=where,
        )

    def close(self) -> None:
        """Give the pipeline its own encoders back. The cache stays open: it belongs to whoever opened it."""
        while self._restore:
            self._restore.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wrap(self, component: nn.Module, name: str, method: str) -> None:
        """Put the cache under one method of one component. Raises ValueError if there is one already."""
        original = getattr(component, method)
        if hasattr(original, "_remembered"):
            self.close()
            raise ValueError(f"{name} is remembered already")
        stage, state = f"{name}.{method}", _State(component)
        self.counts[stage] = Counts()

        @functools.wraps(original)
        def remembered(*args: Any, **kwargs: Any) -> Any:
            return self._answer(stage, state, original, args, kwargs)

        remembered._remembered = True  # type: ignore[attr-defined]
        own = vars(component).get(method)  # hooks of other libraries lie there, and go back there
        setattr(component, method, remembered)
        self._restore.append(lambda: delattr(component, method) if own is None else setattr(component, method, own))

    def _answer(
        self, stage: str, state: _State, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        counts = self.counts[stage]
        try:
            device = _device_of((args, kwargs), state.component)
            revision = state.fingerprint()
            key: Value = ["component call", CODE_VERSION, stage, revision, _numerics(device), _named([args, kwargs])]
            found = self._found(key, device)
        except (Bypass, Closed) as reason:
            counts.bypassed["closed" if isinstance(reason, Closed) else str(reason)] += 1
            return original(*args, **kwargs)
        if found is not None:
            counts.reused += 1
            return found[0]
        before, began = _generators(device), time.perf_counter()
        output = original(*args, **kwargs)
        try:
            data = _stored_form(output, device, moved=not _same(before, _generators(device)))
            counts.run += 1
            took = time.perf_counter() - began  # with the copy to the host, which waits for the device
            counts.seconds += took
            self._keep(key, data, stage, revision, took, device)
        except Bypass as reason:
            counts.bypassed[str(reason)] += 1
        return output

    def _found(self, key: Value, device: torch.device) -> tuple[Any] | None:
        if (data := self.cache.get(key, ttl=self._ttl)) is None:
            return None
        try:
            return (forms.from_bytes(data, device),)
        except ValueError:
            _log.warning("a stored output cannot be read")  # by these versions of the libraries: made once more
            return None

    def _keep(self, key: Value, data: bytes, stage: str, revision: str, seconds: float, device: torch.device) -> None:
        try:
            self.cache.set(
                key,
                data,
                model=self._model,
                revision=revision[:16],
                stage=stage,
                fingerprint=revision,
                tags=self._tags,
                execution={"device": device.type, "threads": str(torch.get_num_threads())},
                media_type=MEDIA_TYPE,
                seconds=seconds,
                ttl=self._ttl,
                max_age=self._max_age,
            )
        except Closed:
            return  # the output is there, and that is what was asked for


class _State:
    """Knows the fingerprint of a component, and notices when it changes."""

    def __init__(self, component: nn.Module) -> None:
        self.component = component
        self._seen: tuple[Value, bytes] | None = None
        self._fingerprint = ""

    def fingerprint(self) -> str:
        """Of what the component is now. Raises Bypass where that cannot be said, or is not all that matters."""
        component = self.component
        if component.training:
            raise Bypass("training")
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in component.parameters()):
            raise Bypass("gradients")
        if getattr(component, "_hf_peft_config_loaded", False):
            raise Bypass("adapters")
        try:
            seen: tuple[Value, bytes] = [_switches(component), fingerprint.numerics(component)], _probe(component)
            if seen != self._seen:
                parts: dict[str, Value] = {
                    "model": fingerprint.of_model(component),
                    "switches": seen[0],
                    "libraries": fingerprint.versions("torch", "diffusers", "transformers"),
                }
                self._fingerprint = fingerprint.of_stage("component", CODE_VERSION, parts)
                self._seen = seen
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
            raise Bypass("weights") from error
        return self._fingerprint


def _switches(component: nn.Module) -> Value:
    """Plain attributes of the component itself, such as whether it works in tiles; its configuration apart."""
    return {
        name: value
        for name, value in vars(component).items()
        if type(value) in (bool, int, float, str) and not name.startswith("_") and name not in _PROVENANCE
    }


def _probe(component: nn.Module) -> bytes:
    """A few numbers of every parameter and buffer, spread over it, with its type and size: cheap to take, and other
    ones after any training, merging or loading. Independent of where the parameters lie.
    """
    samples: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    sizes = []
    with torch.no_grad():
        for tensor in (*component.parameters(), *component.buffers()):
            count = tensor.numel()
            sizes.append(count)
            taken = min(count, _PROBE)
            if taken:
                spread = tensor.as_strided((taken,), (count // taken,))
                samples.setdefault((tensor.dtype, tensor.device), []).append(spread)
        hasher = blake3(repr((sizes, [str(dtype) for dtype, _ in samples])).encode())
        for taken_together in samples.values():
            hasher.update(_bytes_of(torch.cat(taken_together)))
    return hasher.digest()


def _numerics(device: torch.device) -> Value:
    """What is set outside the component and changes how it computes."""
    autocast = torch.is_autocast_enabled(device.type)
    return {
        "device": device.type,
        "autocast": str(torch.get_autocast_dtype(device.type)) if autocast else "",
        "float32_products": torch.get_float32_matmul_precision(),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32 if device.type == "cuda" else False,
    }


def _named(argument: Any) -> Value:
    """An argument as a value with a canonical encoding; tensors by their bytes. Raises Bypass for anything else."""
    if argument is None or type(argument) in (bool, int, str, bytes):
        return ["plain", argument]
    if type(argument) is float and argument == argument and abs(argument) != float("inf"):
        return ["plain", argument]
    if isinstance(argument, torch.Tensor):
        return _tensor_named(argument)
    if isinstance(argument, torch.dtype | torch.device):
        return [type(argument).__name__, str(argument)]
    if type(argument) in (list, tuple):
        return [type(argument).__name__, [_named(item) for item in argument]]
    if isinstance(argument, Mapping) and all(type(name) is str for name in argument):
        return [type(argument).__name__, {name: _named(item) for name, item in argument.items()}]
    raise Bypass("input")


def _tensor_named(tensor: torch.Tensor) -> Value:
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        raise Bypass("input")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise Bypass("gradients")
    try:
        digest = blake3(_bytes_of(tensor)).hexdigest()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise Bypass("input") from error
    return ["tensor", str(tensor.dtype), list(tensor.shape), list(tensor.stride()), digest]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat: Any = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _device_of(arguments: Any, component: nn.Module) -> torch.device:
    """Where the call computes: where its first tensor is, for the weights may be brought there only when it runs."""
    tensor = _first_tensor(arguments)
    if tensor is None:
        tensor = next(component.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _first_tensor(argument: Any) -> torch.Tensor | None:
    if isinstance(argument, torch.Tensor):
        return argument
    items = argument.values() if isinstance(argument, Mapping) else argument if type(argument) in (list, tuple) else ()
    return next((tensor for item in items if (tensor := _first_tensor(item)) is not None), None)


def _generators(device: torch.device) -> list[torch.Tensor]:
    """The states of the global generators that a component could draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(cuda.generator_state(device))
    return states


def _same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def _stored_form(output: Any, device: torch.device, *, moved: bool) -> bytes:
    if moved:
        raise Bypass("random")
    try:
        return forms.to_bytes(output, device)
    except forms.NotStorable as error:
        raise Bypass("output") from error
