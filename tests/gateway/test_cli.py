"""The command line against a live gateway: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cache.telemetry import SpanFile
from gateway.cli import main
from gateway.identity import hash_key
from gateway.stack.ports import free_port
from tests.gateway.world import PICTURE, Desk, World, eventually, picture


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "cat.png"
    file.write_bytes(PICTURE)
    return file


async def run(*arguments: object, desk: Desk | None = None) -> Result:
    """A command as a user runs it: in a thread of its own, because it has a loop of its own."""
    words = [str(argument) for argument in arguments]
    if desk is not None:
        words += ["--address", desk.address]
    return await asyncio.to_thread(CliRunner().invoke, main, words)


async def test_animate_writes_the_video_and_says_where_it_came_from(world: World, file: Path, tmp_path: Path) -> None:
    """First generated with its steps shown and stored for good, then from memory; the trace is named."""
    worker = await world.worker()
    desk = await world.desk(worker)
    out = tmp_path / "out [cat].mp4"
    command = ("animate", file, "-p", "a cat", "-o", out, "--steps", 3, "--extra", "size=5000")
    cold, warm = await run(*command, "--durable", desk=desk), await run(*command, desk=desk)

    assert (0, 0) == (cold.exit_code, warm.exit_code)
    assert 5000 == len(out.read_bytes())
    for line in (
        f"miss: {out} (5,000 bytes, video/mp4)",
        "denoise, 3 steps",
        "  denoise          run, 4.000 s",
        "device time: 5.000 s spent, 0.000 s saved; seed 42; stored: durable",
        "cache-status: reprise; fwd=uri-miss",
        "The model has random weights, made for trying things out: the video means nothing.",
    ):
        assert line in cold.stdout.splitlines()
    traces = [match[1] for text in (cold.stdout, warm.stdout) if (match := re.search(r"^trace (\w{32})$", text, re.M))]
    assert 2 == len(set(traces))
    assert f"hit from l1: {out} (5,000 bytes, video/mp4)" in warm.stdout.splitlines()
    assert "device time: 0.000 s spent, 5.000 s saved" in warm.stdout
    assert "generation" not in warm.stdout
    assert 1 == worker.generations


async def test_animate_passes_every_option_on(world: World, file: Path, tmp_path: Path) -> None:
    """What is given reaches the worker; what is not is left to the model."""
    worker = await world.worker()
    desk = await world.desk(worker)
    options = "--negative-prompt blur --frames 8 --steps 5 --guidance 7.5 --playback-fps 12 --seed 9 --extra eta=0.5"
    done = await run("animate", file, "-p", "a cat", "-o", tmp_path / "o", *options.split(), "--no-store", desk=desk)
    assert 0 == done.exit_code
    (request,) = worker.requests
    parameters = {name: getattr(value, value.WhichOneof("value")) for name, value in request.parameters.items()}
    expected = {"negative_prompt": "blur", "num_frames": 8, "num_inference_steps": 5, "guidance_scale": 7.5}
    assert expected | {"playback_fps": 12, "seed": 9, "eta": 0.5} == {
        name: parameters[name] for name in (*expected, "playback_fps", "seed", "eta")
    }
    assert request.store_nothing
    assert "stored: not_stored" in done.stdout


async def test_policies_are_words_of_the_command(world: World, file: Path, tmp_path: Path) -> None:
    """Cached only, bypassed, refreshed, not too old, varied."""
    worker = await world.worker()
    desk = await world.desk(worker)
    command = ("animate", file, "-p", "a cat", "-o", tmp_path / "out")
    missing = await run(*command, "--cache", "only-if-cached", desk=desk)
    assert (1, "NOT_FOUND NOT_CACHED" in missing.stderr) == (missing.exit_code, True)
    for options, words in (
        (["--cache", "bypass"], "bypass: "),
        ([], "miss: "),
        (["--cache", "refresh"], "miss: "),
        (["--max-age", "60"], "hit from l1: "),
        (["--fresh"], "miss: "),
    ):
        assert words in (await run(*command, *options, "--durable", desk=desk)).stdout
    assert 4 == worker.generations


async def test_failures_are_sentences(world: World, file: Path, tmp_path: Path) -> None:
    """Exit code 1 or 2, one error, no traceback; which field, what it must be, and when to retry."""
    worker = await world.worker()
    desk = await world.desk(worker)
    lonely = await world.desk()
    nobody = f"127.0.0.1:{free_port()}"
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(picture()[:-20])
    prompt = ("-p", "a cat", "-o", tmp_path / "out")
    cases = [
        (("animate", file, *prompt, "--frames", 65), desk, "num_frames: must be a whole number from 1 to 64 frames"),
        (("animate", file, *prompt, "--frames", -1), desk, "num_frames: this value is out of any range"),
        (("animate", file, *prompt, "--seed", 2**64), desk, "seed: this value is out of any range"),
        (("animate", file, *prompt, "--max-age", "nan"), desk, "max-age"),
        (("animate", file, *prompt, "--extra", "eta"), desk, "'eta' is not NAME=VALUE"),
        (("animate", file, *prompt, "--extra", "size=99999999999999999999"), desk, "extra.size: must be"),
        (("animate", file, *prompt, "--model", "large"), desk, "NOT_FOUND MODEL_UNKNOWN"),
        (("animate", damaged, *prompt), desk, "image: must be a whole file"),
        (("animate", tmp_path / "none.png", *prompt), desk, "does not exist"),
        (("animate", file, "-p", "a", "-o", tmp_path / "no" / "out"), desk, "cannot be written: No such file"),
        (("animate", file, *prompt), lonely, "UNAVAILABLE NEVER_DESCRIBED"),
        (("animate", file, *prompt), lonely, "(retry in 2 s)"),
        (("stats", "--address", nobody), None, f"no gateway answers at {nobody}: start one with `reprise up`"),
        (("trace", "ab" * 16, "--data", tmp_path), None, "is it the right --data, and was it sampled?"),
    ]
    for words, at, said in cases:
        done = await run(*words, desk=at)
        assert done.exit_code in {1, 2}, words
        assert isinstance(done.exception, SystemExit), words
        assert said in " ".join(done.stderr.split()), words
        assert "Traceback" not in done.output


async def test_stats_shows_tiers_answers_and_workers(world: World, file: Path, tmp_path: Path) -> None:
    """Hit rates, what was spent and saved, and who works."""
    worker = await world.worker()
    desk = await world.desk(worker)
    empty = await run("stats", desk=desk)
    assert (0, True) == (empty.exit_code, "answers: none yet; generations: 0" in empty.stdout)
    for _ in range(2):
        await run("animate", file, "-p", "a cat", "-o", tmp_path / "out", "--durable", desk=desk)
    shown = await run("stats", desk=desk)

    assert 0 == shown.exit_code
    lines = shown.stdout.splitlines()
    assert any(re.match(r"l1 +50%", line.strip()) for line in lines)
    assert "answers: 1 miss, 1 hit; generations: 1" in lines
    assert "device time: 5.000 s spent, 5.000 s saved" in lines
    assert f"worker {worker.address}: idle, 3 queued, pool 1 entries (0.0 MiB), small" in lines


async def test_stats_is_for_operators(world: World, tmp_path: Path) -> None:
    """A key of somebody else is refused in a sentence."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"- {{key_sha256: {hash_key('ann')!r}, tenant: t, user: ann}}")
    desk = await world.desk(identity={"mode": "api_keys", "file": keys})
    for key, said in (("ann", "PERMISSION_DENIED OPERATORS_ONLY"), ("eve", "UNAUTHENTICATED CREDENTIALS_UNKNOWN")):
        done = await run("stats", "--api-key", key, desk=desk)
        assert (1, True) == (done.exit_code, said in done.stderr)


async def test_trace_draws_the_request(world: World, file: Path, tmp_path: Path) -> None:
    """Its tiers, its generation and its worker, indented below one another, out of the span files."""
    desk = await world.desk(await world.worker())
    done = await run("animate", file, "-p", "a cat", "-o", tmp_path / "out", "--durable", desk=desk)
    found = re.search(r"^trace (\w{32})$", done.stdout, re.M)
    assert found is not None

    async def complete() -> bool:
        return {"reprise.generate", "reprise.v1.MediaService/AnimateImage"} <= {span.name for span in desk.spans}

    await eventually(complete)
    await asyncio.to_thread(write_spans, desk, tmp_path)
    drawn = await run("trace", found[1].upper(), "--data", tmp_path)

    assert 0 == drawn.exit_code
    rows = [match[0] for line in drawn.stdout.splitlines() if (match := re.match(r" *(reprise|cache)[\w./]+", line))]
    assert [
        "reprise.v1.MediaService/AnimateImage",
        "  cache.l1",
        "  cache.l2",
        "  cache.l3",
        "  reprise.generate",
        "    reprise.worker",
    ] == rows
    assert "█" in drawn.stdout


def write_spans(desk: Desk, data: Path) -> None:
    file = SpanFile(data / "spans" / "gateway.jsonl")
    file.export(desk.spans)
    file.shutdown()
    with (data / "spans" / "gateway.jsonl").open("a") as more:
        more.write('{"name": "half a li')
