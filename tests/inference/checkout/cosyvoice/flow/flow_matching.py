"""From noise, which is always the same, to frames."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from cosyvoice.utils.common import set_all_random_seed  # type: ignore[import-not-found]
from torch import nn


class CausalConditionalCFM(nn.Module):
    def __init__(
        self, in_channels: int, cfm_params: Any, n_spks: int = 1, spk_emb_dim: int = 64, estimator: Any = None
    ) -> None:
        super().__init__()
        self.t_scheduler = cfm_params.t_scheduler
        self.inference_cfg_rate = cfm_params.inference_cfg_rate
        self.estimator = estimator
        set_all_random_seed(0)
        self.rand_noise = torch.randn([1, 80, 50 * 300])

    @torch.inference_mode()
    def forward(
        self,
        mu: torch.Tensor,
        mask: torch.Tensor,
        n_timesteps: int,
        temperature: float = 1.0,
        spks: Any = None,
        cond: Any = None,
        streaming: bool = False,
    ) -> tuple[torch.Tensor, None]:
        x = self.rand_noise[:, :, : mu.size(2)].to(mu) * temperature
        times = torch.linspace(0, 1, n_timesteps + 1, device=mu.device, dtype=mu.dtype)
        if self.t_scheduler == "cosine":
            times = 1 - torch.cos(times * 0.5 * torch.pi)
        for now, then in pairwise(times):
            guided, free = self.estimator(
                torch.cat([x, x]),
                torch.cat([mask, mask]),
                torch.cat([mu, torch.zeros_like(mu)]),
                now.repeat(2),
                torch.cat([spks, torch.zeros_like(spks)]),
                torch.cat([cond, torch.zeros_like(cond)]),
                streaming,
            ).chunk(2)
            x = x + (then - now) * ((1 + self.inference_cfg_rate) * guided - self.inference_cfg_rate * free)
        return x.float(), None
