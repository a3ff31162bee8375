"""Who asks. A caller is known from credentials in the call's metadata, never from a message.

Three modes: `local`, where everybody who reaches the port is the one operator; `api_keys`, where a file lists the
SHA-256 of every key and whose it is; `header`, where a trusted proxy has done the asking and sets two headers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, TypeAlias

import grpc
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from cache.keys import Principal
from gateway.errors import InvalidField, PermissionDenied, Unauthenticated

LONGEST_NAME = 128  # characters of a tenant, user or session
NAME_RULE = f"must be 1 to {LONGEST_NAME} printable characters"

SESSION = "x-reprise-session"
TENANT = "x-reprise-tenant"
USER = "x-reprise-user"
AUTHORIZATION = "authorization"
API_KEY = "x-api-key"

# Probes and tools ask these without credentials; they tell nothing about anybody's media.
EXEMPT = ("/grpc.health.v1.", "/grpc.reflection.")

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]


class IdentitySettings(BaseModel):
    """How callers are told apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["local", "api_keys", "header"] = "local"
    file: Path | None = None  # YAML list of keys, for the mode api_keys

    @model_validator(mode="after")
    def _file_with_keys(self) -> Self:
        if (self.mode == "api_keys") != (self.file is not None):
            raise ValueError("`file` belongs to the mode api_keys, and that mode needs it")
        return self


class KeyFileError(ValueError):
    """A file of API keys cannot be used. Says which file, which entry and what to change; quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request runs, and whether they run this deployment."""

    principal: Principal
    operator: bool = False


class Identifier(Protocol):
    """One way to know a caller."""

    @property
    def credentials(self) -> Collection[str]:
        """The headers by which callers say who they are."""
        ...

    def identify(self, metadata: Metadata) -> Caller:
        """The caller. Raises Unauthenticated, or InvalidField for a header no caller could mean."""


def identifier(settings: IdentitySettings) -> Identifier:
    """The way these settings ask for. Raises KeyFileError for a file that cannot be used."""
    match settings.mode:
        case "local":
            return Local()
        case "header":
            return TrustedHeader()
        case "api_keys":
            assert settings.file is not None  # noqa: S101  # the settings' own validator has seen to it
            return ApiKeys(read_keys(settings.file))


@dataclass(frozen=True, slots=True)
class Local:
    """Everybody is the one user of this machine, and its operator."""

    credentials: ClassVar = ()

    def identify(self, metadata: Metadata) -> Caller:
        return Caller(Principal("local", "local", _session(metadata)), operator=True)


@dataclass(frozen=True, slots=True)
class TrustedHeader:
    """A proxy in front has authenticated the caller, and strips these headers from what callers send themselves."""

    credentials: ClassVar = (TENANT,)

    def identify(self, metadata: Metadata) -> Caller:
        pairs = tuple(metadata)
        tenant = _named(pairs, TENANT)
        if not tenant:
            raise Unauthenticated(f"the proxy in front must set {TENANT}")
        return Caller(Principal(tenant, _named(pairs, USER), _session(pairs)))


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Callers bring a key. Keys are looked up by their hash, so that no comparison's time tells how much was right."""

    credentials: ClassVar = (AUTHORIZATION, API_KEY)

    callers: Mapping[str, Caller] = field(repr=False)  # by SHA-256 of their key

    def identify(self, metadata: Metadata) -> Caller:
        pairs = tuple(metadata)
        caller = self.callers.get(hash_key(_credential(pairs)))
        if caller is None:
            raise Unauthenticated("no such key", reason="CREDENTIALS_UNKNOWN")
        principal = Principal(caller.principal.tenant, caller.principal.user, _session(pairs))
        return Caller(principal, caller.operator)


def hash_key(key: str) -> str:
    """What a key file holds instead of the key: SHA-256 of it without outer white space, 64 hexadecimal digits.

    Raises ValueError for an empty key.
    """
    if not (stripped := key.strip()):
        raise ValueError("a key must not be empty")
    return hashlib.sha256(stripped.encode("utf-8", "surrogateescape")).hexdigest()


# The key file.


def _as_name(value: str) -> str:
    if not is_name(value):
        raise ValueError(NAME_RULE)
    return value


Name: TypeAlias = Annotated[str, AfterValidator(_as_name)]


class KeyEntry(BaseModel):
    """One key: its hash, never itself, and whose it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    key_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    tenant: Name
    user: Name
    operator: bool = False


def read_keys(file: Path) -> dict[str, Caller]:
    """Callers by the SHA-256 of their key. Raises KeyFileError."""
    callers: dict[str, Caller] = {}
    for number, entry in enumerate(_entries(file), start=1):
        if entry.key_sha256 in callers:
            raise KeyFileError(f"{file}: entry {number}: this key has an entry already; remove one of them")
        callers[entry.key_sha256] = Caller(Principal(entry.tenant, entry.user), entry.operator)
    return callers


def _entries(file: Path) -> list[KeyEntry]:
    raw = _parsed(file)
    if not isinstance(raw, list) or not raw:
        raise KeyFileError(f"{file}: must be a YAML list with an entry for each key: {', '.join(_FIELDS)}")
    return [_entry(file, number, item) for number, item in enumerate(raw, start=1)]


def _parsed(file: Path) -> object:
    # The errors of parsers quote the file, and so are not passed on.
    try:
        return yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise KeyFileError(f"{file}: cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise KeyFileError(f"{file}: line {line}: not YAML; write a list with an entry for each key") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        # What its readers of tagged values raise for `!!bool cat` and the like, too.
        raise KeyFileError(f"{file}: not YAML; write a list with an entry for each key") from None


_ENTRY = TypeAdapter(KeyEntry)
_FIELDS = tuple(KeyEntry.model_fields)
_CURES = {
    "key_sha256": "must be the SHA-256 of the key as 64 lower-case hexadecimal digits, in quotes",
    "tenant": f"{NAME_RULE}, in quotes if it looks like a number",
    "user": f"{NAME_RULE}, in quotes if it looks like a number",
    "operator": "must be true or false",
}


def _entry(file: Path, number: int, item: object) -> KeyEntry:
    try:
        return _ENTRY.validate_python(item)
    except ValidationError as error:
        name = str((*error.errors()[0]["loc"], "")[0])
    # A field that is not ours may be a key in the wrong place, and is not quoted.
    cure = f"{name}: {_CURES[name]}" if name in _CURES else f"must have these fields only: {', '.join(_FIELDS)}"
    raise KeyFileError(f"{file}: entry {number}: {cure}")


# Headers.


def _credential(pairs: tuple[tuple[str, str | bytes], ...]) -> str:
    scheme, _, bearer = (_header(pairs, AUTHORIZATION) or "").partition(" ")
    key = _header(pairs, API_KEY)
    if scheme and key:
        raise Unauthenticated(f"send either {AUTHORIZATION} or {API_KEY}")
    if scheme and scheme.lower() != "bearer":
        raise Unauthenticated(f"send {AUTHORIZATION} with the scheme Bearer")
    if not (credential := (key or bearer).strip()):
        raise Unauthenticated(f"send a key, as {AUTHORIZATION}: Bearer or as {API_KEY}")
    return credential


def _session(metadata: Metadata) -> str:
    return _named(tuple(metadata), SESSION)


def _named(pairs: tuple[tuple[str, str | bytes], ...], header: str) -> str:
    """Value of a header that names someone, or nothing if it was not sent."""
    value = _header(pairs, header)
    if not value:
        return ""
    if not is_name(value):
        raise InvalidField(header, NAME_RULE, reason="METADATA_INVALID")
    return value


def _header(pairs: tuple[tuple[str, str | bytes], ...], header: str) -> str | None:
    # Two values may mean that a proxy appended its own to the caller's: neither is believed.
    values = [value for key, value in pairs if key == header]
    if len(values) > 1:
        raise InvalidField(header, "must be sent once", reason="METADATA_REPEATED")
    if not values:
        return None
    value = values[0]
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def is_name(value: str) -> bool:
    """Whether this can name a tenant, user or session."""
    return 0 < len(value) <= LONGEST_NAME and value.isprintable() and value == value.strip()


# The interceptor.

_caller: ContextVar[Caller] = ContextVar("reprise_caller")


def current_caller() -> Caller:
    """Who the running request is for. Raises LookupError outside of a request."""
    return _caller.get()


def require_operator() -> Caller:
    """The caller, who runs this deployment. Raises PermissionDenied for anybody else."""
    caller = current_caller()
    if not caller.operator:
        raise PermissionDenied
    return caller


class IdentityInterceptor(grpc.aio.ServerInterceptor):
    """Makes the caller known to handlers, or refuses the call. A handler runs in the task and context of this call."""

    def __init__(self, identifier: Identifier) -> None:
        self._identifier = identifier

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        if not handler_call_details.method.startswith(EXEMPT):
            metadata: Any = handler_call_details.invocation_metadata
            _caller.set(self._identifier.identify(metadata or ()))
        return await continuation(handler_call_details)
