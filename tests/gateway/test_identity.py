"""Who asks: known from metadata alone, in each of the three modes, or refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cache.keys import Principal
from gateway.errors import InvalidField, PermissionDenied, Refused, Unauthenticated
from gateway.identity import (
    ApiKeys,
    Caller,
    Identifier,
    IdentityInterceptor,
    IdentitySettings,
    KeyFileError,
    Local,
    TrustedHeader,
    current_caller,
    hash_key,
    identifier,
    read_keys,
    require_operator,
)
from gateway.status import ErrorInterceptor, explain_error

KEY = "k-3f1c9e7a5b2d8046"
OTHER_KEY = "k-0000000000000000"


def key_file(folder: Path, text: str) -> Path:
    file = folder / "keys.yaml"
    file.write_text(text)
    return file


def api_keys() -> ApiKeys:
    return ApiKeys(
        {
            hash_key(KEY): Caller(Principal("acme", "ada"), operator=True),
            hash_key(OTHER_KEY): Caller(Principal("globex", "bob")),
        }
    )


def fault_of(identifier: Identifier, *metadata: tuple[str, str]) -> tuple[type[Refused], str]:
    with pytest.raises(Refused) as caught:
        identifier.identify(metadata)
    return type(caught.value), caught.value.reason


# Modes


def test_local_mode_has_one_user_who_is_the_operator() -> None:
    """On one's own machine nobody needs credentials, and everybody may do everything."""
    assert Caller(Principal("local", "local"), operator=True) == Local().identify([])


def test_a_proxys_headers_name_the_caller() -> None:
    """Behind a trusted proxy the two headers are believed; nobody is an operator there."""
    metadata = [("x-reprise-tenant", "acme"), ("x-reprise-user", "ada")]

    assert Caller(Principal("acme", "ada"), operator=False) == TrustedHeader().identify(metadata)


def test_a_proxy_may_leave_out_the_user() -> None:
    """A tenant without users is one principal."""
    assert Principal("acme", "") == TrustedHeader().identify([("x-reprise-tenant", "acme")]).principal


@pytest.mark.parametrize("metadata", [[], [("x-reprise-user", "ada")], [("x-reprise-tenant", "")]])
def test_a_proxy_must_name_the_tenant(metadata: list[tuple[str, str]]) -> None:
    """Without a tenant nobody is served: there is no tenant by default."""
    assert (Unauthenticated, "CREDENTIALS_MISSING") == fault_of(TrustedHeader(), *metadata)


@pytest.mark.parametrize(
    "header",
    [
        ("authorization", f"Bearer {KEY}"),
        ("authorization", f"bearer   {KEY} "),
        ("x-api-key", KEY),
        ("x-api-key", f" {KEY} "),
    ],
)
def test_a_key_names_its_caller(header: tuple[str, str]) -> None:
    """A key is found in either header, and brings tenant, user and rights."""
    assert Caller(Principal("acme", "ada"), operator=True) == api_keys().identify([header])


def test_rights_are_of_the_key() -> None:
    """One key's rights are not another's."""
    assert Caller(Principal("globex", "bob"), operator=False) == api_keys().identify([("x-api-key", OTHER_KEY)])


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "CREDENTIALS_MISSING"),
        ([("authorization", "")], "CREDENTIALS_MISSING"),
        ([("authorization", "Bearer")], "CREDENTIALS_MISSING"),
        ([("authorization", "Bearer  ")], "CREDENTIALS_MISSING"),
        ([("authorization", f"Basic {KEY}")], "CREDENTIALS_MISSING"),
        ([("authorization", KEY)], "CREDENTIALS_MISSING"),
        ([("x-api-key", "")], "CREDENTIALS_MISSING"),
        ([("authorization", f"Bearer {KEY}"), ("x-api-key", KEY)], "CREDENTIALS_MISSING"),
        ([("x-reprise-tenant", "acme"), ("x-reprise-user", "ada")], "CREDENTIALS_MISSING"),
        ([("x-api-key", KEY + "0")], "CREDENTIALS_UNKNOWN"),
        ([("x-api-key", KEY[:-1])], "CREDENTIALS_UNKNOWN"),
        ([("x-api-key", hash_key(KEY))], "CREDENTIALS_UNKNOWN"),
    ],
)
def test_without_a_known_key_nobody_is_served(metadata: list[tuple[str, str]], reason: str) -> None:
    """No key, a part of one, its hash, or the headers of another mode: none of them opens anything."""
    assert (Unauthenticated, reason) == fault_of(api_keys(), *metadata)


@pytest.mark.parametrize(
    ("identifier", "credentials"),
    [
        (Local(), []),
        (TrustedHeader(), [("x-reprise-tenant", "acme")]),
        (api_keys(), [("x-api-key", KEY)]),
    ],
    ids=["local", "header", "api_keys"],
)
def test_the_session_is_the_callers_to_choose_in_every_mode(
    identifier: Identifier, credentials: list[tuple[str, str]]
) -> None:
    """A session separates a caller's work from the same caller's other work, whoever vouches for the caller."""
    caller = identifier.identify([*credentials, ("x-reprise-session", "tab-7")])

    assert "tab-7" == caller.principal.session
    assert "" == identifier.identify(credentials).principal.session


@pytest.mark.parametrize("header", ["x-reprise-tenant", "x-reprise-user", "x-reprise-session"])
@pytest.mark.parametrize("value", ["a" * 129, "a\x00b", "a\nb", "a\u202eb", "\x7f", " a", "a "])
def test_names_are_short_and_printable(header: str, value: str) -> None:
    """A name of more than 128 characters, or with characters nobody can see, is refused by the name of its header."""
    others = [("x-reprise-tenant", "acme")] if header != "x-reprise-tenant" else []
    with pytest.raises(InvalidField) as caught:
        TrustedHeader().identify([*others, (header, value)])

    assert (header, "METADATA_INVALID") == (caught.value.field, caught.value.reason)
    assert value not in caught.value.message


def test_a_name_may_be_128_characters_long() -> None:
    """The bound itself is allowed."""
    assert "é" * 128 == TrustedHeader().identify([("x-reprise-tenant", "é" * 128)]).principal.tenant


@pytest.mark.parametrize(
    ("identifier", "header"),
    [(TrustedHeader(), "x-reprise-tenant"), (api_keys(), "x-api-key"), (api_keys(), "authorization")],
    ids=["tenant", "key", "bearer"],
)
def test_a_header_sent_twice_is_not_believed(identifier: Identifier, header: str) -> None:
    """Where a proxy appended its header to the caller's own, neither of the two counts."""
    assert (InvalidField, "METADATA_REPEATED") == fault_of(identifier, (header, "mallory"), (header, "acme"))


@given(st.text(max_size=40), st.text(max_size=40))
def test_only_the_key_itself_opens(key: str, sent: str) -> None:
    """Whatever is sent is served if it is the key, outer white space aside, and refused otherwise."""
    if not key.strip():
        return
    keys = ApiKeys({hash_key(key): Caller(Principal("acme"))})
    try:
        keys.identify([("x-api-key", sent)])
        opened = True
    except Unauthenticated:
        opened = False

    assert (sent.strip() == key.strip()) == opened


# Settings and key files


def test_settings_choose_the_mode(tmp_path: Path) -> None:
    """Each mode has its way to know callers; local is the default."""
    file = key_file(tmp_path, f"- {{key_sha256: '{hash_key(KEY)}', tenant: acme, user: ada}}\n")

    assert isinstance(identifier(IdentitySettings()), Local)
    assert isinstance(identifier(IdentitySettings(mode="header")), TrustedHeader)
    assert isinstance(identifier(IdentitySettings(mode="api_keys", file=file)), ApiKeys)


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "api_keys"},
        {"mode": "local", "file": "keys.yaml"},
        {"mode": "header", "file": "keys.yaml"},
        {"mode": "none"},
        {"mode": "local", "tenant": "acme"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any]) -> None:
    """A key file without its mode, the mode without its file, or a word that is none: said at the start."""
    with pytest.raises(ValidationError):
        IdentitySettings.model_validate(settings)


def test_settings_do_not_change() -> None:
    """Settings are read once."""
    with pytest.raises(ValidationError):
        IdentitySettings().mode = "header"  # type: ignore[misc]


def test_a_key_file_says_whose_each_key_is(tmp_path: Path) -> None:
    """Entries have hash, tenant, user and, if they say so, the rights of an operator."""
    file = key_file(
        tmp_path,
        f"""
- key_sha256: "{hash_key(KEY)}"
  tenant: acme
  user: ada
  operator: true
- key_sha256: "{hash_key(OTHER_KEY)}"
  tenant: globex
  user: bob
""",
    )

    assert api_keys().callers == read_keys(file)


SHA = "a" * 64
LOOKS_LIKE_A_KEY = "sk-live-4242"


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "", "must be a YAML list"),
        ("[]", "", "must be a YAML list"),
        ("tenant: acme", "", "must be a YAML list"),
        (f"- {LOOKS_LIKE_A_KEY}: [", "line 1", "not YAML"),
        ("- \x00", "", "not YAML"),
        (f"- {LOOKS_LIKE_A_KEY}", "entry 1", "must have these fields only: key_sha256, tenant, user, operator"),
        ("-", "entry 1", "must have these fields only"),
        (f"- {{key_sha256: '{SHA}', tenant: a}}", "entry 1", "user: must be 1 to 128 printable"),
        (f"- {{key_sha256: '{SHA}', tenant: 7, user: b}}", "entry 1", "tenant: must be 1 to 128 printable"),
        (f"- {{key_sha256: '{SHA}', tenant: '', user: b}}", "entry 1", "tenant: must be 1 to 128 printable"),
        (f"- {{key_sha256: '{SHA}', tenant: a, user: {'b' * 129}}}", "entry 1", "user: must be 1 to 128"),
        (f"- {{key_sha256: '{SHA}', tenant: a, user: b, operator: 1}}", "entry 1", "operator: must be true or false"),
        (f"- {{key_sha256: '{SHA}', tenant: a, user: b, {LOOKS_LIKE_A_KEY}: c}}", "entry 1", "these fields only"),
        (f"- {{key_sha256: {LOOKS_LIKE_A_KEY}, tenant: a, user: b}}", "entry 1", "key_sha256: must be the SHA-256"),
        (f"- {{key_sha256: {'1' * 64}, tenant: a, user: b}}", "entry 1", "in quotes"),
        (f"- {{key_sha256: '{'A' * 64}', tenant: a, user: b}}", "entry 1", "lower-case"),
        (
            f"- {{key_sha256: '{SHA}', tenant: a, user: b}}\n- {{key_sha256: '{SHA}', tenant: c, user: d}}",
            "entry 2",
            "has an entry already",
        ),
    ],
    ids=map(str, range(17)),
)
def test_a_malformed_key_file_is_refused(tmp_path: Path, text: str, where: str, what: str) -> None:
    """The error names file and entry, says what to change, and quotes nothing that may be a key."""
    file = key_file(tmp_path, text)
    with pytest.raises(KeyFileError) as caught:
        identifier(IdentitySettings(mode="api_keys", file=file))

    message = str(caught.value)
    assert message.startswith(f"{file}: {where}")
    assert what in message
    assert LOOKS_LIKE_A_KEY not in message
    assert SHA not in message
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_key_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A wrong path is said as such."""
    with pytest.raises(KeyFileError, match=r"nothing\.yaml: cannot be read: No such file"):
        read_keys(tmp_path / "nothing.yaml")


def test_keys_do_not_show(tmp_path: Path) -> None:
    """Neither a key nor its hash is in the representation of what holds them."""
    file = key_file(tmp_path, f"- {{key_sha256: '{hash_key(KEY)}', tenant: acme, user: ada}}\n")
    shown = repr(ApiKeys(read_keys(file))) + repr(IdentityInterceptor(api_keys()))

    assert KEY not in shown
    assert hash_key(KEY) not in shown


def test_hash_of_a_key_is_the_one_every_tool_computes() -> None:
    """`printf %s "$KEY" | sha256sum` gives the same, and a line end that a file brought does not count."""
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" == hash_key("abc") == hash_key(" abc\n")


def test_an_empty_key_has_no_hash() -> None:
    """Nobody can by accident list the hash of nothing."""
    with pytest.raises(ValueError, match="must not be empty"):
        hash_key(" \n")


# The interceptor


def told() -> bytes:
    caller = current_caller()
    principal = caller.principal
    return "/".join((principal.tenant, principal.user, principal.session, str(caller.operator))).encode()


async def call(_request: bytes, _context: Any) -> bytes:
    return told()


async def stream(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
    yield told()
    await asyncio.sleep(0)
    yield await asyncio.create_task(call(b"", None))


async def operate(_request: bytes, _context: Any) -> bytes:
    require_operator()
    return b"done"


@asynccontextmanager
async def serving(identifier: Identifier) -> AsyncIterator[Any]:
    interceptors = [ErrorInterceptor(), IdentityInterceptor(identifier)]
    server = grpc.aio.server(interceptors=interceptors, options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, Any] = {
        "Call": grpc.unary_unary_rpc_method_handler(call),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
        "Operate": grpc.unary_unary_rpc_method_handler(operate),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


async def reason_of(pending: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pending
    problem = explain_error(caught.value)
    return problem.code, problem.reason


async def test_a_handler_and_its_tasks_know_the_caller() -> None:
    """The caller is known in handlers of both kinds and in tasks they start."""
    metadata = (("x-api-key", KEY), ("x-reprise-session", "tab-7"))
    async with serving(api_keys()) as channel:
        answer = await channel.unary_unary("/test.Test/Call")(b"", metadata=metadata)
        messages = [part async for part in channel.unary_stream("/test.Test/Stream")(b"", metadata=metadata)]

    assert b"acme/ada/tab-7/True" == answer
    assert [answer, answer] == messages


async def test_callers_at_the_same_time_are_not_confused() -> None:
    """Every call on one connection has the caller of its own metadata."""
    async with serving(TrustedHeader()) as channel:
        method = channel.unary_unary("/test.Test/Call")
        tenants = [f"tenant-{number}" for number in range(50)]
        calls = [method(b"", metadata=(("x-reprise-tenant", tenant),)) for tenant in tenants]

        assert [f"{tenant}///False".encode() for tenant in tenants] == [await pending for pending in calls]


async def test_without_credentials_no_handler_runs() -> None:
    """A call of either kind, and of a method that is none, is refused before anything is looked at."""
    expected = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")
    async with serving(api_keys()) as channel:
        assert expected == await reason_of(channel.unary_unary("/test.Test/Call")(b""))
        assert expected == await reason_of(channel.unary_stream("/test.Test/Stream")(b"").read())
        assert expected == await reason_of(channel.unary_unary("/test.Test/Nothing")(b""))


async def test_health_needs_no_credentials() -> None:
    """Probes know no keys."""
    async with serving(api_keys()) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())

    assert health_pb2.HealthCheckResponse.SERVING == answer.status


async def test_a_name_like_the_exempt_ones_is_not_exempt() -> None:
    """Only the services themselves are open, not what begins similarly."""
    expected = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")
    async with serving(api_keys()) as channel:
        assert expected == await reason_of(channel.unary_unary("/grpc.healthy.v1.Health/Check")(b""))


async def test_operators_only() -> None:
    """What is for operators is refused to everybody else who is known."""
    async with serving(api_keys()) as channel:
        method = channel.unary_unary("/test.Test/Operate")

        assert b"done" == await method(b"", metadata=(("x-api-key", KEY),))
        assert (grpc.StatusCode.PERMISSION_DENIED, "OPERATORS_ONLY") == await reason_of(
            method(b"", metadata=(("x-api-key", OTHER_KEY),))
        )


def test_outside_of_a_request_there_is_no_caller() -> None:
    """Nobody is taken for somebody by default."""
    with pytest.raises(LookupError):
        current_caller()
    assert PermissionDenied.code == grpc.StatusCode.PERMISSION_DENIED
