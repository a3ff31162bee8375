"""Keys: content ids change with what they depend on and with nothing else; namespaces never meet."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cache.description import Description, Scalar, Scope
from cache.digest import Digest
from cache.keys import Address, Key, Principal, addresses, content_ids, depends_on, namespace, namespaces
from tests.cache.families import descriptions, picture_family, requests
from tests.cache.helpers import SECRET

_PARAMETERS: dict[str, Scalar] = {
    "prompt": "a red boat",
    "negative_prompt": "",
    "guidance_scale": 9.0,
    "steps": 50,
    "playback_fps": 8,
}
_MEDIA = {"image": "i" * 64, "voice": "v" * 64}
_ADA = Principal("acme", "ada", "s1")

GOLDEN_IDS = {
    "tokens": "d34431cb67826b9e9f59dc6c94fdcd74abbe71a25ba3c3f83dad73f7d68479c5",
    "text": "1e24605917d96a601546fc233d54d792edf4c9be7fcfa15e7c0949c8e2f368e5",
    "negative_tokens": "534e40276ddd9a94360278e83ce05c05587759b76594109c1eb2bf84bb2386d7",
    "picture": "f2bc30f6156c0ea10077a61cbc8a1e52c2d1a4621207356d5a17e2f6a0b852d7",
    "denoise": "9fd05f6fb4eb4264f0be5e2820d593b05bd68e3e301f686673937a8112e0b4d4",
    "render": "bbb947cb605422dcf45a48e2d8aae97588bcd1ce0457f53c78f64069466e869b",
}
GOLDEN_SPACES = {
    "shared": "32735b7c3ba42ece23090278a1b9b987",
    "tenant": "a4c6f66f0aa81f080f805fe8d1ca17a8",
    "user": "0c140ca02cc5d46d7b725cf84f0a0c4b",
    "session": "483c427eb4246723cbb7d368ff416fab",
}
GOLDEN_BLOB = "b/a4c6f66f0aa81f080f805fe8d1ca17a8/be/be64f2ee97a49cb93fad151214d0bf412df9589a838793092bf15430d2696515"


def _ids(
    parameters: Mapping[str, Scalar] | None = None,
    media: Mapping[str, str] | None = None,
    description: Description | None = None,
    canonical: Mapping[str, Digest] | None = None,
) -> dict[str, str]:
    return content_ids(
        description or picture_family(), _PARAMETERS | dict(parameters or {}), _MEDIA | dict(media or {}), canonical
    )


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> set[str]:
    """Names of stages whose ids differ, or which only one of the two requests has."""
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_golden_content_ids() -> None:
    """The names of outputs, pinned: any change of these is a change of SCHEMA."""
    assert GOLDEN_IDS == _ids()


def test_golden_names() -> None:
    """Namespaces, addresses and keys, pinned."""
    spaces = namespaces(SECRET, _ADA)
    address = addresses(picture_family(), _ids(), spaces)["render"]
    digest = Digest.of(b"clip")

    assert GOLDEN_SPACES == {scope.value: space for scope, space in spaces.items()}
    assert f"{GOLDEN_SPACES['tenant']}/{GOLDEN_IDS['render']}" == str(address)
    assert f"r/{address.namespace}/{address.content_id[:2]}/{address.content_id}" == str(Key.of_record(address))
    assert GOLDEN_BLOB == str(Key.of_blob(address.namespace, digest))
    assert "w" + GOLDEN_BLOB[1:] == str(Key.of_wire(Address(address.namespace, digest.hex)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prompt": "a blue boat"}, {"tokens", "text", "denoise", "render"}),
        ({"negative_prompt": "blurry"}, {"negative_tokens", "denoise", "render"}),
        ({"steps": 49}, {"denoise", "render"}),
        ({"guidance_scale": 8.0}, {"denoise", "render"}),
        ({"playback_fps": 24}, {"render"}),
        ({"somebody_elses": 1}, set()),
    ],
)
def test_a_parameter_changes_the_stages_that_depend_on_it(change: dict[str, Scalar], expected: set[str]) -> None:
    """The clip of another prompt keeps its picture; the file at another rate keeps its latents."""
    assert expected == _differing(_ids(), _ids(change))


def test_another_picture_keeps_the_text() -> None:
    """The identity of a medium changes what reads it, and only that."""
    assert {"picture", "denoise", "render"} == _differing(_ids(), _ids(media={"image": "j" * 64}))
    assert set() == _differing(_ids(), _ids(media={"voice": "w" * 64}))


def _with_stage(name: str, /, **changes: Any) -> Description:
    description = picture_family()
    stages = tuple(stage.model_copy(update=changes) if stage.name == name else stage for stage in description.stages)
    return description.model_copy(update={"stages": stages})


@pytest.mark.parametrize("changes", [{"fingerprint": "picture-2"}, {"kind": "picture+"}])
def test_another_computation_has_another_name(changes: dict[str, str]) -> None:
    """A new fingerprint or kind renames the stage's output and everything made of it."""
    changed = _ids(description=_with_stage("picture", **changes))

    assert {"picture", "denoise", "render"} == _differing(_ids(), changed)


@pytest.mark.parametrize(
    "changes", [{"ttl": 1.0}, {"max_age": 5.0}, {"scope": Scope.SESSION}, {"cached": False}, {"pooled": True}]
)
def test_how_an_output_is_kept_is_not_part_of_its_name(changes: dict[str, Any]) -> None:
    """Age, scope and place of an entry are no part of what it is."""
    assert _ids() == _ids(description=_with_stage("picture", **changes))


def test_the_role_of_a_parameter_is_part_of_the_name() -> None:
    """The same value in another role is another computation; its name in the request does not matter."""
    assert "render" in _differing(_ids(), _ids(description=_with_stage("render", parameters={"rate": "playback_fps"})))

    renamed = _with_stage("render", parameters={"fps": "rate"})
    assert _ids() == _ids({"rate": 8}, description=renamed)


def test_the_type_of_a_value_is_part_of_the_name() -> None:
    """50 steps, 50.0 steps and "50" steps have different names."""
    assert 4 == len({_ids({"steps": value})["denoise"] for value in (50, 50.0, "50", 1)})
    assert _ids({"steps": 1})["denoise"] != _ids({"steps": True})["denoise"]


def test_stages_of_one_kind_share_entries() -> None:
    """The same text as prompt and as negative prompt has the same tokens."""
    ids = _ids({"negative_prompt": _PARAMETERS["prompt"]})

    assert ids["tokens"] == ids["negative_tokens"]


def test_a_dropped_stage_takes_its_influence_along() -> None:
    """Without guidance there is no negative prompt, and what it says changes nothing."""
    ids = _ids({"guidance_scale": 1.0})

    assert "negative_tokens" not in ids
    assert ids == _ids({"guidance_scale": 1.0, "negative_prompt": "blurry"})


def test_spellings_with_one_meaning_share_what_follows() -> None:
    """Where both texts have the same tokens, everything downstream has one name, whatever was written."""
    tokens = {"tokens": Digest.of(b"tokens"), "negative_tokens": Digest.of(b"none")}
    one, other = (_ids({"prompt": text}, canonical=tokens) for text in ("a red boat", "A red  boat"))

    assert {"tokens"} == _differing(one, other)
    assert {"text", "denoise", "render"} == _differing(_ids(), one)


def test_other_tokens_give_other_names() -> None:
    """What a canonicalising stage said is part of what follows: hash and size both."""
    digest = Digest.of(b"tokens")
    ids = [
        _ids(canonical={"tokens": known})["text"]
        for known in (digest, Digest(digest.hex, 7), Digest.of(b"other"), Digest(_ids()["tokens"], 0))
    ]

    assert 5 == len({*ids, _ids()["text"]})


def test_canonical_output_of_a_dropped_stage_changes_nothing() -> None:
    """Knowing tokens of a stage that the request does not have has no influence."""
    request: dict[str, Scalar] = {"guidance_scale": 1.0}

    assert _ids(request) == _ids(request, canonical={"negative_tokens": Digest.of(b"x")})


@given(descriptions(conditional=False), requests(), st.data())
def test_ids_change_exactly_where_the_declarations_say(
    description: Description, request: dict[str, int], data: st.DataObject
) -> None:
    """One changed input renames the outputs of all stages that depend on it, through any path, and no others."""
    name = data.draw(st.sampled_from([*request, *_MEDIA]))
    media = dict(_MEDIA)
    parameters: dict[str, Scalar] = {**request}
    if name in media:
        media[name] = "x" * 64
    else:
        parameters[name] = data.draw(st.integers(0, 4).filter(lambda value: value != request[name]))
    before, after = content_ids(description, request, _MEDIA), content_ids(description, parameters, media)

    expected = {stage.name for stage in description.stages if name in depends_on(description, stage)}
    assert expected == _differing(before, after)


@given(descriptions(conditional=True), requests(), st.data())
def test_conditions_count_among_what_a_stage_depends_on(
    description: Description, request: dict[str, int], data: st.DataObject
) -> None:
    """A stage that is there before and after is renamed only by what it depends on, conditions upstream included."""
    name = data.draw(st.sampled_from(sorted(request)))
    changed = request | {name: data.draw(st.integers(0, 4))}
    before, after = content_ids(description, request, _MEDIA), content_ids(description, changed, _MEDIA)

    renamed = {stage for stage in before.keys() & after.keys() if before[stage] != after[stage]}
    unable = {stage for stage in renamed if name not in depends_on(description, description.stage(stage))}
    assert set() == unable


@given(descriptions(conditional=True), requests())
def test_ids_are_those_of_the_active_stages(description: Description, request: dict[str, int]) -> None:
    """Every active stage has an id and an address in the namespace of its scope; inactive ones have none."""
    ids = content_ids(description, request, _MEDIA)
    spaces = namespaces(SECRET, _ADA)

    assert [stage.name for stage in description.active(request)] == list(ids)
    assert {
        name: Address(spaces[description.stage(name).scope], content_id) for name, content_id in ids.items()
    } == addresses(description, ids, spaces)


_NEAR = {"image": "n" * 64}  # whose encodings stand in


def test_golden_content_ids_of_borrowed_encodings() -> None:
    """Names of what rests on a near-duplicate's encoding, pinned: the encoding's own is that of the near-duplicate."""
    ids = content_ids(picture_family(), _PARAMETERS, _MEDIA, instead=_NEAR)

    assert {"picture", "denoise", "render"} == _differing(_ids(), ids)
    assert _ids(media=_NEAR)["picture"] == ids["picture"]
    assert "4231431b7fe99c40e9d1fe618239a1d4dd1978b04bf5d10a71b030abc9f10acd" == ids["render"]


@given(descriptions(conditional=True), requests(), st.sampled_from(["image", "voice"]))
def test_what_rests_on_a_near_duplicate_never_meets_the_exact(
    description: Description, request: dict[str, int], medium: str
) -> None:
    """Encodings are the near-duplicate's; what is made of them has a name that neither picture's own request knows."""
    instead = {medium: "n" * 64}
    exact, other = content_ids(description, request, _MEDIA), content_ids(description, request, _MEDIA | instead)
    near = content_ids(description, request, _MEDIA, instead=instead)
    elsewhere = content_ids(description, request, _MEDIA | {medium: "z" * 64}, instead=instead)

    for stage in description.active(request):
        name, upstream = stage.name, {each for each in stage.upstream.values() if each in near}
        if medium not in depends_on(description, stage) or not _reached(description, stage, medium, near):
            assert exact[name] == near[name] == elsewhere[name]
        elif medium in stage.media and all(near[each] == other[each] for each in upstream):
            assert other[name] == near[name] == elsewhere[name] != exact[name]
        elif medium not in stage.media:
            assert 4 == len({exact[name], other[name], near[name], elsewhere[name]})


def _reached(description: Description, stage: Any, medium: str, active: Mapping[str, str]) -> bool:
    """Whether this stage or an active one before it reads the medium."""
    before = [description.stage(each) for each in stage.upstream.values() if each in active]
    return medium in stage.media or any(_reached(description, each, medium, active) for each in before)


def test_what_rests_on_a_near_duplicate_is_its_tenants() -> None:
    """A shared stage after a borrowed encoding is kept for the tenant; the encoding itself is where it always is."""
    spaces = namespaces(SECRET, _ADA)
    description = _with_stage("denoise", scope=Scope.SHARED)
    ids = content_ids(description, _PARAMETERS, _MEDIA, instead=_NEAR)
    near = addresses(description, ids, spaces, _NEAR)

    assert (spaces[Scope.SHARED], spaces[Scope.TENANT]) == (near["picture"].namespace, near["denoise"].namespace)
    assert spaces[Scope.USER] == near["tokens"].namespace
    assert spaces[Scope.SHARED] == addresses(description, _ids(), spaces)["denoise"].namespace


_names = st.text(max_size=3)
_principals = st.builds(Principal, _names, _names, _names)
_VISIBLE = {
    Scope.SHARED: (),
    Scope.TENANT: ("tenant",),
    Scope.USER: ("tenant", "user"),
    Scope.SESSION: ("tenant", "user", "session"),
}


@given(_principals, _principals, st.sampled_from(Scope), st.sampled_from(Scope))
def test_namespaces_meet_only_where_scope_and_owner_are_the_same(
    one: Principal, other: Principal, scope: Scope, other_scope: Scope
) -> None:
    """Two namespaces are equal exactly if the scope is, and every part of the owner that the scope looks at."""
    same = scope is other_scope and all(getattr(one, part) == getattr(other, part) for part in _VISIBLE[scope])

    assert same == (namespace(SECRET, scope, one) == namespace(SECRET, other_scope, other))


def test_owners_that_look_alike_when_joined_stay_apart() -> None:
    """Empty parts and shifted letters never let two owners meet, in any scope that tells them apart."""
    owners = [
        Principal("acme"),
        Principal("acme", "", "ada"),
        Principal("acme", "ada"),
        Principal("acmeada"),
        Principal("acm", "eada"),
        Principal("", "acme", "ada"),
        Principal("acme/ada"),
    ]

    spaces = {namespace(SECRET, Scope.SESSION, owner) for owner in owners}
    spaces |= {namespace(SECRET, Scope.TENANT, Principal(tenant)) for tenant in ("ab", "a", "b", "")}
    assert len(owners) + 4 == len(spaces)


@given(_principals, st.sampled_from(Scope))
def test_another_secret_is_another_world(principal: Principal, scope: Scope) -> None:
    """Namespaces of two deployments never meet, the shared one included."""
    assert namespace(SECRET, scope, principal) != namespace(bytes(32), scope, principal)


@given(st.text(max_size=120))
def test_addresses_are_parsed_strictly(text: str) -> None:
    """Whatever is not the text of an address is refused."""
    assume(len(text) != 97)
    with pytest.raises(ValueError, match="not an address"):
        Address.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "A" * 32 + "/" + "0" * 64,
        "0" * 31 + "/" + "0" * 65,
        "0" * 32 + "/" + "0" * 63 + "/",
        "0" * 32 + "-" + "0" * 64,
        "." * 32 + "/" + "0" * 64,
        "\u0660" * 32 + "/" + "0" * 64,
    ],
)
def test_almost_addresses_are_refused(text: str) -> None:
    """Capitals, other lengths, other digits and paths are no addresses."""
    with pytest.raises(ValueError, match="not an address"):
        Address.parse(text)


def test_an_address_is_read_back() -> None:
    """An address comes back from its text."""
    address = Address("0" * 32, "f" * 64)

    assert address == Address.parse(str(address))


def test_kinds_of_entries_have_different_names() -> None:
    """The record, the blob and the wire form under one hash are three entries, in every namespace others."""
    digest = Digest("0" * 64, 1)
    places = [Address("0" * 32, digest.hex), Address("1" * 32, digest.hex)]
    names = {str(make(place)) for place, make in product(places, (Key.of_record, Key.of_wire))}
    names |= {str(Key.of_blob(place.namespace, digest)) for place in places}

    assert 6 == len(names)
