"""`python -m tests.bench.speech`: the reference traffic, spoken. How many generations are avoided, beside what an ideal
cache would avoid, and how long callers wait for their first sound and for all of it, by what answered.

Everything is real: Redis, the S3 server, a gateway, and a worker with the small speech model.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import shutil
import tempfile
import time
import wave
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from gateway.cli.reports import tier_word
from gateway.client import Client
from gateway.stack.local import compose
from gateway.stack.ports import free_port
from inference.models.small.parts import WORDS
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import GenerationEvent, SynthesizeSpeechRequest
from tests.bench.traffic import lines
from tests.servers import leashed

_CLIENTS = 4
_RATE = 16_000  # samples per second of the recording


@dataclass
class Waits:
    """Seconds, of all answers of one kind."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"answers": len(self.whole), "first_audio_ms": _told(self.first), "whole_ms": _told(self.whole)}


class _Heard:
    """When a caller hears something for the first time."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first = 0.0  # seconds after that

    def __call__(self, event: GenerationEvent) -> None:
        if event.HasField("samples") and not self.first:
            self.first = time.perf_counter() - self.started


def _told(seconds: list[float]) -> dict[str, float]:
    last = quantiles(seconds, n=100)[98] if len(seconds) > 1 else seconds[0]
    return {"p50": round(median(seconds) * 1000, 2), "p99": round(last * 1000, 2)}


def text_of(line: int) -> str:
    """A sentence of its own for every line."""
    chance = random.Random(f"text {line}")
    words = chance.choices(WORDS.split(), k=chance.randint(4, 9))
    return f"{' '.join(words).capitalize()} {line}."


def recording() -> bytes:
    """Three seconds that sound like a voice as far as a model of random weights can tell, as a WAV file."""
    at = np.arange(3 * _RATE) / _RATE
    voiced = sum(np.sin(2 * np.pi * 120 * number * at) / number for number in range(1, 12))
    pcm = (voiced * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * at)) * 6000).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(_RATE)
        out.writeframes(pcm.tobytes())
    return file.getvalue()


async def play(address: str, requests: int) -> tuple[dict[str, Waits], dict[str, float]]:
    """Waits by what answered; requests, generations, and how many an ideal cache would have had."""
    drawn = list(islice(lines(), requests))
    left, voice = iter(drawn), recording()
    waits: defaultdict[str, Waits] = defaultdict(Waits)
    outcomes: Counter[int] = Counter()

    async def client() -> None:
        async with Client(address) as door:
            for line in left:
                heard = _Heard()
                media = await door.speak(
                    SynthesizeSpeechRequest(voice=voice, text=text_of(line), live=True), on_event=heard
                )
                outcome = media.report.outcome
                outcomes[outcome] += 1
                kind = {pb.OUTCOME_HIT: tier_word(media.report.tier) or "worker", pb.OUTCOME_COALESCED: "joined"}
                told = waits[kind.get(outcome, "worker")]
                told.first.append(heard.first)
                told.whole.append(time.perf_counter() - heard.started)

    async with Client(address) as counter:
        before = (await counter.stats()).generations
        await asyncio.gather(*(client() for _ in range(_CLIENTS)))
        generations = (await counter.stats()).generations - before
    avoided, ideal = 1 - generations / requests, 1 - len(set(drawn)) / requests
    return dict(waits), {"requests": requests, "generations": generations, "avoided": avoided, "ideal": ideal}


@click.command()
@click.option("--requests", type=click.IntRange(min=2), default=1000, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/bench"))
def main(requests: int, out: Path) -> None:
    """Speak the reference traffic."""
    console = Console(highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="reprise-speech-"))
    try:
        with leashed(data) as stack:
            stack.up(compose(data, port=free_port(), workers=1, gateways=1))
            waits, counts = asyncio.run(play(stack.part("gateway").part.address, requests))
    finally:
        shutil.rmtree(data, ignore_errors=True)
    table = Table(box=None)
    for heading in ("answered by", "answers", "first audio p50, p99 ms", "whole p50, p99 ms"):
        table.add_column(heading, justify="left" if heading == "answered by" else "right")
    for kind, each in sorted(waits.items()):
        first, whole = _told(each.first), _told(each.whole)
        table.add_row(kind, str(len(each.whole)), f"{first['p50']}, {first['p99']}", f"{whole['p50']}, {whole['p99']}")
    console.print(table)
    told = f"{counts['generations']:.0f} generations for {counts['requests']:.0f} requests"
    console.print(f"\n{told}: {counts['avoided']:.1%} avoided; an ideal cache, {counts['ideal']:.1%}")
    report = {**counts, "by": {kind: each.as_json() for kind, each in waits.items()}}
    (out / "speech.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
