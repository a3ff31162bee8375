"""Models to measure with: the small one, and those of true size whose weights are random, or on `meta` none at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    UMT5Config,
    UMT5EncoderModel,
)

from inference.models import small
from inference.models.i2vgen_xl import I2VGenXL, describe, give_back_text_model, load

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


# UMT5-XXL, of which Wan uses the encoder.
_LONG_TEXT = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
}
_VIEW = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}


def _true(folder: Path, place: torch.device) -> I2VGenXL:
    """Made where it will be, in the type it will compute in: half on an accelerator."""
    parts = I2VGenXLPipeline.from_pretrained(folder)  # for the tokenizer and the picture's preparation
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16 if place.type != "cpu" else torch.float32)
    try:
        with torch.device(place):
            torch.manual_seed(0)
            pipeline = true_i2vgen_xl(parts)
    finally:
        torch.set_default_dtype(before)
    for part in (pipeline.text_encoder, pipeline.image_encoder, pipeline.vae, pipeline.unet):
        part.eval().requires_grad_(False)
    return I2VGenXL(pipeline, describe(pipeline, "true", random_weights=True), place)


# Pipelines of true size, made on torch's current device. `parts` is the small one, for what has no weights.


def true_i2vgen_xl(parts: Any) -> I2VGenXLPipeline:
    pipeline = I2VGenXLPipeline(
        tokenizer=parts.tokenizer,
        text_encoder=CLIPTextModel(CLIPTextConfig(**_TEXT, eos_token_id=parts.tokenizer.eos_token_id)),
        feature_extractor=type(parts.feature_extractor)(**_VIEW),
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**_VISION)),
        vae=AutoencoderKL(**_AUTOENCODER),
        unet=I2VGenXLUNet(),
        scheduler=parts.scheduler,
    )
    give_back_text_model(pipeline.text_encoder)
    return pipeline


def true_svd(parts: Any) -> StableVideoDiffusionPipeline:
    """SVD-XT, which is the UNet's own defaults."""
    autoencoder = {name: value for name, value in _AUTOENCODER.items() if name != "up_block_types"}
    return StableVideoDiffusionPipeline(
        feature_extractor=parts.feature_extractor,
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**_VISION)),
        vae=AutoencoderKLTemporalDecoder(**autoencoder),
        unet=UNetSpatioTemporalConditionModel(),
        scheduler=parts.scheduler,
    )


def true_wan(parts: Any) -> WanImageToVideoPipeline:
    """Wan 2.1 with 14 billion weights, or, where `parts` has two transformers, Wan 2.2: the library's own defaults."""
    sees = parts.transformer.config.image_dim is not None
    options = {"in_channels": 36} | ({"image_dim": 1280, "added_kv_proj_dim": 5120} if sees else {})
    return WanImageToVideoPipeline(
        tokenizer=parts.tokenizer,
        text_encoder=UMT5EncoderModel(UMT5Config(**_LONG_TEXT)),
        image_encoder=CLIPVisionModel(CLIPVisionConfig(**_VISION)) if sees else None,
        image_processor=type(parts.image_processor)(**_VIEW) if sees else None,
        vae=AutoencoderKLWan(),
        transformer=WanTransformer3DModel(**options),
        transformer_2=None if parts.transformer_2 is None else WanTransformer3DModel(**options),
        scheduler=parts.scheduler,
        boundary_ratio=parts.config.boundary_ratio,
    )
