"""Shares: what each stage of a model has of a request's device time, and so what is saved when something is changed and
the rest is reused.

Twice over: by the operations that a model of true size would compute (`operations.py`), and by the processor's time of
the small one. What is reused after a change is not said here: the stages' own declarations say it, by the same names
that caches know outputs by.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import WanImageToVideoPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cache.description import Description, Scalar
from cache.parts import whole_name
from cache.work import divide
from inference.models import i2vgen_xl, small, svd, wan_i2v
from inference.models.pocket_tts import PocketTTS
from inference.models.small.wan_i2v import transformer
from tests.bench.models import true_i2vgen_xl, true_svd, true_wan
from tests.bench.operations import Operations
from tests.bench.sentence import LINE, VOICE_RATE, VOICE_SECONDS, ending_after, true_speaker
from tests.bench.watched import Watched
from tests.inference.proof import (
    Request,
    StagedModel,
    base_request,
    ids_of,
    opened,
    run,
    stages_of,
    through_bytes,
    understood,
    variants,
)
from tests.inference.voices import recording

_LATENTS = 40  # of a sentence by a model that was never taught where one ends
_PROMPT = {"prompt": "a boat drifts on the river"}


@dataclass(frozen=True)
class Subject:
    """A model as it is published, and a request that its makers would call usual."""

    name: str
    family: str
    asked: Mapping[str, Scalar]
    experts: int = 1  # transformers that share the schedule

    @property
    def says(self) -> str:
        words = {"width": "{} x", "height": "{},", "num_frames": "{} frames,", "num_inference_steps": "{} steps"}
        told = " ".join(word.format(self.asked[name]) for name, word in words.items() if name in self.asked)
        return told + (", no guidance" if self.asked.get("guidance_scale") == 1.0 else "")


_WAN: Mapping[str, Scalar] = {**_PROMPT, "width": 832, "height": 480, "num_frames": 81, "num_inference_steps": 50}
SUBJECTS = (
    Subject(
        "I2VGen-XL",
        "i2vgen-xl",
        {**_PROMPT, "width": 512, "height": 512, "num_frames": 16, "num_inference_steps": 50},
    ),
    Subject("SVD-XT", "svd", {"width": 1024, "height": 576, "num_frames": 25, "num_inference_steps": 25}),
    Subject("Wan 2.1 14B", "wan-i2v", _WAN),
    Subject("Wan 2.1 distilled", "wan-i2v", {**_WAN, "num_inference_steps": 4, "guidance_scale": 1.0}),
    Subject("Wan 2.2 A14B", "wan-i2v", _WAN, experts=2),
    Subject("Pocket TTS", "pocket-tts", {"text": LINE}),
)


@dataclass(frozen=True)
class Spent:
    """What the stages of one request spent, by any gauge; and the model, to ask what changes would mean."""

    model: StagedModel
    request: Request
    by_stage: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.by_stage.values())

    @property
    def shares(self) -> dict[str, float]:
        return {stage: spent / self.total for stage, spent in self.by_stage.items()}


@dataclass(frozen=True)
class Change:
    """One of these inputs gets another value: the stages that run again, and those that are reused or not needed."""

    inputs: tuple[str, ...]
    runs: tuple[str, ...]
    reused: tuple[str, ...]


def counted(subject: Subject, folder: Path) -> Spent:
    """At true size, by operations. `folder` has, or gets, the small model, for what has no weights."""
    if subject.family == "pocket-tts":
        return _spoken(subject, folder)
    return _drawn(subject, folder)


def measured(subject: Subject, folder: Path, tries: int, size: Mapping[str, Scalar] | None = None) -> Spent:
    """The small model, by the processor's time: medians. A request of its own size, unless another one is given."""
    model = _small(subject, folder)
    own = {name: value for name, value in subject.asked.items() if isinstance(value, str) or name == "guidance_scale"}
    known = {parameter.name for parameter in model.description.parameters}
    own |= {name: value for name, value in (size or {}).items() if name in known}
    request = _request(model.description, own)
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(tries):
        watched = Watched(model)
        run(watched, request)
        for stage, spent in watched.spent.items():
            taken[stage].append(spent)
    return Spent(model, request, {stage: statistics.median(each) for stage, each in taken.items()})


def changes(spent: Spent) -> list[Change]:
    """Every input changed by itself, and what runs again after the request was answered once. Nothing changed comes
    first; inputs that cost the same are one row.
    """
    model, base = spent.model, spent.request
    known = set(_ids(model, base)[0].values())
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for name, values in {"nothing": [None], **variants(model.description, base, {})}.items():
        ids, stages = _ids(model, base if name == "nothing" else base.but(**{name: values[0]}))
        there = {stage.name for stage in stages if stage.cached and ids[stage.name] in known}
        said = {stage.name for stage in stages if stage.canonicalises}
        work = () if stages[-1].name in there else divide(stages, said, there).run
        runs = {whole_name(stage.name) for stage in work}
        rest = dict.fromkeys(whole_name(stage.name) for stage in stages if stage.name not in said)
        split = tuple(stage for stage in rest if stage in runs), tuple(stage for stage in rest if stage not in runs)
        found.setdefault(split, []).append(name)
    return [Change(tuple(names), runs, reused) for (runs, reused), names in found.items()]


def saved(change: Change, shares: Mapping[str, float]) -> float:
    """A share of the device time of the changed request, each of whose stages is taken to cost what it did before; one
    that was not there before costs nothing.
    """
    reused, runs = (sum(shares.get(stage, 0.0) for stage in stages) for stages in (change.reused, change.runs))
    return reused / (reused + runs)


def _ids(model: StagedModel, request: Request) -> tuple[dict[str, str], tuple[Any, ...]]:
    outputs = understood(model, request, through_bytes, {})
    return ids_of(model.description, request, outputs), stages_of(model.description, request, outputs)


def _request(description: Description, asked: Mapping[str, Scalar]) -> Request:
    request = base_request(description, asked)
    voices = dict.fromkeys(description.recordings, recording(0, VOICE_SECONDS, VOICE_RATE))
    return Request(request.parameters, {**request.media, **voices})


def _small(subject: Subject, folder: Path) -> StagedModel:
    if subject.experts == 1:
        return opened(small.build(folder / subject.family, family=subject.family))
    pipeline = _parts(subject, folder)
    return wan_i2v.WanI2V(pipeline, wan_i2v.describe(pipeline, "small", random_weights=True), "cpu")


def _parts(subject: Subject, folder: Path) -> Any:
    """The small model's pipeline."""
    model = opened(small.build(folder / subject.family, family=subject.family))
    if subject.experts == 1:
        return model.pipeline
    parts = {**model.pipeline.components, "image_encoder": None, "image_processor": None}
    pair = {"transformer": transformer(None), "transformer_2": transformer(None)}
    return WanImageToVideoPipeline(**{**parts, **pair, "boundary_ratio": 0.9})


def _drawn(subject: Subject, folder: Path) -> Spent:
    make, wrap, describe = _FAMILIES[subject.family]
    parts, operations = _parts(subject, folder), Operations()
    description = describe(parts, "true")  # its stages are those of the true one, and its defaults too
    with torch.device("meta"):
        pipeline = make(parts)
    operations.take(pipeline)
    model = cast("StagedModel", wrap(pipeline, description, "cpu"))
    request = _request(description, subject.asked)
    watched = Watched(model, lambda: operations.so_far)
    run(watched, request)
    return Spent(model, request, dict(watched.spent))


def _spoken(subject: Subject, folder: Path) -> Spent:
    """So small a model that it runs, with random weights."""
    parts = _small(subject, folder)
    assert isinstance(parts, PocketTTS)
    model = true_speaker(parts)
    request = _request(model.description, subject.asked)
    # One of a processor's kernels for attention is not counted; the plain one is.
    with ending_after(model, _LATENTS), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        watched = Watched(model, counter.get_total_flops)
        run(watched, request)
    return Spent(model, request, dict(watched.spent))


_FAMILIES: Mapping[str, tuple[Callable[[Any], Any], Callable[..., Any], Callable[..., Description]]] = {
    "i2vgen-xl": (true_i2vgen_xl, i2vgen_xl.I2VGenXL, i2vgen_xl.describe),
    "svd": (true_svd, svd.SVD, svd.describe),
    "wan-i2v": (true_wan, wan_i2v.WanI2V, wan_i2v.describe),
}
