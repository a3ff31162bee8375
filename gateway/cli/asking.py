"""What commands that ask for media have in common: their options, and the conversation with the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc
from google.protobuf.descriptor import FieldDescriptor

from gateway.cli.options import call, console, gateway_options, named_file, refuse_unwritable, typed, write
from gateway.cli.requests import medium_of, read_medium, read_request, request_file, write_request
from gateway.cli.telling import Live, tell
from gateway.client import Client, Media
from gateway.tasks import Request, Task, task_of
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import DELIVERY_URL, Stored

_LONGEST_AGE = 10**9  # seconds
_LARGEST = {FieldDescriptor.TYPE_UINT32: 2**32 - 1, FieldDescriptor.TYPE_UINT64: 2**53 - 1}  # the latter are seeds
_MODES = {
    "use": pb.CachePolicy.MODE_USE,
    "refresh": pb.CachePolicy.MODE_REFRESH,
    "bypass": pb.CachePolicy.MODE_BYPASS,
    "only-if-cached": pb.CachePolicy.MODE_ONLY_IF_CACHED,
}
_FLAGS = ("no_store", "fresh", "replayable")  # of a policy
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _milliseconds(context: click.Context, option: click.Parameter, seconds: float | None) -> int | None:
    if seconds is None:
        return None
    if not 0 <= seconds <= _LONGEST_AGE:
        raise click.BadParameter(f"must be 0 to {_LONGEST_AGE:,} seconds")
    return round(seconds * 1000)


def _time(context: click.Context, option: click.Parameter, seconds: float | None) -> float | None:
    if seconds is not None and not 0 < seconds <= _LONGEST_AGE:
        raise click.BadParameter(f"must be more than 0 seconds, at most {_LONGEST_AGE:,}; without it there is none")
    return seconds


def asking_options(what: str) -> Callable[[_Command], _Command]:
    """Options of every command that has `what` made, after its own."""
    options = (
        click.option("--model", help="Name of the model. [default: the deployment's]"),
        click.option("--seed", type=int, help=f"Same seed, same {what}. [default: the deployment's]"),
        click.option(
            "--extra", multiple=True, metavar="NAME=VALUE", help="A parameter only this model has. Repeatable."
        ),
        click.option("--cache", "mode", type=click.Choice(list(_MODES)), help="Policy. [default: the deployment's]"),
        click.option("--fresh", is_flag=True, help="Ask for variety: a seed is drawn, and said."),
        click.option("--no-store", is_flag=True, help="Keep nothing that is made for this."),
        click.option(
            "--max-age", type=float, callback=_milliseconds, metavar="SECONDS", help="Serve nothing made longer ago."
        ),
        click.option("--label", "labels", multiple=True, help="Mark what is made, to invalidate it by. Repeatable."),
        click.option(
            "--replayable", is_flag=True, help="Let the request be kept, to be made ahead if it is asked often."
        ),
        click.option(
            "--durable", is_flag=True, help=f"Wait until the {what} is stored for good; exit code 1 if it is not."
        ),
        click.option("--url", is_flag=True, help=f"Print a URL of the {what}, and write a file only with --out."),
        click.option(
            "--request",
            "saved",
            type=request_file,
            help="Run the request in this file; what else is said changes it.",
        ),
        click.option("--save-request", "save", type=named_file, help="Write the request here."),
        click.option(
            "--deadline",
            type=float,
            callback=_time,
            metavar="SECONDS",
            help="Have it by then, or an error. What can be retried is retried until then. [default: a few tries]",
        ),
        gateway_options,
    )

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@dataclass(frozen=True)
class Wishes:
    """What was said on the command line beside the request itself."""

    medium: Path | None  # the file with the picture or recording
    saved: Path | None
    save: Path | None
    out: Path | None
    url: bool
    durable: bool
    deadline: float | None
    address: str
    api_key: str

    @classmethod
    def among(cls, options: dict[str, Any], medium: Path | None) -> Wishes:
        """Takes them out of all options."""
        names = ("saved", "save", "out", "url", "durable", "deadline", "address", "api_key")
        return cls(medium, **{name: options.pop(name) for name in names})

    @property
    def stem(self) -> str:
        """Of the file that is written, where no other name was given."""
        named_after = self.medium or self.saved
        return named_after.stem if named_after is not None else ""


def begin(task: Task, wishes: Wishes) -> Request:
    """The request that is saved, or a new one; with the file that was given. Raises ClickException, and UsageError if
    nothing was given at all.
    """
    if wishes.medium is None and wishes.saved is None:
        argument = click.get_current_context().command.params[0].human_readable_name
        raise click.UsageError(f"give {argument}, or a file with --request")
    request = read_request(wishes.saved) if wishes.saved is not None else task.request()
    if task_of(request) is not task:
        raise click.ClickException(f"{wishes.saved}: is a request of another command: {task_of(request).name}")
    if wishes.medium is not None:
        task.give(request, read_medium(wishes.medium))
    return request


def change(request: Request, options: dict[str, Any]) -> None:
    """Write what was said on the command line into the request: its policy, and fields by their names."""
    policy = request.cache_policy
    if (mode := options.pop("mode")) is not None:
        policy.mode = _MODES[mode]
    for flag in _FLAGS:
        if options.pop(flag):
            setattr(policy, flag, True)
    policy.labels.extend(options.pop("labels"))
    if (max_age := options.pop("max_age")) is not None:
        policy.max_age.FromMilliseconds(max_age)
    for name, value in map(_extra, options.pop("extra")):
        request.extra[name].CopyFrom(value)
    given = {name: value for name, value in options.items() if value is not None}
    if container := given.pop("container", None):
        given["format"] = container
    for name, value in given.items():
        try:
            setattr(request, name, value)
        except ValueError:  # what the message cannot even hold; whatever it can, the gateway judges
            raise click.BadParameter(_range_of(request, name), param_hint=typed(name)) from None


def _range_of(request: Request, name: str) -> str:
    """In words; its model may take less."""
    largest = _LARGEST.get(request.DESCRIPTOR.fields_by_name[name].type)
    if largest is None:
        return "must be text in UTF-8"
    return f"must be a whole number from 0 to {largest}; `reprise models show NAME` says what a model takes"


def container_of(out: Path | None, container: str | None, known: Sequence[str]) -> str | None:
    """The container of the file, of the known ones: as --format says, else as the name of the file ends. Raises
    BadParameter where these differ, and for an ending that none has.
    """
    ending = out.suffix.lower() if out is not None else ""
    if not ending:
        return container
    if (named := ending.removeprefix(".")) not in known:
        endings = " or ".join(f".{each}" for each in known)
        raise click.BadParameter(f"{out} must end in {endings}, or have no ending", param_hint="--out")
    if container not in (None, named):
        raise click.BadParameter(
            f"{out} is not what --format {container} makes: change one of them", param_hint="--out"
        )
    return named


def _extra(entry: str) -> tuple[str, pb.ParameterValue]:
    name, equals, text = entry.partition("=")
    if not equals:
        raise click.BadParameter(f"{entry!r} is not NAME=VALUE", param_hint="--extra")
    with suppress(ValueError):
        return name, pb.ParameterValue(int_value=int(text))
    with suppress(ValueError):
        return name, pb.ParameterValue(float_value=float(text))
    return name, pb.ParameterValue(text_value=text)


def ask(request: Request, wishes: Wishes, usual: str, ending: str = "") -> None:
    """Have it made, write the file, and say where the answer came from. `usual` is the type of file to expect, `ending`
    what keeps its name from being that of the file it is made from.
    """
    refuse_unwritable(wishes.out or Path(f"{wishes.stem}{ending}.{usual}"))
    if wishes.url:
        request.delivery = DELIVERY_URL
    if wishes.save is not None:
        refuse_unwritable(wishes.save)
        medium = wishes.medium or (medium_of(wishes.saved) if wishes.saved is not None else None)
        write_request(wishes.save, request, medium)
    out_to = console(wishes.out)

    async def converse(client: Client) -> tuple[Media, Path | None, Stored.State]:
        with Live(out_to) as live:
            try:
                media = await client.make(request, on_event=live.show, on_retry=live.retry, deadline=wishes.deadline)
            except asyncio.CancelledError:  # Ctrl-C
                out_to.print(await _give_up(client, live.name))
                raise
        file = None
        if wishes.out or not media.url:
            data = await client.fetch(media)
            file = wishes.out or Path(f"{wishes.stem}{ending}.{media.result.media_type.rpartition('/')[2]}")
            write(file, data)  # before it waits for anything else
        stored = await client.until_stored(media, request) if wishes.durable else media.result.stored.state
        return media, file, stored

    media, file, stored = call(wishes.address, wishes.api_key, converse)
    tell(out_to, media, stored, file)
    if wishes.url and not media.url:
        out_to.print("There is no URL: it was not stored, or the gateway serves none. The file came in the answer.")
    if wishes.durable and stored != Stored.STATE_DURABLE:
        raise click.exceptions.Exit(1)


async def _give_up(client: Client, name: str) -> str:
    """Cancel the generation, if it has a name already. A sentence about what becomes of it."""
    if not name:
        return "stopped before it had begun"
    try:
        finished = (await client.cancel(name)).finished
    except grpc.aio.AioRpcError:
        return f"stopped; the generation could not be cancelled: try `reprise cancel {name}`"
    return f"generation {name} had finished already" if finished else f"cancelled generation {name}"
