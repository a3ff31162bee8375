"""I2VGen-XL: a picture and a sentence to a short video, by diffusers' own classes, in the stages it really has.

    prompt          -> tokens          -> text          --.
    negative prompt -> negative_tokens -> negative_text --+-> denoise -> video
    picture         -> vision ----------------------------+
    picture         -> moments ---------------------------'

Staged runs equal the library's own `I2VGenXLPipeline.__call__` bit for bit, if that is called right after
`torch.manual_seed(seed)` with a CPU generator of the same seed. The library draws the picture's latent from torch's
global generator. What is kept here is the distribution it is drawn from (`moments`); the draw itself belongs to the
denoising, from a generator of its own in the state the global one would have had. So nothing depends on what was
reused, and nothing here reads or moves global state.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import I2VGenXLPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.deprecated.i2vgen_xl import pipeline_i2vgen_xl as library
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

from cache.description import HOUR, Description, Parameter, Scope, Stage, When
from inference import fingerprint, rendition
from inference.models.base import Artifact, Call, Model, Output, Tensors

CODE_VERSION = 1  # of the stages in this file: bump when one of them computes otherwise than before
DECODE_CHUNK = 1  # frames per call of the decoder, the library's default; another number gives other bits
MARKER = "reprise.json"  # beside model_index.json in folders that `inference.models.small` made

_TEXT_TTL, _PICTURE_TTL, _RESULT_TTL = HOUR / 6, HOUR / 2, 2 * HOUR
_PREVIEWS = 8  # pictures per generation, about


def load(source: str, *, name: str, device: str, dtype: str | None = None) -> Model:
    """The model of a local folder or hub id, on `device`. Raises ValueError for what cannot be loaded in this way."""
    for library_logging in (diffusers_logging, transformers_logging):
        library_logging.disable_progress_bar()  # a server has no terminal
    try:
        pipeline = I2VGenXLPipeline.from_pretrained(source, dtype=_compute_type(device, dtype), use_safetensors=True)
    except OSError as error:
        raise ValueError(f"{source} lacks a part of an I2VGen-XL, or has it in no safetensors file") from error
    if getattr(pipeline.text_encoder.config, "use_attention_mask", False):
        raise ValueError(f"the text encoder of {source} reads more than token ids")
    _give_back_text_model(pipeline.text_encoder)
    return I2VGenXL(pipeline, describe(pipeline, name, random_weights=_has_random_weights(source)), device)


class I2VGenXL:
    """The stages of a loaded pipeline. Rows are never doubled for guidance in what a stage gives out."""

    def __init__(self, pipeline: I2VGenXLPipeline, description: Description, device: torch.device | str) -> None:
        self.pipeline = pipeline.to(device)
        self.description = description
        self.device: torch.device = self.pipeline.device
        self._colours = _colours_of(self.pipeline.vae)
        self._kinds: dict[str, Callable[[Call], Output]] = {
            "tokens": self._tokens,
            "text": self._text,
            "vision": self._vision,
            "moments": self._moments,
            "denoise": self._denoise,
            "video": self._video,
        }

    @property
    def modules(self) -> Iterable[torch.nn.Module]:
        return [part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module)]

    def run(self, stage: str, call: Call) -> Output:
        """The output of one stage; see each below for its tensors. Raises Cancelled from within `call.step`."""
        with torch.no_grad():
            return self._kinds[self.description.stage(stage).kind](call)

    def _tokens(self, call: Call) -> Tensors:
        """ids: int64 [1, 77], which is all that the model ever sees of a text."""
        tokenizer = self.pipeline.tokenizer
        batch = tokenizer(
            call.parameters["text"],
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return {"ids": batch.input_ids.to(self.device).contiguous()}

    def _text(self, call: Call) -> Tensors:
        """embeds: [1, 77, D], the states `clip_skip` layers before the last, normalised."""
        encoder = self.pipeline.text_encoder
        states = encoder(call.upstream["tokens"]["ids"], output_hidden_states=True).hidden_states
        chosen = states[-1 - int(call.parameters["clip_skip"])]
        return {"embeds": encoder.text_model.final_layer_norm(chosen).contiguous()}

    def _vision(self, call: Call) -> Tensors:
        """embeds: [1, 1, D] of the picture's middle, cropped to a square as wide as the video."""
        width = int(call.parameters["width"])
        crop = self.pipeline.feature_extractor.crop_size
        square = library._center_crop_wide(call.media["image"], (width, width))
        small = library._resize_bilinear(square, (crop["width"], crop["height"]))
        self.pipeline._guidance_scale = 1.0  # else the library puts a row of zeros before ours
        return {"embeds": self.pipeline._encode_image(small, self.device, 1).contiguous()}

    def _moments(self, call: Call) -> Tensors:
        """parameters: [1, 2C, h, w], mean and logarithm of the variance of the picture's latent."""
        size = int(call.parameters["width"]), int(call.parameters["height"])
        pixels = self.pipeline.video_processor.preprocess(library._center_crop_wide(call.media["image"], size))
        vae = self.pipeline.vae
        # Contiguous, for the encoder leaves other strides than a stored tensor has, and they change later sums.
        return {"parameters": vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.parameters.contiguous()}

    def _denoise(self, call: Call) -> Tensors:
        """latents: [1, C, F, h, w] of the finished video."""
        pipeline, unet, scheduler = self.pipeline, self.pipeline.unet, self.pipeline.scheduler
        guidance, frames = float(call.parameters["guidance_scale"]), int(call.parameters["num_frames"])
        seed, steps = int(call.parameters["seed"]), int(call.parameters["num_inference_steps"])
        guided = guidance > 1
        text, vision = call.upstream["text"]["embeds"], call.upstream["vision"]["embeds"]
        picture = self._picture_latents(call.upstream["moments"]["parameters"], frames, seed)
        if guided:
            text = torch.cat([call.upstream["negative"]["embeds"], text])
            vision = torch.cat([torch.zeros_like(vision), vision])
            picture = torch.cat([picture, picture])
        fps = torch.full((len(text),), int(call.parameters["motion_fps"]), device=self.device)

        scheduler.set_timesteps(steps, device=self.device)
        generator = torch.Generator().manual_seed(seed)
        height, width = (side * pipeline.vae_scale_factor for side in picture.shape[-2:])
        channels = unet.config.in_channels
        latents = pipeline.prepare_latents(1, channels, frames, height, width, text.dtype, self.device, generator)
        options = pipeline.prepare_extra_step_kwargs(generator, float(call.parameters.get("eta", 0.0)))

        for done, time in enumerate(scheduler.timesteps, start=1):
            rows = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, time)
            noise = unet(
                rows,
                time,
                encoder_hidden_states=text,
                fps=fps,
                image_latents=picture,
                image_embeddings=vision,
                return_dict=False,
            )[0]
            if guided:
                without, towards = noise.chunk(2)
                noise = without + guidance * (towards - without)
            stepped = scheduler.step(_frames_of(noise), time, _frames_of(latents), **options)
            latents = _clip_of(stepped.prev_sample)
            call.step(done, len(scheduler.timesteps))
            if call.preview is not None and _is_worth_a_look(done, len(scheduler.timesteps)):
                guess = getattr(stepped, "pred_original_sample", stepped.prev_sample)
                call.preview(_picture_of(guess[frames // 2], self._colours))
        return {"latents": latents.contiguous()}

    def _video(self, call: Call) -> Artifact:
        video = self.pipeline.decode_latents(call.upstream["latents"]["latents"], decode_chunk_size=DECODE_CHUNK)
        frames: Sequence[Image.Image] = self.pipeline.video_processor.postprocess_video(video, output_type="pil")[0]
        return rendition.encode(frames, int(call.parameters["playback_fps"]), str(call.parameters["format"]))

    def _picture_latents(self, moments: torch.Tensor, frames: int, seed: int) -> torch.Tensor:
        """[1, C, F, h, w]: the picture as the first frame, then frames that only say how far on they are, in 0..1."""
        # The state in which `torch.manual_seed(seed)` leaves the global generator, where the library draws from.
        generator = torch.Generator(self.device).manual_seed(seed)
        drawn = DiagonalGaussianDistribution(moments).sample(generator)
        first = (drawn * self.pipeline.vae.config.scaling_factor).unsqueeze(2)
        later = [torch.full_like(first, number / (frames - 1)) for number in range(1, frames)]
        return torch.cat([first, *later], dim=2).contiguous()


def describe(pipeline: I2VGenXLPipeline, name: str, *, random_weights: bool = False) -> Description:
    """What this pipeline's requests may say, and what its stages depend on. Its revision is a hash of all of that."""
    description = Description(
        model=name,
        revision="",
        family="i2vgen-xl",
        task="animate_image",
        random_weights=random_weights,
        parameters=_parameters(pipeline, small=random_weights),
        stages=_stages(pipeline),
        affinity="moments",
    )
    return description.model_copy(update={"revision": description.digest.hex[:16]})


def _parameters(pipeline: I2VGenXLPipeline, *, small: bool) -> tuple[Parameter, ...]:
    unit = math.lcm(8, pipeline.vae_scale_factor)  # the library wants the 8, the decoder makes multiples of its factor
    width, height, steps = (256, 256, 8) if small else (1280, 704, 50)
    layers = pipeline.text_encoder.config.num_hidden_layers
    parameters = [
        Parameter(
            name="prompt",
            kind="text",
            min_length=1,
            max_length=2000,
            help="What happens in the video. Words beyond the model's 77 tokens do not exist for it.",
        ),
        Parameter(
            name="negative_prompt",
            kind="text",
            default="",
            max_length=2000,
            help="What to steer away from. Without guidance (guidance_scale up to 1) it is not used.",
        ),
        _side("width", width, unit),
        _side("height", height, unit),
        Parameter(
            name="num_frames",
            kind="int",
            default=16,
            minimum=1,
            maximum=32,
            unit="frames",
            proportional="onward",
            help="Length of the video.",
        ),
        Parameter(
            name="num_inference_steps",
            kind="int",
            default=steps,
            minimum=1,
            maximum=200,
            unit="steps",
            proportional="stage",
            help="Steps of denoising: more are slower and finer.",
        ),
        Parameter(
            name="guidance_scale",
            kind="float",
            default=9.0,
            minimum=1.0,  # what is below computes the same as 1, and would be other keys for one result
            maximum=30.0,
            help="How strictly to follow the prompt; at 1 there is no guidance at all.",
        ),
        Parameter(
            name="motion_fps",
            kind="int",
            default=16,
            minimum=1,
            maximum=60,
            unit="frames/s",
            help="The rate the model imagines the frames at: a lower one asks for more motion between two of them.",
        ),
        Parameter(
            name="playback_fps",
            kind="int",
            default=8,
            minimum=1,
            maximum=60,
            unit="frames/s",
            help="The rate the file is played at. Changing it computes no frame again.",
        ),
        Parameter(
            name="format",
            kind="choice",
            default="mp4",
            choices=tuple(rendition.CONTAINERS),
            help="Container of the file. Changing it computes no frame again.",
        ),
        Parameter(
            name="seed",
            kind="int",
            default=42,
            minimum=0,
            maximum=2**53 - 1,
            help="Which of all possible videos: the same seed and request give the same one.",
        ),
        Parameter(
            name="clip_skip",
            kind="int",
            default=1,
            minimum=0,
            maximum=layers,
            unit="layers",
            extra=True,
            help="How many of the text encoder's last layers to leave out.",
        ),
    ]
    if _takes_eta(pipeline):
        parameters.append(
            Parameter(
                name="eta",
                kind="float",
                default=0.0,
                minimum=0.0,
                maximum=1.0,
                extra=True,
                help="Fresh noise per step: 0 is deterministic sampling (DDIM), 1 as much as in training (DDPM).",
            )
        )
    return tuple(parameters)


def _side(name: str, default: int, multiple_of: int) -> Parameter:
    return Parameter(
        name=name,
        kind="int",
        default=default,
        minimum=64,
        maximum=1280,
        multiple_of=multiple_of,
        unit="px",
        proportional="onward",
        help=f"The video's {name}; the picture is scaled, and cropped around its middle, to fit.",
    )


def _stages(pipeline: I2VGenXLPipeline) -> tuple[Stage, ...]:
    prints = _fingerprints(pipeline)
    guided = When(parameter="guidance_scale", above=1.0)

    def tokens(name: str, parameter: str, when: When | None) -> Stage:
        return Stage(
            name=name,
            kind="tokens",
            fingerprint=prints["tokens"],
            parameters={"text": parameter},
            when=when,
            scope=Scope.USER,
            ttl=_TEXT_TTL,
            canonicalises=True,
            cached=False,
        )

    def text(name: str, upstream: str, when: When | None) -> Stage:
        return Stage(
            name=name,
            kind="text",
            fingerprint=prints["text"],
            parameters={"clip_skip": "clip_skip"},
            upstream={"tokens": upstream},
            when=when,
            scope=Scope.USER,
            ttl=_TEXT_TTL,
            pooled=True,
        )

    def picture(kind: str, *parameters: str) -> Stage:
        return Stage(
            name=kind,
            kind=kind,
            fingerprint=prints[kind],
            parameters={parameter: parameter for parameter in parameters},
            media=("image",),
            scope=Scope.SHARED,
            ttl=_PICTURE_TTL,
            pooled=True,
        )

    def result(kind: str, upstream: dict[str, str], *parameters: str) -> Stage:
        return Stage(
            name=kind,
            kind=kind,
            fingerprint=prints[kind],
            parameters={parameter: parameter for parameter in parameters},
            upstream=upstream,
            scope=Scope.TENANT,
            ttl=_RESULT_TTL,
        )

    eta = ("eta",) if _takes_eta(pipeline) else ()
    return (
        tokens("tokens", "prompt", None),
        tokens("negative_tokens", "negative_prompt", guided),
        text("text", "tokens", None),
        text("negative_text", "negative_tokens", guided),
        picture("vision", "width"),
        picture("moments", "width", "height"),
        result(
            "denoise",
            {"text": "text", "negative": "negative_text", "vision": "vision", "moments": "moments"},
            *("num_frames", "num_inference_steps", "guidance_scale", "motion_fps", "seed", *eta),
        ),
        result("video", {"latents": "denoise"}, "playback_fps", "format"),
    )


def _fingerprints(pipeline: I2VGenXLPipeline) -> dict[str, str]:
    """Fingerprint of each kind of stage, over the parts it depends on and no others."""
    vae, unet = pipeline.vae, pipeline.unet
    text_encoder, image_encoder = pipeline.text_encoder, pipeline.image_encoder
    parts = {
        "tokens": {
            "tokenizer": fingerprint.of_tokenizer(pipeline.tokenizer),
            "libraries": fingerprint.versions("transformers", "tokenizers"),
        },
        "text": {
            "model": fingerprint.of_model(text_encoder),
            "libraries": fingerprint.versions("torch", "transformers"),
        },
        "vision": {
            "model": fingerprint.of_model(image_encoder),
            "processor": fingerprint.of_config(pipeline.feature_extractor),
            "libraries": fingerprint.versions("torch", "diffusers", "transformers", "pillow"),
        },
        "moments": {
            "model": fingerprint.of_model(vae, vae.encoder, vae.quant_conv),
            "processor": fingerprint.of_config(pipeline.video_processor),
            "libraries": fingerprint.versions("torch", "diffusers", "pillow"),
        },
        "denoise": {
            "model": fingerprint.of_model(unet),
            "scheduler": fingerprint.of_config(pipeline.scheduler),
            "latent_scale": vae.config.scaling_factor,
            "libraries": fingerprint.versions("torch", "diffusers"),
        },
        "video": {
            "model": fingerprint.of_model(vae, vae.decoder, vae.post_quant_conv),
            "decode_chunk": DECODE_CHUNK,
            "rendition": rendition.versions(),
            "libraries": fingerprint.versions("torch", "diffusers", "pillow"),
        },
    }
    return {kind: fingerprint.of_stage(kind, CODE_VERSION, part) for kind, part in parts.items()}


def _takes_eta(pipeline: I2VGenXLPipeline) -> bool:
    return "eta" in inspect.signature(pipeline.scheduler.step).parameters


def _compute_type(device: str, dtype: str | None) -> torch.dtype:
    name = dtype or ("float32" if torch.device(device).type == "cpu" else "float16")
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"{name} is no floating point type of torch")
    return found


def _has_random_weights(source: str) -> bool:
    marker = Path(source) / MARKER
    return marker.is_file() and bool(json.loads(marker.read_text()).get("random_weights"))


def _give_back_text_model(encoder: Any) -> None:
    # Since transformers 5.6 the text encoder no longer has the inner `text_model` that the pipeline asks for when
    # clip_skip is given. Not registered as a submodule, so that state and configuration stay as they were.
    if not hasattr(encoder, "text_model"):
        object.__setattr__(encoder, "text_model", encoder)


def _frames_of(clip: torch.Tensor) -> torch.Tensor:
    """[1, C, F, h, w] as [F, C, h, w], which is what a scheduler steps."""
    return clip.permute(0, 2, 1, 3, 4).flatten(0, 1)


def _clip_of(frames: torch.Tensor) -> torch.Tensor:
    """[F, C, h, w] as [1, C, F, h, w]."""
    return frames.unsqueeze(0).permute(0, 2, 1, 3, 4)


def _is_worth_a_look(done: int, steps: int) -> bool:
    return done % math.ceil(steps / _PREVIEWS) == 0


def _colours_of(vae: Any) -> torch.Tensor:
    """[C + 1, 3]: the linear map from a latent pixel, and 1, to red, green and blue in 0..1 that fits this decoder.

    Fitted to what the decoder makes of a few coarse random latents: enough for a preview, at the price of one small
    decode instead of one per preview.
    """
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, vae.config.latent_channels, 4, 4, generator=generator).repeat_interleave(2, 2)
    latents = latents.repeat_interleave(2, 3)  # [8, C, 8, 8]
    with torch.no_grad():
        pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample
    colours = torch.nn.functional.adaptive_avg_pool2d(pixels.float().cpu() / 2 + 0.5, 8)
    fit: torch.Tensor = torch.linalg.lstsq(_with_one(latents), colours.movedim(1, -1).reshape(-1, 3)).solution
    return fit


def _picture_of(latent: torch.Tensor, colours: torch.Tensor) -> Image.Image:
    """A picture of [C, h, w] with one pixel for each of the latent."""
    height, width = latent.shape[-2:]
    values = (_with_one(latent.unsqueeze(0).float().cpu()) @ colours).reshape(height, width, 3)
    return Image.fromarray((values.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def _with_one(latents: torch.Tensor) -> torch.Tensor:
    """[n, C, h, w] as a row of C + 1 numbers for every pixel, the last being 1."""
    rows = latents.movedim(1, -1).flatten(0, 2)
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
