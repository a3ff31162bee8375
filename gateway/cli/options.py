"""What commands that call a gateway have in common: where it is, who asks, and how its refusals are told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc
from rich.console import Console

from cache.settings import SettingsError, load
from gateway.client import Client
from gateway.settings import OTHERS, GatewaySettings
from gateway.status import explain_error

_WIDE = 200  # characters
_INTERRUPTED = 130  # exit code of a command that was ended by Ctrl-C
_GIVEN_AS = {"image": "picture", "format": "container"}  # field -> parameter of a command
_T = TypeVar("_T")
_Command = TypeVar("_Command", bound=Callable[..., Any])


def gateway_options(command: _Command) -> _Command:
    command = click.option(
        "--address",
        envvar="REPRISE_ADDRESS",
        default="127.0.0.1:7400",
        show_default=True,
        help="Of the gateway; of several, with commas, the first that answers.",
    )(command)
    return click.option("--api-key", envvar="REPRISE_API_KEY", default="", help="Where the gateway wants one.")(command)


config_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--config",
    envvar="REPRISE_CONFIG",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The deployment's YAML file; the environment overrides it. [env: REPRISE_CONFIG]",
)


def read_settings(config: Path) -> GatewaySettings:
    """What the file and the environment say. Raises ClickException."""
    try:
        return load(GatewaySettings, config, others=OTHERS)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run work to its end, or until Ctrl-C."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(_INTERRUPTED) from None


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
        return run(converse())
    except grpc.aio.AioRpcError as error:
        raise click.ClickException(_told(error, address)) from None
    except ConnectionError as error:
        raise click.ClickException(str(error)) from None


def _told(error: grpc.aio.AioRpcError, address: str) -> str:
    problem = explain_error(error)
    if problem.code is grpc.StatusCode.UNAVAILABLE and not problem.reason:
        return f"no gateway answers at {address}: start one with `reprise up`, or name another with --address"
    kind = f"{problem.code.name} {problem.reason}".strip()
    field = f"{typed(problem.field)}: " if problem.field else ""
    retry = f" (retry in {problem.retry_after:g} s)" if problem.retry_after else ""
    trace = f" (trace {problem.trace_id})" if problem.code is grpc.StatusCode.INTERNAL and problem.trace_id else ""
    return f"{kind}: {field}{problem.message}{retry}{trace}"


def typed(field: str) -> str:
    """A field of the request as the user of the current command gave it: `--frames`, `PICTURE`, `--extra eta`."""
    first, _, rest = field.removeprefix("cache_policy.").partition(".")
    for parameter in click.get_current_context().command.params:
        if parameter.name == _GIVEN_AS.get(first, first):
            option = isinstance(parameter, click.Option)
            return f"{parameter.opts[0] if option else parameter.human_readable_name} {rest}".rstrip()
    return field


def refuse_unwritable(file: Path) -> None:
    """So that nothing is generated for a file that cannot be written. Raises ClickException."""
    folder = file.absolute().parent
    if not folder.is_dir():
        raise click.ClickException(f"{file}: cannot be written: there is no folder {folder}")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise click.ClickException(f"{file}: cannot be written: no permission")


def write(file: Path, data: bytes) -> None:
    """Raises ClickException."""
    try:
        file.write_bytes(data)
    except OSError as error:
        raise click.ClickException(f"{file}: cannot be written: {error.strerror}") from None
