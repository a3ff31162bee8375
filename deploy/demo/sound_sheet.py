"""Sound sheet: waveform and spectrogram of what was spoken, a line each; where sentences are known, the reused ones are
marked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from deploy.demo.rows import Row
from deploy.demo.speech import made_of, samples

_LABEL, _WIDTH, _WAVE, _SPECTRUM, _GAP = 260, 900, 60, 80, 26  # pixels
_WINDOW = 512  # samples
_LOUDEST, _SOFTEST = 0.0, -80.0  # decibels of full scale that are drawn black and white
_REUSED, _MADE, _INK = "#588157", "#c8553d", "#22252a"


def sound_sheet(rows: Sequence[Row], sentences: Mapping[str, int]) -> Image.Image:
    """`sentences` are those of the edited paragraph, with their lengths in samples."""
    told = [row for row in rows if row.files]
    height = _WAVE + _SPECTRUM + _GAP
    sheet = Image.new("RGB", (_LABEL + _WIDTH, height * len(told) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((8, 6), "sentences:", fill=_INK)
    pen.text((80, 6), "reused", fill=_REUSED)
    pen.text((130, 6), "spoken anew", fill=_MADE)
    rate, longest = 1, 1.0
    heard = [samples(row.files[0].read_bytes()) for row in told]
    longest = max(len(pcm) / rate for rate, pcm in heard)
    for number, (row, (rate, pcm)) in enumerate(zip(told, heard, strict=True)):
        top = _GAP + number * height
        width = max(1, round(_WIDTH * len(pcm) / rate / longest))
        lines = [
            row.name,
            f"answered by {row.answered_by}",
            f"{row.ms:,.0f} ms",
            f"{row.saved:.2f} s of device time saved",
        ]
        pen.text((8, top + 8), "\n".join(lines), fill=_INK)
        sheet.paste(_waveform(pcm, width), (_LABEL, top))
        sheet.paste(_spectrogram(pcm, width), (_LABEL, top + _WAVE))
        if row.name == "edited-paragraph":
            _mark(pen, top + _WAVE + _SPECTRUM + 4, width, list(sentences.values()), made_of(row))
    return sheet


def _mark(pen: ImageDraw.ImageDraw, y: int, width: int, lengths: Sequence[int], reused: Sequence[bool]) -> None:
    """A coloured line under each sentence."""
    left = 0.0
    for length, known in zip(lengths, reused, strict=True):
        right = left + width * length / sum(lengths)
        pen.line((_LABEL + left + 2, y, _LABEL + right - 2, y), fill=_REUSED if known else _MADE, width=5)
        left = right


def _waveform(pcm: NDArray[np.int16], width: int) -> Image.Image:
    image = Image.new("RGB", (width, _WAVE), "white")
    pen = ImageDraw.Draw(image)
    for x, part in enumerate(np.array_split(pcm, width)):
        if len(part):
            high, low = (_WAVE / 2 * (1 - int(value) / 32768) for value in (part.max(), part.min()))
            pen.line((x, high, x, low), fill=_INK)
    return image


def _spectrogram(pcm: NDArray[np.int16], width: int) -> Image.Image:
    """Low tones at the bottom, louder ones darker."""
    padded = np.pad(pcm.astype(np.float32) / 32768, (0, max(0, _WINDOW - len(pcm))))
    starts = np.linspace(0, len(padded) - _WINDOW, width).astype(int)
    windows = np.stack([padded[start : start + _WINDOW] for start in starts]) * np.hanning(_WINDOW)
    loudness = 20 * np.log10(np.abs(np.fft.rfft(windows)) / (_WINDOW / 4) + 1e-9)
    shade = np.clip((_LOUDEST - loudness) / (_LOUDEST - _SOFTEST), 0, 1)
    image = Image.fromarray((shade.T[::-1] * 255).astype(np.uint8))
    return image.resize((width, _SPECTRUM)).convert("RGB")
