"""Errors on the wire: exception -> google.rpc status on this side, and back to a `Problem` on the caller's.

`ErrorInterceptor` is the outermost interceptor. What leaves a handler is one of: an error of ours, told in full; an
error of a worker, told in our words; anything else, told as a fault of ours in one neutral sentence and logged once.
gRPC left alone would send the text of any exception to the caller and log it nowhere.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from opentelemetry.trace import get_current_span

from cache.telemetry import trace_id_of
from gateway.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidField,
    Overloaded,
    OverloadedReason,
    Refused,
    Unavailable,
)

DOMAIN = "reprise"
_TELLING = 1.0  # seconds that everybody may take to be told that this process ends

log = structlog.get_logger()

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its stubs only

_DETAILS = "grpc-status-details-bin"
_PUSHBACK = "grpc-retry-pushback-ms"
_PUSHBACK_MS = re.compile(r"[0-9]{1,9}")
_FIELD_PATH = re.compile(r"[a-z][a-z0-9_]{0,63}(\.[a-z][a-z0-9_]{0,63})?")


@dataclass(frozen=True, slots=True)
class Problem:
    """What a caller can know of an error. `reason` is empty where the other side sent no details."""

    code: grpc.StatusCode
    reason: str
    field: str | None
    message: str
    retry_after: float | None  # seconds
    trace_id: str = ""  # 32 hexadecimal digits, where a trace was taken


# Out: an exception becomes a status.


def status_of(error: Refused) -> status_pb2.Status:
    """The google.rpc status: ErrorInfo always, BadRequest where a field is at fault, RetryInfo where waiting helps, and
    RequestInfo with the id of the trace while a span is current.
    """
    status = status_pb2.Status(code=error.code.value[0], message=_sentence(error))
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def _sentence(error: Refused) -> str:
    return error.message if error.field is None else f"{error.field}: {error.message}"


def _details(error: Refused) -> list[Message]:
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata),
    ]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=timedelta(seconds=error.retry_after)))
    if trace_id := trace_id_of(get_current_span()):
        details.append(error_details_pb2.RequestInfo(request_id=trace_id))
    return details


def pushback_of(error: Refused) -> tuple[tuple[str, str], ...]:
    """What gRPC libraries go by that retry by themselves (proposal A6): how long to wait; a negative time for never,
    where they could take a code for one that passes.
    """
    if error.retry_after is not None:
        return ((_PUSHBACK, str(round(error.retry_after * 1000))),)
    return ((_PUSHBACK, "-1"),) if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED else ()


def refusal(error: Exception) -> Refused:
    """The error of ours that tells a caller about this exception, and tells no more than that."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # a task group wraps even the only error
    match error:
        case Refused():
            return error
        case grpc.aio.AioRpcError():
            return from_upstream(error)
        case _:
            return Internal()


def from_upstream(error: grpc.RpcError) -> Refused:
    """An error of a worker in our words. Of its own words only the name of a field and a delay are passed on."""
    problem = explain_error(error)
    match problem.code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            field = problem.field if problem.field and _FIELD_PATH.fullmatch(problem.field) else "model"
            return InvalidField(field, "the model cannot take this; change it")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if problem.reason and problem.retry_after is None:
            return Overloaded("DEVICE_MEMORY", retry_after=None)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            reason: OverloadedReason = "TENANT_SHARE" if problem.reason == "TENANT_SHARE" else "QUEUE_FULL"
            return Overloaded(reason, retry_after=problem.retry_after or 1.0)
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable("NO_WORKER", retry_after=problem.retry_after or 1.0)
        case grpc.StatusCode.FAILED_PRECONDITION | grpc.StatusCode.ABORTED:
            return Unavailable("WORKER_CHANGED")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded()
        case grpc.StatusCode.CANCELLED:
            return Cancelled(reason="ABANDONED")
        case _:
            return Internal("WORKER_FAULT")


# Back: a status becomes a problem.


def explain_error(error: grpc.RpcError) -> Problem:
    """Reads the details back from what a stub raised. Never raises: without details, code and text have to do."""
    status = _rich_status(error)
    problem: dict[str, Any] = {"reason": "", "field": None, "retry_after": None, "message": error.details() or ""}
    for detail in status.details:
        problem |= _explained(detail)
    if problem["retry_after"] is None:
        problem["retry_after"] = _pushed_back(error)
    return Problem(code=error.code(), **problem)


def _explained(detail: Any) -> dict[str, Any]:
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    request = error_details_pb2.RequestInfo()
    try:
        if detail.Unpack(info):
            return {"reason": info.reason}
        if detail.Unpack(bad) and bad.field_violations:
            return {"field": bad.field_violations[0].field, "message": bad.field_violations[0].description}
        if detail.Unpack(retry):
            return {"retry_after": retry.retry_delay.ToTimedelta().total_seconds()}
        if detail.Unpack(request):
            return {"trace_id": request.request_id}
    except (DecodeError, OverflowError, ValueError):
        return {}
    return {}


def _pushed_back(error: grpc.RpcError) -> float | None:
    """Seconds after which to come again, as something says that knows no details: a proxy, say."""
    metadata: Any = error.trailing_metadata() or ()
    said = str(dict(metadata).get(_PUSHBACK, ""))
    return int(said) / 1000 if _PUSHBACK_MS.fullmatch(said) else None


def _rich_status(error: grpc.RpcError) -> status_pb2.Status:
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == _DETAILS:
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


# The interceptor.


class Calls:
    """Those under way. gRPC cuts them off when a server stops, without a word; `end` says one before."""

    def __init__(self) -> None:
        self.over = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - gRPC runs each call in one
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    async def end(self) -> None:
        """Tell everybody, and whoever comes from now on, to ask again elsewhere. Returns when they have been told."""
        self.over = True
        for task in (tasks := list(self._tasks)):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_TELLING)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Stands before every handler and every other interceptor, and puts in words whatever comes out of them."""

    def __init__(self) -> None:
        self.calls = Calls()
        # gRPC asks for a method's handler at every call of it.
        self._guarded = lru_cache(maxsize=256)(partial(_guarded, calls=self.calls))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        if self.calls.over:
            return _refusing(Unavailable("GATEWAY_LEAVING"), method)
        try:
            handler = await continuation(handler_call_details)
        except Exception as error:  # noqa: BLE001  # whatever an inner interceptor raises ends this request alone
            return _refusing(error, method)
        return None if handler is None else self._guarded(handler, method)


def _refusing(error: Exception, method: str) -> Handler:
    """A handler that answers with this error, whatever shape of call it meets, and reads nothing of the request."""

    async def refuse(_requests: Any, context: Context) -> None:
        await _abort(context, error, method)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _guarded(handler: Handler, method: str, *, calls: Calls) -> Handler:
    """The same handler, serializers and all, behind a guard. One that is not async is left alone: none of ours is."""
    shapes: dict[tuple[bool, bool], tuple[Any, Any]] = {
        (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
        (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
        (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
        (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
    }
    behaviour, build = shapes[handler.request_streaming, handler.response_streaming]
    if inspect.isasyncgenfunction(behaviour):
        behaviour = _guarded_stream(behaviour, method, calls)
    elif inspect.iscoroutinefunction(behaviour):
        behaviour = _guarded_call(behaviour, method, calls)
    guarded: Handler = build(behaviour, handler.request_deserializer, handler.response_serializer)
    return guarded


def _guarded_call(behaviour: Callable[[Any, Context], Awaitable[Any]], method: str, calls: Calls) -> Any:
    async def call(request: Any, context: Context) -> Any:
        try:
            with calls.under_way():
                return await behaviour(request, context)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError:
            raise _HasLeft from None
        except asyncio.CancelledError as error:
            await _pass_on(error, context, method, calls)
        except Exception as error:  # noqa: BLE001  # this is the place where every other error is translated
            await _abort(context, error, method)

    return call


def _guarded_stream(behaviour: Callable[[Any, Context], AsyncGenerator[Any, None]], method: str, calls: Calls) -> Any:
    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            with calls.under_way():
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError as error:
            await _pass_on(error, context, method, calls)
        except Exception as error:  # noqa: BLE001  # this is the place where every other error is translated
            await _abort(context, error, method)

    return stream


class _HasLeft(asyncio.CancelledError):
    """Who was being written to. gRPC says so with an error, some time before it knows that the call is cancelled."""


async def _pass_on(error: asyncio.CancelledError, context: Context, method: str, calls: Calls) -> NoReturn:
    """Lets the cancellation of this call through, unless it is ours: then its caller is told to ask again.

    A CancelledError while nobody cancelled this call comes from something it awaited that was cancelled. gRPC would
    send no status at all then, and the caller would wait for ever (grpc#29248).
    """
    task = asyncio.current_task()
    if calls.over and task is not None and task.cancelling() == 1 and not (context.cancelled() or context.done()):
        task.uncancel()
        await _abort(context, Unavailable("GATEWAY_LEAVING"), method)
    if task is None or task.cancelling():
        raise error
    await _abort(context, Cancelled(reason="ABANDONED"), method)


async def _abort(context: Context, error: Exception, method: str) -> NoReturn:
    refused = refusal(error)
    if isinstance(refused, Internal):
        log_fault(error, refused, method)
    status = rpc_status.to_status(status_of(refused))
    already = tuple(context.trailing_metadata() or ())  # a cache-status, say, which abort would replace
    await context.abort(status.code, status.details, already + status.trailing_metadata + pushback_of(refused))
    raise AssertionError("abort raises")


def log_fault(error: BaseException, refused: Internal, method: str) -> None:
    """One entry with the way the error took through the code, and without its text, which may quote the request."""
    log.error(
        "request_failed", method=method, reason=refused.reason, error=type(error).__name__, traceback=path_of(error)
    )


def path_of(error: BaseException) -> str:
    """Traceback of an exception and of what caused it: types, files and lines, no messages."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    parts = [_frames_of(link) for link in reversed(chain)]
    return "\nwhich led to\n".join(parts)


def _frames_of(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__
    if isinstance(error, BaseExceptionGroup):
        inner = "\nand\n".join(path_of(part) for part in error.exceptions)
        return f"{frames} of\n{inner}"
    return frames
