"""Telemetry: spans with the right times and parents, logs with trace ids, metrics that can be fetched."""

import asyncio
import io
import json
import logging
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import structlog
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import Counter

from cache.settings import TelemetrySettings
from cache.telemetry import SpanFile, Telemetry, Tracing, as_metadata, parent_of, set_up_logs, trace_id_of
from cache.tier import Lookup, Outcome, TierName
from gateway.stack.ports import LOOPBACK, free_port

_SECOND = 10**9


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exported: InMemorySpanExporter) -> Iterator[TracerProvider]:
    opened = TracerProvider()
    opened.add_span_processor(SimpleSpanProcessor(exported))
    yield opened
    opened.shutdown()


def _tracing(provider: TracerProvider, **settings: float) -> Tracing:
    return Tracing(TelemetrySettings.model_validate(settings), provider.get_tracer("test"))


@pytest.fixture
def tracing(provider: TracerProvider) -> Tracing:
    return _tracing(provider)


def _parent_id(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def test_lookups_become_spans_afterwards(tracing: Tracing, exported: InMemorySpanExporter) -> None:
    """One span per tier, child of the request's, at the times that the lookups carry, with outcome and size."""
    start = 1_700_000_000 * _SECOND
    request = tracing.begin("request", started_ns=start)
    tracing.lookups(
        request,
        [
            Lookup(TierName.L1, Outcome.MISS, None, start + 1, 0.5),
            Lookup(TierName.L2, Outcome.TIMEOUT, None, start + _SECOND, 0.05),
            Lookup(TierName.L3, Outcome.HIT, b"clip", start + 2 * _SECOND, 0.25),
        ],
    )
    request.end(start + 3 * _SECOND)

    *tiers, parent = exported.get_finished_spans()
    assert ["cache.l1", "cache.l2", "cache.l3"] == [span.name for span in tiers]
    assert {parent.context.span_id} == {_parent_id(span) for span in tiers}
    assert {parent.context.trace_id} == {span.context.trace_id for span in tiers}
    assert [
        (start + 1, start + 1 + _SECOND // 2),
        (start + _SECOND, start + _SECOND + _SECOND // 20),
        (start + 2 * _SECOND, start + 2 * _SECOND + _SECOND // 4),
    ] == [(span.start_time, span.end_time) for span in tiers]
    assert [
        {"reprise.cache.tier": "l1", "reprise.cache.result": "miss", "reprise.cache.bytes": 0},
        {"reprise.cache.tier": "l2", "reprise.cache.result": "timeout", "reprise.cache.bytes": 0},
        {"reprise.cache.tier": "l3", "reprise.cache.result": "hit", "reprise.cache.bytes": 4},
    ] == [dict(span.attributes or {}) for span in tiers]
    assert [SpanKind.INTERNAL, SpanKind.CLIENT, SpanKind.CLIENT] == [span.kind for span in tiers]
    assert [StatusCode.UNSET, StatusCode.ERROR, StatusCode.UNSET] == [span.status.status_code for span in tiers]


def test_the_state_of_a_breaker_is_told_where_there_is_one(tracing: Tracing, exported: InMemorySpanExporter) -> None:
    """A span of a tier behind a breaker says what state it was in when the tier was asked."""
    states = ["", "closed", "half-open", "open"]
    tracing.lookups(
        tracing.begin("request"), [Lookup(TierName.L2, Outcome.SKIPPED, None, 1, 0.0, state) for state in states]
    )

    told = [(span.attributes or {}).get("reprise.cache.breaker") for span in exported.get_finished_spans()]
    assert [None, "closed", "half-open", "open"] == told


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.HIT, StatusCode.UNSET),
        (Outcome.MISS, StatusCode.UNSET),
        (Outcome.EXPIRED, StatusCode.UNSET),
        (Outcome.SKIPPED, StatusCode.UNSET),
        (Outcome.CORRUPT, StatusCode.ERROR),
        (Outcome.ERROR, StatusCode.ERROR),
        (Outcome.TIMEOUT, StatusCode.ERROR),
    ],
)
def test_faults_are_errors_and_misses_are_not(
    tracing: Tracing, exported: InMemorySpanExporter, outcome: Outcome, status: StatusCode
) -> None:
    """Only what went wrong is marked as wrong."""
    tracing.lookups(tracing.begin("request"), [Lookup(TierName.L2, outcome, None, 1, 0.0)])

    assert [status] == [span.status.status_code for span in exported.get_finished_spans()]


def test_a_part_of_a_request_is_its_child(tracing: Tracing, exported: InMemorySpanExporter) -> None:
    """`child` begins a span below another."""
    request = tracing.begin("request", attributes={"a": 1})
    tracing.child(request, "part", {"b": 2}).end()
    request.end()

    part, whole = exported.get_finished_spans()
    assert ("part", {"b": 2}, whole.context.span_id) == (part.name, dict(part.attributes or {}), _parent_id(part))


def test_context_travels_in_metadata(tracing: Tracing, exported: InMemorySpanExporter) -> None:
    """What one process writes into metadata, another one takes as the parent of its spans."""
    request = tracing.begin("request")
    metadata = dict(as_metadata(request))
    tracing.begin("elsewhere", parent=parent_of(metadata)).end()

    (elsewhere,) = exported.get_finished_spans()
    assert request.get_span_context().span_id == _parent_id(elsewhere)
    assert trace_id_of(request) == f"{elsewhere.context.trace_id:032x}" == metadata["traceparent"].split("-")[1]


@pytest.mark.parametrize("metadata", [{}, {"tracestate": "a=b"}])
def test_without_context_there_is_no_parent(metadata: dict[str, str]) -> None:
    """A caller that sends no `traceparent` has no trace."""
    assert parent_of(metadata) is None
    assert "" == trace_id_of(None)
    assert "" == trace_id_of(trace.INVALID_SPAN)


def test_a_broken_context_is_a_new_trace(tracing: Tracing, exported: InMemorySpanExporter) -> None:
    """Nonsense in `traceparent` is nobody's parent."""
    tracing.begin("request", parent=parent_of({"traceparent": "nonsense"})).end()

    assert [None] == [span.parent for span in exported.get_finished_spans()]


def test_what_is_worth_keeping(provider: TracerProvider) -> None:
    """Slow requests always, those whose caller keeps its trace, and of the rest the ratio that was set."""
    never, always = _tracing(provider, sample_ratio=0.0, slow=1.0), _tracing(provider, sample_ratio=1.0)
    sampled = parent_of({"traceparent": f"00-{1:032x}-{1:016x}-01"})
    unsampled = parent_of({"traceparent": f"00-{1:032x}-{1:016x}-00"})

    assert (False, True) == (never.wants(None, 0.9), never.wants(None, 1.0))
    assert (False, True) == (never.wants(unsampled, 0.0), never.wants(sampled, 0.0))
    assert always.wants(None, 0.0)


def test_the_ratio_is_about_kept(provider: TracerProvider) -> None:
    """Of ten thousand plain hits about the tenth that was asked for is kept."""
    tracing = _tracing(provider, sample_ratio=0.1)

    assert 700 < sum(tracing.wants(None, 0.0) for _ in range(10_000)) < 1300


def test_spans_in_a_file_are_one_json_per_line(provider: TracerProvider, tmp_path: Path) -> None:
    """Each line parses by itself, whatever an attribute says, and has what is needed to draw the request."""
    path = tmp_path / "spans" / "gateway.jsonl"
    provider.add_span_processor(SimpleSpanProcessor(SpanFile(path)))
    tracing = _tracing(provider)
    request = tracing.begin("request", started_ns=_SECOND, attributes={"text": "two\nlines \u2028 100% {}"})
    tracing.lookups(request, [Lookup(TierName.L2, Outcome.HIT, b"x", 2 * _SECOND, 0.5)])
    request.end(3 * _SECOND)
    provider.shutdown()

    lookup, whole = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert ("cache.l2", "request") == (lookup["name"], whole["name"])
    assert whole["context"]["span_id"] == lookup["parent_id"]
    assert "two\nlines \u2028 100% {}" == whole["attributes"]["text"]
    assert "1970-01-01T00:00:02.000000Z" == lookup["start_time"]
    assert "1970-01-01T00:00:02.500000Z" == lookup["end_time"]


@pytest.fixture
def logs(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What a process set up for `request.param` logs; everything is put back afterwards."""
    root, stream = logging.getLogger(), io.StringIO()
    before = (root.handlers[:], root.level, structlog.get_config())
    set_up_logs(TelemetrySettings.model_validate(getattr(request, "param", {})), stream)
    yield stream
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    structlog.configure(**before[2])


def _lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_logs_are_json_with_trace_ids(logs: io.StringIO, tracing: Tracing) -> None:
    """Our lines and those of libraries have time, level, logger and, within a span, its ids."""
    span = tracing.begin("request")
    with trace.use_span(span):
        structlog.get_logger("ours").info("stored", bytes=7)
        logging.getLogger("theirs").warning("slow by %d s", 3)
    structlog.get_logger("ours").info("outside")

    ours, theirs, outside = _lines(logs)
    assert ("stored", 7, "info", "ours") == (ours["event"], ours["bytes"], ours["level"], ours["logger"])
    assert ("slow by 3 s", "warning", "theirs") == (theirs["event"], theirs["level"], theirs["logger"])
    assert {trace_id_of(span)} == {ours["trace_id"], theirs["trace_id"]}
    assert "trace_id" not in outside
    assert all(str(line["timestamp"]).endswith("Z") for line in (ours, theirs, outside))


def test_exceptions_are_logged_in_one_line(logs: io.StringIO) -> None:
    """A traceback is a field, from our code and from libraries alike."""
    try:
        _ = dict[str, int]()["gone"]
    except KeyError:
        structlog.get_logger("ours").exception("failed")
        logging.getLogger("theirs").exception("failed too")

    assert ["failed", "failed too"] == [line["event"] for line in _lines(logs)]
    assert all("KeyError: 'gone'" in str(line["exception"]) for line in _lines(logs))


@pytest.mark.parametrize("logs", [{"log_level": "warning"}], indirect=True)
def test_lines_below_the_level_are_not_written(logs: io.StringIO) -> None:
    """The level holds for our lines and for those of libraries."""
    for logger in (structlog.get_logger("ours"), logging.getLogger("theirs")):
        logger.info("quiet")
        logger.warning("loud")

    assert ["loud", "loud"] == [line["event"] for line in _lines(logs)]


@pytest.mark.parametrize("logs", [{"log_format": "console"}], indirect=True)
def test_logs_for_people_are_text(logs: io.StringIO) -> None:
    """On a console a line is a line of text."""
    structlog.get_logger("ours").info("stored", bytes=7)

    assert "stored" in logs.getvalue()
    assert "bytes=7" in logs.getvalue()


@pytest.mark.usefixtures("logs")
async def test_a_process_serves_its_metrics_and_keeps_its_spans(tmp_path: Path) -> None:
    """Started, it answers scrapes with what its registry holds; stopped, its port is closed and its spans are kept."""
    port = free_port()
    settings = TelemetrySettings(metrics_port=port, spans_folder=str(tmp_path / "spans"))
    telemetry = await asyncio.to_thread(Telemetry.start, settings, service="gateway", instance="g1")
    Counter("answers", "Answers", registry=telemetry.registry).inc(3)
    telemetry.tracing.begin("request").end()

    scraped = await asyncio.to_thread(_get, f"http://{LOOPBACK}:{port}/metrics")
    await asyncio.to_thread(telemetry.stop)

    assert "answers_total 3.0" in scraped
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(_get, f"http://{LOOPBACK}:{port}/metrics")
    (path,) = (tmp_path / "spans").iterdir()
    (span,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert "gateway-g1.jsonl" == path.name
    assert ("gateway", "g1") == tuple(
        span["resource"]["attributes"][name] for name in ("service.name", "service.instance.id")
    )


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5.0) as answer:  # noqa: S310 - a port of our own
        return str(answer.read(), "utf-8")


@pytest.mark.usefixtures("logs")
def test_what_is_turned_off_costs_nothing(tmp_path: Path) -> None:
    """Without settings there is no port, no file and no exporter; stopping is harmless."""
    telemetry = Telemetry.start(TelemetrySettings(), service="gateway", instance="g1")
    telemetry.tracing.begin("request").end()
    telemetry.stop()

    assert [] == list(tmp_path.iterdir())


class _Collector(TraceServiceServicer):
    """Takes spans as any OpenTelemetry collector does, and keeps them."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        self.requests.append(request)
        return ExportTraceServiceResponse()


@pytest.mark.usefixtures("logs")
def test_spans_reach_a_collector() -> None:
    """One setting sends them by OTLP, with the process they come from; stopping sends what is still buffered."""
    collector, server = _Collector(), grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]  # generated without types
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    server.start()
    settings = TelemetrySettings(otlp_endpoint=f"http://{LOOPBACK}:{port}")
    telemetry = Telemetry.start(settings, service="gateway", instance="g1")
    request = telemetry.tracing.begin("request")
    telemetry.tracing.child(request, "worker").end()
    request.end()
    telemetry.stop()
    server.stop(None).wait()

    [group] = [group for request in collector.requests for group in request.resource_spans]
    resource = {each.key: each.value.string_value for each in group.resource.attributes}
    spans = {span.name: span for scope in group.scope_spans for span in scope.spans}
    assert ("gateway", "g1") == (resource["service.name"], resource["service.instance.id"])
    assert {"request", "worker"} == set(spans)
    assert spans["request"].span_id == spans["worker"].parent_span_id


@pytest.mark.usefixtures("logs")
def test_a_collector_that_is_not_there_does_not_hold_up_the_end() -> None:
    """Spans that cannot be sent are given up when the process stops."""
    settings = TelemetrySettings(otlp_endpoint=f"http://{LOOPBACK}:{free_port()}")
    telemetry = Telemetry.start(settings, service="gateway", instance="g1")
    telemetry.tracing.begin("request").end()
    started = time.perf_counter()
    telemetry.stop()

    assert time.perf_counter() - started < 5.0
