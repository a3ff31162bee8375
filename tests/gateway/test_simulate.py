"""`reprise simulate`: from recorded files and from synthetic streams to a table, advice and a chart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cache.accesses import Access
from cache.simulate import replay
from gateway.cli import main
from gateway.cli.chart import draw


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["simulate", *map(str, arguments)])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Charts are drawn, and traces looked for, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _record(file: Path, of: str = "result", *, count: int = 400, size: int = 2000) -> list[Access]:
    """A dear favourite between cheap ones that come in turn."""
    accesses = [
        Access(
            float(number), "dear" if number % 4 == 0 else f"cheap {number % 9}", size, 30.0 if number % 4 == 0 else 1.0
        )
        for number in range(count)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"of": of} | access._asdict()) + "\n" for access in accesses))
    return accesses


def test_what_the_stack_noted_is_found_where_it_keeps_everything(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its default folder, or in the one that is named."""
    monkeypatch.delenv("REPRISE_DATA", raising=False)
    _record(elsewhere / "there" / "accesses" / "results-gateway.jsonl")
    assert 1 == _run().exit_code
    for done in (_run("--data", "there"), CliRunner(env={"REPRISE_DATA": "there"}).invoke(main, ["simulate"])):
        assert (0, True) == (done.exit_code, "recorded results: 400 lookups" in done.output)


def test_recorded_results_are_replayed_for_l1_and_l2(elsewhere: Path) -> None:
    """Every size and policy has its row, every curve its advice, and the stream its chart."""
    accesses = _record(elsewhere / "results.jsonl")

    done = _run("results.jsonl", "--sizes", "4KiB, 1MiB", "--share", 1)

    assert 0 == done.exit_code, done.output
    expected = replay(accesses, "value", 4096, ttl=7200.0)
    rows = [line.split() for line in done.output.splitlines()]
    assert 6 == sum(row[:1] in (["L1"], ["L2"]) and row[1] != "with" for row in rows)
    (row,) = (row for row in rows if row[:4] == ["L1", "value", "4", "KiB"])
    assert [f"{expected.hit_rate:.1%}", f"{expected.byte_hit_rate:.1%}", f"{expected.cost_saved:,.1f}"] == row[4:7]
    assert "recorded results: 400 lookups of 10 entries in 0.1 h" in done.output
    for curve in ("L1 with lru: ", "L1 with value: ", "L2 with lfu: "):
        assert curve in done.output
    with Image.open("out/simulate/recorded-results.png") as chart:
        assert (900, 540) == chart.size


def test_recorded_stages_are_replayed_for_pools(elsewhere: Path) -> None:
    """Whatever files they are in; and results beside them."""
    _record(elsewhere / "stages.jsonl", "stage")
    _record(elsewhere / "results.jsonl", "result")

    done = _run("stages.jsonl", "results.jsonl", "--policy", "value", "--out", "charts")

    assert 0 == done.exit_code, done.output
    assert "recorded stages: " in done.output
    assert "pool with value: " in done.output
    assert "lru" not in done.output
    assert {"recorded-stages.png", "recorded-results.png"} == {file.name for file in (elsewhere / "charts").iterdir()}


def test_ages_and_the_largest_value_of_redis_are_kept_to(elsewhere: Path) -> None:
    """What is asked for again after its TTL is a miss; what L2 does not take is one always."""
    lines = [{"of": "result", "at": at, "key": "video", "size": 2 << 20, "cost": 40.0} for at in (0, 600)]
    (elsewhere / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def hit_rates(ttl: int) -> list[str]:
        done = _run("results.jsonl", "--sizes", "1GiB", "--ttl", ttl)
        return [row[4] for row in map(str.split, done.output.splitlines()) if row[2:4] == ["1", "GiB"]]

    assert ["50.0%", "50.0%", "0.0%"] == hit_rates(601)
    assert ["0.0%", "0.0%", "0.0%"] == hit_rates(600)


def test_without_files_the_local_stack_is_looked_at(elsewhere: Path) -> None:
    """Rotated ones too."""
    _record(elsewhere / ".reprise/accesses/results-gateway-1.jsonl")
    _record(elsewhere / ".reprise/accesses/results-gateway-2.jsonl.1")

    assert "recorded results: 800 lookups" in _run("--sizes", "1MiB").output


def test_a_size_is_advised_from_which_on_more_does_not_pay(elsewhere: Path) -> None:
    """Six sizes up to all that there is are tried if none are named; a high price buys less."""
    _record(elsewhere / "results.jsonl", size=1_000_000)

    cheap, dear = _run("results.jsonl", "--share", 1), _run("results.jsonl", "--worth", 1e12, "--sizes", "8MiB,16MiB")

    assert "L1 with value: 16 MiB; from there on a GiB more saves 0.0 device seconds an hour" in cheap.output
    assert "L1 with value: 8 MiB; from there on" in dear.output


def test_no_size_is_advised_that_is_too_small_for_what_it_is_for(elsewhere: Path) -> None:
    """Nothing saved for any price does not make it less than the largest entry takes with its share; nor than a MiB."""
    _record(elsewhere / "results.jsonl", size=1_000_000)
    _record(elsewhere / "stages.jsonl", "stage")
    done = _run("results.jsonl", "stages.jsonl", "--worth", 1e12, "--policy", "value")

    lines = done.output.splitlines()
    assert any(
        line.startswith("L1 with value: 4 MiB, the least in whole MiB that keeps its largest entry (977 KiB, ")
        for line in lines
    )
    assert any(
        line.startswith("pool with value: 1 MiB, the least in whole MiB that keeps its largest entry (2.45 KiB,")
        for line in lines
    )
    assert any(
        line.startswith("L2 with lfu: 1 MiB, the least in whole MiB that keeps its largest entry (977 KiB,")
        for line in lines
    )
    assert "a GiB more" not in done.output  # that is known of the sizes that were tried


def test_synthetic_streams_need_no_files(elsewhere: Path) -> None:
    """Several at once, each with its own table and chart."""
    done = _run("--synthetic", "reference,stages", "--lookups", 500, "--sizes", "1MiB,64MiB", "--entries", 20)

    assert 0 == done.exit_code, done.output
    assert "reference: 500 lookups" in done.output
    assert "stages: 500 lookups" in done.output
    assert {"reference.png", "stages.png"} == {file.name for file in (elsewhere / "out/simulate").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            (),
            "no accesses in .reprise/accesses: set telemetry.accesses_folder and let requests come, name its files",
        ),
        (("empty",), "no accesses in empty"),
        (("empty", "--synthetic", "zipf"), "not both"),
        (("missing",), "'missing' does not exist"),
        (("--synthetic", "zipf,pareto"), "'pareto' is none of zipf, reference, scan, bursts, sessions, stages"),
        (
            ("--synthetic", "zipf", "--sizes", "1MiB,huge"),
            "'huge' is no size; write 64MiB, 1.5GiB or a number of bytes",
        ),
        (("--synthetic", "zipf", "--sizes", "0"), "'0' is no size"),
        (("--synthetic", "zipf", "--policy", "fifo"), "'fifo' is none of value, lru"),
        (("--synthetic", "zipf", "--lookups", "50", "--out", "empty/out"), "empty/out/zipf.png: cannot be written"),
    ],
)
def test_what_cannot_be_simulated_is_said_in_a_sentence(elsewhere: Path, arguments: tuple[str, ...], told: str) -> None:
    """And how it would work."""
    (elsewhere / "empty").write_text("no line of this is an access\n")

    done = _run(*arguments)

    assert done.exit_code in (1, 2)
    assert told in " ".join(done.output.split())


def test_a_chart_shows_every_curve() -> None:
    """In a colour of its own, from the lower left, where nothing is saved, to the upper right."""
    points = {"one": [(1024, 0.0), (4096, 10.0)], "two": [(1024, 2.0), (4096, 5.0)]}
    both = draw("t", points, unit="s", ceiling=10.0, sizes={1024: "1 KiB", 4096: "4 KiB"})
    one = draw("t", {"one": points["one"]}, unit="s", ceiling=10.0, sizes={1024: "1 KiB", 4096: "4 KiB"})
    lower_left, upper_right, second = (90, 480), (750, 60), (750, 270)

    assert [(11, 110, 153)] * 2 == [one.getpixel(spot) for spot in (lower_left, upper_right)]
    assert (255, 255, 255) == one.getpixel((90, 396))
    assert (200, 85, 61) == both.getpixel((90, 396)) == both.getpixel(second)


def test_a_chart_of_one_size_and_of_nothing_saved_is_drawn() -> None:
    """There is no scale to divide by."""
    chart = draw("t", {"one": [(1024, 0.0)]}, unit="s", ceiling=0.0, sizes={1024: "1 KiB"})

    assert (900, 540) == chart.size
