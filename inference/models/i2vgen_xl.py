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
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from diffusers import I2VGenXLPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.deprecated.i2vgen_xl import pipeline_i2vgen_xl as library
from PIL import Image

from cache.description import Description, Parameter, Stage
from inference import fingerprint, rendition
from inference.models import describing
from inference.models.base import Artifact, Call, Model, Output, Tensors
from inference.models.describing import pictures
from inference.models.describing.pictures import GUIDED
from inference.models.loading import compute_type, has_random_weights, modules_of, open_pipeline
from inference.models.previews import fit_colours, is_worth_a_look, picture_of

CODE_VERSION = 1  # of the stages in this file: bump when one of them computes otherwise than before
DECODE_CHUNK = 1  # frames per call of the decoder, the library's default; another number gives other bits


def load(source: str, *, name: str, device: str, dtype: str | None = None) -> Model:
    """The model of a local folder or hub id, on `device`. Raises ValueError for what cannot be loaded in this way."""
    pipeline = open_pipeline(I2VGenXLPipeline, source, compute_type(device, dtype, I2VGenXLPipeline.__name__))
    if getattr(pipeline.text_encoder.config, "use_attention_mask", False):
        raise ValueError(f"the text encoder of {source} reads more than token ids")
    give_back_text_model(pipeline.text_encoder)
    return I2VGenXL(pipeline, describe(pipeline, name, random_weights=has_random_weights(source)), device)


class I2VGenXL:
    """The stages of a loaded pipeline. Rows are never doubled for guidance in what a stage gives out."""

    def __init__(self, pipeline: I2VGenXLPipeline, description: Description, device: torch.device | str) -> None:
        self.pipeline = pipeline.to(device)
        self.description = description
        self.device: torch.device = self.pipeline.device
        self._colours = fit_colours(self._decode, self.pipeline.vae.config.latent_channels)
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
        return modules_of(self.pipeline)

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
            if call.preview is not None and is_worth_a_look(done, len(scheduler.timesteps)):
                guess = getattr(stepped, "pred_original_sample", stepped.prev_sample)
                call.preview(picture_of(guess[frames // 2], self._colours))
        return {"latents": latents.contiguous()}

    def _video(self, call: Call) -> Artifact:
        video = self.pipeline.decode_latents(call.upstream["latents"]["latents"], decode_chunk_size=DECODE_CHUNK)
        frames: Sequence[Image.Image] = self.pipeline.video_processor.postprocess_video(video, output_type="pil")[0]
        return rendition.encode(frames, int(call.parameters["playback_fps"]), str(call.parameters["format"]))

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures [n, 3, H, W] of single frames [n, C, h, w]."""
        vae = self.pipeline.vae
        pixels: torch.Tensor = vae.decode((latents / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample
        return pixels

    def _picture_latents(self, moments: torch.Tensor, frames: int, seed: int) -> torch.Tensor:
        """[1, C, F, h, w]: the picture as the first frame, then frames that only say how far on they are, in 0..1."""
        # The state in which `torch.manual_seed(seed)` leaves the global generator, where the library draws from.
        generator = torch.Generator(self.device).manual_seed(seed)
        drawn = DiagonalGaussianDistribution(moments).sample(generator)
        first = (drawn * self.pipeline.vae.config.scaling_factor).unsqueeze(2)
        later = [torch.full_like(first, number / (frames - 1)) for number in range(1, frames)]
        return torch.cat([first, *later], dim=2).contiguous()


def describe(pipeline: I2VGenXLPipeline, name: str, *, random_weights: bool = False) -> Description:
    """What this pipeline's requests may say, and what its stages depend on."""
    parameters = _parameters(pipeline, small=random_weights)
    return describing.described(
        name,
        "i2vgen-xl",
        "animate_image",
        parameters,
        _stages(pipeline),
        affinity="moments",
        random_weights=random_weights,
    )


def _parameters(pipeline: I2VGenXLPipeline, *, small: bool) -> tuple[Parameter, ...]:
    unit = math.lcm(8, pipeline.vae_scale_factor)  # the library wants the 8, the decoder makes multiples of its factor
    width, height, steps = (256, 256, 8) if small else (1280, 704, 50)
    fits = "scaled, and cropped around its middle, to fit"
    clip_skip = Parameter(
        name="clip_skip",
        kind="int",
        default=1,
        minimum=0,
        maximum=pipeline.text_encoder.config.num_hidden_layers,
        unit="layers",
        extra=True,
        help="How many of the text encoder's last layers to leave out.",
    )
    eta = Parameter(
        name="eta",
        kind="float",
        default=0.0,
        minimum=0.0,
        maximum=1.0,
        extra=True,
        help="Fresh noise per step: 0 is deterministic sampling (DDIM), 1 as much as in training (DDPM).",
    )
    return (
        pictures.prompt("Words beyond the model's 77 tokens do not exist for it."),
        pictures.negative_prompt(),
        pictures.side("width", width, unit, fits),
        pictures.side("height", height, unit, fits),
        pictures.num_frames(16, maximum=32),
        pictures.num_inference_steps(steps),
        pictures.guidance_scale(9.0, "How strictly to follow the prompt; at 1 there is no guidance at all."),
        pictures.motion_fps(16),
        *pictures.file(fps=8),
        describing.seed("videos"),
        clip_skip,
        *([eta] if _takes_eta(pipeline) else []),
    )


def _stages(pipeline: I2VGenXLPipeline) -> tuple[Stage, ...]:
    prints = _fingerprints(pipeline)
    eta = ("eta",) if _takes_eta(pipeline) else ()
    return (
        describing.canonical(prints, "tokens", parameters={"text": "prompt"}),
        describing.canonical(
            prints, "tokens", name="negative_tokens", parameters={"text": "negative_prompt"}, when=GUIDED
        ),
        pictures.text(prints, "text", "tokens", "clip_skip"),
        pictures.text(prints, "negative_text", "negative_tokens", "clip_skip", when=GUIDED),
        pictures.picture(prints, "vision", "width"),
        pictures.picture(prints, "moments", "width", "height"),
        describing.result(
            prints,
            "denoise",
            {"text": "text", "negative": "negative_text", "vision": "vision", "moments": "moments"},
            *("num_frames", "num_inference_steps", "guidance_scale", "motion_fps", "seed", *eta),
        ),
        describing.result(prints, "video", {"latents": "denoise"}, "playback_fps", "format"),
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


def give_back_text_model(encoder: Any) -> None:
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
