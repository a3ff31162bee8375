"""How a run is told: live on the terminal, as JSON for programs, and as a time-line of what callers saw."""

from __future__ import annotations

import json
import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from tests.chaos.case import Case, Figure
from tests.chaos.clients import Heard
from tests.chaos.play import Played

_COLOURS = {
    "hit": "#2a7f62",
    "miss": "#3b6fb5",
    "coalesced": "#7aa6d9",
    "bypass": "#7a5ba8",
    "failed": "#d1301f",
    "left": "#b0b0b0",
}


class Show:
    """The terminal while cases are played: of each, what is broken and what clients see, every quarter of a second."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def case(self, case: Case) -> Iterator[Callable[[Figure, Played], None]]:
        began, seen = time.monotonic(), _Seen(case)
        live = Live(get_renderable=seen, console=self._console, refresh_per_second=4, transient=True)

        def told(figure: Figure, played: Played) -> None:
            seen.played = played

        seen.began = began
        if not self._console.is_terminal:
            yield told
            return
        with live:
            yield told

    def verdict(self, played: Played) -> None:
        colour = "yellow" if played.missing else "green" if played.kept else "red"
        head = f"[bold]{played.case.name}[/]  {escape(played.case.fault)}  [{colour}]{played.verdict}[/]"
        self._console.print(f"{head}  ({played.seconds:.1f} s)", soft_wrap=True)
        self._console.print(f"  promised: {escape(played.case.promise)}", soft_wrap=True)
        if played.missing:
            self._console.print(f"  [yellow]not here: {escape(played.missing)}[/]", soft_wrap=True)
        for figure in played.figures:
            mark = "  ·" if figure.kept else "  [red]✗[/]"
            self._console.print(f"{mark} {escape(str(figure))}", soft_wrap=True)
        for finding in played.findings:
            self._console.print(f"  [red]✗ history: {escape(finding[:1000])}[/]", soft_wrap=True)
        if played.error:
            self._console.print(f"[red]{escape(played.error)}[/]", soft_wrap=True)

    def lost(self, lost: Sequence[str]) -> None:
        for each in lost:
            self._console.print(f"[red]✗ at the end: {escape(each)}[/]", soft_wrap=True)


class _Seen:
    """One line: the case, what is broken, what callers saw in the last seconds."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.began = time.monotonic()
        self.played: Played | None = None

    def __call__(self) -> Text:
        line = Text(f"{self._case.name}  {self._case.fault}  {time.monotonic() - self.began:5.1f} s  ")
        if self.played is not None:
            counts = Counter(each.outcome for each in self.played.log if each.ended)
            for outcome, count in counts.items():
                line.append(f" {outcome} {count:,}", style=_COLOURS[outcome])
        return line


def as_json(played: Played) -> dict[str, Any]:
    return {
        "case": played.case.name,
        "fault": played.case.fault,
        "promise": played.case.promise,
        "verdict": played.verdict,
        "seconds": round(played.seconds, 2),
        "figures": [
            {"what": each.what, "value": each.value, "unit": each.unit, "promised": each.promised, "kept": each.kept}
            for each in played.figures
        ],
        "findings": played.findings,
        "error": played.error,
        "missing": played.missing,
        "answers": dict(Counter(each.outcome for each in played.log)),
    }


def write(file: Path, played: Sequence[Played]) -> None:
    report = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}",
        "cases": [as_json(each) for each in played],
    }
    file.write_text(json.dumps(report, indent=1))


_WIDTH, _LEFT, _STRIP, _GAP, _HEAD = 1400, 300, 56, 14, 40
_FASTEST, _SLOWEST = 0.001, 60.0  # seconds, at the bottom and the top of a strip


def chart(played: Sequence[Played]) -> Image.Image:
    """A strip for each case: time to the right, how long an answer took upwards (logarithmic, 1 ms to 60 s); what was
    broken when, in red behind.
    """
    image = Image.new("RGB", (_WIDTH, _HEAD + len(played) * (_STRIP + _GAP)), "white")
    pen = ImageDraw.Draw(image)
    x = _LEFT
    for outcome, colour in _COLOURS.items():
        pen.rectangle((x, 14, x + 8, 22), fill=colour)
        pen.text((x + 14, 12), outcome, fill="#22252a")
        x += 100
    for number, each in enumerate(played):
        _strip(pen, each, _HEAD + number * (_STRIP + _GAP))
    return image


def _strip(pen: ImageDraw.ImageDraw, played: Played, top: int) -> None:
    bottom, right = top + _STRIP, _WIDTH - 20

    def across(at: float) -> float:
        return _LEFT + (right - _LEFT) * min(1.0, max(0.0, (at - played.began) / max(played.seconds, 0.001)))

    pen.rectangle((_LEFT, top, right, bottom), fill="#f5f6f7")
    for begin, end, _ in played.faults:
        pen.rectangle((across(begin), top, max(across(end), across(begin) + 2), bottom), fill="#f6d5d1")
    for line in (0.01, 0.1, 1.0, 10.0):
        pen.line((_LEFT, _height(line, top), right, _height(line, top)), fill="#dfe2e5")
    for heard in sorted(played.log, key=lambda each: each.outcome in ("failed", "left")):
        _dot(pen, across(heard.ended or heard.began), _height(heard.seconds, top), heard)
    colour = "#a07000" if played.missing else "#2a7f62" if played.kept else "#d1301f"
    pen.text((8, top), f"{played.case.name}  {played.verdict}  {played.seconds:.0f} s", fill=colour)
    for row, words in enumerate(_lines(played.case.fault, 46)[:3]):
        pen.text((8, top + 14 * (row + 1)), words, fill="#22252a")


def _dot(pen: ImageDraw.ImageDraw, x: float, y: float, heard: Heard) -> None:
    size = 3 if heard.outcome == "failed" else 1
    pen.rectangle((x - size, y - size, x + size, y + size), fill=_COLOURS[heard.outcome])


def _height(seconds: float, top: int) -> float:
    share = math.log(max(seconds, _FASTEST) / _FASTEST) / math.log(_SLOWEST / _FASTEST)
    return top + _STRIP - 2 - (_STRIP - 4) * min(1.0, share)


def _lines(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
