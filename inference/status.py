"""Errors on the wire: what leaves a handler is one of ours, told in full, or a fault, told in one neutral sentence.

gRPC left alone would send the text of any exception to the caller and log it nowhere.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from datetime import timedelta
from inspect import iscoroutinefunction
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from inference.errors import Abandoned, Fault, Refused

DOMAIN = "reprise"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_log = structlog.get_logger(__name__)


def status_of(error: Refused) -> status_pb2.Status:
    """The google.rpc status: ErrorInfo always, BadRequest where a field is at fault, RetryInfo where waiting helps."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    message = error.message
    if error.field is not None:
        message = f"{error.field}: {error.message}"
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=timedelta(seconds=error.retry_after)))
    status = status_pb2.Status(code=error.code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def report_fault(error: BaseException, **where: str) -> None:
    """One log entry with the way an error took through the code, and without its text, which may quote the request."""
    _log.error("fault", error=type(error).__name__, traceback=_path_of(error), **where)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """The outermost interceptor. Guards handlers that are coroutine functions, which all of ours are; reflection's is
    a generator.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None or (handler.request_streaming and not iscoroutinefunction(handler.stream_stream)):
            return handler
        method = handler_call_details.method
        if handler.request_streaming:
            make, behaviour = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        elif handler.response_streaming:
            make, behaviour = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        else:
            make, behaviour = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        guarded: Handler = make(_guarded(behaviour, method), handler.request_deserializer, handler.response_serializer)
        return guarded


def _guarded(behaviour: Any, method: str) -> Any:
    async def handle(request: Any, context: Context) -> Any:
        try:
            return await behaviour(request, context)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError:
            # Who was being written to has left; gRPC says so some time before it knows that the call is cancelled.
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled this call, so something it awaited was cancelled. gRPC would send no status at all then,
            # and the caller would wait for ever (grpc#29248).
            await _abort(context, Abandoned())
        except Refused as error:
            await _abort(context, error)
        except Exception as error:  # noqa: BLE001  # this is the place where every other error is translated
            report_fault(error, method=method)
            await _abort(context, Fault())

    return handle


async def _abort(context: Context, error: Refused) -> NoReturn:
    status = rpc_status.to_status(status_of(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort raises")


def _path_of(error: BaseException) -> str:
    """Traceback of an exception and of what caused it: types, files and lines, no messages."""
    frames = "".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return frames if cause is None else f"{_path_of(cause)}\nwhich led to\n{frames}"
