"""Models to measure with: the small one, and one of I2VGen-XL's true size whose weights are random."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLPipeline, I2VGenXLUNet
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from inference.models import small
from inference.models.i2vgen_xl import I2VGenXL, describe, load

# As the published model has it: encoders of OpenCLIP ViT-H/14, Stable Diffusion's autoencoder, the UNet's own defaults.
_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 1024,
}
_VISION = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "hidden_act": "gelu",
    "projection_dim": 1024,
}
_AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
}


def model_of(size: str, folder: Path, place: torch.device) -> I2VGenXL:
    """The model of this size on a device. Runs where the device does."""
    small.build(folder)
    if size == "small":
        loaded = load(str(folder), name="small", device=str(place))
        assert isinstance(loaded, I2VGenXL)
        return loaded
    return _true(folder, place)


def _true(folder: Path, place: torch.device) -> I2VGenXL:
    """Made where it will be, in the type it will compute in: half on an accelerator."""
    parts = I2VGenXLPipeline.from_pretrained(folder)  # for the tokenizer and the picture's preparation
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16 if place.type != "cpu" else torch.float32)
    try:
        with torch.device(place):
            torch.manual_seed(0)
            pipeline = I2VGenXLPipeline(
                tokenizer=parts.tokenizer,
                text_encoder=CLIPTextModel(CLIPTextConfig(**_TEXT, eos_token_id=parts.tokenizer.eos_token_id)),
                feature_extractor=type(parts.feature_extractor)(
                    size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}
                ),
                image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**_VISION)),
                vae=AutoencoderKL(**_AUTOENCODER),
                unet=I2VGenXLUNet(),
                scheduler=DDIMScheduler.from_config(parts.scheduler.config),
            )
    finally:
        torch.set_default_dtype(before)
    for part in (pipeline.text_encoder, pipeline.image_encoder, pipeline.vae, pipeline.unet):
        part.eval().requires_grad_(False)
    return I2VGenXL(pipeline, describe(pipeline, "true", random_weights=True), place)
