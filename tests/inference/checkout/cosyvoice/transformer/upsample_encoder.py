"""What looks a few tokens ahead."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class PreLookaheadLayer(nn.Module):
    def __init__(self, in_channels: int, channels: int, pre_lookahead_len: int = 1) -> None:
        super().__init__()
        self.pre_lookahead_len = pre_lookahead_len
        self.conv1 = nn.Conv1d(in_channels, channels, pre_lookahead_len + 1)
        self.conv2 = nn.Conv1d(channels, in_channels, 3)

    def forward(self, inputs: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """inputs: [1, n, C]. context: the tokens after these, else there are none."""
        states = inputs.transpose(1, 2)
        if context is None:
            states = F.pad(states, (0, self.pre_lookahead_len))
        else:
            states = torch.cat([states, context.transpose(1, 2)], dim=2)
        states = F.leaky_relu(self.conv1(states))
        seen: torch.Tensor = self.conv2(F.pad(states, (2, 0))).transpose(1, 2)
        return seen + inputs
