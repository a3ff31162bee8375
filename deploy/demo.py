"""The demo: the whole stack on this machine, one real photograph, and what is computed when something changes.

`make demo` runs it. It starts Redis, an S3 server, a worker and two gateways of its own, asks for videos as a person
does who tries things, and leaves under out/demo the videos, a contact sheet, a report and the first request's
waterfall. It fails if an answer did not come from where it should have.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import grpc
import skimage.data
from PIL import Image, ImageDraw, ImageOps
from rich.console import Console
from rich.table import Table

from gateway.cli.reports import tier_word
from gateway.cli.stack import shown
from gateway.client import Client, Media
from gateway.stack import Stack
from gateway.stack.local import compose
from gateway.stack.ports import free_port
from gateway.stack.redis import flush
from reprise.v1 import common_pb2 as pb
from reprise.v1.cache_pb2 import InvalidateRequest
from reprise.v1.media_pb2 import DELIVERY_URL, AnimateImageRequest, GenerationEvent, Stored

OUT = Path("out/demo")
PROMPT = "the sky darkens and the clouds begin to drift"
TRIES = (
    "a slow camera pan to the left",
    "a slow camera pan to the right",
    "leaves fall, soft light",
    "a gentle zoom, shallow focus",
    "the wind picks up",
)
IMAGE_STAGES = {"vision", "moments"}
_RUN = pb.STAGE_OUTCOME_RUN
OUTCOMES = {
    pb.OUTCOME_HIT: "hit",
    pb.OUTCOME_MISS: "miss",
    pb.OUTCOME_COALESCED: "coalesced",
    pb.OUTCOME_BYPASS: "bypass",
}


@dataclass
class Row:
    """What one step of the demo asked for, and what came of it: media, or only a report of what would come."""

    name: str
    media: Sequence[Media]
    ms: float
    generations: int
    foreseen: pb.CacheReport | None = None
    wrong: list[str] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)

    @property
    def reports(self) -> list[pb.CacheReport]:
        return [media.report for media in self.media] or ([self.foreseen] if self.foreseen is not None else [])

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(OUTCOMES[report.outcome] for report in self.reports)

    @property
    def outcome(self) -> str:
        return next((known for known in ("miss", "bypass", "coalesced", "hit") if self.outcomes[known]), "cancelled")

    @property
    def tier(self) -> str | None:
        tiers = {tier_word(report.tier) for report in self.reports if report.outcome == pb.OUTCOME_HIT}
        return tiers.pop() if len(tiers) == 1 else None

    def stages(self, outcome: pb.StageOutcome) -> list[str]:
        named = [stage.stage for report in self.reports for stage in report.stages if stage.outcome == outcome]
        return list(dict.fromkeys(named))

    @property
    def times_run(self) -> Counter[str]:
        led = [media for media in self.media if media.report.outcome != pb.OUTCOME_COALESCED]
        return Counter(stage.stage for media in led for stage in media.report.stages if stage.outcome == _RUN)

    @property
    def answered_by(self) -> str:
        if self.foreseen is not None:
            return f"foreseen: {self.outcome}"
        if not self.media:
            return self.outcome
        if self.outcome == "hit":
            return self.tier or "tiers"
        return "worker" if len(self.media) == 1 else ", ".join(f"{n} {outcome}" for outcome, n in self.outcomes.items())

    @property
    def saved(self) -> float:
        return sum(media.report.device_seconds_saved for media in self.media)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "outcome": self.outcome,
            "tier": self.tier,
            "stages_run": self.stages(_RUN),
            "stages_reused": self.stages(pb.STAGE_OUTCOME_REUSED),
            "generations": self.generations,
            "ms": round(self.ms, 1),
            "requests": len(self.media),
            "outcomes": dict(self.outcomes),
            "device_seconds_saved": round(self.saved, 3),
            "times_run": dict(self.times_run),
        }


class Demo:
    def __init__(self, photo: Path, console: Console) -> None:
        self._image = photo.read_bytes()
        self._console = console
        self._data = OUT / "stack"
        self._port = free_port()
        self._doors: list[str] = []  # addresses of the gateways
        self.rows: list[Row] = []

    async def run(self) -> None:
        with shown(self._console) as watch:
            stack = Stack(self._data, watch)
            stack.up(compose(self._data, port=self._port, workers=1, gateways=2))
        self._doors = [stack.part(name).part.address for name in ("gateway", "gateway-2")]
        try:
            await self._rows(stack)
            self._draw_first_trace()
        finally:
            with shown(self._console) as watch:
                Stack(self._data, watch).down()

    async def _rows(self, stack: Stack) -> None:
        base: dict[str, Any] = {"prompt": PROMPT}
        await self._row("cold", [base], run={"denoise", "video", "moments", "vision"}, generations=1)
        await self._row("again", [base], tier="l1")
        stack.restart("gateway")
        await self._row("after-gateway-restart", [base], tier="l2")
        stack.stop("gateway")
        flush(stack.part("redis").part.port, stack.part("redis").part.folder)
        stack.start("gateway")
        await self._row("after-redis-flush", [base], tier="l3")
        await self._explained(base | {"prompt": "snow falls"})
        await self._row(
            "other-prompt", [base | {"prompt": "snow falls"}], run={"text", "denoise"}, not_run=IMAGE_STAGES
        )
        self._compare_with_foreseen()
        await self._row("other-frames", [base | {"num_frames": 8}], run={"denoise"}, not_run=IMAGE_STAGES | {"text"})
        await self._row("other-guidance", [base | {"guidance_scale": 4.0}], run={"denoise"}, not_run=IMAGE_STAGES)
        await self._row("other-resolution", [base | {"width": 320, "height": 192}], run=IMAGE_STAGES | {"denoise"})
        await self._row("other-format", [base | {"format": "webm"}], run={"video"}, not_run={"denoise", *IMAGE_STAGES})
        await self._row("by-url", [base | {"delivery": DELIVERY_URL}], tier="l1")
        await self._five_tries()
        await self._row("sixteen-at-once", [base | {"seed": 7}] * 16, at_once=True, run={"denoise"}, generations=1)
        await self._row(
            "dropped-and-watched", [base | {"seed": 8}], ask=_drop_and_watch, run={"denoise"}, generations=1
        )
        await self._cancelled(base | {"seed": 9})
        await self._purged(base)
        stack.stop("worker-1")
        await self._row("no-workers", [base], tier="l1")

    async def _explained(self, request: dict[str, Any]) -> None:
        """What would be reused and run is told beforehand; nothing is run."""
        self._console.print("[bold]explain[/] ...")
        async with Client(self._doors[0]) as client:
            before, started = (await client.stats()).generations, time.perf_counter()
            answer = await client.explain(self._ask(request))
            ms = (time.perf_counter() - started) * 1000
            row = Row("explain", [], ms, (await client.stats()).generations - before, foreseen=answer.report)
        if list(answer.report.nearest.differing) != ["prompt"]:
            row.wrong.append(f"expected the prompt to differ from the nearest: {answer.report.nearest.differing}")
        self.rows.append(row)

    def _compare_with_foreseen(self) -> None:
        foreseen, happened = self.rows[-2:]
        told, did = [{s.stage: s.outcome for s in row.reports[0].stages} for row in (foreseen, happened)]
        if told != did:
            happened.wrong.append(f"another thing was foreseen: {told}")

    async def _five_tries(self) -> None:
        """Five prompts on a picture that was not seen before: it is encoded once."""
        mirrored = ImageOps.mirror(Image.open(io.BytesIO(self._image)))
        encoded = io.BytesIO()
        mirrored.save(encoded, "PNG")
        requests = [{"image": encoded.getvalue(), "prompt": prompt} for prompt in TRIES]
        await self._row("five-tries", requests, run={"denoise"}, generations=5)
        row = self.rows[-1]
        if dict.fromkeys(IMAGE_STAGES, 1) != {stage: row.times_run[stage] for stage in IMAGE_STAGES}:
            row.wrong.append(f"expected each image stage to run once: {dict(row.times_run)}")

    async def _cancelled(self, request: dict[str, Any]) -> None:
        """Given up by its name at the first step: the work ends, and nothing is kept of it."""
        self._console.print("[bold]cancelled[/] ...")
        async with Client(self._doors[0]) as client, Client(self._doors[1]) as other:
            started = time.perf_counter()
            row = Row("cancelled", [], 0.0, 0)
            try:
                await _until_first_step(client, self._ask(request), other.cancel)
                row.wrong.append("expected the generation to be cancelled")
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.CANCELLED:
                    row.wrong.append(f"expected CANCELLED, got {error.code().name}")
            row.ms = (time.perf_counter() - started) * 1000
        self.rows.append(row)

    async def _purged(self, request: dict[str, Any]) -> None:
        """What came from the picture goes everywhere; asked of one gateway, seen at the other."""
        async with Client(self._doors[1]) as client:
            *_, last = [each async for each in client.invalidate(InvalidateRequest(picture=self._image))]
        await self._row("purged", [request], run=IMAGE_STAGES | {"denoise", "video"}, generations=1)
        self._console.print(f"  {last.receipt.outputs} outputs had gone, of {last.records_read} records")
        if last.receipt.outputs == 0 or last.receipt.unreached:
            self.rows[-1].wrong.append(f"expected the picture's outputs to go: {last.receipt}")

    def _ask(self, fields: dict[str, Any]) -> AnimateImageRequest:
        return AnimateImageRequest(**{"image": self._image} | fields)

    async def _row(
        self,
        name: str,
        requests: Sequence[dict[str, Any]],
        *,
        tier: str | None = None,
        run: Set[str] = frozenset(),
        not_run: Set[str] = frozenset(),
        generations: int | None = None,
        at_once: bool = False,
        ask: Callable[[Client, AnimateImageRequest], Awaitable[Media]] = Client.animate,
    ) -> None:
        """`at_once` spreads the requests over both gateways."""
        self._console.print(f"[bold]{name}[/] ...")
        async with Client(self._doors[0]) as client, Client(self._doors[1]) as other:
            before = await _generations(client, other)
            started = time.perf_counter()
            asked = [self._ask(request) for request in requests]
            if at_once:
                doors = (client, other) * len(asked)
                media = list(await asyncio.gather(*(ask(door, each) for door, each in zip(doors, asked, strict=False))))
            else:
                media = [await ask(client, each) for each in asked]
            data = [await client.fetch(each) for each in media]
            ms = (time.perf_counter() - started) * 1000
            stored = [await client.until_stored(each) for each in media]
            row = Row(name, media, ms, await _generations(client, other) - before)
        row.wrong += _deviations(row, tier, run, not_run, generations)
        row.wrong += [f"not stored: {state}" for state in stored if state != Stored.STATE_DURABLE]
        row.wrong += [f"{len(each)} bytes do not fit L2" for each in data if len(each) >= 1024 * 1024]
        self.rows.append(row)
        for number, (each, file_data) in enumerate(zip(media, data, strict=True), start=1):
            suffix = each.result.media_type.rpartition("/")[2]
            file = OUT / (f"{name}.{suffix}" if len(media) == 1 or at_once else f"{name}-{number}.{suffix}")
            file.write_bytes(file_data)
            row.videos.append(file)
            if at_once:
                break

    def _draw_first_trace(self) -> None:
        command = [sys.executable, "-m", "gateway.cli", "trace", self.rows[0].media[0].result.trace_id]
        drawn = subprocess.run(  # noqa: S603 - our own command line
            [*command, "--data", str(self._data)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "150"},
        )
        (OUT / "trace.txt").write_text(drawn.stdout)
        self._console.print("\nThe first request, from span to span (reprise trace ID):")
        self._console.print(drawn.stdout or drawn.stderr, markup=False, soft_wrap=True)


def _deviations(row: Row, tier: str | None, run: Set[str], not_run: Set[str], generations: int | None) -> list[str]:
    ran = set(row.stages(_RUN))
    wrong = []
    if tier is not None and (row.tier != tier or ran or row.generations):
        wrong.append(f"expected a hit from {tier} and no stage run")
    if run - ran:
        wrong.append(f"expected to run: {sorted(run - ran)}")
    if not_run & ran:
        wrong.append(f"expected not to run: {sorted(not_run & ran)}")
    if generations is not None and row.generations != generations:
        wrong.append(f"expected {generations} generations, counted {row.generations}")
    return wrong


async def _generations(*clients: Client) -> int:
    return sum([(await client.stats()).generations for client in clients])


async def _drop_and_watch(client: Client, request: AnimateImageRequest) -> Media:
    """Leave the stream at the first step, and pick the generation up again by its name."""
    dropped: list[str] = []

    async def drop(name: str) -> None:
        dropped.append(name)
        raise _Left

    with suppress(_Left):
        return await _until_first_step(client, request, drop)
    return await client.rejoin(dropped[0])


async def _until_first_step(
    client: Client, request: AnimateImageRequest, then: Callable[[str], Awaitable[object]]
) -> Media:
    """Ask, and once the work has begun do something with its name."""
    begun = asyncio.Event()
    name = ""

    def see(event: GenerationEvent) -> None:
        nonlocal name
        name = event.accepted.name or name
        if event.HasField("progress"):
            begun.set()

    asking = asyncio.create_task(client.animate(request, on_event=see))
    waiting = asyncio.create_task(begun.wait())
    try:
        await asyncio.wait({asking, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            await then(name)
        return await asking
    finally:
        for task in (asking, waiting):
            task.cancel()
        await asyncio.gather(asking, waiting, return_exceptions=True)


class _Left(Exception):
    """We have left a stream."""


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None)
    for heading in ("row", "answered by", "stages run", "stages reused"):
        table.add_column(heading, no_wrap=heading in ("row", "answered by"))
    for heading in ("generated", "ms", "device s saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            row.answered_by,
            ", ".join(row.stages(_RUN)) or "none",
            ", ".join(row.stages(pb.STAGE_OUTCOME_REUSED)) or "none",
            str(row.generations),
            f"{row.ms:,.0f}",
            f"{row.saved:.2f}",
        )
    return table


def contact_sheet(photo: Path, rows: Sequence[Row], frames: int = 5, side: int = 128) -> Image.Image:
    """The photograph and some frames of every video, a line each, with what answered and how fast."""
    lines = [(row, media, video) for row in rows for media, video in zip(row.media, row.videos, strict=False)]
    label = 230
    sheet = Image.new("RGB", (label + (frames + 1) * side, len(lines) * side), "white")
    draw = ImageDraw.Draw(sheet)
    thumbnail = ImageOps.fit(Image.open(photo).convert("RGB"), (side, side))
    for line, (row, media, video) in enumerate(lines):
        ran = [stage.stage for stage in media.report.stages if stage.outcome == _RUN]
        run = ", ".join(stage for stage in ran if not stage.endswith("tokens")) or "nothing"
        saved = f"{media.report.device_seconds_saved:.2f} s of device time saved"
        told = [video.name, f"answered by {row.answered_by}", *textwrap.wrap(f"run: {run}", 36), saved]
        draw.text((8, line * side + 16), "\n".join(told), fill="black")
        sheet.paste(thumbnail, (label, line * side))
        for column, frame in enumerate(_sample(video, frames), start=1):
            sheet.paste(ImageOps.fit(frame, (side, side)), (label + column * side, line * side))
    return sheet


def _sample(video: Path, count: int) -> list[Image.Image]:
    with av.open(str(video)) as container:
        frames = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return [frames[round(index * (len(frames) - 1) / (count - 1))] for index in range(count)]


def _photo() -> Path:
    if own := os.environ.get("PHOTO"):
        return Path(own)
    photo = OUT / "photo.png"
    Image.fromarray(skimage.data.chelsea()).save(photo)
    return photo


def main() -> int:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=150)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    photo = _photo()
    demo = Demo(photo, console)
    asyncio.run(demo.run())
    contact_sheet(photo, demo.rows).save(OUT / "contact-sheet.png")
    (OUT / "report.json").write_text(json.dumps({"rows": [row.as_json() for row in demo.rows]}, indent=2))
    console.print(_table(demo.rows))
    if any(media.result.random_weights for row in demo.rows for media in row.media):
        console.print("\nThe model has random weights, made for trying things out: what the videos show means nothing.")
    console.print(f"\nVideos, contact-sheet.png, trace.txt and report.json are in {OUT.absolute()}", soft_wrap=True)
    wrong = [f"{row.name}: {sentence}" for row in demo.rows for sentence in row.wrong]
    for sentence in wrong:
        console.print(f"[red]not as promised[/]  {sentence}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
