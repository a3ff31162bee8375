"""A small Wan 2.1 image-to-video."""

from __future__ import annotations

import string

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from inference.models.small.parts import WORDS

CODE_VERSION = 1  # of everything that shapes this model

_WIDTH = 32  # of text states and of picture patches


def pipeline() -> WanImageToVideoPipeline:
    """Drawn from torch's global generator."""
    tokenizer = _tokenizer()
    return WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=len(tokenizer), d_model=_WIDTH, d_kv=8, d_ff=2 * _WIDTH, num_layers=2, num_heads=4)
        ),
        image_encoder=CLIPVisionModel(
            CLIPVisionConfig(
                image_size=32,
                patch_size=8,
                hidden_size=_WIDTH,
                intermediate_size=2 * _WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                initializer_factor=4.0,
            )
        ),
        # Pillow's and not torchvision's, which would make the bits depend on what else is installed.
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        vae=AutoencoderKLWan(base_dim=8, num_res_blocks=1),
        transformer=transformer(image_dim=_WIDTH),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
    )


def transformer(image_dim: int | None) -> WanTransformer3DModel:
    """Wan 2.1's with the width of picture patches, Wan 2.2's without."""
    heads, head = 2, 24
    return WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head,
        in_channels=36,
        out_channels=16,
        text_dim=_WIDTH,
        freq_dim=64,
        ffn_dim=64,
        num_layers=2,
        image_dim=image_dim,
        added_kv_proj_dim=None if image_dim is None else heads * head,
    )


def _tokenizer() -> T5Tokenizer:
    """Words with their space before them, cheaper than their letters. What no letter is for is unknown to it."""
    letters = [*string.printable.strip(), *map(chr, range(0xA1, 0x250))]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -5.0) for word in dict.fromkeys(WORDS.split())]
    pieces += [(letter, -9.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
