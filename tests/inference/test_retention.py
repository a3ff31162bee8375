"""Operators decide who may find a stage's outputs and how long they are kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
from pydantic import ValidationError

from cache.description import LONGEST_AGE, Scope, Stage
from cache.keys import Principal, addresses, content_ids, namespaces
from cache.orders import IN_FORCE
from gateway.settings import ReplaySection
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


@pytest.mark.parametrize(
    "wrong", [{"scope": "world"}, {"ttl": 0}, {"max_age": -1}, {"age": 3}, {"max_age": LONGEST_AGE + 1.0}]
)
def test_what_cannot_be_decided_is_refused(wrong: dict[str, object]) -> None:
    """When settings are read."""
    with pytest.raises(ValidationError):
        ModelSettings.model_validate({"name": "m", "source": "/m", "stages": {"moments": wrong}})


@pytest.mark.parametrize("days", [7, 8, 9])
def test_no_ban_is_forgotten_before_what_it_forbids_is_gone(days: int) -> None:
    """Whatever age settings and descriptions allow, of outputs and of kept requests, is well below that of bans."""
    age = days * 24 * 3600.0
    ways: list[Callable[[], object]] = [
        lambda: RetentionSettings(max_age=age),
        lambda: ReplaySection(max_age=age),
        lambda: Stage(name="s", kind="s", fingerprint="f", scope=Scope.SHARED, ttl=1.0, max_age=age),
    ]
    for way in ways:
        with nullcontext() if age + 3600.0 < IN_FORCE else pytest.raises(ValidationError, match="max_age"):
            way()
