"""`python -m tests.chaos.soak [--minutes 20]`: mixed traffic with faults at intervals, and what grows meanwhile.

Callers ask for what is stored and for what is new, leave, take their question back, upload and download, let words be
spoken; an operator purges. Every half minute something breaks. Only the second gateway and worker are ever killed: the
first ones live through it all, and what they hold is looked at every few seconds.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
import wave
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import click
import grpc
import numpy as np
import uvloop
from blake3 import blake3
from PIL import Image, ImageDraw
from rich.console import Console

from gateway.client import Client
from reprise.v1.cache_pb2 import InvalidateRequest
from reprise.v1.media_pb2 import GenerationEvent, SynthesizeSpeechRequest
from tests.chaos.cases.steps import BOTH_WAYS
from tests.chaos.clients import PATIENCE, Callers, Heard, Oracle, Wish, photo
from tests.chaos.growth import Finding, Look, judge
from tests.chaos.proxy import Fault
from tests.chaos.world import OBJECTS, ONE, OURS, REDIS, TWO, WORKERS, World, standing

_WARM_UP = 0.25  # of a run; nothing should grow after it
_SHORTEST = 10.0  # minutes, of a run that growth is judged of: before that, memory and threads are still being filled
_EVERY = 5.0  # seconds between two looks at the processes
_BREAK_EVERY = 30.0
_STEADY = (ONE, WORKERS[0])  # never restarted
_COLOURS = {"gateway": "#2a7f62", "gateway-2": "#3b6fb5", "worker-1": "#d1301f", "worker-2": "#a07000"}
_Lag: TypeAlias = dict[float, float]  # upper bound of a bucket, in seconds -> how many were within


@dataclass
class Tally:
    """What callers and operators did and saw."""

    requests: int = 0
    failed: int = 0
    wrong: int = 0
    others: Counter[str] = field(default_factory=Counter)  # what was done beside plain requests
    reasons: Counter[str] = field(default_factory=Counter)


class Soak:
    """One run on a world."""

    def __init__(self, world: World, callers: Callers, tell: Callable[[str], None]) -> None:
        self.world = world
        self.callers = callers
        self.tally = Tally()
        self.looks: list[Look] = []
        self.faults: list[tuple[float, float, str]] = []
        self.lags: list[tuple[float, str, float]] = []
        self._tell = tell
        self._chance = random.Random("soak")
        self._seeds = itertools.count(1)
        self._hot = [Wish(next(self._seeds)) for _ in range(8)]
        self._began = time.monotonic()
        self._over = False
        self._known: dict[str, _Lag] = {}

    @property
    def now(self) -> float:
        return time.monotonic() - self._began

    async def run(self, seconds: float) -> None:
        await self.callers.all(self._hot, ONE, stored=True)
        self._began = time.monotonic()
        habits: list[tuple[Callable[[], Awaitable[None]], float]] = [
            *[(self._hit, 0.1)] * 4,
            *[(self._miss, 1.0)] * 2,
            (self._leave, 2.0),
            (self._take_back, 3.0),
            (self._upload, 2.0),
            (self._purge, 10.0),
            (self._speak, 4.0),
        ]
        tasks = [asyncio.create_task(self._again(habit, pause)) for habit, pause in habits]
        tasks += [asyncio.create_task(each) for each in (self._break(), self._watch(), self._tell_minutes())]
        ended, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        self._over = True
        for task in ended:
            task.result()
        for task in tasks[-2:]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.world.healed()
        await self.world.until_at_rest()
        await self._look()
        self._count_answers()

    async def _again(self, habit: Callable[[], Awaitable[None]], pause: float) -> None:
        while not self._over:
            await habit()
            await asyncio.sleep(self._chance.uniform(0.5, 1.5) * pause)

    # What callers do.

    async def _hit(self) -> None:
        await self.callers.ask(self._chance.choice(self._hot), *self._door())

    async def _miss(self) -> None:
        await self.callers.ask(self._new(), *self._door())

    async def _leave(self) -> None:
        asking = asyncio.create_task(self.callers.ask(self._new(20), *self._door()))
        await asyncio.sleep(self._chance.uniform(0.0, 1.0))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        self.tally.others["left"] += 1

    async def _take_back(self) -> None:
        client, named = self.callers.client(*self._door()), asyncio.get_running_loop().create_future()

        def hear(event: GenerationEvent) -> None:
            if event.HasField("accepted") and not named.done():
                named.set_result(event.accepted.name)

        asking = asyncio.create_task(client.animate(self._new(50).request(), on_event=hear, deadline=PATIENCE))
        await asyncio.wait([asking, named], return_when=asyncio.FIRST_COMPLETED)
        if named.done():
            with suppress(grpc.aio.AioRpcError, ConnectionError):
                await client.cancel(named.result())
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        self.tally.others["taken back"] += 1

    async def _upload(self) -> None:
        content, client = photo(self._chance.randrange(30)), self.callers.client(*self._door())
        try:
            file = (await client.upload(content)).digest
            self.tally.wrong += await client.download(file) != content
            self.tally.others["uploaded"] += 1
        except (grpc.aio.AioRpcError, ConnectionError) as error:
            # It must be durable, and may not be while the object store is away: no request failed for it.
            self.tally.others[f"upload refused: {_code(error)}"] += 1

    async def _purge(self) -> None:
        named = [heard.address for heard in self.callers.log if heard.address and heard.wish in self._hot]
        with suppress(grpc.aio.AioRpcError, ConnectionError):
            async with Client(self.world.door(ONE)) as client:
                async for _ in client.invalidate(InvalidateRequest(digest=self._chance.choice(named or ["0" * 64]))):
                    pass
            self.tally.others["purged"] += 1

    async def _speak(self) -> None:
        request = SynthesizeSpeechRequest(voice=_voice(), text=f"Sentence {next(self._seeds)} of many.", seed=1)
        self.tally.requests += 1
        try:
            media = await self.callers.client(*self._door()).speak(request, deadline=PATIENCE)
            self.tally.wrong += blake3(media.data).hexdigest() != media.result.artifact.hex
            self.tally.others["spoken"] += 1
        except (grpc.aio.AioRpcError, ConnectionError) as error:
            self.tally.failed += 1
            self.tally.reasons[f"speech {_code(error)}"] += 1

    def _door(self) -> tuple[str, str]:
        return self._chance.choice(BOTH_WAYS)

    def _new(self, steps: int = 2) -> Wish:
        return Wish(next(self._seeds), steps, self._chance.randrange(3))

    # What breaks.

    async def _break(self) -> None:
        ways = [self._kill_redis, self._hang_redis, self._refuse_objects, self._kill_worker, self._restart_gateway]
        while not self._over:
            await asyncio.sleep(_BREAK_EVERY * self._chance.uniform(0.7, 1.3))
            if self._over:
                return
            way, began = self._chance.choice(ways), self.now
            await way()
            await self.world.healed()
            self.faults.append((began, self.now, way.__name__.strip("_").replace("_", " ")))

    async def _kill_redis(self) -> None:
        async with self.world.gone(REDIS):
            await asyncio.sleep(3.0)

    async def _hang_redis(self) -> None:
        async with self.world.hung(REDIS):
            await asyncio.sleep(3.0)

    async def _refuse_objects(self) -> None:
        async with self.world.broken(self.world.links.named(OBJECTS), Fault(status=503)):
            await asyncio.sleep(3.0)

    async def _kill_worker(self) -> None:
        async with self.world.gone(WORKERS[1]):
            await asyncio.sleep(1.0)

    async def _restart_gateway(self) -> None:
        await self.world.restart(TWO)

    # What is seen.

    async def _watch(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(_EVERY)

    async def _look(self) -> None:
        for name in OURS:
            with suppress(Exception):  # it may be gone in this moment
                held = self.world.resources(name)
                threads = held.threads - held.carriers
                self.looks.append(
                    Look(self.now, name, self.world.pid(name), held.bytes, held.files, threads, held.carriers)
                )

    def _count_answers(self) -> None:
        """Those that have ended move from the callers' log to the tally."""
        ended = [heard for heard in self.callers.log if heard.ended]
        self.tally.requests += len(ended)
        self.tally.wrong += sum(bool(heard.wrong) for heard in ended)
        for heard in ended:
            if heard.outcome == "failed":
                self.tally.failed += 1
                self.tally.reasons[_reason(heard)] += 1
        self.callers.log[:] = [heard for heard in self.callers.log if not heard.ended]

    async def _tell_minutes(self) -> None:
        for minute in itertools.count(1):
            await asyncio.sleep(max(0.0, 60.0 * minute - self.now))
            self._count_answers()
            tally, told = self.tally, []
            for name in OURS:
                latest = next((look for look in reversed(self.looks) if look.process == name), None)
                if latest is not None:
                    lag = await self._lag(name)
                    told.append(
                        f"{name} {latest.bytes / 1e6:.0f} MB, {latest.files} files, "
                        f"{latest.threads}+{latest.carriers} threads, lag p99 {lag * 1000:.0f} ms"
                    )
            self._tell(
                f"{minute:3} min  {tally.requests:,} requests, {tally.failed} failed, {tally.wrong} wrong; "
                + "; ".join(told)
            )

    async def _lag(self, name: str) -> float:
        """Upper bound of the bucket in which 99 of 100 looks of the last minute were, in seconds; NaN if unknown."""
        with suppress(Exception):  # it may be gone in this moment
            found = {
                float(key[1]): value
                for key, value in (await self.world.metrics(name)).items()
                if key[0] == "reprise_event_loop_lag_seconds_bucket"
            }
            known, self._known[name] = self._known.get(name, {}), found
            new = {bound: value - known.get(bound, 0.0) for bound, value in found.items()}
            if min(new.values()) < 0:  # it was restarted
                new = found
            lag = min(bound for bound, value in new.items() if value >= 0.99 * max(new.values()))
            self.lags.append((self.now, name, lag))
            return lag
        return float("nan")

    def growth(self) -> dict[str, list[Finding]]:
        """By process that lived through it all."""
        return {
            name: judge([look for look in self.looks if look.process == name], _WARM_UP * self.now) for name in _STEADY
        }


def _reason(heard: Heard) -> str:
    return f"{heard.problem.code.name} {heard.problem.reason}".strip() if heard.problem else "unknown"


def _code(error: Exception) -> str:
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__


def _voice() -> bytes:
    """Two seconds of a voice, or of what a small model takes for one."""
    rate = 16_000
    at = np.arange(2 * rate) / rate
    sound = 0.3 * np.sin(2 * np.pi * 140 * at) * (1 + 0.5 * np.sin(2 * np.pi * 4 * at))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 32767).astype(np.int16).tobytes())
    return buffer.getvalue()


def chart(soak: Soak) -> Image.Image:
    """Resident bytes and descriptors of each process over time; what was broken when, in red behind."""
    width, height, left = 1400, 260, 90
    image = Image.new("RGB", (width, 2 * height + 40), "white")
    pen, end = ImageDraw.Draw(image), max(soak.now, 1.0)
    for row, (what, unit) in enumerate((("bytes", 1e6), ("files", 1.0))):
        top, bottom = 30 + row * height, 30 + (row + 1) * height - 30
        most = max((getattr(look, what) for look in soak.looks), default=1.0) * 1.1
        for begin, over, _ in soak.faults:
            pen.rectangle(
                (left + begin / end * (width - left - 20), top, left + over / end * (width - left - 20), bottom),
                fill="#f6d5d1",
            )
        pen.text((8, top), f"{'MB' if what == 'bytes' else what}\n{most / unit:,.0f}", fill="#22252a")
        pen.line((left, bottom, width - 20, bottom), fill="#dfe2e5")
        for name in OURS:
            points = [
                (left + look.at / end * (width - left - 20), bottom - getattr(look, what) / most * (bottom - top))
                for look in soak.looks
                if look.process == name
            ]
            if len(points) > 1:
                pen.line(points, fill=_COLOURS[name], width=2)
    for number, name in enumerate(OURS):
        pen.text((left + 120 * number, 8), name, fill=_COLOURS[name])
    return image


def report(soak: Soak) -> dict[str, Any]:
    return {
        "seconds": soak.now,
        "requests": soak.tally.requests,
        "failed": soak.tally.failed,
        "wrong": soak.tally.wrong,
        "others": dict(soak.tally.others),
        "reasons": dict(soak.tally.reasons),
        "growth": {name: [asdict(finding) for finding in found] for name, found in soak.growth().items()},
        "faults": soak.faults,
        "lag_p99": soak.lags,
        "looks": [asdict(look) for look in soak.looks],
    }


async def _soak(world: World, minutes: float, tell: Callable[[str], None]) -> Soak:
    oracle = Oracle()
    async with Callers(world.door, oracle) as callers:
        soak = Soak(world, callers, tell)
        await soak.run(minutes * 60)
    wrong = await oracle.disproved(world.door(ONE), 8)
    soak.tally.wrong += len(wrong)
    return soak


@click.command()
@click.option("--minutes", default=20.0, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/chaos"))
def main(minutes: float, out: Path) -> None:
    """Mixed traffic with faults at intervals. Fails if a request did, if bytes were wrong, or if something grew."""
    console = Console(highlight=False, width=None if Console().is_terminal else 200)
    out.mkdir(parents=True, exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="reprise-soak-"))
    try:
        console.print("starting two gateways, two workers, Redis and an S3 server ...")
        with standing(data / "stack") as world:
            soak = uvloop.run(_soak(world, minutes, lambda line: console.print(line, soft_wrap=True)))
    finally:
        shutil.rmtree(data, ignore_errors=True)
    (out / "soak.json").write_text(json.dumps(report(soak), indent=1))
    chart(soak).save(out / "soak.png")
    grown = False
    for name, found in soak.growth().items():
        for finding in found:
            bad = finding.grown and minutes >= _SHORTEST
            grown |= bad
            mark = "  [red]✗[/]" if bad else "  ·"
            console.print(f"{mark} {name}: {finding.text}")
    tally = soak.tally
    for what, many in (tally.others + tally.reasons).items():
        console.print(f"  · {what}: {many:,}")
    console.print(
        f"{tally.requests:,} requests, {tally.failed} failed, {tally.wrong} wrong, {len(soak.faults)} faults; "
        f"{out}/soak.json, {out}/soak.png"
    )
    sys.exit(grown or tally.failed > 0 or tally.wrong > 0)


if __name__ == "__main__":
    main()
