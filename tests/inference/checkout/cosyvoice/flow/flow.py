"""Tokens of speech to frames, after a recording's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class CausalMaskedDiffWithDiT(nn.Module):
    def __init__(
        self,
        input_size: int = 512,
        output_size: int = 80,
        spk_embed_dim: int = 192,
        output_type: str = "mel",
        vocab_size: int = 4096,
        input_frame_rate: int = 50,
        only_mask_loss: bool = True,
        token_mel_ratio: int = 2,
        pre_lookahead_len: int = 3,
        pre_lookahead_layer: Any = None,
        decoder: Any = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.input_frame_rate = input_frame_rate
        self.token_mel_ratio = token_mel_ratio
        self.pre_lookahead_len = pre_lookahead_len
        self.input_embedding = nn.Embedding(vocab_size, input_size)
        self.spk_embed_affine_layer = nn.Linear(spk_embed_dim, output_size)
        self.pre_lookahead_layer = pre_lookahead_layer
        self.decoder = decoder

    @torch.inference_mode()
    def inference(
        self,
        token: torch.Tensor,
        token_len: torch.Tensor,
        prompt_token: torch.Tensor,
        prompt_token_len: torch.Tensor,
        prompt_feat: torch.Tensor,
        prompt_feat_len: torch.Tensor,
        embedding: torch.Tensor,
        streaming: bool,
        finalize: bool,
    ) -> tuple[torch.Tensor, None]:
        assert token.shape[0] == 1
        speaker = self.spk_embed_affine_layer(F.normalize(embedding, dim=1))
        states = self.input_embedding(torch.cat([prompt_token, token], dim=1).clamp(min=0))
        if finalize:
            states = self.pre_lookahead_layer(states)
        else:
            ahead = self.pre_lookahead_len
            states = self.pre_lookahead_layer(states[:, :-ahead], context=states[:, -ahead:])
        states = states.repeat_interleave(self.token_mel_ratio, dim=1)
        before = prompt_feat.shape[1]
        known = torch.zeros(1, states.shape[1], self.output_size).to(states)
        known[:, :before] = prompt_feat
        mask = torch.ones(1, 1, states.shape[1]).to(states)
        frames, _ = self.decoder(
            mu=states.transpose(1, 2).contiguous(),
            mask=mask,
            spks=speaker,
            cond=known.transpose(1, 2),
            n_timesteps=10,
            streaming=streaming,
        )
        return frames[:, :, before:].float(), None
