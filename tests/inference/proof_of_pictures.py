"""The proof that a family of moving pictures owes: `proof.py`, and what only pictures can show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from inference import rendition, tensors
from inference.models.base import Output
from tests.inference import proof
from tests.inference.proof import Family, Proof, Request, StagedModel, as_tensors, run

RESULT = ("denoise", "video")  # stages


def library_output(family: Family, model: StagedModel, request: Request) -> dict[str, bytes]:
    """What the last two stages store, made of what the library computes."""
    latents = _library_call(family, model, request, "latent")
    frames = _library_call(family, model, request, "pil")[0]
    rate, container = int(request.parameters["playback_fps"]), str(request.parameters["format"])
    return {
        "denoise": tensors.to_bytes({"latents": latents}),
        "video": rendition.encode(frames, rate, container).data,
    }


def _library_call(family: Family, model: StagedModel, request: Request, output_type: str) -> Any:
    """The reference: the library's own unstaged call, right after seeding, in a fork of the global generator."""
    model.pipeline.set_progress_bar_config(disable=True)
    with torch.random.fork_rng():
        torch.manual_seed(int(request.parameters["seed"]))
        return family.library(model.pipeline, request, output_type)


def results(outputs: Mapping[str, Output]) -> dict[str, bytes]:
    return proof.results(outputs, RESULT)


def merge_lora(module: nn.Module) -> None:
    """Adds a small product of rank one to every query projection, as an adapter of that rank is merged."""
    projections = [each for name, each in module.named_modules() if name.endswith("to_q")]
    assert projections
    with torch.no_grad():
        for projection in projections:
            rows, columns = projection.weight.shape
            projection.weight += 0.01 * torch.outer(torch.linspace(-1, 1, rows), torch.linspace(1, 2, columns))


class PictureProof(Proof):
    """`Family.library` is (pipeline, request, output type): the frames of the library's own call."""

    of_library = of_run = RESULT

    def library_output(self, model: StagedModel, request: Request) -> dict[str, bytes]:
        return library_output(self.family, model, request)

    def test_progress_counts_every_step(self, proven: StagedModel, base: Request) -> None:
        """Progress is told once after each step of the denoising, and by no other stage."""
        told: list[tuple[int, int]] = []
        run(proven, base.but(num_inference_steps=4), step=lambda done, of: told.append((done, of)))
        assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def test_previews_are_small_pictures_of_the_work_so_far(self, proven: StagedModel, base: Request) -> None:
        """Every few steps comes a picture with one pixel for each of the latent; looking changes nothing."""
        seen: list[Image.Image] = []
        request = base.but(num_inference_steps=20)
        watched = run(proven, request, preview=seen.append)
        height, width = as_tensors(watched["denoise"])["latents"].shape[-2:]
        assert [(image.mode, image.size) for image in seen] == [("RGB", (width, height))] * 6
        assert len({image.tobytes() for image in seen}) == 6
        assert results(watched) == results(run(proven, request))

    def test_a_preview_has_the_colours_of_the_video(self, proven: StagedModel, base: Request) -> None:
        """The last preview is close to the video's middle frame, on average and in its colours."""
        seen: list[Image.Image] = []
        request = base.but(num_inference_steps=4)
        run(proven, request, preview=seen.append)
        frames = _library_call(self.family, proven, request, "pil")[0]
        shown = np.asarray(frames[len(frames) // 2], dtype=float).mean((0, 1))
        assert np.abs(shown - np.asarray(seen[-1], dtype=float).mean((0, 1))).max() < 32
