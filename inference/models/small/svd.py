"""A small Stable Video Diffusion."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from inference.models.small.parts import scale

CODE_VERSION = 1  # of everything that shapes this model

_WIDTH = 32  # of everything: its layers are normalised in groups of 32 channels


def pipeline() -> StableVideoDiffusionPipeline:
    """Drawn from torch's global generator."""
    return StableVideoDiffusionPipeline(
        # Pillow's and not torchvision's, which would make the bits depend on what else is installed.
        feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}),
        image_encoder=CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                image_size=224,  # what the pipeline scales pictures to
                patch_size=32,
                hidden_size=_WIDTH,
                intermediate_size=2 * _WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                projection_dim=_WIDTH,
                initializer_factor=4.0,
            )
        ),
        vae=AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(_WIDTH,) * 4, sample_size=256
        ),
        unet=_unet(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
            timestep_spacing="leading",
            timestep_type="continuous",
            steps_offset=1,
        ),
    )


def _unet() -> UNetSpatioTemporalConditionModel:
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(_WIDTH,) * 4,
        addition_time_embed_dim=_WIDTH,
        projection_class_embeddings_input_dim=3 * _WIDTH,
        layers_per_block=1,
        cross_attention_dim=_WIDTH,
        num_attention_heads=2,
        num_frames=14,
    )
    scale(unet.add_embedding.linear_2, 32.0)  # rates and motion should be seen in the pixels
    return unet
