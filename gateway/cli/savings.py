"""`reprise savings`: what the cache saved and what it cost, and what in it is not worth its lookups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import click
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from gateway.cli.options import addresses_in, call, console, gateway_options, named_file, refuse_unwritable, write
from gateway.cli.reports import add_up, tier_word
from gateway.cli.warm import tell_earned
from gateway.client import Client
from reprise.v1 import cache_pb2 as pb

_COUNTS = ("reused", "device_seconds_saved", "ran", "device_seconds_spent", "lookups", "lookup_seconds")
_SAVED, _SPENT, _LOOKED = (46, 125, 50), (120, 120, 120), (198, 40, 40)
_BAR, _LABELS, _WIDE, _MARGIN = 14, 170, 560, 16  # pixels


@dataclass(frozen=True)
class Sum:
    """Several rows as one."""

    name: str
    reused: int = 0
    saved: float = 0.0
    ran: int = 0
    spent: float = 0.0
    lookups: int = 0
    lookup_seconds: float = 0.0

    @property
    def net(self) -> float:
        return self.saved - self.lookup_seconds

    @property
    def loses(self) -> bool:
        """It is looked for, and that takes longer than it saves."""
        return self.lookups > 0 and self.net < 0


@click.command()
@gateway_options
@click.option("--png", type=named_file, help="Draw it, too.")
def savings(address: str, api_key: str, png: Path | None) -> None:
    """Show device time saved and spent, and time spent on lookups, by stage, tier, model and tenant."""
    if png is not None:
        refuse_unwritable(png)
    answers = [call(each, api_key, Client.savings) for each in addresses_in(address)]
    rows = [row for answer in answers for row in answer.rows]
    views = {
        "stage": summed(rows, lambda row: row.stage),
        "tier": summed(rows, lambda row: tier_word(row.tier) if row.tier else ("joined" if row.reused else "")),
        "model": summed(rows, lambda row: row.model),
        "tenant": summed(rows, lambda row: row.tenant),
    }
    out = console()
    for title, sums in views.items():
        out.print(_table(title, sums))
        out.print()
    for title in ("stage", "tier"):
        for each in views[title]:
            if each.loses:
                out.print(f"{title} {each.name}: {advice(title, each)}", markup=False)
    ahead = pb.WarmSavings()
    for answer in answers:
        add_up(ahead, answer.warm)
    tell_earned(out, ahead)
    if png is not None:
        write(png, draw([(f"by {title}", views[title]) for title in ("stage", "tier")]))
        out.print(f"drawn: {png}", markup=False)


def advice(title: str, each: Sum) -> str:
    """Of something whose lookups took longer than they saved: how long, and what follows from that."""
    took = (
        f"{each.lookups} lookups took {each.lookup_seconds:.3g} s, and what they found saved {each.saved:.3g} s of a "
        "device so far"
    )
    if title == "stage":
        why = "is cheap to make" if each.reused else "was not found again yet"
        return f"{took}: it {why}. A request's stages are looked for together, so nobody waits for this one by itself"
    if each.name in ("l2", "l3"):
        return (
            f"{took}. If that stays so, `reprise switch tier {each.name} off` saves the wait; what it holds for other "
            "gateways and for after a restart is not found then"
        )
    return took


def summed(rows: Iterable[pb.SavingsRow], name_of: Callable[[pb.SavingsRow], str]) -> list[Sum]:
    """Rows with one name as one; rows without a name are on no account. What saves most comes first."""
    totals: dict[str, list[float]] = {}
    for row in rows:
        if name := name_of(row):
            total = totals.setdefault(name, [0.0] * len(_COUNTS))
            for place, field in enumerate(_COUNTS):
                total[place] += getattr(row, field)
    sums = [
        Sum(name, int(reused), saved, int(ran), spent, int(lookups), seconds)
        for name, (reused, saved, ran, spent, lookups, seconds) in totals.items()
    ]
    return sorted(sums, key=lambda each: (-each.net, each.name))


def _table(title: str, sums: Sequence[Sum]) -> Table:
    table = Table(box=None)
    for column in (title, "reused", "saved s", "ran", "spent s", "lookups", "lookup s", "net s"):
        table.add_column(column, justify="left" if column == title else "right")
    for each in sums:
        table.add_row(
            each.name,
            f"{each.reused:,}",
            f"{each.saved:.3f}",
            f"{each.ran:,}",
            f"{each.spent:.3f}",
            f"{each.lookups:,}",
            f"{each.lookup_seconds:.3f}",
            f"{each.net:z.3f}",
        )
    return table


def draw(views: Sequence[tuple[str, Sequence[Sum]]]) -> bytes:
    """A PNG with three bars for each sum: seconds saved, spent, and spent on lookups."""
    font = ImageFont.load_default(12)
    lines = sum(2 + 4 * len(sums) for _, sums in views) + 2
    image = Image.new("RGB", (_LABELS + _WIDE + 2 * _MARGIN + 90, lines * _BAR + 2 * _MARGIN), "white")
    pen = ImageDraw.Draw(image)
    longest = max(
        (seconds for _, sums in views for each in sums for seconds in (each.saved, each.spent, each.lookup_seconds)),
        default=0.0,
    )
    y = _MARGIN
    for x, (word, colour) in enumerate((("saved", _SAVED), ("spent", _SPENT), ("on lookups", _LOOKED))):
        pen.rectangle((_MARGIN + 130 * x, y, _MARGIN + 130 * x + 10, y + 10), fill=colour)
        pen.text((_MARGIN + 130 * x + 16, y - 2), f"{word}, seconds", fill="black", font=font)
    y += 2 * _BAR
    for title, sums in views:
        pen.text((_MARGIN, y), title, fill="black", font=font)
        y += 2 * _BAR
        for each in sums:
            pen.text((_MARGIN, y + _BAR), each.name[:24], fill="black", font=font)
            for seconds, colour in ((each.saved, _SAVED), (each.spent, _SPENT), (each.lookup_seconds, _LOOKED)):
                width = round(_WIDE * seconds / longest) if longest else 0
                left = _MARGIN + _LABELS
                if seconds > 0:
                    pen.rectangle((left, y + 2, left + max(1, width), y + _BAR - 2), fill=colour)
                    pen.text((left + width + 6, y - 1), f"{seconds:.3f}", fill="black", font=font)
                y += _BAR
            y += _BAR
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
