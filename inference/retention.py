"""Retention: what an operator decides otherwise than a model's family: who may find a stage's outputs, and how long."""

from __future__ import annotations

from collections.abc import Mapping

from cache.description import Description
from inference.settings import RetentionSettings


def decide(description: Description, wanted: Mapping[str, RetentionSettings]) -> Description:
    """The description with these decisions in it, by stage. Raises ValueError for a stage it does not have.

    A scope is part of an address: all workers of a model must decide alike, and what was stored in another scope is not
    found. Ages are not: a change holds for what is made from now on.
    """
    names = [stage.name for stage in description.stages]
    if unknown := sorted(wanted.keys() - set(names)):
        raise ValueError(f"no stage named {unknown[0]}; it has {', '.join(names)}")
    stages = [
        stage.model_copy(update=wanted[stage.name].model_dump(exclude_none=True)) if stage.name in wanted else stage
        for stage in description.stages
    ]
    return description.model_copy(update={"stages": tuple(stages)})
