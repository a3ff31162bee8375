"""Parts: stages that run once for every part of a text, written out once it is known which parts there are.

A description says `each="tokens"` of a stage that makes one sentence at a time. Until the text is understood nobody
knows how many sentences that is, so gateways plan with the stage as a whole. A worker that knows unfolds it:

    tokens -> speech (each) -> sound (each) -> file        tokens -> tokens[0] -> speech[0] -> sound[0] --.
                                                                  `> tokens[1] -> speech[1] -> sound[1] --+-> file

Each of these is a stage like any other, with a key of its own made of its own part. So what is said twice is made once,
in one text or in two, wherever in the text it stands. Equal parts of one text are one stage that is read twice.

A part goes by its number among the distinct parts of its text, counted from 0 as they first come; a place is where in
the text it stands. In "Yes. No. Yes." the places have the parts 0, 1, 0. Names with a number in brackets are of one
request: what is stored and told of a part has the whole name, so that the same sentence is the same in every text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cache.description import Stage


def part_name(name: str, number: int) -> str:
    return f"{name}[{number}]"


def whole_name(name: str) -> str:
    """What the description calls a stage or a role, of which this may be a part."""
    return name.partition("[")[0]


def part_number(name: str) -> int | None:
    """The number in the name of a part; None for what is no part."""
    number = name.partition("[")[2].removesuffix("]")
    return int(number) if number else None


def unfold(stages: Sequence[Stage], order: Mapping[str, Sequence[int]]) -> tuple[Stage, ...]:
    """The stages with every part a stage of its own, in an order in which they can run: part by part.

    `order` says of each canonicalising stage with parts, by name, which part stands at each place of its text. What
    reads parts but has none itself reads them under roles that count the places: "sound[0]", "sound[1]".
    """
    parted = {stage.name: stage.each for stage in stages if stage.each}
    if not parted:
        return tuple(stages)
    unfolded: list[Stage] = []
    for source, members in _groups(stages):
        if not source:
            (stage,) = members
            unfolded.append(_gathering(stage, parted, order))
            unfolded.extend(_part_of_text(stage, number) for number in _distinct(order.get(stage.name, ())))
            continue
        for number in _distinct(order[source]):
            unfolded.extend(_part(stage, parted, number) for stage in members)
    return tuple(unfolded)


def _groups(stages: Sequence[Stage]) -> Iterator[tuple[str, list[Stage]]]:
    """Neighbours that run for the parts of the same text belong together; every other stage stands alone."""
    group: list[Stage] = []
    for stage in stages:
        if group and (not stage.each or stage.each != group[0].each):
            yield group[0].each, group
            group = []
        group.append(stage)
        if not stage.each:
            yield "", group
            group = []
    if group:
        yield group[0].each, group


def _distinct(order: Sequence[int]) -> range:
    return range(max(order, default=-1) + 1)


def _part_of_text(stage: Stage, number: int) -> Stage:
    """Cut out of the whole, which is all that it depends on; and as something else than every other part is."""
    name, kind = part_name(stage.name, number), part_name(stage.kind, number)
    return stage.model_copy(update={"name": name, "kind": kind, "parameters": {}, "upstream": {"whole": stage.name}})


def _part(stage: Stage, parted: Mapping[str, str], number: int) -> Stage:
    def one(name: str) -> str:
        return part_name(name, number) if name == stage.each or parted.get(name) == stage.each else name

    return stage.model_copy(
        update={
            "name": part_name(stage.name, number),
            "upstream": {role: one(name) for role, name in stage.upstream.items()},
            "each": "",
            "follows": one(stage.follows) if stage.follows else "",
        }
    )


def _gathering(stage: Stage, parted: Mapping[str, str], order: Mapping[str, Sequence[int]]) -> Stage:
    if parted.keys().isdisjoint(stage.upstream.values()):
        return stage
    upstream: dict[str, str] = {}
    for role, name in stage.upstream.items():
        if name not in parted:
            upstream[role] = name
            continue
        for place, number in enumerate(order[parted[name]]):
            upstream[part_name(role, place)] = part_name(name, number)
    return stage.model_copy(update={"upstream": upstream})
