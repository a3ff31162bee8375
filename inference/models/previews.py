"""Previews: small pictures of latents under way, by a linear map that is fitted to the model's own decoder.

Fitted once to what the decoder makes of a few coarse random latents: enough for a preview, at the price of one small
decode instead of one per preview.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from PIL import Image

_PREVIEWS = 8  # pictures per generation, about


def is_worth_a_look(done: int, steps: int) -> bool:
    return done % math.ceil(steps / _PREVIEWS) == 0


def fit_colours(decode: Callable[[torch.Tensor], torch.Tensor], channels: int) -> torch.Tensor:
    """[C + 1, 3]: the linear map from a latent pixel, and 1, to red, green and blue in 0..1 that fits this decoder.

    `decode` gets latents [n, C, 8, 8], as a scheduler steps them, on the host; it gives pictures [n, 3, H, W] in -1..1.
    """
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, channels, 4, 4, generator=generator).repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        pixels = decode(latents)
    colours = torch.nn.functional.adaptive_avg_pool2d(pixels.float().cpu() / 2 + 0.5, 8)
    fit: torch.Tensor = torch.linalg.lstsq(_with_one(latents), colours.movedim(1, -1).reshape(-1, 3)).solution
    return fit


def picture_of(latent: torch.Tensor, colours: torch.Tensor) -> Image.Image:
    """A picture of [C, h, w] with one pixel for each of the latent."""
    height, width = latent.shape[-2:]
    values = (_with_one(latent.unsqueeze(0).float().cpu()) @ colours).reshape(height, width, 3)
    return Image.fromarray((values.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def _with_one(latents: torch.Tensor) -> torch.Tensor:
    """[n, C, h, w] as a row of C + 1 numbers for every pixel, the last being 1."""
    rows = latents.movedim(1, -1).flatten(0, 2)
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
