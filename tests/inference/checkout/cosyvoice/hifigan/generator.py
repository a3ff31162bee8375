"""Frames to samples: tones and noise of the right height, shaped."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

SECONDS = 80  # of noise, which is always the same; the real one keeps 300


class SineGen2(nn.Module):
    def __init__(self, sampling_rate: int, harmonics: int, amplitude: float, noise: float, voiced: float) -> None:
        super().__init__()
        self.sampling_rate = sampling_rate
        self.amplitude, self.noise, self.voiced = amplitude, noise, voiced
        self.rand_ini = torch.rand(1, harmonics + 1)
        self.rand_ini[:, 0] = 0
        self.sine_waves = torch.rand(1, SECONDS * sampling_rate, harmonics + 1)

    def forward(self, f0: torch.Tensor) -> torch.Tensor:
        """[1, n, 1], Hz, of every sample -> [1, n, harmonics]."""
        multiples = torch.arange(1, self.rand_ini.shape[1] + 1, device=f0.device)
        turns = (f0 * multiples / self.sampling_rate).double().cumsum(dim=1) + self.rand_ini.to(f0.device)
        tones = torch.sin(2 * math.pi * turns).float() * self.amplitude
        voiced = (f0 > self.voiced).float()
        loud = voiced * self.noise + (1 - voiced) * self.amplitude / 3
        return tones * voiced + loud * self.sine_waves[:, : f0.shape[1]].to(f0.device)


class SourceModuleHnNSF(nn.Module):
    def __init__(self, sampling_rate: int, harmonics: int, amplitude: float, noise: float, voiced: float) -> None:
        super().__init__()
        self.l_sin_gen = SineGen2(sampling_rate, harmonics, amplitude, noise, voiced)
        self.l_linear = nn.Linear(harmonics + 1, 1)
        self.uv = torch.rand(1, SECONDS * sampling_rate, 1)

    def forward(self, f0: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.l_linear(self.l_sin_gen(f0)))


class CausalHiFTGenerator(nn.Module):
    def __init__(
        self,
        in_channels: int = 80,
        base_channels: int = 512,
        nb_harmonics: int = 8,
        sampling_rate: int = 22050,
        nsf_alpha: float = 0.1,
        nsf_sigma: float = 0.003,
        nsf_voiced_threshold: float = 10,
        upsample_rates: list[int] = [8, 8],  # noqa: B006
        upsample_kernel_sizes: list[int] = [16, 16],  # noqa: B006
        istft_params: dict[str, int] = {"n_fft": 16, "hop_len": 4},  # noqa: B006
        resblock_kernel_sizes: list[int] | None = None,
        resblock_dilation_sizes: list[list[int]] | None = None,
        source_resblock_kernel_sizes: list[int] | None = None,
        source_resblock_dilation_sizes: list[list[int]] | None = None,
        lrelu_slope: float = 0.1,
        audio_limit: float = 0.99,
        conv_pre_look_right: int = 4,
        f0_predictor: Any = None,
    ) -> None:
        super().__init__()
        self.sampling_rate = sampling_rate
        self.istft_params = istft_params
        self.lrelu_slope, self.audio_limit = lrelu_slope, audio_limit
        self.conv_pre_look_right = conv_pre_look_right
        self.m_source = SourceModuleHnNSF(sampling_rate, nb_harmonics, nsf_alpha, nsf_sigma, nsf_voiced_threshold)
        self.steps = math.prod(upsample_rates)  # spectra of a frame
        self.conv_pre = nn.Conv1d(in_channels, base_channels, conv_pre_look_right + 1)
        self.upsample_rates = upsample_rates
        self.ups = nn.ModuleList(
            nn.Conv1d(base_channels // 2**number, base_channels // 2 ** (number + 1), kernel)
            for number, kernel in enumerate(upsample_kernel_sizes)
        )
        last = base_channels // 2 ** len(upsample_rates)
        self.source_down = nn.Conv1d(1, last, istft_params["hop_len"], istft_params["hop_len"])
        self.conv_post = nn.Conv1d(last, istft_params["n_fft"] + 2, 7)
        self.stft_window = torch.hann_window(istft_params["n_fft"])
        self.f0_predictor = f0_predictor

    @torch.inference_mode()
    def inference(self, speech_feat: torch.Tensor, finalize: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, C, n] -> samples [1, m], of all frames, or of those that lie far enough before the end."""
        self.f0_predictor.to("cpu")
        f0 = self.f0_predictor(speech_feat.cpu(), finalize=finalize).to(speech_feat)
        hop, n_fft = self.istft_params["hop_len"], self.istft_params["n_fft"]
        source = self.m_source(f0.repeat_interleave(self.steps * hop, dim=1)[..., None]).transpose(1, 2)
        x = speech_feat if finalize else speech_feat[:, :, : f0.shape[1]]
        x = self.conv_pre(F.pad(x, (0, self.conv_pre_look_right)) if finalize else x)
        convolution: Any
        for rate, convolution in zip(self.upsample_rates, self.ups, strict=True):
            x = F.leaky_relu(x, self.lrelu_slope).repeat_interleave(rate, dim=2)
            x = convolution(F.pad(x, (convolution.kernel_size[0] - 1, 0)))
        x = F.leaky_relu(x + self.source_down(source)[:, :, : x.shape[2]])
        x = self.conv_post(F.pad(x, (6, 0)))
        size = torch.exp(x[:, : n_fft // 2 + 1]).clip(max=1e2)
        spectrum = torch.polar(size, torch.sin(x[:, n_fft // 2 + 1 :]))
        # Spectra overlap: one more gives the samples of the last one whole.
        spectrum = torch.cat([spectrum, spectrum[:, :, -1:]], dim=2)
        samples = torch.istft(spectrum, n_fft, hop, n_fft, window=self.stft_window.to(x.device))
        if not finalize:
            samples = samples[:, : -self.steps * hop]
        return samples.clamp(-self.audio_limit, self.audio_limit), source
