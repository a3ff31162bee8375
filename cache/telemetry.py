"""Telemetry of one process: spans, metrics and logs, each behind one setting.

Whether a trace is kept is decided by our code when the outcome is known (`Tracing.wants`), not by a sampler at the
start: a hit in memory is then one comparison, while misses, errors and slow requests are always there. Lookups carry
their own times, so their spans are written afterwards from the same values that metrics and reports show.

No prompt, name or media ever becomes an attribute: only addresses, counts, sizes, durations and outcomes.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import structlog
from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from prometheus_client import CollectorRegistry, start_http_server

from cache.clock import watch_clock
from cache.outlet import LineFile, watch_outlets
from cache.settings import TelemetrySettings
from cache.tier import Lookup, Outcome

_PROPAGATOR = TraceContextTextMapPropagator()
_EXPORT_SECONDS = 2.0  # for a batch of spans, tries included; it also delays the end of the process
_SPANS_FILE_BYTES = 32 * 1024 * 1024


class Telemetry:
    """Opened once per process by `start`, closed by `stop`."""

    def __init__(self, settings: TelemetrySettings, provider: TracerProvider, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.tracing = Tracing(settings, provider.get_tracer("reprise"))
        self._settings = settings
        self._provider = provider
        self._stop_metrics: Callable[[], None] = lambda: None
        watch_clock(registry)
        watch_outlets(registry)

    @classmethod
    def start(cls, settings: TelemetrySettings, *, service: str, instance: str) -> Telemetry:
        set_up_logs(settings)
        provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create({"service.name": service, "service.instance.id": instance})
        )
        if settings.otlp_endpoint:
            insecure = not settings.otlp_endpoint.startswith("https")
            exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint, insecure=insecure, timeout=_EXPORT_SECONDS)
            provider.add_span_processor(BatchSpanProcessor(exporter))
        if settings.spans_folder:
            file = SpanFile(Path(settings.spans_folder) / f"{service}-{instance}.jsonl")
            provider.add_span_processor(BatchSpanProcessor(file, schedule_delay_millis=200))
        telemetry = cls(settings, provider, CollectorRegistry())
        telemetry.serve_metrics()
        return telemetry

    def serve_metrics(self) -> None:
        if not self._settings.metrics_port:
            return
        server, thread = start_http_server(
            self._settings.metrics_port, self._settings.metrics_host, registry=self.registry
        )

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop_metrics = stop

    def stop(self) -> None:
        """Send what is still buffered, and stop. Blocks for a few seconds at most."""
        self._stop_metrics()
        self._provider.shutdown()


class Tracing:
    """Writes spans, now or afterwards."""

    def __init__(self, settings: TelemetrySettings, tracer: trace.Tracer) -> None:
        self.tracer = tracer
        self._ratio = settings.sample_ratio
        self._slow = settings.slow

    def wants(self, parent: Context | None, seconds: float) -> bool:
        """Whether a request that was a plain hit should be kept: sampled by its caller or by ratio, or slow."""
        if seconds >= self._slow:
            return True
        if parent is not None and trace.get_current_span(parent).get_span_context().trace_flags.sampled:
            return True
        return random.random() < self._ratio  # noqa: S311 - sampling needs no secrecy

    def begin(
        self,
        name: str,
        *,
        parent: Context | None = None,
        started_ns: int | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
    ) -> Span:
        """A span that the caller ends, below `parent` or nothing. `started_ns` may lie in the past."""
        context = Context() if parent is None else parent  # not what happens to be current
        return self.tracer.start_span(name, context=context, start_time=started_ns, attributes=attributes, kind=kind)

    def child(self, parent: Span, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> Span:
        """A span of another part of the same request."""
        return self.begin(name, parent=trace.set_span_in_context(parent), attributes=attributes)

    def lookups(self, parent: Span, lookups: Sequence[Lookup]) -> None:
        """One span for every tier that was consulted."""
        context = trace.set_span_in_context(parent)
        for lookup in lookups:
            attributes: dict[str, AttributeValue] = {
                "reprise.cache.tier": lookup.tier.value,
                "reprise.cache.result": lookup.outcome.value,
                "reprise.cache.bytes": len(lookup.value or b""),
            }
            if lookup.breaker:
                attributes["reprise.cache.breaker"] = lookup.breaker
            span = self.begin(
                f"cache.{lookup.tier.value}",
                parent=context,
                started_ns=lookup.started_ns,
                attributes=attributes,
                kind=trace.SpanKind.INTERNAL if lookup.tier.value == "l1" else trace.SpanKind.CLIENT,
            )
            if lookup.outcome in (Outcome.ERROR, Outcome.TIMEOUT, Outcome.CORRUPT):
                span.set_status(StatusCode.ERROR)
            span.end(lookup.started_ns + int(lookup.seconds * 1e9))


def bind(span: Span) -> None:
    """Make this the current span of this task, to its end: whatever the task logs or refuses then names the trace.

    It is for tasks that live as long as one request. Unlike a `with` block it also covers what is said of an error
    after the code that raised it has been left, and it may stand in an asynchronous generator.
    """
    attach(trace.set_span_in_context(span))


def parent_of(metadata: Mapping[str, str]) -> Context | None:
    """The caller's trace context out of request metadata (W3C `traceparent`), if it sent one."""
    if "traceparent" not in metadata:
        return None
    return _PROPAGATOR.extract(dict(metadata))


def as_metadata(span: Span) -> tuple[tuple[str, str], ...]:
    """Request metadata that makes the callee's spans children of this one."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return tuple(carrier.items())


def trace_id_of(span: Span | None) -> str:
    """32 hexadecimal digits, or nothing where no trace was taken."""
    context = span.get_span_context() if span is not None else trace.INVALID_SPAN_CONTEXT
    return f"{context.trace_id:032x}" if context.is_valid else ""


class SpanFile(SpanExporter):
    """Spans as JSON lines in a file that is rotated once: enough to draw recent requests without a collector."""

    def __init__(self, path: Path) -> None:
        self._handler = LineFile(path, most=_SPANS_FILE_BYTES, of="spans")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            line = span.to_json(indent=None)
            self._handler.emit(logging.LogRecord("spans", logging.INFO, "", 0, line, None, None))
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._handler.close()


def set_up_logs(settings: TelemetrySettings, stream: TextIO | None = None) -> None:
    """Structured logs with trace ids, from our code and from libraries alike, to standard error by default."""
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _add_trace,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def _add_trace(logger: Any, name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"], event["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return event
