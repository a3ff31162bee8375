"""Teller: what is told of a run while the device works for it: steps, previews, and sound as it is made.

The device's thread says it, the event loop writes it down. Whether the run still matters is asked there at every step.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import torch
from PIL import Image

from cache.description import Stage
from cache.parts import part_number, whole_name
from inference.events import EventLog, jpeg
from inference.live import Live
from inference.meaning import Meaning
from inference.models.base import Cancelled, Tensors
from inference.plan import Plan

PCM = "pcm"  # the tensor in a piece that is heard: 16-bit samples, mono


class Teller:
    """Hears every go of a run; see `Listener` in `chain.py`. `begin`, `step`, `preview` and `live` belong to the
    device's thread, the rest to the event loop's.
    """

    def __init__(self, plan: Plan, meaning: Meaning, log: EventLog, stop: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._meaning = meaning
        self._log = log
        self._stop = stop
        self._steps: Counter[str] = Counter()  # done in this go, by stage
        self._samples: Counter[str] = Counter()  # likewise
        self._live = self._open(plan)

    def begin(self) -> None:
        """A go begins, perhaps of stages that a go before it did not bring to their end."""
        self._steps.clear()
        self._samples.clear()

    def go_on(self) -> None:
        if self._stop.is_set():
            raise Cancelled

    def step(self, stage: Stage, done: int, of: int) -> None:
        self.go_on()
        self._steps[stage.name] = done
        part = self._meaning.parts.get(stage.name)
        where = (part.place + 1, part.places) if part is not None else (0, 0)
        self._loop.call_soon_threadsafe(self._log.progress, whole_name(stage.name), done, of, *where)

    def preview(self, stage: Stage, image: Image.Image) -> None:
        if self._log.read:
            self._loop.call_soon_threadsafe(self._log.preview, jpeg(image), self._steps[stage.name])

    def live(self, stage: Stage, piece: Tensors) -> None:
        """Raises ValueError for a piece that is no sound."""
        pcm = piece.get(PCM)
        if pcm is None or pcm.dtype is not torch.int16 or pcm.dim() != 1:
            raise ValueError("what is heard live is 16-bit samples, mono")
        before = self._samples[stage.name]
        self._samples[stage.name] += len(pcm)
        data = pcm.cpu().numpy().astype("<i2").tobytes()
        self._loop.call_soon_threadsafe(self._hear, stage, before, data)

    def end(self, stage: Stage) -> None:
        """A stage gave all that it has."""
        if stage.live and self._live is not None:
            self._live.end(part_number(stage.name) or 0)

    def _open(self, plan: Plan) -> Live | None:
        stage = next((stage for stage in plan.stages if stage.live), None)
        if stage is None:
            return None
        sample_rate = int(plan.parameters[stage.parameters["sample_rate"]])
        self._log.sound(sample_rate)
        return Live(self._meaning.order.get(stage.each, (0,)), sample_rate, self._log.samples)

    def _hear(self, stage: Stage, offset: int, pcm: bytes) -> None:
        if self._live is not None:
            self._live.hear(part_number(stage.name) or 0, offset, pcm)
