"""Artifacts over HTTP (RFC 9110): finished files by URL, whole or in ranges, as browsers, players and CDNs want them.

A URL is a permission (see `links.py`), so no credentials are needed. Whoever shows some anyhow must belong to the
tenant the URL was made for. Bytes come from the tiers, verified, or from what was made here a moment ago. Whatever is
answered, they have been read: what was purged is gone for a HEAD and a revalidation, too.

| answer | when |
|---|---|
| 200, 206 | the file, or the range asked for; several ranges at once are answered with the whole file |
| 304 | the caller has it already |
| 401, 403 | unknown credentials; an altered URL, or another tenant's |
| 404, 410 | no tier has it any more; the URL has expired |
| 416 | the range begins beyond the end |
| 503 | a tier that may have it cannot be reached, too much is being sent, or memory is short: with Retry-After |

Shared caches may keep an answer as long as its URL is good, because whoever can ask them has the URL. What was answered
to somebody with credentials is for their own cache.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from aiohttp import web
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode

from cache.description import Scope
from cache.digest import Digest
from cache.hierarchy import Hierarchy
from cache.keys import namespace
from cache.telemetry import Tracing, bind, parent_of, trace_id_of
from cache.tier import Lookup, proves_absence
from gateway.errors import Internal, NotFound, OutOfRange, Overloaded, PermissionDenied, Refused, Unavailable
from gateway.identity import API_KEY, AUTHORIZATION, Identifier
from gateway.ledger import Ledger
from gateway.links import PATH, Link, Links
from gateway.status import log_fault, refusal
from gateway.wire import CHUNK_BYTES, Reply

METHOD = "artifacts.get"
_TTL = 2 * 3600.0  # seconds for which a file stays in the tiers that forget after it was read
_PATIENCE = 60.0  # seconds that a reader may take for 1 MiB
_CORS = {
    # Any page may read it: who has the URL has the file, and no cookie is involved. One answer for all origins can be
    # kept by a CDN.
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "accept-ranges, content-disposition, content-length, content-range, etag",
}
_PREFLIGHT = {
    **_CORS,
    "access-control-allow-methods": "GET, HEAD",
    "access-control-allow-headers": f"{API_KEY}, {AUTHORIZATION}, if-none-match, if-range, range, traceparent",
    "access-control-max-age": "7200",
}
_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.OUT_OF_RANGE: 416,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
}


@dataclass(slots=True)
class _Visit:
    """One request, as far as it is known."""

    parent: Context | None
    link: Link | None = None
    named: bool = False  # its caller has shown credentials
    lookups: Sequence[Lookup] = ()
    sent: int = 0  # bytes
    started_ns: int = field(default_factory=time.time_ns)
    started: float = field(default_factory=time.perf_counter)


class Artifacts:
    """Answers GET, HEAD and preflights. `max_bytes` bounds the files that are being sent at once, all together."""

    def __init__(
        self,
        links: Links,
        files: Hierarchy,
        just_made: Callable[[Digest, Collection[str]], Reply | None],
        identifier: Identifier,
        ledger: Ledger,
        tracing: Tracing,
        *,
        secret: bytes,
        max_bytes: int,
        patience: float = _PATIENCE,
        admit: Callable[[], None] = lambda: None,
    ) -> None:
        self._links = links
        self._files = files
        self._just_made = just_made
        self._identifier = identifier
        self._ledger = ledger
        self._tracing = tracing
        self._secret = secret
        self._max_bytes = max_bytes
        self._patience = patience
        self._admit = admit
        self._bytes = 0  # of files that are being sent

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "OPTIONS":
            return web.Response(status=204, headers=_PREFLIGHT)
        if request.method not in ("GET", "HEAD"):
            return _problem(405, "METHOD_UNKNOWN", "must be GET or HEAD", {"allow": "GET, HEAD, OPTIONS"})
        headers = {name.lower(): value for name, value in request.headers.items()}
        visit = _Visit(parent_of(headers))
        try:
            self._admit()
            visit.link = link = self._links.open(request.path)
            visit.named = self._is_named(request.headers, link)
            with self._room_for(link.digest.size):
                pieces = await self._read(link, visit)
                response, start, stop = self._head(request, visit, link)
                took = time.perf_counter() - visit.started  # without the time that the reader takes
                self._ledger.served(response.status, took)
                await self._send(request, response, pieces(start, stop), visit)
        except Exception as error:  # noqa: BLE001  # this is the place where errors become answers
            return self._refused(refusal(error), error, visit)
        if self._tracing.wants(visit.parent, took):
            self._span(visit, response.status).end()
        return response

    def _is_named(self, headers: Mapping[str, str], link: Link) -> bool:
        """Whether the caller says who he is. Raises PermissionDenied if he is of another tenant, and what identifying
        raises."""
        metadata = [(name.lower(), value) for name, value in headers.items()]
        if not any(name in self._identifier.credentials for name, _ in metadata):
            return False
        principal = self._identifier.identify(metadata).principal
        if namespace(self._secret, Scope.TENANT, principal) != link.tenant:
            raise PermissionDenied("this URL was made for another tenant", reason="OTHER_TENANT")
        return True

    @contextmanager
    def _room_for(self, size: int) -> Iterator[None]:
        """Raises Overloaded. A small file counts for a piece, so that many of them are not free."""
        size = max(size, CHUNK_BYTES)
        if self._bytes and self._bytes + size > self._max_bytes:
            raise Overloaded("GATEWAY_BUSY")
        self._bytes += size
        try:
            yield
        finally:
            self._bytes -= size

    async def _read(self, link: Link, visit: _Visit) -> Callable[[int, int], Iterator[memoryview]]:
        """What gives the file piece by piece. Raises NotFound, or Unavailable where it may still be."""
        if (made := self._just_made(link.digest, [link.namespace])) is not None:
            return made.pieces
        data, _, visit.lookups = await self._files.read(link.namespace, link.digest, _TTL)
        if data is None:
            raise NotFound("ARTIFACT_UNKNOWN") if proves_absence(visit.lookups) else Unavailable("STORE_UNREACHABLE")
        view = memoryview(data)
        return lambda start, stop: (view[at : min(at + CHUNK_BYTES, stop)] for at in range(start, stop, CHUNK_BYTES))

    def _head(self, request: web.BaseRequest, visit: _Visit, link: Link) -> tuple[web.StreamResponse, int, int]:
        """The answer without its body, the first byte of the body and the one after its last. Raises OutOfRange."""
        size, tag = link.digest.size, f'"{link.digest.hex}"'
        keepers, seconds = "private" if visit.named else "public", int(self._links.seconds_left(link))
        headers = {
            **_CORS,
            "etag": tag,
            "cache-control": f"{keepers}, max-age={seconds}, immutable",
            "vary": f"{AUTHORIZATION}, {API_KEY}",
        }
        if any(each.value in (link.digest.hex, "*") for each in request.if_none_match or ()):
            return web.Response(status=304, headers=headers), 0, 0
        asked = None
        if request.method == "GET" and request.headers.get("if-range", tag) == tag:
            asked = asked_range(request.headers.get("range", ""), size)
        start, stop = asked or (0, size)
        headers |= {
            "accept-ranges": "bytes",
            "content-type": link.media_type,
            "content-length": str(stop - start),
            "content-disposition": f'inline; filename="{link.digest.hex[:16]}.{link.media_type.rpartition("/")[2]}"',
            "x-content-type-options": "nosniff",
        }
        if asked is not None:
            headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
        return web.StreamResponse(status=206 if asked else 200, headers=headers), start, stop

    async def _send(
        self, request: web.BaseRequest, response: web.StreamResponse, pieces: Iterator[memoryview], visit: _Visit
    ) -> None:
        """A reader that leaves, or is too slow, has its connection closed: what it has got says how much it lacks."""
        try:
            await response.prepare(request)
            for piece in pieces if request.method == "GET" else ():
                async with asyncio.timeout(self._patience):
                    await response.write(piece)
                visit.sent += len(piece)
            await response.write_eof()
        except (ConnectionError, TimeoutError):
            _break_off(request)
        except BaseException:
            _break_off(request)  # or what is said of the error would be taken for a part of the file
            raise
        finally:
            self._ledger.sent(visit.sent)

    def _refused(self, refused: Refused, error: Exception, visit: _Visit) -> web.Response:
        self._ledger.refused(METHOD, refused.code.name, refused.reason)
        status = 410 if refused.reason == "URL_EXPIRED" else _STATUSES.get(refused.code, 500)
        span = self._span(visit, status)
        span.set_attribute("error.type", refused.reason)
        span.set_status(StatusCode.ERROR, refused.reason)
        span.end()
        bind(span)  # its trace is told with what is logged
        headers = {}
        if isinstance(refused, Internal):
            log_fault(error, refused, METHOD)
            headers["x-trace-id"] = trace_id_of(span)
        if isinstance(refused, OutOfRange) and visit.link is not None:
            headers["content-range"] = f"bytes */{visit.link.digest.size}"
        if refused.retry_after is not None:
            headers["retry-after"] = str(math.ceil(refused.retry_after))
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        return _problem(status, refused.reason, refused.message, headers)

    def _span(self, visit: _Visit, status: int) -> Span:
        attributes: dict[str, Any] = {
            "http.route": f"{PATH}{{digest}}/{{seal}}",
            "http.response.status_code": status,
            "http.response.body.size": visit.sent,
        }
        span = self._tracing.begin(
            METHOD,
            parent=visit.parent,
            started_ns=visit.started_ns,
            attributes=attributes,
            kind=SpanKind.SERVER,
        )
        self._tracing.lookups(span, visit.lookups)
        return span


_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII | re.IGNORECASE)


def asked_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last of a `Range` with one part; None for a header that is to be ignored.

    Raises OutOfRange for a range that lies beyond the end.
    """
    matched = _RANGE.fullmatch(header.strip())
    if matched is None:
        return None
    first, last, suffix = matched.groups()
    if suffix is not None:
        start, stop = max(0, size - int(suffix)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise OutOfRange("range", f"the artifact has {size} bytes")
    return start, stop


def _break_off(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _problem(status: int, reason: str, message: str, headers: Mapping[str, str]) -> web.Response:
    return web.json_response(
        {"reason": reason, "message": message},
        status=status,
        headers={**_CORS, "cache-control": "no-store", **headers},
    )
