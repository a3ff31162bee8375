"""Rehearsal: every stage of a model runs once before anybody asks for anything.

The first run in a process pays for what is done once in its life: kernels are made and loaded, threads are started. So
the first caller would wait longer, and worse: what was measured is what reuse is said to save, for as long as the
result is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from cache.description import Description, Parameter, Recording, Scalar, Scope
from cache.digest import Digest
from cache.keys import Principal, namespace
from cache.picture import picture_identity
from cache.sound import sound_identity
from inference.chain import Go, Watch, chained
from inference.device import Device
from inference.meaning import meaning_of, understand
from inference.media import Picture, Sound
from inference.models.base import Artifact, Model, Tensors
from inference.plan import Plan

_LINE = "Yes."
_SIDE = 64  # pixels


def rehearse(model: Model, device: Device) -> None:
    """Run every stage on the smallest request there is; nothing of it is kept. Belongs to the device's thread. Raises
    what the model raises.
    """
    plan = smallest(model)
    outputs: dict[str, Tensors] = {}
    digests: dict[str, Digest] = {}
    order: dict[str, Sequence[int]] = {}
    for stage in plan.stages:
        if stage.canonicalises:
            understood = understand(plan, stage, outputs)
            outputs |= understood.outputs
            digests |= understood.digests
            order[stage.name] = understood.order
    meaning = meaning_of(plan, outputs, digests, order)
    for chain in chained([stage for stage in meaning.stages if stage.name not in outputs]):
        for stage, made in zip(chain, Go(plan, chain, outputs, Watch(device), _Nobody()).run(), strict=True):
            if not isinstance(made.output, Artifact):
                outputs[stage.name] = made.output


def smallest(model: Model) -> Plan:
    """As few steps, frames and pixels as the model declares; a grey picture, the shortest noise that is a recording."""
    description = model.description
    parameters = {parameter.name: _least(parameter) for parameter in description.parameters}
    wanted = {name for stage in description.active(parameters) for name in stage.media}
    return Plan(
        model=model,
        parameters=parameters,
        media={name: _medium(description, name) for name in wanted},
        namespaces={scope: namespace(bytes(32), scope, Principal("")) for scope in Scope},
        addresses={},
        records={},
    )


def _least(parameter: Parameter) -> Scalar:
    if parameter.kind == "int" and parameter.minimum is not None:
        return int(parameter.minimum)
    if parameter.default is not None:
        return parameter.default
    return _LINE


def _medium(description: Description, name: str) -> Picture | Sound:
    recording = description.recordings.get(name)
    return _grey() if recording is None else _noise(recording)


def _grey() -> Picture:
    rgb = Image.new("RGB", (_SIDE, _SIDE), "grey").tobytes()
    return Picture(picture_identity(_SIDE, _SIDE, rgb), _SIDE, _SIDE, rgb)


def _noise(recording: Recording) -> Sound:
    samples = int(recording.min_seconds * recording.min_sample_rate)
    pcm = b"\x00\x10\x00\xf0" * ((samples + 1) // 2)
    identity = sound_identity(recording.min_sample_rate, len(pcm) // 2, pcm)
    return Sound(identity, recording.min_sample_rate, len(pcm) // 2, pcm)


class _Nobody:
    """Who listens."""

    def go_on(self) -> None: ...

    def step(self, stage: object, done: int, of: int) -> None: ...

    def preview(self, stage: object, image: Image.Image) -> None: ...

    def live(self, stage: object, piece: Tensors) -> None: ...
