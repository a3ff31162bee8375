"""Stable Video Diffusion: a picture to a short video without a word, by diffusers' own classes.

    picture -> vision -----.
    picture -> condition --+-> denoise -> video

Staged runs equal the library's own `StableVideoDiffusionPipeline.__call__` bit for bit, given a CPU generator of the
same seed. The library adds noise to the picture before it encodes it, so the encoding belongs to a seed, and the
generator has drawn that noise before it draws the first latents. The denoising draws it again and drops it, which is
cheap, and so starts from the same latents whether or not the encoding was reused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
from PIL import Image

from cache.description import Description, Parameter, Stage
from inference import fingerprint, rendition
from inference.models import describing
from inference.models.base import Artifact, Call, Model, Output, Tensors
from inference.models.describing import pictures
from inference.models.loading import compute_type, has_random_weights, modules_of, open_pipeline
from inference.models.previews import fit_colours, is_worth_a_look, picture_of

CODE_VERSION = 1  # of the stages in this file: bump when one of them computes otherwise than before
DECODE_CHUNK = 8  # frames that the decoder sees together: more need more memory, another number gives other bits


def load(source: str, *, name: str, device: str, dtype: str | None = None) -> Model:
    """The model of a local folder or hub id, on `device`. Raises ValueError for what cannot be loaded in this way."""
    pipeline = open_pipeline(
        StableVideoDiffusionPipeline, source, compute_type(device, dtype, StableVideoDiffusionPipeline.__name__)
    )
    if type(pipeline.scheduler) is not EulerDiscreteScheduler:
        raise ValueError(f"{source} has a scheduler that may draw noise which no seed decides")
    return SVD(pipeline, describe(pipeline, name, random_weights=has_random_weights(source)), device)


class SVD:
    """The stages of a loaded pipeline. Rows are never doubled for guidance in what a stage gives out."""

    def __init__(
        self, pipeline: StableVideoDiffusionPipeline, description: Description, device: torch.device | str
    ) -> None:
        self.pipeline = pipeline.to(device)
        self.description = description
        self.device: torch.device = self.pipeline.device
        self._colours = fit_colours(self._decode, self.pipeline.vae.config.latent_channels)
        self._kinds: dict[str, Callable[[Call], Output]] = {
            "vision": self._vision,
            "condition": self._condition,
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

    def _vision(self, call: Call) -> Tensors:
        """embeds: [1, 1, D] of the whole picture."""
        embeds = self.pipeline._encode_image(call.media["image"], self.device, 1, False)
        return {"embeds": embeds.contiguous()}

    def _condition(self, call: Call) -> Tensors:
        """mean: [1, C, h, w]: the encoder's distribution of the noised picture, of which the library takes the mean."""
        size = int(call.parameters["height"]), int(call.parameters["width"])
        pixels = self.pipeline.video_processor.preprocess(call.media["image"], *size).to(self.device)
        noise = _draw(_generator(call), pixels.shape).to(self.device, pixels.dtype)
        noised = pixels + float(call.parameters["noise_aug_strength"]) * noise
        with self._upcast():
            mean = self.pipeline._encode_vae_image(noised, self.device, 1, False)
        return {"mean": mean.contiguous()}

    def _denoise(self, call: Call) -> Tensors:
        """latents: [1, F, C, h, w] of the finished video."""
        pipeline, unet, scheduler = self.pipeline, self.pipeline.unet, self.pipeline.scheduler
        vision = call.upstream["vision"]["embeds"]
        picture = call.upstream["condition"]["mean"].to(vision.dtype)
        frames = int(call.parameters["num_frames"])
        guidance = self._guidance(call, frames, vision.dtype)
        guided = bool(guidance.max() > 1)
        if guided:
            vision = torch.cat([torch.zeros_like(vision), vision])
            picture = torch.cat([torch.zeros_like(picture), picture])
        motion, noise_level = int(call.parameters["motion_bucket_id"]), float(call.parameters["noise_aug_strength"])
        fps = int(call.parameters["motion_fps"]) - 1  # as the model was trained
        rows = len(vision)
        times = pipeline._get_add_time_ids(fps, motion, noise_level, vision.dtype, rows, 1, False).to(self.device)

        scheduler.set_timesteps(int(call.parameters["num_inference_steps"]), device=self.device)
        generator = _generator(call)
        height, width = (side * pipeline.vae_scale_factor for side in picture.shape[-2:])
        _draw(generator, (1, 3, height, width))  # what the picture was noised with
        channels = unet.config.in_channels
        latents = pipeline.prepare_latents(1, frames, channels, height, width, vision.dtype, self.device, generator)
        picture = picture.unsqueeze(1).repeat(1, frames, 1, 1, 1)

        for done, time in enumerate(scheduler.timesteps, start=1):
            scaled = scheduler.scale_model_input(torch.cat([latents] * rows), time)
            noise = unet(
                torch.cat([scaled, picture], dim=2),
                time,
                encoder_hidden_states=vision,
                added_time_ids=times,
                return_dict=False,
            )[0]
            if guided:
                without, towards = noise.chunk(2)
                noise = without + guidance * (towards - without)
            stepped = scheduler.step(noise, time, latents)
            latents = stepped.prev_sample
            call.step(done, len(scheduler.timesteps))
            if call.preview is not None and is_worth_a_look(done, len(scheduler.timesteps)):
                call.preview(picture_of(stepped.pred_original_sample[0, frames // 2], self._colours))
        return {"latents": latents.contiguous()}

    def _video(self, call: Call) -> Artifact:
        latents = call.upstream["latents"]["latents"]
        video = self.pipeline.decode_latents(latents, latents.shape[1], DECODE_CHUNK)
        frames: Sequence[Image.Image] = self.pipeline.video_processor.postprocess_video(video, output_type="pil")[0]
        return rendition.encode(frames, int(call.parameters["playback_fps"]), str(call.parameters["format"]))

    def _guidance(self, call: Call, frames: int, dtype: torch.dtype) -> torch.Tensor:
        """[1, F, 1, 1, 1]: from the first frame's to the last frame's."""
        first, last = float(call.parameters["min_guidance_scale"]), float(call.parameters["guidance_scale"])
        return torch.linspace(first, last, frames).to(self.device, dtype).reshape(1, frames, 1, 1, 1)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures [n, 3, H, W] of single frames [n, C, h, w]."""
        vae = self.pipeline.vae
        pixels: torch.Tensor = vae.decode(
            (latents / vae.config.scaling_factor).to(vae.device, vae.dtype), num_frames=1
        ).sample
        return pixels

    @contextmanager
    def _upcast(self) -> Iterator[None]:
        """The encoder in single precision, where half is too little for it."""
        vae = self.pipeline.vae
        needed = vae.dtype == torch.float16 and vae.config.force_upcast
        if needed:
            vae.to(dtype=torch.float32)
        try:
            yield
        finally:
            if needed:
                vae.to(dtype=torch.float16)


def describe(pipeline: StableVideoDiffusionPipeline, name: str, *, random_weights: bool = False) -> Description:
    """What this pipeline's requests may say, and what its stages depend on."""
    parameters = _parameters(pipeline, small=random_weights)
    return describing.described(
        name, "svd", "animate_image", parameters, _stages(pipeline), affinity="vision", random_weights=random_weights
    )


def _parameters(pipeline: StableVideoDiffusionPipeline, *, small: bool) -> tuple[Parameter, ...]:
    unit = math.lcm(8, pipeline.vae_scale_factor)
    width, height, steps = (256, 256, 8) if small else (1024, 576, 25)
    return (
        pictures.side("width", width, unit, "stretched to it"),
        pictures.side("height", height, unit, "stretched to it"),
        # Of a single frame, guidance would have no end to go to; the library fails on it.
        pictures.num_frames(pipeline.unet.config.num_frames, minimum=2, maximum=32),
        pictures.num_inference_steps(steps),
        pictures.guidance_scale(3.0, "How strictly to follow the picture at the video's end; at 1 not at all."),
        Parameter(
            name="min_guidance_scale",
            kind="float",
            default=1.0,
            minimum=1.0,
            maximum=30.0,
            extra=True,
            help="How strictly to follow the picture at the video's beginning.",
        ),
        pictures.motion_fps(7),
        Parameter(
            name="motion_bucket_id",
            kind="int",
            default=127,
            minimum=0,
            maximum=255,
            extra=True,
            help="How much moves: more for a higher one.",
        ),
        Parameter(
            name="noise_aug_strength",
            kind="float",
            default=0.02,
            minimum=0.0,
            maximum=1.0,
            extra=True,
            help="Noise laid over the picture: with more, the video keeps less of it and moves more.",
        ),
        *pictures.file(fps=7),
        describing.seed("videos"),
    )


def _stages(pipeline: StableVideoDiffusionPipeline) -> tuple[Stage, ...]:
    prints = _fingerprints(pipeline)
    return (
        pictures.picture(prints, "vision"),
        pictures.picture(prints, "condition", "width", "height", "noise_aug_strength", "seed"),
        describing.result(
            prints,
            "denoise",
            {"vision": "vision", "condition": "condition"},
            *("num_frames", "num_inference_steps", "guidance_scale", "min_guidance_scale"),
            *("motion_fps", "motion_bucket_id", "noise_aug_strength", "seed"),
        ),
        describing.result(prints, "video", {"latents": "denoise"}, "playback_fps", "format"),
    )


def _fingerprints(pipeline: StableVideoDiffusionPipeline) -> dict[str, str]:
    """Fingerprint of each kind of stage, over the parts it depends on and no others."""
    vae, unet = pipeline.vae, pipeline.unet
    parts = {
        "vision": {
            "model": fingerprint.of_model(pipeline.image_encoder),
            "processor": fingerprint.of_config(pipeline.feature_extractor),
            "libraries": fingerprint.versions("torch", "diffusers", "transformers", "pillow"),
        },
        "condition": {
            "model": fingerprint.of_model(vae, vae.encoder, vae.quant_conv),
            "processor": fingerprint.of_config(pipeline.video_processor),
            "libraries": fingerprint.versions("torch", "diffusers", "pillow"),
        },
        "denoise": {
            "model": fingerprint.of_model(unet),
            "scheduler": fingerprint.of_config(pipeline.scheduler),
            "latent_pixels": pipeline.vae_scale_factor,
            "libraries": fingerprint.versions("torch", "diffusers"),
        },
        "video": {
            "model": fingerprint.of_model(vae, vae.decoder),
            "decode_chunk": DECODE_CHUNK,
            "rendition": rendition.versions(),
            "libraries": fingerprint.versions("torch", "diffusers", "pillow"),
        },
    }
    return {kind: fingerprint.of_stage(kind, CODE_VERSION, part) for kind, part in parts.items()}


def _generator(call: Call) -> torch.Generator:
    return torch.Generator().manual_seed(int(call.parameters["seed"]))


def _draw(generator: torch.Generator, shape: Sequence[int]) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=generator)
