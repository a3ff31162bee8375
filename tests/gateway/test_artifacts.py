"""Artifacts by URL, over real HTTP from real tiers: ranges, validators, caches, and who is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from cache.build import Tiers
from cache.description import Scope
from cache.digest import Digest
from cache.keys import Address, Key, Principal, namespace
from cache.record import Record
from cache.settings import CacheSettings, TelemetrySettings
from cache.telemetry import Tracing
from gateway.artifacts import Artifacts, asked_range
from gateway.errors import OutOfRange
from gateway.http_server import HttpServer
from gateway.identity import ApiKeys, Caller, Identifier, Local, TrustedHeader, hash_key
from gateway.ledger import Ledger
from gateway.links import Links
from gateway.stack.redis import flush
from gateway.wire import Reply
from reprise.v1.media_pb2 import DELIVERY_URL
from tests.cache.helpers import NOW, Clock, record_of
from tests.gateway.world import MIB, World, eventually, outcome

ACME = Principal("acme", "ada")
CLIP = bytes(range(256)) * 4096 * 2 + b"the end"  # a little over 2 MiB
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Answered:
    status: int
    headers: Any
    body: bytes


class Shop:
    """Serves artifacts from real tiers, at a time that stands still."""

    def __init__(self, tiers: Tiers, secret: bytes, identifier: Identifier, **options: Any) -> None:
        self.clock = Clock()
        self.tiers = tiers
        self.made: dict[Digest, Reply] = {}
        self.registry = CollectorRegistry()
        self.spans = InMemorySpanExporter()
        self._secret = secret
        self._provider = TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self._identifier = identifier
        self._options: dict[str, Any] = {"max_bytes": 64 * MIB} | options

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Shop]:
        http = await HttpServer.bind("127.0.0.1", 0)
        self.links = Links(self._secret, f"http://127.0.0.1:{http.port}", lifetime=300.0, clock=self.clock)
        artifacts = Artifacts(
            self.links,
            self.tiers.through_memory,
            lambda digest, namespaces: self.made.get(digest),
            self._identifier,
            Ledger(self.registry),
            Tracing(TelemetrySettings(sample_ratio=0.0), self._provider.get_tracer("test")),
            secret=self._secret,
            **self._options,
        )
        await http.serve(artifacts.answer)
        try:
            async with aiohttp.ClientSession() as self._session:
                yield self
        finally:
            await http.stop(0)
            self._provider.shutdown()

    def record(self, data: bytes, principal: Principal = ACME) -> Record:
        where = namespace(self._secret, Scope.TENANT, principal)
        record = record_of(data)
        return replace(record, address=Address(where, record.address.content_id))

    def url(self, data: bytes, principal: Principal = ACME) -> str:
        url = self.links.url_of(self.record(data, principal), namespace(self._secret, Scope.TENANT, principal))
        assert url is not None
        return url.text

    async def keep(self, data: bytes, principal: Principal = ACME) -> str:
        """Store it, and the URL of it."""
        assert await self.tiers.through_memory.keep(self.record(data, principal).address.namespace, data, 600.0)
        return self.url(data, principal)

    async def ask(self, url: str, method: str = "GET", **headers: str) -> Answered:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._session.request(method, url, headers=named) as response:
            return Answered(response.status, response.headers, await response.read())

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def open_shop(
    world: World, identifier: Identifier | None = None, cache: CacheSettings | None = None, **options: Any
) -> AsyncIterator[Shop]:
    tiers = await world.tiers(cache or world.cache)
    async with Shop(tiers, world.cache.secret_bytes, identifier or Local(), **options).open() as shop:
        yield shop


@pytest.fixture
async def shop(world: World) -> AsyncIterator[Shop]:
    async with open_shop(world) as shop:
        yield shop


TAG = f'"{Digest.of(CLIP).hex}"'


# Whole and in part.


async def test_a_file_is_had_whole(shop: Shop) -> None:
    """With its type, its length, a validator, and leave for caches to keep it until the URL ends."""
    url = await shop.keep(CLIP)
    shop.clock.advance(30.0)
    whole = await shop.ask(url)

    assert (200, CLIP) == (whole.status, whole.body)
    assert ("video/mp4", str(len(CLIP)), TAG, "bytes") == tuple(
        whole.headers[name] for name in ("content-type", "content-length", "etag", "accept-ranges")
    )
    left = shop.links.open(url[url.index("/artifacts/") :]).expires_at - shop.clock()
    assert f"public, max-age={int(left)}, immutable" == whole.headers["cache-control"]
    assert f'inline; filename="{Digest.of(CLIP).hex[:16]}.mp4"' == whole.headers["content-disposition"]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=0-", 0, len(CLIP)),
        (f"bytes={MIB - 3}-{MIB + 2}", MIB - 3, MIB + 3),
        (f"bytes=7-{2 * MIB + 3}", 7, 2 * MIB + 4),
        (f"bytes={len(CLIP) - 1}-{len(CLIP) + 100}", len(CLIP) - 1, len(CLIP)),
        ("bytes=-7", len(CLIP) - 7, len(CLIP)),
        (f"bytes=-{len(CLIP) + 1}", 0, len(CLIP)),
        ("Bytes = 5-9".replace(" ", ""), 5, 10),
    ],
)
@pytest.mark.parametrize("made", [False, True], ids=["from the tiers", "just made"])
async def test_a_range_is_had(shop: Shop, asked: str, start: int, stop: int, made: bool) -> None:
    """These bytes and no others, and where in the whole they stand; from the tiers as from what was just made."""
    if made:
        shop.made[Digest.of(CLIP)] = Reply.of(shop.record(CLIP), CLIP, random_weights=True)
    part = await shop.ask(shop.url(CLIP) if made else await shop.keep(CLIP), range=asked)

    assert (206, f"bytes {start}-{stop - 1}/{len(CLIP)}") == (part.status, part.headers["content-range"])
    assert (str(stop - start), TAG) == (part.headers["content-length"], part.headers["etag"])
    assert CLIP[start:stop] == part.body


async def test_a_transfer_in_pieces_is_the_file(shop: Shop) -> None:
    """As a player does it: piece after piece, each on the condition that the file is the same."""
    url, pieces = await shop.keep(CLIP), []
    for start in range(0, len(CLIP), 300_000):
        part = await shop.ask(url, range=f"bytes={start}-{start + 299_999}", if_range=TAG)
        assert 206 == part.status
        pieces.append(part.body)
    assert CLIP == b"".join(pieces)


@pytest.mark.parametrize(
    "asked",
    ["bytes=9-5", "bytes=0-1,5-6", "bytes=", "bytes=-", "bytes=a-b", "items=0-1", "bytes=1-2-3", "0-1", "bytes=٣-"],
)
def test_a_range_that_says_nothing_is_ignored(asked: str) -> None:
    """Malformed, of another unit, or several at once: the whole file is an answer to all of them."""
    assert asked_range(asked, 100) is None


@pytest.mark.parametrize(
    ("asked", "size"), [("bytes=100-", 100), ("bytes=100-200", 100), ("bytes=-0", 100), ("bytes=0-", 0)]
)
def test_a_range_beyond_the_end_is_refused(asked: str, size: int) -> None:
    with pytest.raises(OutOfRange):
        asked_range(asked, size)


async def test_a_range_beyond_the_end_is_told_the_size(shop: Shop) -> None:
    """416, and how long the file is."""
    refused = await shop.ask(await shop.keep(CLIP), range=f"bytes={len(CLIP)}-")
    assert (416, f"bytes */{len(CLIP)}") == (refused.status, refused.headers["content-range"])
    assert b"OFFSET_BEYOND_END" in refused.body


@pytest.mark.parametrize("condition", ['"another"', f"W/{TAG}", "Wed, 21 Oct 2026 07:28:00 GMT"])
async def test_a_part_of_another_file_is_not_wanted(shop: Shop, condition: str) -> None:
    """If-Range with anything but this very file's tag gives the whole."""
    whole = await shop.ask(await shop.keep(CLIP), range="bytes=5-9", if_range=condition)
    assert (200, CLIP) == (whole.status, whole.body)


async def test_an_empty_file_is_a_file(shop: Shop) -> None:
    """It has no bytes, and no range of it can be had."""
    url = await shop.keep(b"")
    assert [(200, b""), (416, "bytes */0")] == [
        ((whole := await shop.ask(url)).status, whole.body),
        ((part := await shop.ask(url, range="bytes=0-0")).status, part.headers["content-range"]),
    ]


async def test_a_head_says_what_a_get_would_send(shop: Shop) -> None:
    """All of its headers, whatever range is asked for, and nothing else."""
    url = await shop.keep(CLIP)
    head, whole = await shop.ask(url, "HEAD", range="bytes=5-9"), await shop.ask(url)
    assert (200, b"") == (head.status, head.body)
    assert {**whole.headers, "Date": ""} == {**head.headers, "Date": ""}


@pytest.mark.parametrize("known", [TAG, f"W/{TAG}", f'"another", {TAG}', "*"])
async def test_what_the_caller_has_is_not_sent_again(shop: Shop, known: str) -> None:
    """304 with the tag and how long it may be kept; a tag of something else changes nothing."""
    url = await shop.keep(CLIP)
    same, other = await shop.ask(url, if_none_match=known), await shop.ask(url, if_none_match='"another"')
    assert (304, b"", TAG) == (same.status, same.body, same.headers["etag"])
    assert "immutable" in same.headers["cache-control"]
    assert (200, CLIP) == (other.status, other.body)


# Who is refused.


async def test_an_altered_url_and_an_expired_one_are_refused(shop: Shop) -> None:
    """403 and 410, nothing of the file, nothing that may be kept, and one reason each in the metrics."""
    url = await shop.keep(CLIP)
    altered = await shop.ask(url[:-1] + ("A" if url[-1] != "A" else "Q"))
    folder = await shop.ask(url.rpartition("/artifacts/")[0] + "/artifacts/")
    shop.clock.advance(301.0)
    expired = await shop.ask(url)
    later = await shop.ask(await shop.keep(CLIP))

    assert [403, 403, 410, 200] == [each.status for each in (altered, folder, expired, later)]
    for refused, reason in ((altered, "URL_ALTERED"), (folder, "URL_ALTERED"), (expired, "URL_EXPIRED")):
        assert f'"reason": "{reason}"'.encode() in refused.body
        assert "no-store" == refused.headers["cache-control"]
    labels = {"method": "artifacts.get", "code": "PERMISSION_DENIED", "reason": "URL_ALTERED"}
    assert 2 == shop.metric("reprise_refusals_total", **labels)


KEYS = ApiKeys({hash_key("a"): Caller(ACME), hash_key("b"): Caller(Principal("globex", "bob"))})


@pytest.mark.parametrize(
    ("identifier", "headers", "status"),
    [
        (KEYS, {}, 200),
        (KEYS, {"authorization": "Bearer a"}, 200),
        (KEYS, {"x_api_key": "a"}, 200),
        (KEYS, {"authorization": "Bearer b"}, 403),
        (KEYS, {"x_api_key": "b"}, 403),
        (KEYS, {"x_api_key": "nobody's"}, 401),
        (KEYS, {"authorization": "Basic YTpi"}, 401),
        (KEYS, {"x_reprise_tenant": "globex"}, 200),  # means nothing where keys say who asks
        (TrustedHeader(), {}, 200),
        (TrustedHeader(), {"x_reprise_tenant": "acme"}, 200),
        (TrustedHeader(), {"x_reprise_tenant": "globex"}, 403),
        (TrustedHeader(), {"authorization": "Bearer b"}, 200),  # means nothing where a proxy says who asks
        (Local(), {"authorization": "Bearer b"}, 200),
    ],
)
async def test_another_tenants_url_is_refused(
    world: World, identifier: Identifier, headers: dict[str, str], status: int
) -> None:
    """Whoever says who he is must be of the tenant it was made for; to who says nothing the URL is enough."""
    async with open_shop(world, identifier) as shop:
        url = await shop.keep(CLIP)
        answered = await shop.ask(url, **headers)
    assert status == answered.status
    assert (answered.body == CLIP) is (status == 200)


async def test_what_was_told_to_somebody_is_not_kept_for_everybody(world: World) -> None:
    """An answer to credentials is for its caller's own cache, and shared caches tell such requests apart."""
    async with open_shop(world, KEYS) as shop:
        url = await shop.keep(CLIP)
        named, unnamed = await shop.ask(url, x_api_key="a"), await shop.ask(url)
    assert ["private", "public"] == [each.headers["cache-control"].partition(",")[0] for each in (named, unnamed)]
    assert {"authorization, x-api-key"} == {each.headers["vary"] for each in (named, unnamed)}


async def test_only_reading_is_possible(shop: Shop) -> None:
    """Anything but GET, HEAD and a preflight is 405, and changes nothing."""
    url = await shop.keep(CLIP)
    for method in ("PUT", "POST", "DELETE"):
        refused = await shop.ask(url, method)
        assert (405, "GET, HEAD, OPTIONS") == (refused.status, refused.headers["allow"])
    assert 200 == (await shop.ask(url)).status


async def test_a_page_of_any_origin_may_read_it(shop: Shop) -> None:
    """A browser asks first, and is told which headers it may send and read."""
    url = await shop.keep(CLIP)
    before = await shop.ask(url, "OPTIONS", origin="https://x.org", access_control_request_method="GET")
    read = await shop.ask(url, origin="https://x.org")
    assert (204, "GET, HEAD") == (before.status, before.headers["access-control-allow-methods"])
    assert {"range", "if-range", "if-none-match"} <= set(before.headers["access-control-allow-headers"].split(", "))
    assert ["*", "*"] == [each.headers["access-control-allow-origin"] for each in (before, read)]
    assert {"etag", "content-range"} <= set(read.headers["access-control-expose-headers"].split(", "))


# When things go wrong.


async def test_what_no_tier_has_is_gone(shop: Shop) -> None:
    """404 for GET, HEAD and a revalidation alike: a purged file is not confirmed to those who kept it."""
    url = shop.url(CLIP)
    gone = [await shop.ask(url), await shop.ask(url, "HEAD"), await shop.ask(url, if_none_match=TAG)]
    assert [404, 404, 404] == [each.status for each in gone]
    assert b"ARTIFACT_UNKNOWN" in gone[0].body


async def test_damaged_bytes_are_never_sent(world: World) -> None:
    """A blob that is not what its name says is a miss, and is removed."""
    async with open_shop(world, cache=world.only("l2", "l3")) as shop:
        url = await shop.keep(CLIP[:1000])
        key = Key.of_blob(shop.record(b"").address.namespace, Digest.of(CLIP[:1000]))
        for tier in shop.tiers.shared:
            await tier.put(key, CLIP[1000:2000], 600.0, replace=True)
        assert [404, 404] == [(await shop.ask(url)).status for _ in range(2)]


async def test_a_tier_that_fails_does_not_say_that_it_is_gone(world: World) -> None:
    """With Redis out of reach a file that no other tier has may still be there: 503, with a time to retry."""
    nowhere = world.only("l2", l2={"url": type(world.cache.l2.url)("redis://127.0.0.1:1/0")})
    async with open_shop(world, cache=nowhere) as shop:
        refused = await shop.ask(shop.url(CLIP[:100]))
    assert (503, "1") == (refused.status, refused.headers["retry-after"])
    assert b"STORE_UNREACHABLE" in refused.body


async def test_a_slow_reader_is_left(world: World) -> None:
    """Who does not take a piece in time has the connection closed, and the room is free for others."""
    large = bytes(32 * MIB)
    async with open_shop(world, cache=world.only("l3"), max_bytes=33 * MIB, patience=0.2) as shop:
        url = await shop.keep(large)
        port = int(url.split(":")[2].partition("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(f"GET /{url.split('/', 3)[3]} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        await reader.readuntil(b"\r\n")
        second = await shop.ask(url, "HEAD")
        third = await eventually(lambda: shop.ask(url, "HEAD"), wanted=lambda answered: answered.status == 200)
        writer.transport.abort()

    assert (503, "1") == (second.status, second.headers["retry-after"])
    assert 200 == third.status
    assert shop.metric("reprise_artifact_bytes_total") < len(large)


async def test_a_reader_that_leaves_is_no_error(shop: Shop) -> None:
    """It has taken a part; the next one gets everything."""
    url = await shop.keep(CLIP * 8)
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        await response.content.readexactly(10)
        response.close()
    assert CLIP * 8 == (await shop.ask(url)).body
    assert [] == [span for span in shop.spans.get_finished_spans() if span.status.status_code.name == "ERROR"]


# What is told of it.


async def test_requests_are_counted_and_traced(shop: Shop) -> None:
    """Status and bytes; a caller's sampled trace gets a span with the tiers below it; refusals always have one."""
    url = await shop.keep(CLIP)
    await shop.ask(url)
    await shop.ask(url, range="bytes=0-9", traceparent=TRACEPARENT)
    await shop.ask(url + "x")

    assert (1, 1, len(CLIP) + 10) == (
        shop.metric("reprise_artifacts_served_total", status="200"),
        shop.metric("reprise_artifacts_served_total", status="206"),
        shop.metric("reprise_artifact_bytes_total"),
    )
    spans = shop.spans.get_finished_spans()
    told = [(span.name, dict(span.attributes or {}).get("http.response.status_code")) for span in spans]
    assert [("cache.l1", None), ("artifacts.get", 206), ("artifacts.get", 403)] == told
    assert "0af7651916cd43dd8448eb211c80319c" == f"{spans[1].context.trace_id:032x}"
    seals = [url.rpartition("/")[2], Digest.of(CLIP).hex]
    assert not any(seal in span.to_json() for span in spans for seal in seals)


# Through whole gateways.


async def test_a_url_made_by_one_gateway_is_served_by_another(world: World) -> None:
    """Also with Redis flushed and the worker gone: from L3 alone, the very bytes that inline delivery gives."""
    worker = await world.worker()
    first = await world.desk(worker, http_port=0)
    made = await first.animate(extra={"size": 2 * MIB + 5}, delivery=DELIVERY_URL)
    inline = await first.animate(extra={"size": 2 * MIB + 5})
    await first.close()
    await worker.die()
    flush(int(world.cache.l2.url.get_secret_value().rpartition(":")[2].partition("/")[0]))
    other = await world.desk(http_port=0)
    path = made.url.split("/", 3)[3]
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{other.gateway.http_port}/{path}") as response,
    ):
        fetched = await response.read()

    assert (b"", "miss", "hit from L1") == (made.data, outcome(made), outcome(inline))
    assert 2 * MIB + 5 == len(fetched)
    assert inline.data == fetched
    assert NOW < made.result.url_expires_at.seconds
