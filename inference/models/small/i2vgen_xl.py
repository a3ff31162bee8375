"""A small I2VGen-XL."""

from __future__ import annotations

from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLPipeline, I2VGenXLUNet
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.upsampling import Upsample2D
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from inference.models.small.parts import WORDS, add_blur, learn_merges, scale

CODE_VERSION = 1  # of everything that shapes this model

_WIDTH = 32  # of text states and picture embeddings, which meet in the UNet's cross attention
_MERGES = 700


def pipeline() -> I2VGenXLPipeline:
    """Drawn from torch's global generator."""
    tokenizer = _tokenizer()
    return I2VGenXLPipeline(
        tokenizer=tokenizer,
        text_encoder=_text_encoder(tokenizer),
        # Pillow's and not torchvision's, which would make the bits depend on what else is installed.
        feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        image_encoder=_image_encoder(),
        vae=_vae(),
        unet=_unet(),
        scheduler=_scheduler(),
    )


def _tokenizer() -> CLIPTokenizer:
    """Byte-level pair encoding with two sorts of every byte, as CLIP's: inside a word, and at its end."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = learn_merges(([*word[:-1], word[-1] + "</w>"] for word in WORDS.split()), _MERGES)
    pieces = [*alphabet, *(byte + "</w>" for byte in alphabet), *(left + right for left, right in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            num_hidden_layers=3,  # enough for every meaning of clip_skip to be another layer
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=_WIDTH,
            initializer_factor=8.0,  # random layers of the usual scale hardly change what passes through them
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=32,
            patch_size=8,
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=_WIDTH,
            initializer_factor=4.0,
        )
    )


def _vae() -> AutoencoderKL:
    """Four levels, as the real one: a latent pixel stands for 8 x 8 pixels."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=256,
    )
    scale(vae.encoder.conv_out, 2.0)  # a picture should matter beside the noise
    _calm(vae.decoder)
    return vae


def _calm(decoder: Decoder) -> None:
    """Lets colours through and keeps the random layers' grain down, which no video codec could compress."""
    scale(decoder.conv_in, 0.25)
    add_blur(decoder.conv_in)
    for module in decoder.modules():
        if isinstance(module, ResnetBlock2D):
            scale(module.conv2, 0.25)
        elif isinstance(module, Upsample2D):
            scale(module.conv, 0.25)
            add_blur(module.conv)


def _unet() -> I2VGenXLUNet:
    unet = I2VGenXLUNet(
        sample_size=32,
        block_out_channels=(8, 16, 32, 32),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=_WIDTH,
        attention_head_dim=8,
    )
    for module in unet.modules():
        if isinstance(module, TemporalConvLayer):
            module.conv4[-1].reset_parameters()  # made as zeros: the frames would not see each other
    return unet


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="leading",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
    )
