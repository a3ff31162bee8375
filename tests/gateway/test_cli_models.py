"""`reprise models`: what a deployment has, and one model more in its configuration."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from click.testing import CliRunner, Result

from cache.settings import SettingsError, load, read
from gateway.cli import main
from gateway.stack.local import SMALL
from gateway.worker_models import NAME, Entry, add, entries, name_of
from inference.models import small
from inference.settings import OTHERS, ModelSettings, WorkerSettings
from tests.gateway.worker import family, speaker
from tests.gateway.world import SECRET, World

COMMIT = "1" * 40
NOWHERE = "127.0.0.1:1"  # nobody listens there
CACHE = f"cache: {{secret: '{SECRET}'}} # drawn by hand\n\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.build(tmp_path_factory.mktemp("models") / "Small SVD", family="svd")


def models(*words: object) -> Result:
    return CliRunner().invoke(main, ["models", *map(str, words)])


def written(folder: Path, worker: str, before: str = CACHE) -> Path:
    file = folder / "reprise.yaml"
    file.write_bytes((before + worker).encode())
    return file


def served_by_a_worker(file: Path) -> dict[str, ModelSettings]:
    return {each.name: each for each in load(WorkerSettings, file, others=OTHERS).worker.models}


# list


def test_a_configuration_is_told_without_a_gateway(tmp_path: Path) -> None:
    """Name, source, pin and type of each model in both forms; that no gateway answers is a sentence and no failure."""
    pinned, loose = f"someone/svd@{COMMIT}", "someone/wan@main"
    entries = f"[{{name: a, source: {pinned}, dtype: float16}}, {{name: b, source: {loose}}}]"
    told = models("list", "--address", NOWHERE, "--config", written(tmp_path, f"worker: {{models: {entries}}}\n"))
    short = models("list", "--address", NOWHERE, "--config", written(tmp_path, "worker: {models: {c: /srv/c}}\n"))
    assert (0, 0) == (told.exit_code, short.exit_code)
    lines = told.stdout.splitlines()
    assert lines[:2] == [
        f"a: someone/svd, revision {COMMIT}, float16",
        f"b: {loose}, not pinned, dtype as the worker has it",
    ]
    assert f"what is served is not known: no gateway answers at {NOWHERE}" in lines[2]
    assert [f"  {each}: {each}-small, with reprise up --model {each}" for each in SMALL] == lines[-len(SMALL) :]
    assert short.stdout.startswith("c: /srv/c, a folder, dtype as the worker has it\n")


def test_an_empty_configuration_says_how_to_fill_it(tmp_path: Path) -> None:
    """With an empty list, an empty section, or none; what is malformed is named and fails."""
    for worker in ("worker: {models: []}\n", "worker:\n", ""):
        file = written(tmp_path, worker)
        told = models("list", "--address", NOWHERE, "--config", file)
        assert told.exit_code == 0
        assert told.stdout.startswith(f"{file} names no model: reprise models add SOURCE --config {file}\n")
    for worker in (
        "worker: {models: [a]}\n",
        "worker: {models: [{name: a}]}\n",
        "worker: {models: a}\n",
        "worker: 3\n",
    ):
        wrong = models("list", "--address", NOWHERE, "--config", written(tmp_path, worker))
        assert (wrong.exit_code, "worker" in wrong.stderr) == (1, True)


async def test_what_workers_serve_is_told_beside_it(world: World, tmp_path: Path) -> None:
    """The active revision is the newest worker's, or the pinned one; a worker with another one is told with its own."""
    old = await world.worker(family("small", "r1"), started_at=1.0)
    new = await world.worker(family("small", "r2"), family("other", "o1"), started_at=2.0)
    desk = await world.desk(old, new)
    file = written(tmp_path, "worker: {models: {small: /srv/small, idle: /srv/idle}}\n")

    def both(*workers: str) -> str:
        return ", ".join(sorted(workers))

    async def told(*options: object) -> str:
        result = await asyncio.to_thread(models, "list", "--address", desk.address, *options)
        assert result.exit_code == 0
        return result.stdout

    lines = (await told("--config", file)).splitlines()
    assert f"  active: r2, on {both(f'{old.address} (revision r1)', new.address)}" == lines[1]
    assert ["idle: /srv/idle, a folder, dtype as the worker has it", "  no worker serves it"] == lines[2:4]
    assert ["other: not in the configuration", f"  active: o1, on {new.address}"] == lines[4:6]
    written(tmp_path, "gateway: {revisions: {small: r1}}\nworker: {models: {small: /srv/small}}\n")
    assert f"  active: r1, on {both(old.address, f'{new.address} (revision r2)')}" in await told("--config", file)

    found: dict[str, Any] = json.loads(await told("--json"))
    assert "answers" == found["gateway"]
    assert {"other": "o1", "small": "r2"} == {each["name"]: each["active"] for each in found["models"]}
    assert {old.address: "r1", new.address: "r2"} == found["models"][1]["workers"]
    assert list(SMALL) == [each["name"] for each in found["families"]]


# show


async def test_what_a_model_takes_is_shown(world: World, tmp_path: Path) -> None:
    """Each parameter: how a command gives it, what it may be, what it is if it is not given; of the active revision."""
    worker = await world.worker(family("small", "r2"), speaker())
    desk = await world.desk(await world.worker(family("small", "r1"), started_at=0.0), worker)

    async def told(*words: object) -> Result:
        return await asyncio.to_thread(models, "show", *words, "--address", desk.address)

    def row(result: Result, name: str) -> list[str]:
        (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"{name} "))
        return [word for part in line.split("  ") if (word := part.strip())]

    small, voice = await told("small"), await told("speaker")
    assert (0, 0) == (small.exit_code, voice.exit_code)
    assert ["small: scripted, revision r2, random weights", "asked for by reprise animate"] == (
        small.stdout.splitlines()[:2]
    )
    assert ["num_frames", "--frames", "a whole number from 1 to 64 frames", "16"] == row(small, "num_frames")
    assert ["prompt", "--prompt", "a text of 1 to 100 characters", "it must be given"] == row(small, "prompt")
    assert "--extra eta=..." in small.stdout
    assert "voice: a recording of 0.5 to 5 s, of at least 8,000 samples per second" in voice.stdout.splitlines()
    assert ["format", "--format", "one of wav, flac, ogg", '"wav"'] == row(voice, "format")

    pinned = written(tmp_path, "gateway: {revisions: {small: r1}}\n")
    found = json.loads((await told("small", "--json", "--config", pinned)).stdout)
    assert ("r1", "animate_image") == (found["revision"], found["task"])
    frames = next(each for each in found["parameters"] if each["name"] == "num_frames")
    assert ("int", 16, 64, "--frames") == tuple(frames[key] for key in ("kind", "default", "maximum", "given_by"))
    nobody = await told("large")
    assert (1, True) == (nobody.exit_code, "no worker serves it now; they serve small, speaker" in nobody.stderr)


async def test_a_model_is_shown_by_a_name_of_the_configuration(world: World, tmp_path: Path) -> None:
    """Without it, that it may have one is said."""
    desk = await world.desk(await world.worker(), aliases={"clips": "small"})
    file = written(tmp_path, "gateway: {aliases: {clips: small}}\n")
    words = ("show", "clips", "--address", desk.address)
    known = await asyncio.to_thread(models, *words, "--config", file)
    unknown = await asyncio.to_thread(models, *words)

    assert (0, "small: scripted,") == (known.exit_code, known.stdout[:16])
    assert (1, True) == (unknown.exit_code, "their other names are known with --config" in unknown.stderr)


@pytest.mark.parametrize("answer", [{"return_value": b"of another version"}, {"side_effect": OSError}])
async def test_workers_that_do_not_answer_are_told_without_revisions(world: World, answer: dict[str, Any]) -> None:
    """The gateway knows that they serve a model; only they know in which revision."""
    worker = await world.worker()
    desk = await world.desk(worker)
    worker.descriptions["small"] = Mock(to_bytes=Mock(**answer))
    result = await asyncio.to_thread(models, "list", "--address", desk.address)
    assert f"small: served\n  active: revision not told, on {worker.address}\n" in result.stdout


def test_a_list_needs_no_torch(tmp_path: Path) -> None:
    """It is for whoever has the gateway alone."""
    program = (
        "import sys\nsys.modules.update(dict.fromkeys(('torch', 'diffusers', 'transformers', 'inference')))\n"
        "from gateway.cli import main\nmain()"
    )
    file = written(tmp_path, "worker: {models: {c: /srv/c}}\n")
    command = [sys.executable, "-c", program, "models", "list", "--address", NOWHERE, "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("c: /srv/c")


# add


def test_a_model_that_checks_is_added_once(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With its whole path and a name of its own; what the check says is passed on. Again, nothing changes."""
    file = written(tmp_path, "worker: # one machine\n  models: {}\n")
    words = ("add", model, "--config", file, "--device", "cpu", "--dtype", "float32")
    first = models(*words)
    assert (0, "StableVideoDiffusionPipeline" in capfd.readouterr().out) == (first.exit_code, True)
    assert f"added small-svd to {file}: {model}\nnext: start a worker, or restart" in first.stdout
    expected = ModelSettings(name="small-svd", source=str(model), dtype="float32")
    assert {"small-svd": expected} == served_by_a_worker(file)

    before = file.read_bytes(), file.stat().st_ino
    again = models(*words)
    assert (0, "in" in again.stdout, "nothing was changed" in again.stdout) == (again.exit_code, True, True)
    assert before == (file.read_bytes(), file.stat().st_ino)


def test_a_model_of_speech_is_checked_and_added_alike(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With its codec; a worker that reads the file has it, and `list` names it."""
    folder = small.build(tmp_path / "Small Voice", family="pocket-tts")
    file = written(tmp_path, "worker: {models: {a: b}}\n")
    added = models("add", folder, "--config", file, "--device", "cpu")
    assert (0, "PocketTTSAudioTokenizerModel" in capfd.readouterr().out) == (added.exit_code, True)
    assert served_by_a_worker(file)["small-voice"].source == str(folder)
    assert "small-voice" in models("list", "--address", NOWHERE, "--config", file).stdout


def test_a_source_that_does_not_check_leaves_the_file_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the check's exit code and sentence. Without torch nothing can be checked, and so nothing is added."""
    file = written(tmp_path, "worker: {models: {a: b}}\n")
    before = file.read_bytes(), file.stat().st_ino
    refused = models("add", tmp_path, "--name", "mine", "--config", file, "--device", "cpu")
    assert (1, "neither a folder nor a hub id" in capfd.readouterr().err) == (refused.exit_code, True)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        without = models("add", tmp_path, "--name", "mine", "--config", file)
    assert (1, "reprise[inference]" in without.stderr) == (without.exit_code, True)
    assert before == (file.read_bytes(), file.stat().st_ino)


def test_a_model_of_the_hub_is_added_pinned(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the commit that its name stood for when it was checked; a file that is a link stays one."""
    snapshots = tmp_path / "home" / "hub" / "models--someone--svd"
    (snapshots / "refs").mkdir(parents=True)
    (snapshots / "refs" / "main").write_text(COMMIT)
    shutil.copytree(model, snapshots / "snapshots" / COMMIT)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = written(tmp_path, "worker: {models: {a: b}}\n")
    (link := tmp_path / "link.yaml").symlink_to(file)

    added = models("add", "someone/svd", "--config", link, "--device", "cpu")
    assert (0, False) == (added.exit_code, "warning" in added.stdout)
    assert f"someone/svd@{COMMIT}" == served_by_a_worker(file)["svd"].source
    assert link.is_symlink()


def test_a_model_that_could_not_be_pinned_is_said_to_be_loose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the check did not learn a commit, what is served may change with a restart."""
    monkeypatch.setattr("gateway.cli.models._checked", lambda source, device, dtype: source)
    file = written(tmp_path, "")
    added = models("add", "someone/svd@main", "--config", file)
    assert "warning: svd is not pinned to a revision" in added.stdout
    assert "someone/svd@main" == served_by_a_worker(file)["svd"].source


NEW = Entry("new", "/srv/new")
HALF = Entry("new", "/srv/new", "float16")


@pytest.mark.parametrize(
    ("before", "entry", "after"),
    [
        ("", NEW, "\nworker:\n  models:\n    - {name: new, source: /srv/new}\n"),
        (
            "worker: # w\ngateway: {}\n",
            NEW,
            "worker: # w\n  models:\n    - {name: new, source: /srv/new}\ngateway: {}\n",
        ),
        (
            "worker:\n    # p\n    port: 1\n",
            NEW,
            "worker:\n    models:\n      - {name: new, source: /srv/new}\n    # p\n    port: 1\n",
        ),
        ("worker: {port: 1} # w\n", NEW, "worker: {models: [{name: new, source: /srv/new}], port: 1} # w\n"),
        (
            "worker:\n  models: [] # m\n  port: 1\n",
            HALF,
            "worker:\n  models: [{name: new, source: /srv/new, dtype: float16}] # m\n  port: 1\n",
        ),
        (
            "worker:\n  models: # m\n  port: 1\n",
            NEW,
            "worker:\n  models: [{name: new, source: /srv/new}] # m\n  port: 1\n",
        ),
        (
            "worker:\n  models: # m\n    # the usual\n    - name: a\n      source: 'b' # good\n\n  # p\n  port: 1\n",
            HALF,
            "worker:\n  models: # m\n    # the usual\n    - name: a\n      source: 'b' # good\n"
            "    - name: new\n      source: /srv/new\n      dtype: float16\n\n  # p\n  port: 1\n",
        ),
        (
            "worker:\n  models:\n  - {source: b, name: a} # good\n  # p\n  port: 1",
            NEW,
            "worker:\n  models:\n  - {source: b, name: a} # good\n  - {name: new, source: /srv/new}\n  # p\n  port: 1",
        ),
        (
            "worker:\n  models: [{name: a, source: b}, # good\n  ]\n",
            NEW,
            "worker:\n  models: [{name: a, source: b}, {name: new, source: /srv/new}, # good\n  ]\n",
        ),
        ("worker:\n  models:\n    a: b # good\n", NEW, "worker:\n  models:\n    a: b # good\n    new: /srv/new\n"),
        ("worker: {models: {a: b}} # w", NEW, "worker: {models: {a: b, new: /srv/new}} # w"),
        ("worker:\r\n  models:\r\n    a: b", NEW, "worker:\r\n  models:\r\n    a: b\r\n    new: /srv/new"),
        (
            "worker:\n  models:\n    a: b\n",
            Entry("on", "/srv/[x], #1: é"),
            "worker:\n  models:\n    a: b\n    'on': '/srv/[x], #1: é'\n",
        ),
    ],
)
def test_nothing_else_in_the_file_changes(tmp_path: Path, before: str, entry: Entry, after: str) -> None:
    """Comments, order, quotes, blank lines and line ends stay, and a worker reads the new model from what is there."""
    file = written(tmp_path, before)
    had = {each.name: ModelSettings(**each.fields()) for each in entries(read(file))}
    assert add(file, entry)
    assert (CACHE + after).encode() == file.read_bytes()
    expected = ModelSettings(**entry.fields())
    assert {**had, entry.name: expected} == served_by_a_worker(file)
    assert not add(file, entry)


def test_a_name_means_one_model(tmp_path: Path) -> None:
    """Another source or type under it is refused with what to change; the same source may have two names."""
    file = written(tmp_path, "worker: {models: [{name: new, source: /srv/new}]}\n")
    before = file.read_bytes()
    for entry, other in ((Entry("new", "/srv/newer"), "source /srv/new"), (HALF, "dtype null")):
        with pytest.raises(SettingsError, match=rf"a model new with {other}: .* --name"):
            add(file, entry)
    assert before == file.read_bytes()
    assert add(file, Entry("newest", "/srv/new"))


@pytest.mark.parametrize(
    ("worker", "words", "sentence"),
    [
        ("worker: {models: {a: b}}\n", ("--dtype", "float16"), "has no place for a dtype"),
        ("worker: {}\n", ("--name", "A cat"), "give another one with --name"),
        ("worker: {models: [3]}\n", (), "worker.models: must be a list"),
        ("worker: [\n", (), "not YAML"),
    ],
)
def test_what_cannot_be_added_is_refused_before_the_check(
    tmp_path: Path, worker: str, words: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model takes long to fetch and to look at, so that comes last."""
    monkeypatch.setattr("gateway.cli.models._checked", lambda *words: pytest.fail("it was checked"))
    file = written(tmp_path, worker)
    before = file.read_bytes()
    refused = models("add", "someone/svd", "--config", file, *words)
    assert (1, True) == (refused.exit_code, sentence in refused.stderr)
    assert before == file.read_bytes()


def test_a_file_that_is_written_otherwise_is_left_to_its_owner(tmp_path: Path) -> None:
    """Where another line would change too, nothing is written, and the sentence has what to put in."""
    file = written(tmp_path, "worker: {models: *m}\n", before=CACHE + "gateway: {revisions: &m {a: b}}\n")
    before = file.read_bytes()
    with pytest.raises(SettingsError, match=r"put this into worker\.models: \{name: new, source: /srv/new\}"):
        add(file, NEW)
    assert before == file.read_bytes()


def test_the_file_is_replaced_whole_with_its_mode_and_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or not at all: a disk that fails leaves the old file, and nothing beside it."""
    file = written(tmp_path, "worker: {models: {a: b}}\n")
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 1234, 4321)
    before, was = file.read_bytes(), file.stat()

    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(SettingsError, match="cannot be written: No space left"):
            add(file, NEW)
    assert (before, [file]) == (file.read_bytes(), list(tmp_path.iterdir()))
    assert add(file, NEW)
    now = file.stat()
    assert (was.st_mode, was.st_uid, was.st_gid) == (now.st_mode, now.st_uid, now.st_gid)
    assert was.st_ino != now.st_ino


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("ali-vilab/i2vgen-xl", "i2vgen-xl"),
        ("Wan-AI/Wan2.1_I2V@v1/x", "wan2.1_i2v"),
        ("/srv/_My models/", "my-models"),
        ("/", ""),
    ],
)
def test_a_source_has_a_name_to_go_by(source: str, name: str) -> None:
    """One that a worker takes, by the same rule as its settings have."""
    assert name_of(source) == name
    assert ModelSettings.model_json_schema()["properties"]["name"]["pattern"] == f"^{NAME.pattern}$"
