"""Plans: policies as messages mean them, seeds, and addresses that a worker computes too."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from pydantic import ValidationError

from cache.description import Scope
from cache.keys import Principal, addresses, content_ids, namespaces
from cache.near import Likeness
from gateway.darkroom import Source
from gateway.errors import InvalidField
from gateway.plan import DefaultPolicy, Plan, Policy, StandIn, choose_seed, default_policy, make_plan
from gateway.validate import complete
from reprise.v1.common_pb2 import CachePolicy
from tests.cache.helpers import SECRET
from tests.gateway.worker import family


def source(identity: str, part_of: str = "") -> Source:
    known: Any = (identity, 16, 16, part_of)
    return Source(None, known, None, None)  # type: ignore[arg-type]  # neither file nor pixels are asked for


def plan(
    prompt: str = "a cat", *, image: str = "i1", part_of: str = "", tenant: str = "t", user: str = "u", **given: Any
) -> Plan:
    parameters = complete(family(), {"prompt": prompt, **given}, {})
    owned = namespaces(SECRET, Principal(tenant, user))
    return make_plan(family(), parameters, {"image": source(image, part_of)}, owned, Policy())


POLICIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing said": ({}, {}),
    "use": ({"mode": CachePolicy.MODE_USE}, {}),
    "refresh": ({"mode": CachePolicy.MODE_REFRESH}, {"read": False, "reuse": False, "refresh": True}),
    "bypass": ({"mode": CachePolicy.MODE_BYPASS}, {"read": False, "reuse": False, "store": False}),
    "only if cached": ({"mode": CachePolicy.MODE_ONLY_IF_CACHED}, {"generate": False}),
    "no store": ({"no_store": True}, {"store": False}),
    "max age": ({"max_age": Duration(seconds=2, nanos=500_000_000)}, {"max_age": 2.5}),
    "no age at all": ({"max_age": Duration()}, {"max_age": 0.0}),
    "fresh": ({"fresh": True}, {"read": False, "fresh": True}),
    "near-duplicates": ({"similarity": {"pictures": True}}, {"similarity": 8}),
    "nearer duplicates": ({"similarity": {"pictures": True, "max_distance": 3}}, {"similarity": 3}),
    "a distance of nothing": ({"similarity": {"max_distance": 3}}, {}),
}


@pytest.mark.parametrize("case", POLICIES)
def test_a_policy_says_what_may_be_read_reused_and_written(case: str) -> None:
    """Everything is allowed but what the message excludes."""
    said, differs = POLICIES[case]
    policy, default = Policy.of(CachePolicy(**said)), Policy()
    expected = {field.name: getattr(default, field.name) for field in fields(Policy)} | differs
    assert expected == {field.name: getattr(policy, field.name) for field in fields(Policy)}


USE, REFRESH, CACHED = CachePolicy.MODE_USE, CachePolicy.MODE_REFRESH, CachePolicy.MODE_ONLY_IF_CACHED
VARIED = {"read": False, "fresh": True}
# What the request says, whether it gives a seed, what the default says -> how the policy differs from MODE_USE.
OVERRIDES: dict[str, tuple[dict[str, Any], bool, dict[str, Any], dict[str, Any]]] = {
    "silent, no default": ({}, False, {}, {}),
    "silent, refresh": ({}, False, {"mode": "refresh"}, {"read": False, "reuse": False, "refresh": True}),
    "silent, bypass": ({}, False, {"mode": "bypass"}, {"read": False, "reuse": False, "store": False}),
    "silent, only if cached": ({}, False, {"mode": "only-if-cached"}, {"generate": False}),
    "silent, use": ({}, False, {"mode": "use"}, {}),
    "use, refresh": ({"mode": USE}, False, {"mode": "refresh"}, {}),
    "only if cached, refresh": ({"mode": CACHED}, False, {"mode": "refresh"}, {"generate": False}),
    "silent, fresh": ({}, False, {"fresh": True}, VARIED),
    "a seed, fresh": ({}, True, {"fresh": True}, {}),
    "use, fresh": ({"mode": USE}, False, {"fresh": True}, {}),
    "only if cached, fresh": ({"mode": CACHED}, False, {"fresh": True}, {"generate": False}),
    "refresh, fresh": ({"mode": REFRESH}, False, {"fresh": True}, {"read": False, "reuse": False, "refresh": True}),
    "fresh and use, fresh": ({"mode": USE, "fresh": True}, False, {"fresh": True}, VARIED),
    "a seed, refresh and fresh": (
        {},
        True,
        {"mode": "refresh", "fresh": True},
        {"read": False, "reuse": False, "refresh": True},
    ),
    "silent, no store": ({}, False, {"no_store": True}, {"store": False}),
    "use, no store": ({"mode": USE}, False, {"no_store": True}, {"store": False}),
    "silent, max age": ({}, False, {"max_age": 5.0}, {"max_age": 5.0}),
    "max age, max age": ({"max_age": Duration(seconds=9)}, False, {"max_age": 5.0}, {"max_age": 9.0}),
    "an age of zero, max age": ({"max_age": Duration()}, False, {"max_age": 5.0}, {"max_age": 0.0}),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_a_request_overrides_the_default_in_what_it_says(case: str) -> None:
    """And in nothing else. Variety by default is not for who asks for a certain result."""
    said, seeded, default, differs = OVERRIDES[case]
    policy = Policy.of(CachePolicy(**said), DefaultPolicy(**default), seeded=seeded)
    assert replace(Policy(), **differs) == policy


def test_fresh_where_only_the_cache_may_answer_is_refused() -> None:
    """A request for variety under a default that forbids to generate names its field; so does such a default."""
    with pytest.raises(InvalidField) as caught:
        Policy.of(CachePolicy(fresh=True), DefaultPolicy(mode="only-if-cached"))
    assert "cache_policy.fresh" == caught.value.field
    with pytest.raises(ValidationError):
        DefaultPolicy(fresh=True, mode="only-if-cached")


@pytest.mark.parametrize(
    ("model", "tenant", "expected"),
    [
        ("clip", "studio", "both"),
        ("other", "studio", "tenant"),
        ("clip", "other", "model"),
        ("other", "other", "neither"),
        ("clip", "", "model"),
    ],
)
def test_the_most_specific_default_holds(model: str, tenant: str, expected: str) -> None:
    """Model and tenant before tenant before model before neither, in whatever order they are written."""
    ages = {"neither": 1.0, "model": 2.0, "tenant": 3.0, "both": 4.0}
    defaults = [
        DefaultPolicy(
            model="clip" if name in ("model", "both") else "",
            tenant="studio" if name in ("tenant", "both") else "",
            max_age=age,
        )
        for name, age in ages.items()
    ]
    for order in (defaults, defaults[::-1]):
        assert ages[expected] == default_policy(order, model, tenant).max_age
    of_one = [default for default in defaults if not (default.model and default.tenant)]
    assert ages["tenant" if expected == "both" else expected] == default_policy(of_one, model, tenant).max_age


def test_where_no_default_applies_nothing_is_said() -> None:
    """That of another tenant says nothing."""
    assert DefaultPolicy() == default_policy([DefaultPolicy(tenant="studio", fresh=True)], "clip", "desk")


def test_what_is_refreshed_or_too_old_is_replaced() -> None:
    """A refresh and an age limit replace what is stored; nothing else does."""
    replacing = {case for case, (said, _) in POLICIES.items() if Policy.of(CachePolicy(**said)).replaces}
    assert {"refresh", "max age", "no age at all"} == replacing


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"fresh": True, "mode": CachePolicy.MODE_ONLY_IF_CACHED}, "cache_policy.fresh"),
        ({"max_age": Duration(seconds=-1)}, "cache_policy.max_age"),
        ({"mode": 17}, "cache_policy.mode"),
    ],
    ids=["fresh", "age", "mode"],
)
def test_a_policy_that_means_nothing_names_its_field(said: dict[str, Any], field: str) -> None:
    """It is refused rather than guessed at."""
    with pytest.raises(InvalidField) as caught:
        Policy.of(CachePolicy(**said))
    assert field == caught.value.field


def test_a_seed_is_drawn_only_for_variety() -> None:
    """Within the range of seeds, another one each time, and never beside a given one."""
    assert {"prompt": "a"} == choose_seed({"prompt": "a"}, Policy())
    assert {"seed": 3} == choose_seed({"seed": 3}, Policy())
    drawn = [choose_seed({}, Policy(fresh=True))["seed"] for _ in range(100)]
    assert 100 == len(set(drawn))
    assert all(isinstance(seed, int) and 0 <= seed < 2**53 for seed in drawn)
    with pytest.raises(InvalidField) as caught:
        choose_seed({"seed": 0}, Policy(fresh=True))
    assert "seed" == caught.value.field


def test_addresses_are_those_of_the_one_function() -> None:
    """A worker that computes them from the same parameters, identities and namespaces finds the same ones."""
    made = plan()
    ids = content_ids(family(), made.parameters, {"image": "i1"})
    assert addresses(family(), ids, namespaces(SECRET, Principal("t", "u"))) == made.addresses
    assert made.addresses["render"] == made.address
    assert made.addresses["picture"].content_id == made.affinity


def test_a_part_of_a_picture_is_marked_with_the_whole() -> None:
    """Also in a plan that holds no picture, and in one on a near-duplicate's encodings."""
    near = {"image": StandIn("i2", Likeness(1, 0.5))}
    for made in (plan(part_of="w"), plan(part_of="w").without_media(), plan(part_of="w").with_stand_ins(near)):
        assert {"image": ("media:i1", "media:w")} == made.media_tags
    assert {"image": ("media:i1",)} == plan().media_tags


def test_what_a_stage_does_not_declare_leaves_it_alone() -> None:
    """Another prompt keeps the picture's address and the plan's affinity, another rate everything but the file."""
    first, prompt, rate, image = plan(), plan("a dog"), plan(playback_fps=9), plan(image="i2")
    assert {"negative_tokens", "picture"} == same(first, prompt)
    assert first.affinity == prompt.affinity
    assert set(first.addresses) - {"render"} == same(first, rate)
    assert {"tokens", "text", "negative_tokens"} == same(first, image)
    assert first.affinity != image.affinity


def test_another_owner_has_other_addresses_and_the_same_affinity() -> None:
    """Results are the tenant's, conditions the user's, pictures everybody's; equal pictures meet on one worker."""
    mine, colleague, stranger = plan(), plan(user="v"), plan(tenant="s")
    assert {"picture", "denoise", "render"} == same(mine, colleague)
    assert {"picture"} == same(mine, stranger)
    assert mine.affinity == stranger.affinity
    assert mine.address.content_id == stranger.address.content_id


def test_stages_that_a_request_has_not_are_not_in_its_plan() -> None:
    """Without guidance there is no negative prompt: it changes nothing, and has no address."""
    plain, other = plan(guidance_scale=1.0), plan(guidance_scale=1.0, negative_prompt="blur")
    assert "negative_tokens" not in plain.addresses
    assert plain.addresses == other.addresses
    assert "negative_tokens" not in [stage.name for stage in plain.stages]
    assert 0 == plain.seed
    assert Scope.SHARED in plain.namespaces


def same(one: Plan, other: Plan) -> set[str]:
    return {stage for stage, address in one.addresses.items() if other.addresses.get(stage) == address}
