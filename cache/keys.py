"""Keys: one pure function from a description and a request to the address of every stage's output.

A content id says what an output is: hash of the stage's kind and fingerprint, the parameters it declares, the identity
of the media it reads, and its upstream. No owner is in it, so a private condition does not make the result private.
An address says where it is kept: the namespace of the stage's scope, then the content id. Flights are keyed by address.

Two parties compute these. The gateway knows a request as it was written; the worker also knows what a canonicalising
stage made of it (text to token ids). Both call `content_ids`; the worker passes the outputs it knows, and what
follows from them is then named by those outputs. So two spellings with one meaning share everything downstream.

A request may let the encodings of a near-duplicate stand in for its own picture's. Those have the names they have
everywhere. What is made of them is another output than the exact one, and is named as such, so that the two never meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from cache.description import Description, Scalar, Scope, Stage
from cache.digest import Digest
from cache.encoding import Value, hash_of, keyed_hash_of

Kind: TypeAlias = Literal["r", "b", "w"]  # record, blob, wire form of a reply (L1 only)


@dataclass(frozen=True, slots=True)
class Principal:
    """On whose behalf a request runs. Empty parts are parts like any other."""

    tenant: str
    user: str = ""
    session: str = ""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a stage's record is kept: nobody outside the namespace can name it."""

    namespace: str
    content_id: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.content_id}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises ValueError unless the text is 32 and 64 hexadecimal digits around a slash."""
        namespace, _, content_id = text.partition("/")
        if not (_is_hex(namespace, 32) and _is_hex(content_id, 64)):
            raise ValueError("not an address")
        return cls(namespace, content_id)


@dataclass(frozen=True, slots=True)
class Key:
    """The name of one stored entry in any tier."""

    kind: Kind
    namespace: str
    hex: str

    @classmethod
    def of_record(cls, address: Address) -> Key:
        return cls("r", address.namespace, address.content_id)

    @classmethod
    def of_blob(cls, namespace: str, digest: Digest) -> Key:
        return cls("b", namespace, digest.hex)

    @classmethod
    def of_wire(cls, address: Address) -> Key:
        return cls("w", address.namespace, address.content_id)

    @classmethod
    def parse(cls, name: str) -> Key:
        """The key of a stored entry. Raises ValueError for what is no name of a record or a blob."""
        kind, _, rest = name.partition("/")
        namespace, _, rest = rest.partition("/")
        address = Address.parse(f"{namespace}/{rest[3:]}")
        key = cls("r" if kind == "r" else "b", address.namespace, address.content_id)
        if str(key) != name:
            raise ValueError("not a key")
        return key

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.hex[:2]}/{self.hex}"


def namespace(secret: bytes, scope: Scope, principal: Principal) -> str:
    """128 bits that stand for a scope of a principal. Keyed, so that knowing a name does not open its namespace."""
    parts: list[Value] = [scope.value]
    if scope is not Scope.SHARED:
        parts.append(principal.tenant)
    if scope in (Scope.USER, Scope.SESSION):
        parts.append(principal.user)
    if scope is Scope.SESSION:
        parts.append(principal.session)
    return keyed_hash_of(secret, "namespace", parts)[:32]


def namespaces(secret: bytes, principal: Principal) -> dict[Scope, str]:
    return {scope: namespace(secret, scope, principal) for scope in Scope}


def content_ids(
    description: Description,
    parameters: Mapping[str, Scalar],
    media: Mapping[str, str],
    canonical: Mapping[str, Digest] | None = None,
    instead: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Content id of every stage this request has, by stage name.

    `parameters` are complete (defaults filled in), `media` gives the identity of each input by name, `canonical` the
    output digests of canonicalising stages as far as they are known. `instead` gives the identity of a near-duplicate
    for inputs whose encodings are borrowed: stages that read such an input are named by it, as in a request of its own;
    the names of what is made of them hold both identities.
    """
    known, instead = canonical or {}, instead or {}
    stages = _by_name(description)
    seen = {**media, **instead}
    ids: dict[str, str] = {}

    def upstream(name: str, reader: Stage) -> Value:
        if (own := borrowed(stages[name], instead)) and not borrowed(reader, instead):
            return ["near", ids[name], {medium: media[medium] for medium in own}]
        if name in known:
            return ["output", known[name].hex, known[name].size]
        return ["stage", ids[name]]

    for stage in description.active(parameters):
        ids[stage.name] = hash_of(
            "stage",
            {
                "kind": stage.kind,
                "fingerprint": stage.fingerprint,
                "parameters": {role: parameters[name] for role, name in stage.parameters.items()},
                "media": {name: seen[name] for name in stage.media},
                "upstream": {role: upstream(name, stage) for role, name in stage.upstream.items() if name in ids},
            },
        )
    return ids


def addresses(
    description: Description,
    ids: Mapping[str, str],
    namespaces: Mapping[Scope, str],
    instead: Mapping[str, str] | None = None,
) -> dict[str, Address]:
    """Address of every stage, by stage name. What is made of borrowed encodings (see `content_ids`) is never shared."""
    instead, found = instead or {}, {}
    stages = _by_name(description)
    reach = _reach(stages) if instead else {}
    for name, content_id in ids.items():
        stage = stages[name]
        approximate = not borrowed(stage, instead) and not reach.get(name, frozenset()).isdisjoint(instead)
        scope = Scope.TENANT if approximate and stage.scope is Scope.SHARED else stage.scope
        found[name] = Address(namespaces[scope], content_id)
    return found


def borrowed(stage: Stage, instead: Mapping[str, str]) -> list[str]:
    """The media that this stage reads itself, and of which it is another's encoding."""
    return [name for name in stage.media if name in instead]


def depends_on(description: Description, stage: Stage) -> frozenset[str]:
    """Names of the request parameters and media that can change this stage's output, through any upstream."""
    return _reach(_by_name(description))[stage.name]


def ancestors(description: Description, name: str) -> frozenset[str]:
    """Names of the stages that a stage needs, at whatever distance."""
    needed = {name}
    for stage in reversed(description.stages):  # each stands after what it needs
        if stage.name in needed:
            needed.update(stage.upstream.values())
    return frozenset(needed - {name})


def _reach(stages: Mapping[str, Stage]) -> dict[str, frozenset[str]]:
    reach: dict[str, frozenset[str]] = {}
    for stage in stages.values():
        names = set(stage.parameters.values()) | set(stage.media)
        for upstream in stage.upstream.values():
            names |= reach[upstream]
            if (when := stages[upstream].when) is not None:
                names.add(when.parameter)  # whether there is an upstream at all matters as much as what it says
        reach[stage.name] = frozenset(names)
    return reach


def _by_name(description: Description) -> dict[str, Stage]:
    return {stage.name: stage for stage in description.stages}


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and all(character in "0123456789abcdef" for character in text)
