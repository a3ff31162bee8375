"""`reprise sizing`: from what is known of a traffic to bytes and settings."""

from __future__ import annotations

import asyncio
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cache.accesses import Access
from cache.settings import MIB, load
from cache.simulate import OVERHEAD, ceiling
from cache.synthetic import SYNTHETIC
from gateway import settings as gateway
from gateway.cli import main
from gateway.recorded import of_encodings, of_gateways, of_results
from gateway.sizing import FIGURES, OUTPUT, RECORD, Bounds, Figure, Source, Traffic, at_once, best, size
from inference import settings as worker
from reprise.v1 import cache_pb2
from tests.gateway.test_cli_gc import plain
from tests.gateway.world import SECRET, World, picture

GIVEN = {
    "rate": 1.0,
    "repeated": 0.5,
    "again": 0.5,
    "span": 1000.0,
    "encodings": 3600.0,
    "session": 100.0,
    "result_bytes": MIB - OVERHEAD,
    "largest_bytes": MIB,
    "latents_bytes": 1000.0,
    "encoding_bytes": MIB / 2,
    "largest_encoding": MIB,
    "device_seconds": 8.0,
    "result_ttl": 7000.0,
    "encoding_ttl": 300.0,
    "gc_every": 10.0,
    "workers": 4.0,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Traces are looked for in a folder of the test's own, and nothing is set."""
    monkeypatch.chdir(tmp_path)
    for name in ("REPRISE_CONFIG", "REPRISE_DATA", "REPRISE_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def given(**changes: float) -> dict[str, Figure]:
    return {name: Figure(value, Source.GIVEN) for name, value in {**GIVEN, **changes}.items()}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["sizing", *map(str, arguments)])


def told(*arguments: object) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert 0 == done.exit_code, done.output
    answer: dict[str, Any] = json.loads(done.output)
    return answer


def write(file: Path, of: str, accesses: list[Access]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"of": of} | access._asdict()) + "\n" for access in accesses))
    return file


def test_a_known_traffic_needs_what_the_law_says() -> None:
    """Rate times stay, and three standard deviations: 2,000 results asked for again, 3,750 in all, and so on."""
    sized = size(best(given()), Bounds(beside=5 * MIB))
    needs = {need.tier: need for need in sized.needs}

    assert (2000 + 135, 3750 + 184, 400 + 60, 25 + 15) == tuple(map(at_once, (2000, 3750, 400, 25)))
    assert 2135 * MIB == needs["L1"].bytes
    assert (2135 + 5 + 120) * MIB == needs["RAM"].bytes
    # A file of nearly a MiB is too large for Redis.
    assert -(-(3934 * (1000 + 3 * OUTPUT) + 460 * (MIB // 2 + OUTPUT)) // MIB) * MIB == needs["L2 Redis"].bytes
    kept = at_once(3750 + 0.5 * 39_600), at_once(400 + 39_600)
    everything = kept[0] * (MIB - OVERHEAD + 1000 + 3 * RECORD) + kept[1] * (MIB // 2 + RECORD)
    assert -(-everything // MIB) * MIB == needs["L3 S3"].bytes
    assert 40 * MIB / 2 == needs["VRAM hot pool"].bytes
    assert -(-(115 - 40) // 2) * MIB == needs["host pool"].bytes
    assert (4.0, 8.0) == (sized.devices.busy, sized.devices.without)
    written = {setting.name: setting.value for need in sized.needs for setting in need.settings}
    assert (2135, 40) == (written["cache.l1.max_entries"], written["worker.pool_entries"])


def test_no_entry_is_too_large_for_its_memory() -> None:
    """However little there is: L1 and the pool take no entry over a share of their bytes."""
    sized = size(best(given(rate=0.001, largest_bytes=10 * MIB, largest_encoding=3 * MIB)), Bounds(0.5, 0.1))
    needs = {need.tier: need.bytes for need in sized.needs}
    assert (21 * MIB, 30 * MIB) == (needs["L1"], needs["VRAM hot pool"])
    sized = size(best(given(result_bytes=20 * MIB)), Bounds())
    assert 2135 * 20 * MIB < sized.needs[0].bytes


def test_a_file_that_redis_takes_lies_there() -> None:
    """So its memory grows with it, and shrinks when files become too large for it."""
    small, middle, large = (
        size(best(given(result_bytes=of)), Bounds()).needs[2].bytes for of in (1000, 1_000_000, 2_000_000)
    )
    assert large - small < 10 * MIB < middle - small


@pytest.mark.parametrize("name", ["sessions", "zipf", "reference"])
def test_recorded_traffic_is_given_the_room_it_takes(name: str) -> None:
    """What it needs as a memory without end shows it, near enough: entries of one stream are not of one size."""
    accesses = list(islice(SYNTHETIC[name](1, 1.0), 30_000))
    traffic = Traffic(of_results(accesses, 7200.0))
    again = traffic["again"] * traffic["span"]
    room = at_once(traffic.new * (7200.0 + again)) * (traffic["result_bytes"] + OVERHEAD)
    assert 0.9 < room / ceiling(accesses, ttl=7200.0).peak_bytes < 1.35


def test_what_accesses_say_of_results() -> None:
    """Of one that is asked for three times, one that comes again too late, and one more."""
    rows = [("a", 0, 100), ("b", 10, 400), ("a", 50, 100), ("a", 90, 100), ("b", 120, 400), ("c", 7200, 800)]
    figures = of_results([Access(float(at), key, weight, weight / 10) for key, at, weight in rows], ttl=110.0)
    assert {
        "rate": 5 / 3600,
        "repeated": pytest.approx(2 / 6),
        "again": 1 / 4,
        "span": 90.0,
        "result_bytes": 425.0,
        "largest_bytes": 800,
        "device_seconds": 42.5,
    } == {name: figure.value for name, figure in figures.items()}
    assert {Source.RECORDED} == {figure.source for figure in figures.values()}


def test_what_accesses_say_of_encodings() -> None:
    """New ones in the busiest hour; where less was recorded, as many as an hour of it would have had."""
    rows = [("p", 0.0, 100), ("q", 300.0, 300), ("p", 600.0, 100)]
    figures = of_encodings([Access(at, key, weight, 1.0) for key, at, weight in rows], ttl=1800.0)
    assert {"encodings": 12.0, "session": 300.0, "encoding_bytes": 200.0, "largest_encoding": 300} == {
        name: figure.value for name, figure in figures.items()
    }
    busy = [*range(0, 36_000, 3600), *range(10_000, 10_500, 10)]
    hours = of_encodings([Access(float(at), f"{at}", 1, 1.0) for at in sorted(busy)], ttl=60.0)
    assert 51 == hours["encodings"].value
    assert {} == of_encodings([], 1.0) == of_results([], 1.0)


def test_what_gateways_have_counted() -> None:
    """Rates of all of them added up, each over its own time; a worker that both know is one."""
    pool = cache_pb2.WorkerStats(address="w", healthy=True, pool_bytes=600, pool_entries=3)
    stats = [
        cache_pb2.StatsResponse(
            requests=[cache_pb2.OutcomeCount(count=asked)],
            generations=asked // 4,
            device_seconds_spent=asked / 2,
            uptime_seconds=uptime,
            workers=[pool],
        )
        for asked, uptime in ((400, 100.0), (400, 200.0))
    ]
    figures = of_gateways([(each, cache_pb2.SavingsResponse()) for each in stats])
    assert {"rate": 6.0, "repeated": 0.75, "device_seconds": 2.0, "encoding_bytes": 200.0, "workers": 1} == {
        name: figure.value for name, figure in figures.items()
    }
    assert {} == of_gateways([(cache_pb2.StatsResponse(), cache_pb2.SavingsResponse())])


def test_recorded_figures_count_before_assumed_ones_and_given_before_both(elsewhere: Path) -> None:
    """And each says which it is."""
    accesses = [Access(float(number), f"{number % 20}", 3000, 2.0) for number in range(3600)]
    write(elsewhere / ".reprise/accesses/results-gateway.jsonl", "result", accesses)
    write(elsewhere / ".reprise/accesses/stages-worker.jsonl", "stage", accesses)

    recorded, changed = told(), told("--result-bytes", "1MiB", "--rate", 2)

    assert (3000, "recorded") == (
        recorded["figures"]["result_bytes"]["value"],
        recorded["figures"]["result_bytes"]["from"],
    )
    assert (1.0, "assumed") == (recorded["figures"]["workers"]["value"], recorded["figures"]["workers"]["from"])
    assert 20 == pytest.approx(recorded["figures"]["encodings"]["value"], rel=0.01)
    assert (MIB, "given") == (changed["figures"]["result_bytes"]["value"], changed["figures"]["result_bytes"]["from"])
    # Another rate has other encodings than those that were recorded: 100 pictures, and a text for each generation.
    assert "assumed" == changed["figures"]["encodings"]["from"]
    new = 2 * (1 - changed["figures"]["repeated"]["value"])
    assert 100 + 3600 * new == pytest.approx(changed["figures"]["encodings"]["value"])


async def test_a_deployment_is_asked_for_what_it_knows(world: World, elsewhere: Path) -> None:
    """Its catalogue for TTLs, its gateway for what was asked and made, its configuration for bounds."""
    scripted = await world.worker()
    await scripted.publish()
    desk = await world.desk(scripted)
    for shade in (1, 2):
        await desk.stored(await desk.animate(image=picture(shade)))
    for _ in range(2):
        await desk.animate(image=picture(1))
    cache = plain(world.cache)
    cache["l1"]["max_share"] = 0.125
    (elsewhere / "reprise.yaml").write_text(
        yaml.safe_dump({"cache": cache, "gateway": {"workers": ["h:1", "h:2"]}, "worker": {"pool_share": 0.5}})
    )

    asked = ("--config", "reprise.yaml", "--largest-bytes", "4MiB")
    silent = await asyncio.to_thread(told, *asked)
    answer = await asyncio.to_thread(told, *asked, "--address", desk.address)

    figures = {name: (figure["value"], figure["from"]) for name, figure in answer["figures"].items()}
    (description,) = scripted.descriptions.values()
    assert (description.final.ttl, "described") == figures["result_ttl"]
    assert (description.stage("picture").ttl, "described") == figures["encoding_ttl"]
    assert (0.5, "recorded") == figures["repeated"]
    assert (1, "recorded") == figures["workers"]
    assert 0 < figures["pictures"][0] <= 2 * 60
    assert (2, "configured") == (silent["figures"]["workers"]["value"], silent["figures"]["workers"]["from"])
    assert (4 * MIB + OVERHEAD) * 8 <= silent["needs"][0]["bytes"]


def test_an_address_of_the_environment_where_nobody_answers_is_done_without(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there for every command. That its counts are missing is said, beside what programs read."""
    monkeypatch.setenv("REPRISE_ADDRESS", "127.0.0.1:9")
    done = run("--json")

    assert (0, "assumed") == (done.exit_code, json.loads(done.stdout)["figures"]["repeated"]["from"])
    assert "what gateways have counted is not known: no gateway answers at 127.0.0.1:9" in done.stderr


def test_the_settings_it_names_exist(elsewhere: Path) -> None:
    """And take what it says: both processes read a file with nothing else in it."""
    named = [setting for need in told()["needs"] for setting in need["settings"]]
    content: dict[str, Any] = {"cache": {"secret": SECRET}}
    for setting in named:
        if setting["file"] == "reprise.yaml":
            *sections, name = setting["name"].split(".")
            place = content
            for section in sections:
                place = place.setdefault(section, {})
            place[name] = setting["value"]
    (elsewhere / "reprise.yaml").write_text(yaml.safe_dump(content))

    door = load(gateway.GatewaySettings, "reprise.yaml", others=gateway.OTHERS)
    home = load(worker.WorkerSettings, "reprise.yaml", others=worker.OTHERS)

    sizes = {setting["name"]: setting["value"] for setting in named}
    assert sizes == {
        "cache.l1.max_bytes": door.cache.l1.max_bytes,
        "cache.l1.max_entries": door.cache.l1.max_entries,
        "maxmemory": sizes["maxmemory"],
        "worker.pool_bytes": home.worker.pool_bytes,
        "worker.pool_entries": home.worker.pool_entries,
        "worker.host_pool_bytes": home.worker.host_pool_bytes,
    }
    assert ["maxmemory"] == [setting["name"] for setting in named if setting["file"] == "redis.conf"]


def test_the_table_has_every_figure_and_every_tier(elsewhere: Path) -> None:
    """With its source, its formula and its setting."""
    done = run("--rate", 3)
    assert 0 == done.exit_code
    lines = done.output.splitlines()
    assert any(line.split()[:4] == ["rate", "3", "/s", "given"] for line in lines)
    assert any(line.split()[:4] == ["span", "1,800", "s", "assumed"] for line in lines)
    for tier in ("L1", "RAM", "L2 Redis", "L3 S3", "VRAM hot pool", "host pool"):
        assert 2 == sum(line.startswith(tier) for line in lines), tier
    assert "cache.l1.max_bytes: " in done.output


def test_what_is_assumed_is_said(elsewhere: Path) -> None:
    """Of which kind of traffic, and no more of it than was assumed."""
    some = run("--rate", 3, "--device-seconds", 2)
    assert "Assumed: repeated (of spoken lines), again, span, pictures, encodings (of videos)," in some.output
    assert "device_seconds" not in some.output.partition("Assumed: ")[2].partition(";")[0]
    every = [(f"--{name.replace('_', '-')}", 1) for name in FIGURES]
    assert "Assumed" not in run(*(word for pair in every for word in pair)).output
    others = (word for pair in every if pair[0] != "--repeated" for word in pair)
    assert "Assumed: repeated (of spoken lines); and that" in run(*others).output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--repeated", 1.5), "--repeated"),
        (("--rate", -1), "--rate"),
        (("--workers", 0), "--workers"),
        (("--result-bytes", "huge"), "'huge' is no size; write 64MiB, 1.5GiB or a number of bytes"),
        (("missing",), "'missing' does not exist"),
        (("empty",), "no accesses in empty: see telemetry.accesses_folder"),
        (("--address", "127.0.0.1:9"), "no gateway answers at 127.0.0.1:9"),
        (("--config", "bad.yaml"), "cache.l1.max_share"),
        (("--config", "share.yaml"), "worker.pool_share: 'half' is no share: write a number over 0, up to 1"),
    ],
)
def test_what_cannot_be_sized_is_said_in_a_sentence(elsewhere: Path, arguments: tuple[object, ...], said: str) -> None:
    """One error, no traceback."""
    (elsewhere / "empty").write_text("no line of this is an access\n")
    cache = {"secret": SECRET, "l2": {"enabled": False}, "l3": {"enabled": False}}
    (elsewhere / "bad.yaml").write_text(yaml.safe_dump({"cache": {**cache, "l1": {"max_share": 2}}}))
    (elsewhere / "share.yaml").write_text(yaml.safe_dump({"cache": cache, "worker": {"pool_share": "half"}}))

    done = run(*arguments)

    assert done.exit_code in (1, 2)
    assert (True, False) == (said in " ".join(done.output.split()), "Traceback" in done.output)


def test_a_catalogue_that_cannot_be_read_costs_the_ttls_alone(elsewhere: Path) -> None:
    """They are assumed, and it is said why."""
    l3 = {"endpoint": "http://127.0.0.1:9", "access_key": "k", "secret_key": "s"}
    (elsewhere / "reprise.yaml").write_text(
        yaml.safe_dump({"cache": {"secret": SECRET, "l2": {"enabled": False}, "l3": l3}})
    )
    done = run("--config", "reprise.yaml")
    assert (0, True) == (done.exit_code, "the models' descriptions are not known: the catalogue cannot" in done.output)
    assert any(line.split()[:4] == ["result_ttl", "7,200", "s", "assumed"] for line in done.output.splitlines())
