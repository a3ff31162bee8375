"""What commands that call a gateway have in common: where it is, who asks, and how its refusals are told."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import click
import grpc
from rich.console import Console

from cache.settings import SettingsError, load
from gateway.client import Client
from gateway.settings import OTHERS, GatewaySettings
from gateway.status import explain_error

USUAL_ADDRESS = "127.0.0.1:7400"  # of the gateway that `reprise up` starts
_WIDE = 200  # characters
_INTERRUPTED = 130  # exit code of a command that was ended by Ctrl-C
_TOO_LATE = "the answer was not there in time: allow more, or ask again, for what was begun may go on"
_GIVEN_AS = {  # field -> parameters of a command that may have given it
    "image": ("picture",),
    "format": ("container", "out"),
    "text": ("text", "text_file"),
    "address": ("pinned",),
}
STANDARD_OUTPUT = Path("-")
_T = TypeVar("_T")
_Command = TypeVar("_Command", bound=Callable[..., Any])


class _NamedFile(click.Path):
    """What is written beside what a command tells on standard output."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if (file := super().convert(value, param, ctx)) == STANDARD_OUTPUT:
            self.fail("- is standard output, which is for other things here: name a file", param, ctx)
        return file


# `-` is standard output; what is told goes to standard error then.
out_file = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
named_file = _NamedFile(dir_okay=False, path_type=Path)


def address_option(default: str) -> Callable[[Any], Any]:
    return click.option(
        "--address",
        envvar="REPRISE_ADDRESS",
        default=default,
        show_default=default or "none",
        help="host:port of a gateway, or of several, with commas: the first that is there answers; where counts are "
        "added up, or each is looked at, it is all of them. [env: REPRISE_ADDRESS]",
    )


def addresses_in(address: str) -> list[str]:
    """Each gateway by itself, for commands that want something of all."""
    return [each.strip() for each in address.split(",") if each.strip()]


def gateway_options(command: _Command) -> _Command:
    command = address_option(USUAL_ADDRESS)(key_option(command))
    return command


key_option: Callable[[Any], Any] = click.option(
    "--api-key", envvar="REPRISE_API_KEY", default="", help="Where gateways want one. [env: REPRISE_API_KEY]"
)

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


def console(out: Path | None = None) -> Console:
    """Where commands print: beside the file they write. What a program or a file reads is not broken into lines of 80
    characters.
    """
    made = Console(highlight=False, soft_wrap=True, stderr=out == STANDARD_OUTPUT)
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
    message = problem.message
    field = f"{typed(problem.field)}: " if problem.field else ""
    if problem.code is grpc.StatusCode.DEADLINE_EXCEEDED and (deadline := typed("deadline")).startswith("--"):
        field = f"{deadline}: "
        message = message if problem.reason == "DEADLINE_TOO_SHORT" else _TOO_LATE
    retry = f" (retry in {problem.retry_after:g} s)" if problem.retry_after else ""
    trace = f" (trace {problem.trace_id})" if problem.code is grpc.StatusCode.INTERNAL and problem.trace_id else ""
    return f"{kind}: {field}{message}{retry}{trace}"


def typed(field: str) -> str:
    """A field of the request as the user of the current command gave it: `--frames`, `PICTURE`, `--extra eta`."""
    first, _, rest = field.removeprefix("cache_policy.").partition(".")
    context = click.get_current_context()
    word = word_for(first, context.command, context.params)
    return f"{word} {rest}".rstrip() if word else field


def word_for(field: str, command: click.Command, given: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The option or argument of a command for a field of its request, of several the one that was given; else empty."""
    by_name = {parameter.name: parameter for parameter in command.params}
    there = [name for name in _GIVEN_AS.get(field, (field,)) if name in by_name]
    said = [name for name in there if given.get(name) is not None]
    for name in (said or there)[:1]:
        parameter = by_name[name]
        return parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
    return ""


def refuse_unwritable(file: Path) -> None:
    """So that nothing is generated for a file that cannot be written. Raises ClickException."""
    if file == STANDARD_OUTPUT:
        if _is_a_terminal():
            raise click.ClickException("-: standard output is a terminal, which can show no such file: name a file")
        return
    folder = file.absolute().parent
    if not folder.is_dir():
        raise click.ClickException(f"{file}: cannot be written: there is no folder {folder}")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise click.ClickException(f"{file}: cannot be written: no permission")


def _is_a_terminal() -> bool:
    return sys.stdout.isatty()


def write(file: Path, data: bytes) -> None:
    """Raises ClickException."""
    try:
        with click.open_file(str(file), "wb") as stream:
            stream.write(data)
    except OSError as error:
        raise click.ClickException(f"{file}: cannot be written: {error.strerror}") from None
