"""`reprise animate`: a picture and a prompt in, a video out, with what happens shown as it happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gateway.cli.asking import Wishes, ask, asking_options, begin, change, container_of
from gateway.cli.options import out_file
from gateway.tasks import ANIMATE
from reprise.v1.media_pb2 import AnimateImageRequest, Framing

_CONTAINERS = ("mp4", "webm")


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
@click.option(
    "--out",
    "-o",
    type=out_file,
    help="The video, whose ending names its container; - is standard output. [default: PICTURE.mp4]",
)
@click.option("--crop", "framing", callback=_box, metavar="LEFT,TOP,WIDTH,HEIGHT", help="The part that is meant.")
@click.option("--rotate", type=click.Choice(["90", "180", "270"]), help="Clockwise degrees, after --crop.")
@click.option("--width", type=int, help="Pixels.")
@click.option("--height", type=int, help="Pixels.")
@click.option("--frames", "num_frames", type=int, help="Frames of the video.")
@click.option("--steps", "num_inference_steps", type=int, help="Denoising steps.")
@click.option("--guidance", "guidance_scale", type=float, help="How closely to follow the prompt.")
@click.option("--motion-fps", type=int, help="Frames per second the model imagines.")
@click.option("--playback-fps", type=int, help="Frames per second of the file.")
@click.option(
    "--format", "container", type=click.Choice(_CONTAINERS), help="Container of the file. [default: as --out ends]"
)
@click.option("--similar", is_flag=True, help="Let encodings of a near-duplicate picture stand in; it is said.")
@asking_options("video")
def animate(picture: Path | None, **options: Any) -> None:
    """Animate PICTURE, and say where the answer came from."""
    wishes = Wishes.among(options, picture)
    options["container"] = container_of(wishes.out, options["container"], _CONTAINERS)
    request = begin(ANIMATE, wishes)
    assert isinstance(request, AnimateImageRequest)  # noqa: S101  # as its task says
    if options.pop("similar"):
        request.cache_policy.similarity.pictures = True
    if (framing := options.pop("framing")) is not None:
        request.framing.MergeFrom(framing)
    if (rotation := options.pop("rotate")) is not None:
        request.framing.rotation = int(rotation)
    change(request, options)
    ask(request, wishes, request.format or "mp4")
