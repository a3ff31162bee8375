"""Settings: one YAML file and the environment, read once, typed, loud and frozen.

Every process reads the same file and takes the sections it knows; a key that nobody knows is refused with its name.
`REPRISE_CACHE__L2__URL=...` overrides `cache.l2.url`. Durations are seconds, sizes are bytes. Files that settings name
(passwords, certificates) are looked into here, so that a process with a wrong one says so at its start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableVariable

from cache.tls import introduce, trusting
from cache.value import PolicyName

MIB = 1024 * 1024
_S = TypeVar("_S", bound="ProcessSettings")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class L1Settings(Section):
    enabled: bool = True
    max_bytes: int = Field(256 * MIB, ge=0)
    max_entries: int = Field(200, ge=0)
    max_share: float = Field(0.25, gt=0, le=1)  # of max_bytes that one entry may take
    policy: PolicyName = "value"  # who leaves when there is no room: cache/value.py


class LoginSettings(Section):
    """As whom to come to a server."""

    username: str = ""  # empty: the server's `default`
    password: SecretStr = SecretStr("")
    password_file: Path | None = None  # with the password and nothing else

    @property
    def given(self) -> bool:
        return bool(self.username or self.password.get_secret_value() or self.password_file)

    def read_password(self) -> str:
        """Raises ValueError, which says what is wrong with the file."""
        if self.password_file is None:
            return self.password.get_secret_value()
        try:
            password = self.password_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot be read: {getattr(error, 'strerror', 'it is no text')}") from None
        if not password:
            raise ValueError("is empty")
        return password


class TlsSettings(Section):
    enabled: bool = False  # `rediss` in the URL means the same
    ca: Path | None = None  # whose certificates are believed; None: those that the system believes
    certificate: Path | None = None  # ours, for a server that wants to see one
    key: Path | None = None  # None: it stands in the same file

    @field_validator("ca")
    @classmethod
    def _holds_certificates(cls, ca: Path | None) -> Path | None:
        if ca is not None:
            trusting(ca)
        return ca

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.certificate is not None:
            try:
                introduce(trusting(self.ca), self.certificate, self.key)
            except ValueError as error:
                raise ValueError(f"certificate, key: {error}") from None
        elif self.key is not None:
            raise ValueError("key: is of no use without `certificate`")
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for file in (self.ca, self.certificate, self.key) if file is not None)


class L2Settings(LoginSettings):
    enabled: bool = True
    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")  # may hold user and password
    tls: TlsSettings = TlsSettings()
    budget: float = Field(0.05, gt=0)  # for one call, waiting for a connection included
    connections: int = Field(32, gt=0)

    @field_validator("password_file")
    @classmethod
    def _can_be_read(cls, file: Path | None) -> Path | None:
        LoginSettings(password_file=file).read_password()
        return file

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: SecretStr) -> SecretStr:
        try:
            query = parse_qs(urlsplit(url.get_secret_value()).query)
        except ValueError:  # whose words may quote a password
            raise ValueError("cannot be read as a URL") from None
        if any(name.startswith("ssl_") for name in query):
            raise ValueError("says how TLS is done: say it in `tls`")
        return url

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        password = self.password.get_secret_value()
        if password and self.password_file:
            raise ValueError("password: is given, and so is `password_file`: leave one of them out")
        if self.given and _holds_a_login(self.url.get_secret_value()):
            raise ValueError("url: holds a user or a password, and so do `username` and `password`: leave one out")
        if self.username and not (password or self.password_file):
            raise ValueError("username: has no password: give `password`, or better `password_file`")
        if self.encrypted and self.scheme == "unix":
            raise ValueError("tls: there is none on a unix:// socket")
        if self.tls.files and not self.encrypted:
            raise ValueError("tls: files are named, and the line is not encrypted: write rediss:// in `url`")
        return self

    @property
    def scheme(self) -> str:
        return urlsplit(self.url.get_secret_value()).scheme

    @property
    def encrypted(self) -> bool:
        return self.tls.enabled or self.scheme.partition("+")[0] == "rediss"


def _holds_a_login(url: str) -> bool:
    parts = urlsplit(url)
    return "@" in parts.netloc or not {"username", "password"}.isdisjoint(parse_qs(parts.query))


class L3Settings(Section):
    enabled: bool = True
    url: str = "s3://reprise"  # or file:///folder
    endpoint: str = ""  # of the store, where it is not AWS
    region: str = "us-east-1"
    access_key: str = ""
    secret_key: SecretStr = SecretStr("")
    stall: float = Field(0.5, gt=0)  # until the first byte, and for every stalled piece
    write_timeout: float = Field(10.0, gt=0)
    reads: int = Field(16, gt=0)  # at a time
    writes: int = Field(16, gt=0)  # likewise, removals and listings among them


class BreakerSettings(Section):
    failures: int = Field(5, gt=0)  # in a row, before a tier is left to rest
    rest: float = Field(1.0, gt=0)


class WriteBehindSettings(Section):
    max_bytes: int = Field(256 * MIB, gt=0)
    max_entries: int = Field(4096, gt=0)
    drain: float = Field(20.0, ge=0)  # how long a stopping process waits for its writes


class CacheSettings(Section):
    """Bounds and addresses of the tiers. `secret` hides names of tenants and users; every process needs the same."""

    secret: SecretStr  # 64 hexadecimal digits
    l1: L1Settings = L1Settings()
    l2: L2Settings = L2Settings()
    l3: L3Settings = L3Settings()
    breaker: BreakerSettings = BreakerSettings()
    write_behind: WriteBehindSettings = WriteBehindSettings()

    @field_validator("secret")
    @classmethod
    def _is_32_bytes(cls, secret: SecretStr) -> SecretStr:
        try:
            size = len(bytes.fromhex(secret.get_secret_value()))
        except ValueError:
            size = 0
        if size != 32:
            raise ValueError("must be 64 hexadecimal digits; make one with: openssl rand -hex 32")
        if not any(bytes.fromhex(secret.get_secret_value())):
            raise ValueError("must be drawn at random, not all zeros; make one with: openssl rand -hex 32")
        return secret

    @property
    def secret_bytes(self) -> bytes:
        return bytes.fromhex(self.secret.get_secret_value())


class TelemetrySettings(Section):
    """What a process says about itself. Each output is one setting; empty or 0 turns it off."""

    otlp_endpoint: str = ""  # e.g. http://127.0.0.1:4317
    spans_folder: str = ""  # spans as JSON lines, one rotated file per process, for `reprise trace`
    accesses_folder: str = ""  # keys, sizes and costs of what is asked for, likewise, for `reprise simulate`
    sample_ratio: float = Field(0.01, ge=0, le=1)  # of hits; misses, errors and slow requests are always kept
    slow: float = Field(1.0, gt=0)  # a request that takes longer is always kept
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(0, ge=0, le=65535)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"


class ProcessSettings(BaseSettings):
    """Base of a process's settings. Subclasses add their own sections; `other` sections belong to other processes."""

    model_config = SettingsConfigDict(
        env_prefix="REPRISE_", env_nested_delimiter="__", extra="forbid", frozen=True, hide_input_in_errors=True
    )
    cache: CacheSettings
    telemetry: TelemetrySettings = TelemetrySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings  # the environment wins over the file


class SettingsError(Exception):
    """The file or the environment is not usable. The message names each key and what is wrong with it."""


def load(settings: type[_S], path: str | Path | None, *, others: frozenset[str] = frozenset()) -> _S:
    """Read settings from a YAML file and the environment. `others` are sections that another process reads."""
    content = read(Path(path)) if path else {}
    try:
        return settings(**{section: value for section, value in content.items() if section not in others})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise SettingsError(f"{path or 'environment'}: {problems}") from None
    except UnreadableVariable as error:
        raise SettingsError(f"environment: {error}") from None


def read(path: Path) -> dict[str, Any]:
    """The sections of a YAML file, as they stand there. Raises SettingsError."""
    try:
        content = yaml.safe_load(path.read_text("utf-8")) or {}
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:  # whose own words quote the file, and so its secrets
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1} is" if mark else "it is"
        raise SettingsError(f"{path}: {where} not YAML") from None
    if not isinstance(content, dict) or not all(isinstance(section, str) for section in content):
        raise SettingsError(f"{path}: must be a mapping of sections")
    return content
