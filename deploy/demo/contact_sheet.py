"""Contact sheet: frames of every video of the demo, a line each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageOps

from deploy.demo.rows import RUN, Row


def contact_sheet(photo: Path, rows: Sequence[Row], frames: int = 5, side: int = 128) -> Image.Image:
    """The photograph and some frames of every video, a line each, with what answered and how fast."""
    lines = [(row, media, video) for row in rows for media, video in zip(row.media, row.files, strict=False)]
    label = 230
    sheet = Image.new("RGB", (label + (frames + 1) * side, len(lines) * side), "white")
    draw = ImageDraw.Draw(sheet)
    thumbnail = ImageOps.fit(Image.open(photo).convert("RGB"), (side, side))
    for line, (row, media, video) in enumerate(lines):
        ran = [stage.stage for stage in media.report.stages if stage.outcome == RUN]
        run = ", ".join(stage for stage in ran if not stage.endswith("tokens")) or "nothing"
        saved = f"{media.report.device_seconds_saved:.2f} s of device time saved"
        told = [video.name, f"answered by {row.answered_by}", *textwrap.wrap(f"run: {run}", 36), saved]
        draw.text((8, line * side + 16), "\n".join(told), fill="black")
        sheet.paste(thumbnail, (label, line * side))
        for column, frame in enumerate(_sample(video, frames), start=1):
            sheet.paste(ImageOps.fit(frame, (side, side)), (label + column * side, line * side))
    return sheet


def _sample(video: Path, count: int) -> list[Image.Image]:
    with av.open(str(video)) as container:
        frames = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return [frames[round(index * (len(frames) - 1) / (count - 1))] for index in range(count)]
