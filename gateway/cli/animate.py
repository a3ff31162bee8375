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

from gateway.blueprint import LARGEST_FILE
from gateway.cli.options import call, console, gateway_options, refuse_unwritable, typed, write
from gateway.client import Client, Media
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import AnimateImageRequest, Framing, GenerationEvent, Stored

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
@click.argument("picture", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--prompt", "-p", required=True, help="What should happen.")
@click.option("--negative-prompt", default="", help="What should not.")
@click.option("--out", "-o", type=click.Path(dir_okay=False, path_type=Path), help="The video. [default: PICTURE.mp4]")
@click.option("--model", default="", help="Name of the model. [default: the deployment's]")
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
@click.option("--cache", "mode", type=click.Choice(list(_MODES)), default="use", show_default=True, help="Policy.")
@click.option("--fresh", is_flag=True, help="Ask for variety: a seed is drawn, and said.")
@click.option("--similar", is_flag=True, help="Let encodings of a near-duplicate picture stand in; it is said.")
@click.option("--no-store", is_flag=True, help="Keep nothing that is made for this.")
@click.option("--max-age", type=float, callback=_milliseconds, metavar="SECONDS", help="Serve nothing made longer ago.")
@click.option("--durable", is_flag=True, help="Wait until the video is stored for good.")
@gateway_options
def animate(picture: Path, address: str, api_key: str, out: Path | None, durable: bool, **options: Any) -> None:
    """Animate PICTURE, and say where the answer came from."""
    refuse_unwritable(out or Path(f"{picture.stem}.mp4"))
    request = _request(_read(picture), **options)
    out_to = console()

    async def converse(client: Client) -> tuple[Media, Stored.State]:
        with Live(out_to) as live:
            try:
                media = await client.animate(request, on_event=live.show)
            except asyncio.CancelledError:  # Ctrl-C
                out_to.print(await _give_up(client, live.name))
                raise
        return media, await client.until_stored(media) if durable else media.result.stored.state

    media, stored = call(address, api_key, converse)
    suffix = media.result.media_type.rpartition("/")[2]
    file = out or Path(f"{picture.stem}.{suffix}")
    write(file, media.data)
    tell(out_to, media, stored, file)


async def _give_up(client: Client, name: str) -> str:
    """Cancel the generation, if it has a name already. A sentence about what becomes of it."""
    if not name:
        return "stopped before it had begun"
    try:
        await client.cancel(name)
    except grpc.aio.AioRpcError:
        return f"stopped; the generation could not be cancelled: try `reprise cancel {name}`"
    return f"cancelled generation {name}"


def _read(picture: Path) -> bytes:
    try:
        if (size := picture.stat().st_size) > LARGEST_FILE:
            raise click.ClickException(f"{picture}: must have at most {LARGEST_FILE:,} bytes; it has {size:,}")
        return picture.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{picture}: cannot be read: {error.strerror}") from None


def _request(image: bytes, *, prompt: str, negative_prompt: str, model: str, **options: Any) -> AnimateImageRequest:
    policy = pb.CachePolicy(
        mode=_MODES[options.pop("mode")], no_store=options.pop("no_store"), fresh=options.pop("fresh")
    )
    if options.pop("similar"):
        policy.similarity.pictures = True
    if (max_age := options.pop("max_age")) is not None:
        policy.max_age.FromMilliseconds(max_age)
    framing = options.pop("framing")
    if (rotation := options.pop("rotate")) is not None:
        framing.rotation = int(rotation)
    extra = dict(_extra(entry) for entry in options.pop("extra"))
    given = {name: value for name, value in options.items() if value is not None}
    if container := given.pop("container", None):
        given["format"] = container
    request = AnimateImageRequest(model=model, image=image, framing=framing, extra=extra, cache_policy=policy)
    for name, value in {"prompt": prompt, "negative_prompt": negative_prompt, **given}.items():
        try:
            setattr(request, name, value)
        except ValueError:  # what the message cannot even hold; whatever it can, the gateway judges
            raise click.BadParameter("this value is out of any range", param_hint=typed(name)) from None
    return request


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
    tier = f" from {_tier(report.tier)}" if report.outcome == pb.OUTCOME_HIT else ""
    about = escape(f"{file or 'not written'} ({len(media.data):,} bytes, {media.result.media_type})")
    out.print(f"[bold]{outcome}{tier}[/]: {about}")
    for stage in report.stages:
        if stage.outcome == pb.STAGE_OUTCOME_REUSED:
            out.print(f"  {stage.stage:<16} reused from {_tier(stage.tier)}, {stage.device_seconds:.3f} s saved")
        elif stage.outcome == pb.STAGE_OUTCOME_RUN:
            out.print(f"  {stage.stage:<16} run, {stage.device_seconds:.3f} s")
    for each in report.similar:
        out.print(f"  not exact: a near-duplicate of the {each.media} stood in, {each.distance} of 256 bits away")
    out.print(
        f"device time: {report.device_seconds_spent:.3f} s spent, {report.device_seconds_saved:.3f} s saved; "
        f"seed {media.result.seed}; stored: {Stored.State.Name(stored).removeprefix('STATE_').lower()}"
    )
    if media.cache_status:
        out.print(f"cache-status: {media.cache_status}")
    if media.result.trace_id:
        out.print(f"trace {media.result.trace_id}")
    if media.result.random_weights:
        out.print("The model has random weights, made for trying things out: the video means nothing.")


def _tier(tier: pb.Tier) -> str:
    return pb.Tier.Name(tier).removeprefix("TIER_").lower()
