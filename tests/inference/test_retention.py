"""Operators decide who may find a stage's outputs and how long they are kept."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cache.description import Scope
from cache.keys import Principal, addresses, content_ids, namespaces
from inference.retention import decide
from inference.settings import ModelSettings, RetentionSettings
from tests.inference.worker_fixtures import describe


def test_what_is_decided_holds_and_nothing_else_changes() -> None:
    """Of the named stages, what is named; ages change no address, a scope does."""
    family = describe("small")
    decided = decide(
        family,
        {"moments": RetentionSettings(scope=Scope.TENANT, ttl=60.0), "video": RetentionSettings(max_age=90.0)},
    )

    assert (Scope.TENANT, 60.0, family.stage("moments").max_age) == (
        decided.stage("moments").scope,
        decided.stage("moments").ttl,
        decided.stage("moments").max_age,
    )
    assert (family.stage("video").ttl, 90.0) == (decided.stage("video").ttl, decided.stage("video").max_age)
    assert family.stage("text") == decided.stage("text")
    parameters = {each.name: each.default if each.default is not None else "a cat" for each in family.parameters}
    spaces = namespaces(bytes(32), Principal("t", "u"))
    ids = [content_ids(description, parameters, {"image": "x"}) for description in (family, decided)]
    assert ids[0] == ids[1]
    before, after = addresses(family, ids[0], spaces), addresses(decided, ids[1], spaces)
    assert {"moments"} == {name for name in before if before[name] != after[name]}


def test_a_stage_that_is_not_there_is_named() -> None:
    """With those that are."""
    with pytest.raises(ValueError, match=r"no stage named picture; it has tokens, text, moments, denoise, video"):
        decide(describe("small"), {"picture": RetentionSettings(ttl=1.0)})


@pytest.mark.parametrize("wrong", [{"scope": "world"}, {"ttl": 0}, {"max_age": -1}, {"age": 3}])
def test_what_cannot_be_decided_is_refused(wrong: dict[str, object]) -> None:
    """When settings are read."""
    with pytest.raises(ValidationError):
        ModelSettings.model_validate({"name": "m", "source": "/m", "stages": {"moments": wrong}})
