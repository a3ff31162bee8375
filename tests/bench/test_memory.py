from __future__ import annotations

import io

from rich.console import Console

from tests.bench.memory import measure, parser


async def test_the_bench_measures_what_it_says() -> None:
    """Tiny, and without a look at times: one picture is encoded once, without the cache at every try."""
    out = io.StringIO()
    options = "--device cpu --tries 2 --width 64 --height 64 --frames 2 --steps 1"

    told = await measure(parser().parse_args(options.split()), Console(file=out, width=200))

    assert [each.encoded for each in told.without] == [True, True]
    assert [each.encoded for each in told.cached] == [True, False]
    assert 0 < max(each.peak for each in told.cached) < 1.02 * told.library
    assert "the picture was encoded 1 times" in out.getvalue()
