"""Clients of Redis, one for each kind of deployment: where it is, as whom we come, over what line, how long we wait.

The library's defaults are not used: they wait for seconds and retry for a minute. Time is bounded by `guard.py` in all
and by socket time-outs underneath; there are no library retries, save one in a cluster; callers wait for connections.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from cache.errors import TierError, TierTimeout, TierUnwritable
from cache.settings import L2Settings, SettingsError
from cache.tls import introduce, trusting

_HANDLE_CLOSED = "the handler is closed"
_LOGIN = ("username", "password")
_TAKES_NO_WRITES = ("MISCONF", "NOREPLICAS")  # how Redis begins to say so, where the library has no class for it
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Door:
    """`url`: `redis://`, `rediss://` and `unix://` as redis-py has them; `redis+cluster://host:port`;
    `redis+sentinel://host:port,host:port/0?service=NAME`. The latter two with `rediss` as well.

    Without a name and a password those of the URL hold; without a context of its own, `rediss` trusts whom the system
    trusts.
    """

    url: str = field(repr=False)
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, l2: L2Settings) -> Self:
        """As the settings say. Reads files. Raises SettingsError."""
        try:
            password = l2.read_password()
        except ValueError as error:
            raise SettingsError(f"cache.l2.password_file: {error}") from None
        return cls(l2.url.get_secret_value(), l2.username, password, _context(l2) if l2.encrypted else None)

    @property
    def login(self) -> tuple[str, str]:
        """Name and password; the name is empty for whoever says none, whom Redis calls `default`."""
        if self.username or self.password:
            return self.username, self.password
        parts = urlsplit(self.url)
        query = dict(parse_qsl(parts.query))
        username, password = unquote(parts.username or ""), unquote(parts.password or "")
        return username or query.get("username", ""), password or query.get("password", "")


def _context(l2: L2Settings) -> ssl.SSLContext:
    try:
        context = trusting(l2.tls.ca)
    except ValueError as error:
        raise SettingsError(f"cache.l2.tls.ca: {error}") from None
    if l2.tls.certificate is not None:
        try:
            introduce(context, l2.tls.certificate, l2.tls.key)
        except ValueError as error:
            raise SettingsError(f"cache.l2.tls: certificate, key: {error}") from None
    return context


def client_of(door: Door, budget: float, connections: int) -> tuple[Any, Sequence[Any]]:
    """A client, and the clients that it needs and nobody else closes. `budget` in seconds."""
    parts = urlsplit(door.url)
    scheme, _, kind = parts.scheme.partition("+")
    encrypted = _encrypted_by(door.tls or trusting(None)) if door.tls is not None or scheme == "rediss" else None
    options: dict[str, Any] = {
        "socket_timeout": budget,
        "socket_connect_timeout": budget,
        "retry": Retry(NoBackoff(), 0),
        # With these on, redis-py 8.1 does not replace sockets that the server closed: after a restart, every one fails.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "driver_info": None,  # else each new connection reads files for a command that Redis 6.2 does not know
    }
    login = dict(zip(_LOGIN, (said or None for said in door.login), strict=True))
    match kind:
        case "cluster":
            return _cluster(parts, connections, encrypted, options | login), ()
        case "sentinel":
            return _behind_sentinels(parts, connections, encrypted, options, login)
    query = [(name, value) for name, value in parse_qsl(parts.query) if name not in _LOGIN]
    bare = parts._replace(
        scheme=scheme.replace("rediss", "redis"), netloc=parts.netloc.rpartition("@")[2], query=urlencode(query)
    )
    of_class = {} if encrypted is None else {"connection_class": encrypted}
    pool = BlockingConnectionPool.from_url(
        urlunsplit(bare), max_connections=connections, timeout=budget, **options, **login, **of_class
    )
    return Redis.from_pool(pool), ()


def _cluster(
    parts: SplitResult, connections: int, encrypted: type[SSLConnection] | None, options: dict[str, Any]
) -> RedisCluster:
    # It learns only by failing that a node went and came back.
    patient = options | {"retry": Retry(NoBackoff(), 1), "max_connections": connections}
    host, port = parts.hostname or "localhost", parts.port or 6379
    cluster = RedisCluster(host=host, port=port, ssl=encrypted is not None, **patient)
    if encrypted is not None:  # it takes no class of ours, and would make a context for every connection
        cluster.connection_kwargs["connection_class"] = encrypted
        for node in cluster.startup_nodes:
            node.connection_class = encrypted
    return cluster


def _behind_sentinels(
    parts: SplitResult,
    connections: int,
    encrypted: type[SSLConnection] | None,
    options: dict[str, Any],
    login: dict[str, str | None],
) -> tuple[Any, Sequence[Any]]:
    """Sentinels are asked without a name, over a line of the same kind."""
    nodes = [(host, int(port)) for host, _, port in (node.rpartition(":") for node in _hosts(parts.netloc))]
    service = dict(parse_qsl(parts.query))["service"]
    sentinel: Any = cast("Any", Sentinel)(nodes, sentinel_kwargs=options, **login, **options)
    of_class: dict[str, Any] = {}
    if encrypted is not None:
        sentinel.sentinels = [
            Redis.from_pool(ConnectionPool(connection_class=encrypted, host=host, port=port, **options))
            for host, port in nodes
        ]
        of_class["connection_class"] = type("_ManagedTls", (SentinelManagedConnection, encrypted), {})
    database = int(parts.path.strip("/") or 0)
    master = sentinel.master_for(service, db=database, max_connections=connections, **of_class)
    return master, sentinel.sentinels


def _hosts(netloc: str) -> list[str]:
    return netloc.rpartition("@")[2].split(",")


def _encrypted_by(context: ssl.SSLContext) -> type[SSLConnection]:
    """Connections that share a context; the library's own make one each, of files that they read on the event loop."""

    class Encrypted(SSLConnection):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.ssl_context.context = context

    return Encrypted


async def translated(command: Awaitable[_T]) -> _T:
    try:
        return await command
    except (TimeoutError, RedisTimeoutError) as error:
        raise TierTimeout("redis") from error
    except (RedisError, RedisClusterException, OSError) as error:
        kind = TierUnwritable if _takes_no_writes(error) else TierError
        raise kind(type(error).__name__) from error
    except RuntimeError as error:
        # How uvloop says that the server has closed the connection in this moment; the library lets it through.
        if _HANDLE_CLOSED not in str(error):
            raise
        raise TierError("ConnectionClosed") from error


def _takes_no_writes(error: Exception) -> bool:
    return isinstance(error, OutOfMemoryError | ReadOnlyError) or any(word in str(error) for word in _TAKES_NO_WRITES)
