"""A small I2VGen-XL of the true architecture with random weights, for machines without a checkpoint or an accelerator.

    python -m inference.models.small DIR [--seed N]

Every class, layer kind and file is the one a real checkpoint has; only widths and depths are small, and nobody trained
it, which is written into the folder and said wherever a result shows. What a caller may change changes the result here
too: freshly made networks hide some of their inputs (layers that start at zero, embeddings too faint to be seen after
rounding to pixels), so those are made loud enough to matter.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLPipeline, I2VGenXLUNet
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.upsampling import Upsample2D
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from inference.models.i2vgen_xl import MARKER

CODE_VERSION = 1  # of everything in this file that shapes the folder

_WIDTH = 32  # of text states and picture embeddings, which meet in the UNet's cross attention
_MERGES = 700
# Words that requests for moving pictures are made of. The tokenizer's merges are learned from them, so that a sentence
# fits into 77 tokens; anything else is still spelled out byte by byte.
_WORDS = (
    "a an the and or of in on at to from with without over under through into across around behind above below near "
    "is are was be being it its his her their this that these those there one two three many few some all no not very "
    "cat dog bird horse fish person people man woman child girl boy face hand hair eyes flower tree forest leaf grass "
    "river lake sea ocean wave waves water rain snow storm cloud clouds sky sun sunset sunrise moon star stars night "
    "day morning evening light lights shadow fire smoke fog wind mountain hill desert beach island city street road "
    "bridge house window door room table paper book car train boat ship plane rocket robot dragon castle garden field "
    "walk walks walking run runs running fly flies flying swim swims swimming jump jumps dance dances dancing turn "
    "turns turning move moves moving float floats floating fall falls falling rise rises rising glow glows glowing "
    "shine shines look looks looking smile smiles open opens close closes sway sways swaying drift drifts drifting "
    "red orange yellow green blue purple white black grey golden silver dark bright soft warm cold old young new small "
    "large big tall long slow slowly fast quickly gentle gently calm wild quiet beautiful ugly sharp blurry clear "
    "camera zoom pan shot close view wide angle cinematic realistic detailed high low quality resolution film style "
    "painting photo video frame motion motionless static distorted disfigured incomplete discontinuous worst best"
)


def build(folder: Path, seed: int = 0) -> Path:
    """Writes the model into `folder` unless it is there already. Equal seeds give identical files.

    Raises ValueError for a folder that holds something else: nothing is overwritten but an earlier small model.
    """
    # Says that the weights are random. A folder that has it is complete, because it arrives with everything else.
    marker: dict[str, object] = {"random_weights": True, "seed": seed, "code_version": CODE_VERSION}
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise ValueError(f"{folder} is not empty and holds no small model")
        if json.loads((folder / MARKER).read_text()) == marker:
            return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _pipeline(seed).save_pretrained(made, safe_serialization=True)
        (made / MARKER).write_text(json.dumps(marker))
        _let_others_read(made)
        _put_in_place(made, folder, marker)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _put_in_place(made: Path, folder: Path, marker: dict[str, object]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(made, folder)
    except OSError:  # somebody else built the same in the meantime
        if json.loads((folder / MARKER).read_text()) != marker:
            raise


def _let_others_read(folder: Path) -> None:
    # Temporary folders and weight files are made for their owner only.
    folder.chmod(0o755)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


def _pipeline(seed: int) -> I2VGenXLPipeline:
    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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
    merges = _learn_merges(_WORDS.split(), _MERGES)
    pieces = [*alphabet, *(byte + "</w>" for byte in alphabet), *(left + right for left, right in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _learn_merges(words: Iterable[str], count: int) -> list[tuple[str, str]]:
    """The `count` most frequent pairs, each found after the earlier ones were joined; ties go by alphabet."""
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = Counter(pair for word in spelled for pair in pairwise(word))
        if not pairs:
            break
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        spelled = [_joined(word, merges[-1]) for word in spelled]
    return merges


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for piece in word:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


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
    _scale(vae.encoder.conv_out, 2.0)  # a picture should matter beside the noise
    _calm(vae.decoder)
    return vae


def _calm(decoder: Decoder) -> None:
    """Lets colours through and keeps the random layers' grain down, which no video codec could compress."""
    _scale(decoder.conv_in, 0.25)
    _add_blur(decoder.conv_in)
    for module in decoder.modules():
        if isinstance(module, ResnetBlock2D):
            _scale(module.conv2, 0.25)
        elif isinstance(module, Upsample2D):
            _scale(module.conv, 0.25)
            _add_blur(module.conv)


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


def _scale(layer: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(factor)


def _add_blur(convolution: nn.Conv2d) -> None:
    """Each channel also becomes the mean of its own neighbourhood."""
    own = torch.eye(convolution.out_channels, convolution.in_channels)[..., None, None]
    with torch.no_grad():
        convolution.weight.add_(own.expand_as(convolution.weight) / math.prod(convolution.kernel_size))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = build(arguments.folder, arguments.seed)
    sys.stdout.write(f"{folder}: a small I2VGen-XL with random weights\n")


if __name__ == "__main__":
    main()
