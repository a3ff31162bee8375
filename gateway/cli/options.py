"""What commands that call a gateway have in common: where it is, who asks, and how its refusals are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click
import grpc
from rich.console import Console

from gateway.client import Client
from gateway.status import explain_error

_WIDE = 200  # characters
_T = TypeVar("_T")
_Command = TypeVar("_Command", bound=Callable[..., Any])


def gateway_options(command: _Command) -> _Command:
    command = click.option(
        "--address", envvar="REPRISE_ADDRESS", default="127.0.0.1:7400", show_default=True, help="Of the gateway."
    )(command)
    return click.option("--api-key", envvar="REPRISE_API_KEY", default="", help="Where the gateway wants one.")(command)


def console() -> Console:
    """Where commands print. What a program or a file reads is not broken into lines of 80 characters."""
    made = Console(highlight=False, soft_wrap=True)
    if not made.is_terminal:
        made.width = _WIDE
    return made


def call(address: str, api_key: str, use: Callable[[Client], Coroutine[Any, Any, _T]]) -> _T:
    """Run a conversation with the gateway. Raises ClickException that says what to change or when to retry."""

    async def converse() -> _T:
        async with Client(address, api_key=api_key) as client:
            return await use(client)

    try:
        return asyncio.run(converse())
    except grpc.aio.AioRpcError as error:
        raise click.ClickException(_told(error, address)) from None
    except ConnectionError as error:
        raise click.ClickException(str(error)) from None


def _told(error: grpc.aio.AioRpcError, address: str) -> str:
    problem = explain_error(error)
    if problem.code is grpc.StatusCode.UNAVAILABLE and not problem.reason:
        return f"no gateway answers at {address}: start one with `reprise up`, or name another with --address"
    kind = f"{problem.code.name} {problem.reason}".strip()
    field = f"{problem.field}: " if problem.field else ""
    retry = f" (retry in {problem.retry_after:g} s)" if problem.retry_after else ""
    return f"{kind}: {field}{problem.message}{retry}"
