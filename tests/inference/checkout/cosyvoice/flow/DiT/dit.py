"""What tells where noise should go."""

from __future__ import annotations

import math

import torch
from torch import nn


class DiT(nn.Module):
    def __init__(
        self,
        *,
        dim: int,
        depth: int = 8,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.1,
        ff_mult: int = 4,
        mel_dim: int = 80,
        mu_dim: int | None = None,
        long_skip_connection: bool = False,
        spk_dim: int | None = None,
        out_channels: int | None = None,
        static_chunk_size: int = 50,
        num_decoding_left_chunks: int = 2,
    ) -> None:
        super().__init__()
        self.static_chunk_size = static_chunk_size
        self.time_embed = nn.Linear(dim, dim)
        self.proj = nn.Linear(2 * mel_dim + (mu_dim or mel_dim) + (spk_dim or 0), dim)
        self.transformer_blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, ff_mult * dim, 0.0, batch_first=True) for _ in range(depth)
        )
        self.proj_out = nn.Linear(dim, mel_dim)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor,
        mu: torch.Tensor,
        t: torch.Tensor,
        spks: torch.Tensor,
        cond: torch.Tensor,
        streaming: bool = False,
    ) -> torch.Tensor:
        """x, mu, cond: [B, C, n]. Streaming, a frame attends to no chunk after its own."""
        count = x.shape[2]
        voice = spks[:, None].expand(-1, count, -1)
        states = self.proj(torch.cat([x.transpose(1, 2), cond.transpose(1, 2), mu.transpose(1, 2), voice], dim=-1))
        half = states.shape[-1] // 2
        rates = torch.exp(torch.arange(half, device=x.device) * (-math.log(10000.0) / half))
        places = torch.arange(count, device=x.device)[:, None] * rates
        times = 1000 * t[:, None] * rates
        states = states + torch.cat([places.sin(), places.cos()], dim=-1)
        states = states + self.time_embed(torch.cat([times.sin(), times.cos()], dim=-1))[:, None]
        hidden = None
        if streaming:
            chunks = torch.arange(count, device=x.device) // self.static_chunk_size
            hidden = chunks[None] > chunks[:, None]
        for block in self.transformer_blocks:
            states = block(states, src_mask=hidden)
        slope: torch.Tensor = self.proj_out(states)
        return slope.transpose(1, 2)
