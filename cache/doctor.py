"""Doctor: what is wrong with a Redis and an object store, found by using them, each finding with what to do about it.

Nothing of the deployment's is touched: what is written for a try lies under a name drawn for it and is removed.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from cache.errors import TierError, TierTimeout
from cache.keys import Key
from cache.objects import ObjectsStore
from cache.redis import RedisStore
from cache.redis_client import Door
from cache.remedies import remedy_for
from cache.rights import rights
from cache.settings import MIB, L2Settings, L3Settings, SettingsError

_PATIENCE = 5.0  # seconds for one command: enough to tell a slow server from none
_TRIES = 10  # reads whose times are compared with the budget
_GIB = 1024 * MIB
_PROBES = "doctor/"
_TTL = 60.0  # seconds; what is left behind in Redis if we are killed goes by itself
_RARELY = 900  # seconds between two snapshots, at most
_NEAR = ("127.0.0.1", "localhost", "::1")
_CLOCKS_APART, _CLOCKS_FAR_APART = 2.0, 60.0  # seconds

_T = TypeVar("_T")
Clock: TypeAlias = Callable[[], float]


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what was found, and what to do about it unless all is well."""

    name: str
    state: State
    what: str
    fix: str = ""


def ok(name: str, what: str) -> Finding:
    return Finding(name, State.OK, what)


def warn(name: str, what: str, fix: str) -> Finding:
    return Finding(name, State.WARN, what, fix)


def fail(name: str, what: str, fix: str) -> Finding:
    return Finding(name, State.FAIL, what, fix)


# Redis.


async def examine_redis(settings: L2Settings, *, clock: Clock = time.time) -> list[Finding]:
    """Whether a Redis is there, is set up as a cache, and lets us use it."""
    if not settings.enabled:
        return [ok("redis", "switched off by cache.l2.enabled")]
    try:
        door = await asyncio.to_thread(Door.of, settings)
        store = RedisStore.connect(door, budget=_PATIENCE, connections=1)
    except SettingsError as error:
        return [fail("redis", str(error), "correct the setting, or the file it names")]
    except (ValueError, KeyError, TypeError, IndexError):
        return [fail("redis", "its address cannot be read", "write cache.l2.url as deploy/reprise.yaml shows")]
    try:
        return await _examine_redis(store, settings, clock)
    finally:
        await store.aclose()


async def _examine_redis(store: RedisStore, settings: L2Settings, clock: Clock) -> list[Finding]:
    findings = await _try_commands(store, settings)
    if findings[0].state is State.FAIL:
        return findings
    findings.append(line(settings))
    if settings.scheme.endswith("+cluster"):
        return [*findings, ok("redis server", "a cluster: name each of its nodes in cache.l2.url to have it looked at")]
    try:
        info = await store.info()
    except TierError as error:
        unseen = warn("redis server", f"does not tell of itself: {error}", "allow it: ACL SETUSER <user> +info")
        return [*findings, unseen]
    save, compresses = await _or_none(store.setting("save")), await _or_none(store.setting("rdbcompression"))
    before, theirs, after = clock(), await _or_none(store.time()), clock()
    findings += [version(info), memory(info), policy(info), pressure(info), snapshots(info, save, compresses)]
    findings.append(user(await _or_none(store.user()), await _or_none(store.entries())))
    if theirs is not None:
        findings.append(clocks("redis clock", theirs - (before + after) / 2))
    return findings


async def _try_commands(store: RedisStore, settings: L2Settings) -> list[Finding]:
    """Every command that is used, on a key like ours. The first finding says whether it is there at all."""
    name, rows = str(Key("b", secrets.token_hex(16), secrets.token_hex(32))), f"h/{secrets.token_hex(16)}"
    commands: dict[str, Callable[[], Awaitable[object]]] = {
        "SET": lambda: store.put(name, b"a", _TTL, replace=False),
        "GETEX": lambda: store.get(name, _TTL),
        "LPUSH, LTRIM and PEXPIRE": lambda: store.push(rows, b"a", 1, _TTL),
        "LRANGE": lambda: store.head(rows, 1),
        "PUBLISH": lambda: store.publish("reprise:doctor", b""),
        "UNLINK": lambda: asyncio.gather(store.delete(name), store.delete(rows)),
    }
    refused: dict[str, str] = {}
    remedy, answered = None, False
    for command, say in commands.items():
        try:
            await say()
        except TierError as error:
            refused[command] = str(error)
            remedy = remedy or remedy_for(error, encrypted=settings.encrypted)
            if isinstance(error, TierTimeout):
                break  # nobody need wait as long again for each of the others
        else:
            answered = True
    if not answered and len(set(refused.values())) == 1:
        (kind,) = set(refused.values())
        if remedy is not None and kind != "NoPermissionError":
            return [fail("redis", remedy.what, f"{remedy.setting}: {remedy.change}")]
        return [fail("redis", f"cannot be used: {kind}", _redis_cure(kind))]
    if refused:
        said = ", ".join(f"{command}: {kind}" for command, kind in refused.items())
        return [ok("redis", "answers"), fail("redis commands", said, _redis_cure(next(iter(refused.values()))))]
    timely = latency(
        "redis latency", await _times(lambda: _or_none(store.get(name, _TTL))), settings.budget, "cache.l2.budget"
    )
    return [ok("redis", "answers"), ok("redis commands", f"{', '.join(commands)} are allowed"), timely]


_REDIS_CURES = {
    "NoPermissionError": f"allow them: ACL SETUSER <user> {rights()}, as deploy/redis/users.acl does",
    "OutOfMemoryError": "set maxmemory-policy allkeys-lfu, or give it more maxmemory",
    "ReadOnlyError": "this is a replica: name the primary in cache.l2.url, or use redis+sentinel://",
    "ResponseError": "use Redis 6.2 or newer, or Valkey",
}


def _redis_cure(kind: str) -> str:
    return _REDIS_CURES.get(kind, "start it, or correct cache.l2.url")


def version(info: Mapping[str, Any]) -> Finding:
    said = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in said.split(".")[:2] if part.isdecimal())
    if numbers < (6, 2):
        return fail("redis version", f"{said} has no GETEX", "use Redis 6.2 or newer, or Valkey")
    return ok("redis version", said)


def memory(info: Mapping[str, Any]) -> Finding:
    limit = int(info.get("maxmemory", 0))
    if not limit:
        cure = "set a bound: CONFIG SET maxmemory 4gb, and `maxmemory 4gb` in redis.conf"
        return fail("redis memory", "has no bound, and so grows until the machine has none left", cure)
    return ok("redis memory", f"bounded by {limit / MIB:,.0f} MiB")


def policy(info: Mapping[str, Any]) -> Finding:
    said = str(info.get("maxmemory_policy", "unknown"))
    cure = "CONFIG SET maxmemory-policy allkeys-lfu, and `maxmemory-policy allkeys-lfu` in redis.conf"
    if said == "noeviction":
        return fail("redis policy", "noeviction: when it is full it refuses every write", cure)
    if said != "allkeys-lfu":
        return warn("redis policy", f"{said}: keeps less of what is asked for again than allkeys-lfu does", cure)
    return ok("redis policy", said)


def pressure(info: Mapping[str, Any]) -> Finding:
    limit, used, evicted = (int(info.get(name, 0)) for name in ("maxmemory", "used_memory", "evicted_keys"))
    said = f"{used / MIB:,.0f} MiB used, {evicted:,} entries evicted so far"
    if evicted and limit and used > 0.9 * limit:
        return warn("redis pressure", said, "more maxmemory would keep what now goes before its time")
    return ok("redis pressure", said)


def line(settings: L2Settings) -> Finding:
    """Whether others can read what travels."""
    if settings.encrypted:
        return ok("redis line", "encrypted")
    host = urlsplit(settings.url.get_secret_value()).hostname or ""
    if settings.scheme == "unix" or host in _NEAR:
        return ok("redis line", "stays on this machine")
    cure = (
        "give Redis a tls-port, and write rediss:// in cache.l2.url; cache.l2.tls.ca names who signed its certificate"
    )
    return warn("redis line", "is not encrypted: whoever is on the way reads passwords and media", cure)


def user(name: str | None, entries: int | None) -> Finding:
    """As whom we come, and whether that user may do more than it must: `entries` is what nobody needs to be told."""
    cure = f"ACL SETUSER reprise on >PASSWORD {rights()}; then cache.l2.username and password_file"
    if name == "default":
        return warn("redis user", "we come as `default`, who may do everything, scripts and FLUSHALL included", cure)
    if entries is not None:
        return warn("redis user", f"{name or 'it'} may do more than is needed", cure)
    return ok("redis user", f"{name or 'it'} may do what is needed and no more")


def snapshots(info: Mapping[str, Any], save: str | None, compresses: str | None) -> Finding:
    """`save` and `compresses` are settings; None where they cannot be asked for."""
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        cure = "look into its log: usually the disk is full or not writable; then BGSAVE"
        return fail("redis snapshots", "the last one failed, and writes may be refused for it", cure)
    if save is None:
        cure = "see to it that it saves every 15 minutes (save 900 1)"
        return warn("redis snapshots", "whether it takes any cannot be asked: CONFIG is not allowed", cure)
    if not save.strip():
        cure = "CONFIG SET save '900 1', and `save 900 1` in redis.conf"
        return warn("redis snapshots", "it takes none: after a restart it is cold", cure)
    often = min(map(int, save.split()[::2]))
    if often > _RARELY:
        cure = "CONFIG SET save '900 1', and `save 900 1` in redis.conf"
        return warn("redis snapshots", f"every {often:,} s at best: a restart loses what came since", cure)
    if compresses == "yes":
        cure = "CONFIG SET rdbcompression no, and `rdbcompression no` in redis.conf"
        return warn("redis snapshots", "are compressed, which costs time and saves nothing: media are compressed", cure)
    return ok("redis snapshots", f"save {save}")


# Object stores and folders.


async def examine_objects(
    settings: L3Settings,
    *,
    clock: Clock = time.time,
    free_space: Callable[[Path], tuple[int, int]] = lambda folder: shutil.disk_usage(folder)[::2],
) -> list[Finding]:
    """Whether an object store or a folder does what a durable tier is asked for. `free_space`: bytes, all and free."""
    if not settings.enabled:
        return [ok("objects", "switched off by cache.l3.enabled: nothing survives a restart of Redis")]
    folder = Path(settings.url.removeprefix("file://")) if settings.url.startswith("file://") else None
    if folder is not None and not await asyncio.to_thread(folder.is_dir):
        return [await asyncio.to_thread(absent, folder)]
    try:
        store = await asyncio.to_thread(_open, settings)
    except Exception as error:  # noqa: BLE001  # the library has no base for what it says of a bad configuration
        return [fail("objects", f"cannot be opened: {type(error).__name__}", _objects_cure(type(error).__name__))]
    findings = await _try_objects(store, settings, clock)
    if folder is not None:
        findings.append(space(*await asyncio.to_thread(free_space, folder)))
    else:
        said = (
            "comes back by `reprise gc`; a lifecycle rule would also take descriptions of models: see deploy/README.md"
        )
        findings.append(ok("objects space", said))
    return findings


def _open(settings: L3Settings) -> ObjectsStore:
    return ObjectsStore.connect(
        settings.url,
        endpoint=settings.endpoint,
        access_key=settings.access_key,
        secret_key=settings.secret_key.get_secret_value(),
        region=settings.region,
        stall=_PATIENCE,
        write_timeout=_PATIENCE,
    )


async def _try_objects(store: ObjectsStore, settings: L3Settings, clock: Clock) -> list[Finding]:
    """Everything that is done with a store, on an object of our own. The order matters: each step is about the last."""
    name, findings = _PROBES + secrets.token_hex(16), list[Finding]()
    steps: dict[str, Callable[[ObjectsStore, str, str], Awaitable[Finding]]] = {
        "objects list": _list,
        "objects write": _write,
        "objects create-only": _create_only,
        "objects overwrite": _overwrite,
        "objects latency": partial(_read_often, stall=settings.stall),
        "objects clock": partial(_tell_time, clock=clock),
        "objects delete": _delete,
    }
    for title, step in steps.items():
        try:
            findings.append(await step(store, name, title))
        except TierError as error:
            kind = _kind_of(error)
            findings.append(fail(title, f"fails: {kind}", _objects_cure(kind)))
            if title == "objects write":
                return findings  # nothing was written, so there is nothing to go on with
    return findings


async def _list(store: ObjectsStore, name: str, title: str) -> Finding:
    await store.folders("")
    return ok(title, "what lies there may be listed")


async def _write(store: ObjectsStore, name: str, title: str) -> Finding:
    await store.put(name, b"first", _TTL, replace=False)
    return ok(title, "new objects are taken")


async def _create_only(store: ObjectsStore, name: str, title: str) -> Finding:
    if await store.put(name, b"second", _TTL, replace=False) or await store.get(name, _TTL) != b"first":
        cure = "use a server that knows If-None-Match: MinIO, SeaweedFS, AWS and others do"
        return fail(title, "a second writer replaces what the first one wrote", cure)
    return ok(title, "of two writers the first one wins")


async def _overwrite(store: ObjectsStore, name: str, title: str) -> Finding:
    await store.put(name, b"third", _TTL, replace=True)
    if await store.get(name, _TTL) != b"third":
        cure = "switch caching between us and the store off: what is written must be what is read next"
        return fail(title, "what was written last is not what is read", cure)
    return ok(title, "what was written last is read")


async def _read_often(store: ObjectsStore, name: str, title: str, *, stall: float) -> Finding:
    return latency(title, await _times(lambda: store.get(name, _TTL)), stall, "cache.l3.stall")


async def _tell_time(store: ObjectsStore, name: str, title: str, *, clock: Clock) -> Finding:
    before = clock()
    await store.put(name, b"now", _TTL, replace=True)
    after, entry = clock(), await store.head(name)
    if entry is None:
        return warn(title, "an object that was just written is not there", "see whether somebody else cleans up here")
    # Written in between, and told in full seconds.
    return clocks(title, max(entry.modified - after, 0.0) + min(entry.modified + 1.0 - before, 0.0))


async def _delete(store: ObjectsStore, name: str, title: str) -> Finding:
    await store.delete(name)
    if await store.get(name, _TTL) is not None:
        return fail(title, "what was deleted can still be read", "switch versions or caching of the bucket off")
    return ok(title, "what is deleted is gone")


_OBJECTS_CURES = {
    "unreachable": "start it, or correct cache.l3.endpoint",
    "object store": "see why it is slow, or correct cache.l3.endpoint",
    "InvalidAccessKeyId": "correct cache.l3.access_key",
    "SignatureDoesNotMatch": "correct cache.l3.secret_key",
    "NoSuchBucket": "make the bucket, or correct cache.l3.url",
    "RequestTimeTooSkewed": "set this machine's clock: chronyd, or systemd-timesyncd",
}


def _objects_cure(kind: str) -> str:
    return _OBJECTS_CURES.get(kind, "give this key the rights to list, read, write and delete in the bucket or folder")


def _kind_of(error: TierError) -> str:
    """In a word: the code of S3, or that there is nobody. The rest of what the library says quotes requests."""
    said = str(error.__cause__)
    if code := re.search(r"<Code>(\w{1,64})</Code>", said):
        return code[1]
    return "unreachable" if "error sending request" in said else str(error)


def absent(folder: Path) -> Finding:
    """Of a folder that is not there: whether it can be made. It is not made here, where it would be another user's."""
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        cure = "name a folder that this user may make and write to in cache.l3.url"
        return fail("objects", f"there is no folder {folder}, and it cannot be made in {above}", cure)
    return warn(
        "objects", f"there is no folder {folder} yet", "none: it is made at the first start. Or correct cache.l3.url"
    )


def space(total: int, free: int) -> Finding:
    said = f"{free / _GIB:,.1f} of {total / _GIB:,.1f} GiB free"
    cure = "`reprise gc` gives back what nobody can be served with; or put the folder on a larger disk"
    if free < _GIB:
        return fail("objects space", said, cure)
    return warn("objects space", said, cure) if free < total / 10 else ok("objects space", said)


# Of both.


def latency(name: str, seconds: Sequence[float], budget: float, setting: str) -> Finding:
    """Reads against the time that is granted to one."""
    said = f"{median(seconds) * 1000:.1f} ms, {max(seconds) * 1000:.1f} ms at most; granted are {budget * 1000:.0f} ms"
    cure = f"bring it nearer, give it more to work with, or raise {setting}"
    if median(seconds) > budget:
        return fail(name, f"{said}: most lookups are given up", cure)
    return warn(name, f"{said}: some lookups are given up", cure) if max(seconds) > budget else ok(name, said)


def clocks(name: str, ahead: float) -> Finding:
    """`ahead`: by how many seconds the other clock is before ours. Entries' ages are judged by whoever reads them."""
    if abs(ahead) <= _CLOCKS_APART:
        return ok(name, f"within {_CLOCKS_APART:.0f} s of this machine's")
    said = f"{abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's: entries age by another clock"
    cure = "let both machines follow NTP: chronyd, or systemd-timesyncd"
    return (fail if abs(ahead) > _CLOCKS_FAR_APART else warn)(name, said, cure)


async def _times(read: Callable[[], Awaitable[object]]) -> list[float]:
    """How long reads take, one after the other."""
    seconds = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        await read()
        seconds.append(time.perf_counter() - started)
    return seconds


async def _or_none(answer: Awaitable[_T]) -> _T | None:
    try:
        return await answer
    except TierError:
        return None
