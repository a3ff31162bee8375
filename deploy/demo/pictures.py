"""Pictures: one real photograph, and what is computed when something changes."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from PIL import Image, ImageOps
from rich.console import Console

from deploy.demo.rows import Row, Scene
from gateway.client import Client, Media
from gateway.stack import Stack
from gateway.stack.redis import flush
from reprise.v1.cache_pb2 import InvalidateRequest
from reprise.v1.media_pb2 import DELIVERY_URL, AnimateImageRequest, GenerationEvent

PROMPT = "the sky darkens and the clouds begin to drift"
TRIES = (
    "a slow camera pan to the left",
    "a slow camera pan to the right",
    "leaves fall, soft light",
    "a gentle zoom, shallow focus",
    "the wind picks up",
)
IMAGE_STAGES = {"vision", "moments"}


class Pictures(Scene[AnimateImageRequest]):
    def __init__(self, photo: Path, doors: Sequence[str], console: Console) -> None:
        super().__init__(doors, console)
        self._image = photo.read_bytes()

    def asked(self, fields: dict[str, Any]) -> AnimateImageRequest:
        return AnimateImageRequest(**{"image": self._image} | fields)

    async def send(self, client: Client, request: AnimateImageRequest) -> Media:
        return await client.animate(request)

    async def play(self, stack: Stack) -> None:
        base: dict[str, Any] = {"prompt": PROMPT}
        await self.row("cold", [base], run={"denoise", "video", "moments", "vision"}, generations=1)
        await self.row("again", [base], tier="l1")
        stack.restart("gateway")
        await self.row("after-gateway-restart", [base], tier="l2")
        stack.stop("gateway")
        flush(stack.part("redis").part.port, stack.part("redis").part.folder)
        stack.start("gateway")
        await self.row("after-redis-flush", [base], tier="l3")
        await self._explained(base | {"prompt": "snow falls"})
        await self.row("other-prompt", [base | {"prompt": "snow falls"}], run={"text", "denoise"}, not_run=IMAGE_STAGES)
        self._compare_with_foreseen()
        await self.row("other-frames", [base | {"num_frames": 8}], run={"denoise"}, not_run=IMAGE_STAGES | {"text"})
        await self.row("other-guidance", [base | {"guidance_scale": 4.0}], run={"denoise"}, not_run=IMAGE_STAGES)
        await self.row("other-resolution", [base | {"width": 320, "height": 192}], run=IMAGE_STAGES | {"denoise"})
        await self.row("other-format", [base | {"format": "webm"}], run={"video"}, not_run={"denoise", *IMAGE_STAGES})
        await self.row("by-url", [base | {"delivery": DELIVERY_URL}], tier="l1")
        await self._five_tries()
        await self.row("sixteen-at-once", [base | {"seed": 7}] * 16, at_once=True, run={"denoise"}, generations=1)
        await self.row("dropped-and-watched", [base | {"seed": 8}], ask=_drop_and_watch, run={"denoise"}, generations=1)
        await self._cancelled(base | {"seed": 9})
        await self._purged(base)

    async def without_workers(self, stack: Stack) -> None:
        stack.stop("worker-1")
        await self.row("no-workers", [{"prompt": PROMPT}], tier="l1")

    async def _explained(self, request: dict[str, Any]) -> None:
        """What would be reused and run is told beforehand; nothing is run."""
        self.console.print("[bold]explain[/] ...")
        async with Client(self.doors[0]) as client:
            before, started = (await client.stats()).generations, time.perf_counter()
            answer = await client.explain(self.asked(request))
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
        await self.row("five-tries", requests, run={"denoise"}, generations=5)
        row = self.rows[-1]
        if dict.fromkeys(IMAGE_STAGES, 1) != {stage: row.times_run[stage] for stage in IMAGE_STAGES}:
            row.wrong.append(f"expected each image stage to run once: {dict(row.times_run)}")

    async def _cancelled(self, request: dict[str, Any]) -> None:
        """Given up by its name at the first step: the work ends, and nothing is kept of it."""
        self.console.print("[bold]cancelled[/] ...")
        async with Client(self.doors[0]) as client, Client(self.doors[1]) as other:
            started = time.perf_counter()
            row = Row("cancelled", [], 0.0, 0)
            try:
                await until_first_step(client, self.asked(request), other.cancel)
                row.wrong.append("expected the generation to be cancelled")
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.CANCELLED:
                    row.wrong.append(f"expected CANCELLED, got {error.code().name}")
            row.ms = (time.perf_counter() - started) * 1000
        self.rows.append(row)

    async def _purged(self, request: dict[str, Any]) -> None:
        """What came from the picture goes everywhere; asked of one gateway, seen at the other."""
        async with Client(self.doors[1]) as client:
            *_, last = [each async for each in client.invalidate(InvalidateRequest(picture=self._image))]
        await self.row("purged", [request], run=IMAGE_STAGES | {"denoise", "video"}, generations=1)
        self.console.print(f"  {last.receipt.outputs} outputs had gone, of {last.records_read} records")
        if last.receipt.outputs == 0 or last.receipt.unreached:
            self.rows[-1].wrong.append(f"expected the picture's outputs to go: {last.receipt}")


async def _drop_and_watch(client: Client, request: AnimateImageRequest) -> Media:
    """Leave the stream at the first step, and pick the generation up again by its name."""
    dropped: list[str] = []

    async def drop(name: str) -> None:
        dropped.append(name)
        raise _Left

    with suppress(_Left):
        return await until_first_step(client, request, drop)
    return await client.rejoin(dropped[0])


async def until_first_step(
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
