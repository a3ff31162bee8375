"""Errors through a real server to a real client: told in full if they are ours, in one neutral sentence if not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from anyio import wait_all_tasks_blocked
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from structlog.testing import capture_logs

from cache.telemetry import bind, trace_id_of
from gateway.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidField,
    NotFound,
    Overloaded,
    Refused,
    TooLarge,
    Unavailable,
)
from gateway.status import ErrorInterceptor, Problem, explain_error, from_upstream, refusal, status_of
from tests.gateway.test_errors import ONE_OF_EACH

CANARY = "a-prompt-nobody-may-read"
NEUTRAL = Internal().message


@asynccontextmanager
async def serving(*interceptors: grpc.aio.ServerInterceptor, options: Any = (), **handlers: Any) -> AsyncIterator[Any]:
    """A channel to a real server with these handlers as methods of /test.Test, behind these interceptors."""
    server = grpc.aio.server(interceptors=list(interceptors), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield channel
    finally:
        await server.stop(None)


def as_digits(number: int) -> bytes:
    return str(number).encode()


async def problem_of(call: Any) -> Problem:
    """What a client learns from a call of either kind that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (_end_of(call) if hasattr(call, "__aiter__") else call)
    return explain_error(caught.value)


async def _end_of(stream: Any) -> None:
    async for _ in stream:
        pass


def raising(error: BaseException) -> dict[str, Any]:
    """Handlers of every shape that raise this; those that stream have sent something before."""

    async def call(_request: Any, _context: Any) -> bytes:
        raise error

    async def stream(_request: Any, _context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        raise error

    async def write(_request: Any, context: Any) -> None:
        await context.write(b"first")
        raise error

    return {
        "Call": grpc.unary_unary_rpc_method_handler(call),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
        "Write": grpc.unary_stream_rpc_method_handler(write),
        "Collect": grpc.stream_unary_rpc_method_handler(call),
        "Chat": grpc.stream_stream_rpc_method_handler(stream),
    }


def calls_of_every_shape(channel: Any) -> list[Any]:
    return [
        channel.unary_unary("/test.Test/Call")(b"", timeout=10),
        channel.unary_stream("/test.Test/Stream")(b"", timeout=10),
        channel.unary_stream("/test.Test/Write")(b"", timeout=10),
        channel.stream_unary("/test.Test/Collect")(iter([b""]), timeout=10),
        channel.stream_stream("/test.Test/Chat")(iter([b""]), timeout=10),
    ]


def expected_problem(error: Refused) -> Problem:
    return Problem(error.code, error.reason, error.field, error.message, error.retry_after)


# Statuses


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
async def test_every_error_of_ours_arrives_in_full(error: Refused) -> None:
    """Code, reason, field, message and delay of every error reach the caller, whatever the shape of the call."""
    async with serving(ErrorInterceptor(), **raising(error)) as channel:
        for call in calls_of_every_shape(channel):
            assert expected_problem(error) == await problem_of(call)


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_details_of_every_error(error: Refused) -> None:
    """ErrorInfo in our domain is always there; BadRequest where there is a field, RetryInfo where there is a delay."""
    kinds = [detail.type_url.rpartition(".")[2] for detail in status_of(error).details]
    expected = ["ErrorInfo"]
    expected += ["BadRequest"] if error.field else []
    expected += ["RetryInfo"] if error.retry_after else []

    info = error_details_pb2.ErrorInfo()
    status_of(error).details[0].Unpack(info)

    assert expected == kinds
    assert ("reprise", error.reason) == (info.domain, info.reason)


def test_message_of_a_bad_field_names_the_field() -> None:
    """A client that reads no details still learns which field it is about."""
    assert status_of(InvalidField("extra.eta", "must be a finite number")).message == (
        "extra.eta: must be a finite number"
    )


def test_metadata_travels_in_the_error_info() -> None:
    """What an error says for programs beside its reason is in ErrorInfo."""
    info = error_details_pb2.ErrorInfo()
    status_of(Overloaded(metadata={"queued": "12"})).details[0].Unpack(info)

    assert {"queued": "12"} == dict(info.metadata)


_RETRIES = """{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 3, "initialBackoff": "%s",
"maxBackoff": "60s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]}}]}"""


@pytest.mark.parametrize(
    ("error", "backoff", "asked", "pushback"),
    [
        (Overloaded("QUEUE_FULL", retry_after=0.05), "60s", 3, "50"),
        (Unavailable("NO_WORKER", retry_after=0.05), "60s", 3, "50"),
        (Overloaded("DEVICE_MEMORY", retry_after=None), "0.01s", 1, "-1"),
        (TooLarge("image", "must be smaller"), "0.01s", 1, "-1"),
        (InvalidField("prompt", "must be given"), "0.01s", 1, None),
    ],
    ids=lambda value: getattr(value, "reason", None),
)
async def test_who_retries_by_grpc_alone_is_told_when(
    error: Refused, backoff: str, asked: int, pushback: str | None
) -> None:
    """A client with nothing but gRPC's own policy waits as long as it is told, not as long as it would; or never asks
    again, where waiting does not help.
    """
    calls: list[bytes] = []

    async def refuse(request: bytes, _context: Any) -> bytes:
        calls.append(request)
        raise error

    handlers: dict[str, Any] = {"Call": grpc.unary_unary_rpc_method_handler(refuse)}
    async with serving(
        ErrorInterceptor(), options=[("grpc.service_config", _RETRIES % backoff)], **handlers
    ) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test.Test/Call")(b"", timeout=10)

    assert (error.code, asked) == (caught.value.code(), len(calls))
    assert pushback == dict(caught.value.trailing_metadata() or ()).get("grpc-retry-pushback-ms")


async def test_an_error_names_its_trace() -> None:
    """While the call has a span, its caller gets the trace's id; else there is none."""
    span = TracerProvider().get_tracer("test").start_span("call")

    async def traced(_request: Any, _context: Any) -> AsyncIterator[bytes]:
        bind(span)
        yield b"first"
        raise ValueError(CANARY)

    handlers: dict[str, Any] = {"Stream": grpc.unary_stream_rpc_method_handler(traced)}
    async with serving(ErrorInterceptor(), **handlers) as channel:
        problem = await problem_of(channel.unary_stream("/test.Test/Stream")(b""))

    assert (grpc.StatusCode.INTERNAL, trace_id_of(span)) == (problem.code, problem.trace_id)
    assert [] == [each for each in status_of(Internal()).details if each.type_url.endswith("RequestInfo")]


# Faults


@pytest.mark.parametrize(
    "error", [ValueError(CANARY), KeyError(CANARY), ExceptionGroup(CANARY, [ValueError(CANARY), OSError()])]
)
async def test_any_other_exception_is_a_fault_of_ours(error: Exception) -> None:
    """The caller of a broken handler reads INTERNAL and one neutral sentence."""
    async with serving(ErrorInterceptor(), **raising(error)) as channel:
        for call in calls_of_every_shape(channel):
            assert Problem(grpc.StatusCode.INTERNAL, "INTERNAL", None, NEUTRAL, None) == await problem_of(call)


async def test_a_fault_is_logged_once_without_its_text() -> None:
    """The log names the method and the way through the code, and does not quote what an exception quoted."""

    async def call(_request: Any, _context: Any) -> bytes:
        try:
            return {b"".decode(): b""}[CANARY]
        except KeyError as error:
            raise ValueError(CANARY) from error

    with capture_logs() as entries:
        async with serving(ErrorInterceptor(), Call=grpc.unary_unary_rpc_method_handler(call)) as channel:
            await problem_of(channel.unary_unary("/test.Test/Call")(b""))

    (entry,) = entries
    assert ("request_failed", "error", "/test.Test/Call", "ValueError") == (
        entry["event"],
        entry["log_level"],
        entry["method"],
        entry["error"],
    )
    assert entry["traceback"].index("KeyError") < entry["traceback"].index("which led to")
    assert "test_status.py" in entry["traceback"]
    assert CANARY not in str(entries)


async def test_a_caller_that_leaves_while_it_is_written_to_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    """One who reads the first message and goes, while the next one waits to be read, is no entry in any log."""

    async def write(_request: Any, context: Any) -> None:
        while True:
            await context.write(bytes(1024 * 1024))

    handler: Any = grpc.unary_stream_rpc_method_handler(write)
    with capture_logs() as entries:
        async with serving(ErrorInterceptor(), Stream=handler) as channel:
            for _ in range(10):
                calls = [channel.unary_stream("/test.Test/Stream")(b"") for _ in range(5)]
                await asyncio.gather(*(call.read() for call in calls))
                await wait_all_tasks_blocked()
                for call in calls:
                    call.cancel()
                await wait_all_tasks_blocked()

    assert [] == entries
    assert [] == [record.message for record in caplog.records]


async def test_parts_of_a_failed_task_group_are_in_the_log() -> None:
    """A fault with several parts is one entry with the way of each of them."""

    async def fail(error: Exception) -> None:
        raise error

    async def call(_request: Any, _context: Any) -> bytes:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(ZeroDivisionError()))
            group.create_task(fail(LookupError()))
        return b""

    with capture_logs() as entries:
        async with serving(ErrorInterceptor(), Call=grpc.unary_unary_rpc_method_handler(call)) as channel:
            await problem_of(channel.unary_unary("/test.Test/Call")(b""))

    (entry,) = entries
    assert "ZeroDivisionError" in entry["traceback"]
    assert "LookupError" in entry["traceback"]


async def test_errors_of_ours_are_no_log_entries() -> None:
    """What a caller did wrong is the caller's to read, and nothing for the log."""
    with capture_logs() as entries:
        async with serving(ErrorInterceptor(), **raising(NotFound("NOT_CACHED"))) as channel:
            await problem_of(channel.unary_unary("/test.Test/Call")(b""))

    assert [] == entries


def test_a_task_group_does_not_hide_an_error_of_ours() -> None:
    """The only error in groups of groups is the error."""
    error = NotFound("NOT_CACHED")

    assert refusal(ExceptionGroup("", [ExceptionGroup("", [error])])) is error


async def test_an_interceptor_that_raises_is_told_like_a_handler() -> None:
    """Errors of inner interceptors reach callers of every shape of method in the same form."""

    class Refusing(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
            raise Unavailable("STORE_UNREACHABLE", retry_after=2.5)

    async with serving(ErrorInterceptor(), Refusing(), **raising(ValueError())) as channel:
        for call in calls_of_every_shape(channel):
            assert expected_problem(Unavailable("STORE_UNREACHABLE", retry_after=2.5)) == await problem_of(call)


# What passes


async def test_answers_pass_through_the_handlers_own_serializers() -> None:
    """What a handler reads and writes is untouched, with whatever serializers it brought."""

    async def call(request: int, _context: Any) -> int:
        return request + 1

    async def stream(request: int, _context: Any) -> AsyncIterator[int]:
        for number in range(request):
            yield number

    handlers = {
        "Call": grpc.unary_unary_rpc_method_handler(call, int, as_digits),
        "Stream": grpc.unary_stream_rpc_method_handler(stream, int, as_digits),
    }
    async with serving(ErrorInterceptor(), **handlers) as channel:
        assert b"42" == await channel.unary_unary("/test.Test/Call")(b"41")
        assert [b"0", b"1", b"2"] == [part async for part in channel.unary_stream("/test.Test/Stream")(b"3")]


async def test_unknown_methods_stay_unknown() -> None:
    """A method that nobody handles is UNIMPLEMENTED, as without the interceptor."""
    async with serving(ErrorInterceptor()) as channel:
        problem = await problem_of(channel.unary_unary("/test.Test/Nothing")(b""))

    assert grpc.StatusCode.UNIMPLEMENTED == problem.code


async def test_an_abort_of_the_handler_passes() -> None:
    """A handler that aborts by itself has said everything."""

    async def call(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.DATA_LOSS, "as it wished")

    with capture_logs() as entries:
        async with serving(ErrorInterceptor(), Call=grpc.unary_unary_rpc_method_handler(call)) as channel:
            problem = await problem_of(channel.unary_unary("/test.Test/Call")(b""))

    assert Problem(grpc.StatusCode.DATA_LOSS, "", None, "as it wished", None) == problem
    assert [] == entries


async def test_trailers_set_before_an_error_are_kept() -> None:
    """The status joins what a handler has put into its trailers already."""

    async def call(_request: Any, context: Any) -> None:
        context.set_trailing_metadata((("cache-status", "reprise; fwd=miss"),))
        raise NotFound("NOT_CACHED")

    async with serving(ErrorInterceptor(), Call=grpc.unary_unary_rpc_method_handler(call)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test.Test/Call")(b"")

    assert "reprise; fwd=miss" == dict(caught.value.trailing_metadata() or ())["cache-status"]
    assert "NOT_CACHED" == explain_error(caught.value).reason


@pytest.mark.parametrize("method", ["Call", "Stream"])
async def test_cancelling_a_call_cancels_its_handler(method: str) -> None:
    """A caller that leaves is seen by the handler as its cancellation; nothing is logged and no status made of it."""
    begun, seen = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.set()
            raise

    async def call(_request: Any, _context: Any) -> bytes:
        await wait()
        return b""

    async def stream(_request: Any, _context: Any) -> AsyncIterator[bytes]:
        await wait()
        yield b""

    handlers: dict[str, Any] = {
        "Call": grpc.unary_unary_rpc_method_handler(call),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    with capture_logs() as entries:
        async with serving(ErrorInterceptor(), **handlers) as channel:
            kind: Any = channel.unary_unary if method == "Call" else channel.unary_stream
            running = kind(f"/test.Test/{method}")(b"")
            await asyncio.wait_for(begun.wait(), 10)
            running.cancel()
            await asyncio.wait_for(seen.wait(), 10)

    assert [] == entries


async def test_leaving_a_stream_between_two_messages_closes_the_handler() -> None:
    """A handler whose caller leaves while it is not running is closed, and so can tidy up."""
    closed = asyncio.Event()

    async def stream(_request: Any, _context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(65_536)
        finally:
            closed.set()

    async with serving(ErrorInterceptor(), Stream=grpc.unary_stream_rpc_method_handler(stream)) as channel:
        running = channel.unary_stream("/test.Test/Stream")(b"")
        await running.read()
        running.cancel()
        await asyncio.wait_for(closed.wait(), 10)


@pytest.mark.parametrize("shape", ["Call", "Stream"])
async def test_a_cancellation_that_is_not_the_callers_ends_the_call(shape: str) -> None:
    """A handler that awaits something cancelled by others answers CANCELLED; left to gRPC its caller would hang."""
    async with serving(ErrorInterceptor(), **raising(asyncio.CancelledError())) as channel:
        kind: Any = channel.unary_unary if shape == "Call" else channel.unary_stream
        problem = await problem_of(kind(f"/test.Test/{shape}")(b"", timeout=10))

    assert expected_problem(Cancelled(reason="ABANDONED")) == problem


async def test_health_service_works_behind_it() -> None:
    """The standard service, unary and streaming by writing, answers as ever, errors included."""
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())

        assert health_pb2.HealthCheckResponse.SERVING == (await stub.Check(health_pb2.HealthCheckRequest())).status
        assert health_pb2.HealthCheckResponse.SERVING == (await watch.read()).status
        unknown = await problem_of(stub.Check(health_pb2.HealthCheckRequest(service="nothing")))
        assert grpc.StatusCode.NOT_FOUND == unknown.code
        watch.cancel()
    await server.stop(None)


# Workers' errors


def upstream(code: grpc.StatusCode, *details: Any, text: str = CANARY) -> grpc.aio.AioRpcError:
    """What a stub raises for a status with these details."""
    status = status_pb2.Status(code=code.value[0], message=text)
    for detail in details:
        status.details.add().Pack(detail)
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers if details else grpc.aio.Metadata(), text)


INFO = error_details_pb2.ErrorInfo(reason="WHATEVER", domain="reprise")
SOON = error_details_pb2.RetryInfo()
SOON.retry_delay.FromMilliseconds(250)


def bad(field: str) -> error_details_pb2.BadRequest:
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=CANARY)
    return error_details_pb2.BadRequest(field_violations=[violation])


CODE = grpc.StatusCode
UPSTREAM: list[tuple[grpc.aio.AioRpcError, Refused]] = [
    (
        upstream(CODE.INVALID_ARGUMENT, INFO, bad("width")),
        InvalidField("width", "the model cannot take this; change it"),
    ),
    (
        upstream(CODE.INVALID_ARGUMENT, bad("extra.eta")),
        InvalidField("extra.eta", "the model cannot take this; change it"),
    ),
    (upstream(CODE.INVALID_ARGUMENT, bad(CANARY)), InvalidField("model", "the model cannot take this; change it")),
    (upstream(CODE.RESOURCE_EXHAUSTED, INFO, SOON), Overloaded("QUEUE_FULL", retry_after=0.25)),
    (upstream(CODE.RESOURCE_EXHAUSTED), Overloaded("QUEUE_FULL", retry_after=1.0)),
    (upstream(CODE.RESOURCE_EXHAUSTED, INFO), Overloaded("DEVICE_MEMORY", retry_after=None)),
    (upstream(CODE.UNAVAILABLE), Unavailable("NO_WORKER")),
    (upstream(CODE.UNAVAILABLE, INFO, SOON), Unavailable("NO_WORKER", retry_after=0.25)),
    (upstream(CODE.FAILED_PRECONDITION), Unavailable("WORKER_CHANGED")),
    (upstream(CODE.ABORTED), Unavailable("WORKER_CHANGED")),
    (upstream(CODE.DEADLINE_EXCEEDED), DeadlineExceeded()),
    (upstream(CODE.CANCELLED), Cancelled(reason="ABANDONED")),
    *[
        (upstream(code), Internal("WORKER_FAULT"))
        for code in (
            CODE.UNKNOWN,
            CODE.INTERNAL,
            CODE.UNIMPLEMENTED,
            CODE.NOT_FOUND,
            CODE.ALREADY_EXISTS,
            CODE.PERMISSION_DENIED,
            CODE.UNAUTHENTICATED,
            CODE.OUT_OF_RANGE,
            CODE.DATA_LOSS,
        )
    ],
]


@pytest.mark.parametrize(("error", "expected"), UPSTREAM, ids=map(str, range(len(UPSTREAM))))
def test_a_workers_error_is_told_in_our_words(error: grpc.aio.AioRpcError, expected: Refused) -> None:
    """Every code of a worker has an error of ours, which tells nothing of its text."""
    actual = from_upstream(error)

    assert (type(expected), expected_problem(expected)) == (type(actual), expected_problem(actual))
    assert CANARY not in status_of(actual).SerializeToString().decode("latin-1")


def test_every_code_of_a_worker_is_known() -> None:
    """No status code there is was forgotten in the list above."""
    assert set(CODE) - {CODE.OK} == {error.code() for error, _ in UPSTREAM}


async def test_a_workers_error_that_a_handler_lets_out_is_forwarded() -> None:
    """A handler may leave the errors of the stubs it calls to the interceptor."""
    async with (
        serving(ErrorInterceptor(), **raising(Overloaded(retry_after=7.0))) as worker,
        serving(
            ErrorInterceptor(),
            Stream=grpc.unary_stream_rpc_method_handler(_forwarding(worker)),
        ) as gateway,
    ):
        problem = await problem_of(gateway.unary_stream("/test.Test/Stream")(b""))

    assert expected_problem(Overloaded(retry_after=7.0)) == problem


def _forwarding(worker: Any) -> Any:
    async def stream(request: bytes, _context: Any) -> AsyncIterator[bytes]:
        async for message in worker.unary_stream("/test.Test/Stream")(request):
            yield message

    return stream


# Reading back


async def test_a_server_that_is_not_there_is_explained_without_details() -> None:
    """Without a status from the other side, the code and the text have to do."""
    channel: Any = grpc.aio.insecure_channel("127.0.0.1:1")
    async with channel:
        problem = await problem_of(channel.unary_unary("/test.Test/Call")(b"", timeout=10))

    assert (grpc.StatusCode.UNAVAILABLE, "", None, None) == (
        problem.code,
        problem.reason,
        problem.field,
        problem.retry_after,
    )


@pytest.mark.parametrize(
    ("pushback", "seconds"),
    [("1500", 1.5), ("0", 0.0), ("-1", None), ("soon", None), ("", None), ("9" * 400, None), ("\u0663", None)],
)
def test_a_pushback_without_details_is_a_time_to_come_again(pushback: str, seconds: float | None) -> None:
    """As a proxy may send it, which knows nothing of ours; what is no such time is none."""
    trailers = grpc.aio.Metadata(("grpc-retry-pushback-ms", pushback))
    error = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailers, "text")

    assert Problem(grpc.StatusCode.RESOURCE_EXHAUSTED, "", None, "text", seconds) == explain_error(error)


@pytest.mark.parametrize("details", [b"\xff\xff", b"", b"\x1a\x02\x0a"])
def test_details_that_cannot_be_read_are_none(details: bytes) -> None:
    """A damaged status never turns one error into another."""
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", details))
    error = grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailers, "text")

    assert Problem(grpc.StatusCode.ABORTED, "", None, "text", None) == explain_error(error)


def test_a_detail_that_cannot_be_read_is_left_out() -> None:
    """One damaged detail does not hide the others."""
    status = status_pb2.Status(code=3, message="text")
    status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff\xff")
    status.details.add().Pack(INFO)
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    error = grpc.aio.AioRpcError(grpc.StatusCode.INVALID_ARGUMENT, grpc.aio.Metadata(), trailers, "text")

    assert Problem(grpc.StatusCode.INVALID_ARGUMENT, "WHATEVER", None, "text", None) == explain_error(error)
