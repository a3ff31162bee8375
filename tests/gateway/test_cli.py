"""The command line against a live gateway: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from click import ClickException
from click.testing import CliRunner, Result
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image
from skimage import data

from cache.description import Parameter
from cache.telemetry import SpanFile, trace_id_of
from gateway.cli import main
from gateway.cli.options import call
from gateway.client import Client
from gateway.identity import hash_key
from gateway.stack.ports import free_port
from tests.gateway.worker import family
from tests.gateway.world import MIB, PICTURE, Desk, World, eventually, picture, problem_of


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
    out = tmp_path / "out [cat]"
    command = ("animate", file, "-p", "a cat", "-o", out, "--steps", 3, "--extra", "size=5000")
    cold, warm = await run(*command, "--durable", desk=desk), await run(*command, desk=desk)

    assert (0, 0) == (cold.exit_code, warm.exit_code)
    assert 5000 == len(out.read_bytes())
    for line in (
        f"miss: {out} (5,000 bytes, video/mp4)",
        "denoise, 3 steps",
        "  denoise          run, 4.000 s; new",
        "device time: 5.000 s spent, 0.000 s saved; seed 42; stored: durable",
        "cache-status: reprise; fwd=uri-miss; detail=new",
        "The model has random weights, made for trying things out: the video means nothing.",
    ):
        assert line in cold.stdout.splitlines()
    traces = [match[1] for text in (cold.stdout, warm.stdout) if (match := re.search(r"^trace (\w{32})$", text, re.M))]
    assert 2 == len(set(traces))
    assert f"hit from l1: {out} (5,000 bytes, video/mp4)" in warm.stdout.splitlines()
    assert "device time: 0.000 s spent, 5.000 s saved" in warm.stdout
    assert "generation" not in warm.stdout
    assert 1 == worker.generations


async def test_animate_prints_a_url(world: World, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of writing a file, or beside it; where there can be none it says so and writes the file."""
    monkeypatch.chdir(tmp_path)
    worker = await world.worker()
    desk, without = await world.desk(worker, http_port=0), await world.desk(worker)
    out = tmp_path / "out"
    command = ("animate", file, "-p", "a cat", "--url")
    printed, both = await run(*command, desk=desk), await run(*command, "-o", out, desk=desk)
    urls = re.findall(r"^url, good until \d\d:\d\d:\d\d UTC: (http://127\.0\.0\.1:\S+)$", printed.stdout, re.M)

    assert [0, 0] == [printed.exit_code, both.exit_code]
    assert "miss: not written (1,000 bytes, video/mp4)" in printed.stdout.splitlines()
    assert not (tmp_path / "cat.mp4").exists()
    assert urls[0] in both.stdout
    name = re.findall(r"^generation (\S+)$", printed.stdout, re.M)[0]
    watched = await run("watch", name, "-o", tmp_path / "watched.mp4", desk=desk)
    assert 0 == watched.exit_code
    inline = await run(*command, desk=without)
    assert "There is no URL" in inline.stdout
    files = [out, tmp_path / "watched.mp4", tmp_path / "cat.mp4"]
    assert [1000] * 3 == [len(file.read_bytes()) for file in files]
    assert 1 == len({file.read_bytes() for file in files})


async def test_animate_passes_every_option_on(world: World, file: Path, tmp_path: Path) -> None:
    """What is given reaches the worker; what is not is left to the model."""
    worker = await world.worker()
    desk = await world.desk(worker)
    options = "--negative-prompt blur --frames 8 --steps 5 --guidance 7.5 --playback-fps 12 --seed 9 --extra eta=0.5"
    options += " --crop 2,1,9,12 --rotate 90"
    done = await run("animate", file, "-p", "a cat", "-o", tmp_path / "o", *options.split(), "--no-store", desk=desk)
    assert 0 == done.exit_code
    (request,) = worker.requests
    parameters = {name: getattr(value, value.WhichOneof("value")) for name, value in request.parameters.items()}
    expected = {"negative_prompt": "blur", "num_frames": 8, "num_inference_steps": 5, "guidance_scale": 7.5}
    assert expected | {"playback_fps": 12, "seed": 9, "eta": 0.5} == {
        name: parameters[name] for name in (*expected, "playback_fps", "seed", "eta")
    }
    assert (12, 9) == (request.pictures["image"].width, request.pictures["image"].height)  # cut out, and turned
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


async def test_the_file_is_what_its_name_says(world: World, file: Path, tmp_path: Path) -> None:
    """Whatever the case of the ending; of a saved request, too. What has no ending is as the model has it."""
    parameters = (*family().parameters, Parameter(name="format", kind="choice", default="mp4", choices=("mp4", "webm")))
    worker = await world.worker(family().model_copy(update={"parameters": parameters}))
    desk = await world.desk(worker)
    saved = tmp_path / "a.json"
    new = ("animate", file, "-p", "a cat", "--no-store", "--cache", "bypass")
    await run(*new, "-o", tmp_path / "a.WebM", "--save-request", saved, desk=desk)
    await run("animate", "--request", saved, "-o", tmp_path / "b.mp4", desk=desk)
    await run(*new, "-o", tmp_path / "c", desk=desk)
    assert ["webm", "mp4", "mp4"] == [request.parameters["format"].text_value for request in worker.requests]


async def test_a_file_can_go_to_standard_output(world: World, file: Path) -> None:
    """And nothing else does; the rest is told beside it."""
    desk = await world.desk(await world.worker())
    made = await run("animate", file, "-p", "a cat", "-o", "-", desk=desk)
    name = re.findall(r"^generation (\S+)$", made.stderr, re.M)[0]
    watched = await run("watch", name, "-o", "-", desk=desk)
    assert (0, 0) == (made.exit_code, watched.exit_code)
    assert 1000 == len(made.stdout_bytes)
    assert made.stdout_bytes == watched.stdout_bytes
    assert "miss: standard output (1,000 bytes, video/mp4)" in made.stderr.splitlines()


async def test_a_request_is_not_saved_among_what_is_told(world: World, file: Path) -> None:
    """Standard output has that, or the file; it is said before anything is generated."""
    worker = await world.worker()
    desk = await world.desk(worker)
    done = await run("animate", file, "-p", "a cat", "-o", "-", "--save-request", "-", desk=desk)
    assert (2, b"", 0) == (done.exit_code, done.stdout_bytes, worker.generations)
    assert "--save-request" in done.stderr
    assert "name a file" in done.stderr


async def test_a_terminal_gets_no_file(world: World, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before anything is generated."""
    worker = await world.worker()
    desk = await world.desk(worker)
    monkeypatch.setattr("gateway.cli.options._is_a_terminal", lambda: True)
    done = await run("animate", file, "-p", "a cat", "-o", "-", desk=desk)
    assert (1, 0) == (done.exit_code, worker.generations)
    assert "standard output is a terminal" in done.stderr


async def test_what_is_not_exact_is_said(world: World, tmp_path: Path) -> None:
    """With `--similar` a near-duplicate's encodings may stand in, and the command says that they did."""
    desk = await world.desk(await world.worker())
    photograph = Image.fromarray(data.astronaut())
    files = [tmp_path / f"{quality}.jpg" for quality in (90, 80)]
    for file in files:
        photograph.save(file, quality=int(file.stem))
    first, second = [
        await run("animate", each, "-p", "a cat", "-o", tmp_path / "out", "--similar", "--durable", desk=desk)
        for each in files
    ]
    assert "not exact" not in first.stdout
    assert re.search(r"^  not exact: a near-duplicate of the image stood in, \d of 256 bits away$", second.stdout, re.M)


async def test_failures_are_sentences(world: World, file: Path, tmp_path: Path) -> None:
    """Exit code 1 or 2, one error, no traceback; which field, what it must be, and when to retry."""
    worker = await world.worker()
    desk = await world.desk(worker)
    lonely = await world.desk()
    nobody = f"127.0.0.1:{free_port()}"
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(picture()[:-20])
    large = tmp_path / "large.png"
    large.write_bytes(bytes(16 * MIB + 1))
    prompt = ("-p", "a cat", "-o", tmp_path / "out")
    cases = [
        (("animate", file, *prompt, "--frames", 65), desk, "--frames: must be a whole number from 1 to 64 frames"),
        (("animate", file, *prompt, "--frames", -1), desk, "--frames: must be a whole number from 0 to 4294967295;"),
        (
            ("animate", file, *prompt, "--seed", 2**64),
            desk,
            "--seed: must be a whole number from 0 to 9007199254740991;",
        ),
        (("animate", file, *prompt, "--max-age", "nan"), desk, "max-age"),
        (("animate", file, *prompt, "--crop", "1,2,3"), desk, "'--crop': must be four numbers of pixels"),
        (("animate", file, *prompt, "--crop", "9,0,8,8"), desk, "--crop width: must lie inside the upright picture"),
        (("animate", file, *prompt, "--extra", "eta"), desk, "'eta' is not NAME=VALUE"),
        (("animate", file, *prompt, "--extra", "size=99999999999999999999"), desk, "--extra size: must be"),
        (
            ("animate", file, *prompt, "--model", "large"),
            desk,
            "NOT_FOUND MODEL_UNKNOWN: --model: no model of this name is",
        ),
        (("animate", file, *prompt, "--model", "large"), desk, "is served here; ask for small"),
        (("animate", file, *prompt, "--cache", "only-if-cached"), desk, "NOT_CACHED: --cache: not cached, and"),
        (("animate", file, *prompt, "--deadline", 0.000001), desk, "DEADLINE_EXCEEDED: --deadline: the answer was not"),
        (("animate", file, "-p", "\udcff", "-o", tmp_path / "out"), desk, "--prompt: must be text in UTF-8"),
        (("animate", file, *prompt, "--deadline", 0), desk, "'--deadline': must be more than 0 seconds, at most"),
        (("animate", file, *prompt, "--deadline", "nan"), desk, "'--deadline': must be more than 0 seconds, at most"),
        (
            ("animate", file, "-p", "a", "-o", tmp_path / "out.avi"),
            desk,
            "must end in .mp4 or .webm, or have no ending",
        ),
        (
            ("animate", file, "-p", "a", "-o", "a.webm", "--format", "mp4"),
            desk,
            "is not what --format mp4 makes: change",
        ),
        (("pin", "foo"), desk, "FIELD_INVALID: ADDRESS: must be an address as answers name it"),
        (("pin", "foo", "--off"), desk, "FIELD_INVALID: ADDRESS: must be an address as answers name it"),
        (("animate", damaged, *prompt), desk, "PICTURE: must be a whole file"),
        (("animate", tmp_path / "none.png", *prompt), desk, "does not exist"),
        (("animate", file, "-p", "a", "-o", tmp_path / "no" / "out"), desk, "cannot be written: there is no folder"),
        (("animate", large, *prompt), desk, "must have at most 16,777,216 bytes; it has 16,777,217"),
        (("watch", "nobody"), desk, "NOT_FOUND GENERATION_UNKNOWN"),
        (("cancel", "nobody"), desk, "NOT_FOUND GENERATION_UNKNOWN"),
        (("animate", file, *prompt, "--deadline", 1), lonely, "UNAVAILABLE NEVER_DESCRIBED"),
        (("animate", file, *prompt, "--deadline", 1), lonely, "(retry in 2 s)"),
        (("stats", "--address", nobody), None, f"no gateway answers at {nobody}: start one with `reprise up`"),
        (("trace", "ab" * 16, "--data", tmp_path), None, "is it the right --data, and was it sampled?"),
    ]
    for words, at, said in cases:
        done = await run(*words, desk=at)
        assert done.exit_code in {1, 2}, words
        assert isinstance(done.exception, SystemExit), words
        assert said in " ".join(done.stderr.split()), words
        assert "Traceback" not in done.output


async def test_a_request_is_saved_and_run_again(world: World, file: Path, tmp_path: Path) -> None:
    """The file names the picture by its path and holds all that was said; what is said beside it changes it."""
    worker = await world.worker()
    desk = await world.desk(worker)
    (tmp_path / "requests").mkdir()
    saved, changed = tmp_path / "requests" / "a.json", tmp_path / "b.json"
    out = ("-o", tmp_path / "out")
    options = "--frames 8 --guidance 7.5 --seed 9 --extra eta=0.5 --extra size=2000 --max-age 60 --cache refresh"
    first = await run("animate", file, "-p", "ein Kätzchen", *options.split(), *out, "--save-request", saved, desk=desk)
    again = await run("animate", "--request", saved, "--cache", "use", "--durable", *out, desk=desk)
    words = ("--request", saved, "--seed", 10, "--cache", "use", "--save-request", changed)
    other = await run("animate", *words, *out, desk=desk)

    assert (0, 0, 0) == (first.exit_code, again.exit_code, other.exit_code)
    assert "@../cat.png" == json.loads(saved.read_text())["image"]
    assert "@cat.png" == json.loads(changed.read_text())["image"]
    assert "hit from l1" in again.stdout
    assert "  denoise          run, 4.000 s; new" in other.stdout.splitlines()
    assert re.search(r"^nearest earlier request: 20.*, differs in seed$", other.stdout, re.M)
    one, two = (dict(request.parameters) for request in worker.requests)
    assert {"seed"} == {name for name in one if one[name] != two[name]}
    assert "ein Kätzchen" == one["prompt"].text_value


async def test_explain_tells_what_is_computed_again(world: World, file: Path, tmp_path: Path) -> None:
    """Per stage, from where, why and how long; after another request what differs; nothing is generated for it."""
    worker = await world.worker()
    desk = await world.desk(worker)
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    words = ("animate", file, "-p", "a cat", "-o", tmp_path / "out", "--durable", "--save-request")
    await run(*words, first, desk=desk)
    second.write_text(json.dumps(json.loads(first.read_text()) | {"num_frames": 8, "format": ""}))
    alone, unmade = await run("explain", second, desk=desk), tmp_path / "c.json"
    unmade.write_text(json.dumps({"image": "@cat.png", "prompt": "a dog", "playbackFps": 9}))
    after = await run("explain", second, unmade, desk=desk)
    first.write_text(json.dumps({"image": "@cat.png", "prompt": "a dog", "cache_policy": {"mode": 4}}))
    refused = await run("explain", first, desk=desk)

    assert (0, 0, 0) == (alone.exit_code, after.exit_code, refused.exit_code)
    lines = [re.sub(" +", " ", line).strip() for line in alone.stdout.splitlines()]
    assert f"{second}: would be a miss (new)" in lines
    assert {"text reused l2 0.250", "picture reused l2 0.500", "denoise run new about 4.000"} <= set(lines)
    assert "device time: about 4.250 s to spend, 0.750 s saved" in lines
    assert any(re.fullmatch(r"nearest earlier request: .*, differs in num_frames", line) for line in lines)
    lines = [re.sub(" +", " ", line).strip() for line in after.stdout.splitlines()]
    assert f"{unmade} after {second}: would be a miss (new)" in lines
    assert {"picture reused l2 0.500", "text run new about 0.250"} <= set(lines)
    assert any(line.endswith("differs in playback_fps, prompt") for line in lines)
    assert f"{first}: would be refused: not cached (new), and its policy forbids to generate" in refused.stdout
    assert 1 == worker.generations


async def test_a_file_that_is_no_request_is_told_so(world: World, tmp_path: Path) -> None:
    """What is wrong with it, and no traceback."""
    desk = await world.desk(await world.worker())
    cases = {
        "{": "is not JSON",
        "[]": "must be an object with the fields of a request",
        '{"frames": 3}': "is no request",
        '{"image": "@none.png"}': "none.png: cannot be read",
        '{"prompt": "a cat"}': "image: give a picture",
    }
    for number, (content, said) in enumerate(cases.items()):
        wrong = tmp_path / f"{number}.json"
        wrong.write_text(content)
        done = await run("explain", wrong, desk=desk)
        assert (1, True) == (done.exit_code, said in done.stderr), (content, done.stderr)
        assert "Traceback" not in done.output
    done = await run("animate", "-p", "a cat", desk=desk)
    assert (2, True) == (done.exit_code, "give PICTURE, or a file with --request" in done.stderr)


async def test_durable_waits_for_a_hit_as_well(world: World, file: Path, tmp_path: Path) -> None:
    """Whoever's request made it: the exit code tells whether it is stored."""
    worker = await world.worker()
    gate = worker.hold("stored")
    desk = await world.desk(worker)
    command = ("animate", file, "-p", "a cat", "-o", tmp_path / "out")
    assert "stored: pending" in (await run(*command, desk=desk)).stdout
    asked = asyncio.create_task(run(*command, "--durable", desk=desk))
    await eventually(
        lambda: desk.metric("reprise_cache_lookups_total", tier="l1", outcome="hit"), wanted=lambda hits: hits > 1
    )
    gate.open()
    done = await asked

    assert (0, 1) == (done.exit_code, worker.generations)
    assert (True, True) == ("hit from l1" in done.stdout, "stored: durable" in done.stdout), done.stdout


async def test_the_file_is_there_while_durable_waits(world: World, file: Path, tmp_path: Path) -> None:
    """Whatever becomes of the gateway then."""
    worker = await world.worker()
    gate = worker.hold("stored")
    out = tmp_path / "out"
    command = ("animate", file, "-p", "a cat", "-o", out, "--durable")
    asked = asyncio.create_task(run(*command, desk=await world.desk(worker)))

    async def written() -> bool:
        return out.exists() and len(out.read_bytes()) == 1000

    try:
        await eventually(written)
        assert not asked.done()
    finally:
        gate.open()
        done = await asked
    assert (0, True) == (done.exit_code, "stored: durable" in done.stdout)


async def test_durable_fails_where_nothing_is_stored(world: World, file: Path, tmp_path: Path) -> None:
    """The file is there all the same."""
    desk = await world.desk(await world.worker())
    out = tmp_path / "out"
    done = await run("animate", file, "-p", "a cat", "-o", out, "--no-store", "--durable", desk=desk)

    assert (1, 1000) == (done.exit_code, len(out.read_bytes()))
    assert "stored: not_stored" in done.stdout


async def test_animate_survives_a_gateway(world: World, file: Path, tmp_path: Path) -> None:
    """The one it asked goes down in the middle: it says so, asks the next one, and the video is there."""
    worker = await world.worker()
    gate = worker.hold("step")
    going, staying = await world.desk(worker, grace=60.0), await world.desk(worker, grace=60.0)
    out = tmp_path / "out"
    command = ("animate", file, "-p", "a cat", "-o", out, "--address", f"{going.address},{staying.address}")
    asked = asyncio.create_task(run(*command, "--durable"))
    await gate.reached.wait()
    await going.close()

    async def plans() -> int:
        return len(worker.requests)

    await eventually(plans, wanted=lambda count: count == 2)
    gate.open()
    done = await asked

    assert (0, 1, 1000) == (done.exit_code, worker.generations, len(out.read_bytes()))
    said = done.stdout.splitlines()
    assert 2 == sum(line.startswith("generation ") for line in said)
    assert 1 == sum(line.startswith("the connection broke: asking again in 0.") for line in said)
    assert f"coalesced: {out} (1,000 bytes, video/mp4)" in said


async def test_nothing_is_generated_for_a_file_that_cannot_be_written(world: World, file: Path, tmp_path: Path) -> None:
    """That its folder is missing is seen before the request is sent."""
    worker = await world.worker()
    desk = await world.desk(worker)
    done = await run("animate", file, "-p", "a cat", "-o", tmp_path / "no" / "out", desk=desk)
    assert (1, 0) == (done.exit_code, worker.generations)


async def test_an_interrupt_cancels_the_generation(world: World, file: Path, tmp_path: Path) -> None:
    """Ctrl-C says in a line that it is cancelled, and exits with 130; the worker stops."""
    worker = await world.worker()
    worker.hold("step")
    desk = await world.desk(worker, grace=60.0)
    words = ["animate", str(file), "-p", "a cat", "-o", str(tmp_path / "out"), "--address", desk.address]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", *words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            name = (await process.stdout.readline()).decode().split()[-1]
            assert b"queued" in await process.stdout.readline()
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert (130, b"") == (process.returncode, err)
    assert f"cancelled generation {name}" == out.decode().splitlines()[-1]

    async def stopped() -> int:
        return worker.cancelled

    assert 1 == await eventually(stopped)
    assert not (tmp_path / "out").exists()


async def test_a_generation_is_watched_and_cancelled_by_its_name(world: World, tmp_path: Path) -> None:
    """What was made can be written by whoever watches; what is under way can be given up."""
    worker = await world.worker()
    desk = await world.desk(worker)
    made = await desk.animate()
    out = tmp_path / "again.mp4"
    watched = await run("watch", made.name, "-o", out, desk=desk)
    assert (0, made.data) == (watched.exit_code, out.read_bytes())
    assert f"miss: {out} (1,000 bytes, video/mp4)" in watched.stdout.splitlines()
    assert "stored: durable" in watched.stdout

    worker.hold("step")
    running = desk.follow("a dog")
    cancelled = await run("cancel", await running.name(), desk=desk)
    assert (0, f"cancelled generation {await running.name()}\n") == (cancelled.exit_code, cancelled.stdout)
    assert grpc.StatusCode.CANCELLED == (await problem_of(running.task)).code


async def test_a_fault_names_its_trace() -> None:
    """Whoever reports it has the id at hand."""
    status = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0])
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="INTERNAL", domain="reprise"))
    status.details.add().Pack(error_details_pb2.RequestInfo(request_id="ab" * 16))
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), trailers, "a fault")

    async def fail(_client: Client) -> None:
        raise error

    with pytest.raises(ClickException, match=f"INTERNAL INTERNAL: a fault \\(trace {'ab' * 16}\\)"):
        await asyncio.to_thread(call, "127.0.0.1:1", "", fail)


def test_stages_that_were_reused_are_drawn_as_such(tmp_path: Path) -> None:
    """With the tier they came from, and with device seconds that were saved, not spent."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("worker.run") as root:
        for stage, outcome, more in (("text", "reused", {"reprise.cache.tier": "l2"}), ("denoise", "run", {})):
            told: dict[str, Any] = {"reprise.stage.outcome": outcome, "reprise.device_seconds": 1.5, **more}
            tracer.start_span(f"stage.{stage}", attributes=told).end()
    file = SpanFile(tmp_path / "spans" / "worker.jsonl")
    file.export(spans.get_finished_spans())
    file.shutdown()
    provider.shutdown()
    drawn = CliRunner().invoke(main, ["trace", trace_id_of(root), "--data", str(tmp_path)])

    rows = {line.split()[0]: re.split("([█░])+", line) for line in drawn.stdout.splitlines()}
    told = {name: (row[1], row[2].strip()) for name, row in rows.items() if name.startswith("stage.")}
    assert {
        "stage.text": ("░", "outcome reused, device seconds saved 1.500, tier l2"),
        "stage.denoise": ("█", "outcome run, device seconds 1.500"),
    } == told


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
    assert "answers: 1 miss, 1 hit (50% without a generation of their own); generations: 1" in lines
    assert any(line.startswith("hit rates are of lookups: of files, and of each stage's") for line in lines)
    assert "device time: 5.000 s spent, 5.000 s saved" in lines
    assert f"worker {worker.address}: idle, 3 queued, pool 1 entries (0.0 MiB), small" in lines


async def test_an_address_is_pinned_and_let_go(world: World) -> None:
    """Who has heard, and all that is pinned; what is no address is refused by name."""
    desk, one = await world.desk(), f"{'0' * 32}/{'1' * 64}"

    pinned, off, wrong = [await run("pin", *words, desk=desk) for words in ((one,), (one, "--off"), ("a cat",))]

    assert f"pinned: {one}" in pinned.stdout
    assert "heard by" in pinned.stdout
    assert "pinned: nothing" in off.stdout
    assert (1, True) == (wrong.exit_code, "address as answers name it" in wrong.stderr)


async def test_a_switch_of_what_nobody_serves_says_so(world: World) -> None:
    """It is in force, for who may serve it one day; a typing error is seen all the same."""
    desk = await world.desk(await world.worker())
    wrong, right = [await run("switch", "model", name, "off", desk=desk) for name in ("smal", "small")]
    assert "no worker serves smal now; they serve small" in wrong.stdout
    assert "off: model smal, model small" in right.stdout
    assert "no worker" not in right.stdout


async def test_what_has_finished_is_not_cancelled(world: World, file: Path, tmp_path: Path) -> None:
    """It says so, and what was made can be watched and asked for as before."""
    desk = await world.desk(await world.worker())
    done = await run("animate", file, "-p", "a cat", "-o", tmp_path / "out", desk=desk)
    (name,) = re.findall(r"^generation (\S+)$", done.stdout, re.M)

    told = await run("cancel", name, desk=desk)
    watched = await run("watch", name, "-o", tmp_path / "again", desk=desk)

    assert f"generation {name} had finished already" in told.stdout
    assert (0, (tmp_path / "out").read_bytes()) == (watched.exit_code, (tmp_path / "again").read_bytes())
    (address,) = re.findall(r"^address (\S+)$", done.stdout, re.M)
    assert 0 == (await run("inspect", address, desk=desk)).exit_code


async def test_stats_is_for_operators(world: World, tmp_path: Path) -> None:
    """A key of somebody else is refused in a sentence."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"- {{key_sha256: {hash_key('ann')!r}, tenant: t, user: ann}}")
    desk = await world.desk(identity={"mode": "api_keys", "file": keys})
    for key, said in (("ann", "PERMISSION_DENIED OPERATORS_ONLY"), ("eve", "UNAUTHENTICATED CREDENTIALS_UNKNOWN")):
        done = await run("stats", "--api-key", key, desk=desk)
        assert (1, True) == (done.exit_code, said in done.stderr)


async def test_inspect_says_where_an_entry_lies_and_how_it_was_made(world: World) -> None:
    """By the address of an answer; what cannot be found or read is a sentence."""
    desk = await world.desk(await world.worker())
    made = await desk.animate("A  cat")
    await desk.stored(made)
    shown = await run("inspect", made.report.address, desk=desk)

    assert 0 == shown.exit_code
    lines = [line.split() for line in shown.stdout.splitlines()]
    namespace, _, content_id = made.report.address.partition("/")
    assert ["record", content_id, "in", "namespace", namespace] == lines[0]
    assert [["l1", "hit"], ["l2", "hit"], ["l3", "hit"]] == [
        line[:2] for line in lines if line[0] in ("l1", "l2", "l3")
    ]
    rows = {" ".join(line[:-1]) if line[0] == "canonical" else line[0]: line for line in lines}
    assert ["model", "small", "r1"] == rows["model"]
    assert ["stage", "render"] == rows["stage"]
    assert "1,000" in rows["output"]
    assert namespace in rows["canonical address"][-1]
    for key, said in (
        ("cat.png", "INVALID_ARGUMENT FIELD_INVALID: KEY: must be r/"),
        (f"{'0' * 32}/{'0' * 64}", "NOT_FOUND"),
    ):
        done = await run("inspect", key, desk=desk)
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


def test_models_are_checked_by_a_process_with_torch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What that process says is passed on with its exit code; without torch there is a sentence."""
    result = CliRunner().invoke(main, ["models", "check", str(tmp_path), "--device", "cpu", "--dtype", "float32"])
    assert result.exit_code == 1
    assert "neither a folder nor a hub id of a model" in capfd.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        result = CliRunner().invoke(main, ["models", "check", str(tmp_path)])
    assert (result.exit_code, "reprise[inference]" in result.output) == (1, True)


async def test_warm_makes_what_files_say(world: World, file: Path, tmp_path: Path) -> None:
    """A request, a list, or one a line; what became of each is told, and what it earned on demand."""
    worker = await world.worker()
    desk = await world.desk(worker)
    one, several, lines = tmp_path / "one.json", tmp_path / "several.json", tmp_path / "lines.jsonl"
    requests = [{"image": "@cat.png", "prompt": f"cat {number}"} for number in range(6)]
    one.write_text(json.dumps(requests[0], indent=2))
    several.write_text(json.dumps(requests[1:3]))
    lines.write_text("\n".join(map(json.dumps, [*requests[3:], requests[0]])) + "\n\n")

    told = await run("warm", one, several, lines, "--budget", 28, desk=desk)

    assert 0 == told.exit_code
    assert "   1 of 7: made, 5.000 device s" in told.stdout.splitlines()
    assert "   2 of 7: made, 4.500 device s, estimated 4.500" in told.stdout.splitlines()
    assert "   7 of 7: was there" in told.stdout.splitlines()
    assert "6 made, 1 were there, 0 joined, 0 over budget, 0 refused; 27.500 device s" in told.stdout
    assert 0 == (await run("animate", file, "-p", "cat 4", "-o", tmp_path / "out", desk=desk)).exit_code
    earned = await run("warm", "--status", desk=desk)
    assert "made ahead: 6 results in 27.500 device s; 1 of what was made ahead asked for, 1 hits" in earned.stdout
    assert 6 == worker.generations


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[1]", "must hold objects"),
        ('{"prompt": "x"}\n{"prompt', "line 2 is not JSON"),
        ('{"nothing": 1}', "is no request"),
        ('{"image": "@missing.png"}', "cannot be read"),
    ],
)
async def test_warm_says_what_is_wrong_with_a_file(tmp_path: Path, content: str, told: str) -> None:
    """Before any gateway is asked."""
    file = tmp_path / "wishes.json"
    file.write_text(content)
    refused = await run("warm", file)
    assert (1, True) == (refused.exit_code, told in refused.stderr)


async def test_warm_needs_something_to_warm() -> None:
    """And a tenant where it names a user."""
    assert "give files with requests" in (await run("warm")).stderr
    assert "give --tenant" in (await run("warm", "--frequent", "--user", "ann")).stderr


async def test_warm_makes_what_is_frequent(world: World, file: Path, tmp_path: Path) -> None:
    """And says of one that cannot be made why."""
    desk = await world.desk(await world.worker(), replay={"enabled": True})
    command = ("animate", file, "-p", "a cat", "-o", tmp_path / "out", "--replayable")
    for _ in range(2):
        assert 0 == (await run(*command, desk=desk)).exit_code
    await eventually(lambda: run("warm", "--frequent", desk=desk), wanted=lambda done: "1 were there" in done.stdout)
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"prompt": "a cat"}')
    assert "   1 of 1: refused, FIELD_INVALID image" in (await run("warm", wrong, desk=desk)).stdout


async def test_warm_asks_as_often_as_pictures_are_large(
    world: World, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under one budget, and told as one: what is left of it when it is used up is counted, too."""
    monkeypatch.setattr("gateway.cli.warm._MOST", 2)
    worker = await world.worker()
    desk = await world.desk(worker)
    wishes = tmp_path / "wishes.json"
    wishes.write_text(json.dumps([{"image": "@cat.png", "prompt": f"cat {number}"} for number in range(5)]))

    told = await run("warm", wishes, "--budget", 14, desk=desk)

    assert "   3 of 5: made, 4.500 device s, estimated 4.500" in told.stdout.splitlines()
    assert "3 made, 0 were there, 0 joined, 2 over budget, 0 refused; 14.000 device s" in told.stdout
    assert 3 == worker.generations
