"""Chart: curves over sizes, as a picture. Sizes double from left to right, whatever lies between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT, _SCALE = 900, 540, 2  # pixels; drawn larger and made smaller, so that lines are smooth
_LEFT, _TOP, _RIGHT, _BOTTOM = 90, 60, 150, 60
_COLOURS = ("#0b6e99", "#c8553d", "#588157", "#6d597a")
_INK, _FAINT = "#22252a", "#d5d8dc"


def draw(
    title: str,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    *,
    unit: str,
    ceiling: float,
    sizes: Mapping[int, str],
) -> Image.Image:
    """`curves` are points (size, value) by name; `ceiling` is the value no size can pass; `sizes` names those that are
    marked.
    """
    image = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), "white")
    pen = ImageDraw.Draw(image)
    top = max([ceiling, *(value for points in curves.values() for _, value in points)]) or 1.0
    first, last = log2(min(sizes)), log2(max(sizes))

    def place(size: int, value: float) -> tuple[float, float]:
        across = (log2(size) - first) / (last - first) if last > first else 0.5
        x = _LEFT + across * (_WIDTH - _LEFT - _RIGHT)
        return x * _SCALE, (_TOP + (1 - value / top) * (_HEIGHT - _TOP - _BOTTOM)) * _SCALE

    def text(x: float, y: float, what: str, colour: str = _INK, *, anchor: str = "lm", height: int = 13) -> None:
        pen.text((x, y), what, fill=colour, anchor=anchor, font=ImageFont.load_default(height * _SCALE))

    edge = (_WIDTH - _RIGHT) * _SCALE
    text(_LEFT * _SCALE, 24 * _SCALE, title, height=17)
    text(_LEFT * _SCALE, 44 * _SCALE, unit)
    for step in range(5):
        value = top * step / 4
        y = place(min(sizes), value)[1]
        pen.line((_LEFT * _SCALE, y, edge, y), fill=_FAINT, width=_SCALE)
        text((_LEFT - 8) * _SCALE, y, f"{value:,.0f}", anchor="rm")
    for size, name in sizes.items():
        text(place(size, 0.0)[0], (_HEIGHT - _BOTTOM + 18) * _SCALE, name, anchor="mm")
    y = place(min(sizes), ceiling)[1]
    pen.line((_LEFT * _SCALE, y, edge, y), fill=_INK, width=_SCALE)
    text(edge + 8 * _SCALE, y, "memory without end")
    for number, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = [place(*point) for point in points]
        pen.line(line, fill=colour, width=3 * _SCALE, joint="curve")
        for x, y in line:
            pen.ellipse((x - 4 * _SCALE, y - 4 * _SCALE, x + 4 * _SCALE, y + 4 * _SCALE), fill=colour)
        below = (_TOP + 24 * (number + 1)) * _SCALE  # names stand apart, even where curves meet
        pen.line((edge + 8 * _SCALE, below, edge + 28 * _SCALE, below), fill=colour, width=3 * _SCALE)
        text(edge + 34 * _SCALE, below, name, colour)
    return image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
