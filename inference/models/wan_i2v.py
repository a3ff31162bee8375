"""Wan image-to-video: a picture and a sentence to a short video, by diffusers' own classes, in the stages it has.

    prompt          -> tokens          -> text          --.
    negative prompt -> negative_tokens -> negative_text --+
    picture         -> vision (Wan 2.1 only) -------------+-> denoise -> video
    num_frames      -> length ----------------------------+
                       length -> span -.                  |
    picture         -------------------+-> condition -----'

Staged runs equal the library's own `WanImageToVideoPipeline.__call__` bit for bit, given a CPU generator of the same
seed. Its encoder sees the picture as the first frame of a clip that is black from there on, so what it gives depends on
the number of frames; but as it only looks back, a longer clip's encoding begins with a shorter one's, to the bit. So
`condition` encodes the shortest of a few spans that is long enough, and the denoising takes what it needs of it:
clips of many lengths share one encoding, and it is found by its name like any other. The price is that the first short
clip of a picture encodes more than it needs, which is under a percent of a generation of fifty steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanImageToVideoPipeline
from diffusers.pipelines.wan.pipeline_wan_i2v import prompt_clean
from PIL import Image

from cache.description import Description, Parameter, Stage
from cache.encoding import Value
from inference import fingerprint, rendition
from inference.models import describing
from inference.models.base import Artifact, Call, Model, Output, Tensors
from inference.models.describing import pictures
from inference.models.describing.pictures import GUIDED
from inference.models.loading import compute_type, has_random_weights, modules_of, open_pipeline
from inference.models.previews import fit_colours, is_worth_a_look, picture_of

CODE_VERSION = 1  # of the stages in this file: bump when one of them computes otherwise than before
TEXT_LENGTH = 512  # tokens the transformer sees, the library's default; rows beyond the text are zeros
SPANS = (17, 33, 81, 121)  # frames that `condition` encodes; the last is also the longest video


def load(source: str, *, name: str, device: str, dtype: str | None = None) -> Model:
    """The model of a local folder or hub id, on `device`. Raises ValueError for what cannot be loaded in this way."""
    # As the model's makers run it: single precision for the picture.
    kinds = {"default": compute_type(device, dtype, WanImageToVideoPipeline.__name__)}
    kinds |= dict.fromkeys(("vae", "image_encoder"), torch.float32)
    pipeline = open_pipeline(WanImageToVideoPipeline, source, kinds)
    _refuse_unknown(pipeline, source)
    return WanI2V(pipeline, describe(pipeline, name, random_weights=has_random_weights(source)), device)


class WanI2V:
    """The stages of a loaded pipeline. Texts are kept without their padding."""

    def __init__(self, pipeline: WanImageToVideoPipeline, description: Description, device: torch.device | str) -> None:
        self.pipeline = pipeline.to(device)
        self.description = description
        self.device: torch.device = self.pipeline.device
        self._colours = fit_colours(
            lambda latents: self._decode(latents.unsqueeze(2).to(self.device)).squeeze(2), pipeline.vae.config.z_dim
        )
        self._kinds: dict[str, Callable[[Call], Output]] = {
            "tokens": self._tokens,
            "text": self._text,
            "vision": self._vision,
            "length": self._length,
            "span": self._span,
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

    def _tokens(self, call: Call) -> Tensors:
        """ids: int64 [1, n], n up to 512: the text as the library cleans it."""
        ids = self.pipeline.tokenizer(
            [prompt_clean(str(call.parameters["text"]))],
            max_length=TEXT_LENGTH,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        ).input_ids
        return {"ids": ids.to(self.device).contiguous()}

    def _text(self, call: Call) -> Tensors:
        """embeds: [1, n, D], of the text's own tokens."""
        ids = call.upstream["tokens"]["ids"]
        length = ids.shape[1]
        padded = torch.nn.functional.pad(ids, (0, TEXT_LENGTH - length), value=self.pipeline.tokenizer.pad_token_id)
        mask = torch.zeros_like(padded)
        mask[:, :length] = 1
        states = self.pipeline.text_encoder(padded, mask).last_hidden_state
        return {"embeds": states[:, :length].contiguous()}

    def _vision(self, call: Call) -> Tensors:
        """embeds: [1, n, D] of the patches of the whole picture."""
        return {"embeds": self.pipeline.encode_image(call.media["image"], self.device).contiguous()}

    def _length(self, call: Call) -> Tensors:
        """frames: int64 [1], one more than a multiple of what the encoder makes one of: rounded as the library does."""
        step = self.pipeline.vae_scale_factor_temporal
        return {"frames": self._number(int(call.parameters["num_frames"]) // step * step + 1)}

    def _span(self, call: Call) -> Tensors:
        """frames: int64 [1], what is encoded for a video of this length."""
        frames = int(call.upstream["length"]["frames"])
        return {"frames": self._number(next((span for span in SPANS if span >= frames), frames))}

    def _condition(self, call: Call) -> Tensors:
        """mean: [1, C, n, h, w]: the encoder's distribution of the clip, of which the library takes the mean."""
        vae, processor = self.pipeline.vae, self.pipeline.video_processor
        height, width = int(call.parameters["height"]), int(call.parameters["width"])
        pixels = processor.preprocess(call.media["image"], height=height, width=width).to(self.device, torch.float32)
        black = pixels.new_zeros(1, pixels.shape[1], int(call.upstream["span"]["frames"]) - 1, height, width)
        clip = torch.cat([pixels.unsqueeze(2), black], dim=2).to(vae.dtype)
        return {"mean": vae.encode(clip).latent_dist.mode().contiguous()}

    def _denoise(self, call: Call) -> Tensors:
        """latents: float32 [1, C, n, h, w] of the finished video."""
        pipeline, scheduler = self.pipeline, self.pipeline.scheduler
        guidance = float(call.parameters["guidance_scale"])
        compute = pipeline.transformer.dtype
        texts = [self._padded(call.upstream["text"]["embeds"]).to(compute)]
        if guidance > 1:
            texts.append(self._padded(call.upstream["negative"]["embeds"]).to(compute))
        vision = call.upstream["vision"]["embeds"].to(compute) if "vision" in call.upstream else None

        scheduler.set_timesteps(int(call.parameters["num_inference_steps"]), device=self.device)
        count = (int(call.upstream["length"]["frames"]) - 1) // pipeline.vae_scale_factor_temporal + 1
        picture = self._picture_latents(call.upstream["condition"]["mean"][:, :, :count])
        shape = (1, pipeline.vae.config.z_dim, *picture.shape[2:])
        generator = torch.Generator().manual_seed(int(call.parameters["seed"]))
        latents = torch.randn(shape, generator=generator).to(self.device)

        for done, time in enumerate(scheduler.timesteps, start=1):
            transformer, scale = self._expert(time, guidance, call)
            rows = torch.cat([latents, picture], dim=1).to(compute)
            noises = [
                transformer(
                    hidden_states=rows,
                    timestep=time.expand(1),
                    encoder_hidden_states=text,
                    encoder_hidden_states_image=vision,
                    return_dict=False,
                )[0]
                for text in texts
            ]
            noise = noises[0] if len(noises) == 1 else noises[1] + scale * (noises[0] - noises[1])
            guess = latents - scheduler.sigmas[done - 1].to(self.device) * noise  # where the flow from here would end
            latents = scheduler.step(noise, time, latents, return_dict=False)[0]
            call.step(done, len(scheduler.timesteps))
            if call.preview is not None and is_worth_a_look(done, len(scheduler.timesteps)):
                call.preview(picture_of(guess[0, :, count // 2], self._colours))
        return {"latents": latents.contiguous()}

    def _video(self, call: Call) -> Artifact:
        pixels = self._decode(call.upstream["latents"]["latents"])
        frames: Sequence[Image.Image] = self.pipeline.video_processor.postprocess_video(pixels, output_type="pil")[0]
        return rendition.encode(frames, int(call.parameters["playback_fps"]), str(call.parameters["format"]))

    def _number(self, number: int) -> torch.Tensor:
        return torch.tensor([number], device=self.device)

    def _expert(self, time: torch.Tensor, guidance: float, call: Call) -> tuple[Any, float]:
        """The transformer for this time of the schedule, and its guidance. Wan 2.2 has a second for little noise."""
        pipeline = self.pipeline
        if pipeline.transformer_2 is None:
            return pipeline.transformer, guidance
        if time >= pipeline.config.boundary_ratio * pipeline.scheduler.config.num_train_timesteps:
            return pipeline.transformer, guidance
        return pipeline.transformer_2, float(call.parameters["guidance_scale_2"])

    def _padded(self, embeds: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(embeds, (0, 0, 0, TEXT_LENGTH - embeds.shape[1]))

    def _picture_latents(self, mean: torch.Tensor) -> torch.Tensor:
        """[1, t + C, n, h, w]: which frames are given (the first one), and the picture's normalised latents."""
        offset, scale = self._statistics(torch.float32)
        normal = (mean.to(torch.float32) - offset) * scale
        given = normal.new_zeros(1, self.pipeline.vae_scale_factor_temporal, *normal.shape[2:])
        given[:, :, 0] = 1
        return torch.cat([given, normal], dim=1)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """[n, 3, F, H, W] in -1..1 of latents as they are denoised."""
        vae = self.pipeline.vae
        offset, scale = self._statistics(vae.dtype)
        pixels: torch.Tensor = vae.decode(latents.to(vae.dtype) / scale + offset, return_dict=False)[0]
        return pixels

    def _statistics(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """What encodings are shifted and scaled by, [1, C, 1, 1, 1] each."""
        config = self.pipeline.vae.config
        mean, deviation = (
            torch.tensor(numbers).view(1, -1, 1, 1, 1).to(self.device, dtype)
            for numbers in (config.latents_mean, config.latents_std)
        )
        return mean, 1.0 / deviation


def describe(pipeline: WanImageToVideoPipeline, name: str, *, random_weights: bool = False) -> Description:
    """What this pipeline's requests may say, and what its stages depend on."""
    return describing.described(
        name,
        "wan-i2v",
        "animate_image",
        _parameters(pipeline, small=random_weights),
        _stages(pipeline),
        affinity="vision" if _sees(pipeline) else "condition",
        random_weights=random_weights,
    )


def _parameters(pipeline: WanImageToVideoPipeline, *, small: bool) -> tuple[Parameter, ...]:
    patch = math.lcm(*pipeline.transformer.config.patch_size[1:])
    unit = math.lcm(16, pipeline.vae_scale_factor_spatial * patch)  # the library wants the 16
    width, height, frames, steps = (256, 256, 17, 8) if small else (832, 480, 81, 50)
    second = Parameter(
        name="guidance_scale_2",
        kind="float",
        default=3.5,
        minimum=1.0,
        maximum=30.0,
        extra=True,
        help="Guidance of the second model, which works where little noise is left; without guidance it is not used.",
    )
    step = pipeline.vae_scale_factor_temporal
    return (
        pictures.prompt(f"Words beyond {TEXT_LENGTH} tokens do not exist for the model."),
        pictures.negative_prompt(),
        pictures.side("width", width, unit, "stretched to it"),
        pictures.side("height", height, unit, "stretched to it"),
        pictures.num_frames(
            frames,
            maximum=SPANS[-1],
            note=f" The model makes 1, {step + 1}, {2 * step + 1}... of them: others are rounded.",
        ),
        pictures.num_inference_steps(steps),
        pictures.guidance_scale(5.0, "How strictly to follow the prompt; at 1 there is no guidance at all."),
        *pictures.file(fps=16),
        describing.seed("videos"),
        *([second] if pipeline.transformer_2 is not None else []),
    )


def _stages(pipeline: WanImageToVideoPipeline) -> tuple[Stage, ...]:
    prints = _fingerprints(pipeline)
    upstream = {"text": "text", "negative": "negative_text", "length": "length", "condition": "condition"}
    second = ("guidance_scale_2",) if pipeline.transformer_2 is not None else ()
    return (
        describing.canonical(prints, "tokens", parameters={"text": "prompt"}),
        describing.canonical(
            prints, "tokens", name="negative_tokens", parameters={"text": "negative_prompt"}, when=GUIDED
        ),
        describing.canonical(prints, "length", parameters={"num_frames": "num_frames"}),
        describing.canonical(prints, "span", upstream={"length": "length"}),
        pictures.text(prints, "text", "tokens"),
        pictures.text(prints, "negative_text", "negative_tokens", when=GUIDED),
        *([pictures.picture(prints, "vision")] if _sees(pipeline) else []),
        pictures.picture(prints, "condition", "width", "height", upstream={"span": "span"}),
        describing.result(
            prints,
            "denoise",
            upstream | ({"vision": "vision"} if _sees(pipeline) else {}),
            *("num_inference_steps", "guidance_scale", "seed", *second),
        ),
        describing.result(prints, "video", {"latents": "denoise"}, "playback_fps", "format"),
    )


def _fingerprints(pipeline: WanImageToVideoPipeline) -> dict[str, str]:
    """Fingerprint of each kind of stage, over the parts it depends on and no others."""
    vae, transformer = pipeline.vae, pipeline.transformer
    temporal = pipeline.vae_scale_factor_temporal
    parts: dict[str, dict[str, Value]] = {
        "tokens": {
            "tokenizer": fingerprint.of_tokenizer(pipeline.tokenizer),
            "length": TEXT_LENGTH,
            "libraries": fingerprint.versions("diffusers", "transformers", "tokenizers", "ftfy"),
        },
        "text": {
            "model": fingerprint.of_model(pipeline.text_encoder),
            "padding": pipeline.tokenizer.pad_token_id,
            "length": TEXT_LENGTH,
            "libraries": fingerprint.versions("torch", "transformers"),
        },
        "length": {"temporal": temporal},
        "span": {"spans": list(SPANS)},
        "condition": {
            "model": fingerprint.of_model(vae, vae.encoder, vae.quant_conv),
            "processor": fingerprint.of_config(pipeline.video_processor),
            "libraries": fingerprint.versions("torch", "diffusers", "pillow"),
        },
        "denoise": {
            "model": fingerprint.of_model(transformer),
            "scheduler": fingerprint.of_config(pipeline.scheduler),
            "latents": [list(vae.config.latents_mean), list(vae.config.latents_std)],
            "temporal": temporal,
            "length": TEXT_LENGTH,
            "libraries": fingerprint.versions("torch", "diffusers"),
        },
        "video": {
            "model": fingerprint.of_model(vae, vae.decoder, vae.post_quant_conv),
            "rendition": rendition.versions(),
            "libraries": fingerprint.versions("torch", "diffusers", "pillow"),
        },
    }
    if _sees(pipeline):
        parts["vision"] = {
            "model": fingerprint.of_model(pipeline.image_encoder),
            "processor": fingerprint.of_config(pipeline.image_processor),
            "libraries": fingerprint.versions("torch", "diffusers", "transformers", "pillow"),
        }
    if pipeline.transformer_2 is not None:
        parts["denoise"]["second"] = fingerprint.of_model(pipeline.transformer_2)
        parts["denoise"]["boundary"] = pipeline.config.boundary_ratio
    return {kind: fingerprint.of_stage(kind, CODE_VERSION, part) for kind, part in parts.items()}


def _sees(pipeline: WanImageToVideoPipeline) -> bool:
    """Whether the picture is also read as a whole: on Wan 2.1."""
    return pipeline.transformer.config.image_dim is not None


def _refuse_unknown(pipeline: WanImageToVideoPipeline, source: str) -> None:
    if pipeline.config.expand_timesteps:
        raise ValueError(f"{source} has a time of its own for every patch (Wan 2.2 5B), which is not supported")
    if pipeline.transformer is None or (pipeline.transformer_2 is None) != (pipeline.config.boundary_ratio is None):
        raise ValueError(f"{source} has half of a pair of transformers")
    if _sees(pipeline) and (pipeline.image_encoder is None or pipeline.image_processor is None):
        raise ValueError(f"{source} lacks the encoder of pictures that its transformer needs")
    known = isinstance(pipeline.scheduler, UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler)
    if not known or getattr(pipeline.scheduler.config, "stochastic_sampling", False):
        raise ValueError(f"{source} has a scheduler that may draw noise which no seed decides")
    if pipeline.tokenizer.padding_side != "right":
        raise ValueError(f"{source} has a tokenizer that puts padding before the text")
