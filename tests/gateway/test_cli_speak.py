"""`reprise speak`, and requests for speech in the other commands."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main
from tests.gateway.speech import VOICE, samples_in, voice
from tests.gateway.test_cli import run
from tests.gateway.worker import family, speaker
from tests.gateway.world import PICTURE, World


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "ann.wav"
    file.write_bytes(VOICE)
    return file


def plain(text: str) -> list[str]:
    """Lines, with no more than one space between two words."""
    return [re.sub(" +", " ", line).strip() for line in text.splitlines()]


async def test_speak_says_what_was_said_before(world: World, file: Path, tmp_path: Path) -> None:
    """Sentence by sentence as it is made, live with the time to the first audio; then what was made and what not."""
    worker = await world.worker(speaker())
    desk = await world.desk(worker)
    out = tmp_path / "out.wav"
    command = ("speak", file, "-o", out, "--durable")
    cold = await run(*command, "--text", "A cat. A dog.", "--live", desk=desk)
    edited = await run(*command, "-t", "A cat. A cow. A dog. A cow.", desk=desk)
    longer = out.read_bytes()
    warm = await run(*command, "--text", "A cat. A dog.", desk=desk)

    assert (0, 0, 0) == (cold.exit_code, edited.exit_code, warm.exit_code), cold.output
    assert (8000, True) == (samples_in(longer)[0], len(longer) > len(out.read_bytes()))
    lines = plain(cold.stdout)
    assert lines.index("latents, sentence 1 of 2, 1 steps") < lines.index("first audio")
    assert lines.index("first audio") < lines.index("latents, sentence 2 of 2, 1 steps")
    assert any(re.fullmatch(r"first audio after \d\.\d{3} s", line) for line in lines)
    assert f"miss: {out} ({len(out.read_bytes()):,} bytes, audio/wav)" in lines
    assert "latents run for 2 of 2 sentences, 4.000 s; new" in lines
    assert "The model has random weights, made for trying things out: the speech means nothing." in lines
    lines = plain(edited.stdout)
    assert "latents, sentence 2 of 4, 1 steps" in lines
    assert "latents run for 1 of 4 sentences, 2.000 s; new; 1 reused, 2.000 s saved" in lines
    assert "waveform run for 1 of 4 sentences, 0.500 s; new; 3 reused, 1.500 s saved" in lines
    assert "prefix reused from l2, 0.250 s saved" in lines
    assert f"hit from l1: {out} ({len(out.read_bytes()):,} bytes, audio/wav)" in plain(warm.stdout)
    assert "first audio" not in warm.stdout


async def test_speak_passes_every_option_on(world: World, file: Path, tmp_path: Path) -> None:
    """What is given reaches the worker; what is not is left to the model; folding is said."""
    worker = await world.worker(speaker())
    desk = await world.desk(worker)
    options = "--instruction happily --speed 1.5 --format flac --rate 16000 --seed 9 --extra temperature=0.5 --fold"
    marks = ("--pronounce", "dog=D AO1 G", "--pronounce", "cat=K AE1 T")
    command = ("speak", file, "-t", "A cat!", "-o", tmp_path / "out", *options.split(), *marks)
    done = await run(*command, "--no-store", desk=desk)

    assert 0 == done.exit_code, done.output
    (request,) = worker.requests
    parameters = {name: getattr(value, value.WhichOneof("value")) for name, value in request.parameters.items()}
    assert {
        "text": "A cat.",
        "instruction": "happily",
        "pronunciations": "cat\tK AE1 T\ndog\tD AO1 G",
        "speed": 1.5,
        "format": "flac",
        "sample_rate": 16000,
        "seed": 9,
        "temperature": 0.5,
    } == parameters
    assert request.store_nothing
    assert "read with other punctuation than it was written with" in plain(done.stdout)
    assert (tmp_path / "out").read_bytes().startswith(b"fLaC")


async def test_speech_is_what_the_name_of_its_file_says(world: World, file: Path, tmp_path: Path) -> None:
    """Without --format; or it goes to standard output, and nothing else does."""
    desk = await world.desk(await world.worker(speaker()))
    named = await run("speak", file, "-t", "A cat.", "-o", tmp_path / "a.flac", desk=desk)
    piped = await run("speak", file, "-t", "A cat.", "-o", "-", "--format", "flac", desk=desk)
    assert (0, 0) == (named.exit_code, piped.exit_code), named.output
    assert piped.stdout_bytes == (tmp_path / "a.flac").read_bytes()
    assert piped.stdout_bytes.startswith(b"fLaC")


async def test_a_text_may_be_long(world: World, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From standard input or from a file; without --out it is written beside the recording's name, and not over it."""
    monkeypatch.chdir(tmp_path)
    worker = await world.worker(speaker())
    desk = await world.desk(worker)
    text = tmp_path / "text.txt"
    text.write_text("Ein Kätzchen.\nA dog.\n", "utf-8")
    words = ["speak", str(file), "--address", desk.address, "--text"]
    piped = await asyncio.to_thread(CliRunner().invoke, main, [*words, "-"], "Ein Kätzchen.\nA dog.\n")
    read = await run("speak", file, "--text-file", text, desk=desk)

    assert (0, 0) == (piped.exit_code, read.exit_code), piped.output
    assert "hit from" in read.stdout or "coalesced" in read.stdout
    recording, spoken = [(tmp_path / name).read_bytes() for name in ("ann.wav", "ann-speech.wav")]
    assert VOICE == recording != spoken
    assert spoken.startswith(b"RIFF")
    assert "Ein Kätzchen.\nA dog." == worker.requests[0].parameters["text"].text_value


async def test_failures_are_sentences(world: World, file: Path, tmp_path: Path) -> None:
    """Which option, and what it must be."""
    desk = await world.desk(await world.worker(speaker(), family()))
    short, binary, other = tmp_path / "short.wav", tmp_path / "text", tmp_path / "video.json"
    short.write_bytes(voice(seconds=0.1))
    binary.write_bytes(b"\xff\xfe")
    marks, empty = tmp_path / "marks", tmp_path / "empty"
    marks.write_text("!?")
    empty.touch()
    other.write_text(json.dumps({"prompt": "a cat"}))
    out = ("-o", tmp_path / "out")
    cases = [
        (("speak", file, "-t", "A cat", *out, "--speed", 9), "--speed: must be a finite number from 0.5 to 2"),
        (("speak", file, "-t", "A cat", *out, "--rate", 1), "--rate: must be a whole number from 4000 to 48000"),
        (("speak", file, "-t", "!?", *out), "--text: must be a text of 1 to 300 characters with at least one letter"),
        (("speak", file, "-t", "A cat", *out, "--transcript", "x"), "--transcript: this model has no such parameter"),
        (("speak", file, "-t", "A cat", *out, "--live", "--format", "ogg"), "--live: samples can be had as they are"),
        (("speak", file, "-t", "A cat", *out, "--pronounce", "cat"), "'--pronounce': must be WORD=MARKS"),
        (("speak", short, "-t", "A cat", *out), "VOICE: must"),
        (("speak", file, *out), "say what to say: --text or --text-file"),
        (("speak", file, "-t", "a", "--text-file", binary, *out), "give --text or --text-file, not both"),
        (("speak", file, "--text-file", binary, *out), "is not UTF-8"),
        (("speak", file, "--text-file", marks, *out), "--text-file: must be a text of 1 to 300 characters with"),
        (("speak", file, "--text-file", empty, *out), "--text-file: is empty"),
        (("speak", file, "-t", "A cat", "-o", tmp_path / "out.mp3"), "must end in .wav or .flac or .ogg, or have no"),
        (
            ("speak", file, "-t", "A cat", *out, "--model", "nobody"),
            "--model: no model of this name is served here; ask",
        ),
        (("speak", file, "-t", "A cat", *out, "--model", "small"), "does another task, animate_image; ask for speaker"),
        (("speak", "-t", "A cat"), "give VOICE, or a file with --request"),
        (("speak", "--request", other, *out), "video.json: is a request of another command: animate_image"),
    ]
    for words, said in cases:
        done = await run(*words, desk=desk)
        assert done.exit_code in {1, 2}, words
        assert said in " ".join(done.stderr.split()), (words, done.stderr)
        assert "Traceback" not in done.output


async def test_requests_of_both_kinds_are_files(world: World, file: Path, tmp_path: Path) -> None:
    """Saved, run again, explained alone and after others of either kind, and warmed in one call."""
    worker = await world.worker(speaker(), family())
    desk = await world.desk(worker)
    (tmp_path / "cat.png").write_bytes(PICTURE)
    first, second, video = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "video.json"
    video.write_text(json.dumps({"image": "@cat.png", "prompt": "a cat"}))
    words = ("-o", tmp_path / "out", "--durable")
    await run("speak", file, "-t", "A cat. A dog.", "--pronounce", "cat=K", *words, "--save-request", first, desk=desk)
    again = await run("speak", "--request", first, *words, desk=desk)
    second.write_text(json.dumps(json.loads(first.read_text()) | {"text": "A cat. A cow. A bird."}))
    alone = await run("explain", second, desk=desk)
    third = tmp_path / "c.json"
    third.write_text(json.dumps(json.loads(first.read_text()) | {"text": "A cow. A mouse."}))
    after = await run("explain", second, third, desk=desk)
    mixed = await run("explain", video, third, desk=desk)
    both = tmp_path / "both.json"
    both.write_text("\n".join(json.dumps(json.loads(each.read_text())) for each in (second, video, first)))
    warmed = await run("warm", both, desk=desk)

    assert [0] * 5 == [done.exit_code for done in (again, alone, after, mixed, warmed)], warmed.output
    assert {"voice": "@ann.wav", "text": "A cat. A dog.", "pronunciations": [{"word": "cat", "spoken": "K"}]} == {
        name: value for name, value in json.loads(first.read_text()).items() if name != "cache_policy"
    }
    assert "hit from l1" in again.stdout
    lines = plain(alone.stdout)
    assert "latents run, 2 of 3 sentences new about 4.000" in lines
    assert "waveform run, 2 of 3 sentences new about 1.000" in lines
    assert "device time: about 5.250 s to spend, 3.250 s saved" in lines
    assert any(line.endswith("differs in text") for line in lines)
    lines = plain(after.stdout)
    assert "latents run, 1 of 2 sentences new about 2.000" in lines
    assert "device time: about 2.750 s to spend, 3.250 s saved" in lines
    assert "latents run, 2 of 2 sentences new about 4.000" in plain(mixed.stdout)
    assert "2 made, 1 were there, 0 joined, 0 over budget, 0 refused; 10.250 device s" in warmed.stdout
