"""Rendition: decoded frames to the bytes of a finished file.

Everything is done in memory and in one thread: x264 and libvpx divide a picture among their threads and so write other
bytes for another number of them. Equal frames give equal bytes on one host; across hosts nothing is promised, because
the encoders choose their code by the processor.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import cast

import av
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from PIL import Image

from cache.encoding import Value
from inference.models.base import Artifact

CODE_VERSION = 2  # of everything here that shapes the bytes


@dataclass(frozen=True)
class _Container:
    media_type: str
    codec: str
    codec_options: dict[str, str]
    options: dict[str, str] = field(default_factory=dict)


CONTAINERS = {
    "mp4": _Container(
        media_type="video/mp4",
        codec="libx264",
        codec_options={
            "preset": "medium",
            "crf": "20",
            # No B frames: without a rewritten index a file with them would start late by their delay.
            "bf": "0",
            "threads": "1",
            # Else the look ahead reads beyond the last row of macroblocks, and what happens to be there decides bits
            # (x264 165 with AVX-512, 832 x 480 for one). What this turns off costs no time that can be measured.
            "x264-params": "cpu-independent=1",
        },
        # Fragments need no index at the end, so the file is playable while it arrives and needs no second pass.
        options={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    ),
    "webm": _Container(
        media_type="video/webm",
        codec="libvpx-vp9",
        codec_options={"crf": "31", "deadline": "good", "cpu-used": "4", "row-mt": "0", "threads": "1"},
    ),
}


def encode(frames: Sequence[Image.Image], fps: int, container: str) -> Artifact:
    """A file that shows these frames (RGB, one even size for all) at `fps` frames per second.

    `container` is a key of `CONTAINERS`. Raises ValueError without frames.
    """
    if not frames:
        raise ValueError("no frames to show")
    kind = CONTAINERS[container]
    buffer = io.BytesIO()
    # Bit exact: no version strings, no random identifiers, no dates.
    with av.open(buffer, "w", format=container, options=kind.options | {"fflags": "+bitexact"}) as file:
        stream = cast("VideoStream", file.add_stream(kind.codec, rate=fps, options=kind.codec_options))
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, fps)
        _say_how_colours_are_meant(stream.codec_context)
        for number, frame in enumerate(frames):
            file.mux(stream.encode(_picture(frame, number, fps)))
        file.mux(stream.encode())
    return Artifact(buffer.getvalue(), kind.media_type)


def versions() -> Value:
    """Versions of everything that shapes the bytes: our code, the binding, and the libraries inside its wheel."""
    libraries: dict[str, Value] = {name: list(numbers) for name, numbers in av.library_versions.items()}
    return {"code": CODE_VERSION, "av": av.__version__, "libraries": libraries}


def _picture(frame: Image.Image, number: int, fps: int) -> av.VideoFrame:
    shown: av.VideoFrame = av.VideoFrame.from_image(frame)  # type: ignore[no-untyped-call]  # as in PyAV's own stubs
    picture = shown.reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
    )
    picture.pts, picture.time_base = number, Fraction(1, fps)
    return picture


def _say_how_colours_are_meant(codec: VideoCodecContext) -> None:
    # Unsaid, players guess by picture size, and one clip would look different at two resolutions.
    codec.color_primaries = ColorPrimaries.BT709
    codec.color_trc = ColorTrc.BT709
    codec.colorspace = Colorspace.ITU709
    codec.color_range = ColorRange.MPEG
