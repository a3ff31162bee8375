"""Tags: by what a record can be found again when it has become wrong. Plain texts that name nobody and quote nothing.

media:<identity>    made from this picture or sound, at whatever distance
of:<hex>            made from the entry with this content id, or with an output of this digest, at whatever distance
via:<stage>         made from an output of the stage of this name, at whatever distance
tenant:<namespace>  made on behalf of this tenant
user:<namespace>    made on behalf of this user
label:<keyed hash>  asked for with this label, which callers choose
warmed              made ahead of being asked for
"""

from __future__ import annotations

from cache.encoding import keyed_hash_of

WARMED = "warmed"
_MEDIA, _ANCESTOR, _STAGE, _TENANT, _USER = "media:", "of:", "via:", "tenant:", "user:"


def of_media(identity: str) -> str:
    return f"{_MEDIA}{identity}"


def of_ancestor(hex_name: str) -> str:
    return f"{_ANCESTOR}{hex_name}"


def of_stage(name: str) -> str:
    return f"{_STAGE}{name}"


def of_tenant(namespace: str) -> str:
    return f"{_TENANT}{namespace}"


def of_user(namespace: str) -> str:
    return f"{_USER}{namespace}"


def of_label(secret: bytes, label: str) -> str:
    return f"label:{keyed_hash_of(secret, 'label', label)[:32]}"


def ancestor_in(tag: str) -> str:
    """The name in a tag of an ancestor; nothing in any other."""
    return tag.removeprefix(_ANCESTOR) if tag.startswith(_ANCESTOR) else ""


def media_in(tag: str) -> str:
    """The identity in a tag of a picture or sound; nothing in any other."""
    return tag.removeprefix(_MEDIA) if tag.startswith(_MEDIA) else ""


def tenant_in(tag: str) -> str:
    """The namespace in a tenant's tag; nothing in any other."""
    return tag.removeprefix(_TENANT) if tag.startswith(_TENANT) else ""


def user_in(tag: str) -> str:
    """The namespace in a user's tag; nothing in any other."""
    return tag.removeprefix(_USER) if tag.startswith(_USER) else ""


def is_lineage(tag: str) -> bool:
    """Whether a tag says what an entry was made of, so that whatever is made of the entry has it too."""
    return tag.startswith((_MEDIA, _ANCESTOR, _STAGE))
