"""Stable Video Diffusion in stages: what is its own, and the proof that all families of moving pictures owe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, StableVideoDiffusionPipeline

from gateway.errors import InvalidField
from gateway.validate import complete, given_fields
from inference.models import load
from inference.models.base import Artifact
from inference.models.loading import open_pipeline
from inference.models.svd import DECODE_CHUNK, describe
from reprise.v1.common_pb2 import ParameterValue
from reprise.v1.media_pb2 import AnimateImageRequest
from tests.inference.proof import (
    Evidence,
    Family,
    Request,
    StagedModel,
    as_tensors,
    base_request,
    nudge,
    opened,
    run,
)
from tests.inference.proof_of_pictures import PictureProof, merge_lora

# diffusers converts tensors in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def library(pipeline: Any, request: Request, output_type: str) -> Any:
    asked = request.parameters
    names = ("width", "height", "num_frames", "num_inference_steps", "motion_bucket_id", "noise_aug_strength")
    return pipeline(
        request.image,
        **{name: asked[name] for name in (*names, "min_guidance_scale")},
        max_guidance_scale=asked["guidance_scale"],
        fps=asked["motion_fps"],
        decode_chunk_size=DECODE_CHUNK,
        generator=torch.Generator().manual_seed(int(asked["seed"])),
        output_type=output_type,
    ).frames


class TestProof(PictureProof):
    family = Family(
        "svd",
        describe=describe,
        library=library,
        asked={"width": 64, "height": 64, "num_frames": 3, "num_inference_steps": 3},
        varied={"guidance_scale": (1.0,), "noise_aug_strength": (0.0,), "motion_fps": (1,)},
        cases=(
            {"num_frames": DECODE_CHUNK + 1, "width": 72, "height": 96},
            {"min_guidance_scale": 3.0, "guidance_scale": 1.5, "num_frames": 2},
            {"num_inference_steps": 1},
        ),
        changes={
            "vision weights": (lambda p: nudge(p.image_encoder), {"vision"}),
            "vision means": (lambda p: setattr(p.feature_extractor, "image_mean", [0.5, 0.5, 0.5]), {"vision"}),
            "encoder weights": (lambda p: nudge(p.vae.encoder), {"condition"}),
            "decoder weights": (lambda p: nudge(p.vae.decoder), {"video"}),
            "unet weights": (lambda p: nudge(p.unet), {"denoise"}),
            "unet adapter": (lambda p: merge_lora(p.unet), {"denoise"}),
            "unet attention": (lambda p: p.unet.set_default_attn_processor(), {"denoise"}),
            "schedule": (lambda p: p.scheduler.register_to_config(sigma_max=80.0), {"denoise"}),
        },
        libraries={
            "torch": {"vision", "condition", "denoise", "video"},
            "diffusers": {"vision", "condition", "denoise", "video"},
            "transformers": {"vision"},
            "tokenizers": set(),
            "pillow": {"vision", "condition", "video"},
        },
    )

    def test_an_encoding_belongs_to_its_seed(self, proven: StagedModel, evidence: Evidence) -> None:
        """Another seed encodes the picture again and looks at it again only where that is no matter of chance."""
        (changed,) = [outputs for name, _, outputs in evidence.changed if name == "seed"]
        assert evidence.outputs["vision"]["embeds"].equal(changed["vision"]["embeds"])  # type: ignore[index]
        assert not evidence.outputs["condition"]["mean"].equal(changed["condition"]["mean"])  # type: ignore[index]

    def test_the_encoder_is_lifted_to_single_precision_and_comes_down(self, folder: Path) -> None:
        """In float16, too coarse for the encoder, latents are the library's; a failed encoding leaves it as it was."""
        model = opened(folder, "float16")
        request = base_request(model.description, self.family.asked).but(num_frames=2, num_inference_steps=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model.pipeline, "_encode_vae_image", lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                run(model, request)
        assert model.pipeline.vae.dtype == torch.float16
        latents = as_tensors(run(model, request, known={"video": Artifact(b"", "")})["denoise"])["latents"]
        assert latents.equal(library(model.pipeline, request, "latent"))

    def test_a_prompt_is_neither_needed_nor_taken(self, proven: StagedModel) -> None:
        """A gateway completes a request without a word, and refuses one with a text the model would not read."""
        motion = ParameterValue(int_value=200)
        given, extra = given_fields(AnimateImageRequest(num_frames=5, extra={"motion_bucket_id": motion}))
        parameters = complete(proven.description, given, extra)
        assert (parameters["num_frames"], parameters["motion_bucket_id"]) == (5, 200)
        given, extra = given_fields(AnimateImageRequest(prompt="snow falls"))
        with pytest.raises(InvalidField) as refused:
            complete(proven.description, given, extra)
        assert (refused.value.field, refused.value.reason) == ("prompt", "FIELD_UNKNOWN")

    def test_a_scheduler_that_draws_its_own_noise_is_refused(self, folder: Path, tmp_path: Path) -> None:
        """The library gives it no generator, so nobody could have its result again."""
        pipeline = open_pipeline(StableVideoDiffusionPipeline, str(folder), torch.float32)
        pipeline.scheduler = EulerAncestralDiscreteScheduler()
        pipeline.save_pretrained(tmp_path, safe_serialization=True)
        with pytest.raises(ValueError, match="no seed decides"):
            load(str(tmp_path), name="m", device="cpu")
