"""`python -m tests.bench.restart`: Redis and all gateways are restarted at once under the reference traffic. How much
reaches the workers afterwards, if the tiers come back warm, and if they are empty?

Redis, the S3 server and the gateways are real. The worker is the scripted one of the tests, whose generations last a
tenth of a second each and never queue: what is counted is what is asked of it.
"""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click
import obstore
import uvloop
from obstore.store import S3Store
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from gateway.client import Client
from gateway.stack import Stack
from gateway.stack.redis import flush
from reprise.v1 import common_pb2 as pb
from reprise.v1.common_pb2 import ParameterValue
from reprise.v1.media_pb2 import AnimateImageRequest
from tests.bench.rig import Servers, serving
from tests.bench.traffic import lines, size_of
from tests.servers import bucket

_AT_ONCE = 32  # requests, while the history is played
WINDOW = 5.0  # seconds over which a peak is taken
STEP_SECONDS = 0.05
_GATEWAYS = ("gateway-1", "gateway-2")
_COLOURS = {"warm, stopped": "#588157", "warm, killed": "#0b6e99", "cold": "#c8553d"}


@dataclass
class Case:
    """What came of one restart."""

    name: str
    before: int  # generations until the restart
    asked: int = 0  # requests after it
    failed: int = 0
    again: int = 0  # generations of lines that had been made before it
    generations: list[float] = field(default_factory=list)  # when each came, in seconds after the gateways were back

    @property
    def peak(self) -> float:
        """Generations per second in the worst window."""
        times = sorted(self.generations)
        return max((sum(at <= other < at + WINDOW for other in times) / WINDOW for at in times), default=0.0)


async def play(name: str, servers: Servers, *, rate: float, history: int, after: float) -> Case:
    """One case: as many requests as are remembered, as fast as they are answered; the restart; `rate` a second."""
    traffic, seen = lines(), set[int]()
    case = Case(name, 0)

    async def ask(client: Client, line: int, started: float | None) -> None:
        try:
            media = await client.animate(request(line), deadline=20.0)
            if started is None:  # what is on its way when the tiers are emptied would be found in them afterwards
                await client.until_stored(media)
        except Exception:  # noqa: BLE001 - counted, whatever it was
            case.failed += 1
            return
        if media.report.outcome == pb.OUTCOME_MISS:
            if started is None:
                case.before += 1
            else:
                case.generations.append(time.perf_counter() - started)
                case.again += line in seen

    async def remember(asked: list[int]) -> None:
        left = iter(asked)

        async def client(door: Client) -> None:
            for line in left:
                await ask(door, line, None)

        async with Client(servers.addresses[0]) as one, Client(servers.addresses[1]) as other:
            await asyncio.gather(*(client(door) for door in (one, other) * (_AT_ONCE // 2)))

    async def steadily(asked: list[int]) -> None:
        async with Client(servers.addresses[0]) as one, Client(servers.addresses[1]) as other:
            started = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for number, line in enumerate(asked):
                    await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
                    group.create_task(ask((one, other)[number % 2], line, started))

    before = list(islice(traffic, history))
    await remember(before)
    seen.update(before)
    await asyncio.to_thread(_restart, name, servers)
    case.asked = round(rate * after)
    await steadily(list(islice(traffic, case.asked)))
    return case


def _restart(name: str, servers: Servers) -> None:
    """Redis and all gateways at once. Blocking."""
    for gateway in _GATEWAYS:
        servers.gateways.stop(gateway)
    if name == "warm, killed":
        # Between two snapshots: what came since the last one is gone from Redis, and not from the object store.
        servers.storage.part("redis").kill()
        servers.storage.restart("redis")
    else:
        servers.storage.restart("redis")
    if name == "cold":
        flush(servers.storage.part("redis").part.port)
        empty(servers.storage)
    for gateway in _GATEWAYS:
        servers.gateways.start(gateway)


def empty(storage: Stack) -> None:
    named = bucket(storage)
    store = S3Store(
        named.bucket,
        endpoint=named.endpoint,
        region=named.region,
        access_key_id=named.access_key,
        secret_access_key=named.secret_key,
        client_options={"allow_http": True},
    )
    for page in obstore.list(store):
        if paths := [each["path"] for each in page if not each["path"].startswith("models/")]:
            obstore.delete(store, paths)


def request(line: int) -> AnimateImageRequest:
    request = AnimateImageRequest(image=_PICTURE, prompt=f"line {line}", num_inference_steps=2)
    request.extra["size"].CopyFrom(ParameterValue(int_value=size_of(line)))
    return request


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(buffer, "PNG")
    return buffer.getvalue()


_PICTURE = _picture()


def chart(cases: Sequence[Case], after: float) -> Image.Image:
    """Generations per second after the restart, second by second."""
    width, height, left, top, bottom = 900, 360, 60, 40, 40
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    counts = {
        case.name: [sum(second <= at < second + 1 for at in case.generations) for second in range(int(after))]
        for case in cases
    }
    most = max([1, *(count for each in counts.values() for count in each)])
    pen.text((left, 12), "generations per second after Redis and all gateways were restarted", fill="#22252a")
    for step in range(5):
        y = top + (height - top - bottom) * (1 - step / 4)
        pen.line((left, y, width - 160, y), fill="#d5d8dc")
        pen.text((8, y - 6), f"{most * step / 4:.0f}", fill="#22252a")
    for place, (name, each) in enumerate(counts.items()):
        points = [
            (
                left + (width - 160 - left) * second / max(1, len(each) - 1),
                top + (height - top - bottom) * (1 - n / most),
            )
            for second, n in enumerate(each)
        ]
        pen.line(points, fill=_COLOURS[name], width=3, joint="curve")
        pen.text((width - 150, top + 18 * place), name, fill=_COLOURS[name])
    pen.text((left, height - 24), f"0 to {after:.0f} s", fill="#22252a")
    return image


async def measure(data: Path, *, rate: float, history: int, after: float, console: Console) -> list[Case]:
    cases = []
    for number, name in enumerate(_COLOURS):
        console.print(f"{name}: {history:,} requests, the restart, {after:.0f} s ...")
        with serving(data / str(number), gateways=_GATEWAYS, step_seconds=STEP_SECONDS) as servers:
            cases.append(await play(name, servers, rate=rate, history=history, after=after))
    return cases


@click.command()
@click.option("--quick", is_flag=True, help="Seconds instead of minutes: counts to look at, not to keep.")
@click.option("--rate", type=click.FloatRange(min=1), default=40.0, show_default=True, help="Requests per second.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/bench"))
def main(quick: bool, rate: float, out: Path) -> None:
    """Restart Redis and all gateways under the reference traffic."""
    history, after = (60, 4.0) if quick else (20_000, 60.0)
    console = Console(highlight=False, width=None if Console().is_terminal else 150)
    out.mkdir(parents=True, exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="reprise-restart-"))
    try:
        cases = uvloop.run(measure(data, rate=rate, history=history, after=after, console=console))
    finally:
        shutil.rmtree(data, ignore_errors=True)
    cold = next(case for case in cases if case.name == "cold")
    table = Table(box=None)
    for heading in (
        "restart",
        "requests",
        "failed",
        "generations",
        "of lines made before",
        "peak per s",
        "less than cold",
    ):
        table.add_column(heading, justify="left" if heading == "restart" else "right")
    report: list[dict[str, Any]] = []
    for case in cases:
        less = 1 - case.peak / cold.peak if cold.peak else 0.0
        row = {
            "restart": case.name,
            "requests": case.asked,
            "failed": case.failed,
            "generations": len(case.generations),
            "again": case.again,
            "peak": round(case.peak, 2),
            "less": round(less, 3),
        }
        report.append(row)
        table.add_row(*(f"{value:.0%}" if name == "less" else str(value) for name, value in row.items()))
    console.print(table)
    (out / "restart.json").write_text(
        json.dumps({"rate": rate, "history": history, "window": WINDOW, "cases": report}, indent=1)
    )
    chart(cases, after).save(out / "restart.png")
    console.print(f"\n{out / 'restart.json'} and {out / 'restart.png'} have it too", soft_wrap=True)


if __name__ == "__main__":
    main()
