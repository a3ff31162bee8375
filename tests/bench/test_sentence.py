from __future__ import annotations

import io

from rich.console import Console

from tests.bench.sentence import main, parser


def test_the_bench_measures_what_it_says() -> None:
    """Small, and without a look at times: every stage is counted, and sound in pieces is what is decoded at once."""
    out = io.StringIO()
    told = main(parser().parse_args(["--tries", "1"]), Console(file=out, width=200))
    assert list(told.seconds) == ["tokens", "voice", "prefix", "latents", "waveform", "pace", "file"]
    assert told.bytes["latents"] < told.bytes["prefix"] < told.bytes["file"] < told.bytes["waveform"]
    assert told.apart <= 1
    assert 0 < told.first
    assert f"{told.spoken:.2f} s of speech" in out.getvalue()
