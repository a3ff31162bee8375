"""Sounding: tokens of speech to mel frames, and these to samples, in pieces.

Both networks look ahead by a little and back to the very beginning. So what can be said of the beginning alone can be
given before the rest is there, by running them on all that there is and giving what is new. How much there has to be
each time (25 tokens at first, then twice as many, at most four times) is a plan that follows from the request and from
nothing else: not from when tokens came, nor from what was said before. CosyVoice's own grows for as long as its process
lives.

At another speed there are more or fewer frames: each is interpolated where it stands, so that no end has to be known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from inference.models import sounds
from inference.models.base import Tensors

GROWING, WHOLE = "growing", "whole"  # plans: in chunks, or every sentence at once
FIRST_CHUNK = 25  # tokens; the networks were trained with chunks of as many, and attention that ends with them
_GROWTH, _MOST = 2, 4


class Chunks:
    """How far each chunk reaches, counted from the beginning: `first`, and then steps that grow."""

    def __init__(self, first: int, step: int) -> None:
        self.end = first
        self._step = step
        self._most = step * _MOST

    def go_on(self) -> None:
        self._step = min(self._step * _GROWTH, self._most)
        self.end += self._step


class Mel:
    """Tokens of one sentence to its frames. Fed {"units": int [n]}, gives {"mel": float32 [2n, bands]}."""

    def __init__(self, flow: Any, voice: Tensors, plan: str) -> None:
        self._flow = flow  # cosyvoice.flow.flow.CausalMaskedDiffWithDiT
        self._voice = voice
        self._device = voice["mel"].device
        self._units = torch.empty(0, dtype=torch.int32, device=self._device)
        self._given = 0  # frames
        self._chunks: Chunks | None = None
        if plan == GROWING:
            # Attention is cut where the recording's tokens are counted, too.
            self._chunks = Chunks(FIRST_CHUNK + -len(voice["tokens"]) % FIRST_CHUNK, FIRST_CHUNK)

    def feed(self, piece: Tensors) -> Iterator[Tensors]:
        self._units = torch.cat([self._units, piece["units"].to(torch.int32)])
        while self._chunks is not None and len(self._units) > self._chunks.end + self._ahead:
            yield self._run(self._units[: self._chunks.end + self._ahead], last=False)
            self._chunks.go_on()

    def end(self) -> Iterator[Tensors]:
        if len(self._units):
            yield self._run(self._units, last=True)

    @property
    def _ahead(self) -> int:
        return int(self._flow.pre_lookahead_len)

    def _run(self, units: torch.Tensor, *, last: bool) -> Tensors:
        """What is new of the frames of all these tokens."""
        tokens, prompt = self._voice["tokens"].to(torch.int32), self._voice["mel"]
        made, _ = self._flow.inference(
            token=units[None],
            token_len=self._count(units),
            prompt_token=tokens[None],
            prompt_token_len=self._count(tokens),
            prompt_feat=prompt[None],
            prompt_feat_len=self._count(prompt),
            embedding=self._voice["embedding"][None],
            streaming=self._chunks is not None,
            finalize=last,
        )
        new = made[0, :, self._given :].T.clone(memory_format=torch.contiguous_format)
        self._given += len(new)
        return {"mel": new}

    def _count(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.tensor([len(rows)], dtype=torch.int32, device=self._device)


class Waveform:
    """Frames of one sentence to its samples. Fed {"mel": float32 [n, bands]}, gives {"pcm": int16 [m]}."""

    def __init__(self, hift: Any, speed: float, frames: int) -> None:
        """`frames` are those of a first chunk."""
        self._hift = hift  # cosyvoice.hifigan.generator.CausalHiFTGenerator
        self._paced = _Paced(speed)
        self._mel: torch.Tensor | None = None
        self._given = 0  # samples
        self._chunks = Chunks(frames, frames)

    def feed(self, piece: Tensors) -> Iterator[Tensors]:
        yield from self._sound(self._paced.feed(piece["mel"]))

    def end(self) -> Iterator[Tensors]:
        yield from self._sound(self._paced.end())
        if self._mel is not None:
            yield from self._run(self._mel, last=True)

    def _sound(self, mel: torch.Tensor) -> Iterator[Tensors]:
        if not len(mel):
            return
        self._mel = mel if self._mel is None else torch.cat([self._mel, mel])
        while len(self._mel) > self._chunks.end:
            yield from self._run(self._mel[: self._chunks.end], last=False)
            self._chunks.go_on()

    def _run(self, mel: torch.Tensor, *, last: bool) -> Iterator[Tensors]:
        """What is new of the samples of all these frames."""
        made, _ = self._hift.inference(speech_feat=mel.T[None].contiguous(), finalize=last)
        new = made[0, self._given :].clone()
        self._given += len(new)
        if len(new):
            yield {"pcm": sounds.to_pcm(new)}


class _Paced:
    """Frames [n, bands] at another speed, each interpolated between the two that it stands between."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._taken: torch.Tensor | None = None
        self._given = 0

    def feed(self, mel: torch.Tensor) -> torch.Tensor:
        """Those that stand before the last one that is there."""
        if self._speed == 1.0:
            return mel
        self._taken = mel if self._taken is None else torch.cat([self._taken, mel])
        places = self._places(int(len(self._taken) / self._speed) + 2)
        return self._at(self._taken, places[places < len(self._taken) - 1])

    def end(self) -> torch.Tensor:
        """The rest: as many in all as the speed says."""
        if self._taken is None:
            return torch.empty(0)
        return self._at(self._taken, self._places(max(1, int(len(self._taken) / self._speed))))

    def _places(self, until: int) -> torch.Tensor:
        """Where the next frames stand among those that were taken."""
        numbers = torch.arange(self._given, max(until, self._given), dtype=torch.float64)
        return ((numbers + 0.5) * self._speed - 0.5).clamp(min=0.0)

    def _at(self, taken: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        self._given += len(places)
        places = places.clamp(max=len(taken) - 1)
        before = places.floor()
        after = (before + 1).clamp(max=len(taken) - 1)
        share = (places - before).to(taken)[:, None]
        low, high = (taken[at.long().to(taken.device)] for at in (before, after))
        return low + (high - low) * share
