"""Mel spectrograms."""

from __future__ import annotations

import torch


def mel_spectrogram(
    y: torch.Tensor,
    n_fft: int,
    num_mels: int,
    sampling_rate: int,
    hop_size: int,
    win_size: int,
    fmin: float,
    fmax: float | None,
    center: bool = False,
) -> torch.Tensor:
    """[1, n] -> [1, num_mels, frames], their logarithms."""
    beside = (n_fft - hop_size) // 2
    padded = torch.nn.functional.pad(y[None], (beside, beside), mode="reflect")[0]
    window = torch.hann_window(win_size)
    spectrum = torch.stft(padded, n_fft, hop_size, win_size, window, center=center, return_complex=True).abs()
    edges = torch.linspace(fmin, fmax or sampling_rate / 2, num_mels + 2)
    places = torch.linspace(0, sampling_rate / 2, spectrum.shape[1])
    width = (edges[1] - edges[0]).clamp(min=1.0)
    bands = (1 - ((places[None] - edges[1:-1, None]) / width).abs()).clamp(min=0)
    return torch.matmul(bands, spectrum).clamp(min=1e-5).log()
