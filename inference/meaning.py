"""Meaning: what a request says once its text is understood, and what everything is called from then on.

The gateway names every stage's output from the request as it was written. Once the canonicalising stages have run, the
outputs after them have another name, which all spellings of one meaning share: the canonical one. Then it is known too
how many parts a text has, and stages that run for each become as many (see `cache/parts.py`). Work is done under these
names; what is stored and told of a part has the name that the description gives to all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cache.description import Stage
from cache.digest import Digest
from cache.keys import Address, addresses, content_ids
from cache.parts import part_name, part_number, unfold, whole_name
from inference import tensors
from inference.media import identities
from inference.models.base import Artifact, Tensors
from inference.plan import Plan, call_for

ORDER = "order"  # of a text's output: the number of the part at each of its places


@dataclass(frozen=True, slots=True)
class Understood:
    """What a canonicalising stage made of a request: its output, and each part of that as an output of its own."""

    outputs: Mapping[str, Tensors]
    digests: Mapping[str, Digest]
    order: tuple[int, ...] = ()  # the part at each place; empty where nothing runs for its parts


@dataclass(frozen=True, slots=True)
class Part:
    """Where in its text the output of a stage belongs."""

    place: int  # the first one, from 0
    places: int


@dataclass(frozen=True, slots=True)
class Meaning:
    """A plan in terms of what its canonicalising stages made of it. Stages are called as in this request, by part."""

    stages: tuple[Stage, ...]  # in an order in which they can run; the last is the result
    outputs: Mapping[str, Tensors] = field(repr=False)  # of canonicalising stages, on the device
    digests: Mapping[str, Digest]  # likewise
    ids: Mapping[str, str]  # canonical content id of every stage
    addresses: Mapping[str, Address]  # canonical
    made_of: Mapping[str, frozenset[str]]  # the stages that a stage needs, at whatever distance
    order: Mapping[str, Sequence[int]]  # by the stage that gives a text: which part stands at each place
    parts: Mapping[str, Part]  # by stage, of those that run for parts

    @property
    def final(self) -> Stage:
        return self.stages[-1]

    def names(self, stage: Stage) -> tuple[str, ...]:
        """What a stage of the description is called here, for each place of its text; once, if it has no parts."""
        if not stage.each:
            return (stage.name,)
        return tuple(part_name(stage.name, number) for number in self.order[stage.each])


def understand(plan: Plan, stage: Stage, outputs: Mapping[str, Tensors]) -> Understood:
    """Run a canonicalising stage, whose upstream is in `outputs`. Raises what the model raises; and ValueError or
    TypeError for an output that is not what the contract says. Blocking.
    """
    output = plan.model.run(stage.name, call_for(plan, stage, outputs))
    if isinstance(output, Artifact):
        raise TypeError("only the last stage makes an artifact")
    whole = Understood({stage.name: output}, {stage.name: Digest.of(tensors.to_bytes(output))})
    if not any(other.each == stage.name for other in plan.stages):
        return whole
    return _with_parts(stage.name, output, whole)


def meaning_of(
    plan: Plan,
    outputs: Mapping[str, Tensors],
    digests: Mapping[str, Digest],
    order: Mapping[str, Sequence[int]] | None = None,
) -> Meaning:
    """The plan's names once the canonicalising stages that say first what it means have been understood. Blocking: it
    hashes as many names as the text has parts.
    """
    order = order or {}
    stages = unfold(plan.stages, order)
    description = plan.description.model_copy(update={"stages": stages})
    ids = content_ids(description, plan.parameters, identities(plan.media), digests, plan.instead)
    return Meaning(
        stages=stages,
        outputs=outputs,
        digests=digests,
        ids=ids,
        addresses=addresses(description, ids, plan.namespaces, plan.instead),
        made_of=_made_of(stages),
        order=order,
        parts={
            part_name(stage.name, number): Part(places.index(number), len(places))
            for stage in plan.stages
            if (places := order.get(stage.each))
            for number in set(places)
        },
    )


def _with_parts(name: str, output: Tensors, whole: Understood) -> Understood:
    """Parts are numbered by what they are: however a model counts them, equal ones are one."""
    told: dict[int, Tensors] = {}
    for key, tensor in output.items():
        if (number := part_number(key)) is not None:
            told.setdefault(number, {})[whole_name(key)] = tensor
    places = [int(number) for number in output[ORDER].tolist()] if ORDER in output else []
    if not places or not told.keys() >= set(places):
        raise ValueError("a text has parts, and an order that names them")
    digests = {number: Digest.of(tensors.to_bytes(told[number])) for number in set(places)}
    numbers: dict[Digest, int] = {}
    order = tuple(numbers.setdefault(digests[number], len(numbers)) for number in places)
    own = {part_name(name, order[place]): told[number] for place, number in enumerate(places)}
    named = {part_name(name, number): digest for digest, number in numbers.items()}
    return Understood({**whole.outputs, **own}, {**whole.digests, **named}, order)


def _made_of(stages: Sequence[Stage]) -> dict[str, frozenset[str]]:
    made_of: dict[str, frozenset[str]] = {}
    for stage in stages:
        there = [name for name in stage.upstream.values() if name in made_of]
        made_of[stage.name] = frozenset(there).union(*(made_of[name] for name in there))
    return made_of
