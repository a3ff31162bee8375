"""The demo: the whole stack on this machine, a real photograph and a real voice, and what is computed when something
changes.

`make demo` runs it. It starts Redis, an S3 server, a worker and two gateways of its own, asks for videos and speech as
a person does who tries things, and leaves under out/demo what was made, sheets to look at, a report and the first
request's waterfall. It fails if an answer did not come from where it should have. SPEECH=cosyvoice3 has that family
speak.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import skimage.data
from PIL import Image
from rich.console import Console

from deploy.demo.contact_sheet import contact_sheet
from deploy.demo.pictures import Pictures
from deploy.demo.rows import OUT, Row, table
from deploy.demo.sound_sheet import sound_sheet
from deploy.demo.speech import Speech
from gateway.cli.stack import shown
from gateway.stack import Stack
from gateway.stack.local import USUAL, compose, refuse_missing
from gateway.stack.ports import free_port

_DATA = OUT / "stack"


async def _play(photo: Path, voice: Path, console: Console) -> tuple[Pictures, Speech]:
    family = os.environ.get("SPEECH", USUAL["synthesize_speech"])
    families = {**USUAL, "synthesize_speech": family}
    with shown(console) as watch:
        stack = Stack(_DATA, watch)
        refuse_missing(workers=1, web_port=None, families=families)
        stack.up(compose(_DATA, port=free_port(), workers=1, gateways=2, families=families))
    doors = [stack.part(name).part.address for name in ("gateway", "gateway-2")]
    pictures, speech = Pictures(photo, doors, console), Speech(voice, doors, console, family)
    try:
        await pictures.play(stack)
        await speech.play()
        await pictures.without_workers(stack)
        _draw_first_trace(pictures.rows[0], console)
    finally:
        with shown(console) as watch:
            Stack(_DATA, watch).down()
    return pictures, speech


def _draw_first_trace(row: Row, console: Console) -> None:
    command = [sys.executable, "-m", "gateway.cli", "trace", row.media[0].result.trace_id]
    drawn = subprocess.run(  # noqa: S603 - our own command line
        [*command, "--data", str(_DATA)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "150"},
    )
    (OUT / "trace.txt").write_text(drawn.stdout)
    console.print("\nThe first request, from span to span (reprise trace ID):")
    console.print(drawn.stdout or drawn.stderr, markup=False, soft_wrap=True)


def _photo() -> Path:
    if own := os.environ.get("PHOTO"):
        return Path(own)
    photo = OUT / "photo.png"
    Image.fromarray(skimage.data.chelsea()).save(photo)
    return photo


def _voice() -> Path:
    """The caller's, else a recording of a person that lies in an installed package."""
    if own := os.environ.get("VOICE"):
        return Path(own)
    try:
        recordings = [Path(file.locate()) for file in files("s3tokenizer") or () if file.suffix == ".wav"]
    except PackageNotFoundError:
        recordings = []
    if not recordings:
        raise SystemExit(
            "There is no recording of a voice here: VOICE=me.wav make demo takes yours, of 3 to 20 seconds."
        )
    return Path(shutil.copyfile(min(recordings), OUT / "voice.wav"))


def main() -> int:
    words = argparse.ArgumentParser(
        prog="python -m deploy.demo",
        description=__doc__,
        epilog="PHOTO=cat.jpg, VOICE=me.wav and SPEECH=cosyvoice3 in the environment take their places.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.parse_args()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=150)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    photo, voice = _photo(), _voice()
    pictures, speech = asyncio.run(_play(photo, voice, console))
    contact_sheet(photo, pictures.rows).save(OUT / "contact-sheet.png")
    sound_sheet(speech.rows, speech.sentences).save(OUT / "sound-sheet.png")
    rows = [*pictures.rows, *speech.rows]
    (OUT / "report.json").write_text(json.dumps({"rows": [row.as_json() for row in rows]}, indent=2))
    console.print(table(rows))
    if any(media.result.random_weights for row in rows for media in row.media):
        console.print(
            "\nThe models have random weights, made for trying things out: what they show and say means nothing."
        )
    made = "Videos, speech, contact-sheet.png, sound-sheet.png, trace.txt and report.json"
    console.print(f"\n{made} are in {OUT.absolute()}", soft_wrap=True)
    wrong = [f"{row.name}: {sentence}" for row in rows for sentence in row.wrong]
    for sentence in wrong:
        console.print(f"[red]not as promised[/]  {sentence}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
