"""Sizes as people write and read them: 64MiB, 1.5GiB, or a number of bytes."""

from __future__ import annotations

from typing import Any

import click

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


class Size(click.ParamType[int]):
    """Bytes, at least one."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        number, unit = next(((text[: -len(unit)], unit) for unit in _UNITS if text.endswith(unit)), (text, ""))
        try:
            size = int(float(number) * _UNITS.get(unit, 1))
        except (ValueError, OverflowError):
            size = 0
        if size <= 0:
            self.fail(f"{text!r} is no size; write 64MiB, 1.5GiB or a number of bytes", param, ctx)
        return size


class Sizes(click.ParamType[list[int]]):
    """Several, with commas in between."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        return sorted({Size().convert(part, param, ctx) for part in str(value).split(",")})


def size_word(size: float) -> str:
    unit, scale = next(((unit, scale) for unit, scale in reversed(_UNITS.items()) if size >= scale), ("bytes", 1))
    return f"{size / scale:,.0f} {unit}" if size >= 100 * scale else f"{size / scale:.3g} {unit}"
