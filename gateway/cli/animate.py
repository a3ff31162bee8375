"""`reprise animate`: a picture and a prompt in, a video out, with what happens shown as it happens."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import grpc
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from gateway.cli.options import call, console, gateway_options, refuse_unwritable, typed, write
from gateway.cli.reports import nearest_line, reason_word, tier_word
from gateway.cli.requests import picture_of, read_picture, read_request, request_file, write_request
from gateway.client import Client, Media
from gateway.status import Problem
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import DELIVERY_URL, AnimateImageRequest, Framing, GenerationEvent, Stored

_LONGEST_AGE = 10**9  # seconds
_MODES = {
    "use": pb.CachePolicy.MODE_USE,
    "refresh": pb.CachePolicy.MODE_REFRESH,
    "bypass": pb.CachePolicy.MODE_BYPASS,
    "only-if-cached": pb.CachePolicy.MODE_ONLY_IF_CACHED,
}


def _milliseconds(context: click.Context, option: click.Parameter, seconds: float | None) -> int | None:
    if seconds is None:
        return None
    if not 0 <= seconds <= _LONGEST_AGE:
        raise click.BadParameter(f"must be 0 to {_LONGEST_AGE:,} seconds")
    return round(seconds * 1000)


def _box(context: click.Context, option: click.Parameter, text: str | None) -> Framing:
    if text is None:
        return Framing()
    try:
        left, top, width, height = map(int, text.split(","))
        return Framing(left=left, top=top, width=width, height=height)
    except ValueError:
        raise click.BadParameter("must be four numbers of pixels") from None


@click.command()
@click.argument("picture", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--prompt", "-p", help="What should happen.")
@click.option("--negative-prompt", help="What should not.")
@click.option("--out", "-o", type=click.Path(dir_okay=False, path_type=Path), help="The video. [default: PICTURE.mp4]")
@click.option("--model", help="Name of the model. [default: the deployment's]")
@click.option("--crop", "framing", callback=_box, metavar="LEFT,TOP,WIDTH,HEIGHT", help="The part that is meant.")
@click.option("--rotate", type=click.Choice(["90", "180", "270"]), help="Clockwise degrees, after --crop.")
@click.option("--width", type=int, help="Pixels.")
@click.option("--height", type=int, help="Pixels.")
@click.option("--frames", "num_frames", type=int, help="Frames of the video.")
@click.option("--steps", "num_inference_steps", type=int, help="Denoising steps.")
@click.option("--guidance", "guidance_scale", type=float, help="How closely to follow the prompt.")
@click.option("--motion-fps", type=int, help="Frames per second the model imagines.")
@click.option("--playback-fps", type=int, help="Frames per second of the file.")
@click.option("--format", "container", type=click.Choice(["mp4", "webm"]), help="Container of the file.")
@click.option("--seed", type=int, help="Same seed, same video. [default: the deployment's]")
@click.option("--extra", multiple=True, metavar="NAME=VALUE", help="A parameter only this model has. Repeatable.")
@click.option("--cache", "mode", type=click.Choice(list(_MODES)), help="Policy. [default: the deployment's]")
@click.option("--fresh", is_flag=True, help="Ask for variety: a seed is drawn, and said.")
@click.option("--similar", is_flag=True, help="Let encodings of a near-duplicate picture stand in; it is said.")
@click.option("--no-store", is_flag=True, help="Keep nothing that is made for this.")
@click.option("--max-age", type=float, callback=_milliseconds, metavar="SECONDS", help="Serve nothing made longer ago.")
@click.option("--label", "labels", multiple=True, help="Mark what is made, to invalidate it by. Repeatable.")
@click.option("--replayable", is_flag=True, help="Let the request be kept, to be made ahead if it is asked often.")
@click.option("--durable", is_flag=True, help="Wait until the video is stored for good.")
@click.option("--url", is_flag=True, help="Print a URL of the video, and write a file only with --out.")
@click.option(
    "--request", "saved", type=request_file, help="Run the request in this file; what else is said changes it."
)
@click.option("--save-request", "save", type=click.Path(dir_okay=False, path_type=Path), help="Write the request here.")
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Have it by then, or an error. What can be retried is retried until then. [default: a few tries]",
)
@gateway_options
def animate(
    picture: Path | None,
    saved: Path | None,
    save: Path | None,
    address: str,
    api_key: str,
    out: Path | None,
    durable: bool,
    url: bool,
    deadline: float | None,
    **options: Any,
) -> None:
    """Animate PICTURE, and say where the answer came from."""
    named_after = picture or saved
    if named_after is None:
        raise click.UsageError("give PICTURE, or a file with --request")
    refuse_unwritable(out or Path(f"{named_after.stem}.mp4"))
    request = read_request(saved) if saved is not None else AnimateImageRequest()
    _change(request, picture, **options)
    if url:
        request.delivery = DELIVERY_URL
    if save is not None:
        refuse_unwritable(save)
        write_request(save, request, picture or (picture_of(saved) if saved is not None else None))
    out_to = console()

    async def converse(client: Client) -> tuple[Media, bytes | None, Stored.State]:
        with Live(out_to) as live:
            try:
                media = await client.animate(request, on_event=live.show, on_retry=live.retry, deadline=deadline)
            except asyncio.CancelledError:  # Ctrl-C
                out_to.print(await _give_up(client, live.name))
                raise
        data = await client.fetch(media) if out or not media.url else None
        return media, data, await client.until_stored(media) if durable else media.result.stored.state

    media, data, stored = call(address, api_key, converse)
    suffix = media.result.media_type.rpartition("/")[2]
    file = None if data is None else out or Path(f"{named_after.stem}.{suffix}")
    if file is not None and data is not None:
        write(file, data)
    tell(out_to, media, stored, file)
    if url and not media.url:
        out_to.print("There is no URL: it was not stored, or the gateway serves none. The video came in the answer.")


async def _give_up(client: Client, name: str) -> str:
    """Cancel the generation, if it has a name already. A sentence about what becomes of it."""
    if not name:
        return "stopped before it had begun"
    try:
        finished = (await client.cancel(name)).finished
    except grpc.aio.AioRpcError:
        return f"stopped; the generation could not be cancelled: try `reprise cancel {name}`"
    return f"generation {name} had finished already" if finished else f"cancelled generation {name}"


def _change(request: AnimateImageRequest, picture: Path | None, **options: Any) -> None:
    """Write what was said on the command line into the request."""
    if picture is not None:
        request.image = read_picture(picture)
    policy = request.cache_policy
    if (mode := options.pop("mode")) is not None:
        policy.mode = _MODES[mode]
    for flag in ("no_store", "fresh", "replayable"):
        if options.pop(flag):
            setattr(policy, flag, True)
    policy.labels.extend(options.pop("labels"))
    if options.pop("similar"):
        policy.similarity.pictures = True
    if (max_age := options.pop("max_age")) is not None:
        policy.max_age.FromMilliseconds(max_age)
    if (framing := options.pop("framing")) is not None:
        request.framing.MergeFrom(framing)
    if (rotation := options.pop("rotate")) is not None:
        request.framing.rotation = int(rotation)
    for name, value in map(_extra, options.pop("extra")):
        request.extra[name].CopyFrom(value)
    given = {name: value for name, value in options.items() if value is not None}
    if container := given.pop("container", None):
        given["format"] = container
    for name, value in given.items():
        try:
            setattr(request, name, value)
        except ValueError:  # what the message cannot even hold; whatever it can, the gateway judges
            raise click.BadParameter("this value is out of any range", param_hint=typed(name)) from None


def _extra(entry: str) -> tuple[str, pb.ParameterValue]:
    name, equals, text = entry.partition("=")
    if not equals:
        raise click.BadParameter(f"{entry!r} is not NAME=VALUE", param_hint="--extra")
    with suppress(ValueError):
        return name, pb.ParameterValue(int_value=int(text))
    with suppress(ValueError):
        return name, pb.ParameterValue(float_value=float(text))
    return name, pb.ParameterValue(text_value=text)


class Live:
    """A bar per stage on a terminal, a line per change elsewhere."""

    def __init__(self, out: Console) -> None:
        self.name = ""  # of the generation, once it has one
        self._console = out
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def show(self, event: GenerationEvent) -> None:
        if event.HasField("accepted"):
            self.name = event.accepted.name
            self._console.print(f"generation {event.accepted.name}")
        if event.HasField("queued"):
            self._say(f"queued, {event.queued.position} before it")
        if event.HasField("progress"):
            self._advance(event)

    def retry(self, problem: Problem, seconds: float) -> None:
        """The request is about to be made again: what was seen of it does not count any more."""
        self.name = ""
        for bar in self._bars.values():
            self._progress.remove_task(bar)
        self._bars.clear()
        self._console.print(f"{problem.reason or 'the connection broke'}: asking again in {seconds:.1f} s")

    def _advance(self, event: GenerationEvent) -> None:
        progress = event.progress
        if progress.stage not in self._bars:
            self._bars[progress.stage] = self._progress.add_task(progress.stage, total=progress.steps)
            self._say(f"{progress.stage}, {progress.steps} steps")
        self._progress.update(self._bars[progress.stage], completed=progress.step)

    def _say(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line)


def tell(out: Console, media: Media, stored: Stored.State, file: Path | None) -> None:
    report = media.report
    outcome = pb.Outcome.Name(report.outcome).removeprefix("OUTCOME_").lower()
    tier = f" from {tier_word(report.tier)}" if report.outcome == pb.OUTCOME_HIT else ""
    about = escape(f"{file or 'not written'} ({media.result.artifact.size:,} bytes, {media.result.media_type})")
    out.print(f"[bold]{outcome}{tier}[/]: {about}")
    for stage in report.stages:
        if stage.outcome == pb.STAGE_OUTCOME_REUSED:
            out.print(f"  {stage.stage:<16} reused from {tier_word(stage.tier)}, {stage.device_seconds:.3f} s saved")
        elif stage.outcome == pb.STAGE_OUTCOME_RUN:
            why = f"; {reason_word(stage.reason)}" if stage.reason else ""
            out.print(f"  {stage.stage:<16} run, {stage.device_seconds:.3f} s{why}")
    for each in report.similar:
        out.print(f"  not exact: a near-duplicate of the {each.media} stood in, {each.distance} of 256 bits away")
    out.print(
        f"device time: {report.device_seconds_spent:.3f} s spent, {report.device_seconds_saved:.3f} s saved; "
        f"seed {media.result.seed}; stored: {Stored.State.Name(stored).removeprefix('STATE_').lower()}"
    )
    if (line := nearest_line(report)) is not None:
        out.print(line)
    if media.cache_status:
        out.print(f"cache-status: {media.cache_status}")
    if media.url:
        out.print(f"url, good until {media.result.url_expires_at.ToDatetime():%H:%M:%S} UTC: {media.url}", markup=False)
    out.print(f"address {report.address}", soft_wrap=True)
    if media.result.trace_id:
        out.print(f"trace {media.result.trace_id}")
    if media.result.random_weights:
        out.print("The model has random weights, made for trying things out: the video means nothing.")
