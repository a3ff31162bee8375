"""Speech: one real voice, and what is computed when something changes."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from deploy.demo.rows import Row, Scene
from gateway.client import Client, Media
from reprise.v1.common_pb2 import STAGE_OUTCOME_RUN, CachePolicy, Similarity
from reprise.v1.media_pb2 import GenerationEvent, SynthesizeSpeechRequest

LINE = "The rain had stopped, and the street was quiet."
SPELLED_OTHERWISE = "The rain had stopped ，  and the street was quiet!!"
OTHER_LINE = "Nobody had seen the last train leave."
PARAGRAPH = [LINE, "A lamp went out above the bridge.", "Then somebody laughed."]
EDITED = [LINE, "A lamp went out behind the old bridge.", "Then somebody laughed."]


@dataclass(frozen=True)
class Stages:
    """What a family makes of a voice, and of each sentence in it."""

    voice: Set[str]
    sentence: Set[str]


OF_FAMILY = {
    "pocket-tts": Stages({"voice", "prefix"}, {"latents", "waveform"}),
    # Its vocoder paces speech, and so runs for another speed.
    "cosyvoice3": Stages({"voice"}, {"units", "mel"}),
}


class Speech(Scene[SynthesizeSpeechRequest]):
    def __init__(self, voice: Path, doors: Sequence[str], console: Console, family: str) -> None:
        super().__init__(doors, console)
        self._voice = voice.read_bytes()
        self.stages = OF_FAMILY[family]
        self.sentences: dict[str, int] = {}  # samples that each of the edited paragraph's has

    def asked(self, fields: dict[str, Any]) -> SynthesizeSpeechRequest:
        return SynthesizeSpeechRequest(**{"voice": self._voice, "text": LINE} | fields)

    async def send(self, client: Client, request: SynthesizeSpeechRequest) -> Media:
        return await client.speak(request)

    async def play(self) -> None:
        voice, model = self.stages.voice, self.stages.sentence
        await self.row("speech-cold", [{}], run=voice | model | {"file"}, generations=1)
        await self.row("speech-again", [{}], tier="l1")
        await self.row("other-punctuation", [{"text": SPELLED_OTHERWISE}], run=model, not_run=voice, generations=1)
        await self._folded()
        await self.row("other-sentence", [{"text": OTHER_LINE}], run=model, not_run=voice, generations=1)
        await self._edited()
        await self.row("other-container", [{"format": "flac"}], run={"file"}, not_run=model | voice)
        await self.row("other-speed", [{"speed": 1.25}], run={"file"}, not_run=model | voice)
        await self.row("eight-at-once", [{"seed": 7}] * 8, at_once=True, run=model, generations=1)
        await self._joined()

    async def _folded(self) -> None:
        """The same line in another spelling, by a caller to whom that is the same: what was made is used, and it is
        said.
        """
        policy = CachePolicy(similarity=Similarity(lines=True))
        row = await self.row("folded", [{"text": SPELLED_OTHERWISE, "cache_policy": policy}], tier="l1")
        if set(row.reports[0].folded) != {"punctuation", "width", "spacing"}:
            row.wrong.append(f"expected to be told what was folded: {list(row.reports[0].folded)}")

    async def _edited(self) -> None:
        """Of a paragraph, what is new is spoken: two sentences of three, then the one that was edited."""
        model = self.stages.sentence
        paragraph = await self.row("paragraph", [{"text": " ".join(PARAGRAPH)}], run=model, generations=1)
        edited = await self.row("edited-paragraph", [{"text": " ".join(EDITED)}], run=model, generations=1)
        for row, run in ((paragraph, 2), (edited, 1)):
            row.wrong += [
                f"{stage} ran for {row.parts.get(stage)}" for stage in model if row.parts.get(stage) != (run, 3)
            ]
        async with Client(self.doors[0]) as client:
            for sentence in EDITED:  # alone, for their lengths: nothing of them is made again
                alone = await client.speak(self.asked({"text": sentence}))
                self.sentences[sentence] = len(samples(alone.data)[1])
        if sum(self.sentences.values()) != len(samples(edited.files[0].read_bytes())[1]):
            edited.wrong.append("the paragraph is not its sentences one after the other")

    async def _joined(self) -> None:
        """Two who listen live: the second joins when the first has heard something already, and both hear the same."""
        heard: list[_Listener] = []

        async def listen(client: Client, request: SynthesizeSpeechRequest) -> Media:
            first, second = _Listener(), _Listener()
            leading = asyncio.create_task(client.speak(request, on_event=first))
            beginning = asyncio.create_task(first.begun.wait())
            await asyncio.wait({leading, beginning}, return_when=asyncio.FIRST_COMPLETED)
            beginning.cancel()
            async with Client(self.doors[1]) as other:
                joined, media = await asyncio.gather(other.speak(request, on_event=second), leading)
            replayed = _Listener()
            again = await client.speak(request, on_event=replayed)
            heard.extend((first, second, replayed))
            if not joined.data == media.data == again.data:
                raise AssertionError("one request gave several files")
            return media

        text = " ".join(PARAGRAPH)
        row = await self.row("joined-live", [{"text": text, "seed": 8, "live": True}], ask=listen, generations=1)
        if len({each.digest for each in heard}) != 1 or not heard[0].blocks:
            row.wrong.append("live, joined and replayed samples are not the same")


class _Listener:
    """Hears samples as they come."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.blocks: list[tuple[int, bytes]] = []

    def __call__(self, event: GenerationEvent) -> None:
        if event.HasField("samples"):
            self.blocks.append((event.samples.offset, event.samples.pcm))
            self.begun.set()

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.blocks).encode()).hexdigest()


def samples(file: bytes) -> tuple[int, NDArray[np.int16]]:
    """Rate and samples of a mono file."""
    with av.open(io.BytesIO(file), "r") as container:
        (stream,) = container.streams.audio
        resampler = av.AudioResampler(format="s16", layout="mono", rate=stream.rate)
        frames = [out for frame in container.decode(stream) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
        heard = [frame.to_ndarray()[0] for frame in frames]
        return stream.rate, np.concatenate(heard) if heard else np.zeros(0, np.int16)


def made_of(row: Row) -> list[bool]:
    """Of each sentence, in order: whether it was reused."""
    first = next(stage for stage in row.reports[0].stages if stage.parts)
    return [part.outcome != STAGE_OUTCOME_RUN for part in first.parts]
