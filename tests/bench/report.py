"""How a run is told: tables for people, JSON for programs, a chart for a glance."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from tests.bench.aims import Verdict, size_text
from tests.bench.figures import Cell, Figure, Figures, compared
from tests.bench.subjects import CLIENTS


def tell(console: Console, figures: Figures, verdicts: Sequence[Verdict]) -> None:
    console.print(_cells(figures))
    console.print(_aims(verdicts))


def _cells(figures: Figures) -> Table:
    table = Table(box=None, title="medians of rounds (lowest to highest)", title_justify="left")
    for heading in ("what", "size"):
        table.add_column(heading, no_wrap=True)
    for heading in ("clients", "p50 ms", "p99 ms", "processor ms each", "of bare", "per s", "requests", "strays"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cell in figures.cells:
        table.add_row(
            cell.name,
            size_text(cell.size),
            str(cell.clients),
            _spread(cell.p50),
            f"{cell.p99:.2f}",
            _spread(cell.cost),
            _of_bare(figures, cell),
            f"{cell.rate.value:,.0f}",
            f"{cell.requests:,}",
            str(cell.strays or ""),
        )
    return table


def _of_bare(figures: Figures, cell: Cell) -> str:
    for bare in figures.of("bare", cell.size):
        if bare.clients == cell.clients and cell.name.startswith("L"):
            return f"{compared(cell, bare, lambda each: each.cost, lambda one, two: one / two).value:.2f}"
    return ""


def _aims(verdicts: Sequence[Verdict]) -> Table:
    table = Table(box=None, title="aims", title_justify="left")
    for heading in ("aim", "where"):
        table.add_column(heading, no_wrap=True)
    for heading in ("measured", "at most", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in verdicts:
        missed = f"[red]missed by {each.measured.value - each.bound:.2f} {each.unit}[/]"
        told = "[green]held[/]" if each.held else missed
        table.add_row(each.aim, each.where, f"{_spread(each.measured)} {each.unit}", f"{each.bound:g}", told)
    return table


def _spread(figure: Figure) -> str:
    return f"{figure.value:.2f} ({figure.low:.2f}-{figure.high:.2f})"


_WIDTH, _LINE, _LABEL, _MARGIN = 1000, 20, 220, 16
_COLOURS = {
    "bare": "#b0b0b0",
    "L1": "#2a7f62",
    "naive": "#c0504d",
    "L2": "#3b6fb5",
    "L2+L3": "#3b6fb5",
    "L3": "#7a5ba8",
}


def chart(figures: Figures) -> Image.Image:
    """Two lists of bars: processor time of a hit under load, and the latency of a hit with one client."""
    loaded = [cell for cell in figures.cells if cell.name in ("bare", "L1", "naive") and cell.clients != CLIENTS[0]]
    alone = [cell for cell in figures.cells if cell.name in _COLOURS and cell.clients == CLIENTS[0]]
    panels = [
        ("processor time of the server for one answer, ms", [(cell, cell.cost.value) for cell in loaded]),
        ("latency of one client, median, ms", [(cell, cell.p50.value) for cell in alone]),
    ]
    height = sum((len(bars) + 3) * _LINE for _, bars in panels) + _MARGIN
    image = Image.new("RGB", (_WIDTH, height), "white")
    draw, font, top = ImageDraw.Draw(image), ImageFont.load_default(13), _MARGIN
    for title, bars in panels:
        draw.text((_MARGIN, top), title + " (each size has its own scale)", fill="black", font=font)
        top += _LINE + 4
        for cell, value in bars:
            longest = max(other for each, other in bars if each.size == cell.size)
            length = value / longest * (_WIDTH - _LABEL - 100)
            draw.text((_MARGIN, top), f"{size_text(cell.size)}  {cell.name}", fill="black", font=font)
            draw.rectangle((_LABEL, top + 2, _LABEL + length, top + _LINE - 4), fill=_COLOURS[cell.name])
            draw.text((_LABEL + length + 6, top), f"{value:.2f}", fill="black", font=font)
            top += _LINE
        top += 2 * _LINE - 4
    return image
