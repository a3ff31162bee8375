"""What several parts share."""

from __future__ import annotations

import random

import numpy as np
import torch


def set_all_random_seed(seed: int) -> None:
    """All generators of the process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def ras_sampling(
    weighted_scores: torch.Tensor,
    decoded_tokens: list[int],
    sampling: int,
    top_p: float = 0.8,
    top_k: int = 25,
    win_size: int = 10,
    tau_r: float = 0.1,
) -> torch.Tensor:
    """A token from among the probable ones; one that was said lately is drawn anew, without it. From torch's own
    generator, which everybody shares.
    """
    probable, order = weighted_scores.softmax(dim=0).sort(descending=True, stable=True)
    kept: list[float] = []
    total = torch.tensor(0.0, dtype=probable.dtype)
    for value in probable:
        if not (total < top_p and len(kept) < top_k):
            break
        total = total + value
        kept.append(float(value))
    token = order[torch.tensor(kept).to(weighted_scores).multinomial(1, replacement=True)]
    if (torch.tensor(decoded_tokens[-win_size:]) == token).sum().item() >= win_size * tau_r:
        weighted_scores[token] = -float("inf")
        token = weighted_scores.softmax(dim=0).multinomial(1, replacement=True)
    return token
