"""Settings: read once, typed, loud about what nobody knows, silent about secrets."""

import os
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cache.settings import CacheSettings, ProcessSettings, Section, SettingsError, load

SECRET = "c0ffee" * 10 + "abcd"
_GOOD = f"cache: {{secret: {SECRET}}}\n"


class _Gateway(Section):
    port: int = 50051


class _Settings(ProcessSettings):
    gateway: _Gateway = _Gateway()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("REPRISE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "reprise.yaml"


def _load(path: Path, text: str | bytes, **options: Any) -> _Settings:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(_Settings, path, **options)


def test_a_secret_is_all_that_must_be_said(path: Path) -> None:
    """Everything else has a default."""
    settings = _load(path, _GOOD)

    assert bytes.fromhex(SECRET) == settings.cache.secret_bytes
    assert 0.05 == settings.cache.l2.budget
    assert 50051 == settings.gateway.port


def test_the_file_overrides_defaults_and_the_environment_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key by key: what the environment does not name comes from the file, what neither names is the default."""
    monkeypatch.setenv("REPRISE_CACHE__L2__BUDGET", "0.2")
    monkeypatch.setenv("REPRISE_GATEWAY__PORT", "7")

    settings = _load(path, _GOOD + "telemetry: {slow: 3}\ngateway: {port: 6}\n")

    assert (0.2, 32) == (settings.cache.l2.budget, settings.cache.l2.connections)
    assert (7, 3.0) == (settings.gateway.port, settings.telemetry.slow)
    assert bytes.fromhex(SECRET) == settings.cache.secret_bytes


def test_the_environment_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process can be configured without a file."""
    monkeypatch.setenv("REPRISE_CACHE__SECRET", SECRET)

    assert bytes.fromhex(SECRET) == load(_Settings, None).cache.secret_bytes


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour: red\n", "colour"),
        ("worker: {threads: 2}\n", "worker"),
        ("telemetry: {colour: red}\n", "telemetry.colour"),
        ("gateway: {prot: 1}\n", "gateway.prot"),
        ("gateway: {port: many}\n", "gateway.port"),
        ("telemetry: {log_level: loud}\n", "telemetry.log_level"),
        ("telemetry: {sample_ratio: 1.5}\n", "telemetry.sample_ratio"),
        ("telemetry: {metrics_port: -1}\n", "telemetry.metrics_port"),
        ("gateway: 7\n", "gateway"),
    ],
)
def test_what_is_unknown_or_of_a_wrong_kind_is_refused_by_name(path: Path, text: str, named: str) -> None:
    """A key that nobody knows, or a value that cannot be what it should, stops the process and names the key."""
    with pytest.raises(SettingsError, match=rf"reprise.yaml: {named}: "):
        _load(path, _GOOD + text)


def test_a_secret_of_zeros_is_refused(path: Path) -> None:
    """It looks like one and hides nothing."""
    with pytest.raises(SettingsError, match=r"cache.secret: .* not all zeros; make one with: openssl rand -hex 32"):
        _load(path, f"cache: {{secret: '{'0' * 64}'}}\n")


def test_every_problem_is_named_at_once(path: Path) -> None:
    """Two mistakes are two names in one message."""
    with pytest.raises(SettingsError, match=r"cache\.l2\.bugdet: .*; gateway\.port: "):
        _load(path, f"cache: {{secret: {SECRET}, l2: {{bugdet: 1}}}}\ngateway: {{port: many}}\n")


def test_an_unknown_variable_of_a_known_section_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt name in the environment is refused like one in the file."""
    monkeypatch.setenv("REPRISE_CACHE__L2__BUGDET", "0.2")

    with pytest.raises(SettingsError, match=r"cache\.l2\.bugdet"):
        _load(path, _GOOD)


def test_sections_of_other_processes_are_left_to_them(path: Path) -> None:
    """One file serves all: a section that another process reads is not looked at."""
    settings = _load(path, _GOOD + "worker: {anything: [1, 2]}\n", others=frozenset({"worker"}))

    assert 50051 == settings.gateway.port
    assert not hasattr(settings, "worker")


@pytest.mark.parametrize(
    "secret",
    ["", "00", "0" * 63, "0" * 66, "g" * 64, "change me"],
    ids=["none", "short", "63", "66", "letters", "text"],
)
def test_a_secret_is_32_bytes(path: Path, secret: str) -> None:
    """Anything but 64 hexadecimal digits is refused, with the command that makes one, and without repeating it."""
    with pytest.raises(SettingsError, match=r"cache\.secret: .*openssl rand -hex 32") as caught:
        _load(path, f"cache: {{secret: '{secret}'}}\n")

    assert not secret or secret not in str(caught.value).replace("64 hexadecimal", "")


def test_a_missing_secret_is_named(path: Path) -> None:
    """Without a secret nothing starts."""
    with pytest.raises(SettingsError, match="cache: "):
        _load(path, "")
    with pytest.raises(SettingsError, match=r"cache\.secret: "):
        _load(path, "cache: {l1: {enabled: false}}\n")


_REDIS = "redis://:hunter2@127.0.0.1/0"


def test_secrets_are_not_shown(path: Path) -> None:
    """Neither the deployment's secret nor a password in an address shows in any text form of the settings."""
    settings = _load(
        path, f"cache: {{secret: {SECRET}, l2: {{url: '{_REDIS}'}}, l3: {{access_key: me, secret_key: hunter2}}}}\n"
    )

    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert SECRET not in shown
        assert "hunter2" not in shown
    assert _REDIS == settings.cache.l2.url.get_secret_value()
    assert "hunter2" == settings.cache.l3.secret_key.get_secret_value()


@pytest.mark.parametrize(
    "text",
    [
        f"cache: {{secret: {SECRET}00}}",
        f"cache: {SECRET}",
        f"cache: {{secret: [{SECRET}]}}",
        f"cache: {{secret: {{{SECRET}: 1}}}}",
        f"{SECRET}",
        f"[{SECRET}]",
        f'cache:\n  secret: "{SECRET}\n',
        f"cache: {{secret: {SECRET}, l2: ]}}",
        f"cache:\n  secret: {SECRET}\n\tl2: 1\n",
        f"cache: {{secret: *{SECRET}}}",
        f"cache: {{secret: !{SECRET} a}}",
        f"telemetry: {{log_level: {SECRET}, slow: {SECRET}, metrics_port: {SECRET}}}",
    ],
)
def test_errors_do_not_repeat_what_the_file_says(path: Path, text: str) -> None:
    """Whatever is wrong with a file, the message and the traceback do not quote its values."""
    with pytest.raises(SettingsError) as caught:
        _load(path, text)

    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET[:20] not in shown.replace(text, "")


def test_errors_do_not_repeat_what_the_environment_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A section in the environment that is no JSON is named, not quoted."""
    monkeypatch.setenv("REPRISE_CACHE", SECRET)

    with pytest.raises(SettingsError, match=r'environment: .*"cache"') as caught:
        _load(path, _GOOD)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- cache\n", "must be a mapping"),
        ("1: 2\n", "must be a mapping"),
        ("a: b: c\n", "line 1 is not YAML"),
        ("cache:\n  l2: {\n", "line 3 is not YAML"),
        (b"\xff\xfe\x00", "it is not YAML"),
    ],
)
def test_what_is_no_settings_file_is_refused(path: Path, text: str | bytes, complaint: str) -> None:
    """A file that is no mapping of sections says so, and where."""
    with pytest.raises(SettingsError, match=complaint):
        _load(path, text)


def test_a_file_that_is_not_there_is_named(path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(SettingsError, match=r"reprise\.yaml: No such file"):
        load(_Settings, path)


def test_settings_do_not_change(path: Path) -> None:
    """What was read stays as it was read, sections included."""
    settings = _load(path, _GOOD)

    with pytest.raises(ValidationError, match="frozen"):
        settings.gateway = _Gateway()  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.cache.l2.budget = 1.0  # type: ignore[misc]


def test_planted_objects_are_not_made(path: Path, tmp_path: Path) -> None:
    """YAML tags that construct Python objects are refused, not executed."""
    target = tmp_path / "executed"
    with pytest.raises(SettingsError, match="not YAML"):
        _load(path, f"cache: !!python/object/apply:os.mkdir ['{target}']\n")

    assert not target.exists()


@pytest.mark.parametrize("name", ["l1", "l2", "l3", "breaker", "write_behind"])
def test_each_part_of_the_cache_has_a_section(name: str) -> None:
    """Every section can be left out."""
    settings = CacheSettings.model_validate({"secret": SECRET})

    assert isinstance(getattr(settings, name), Section)
