"""How high a voice is, frame by frame."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class CausalConvRNNF0Predictor(nn.Module):
    def __init__(self, num_class: int = 1, in_channels: int = 80, cond_channels: int = 512) -> None:
        super().__init__()
        self.ahead = 3
        self.look = nn.Conv1d(in_channels, cond_channels, self.ahead + 1)
        self.back = nn.Conv1d(cond_channels, cond_channels, 3)
        self.classifier = nn.Linear(cond_channels, num_class)

    def forward(self, x: torch.Tensor, finalize: bool = True) -> torch.Tensor:
        """[1, C, n] -> [1, n], or three less where more is to come."""
        states = F.elu(self.look(F.pad(x, (0, self.ahead)) if finalize else x))
        states = F.elu(self.back(F.pad(states, (2, 0))))
        height: torch.Tensor = self.classifier(states.transpose(1, 2)).squeeze(-1)
        return height.abs()
