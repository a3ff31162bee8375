"""Voices that nobody has: sound that is made like speech, and the same every time."""

from __future__ import annotations

import numpy as np
import torch

from inference.models.base import Sound


def recording(seed: int = 0, seconds: float = 2.5, sample_rate: int = 16_000) -> Sound:
    """Syllables of a buzz at one pitch, with formants, over a faint noise: another pitch and rhythm for each seed."""
    draw = np.random.default_rng(seed)
    time = np.arange(int(seconds * sample_rate)) / sample_rate
    pitch = draw.uniform(90, 240) * (1 + 0.05 * np.sin(2 * np.pi * draw.uniform(1, 4) * time))  # Hz
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    formants = draw.uniform([300, 900, 2200], [800, 2000, 3000])
    buzz = np.zeros_like(time)
    for harmonic in range(1, 30):
        heard = np.exp(-(((harmonic * pitch[:, np.newaxis] - formants) / 180) ** 2)).sum(1)
        buzz += np.where(harmonic * pitch < sample_rate / 2, heard, 0) * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * draw.uniform(3, 5) * time + draw.uniform(0, 6)) + 0.4, 0, 1)
    loud = 0.5 * buzz * syllables / np.abs(buzz).max() + draw.normal(0, 0.001, len(time))
    return Sound(torch.from_numpy((loud * 32767).round().astype(np.int16)), sample_rate)
