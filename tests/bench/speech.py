"""`python -m tests.bench.speech`: the reference traffic, spoken. How many generations are avoided, beside what an ideal
cache would avoid, and how long callers wait for their first sound and for all of it, by what answered. Then, with
nothing else to do, one caller hears lines again: from memory, from Redis, and from the object store.

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
from collections import defaultdict
from collections.abc import Sequence
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
from gateway.stack import Stack
from gateway.stack.local import compose
from gateway.stack.ports import free_port
from gateway.stack.redis import flush
from inference.models.small.parts import WORDS
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import GenerationEvent, SynthesizeSpeechRequest
from tests.bench.traffic import lines
from tests.servers import leashed

_CALLERS = 4
_AGAIN = 200  # lines that are heard again
_PROMPT = 0.010  # seconds in which a hit should answer
_RATE = 16_000  # samples per second of the recording


@dataclass
class Waits:
    """Seconds, of all answers of one kind."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "answers": len(self.whole),
            "first_audio_ms": _told(self.first),
            "whole_ms": _told(self.whole),
            "within_10_ms": sum(seconds < _PROMPT for seconds in self.whole) / len(self.whole),
        }


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


async def speak(door: Client, voice: bytes, line: int, waits: defaultdict[str, Waits]) -> None:
    heard = _Heard()
    request = SynthesizeSpeechRequest(voice=voice, text=text_of(line), live=True)
    report = (await door.speak(request, on_event=heard)).report
    kinds = {pb.OUTCOME_HIT: tier_word(report.tier), pb.OUTCOME_COALESCED: "joined"}
    told = waits[kinds.get(report.outcome) or "worker"]
    told.first.append(heard.first)
    told.whole.append(time.perf_counter() - heard.started)


async def play(address: str, drawn: Sequence[int], callers: int) -> tuple[dict[str, Waits], int]:
    """Lines said to as many callers, each asking as soon as it has heard the last: waits, and generations it took."""
    left, voice = iter(drawn), recording()
    waits: defaultdict[str, Waits] = defaultdict(Waits)

    async def call() -> None:
        async with Client(address) as door:
            for line in left:
                await speak(door, voice, line, waits)

    async with Client(address) as counter:
        before = (await counter.stats()).generations
        await asyncio.gather(*(call() for _ in range(callers)))
        return dict(waits), (await counter.stats()).generations - before


def hear_again(stack: Stack, known: Sequence[int]) -> dict[str, Waits]:
    """By one caller, from each tier in turn. `known` are lines that have been heard of late."""
    gateway, redis = stack.part("gateway").part, stack.part("redis").part
    waits: dict[str, Waits] = {}

    def again(tier: str) -> None:
        heard, _ = asyncio.run(play(gateway.address, known, callers=1))
        waits[f"{tier}, alone"] = heard[tier]

    asyncio.run(play(gateway.address, known, callers=1))  # so that memory has them all
    again("l1")
    stack.restart("gateway")
    again("l2")
    flush(int(redis.address.rpartition(":")[2]), operators=redis.folder)
    stack.restart("gateway")
    again("l3")
    return waits


@click.command()
@click.option("--requests", type=click.IntRange(min=2), default=1000, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/bench"))
def main(requests: int, out: Path) -> None:
    """Speak the reference traffic."""
    console = Console(highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    drawn = list(islice(lines(), requests))
    different = list(dict.fromkeys(drawn))
    data = Path(tempfile.mkdtemp(prefix="reprise-speech-"))
    try:
        with leashed(data) as stack:
            stack.up(compose(data, port=free_port(), workers=1, gateways=1))
            waits, generations = asyncio.run(play(stack.part("gateway").part.address, drawn, _CALLERS))
            waits |= hear_again(stack, different[-_AGAIN:])
    finally:
        shutil.rmtree(data, ignore_errors=True)
    table = Table(box=None)
    for heading in ("answered by", "answers", "first audio p50, p99 ms", "whole p50, p99 ms", "within 10 ms"):
        table.add_column(heading, justify="left" if heading == "answered by" else "right")
    by = {kind: waits[kind].as_json() for kind in sorted(waits)}
    for kind, told in by.items():
        times = (f"{told[name]['p50']}, {told[name]['p99']}" for name in ("first_audio_ms", "whole_ms"))
        table.add_row(kind, str(told["answers"]), *times, f"{told['within_10_ms']:.1%}")
    console.print(table)
    avoided, ideal = 1 - generations / requests, 1 - len(different) / requests
    console.print(
        f"\n{generations} generations for {requests} requests: {avoided:.1%} avoided; an ideal cache, {ideal:.1%}"
    )
    counts = {"requests": requests, "generations": generations, "avoided": avoided, "ideal": ideal}
    (out / "speech.json").write_text(json.dumps({**counts, "by": by}, indent=1))


if __name__ == "__main__":
    main()
