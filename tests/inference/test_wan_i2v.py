"""Wan image-to-video in stages: what is its own, and the proof that all families of moving pictures owe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline

from inference.models import load, small
from inference.models.base import Output
from inference.models.loading import open_pipeline
from inference.models.small.wan_i2v import transformer
from inference.models.wan_i2v import SPANS, describe
from tests.inference.proof import (
    CPU_AND_ACCELERATOR,
    Evidence,
    Family,
    Request,
    Shelf,
    StagedModel,
    as_tensors,
    base_request,
    doctored,
    nudge,
    opened,
    run,
)
from tests.inference.proof_of_pictures import PictureProof, library_output, merge_lora, results

RESPELLED = "a  cat &amp;amp; a dog run"  # the prompt below as some web page would have it


def use_attention(model: Any, backend: str) -> None:
    # As the library's own method, which in addition changes what all other models use.
    for processor in model.attn_processors.values():
        processor._attention_backend = backend


def library(pipeline: Any, request: Request, output_type: str) -> Any:
    asked = request.parameters
    names = ("prompt", "negative_prompt", "width", "height", "num_frames", "num_inference_steps", "guidance_scale")
    options = {name: asked[name] for name in (*names, "guidance_scale_2") if name in asked}
    generator = torch.Generator().manual_seed(int(asked["seed"]))
    return pipeline(image=request.image, generator=generator, output_type=output_type, **options).frames


FAMILY = Family(
    "wan-i2v",
    describe=describe,
    library=library,
    asked={
        "prompt": "a cat & a dog run",
        "negative_prompt": "blurry",
        "width": 64,
        "height": 64,
        "num_frames": 9,
        "num_inference_steps": 3,
    },
    # Rounded to what it is, shorter and longer in one span, in the next span.
    varied={"prompt": (RESPELLED,), "num_frames": (11, 1, 17, 18, 21)},
    cases=(
        {"guidance_scale": 1.0, "num_frames": 1},
        {"num_frames": 13, "height": 96, "width": 80, "prompt": "a cat " * 600},
        {"num_inference_steps": 1},
    ),
    weights="transformer/diffusion_pytorch_model.safetensors",
    changes={
        "tokenizer": (lambda p: p.tokenizer.add_tokens(["reprise"]), {"tokens"}),
        "text weights": (lambda p: nudge(p.text_encoder), {"text"}),
        "vision weights": (lambda p: nudge(p.image_encoder), {"vision"}),
        "vision crop": (lambda p: setattr(p.image_processor.crop_size, "width", 24), {"vision"}),
        "encoder weights": (lambda p: nudge(p.vae.encoder), {"condition"}),
        "decoder weights": (lambda p: nudge(p.vae.decoder), {"video"}),
        "statistics": (lambda p: p.vae.register_to_config(latents_mean=[0.0] * 16), {"condition", "denoise", "video"}),
        "frames per latent": (lambda p: setattr(p, "vae_scale_factor_temporal", 8), {"length", "denoise"}),
        "transformer adapter": (lambda p: merge_lora(p.transformer), {"denoise"}),
        "transformer weights": (lambda p: nudge(p.transformer.blocks[-1].attn2.to_out[0]), {"denoise"}),
        "attention": (lambda p: use_attention(p.transformer, "_native_math"), {"denoise"}),
        "schedule": (lambda p: p.scheduler.register_to_config(flow_shift=5.0), {"denoise"}),
    },
    libraries={
        "torch": {"text", "vision", "condition", "denoise", "video"},
        "diffusers": {"tokens", "vision", "condition", "denoise", "video"},
        "transformers": {"tokens", "text", "vision"},
        "tokenizers": {"tokens"},
        "ftfy": {"tokens"},
        "pillow": {"vision", "condition", "video"},
    },
)


class TestProof(PictureProof):
    family = FAMILY

    def test_an_encoding_named_by_its_own_length_is_found(self, proven: StagedModel, evidence: Evidence) -> None:
        """To declare the number of frames where the span says enough would encode again what is there already."""
        stage = proven.description.stage("condition")
        exact = stage.model_copy(update={"parameters": {**stage.parameters, "frames": "num_frames"}})
        assert ("condition", "num_frames") in evidence.against(doctored(proven.description, exact))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.build(tmp_path_factory.mktemp("models") / "wan", family="wan-i2v")


@pytest.fixture(scope="module")
def model(folder: Path) -> StagedModel:
    return opened(folder)


@pytest.fixture
def request_(model: StagedModel) -> Request:
    return base_request(model.description, FAMILY.asked)


@pytest.mark.parametrize("device", CPU_AND_ACCELERATOR)
@pytest.mark.parametrize("longer", SPANS[:3])
def test_a_longer_encoding_begins_with_the_shorter_one(folder: Path, longer: int, device: str) -> None:
    """The encoder only looks back: what it makes of a clip's beginning does not depend on how the clip goes on."""
    vae = opened(folder, device=device).pipeline.vae
    first = torch.randn(1, 3, 1, 64, 64, generator=torch.Generator().manual_seed(1)).to(device)

    def encode(frames: int) -> torch.Tensor:
        clip = torch.cat([first, first.new_zeros(1, 3, frames - 1, 64, 64)], dim=2)
        with torch.no_grad():
            mean: torch.Tensor = vae.encode(clip).latent_dist.mode()
        return mean

    whole = encode(longer)
    for frames in (1, 5, 9, 17, longer):
        shorter = encode(frames)
        assert torch.equal(whole[:, :, : shorter.shape[2]], shorter)


def test_clips_of_many_lengths_share_one_encoding(model: StagedModel, request_: Request) -> None:
    """Whatever length comes first, the picture is encoded once for a span, and each clip is the library's own."""
    shelf = Shelf()
    for frames in (5, 17, 9, 1):
        request = request_.but(num_frames=frames, guidance_scale=1.0)
        assert results(shelf.run(model, request)) == library_output(FAMILY, model, request)
    # For every length its latents and its file; for all of them the text, the picture and its encoding.
    assert len(shelf.ran) == 4 * 2 + 3
    shelf.run(model, request_.but(num_frames=21, guidance_scale=1.0))
    assert len(shelf.ran) == 4 * 2 + 3 + 3


def test_lengths_that_are_rounded_alike_are_one_request(model: StagedModel, request_: Request) -> None:
    """What the model makes of 11 frames is what it makes of 9, and nothing of it runs again."""
    shelf = Shelf()
    first = results(shelf.run(model, request_.but(num_frames=9)))
    ran = len(shelf.ran)
    assert results(shelf.run(model, request_.but(num_frames=11))) == first
    assert len(shelf.ran) == ran


def test_texts_are_kept_without_their_padding(model: StagedModel, request_: Request) -> None:
    """A text takes as many rows as it has tokens, and the empty one takes one."""
    outputs = run(model, request_.but(negative_prompt=""))
    rows = {name: as_tensors(outputs[name])["embeds"].shape[1] for name in ("text", "negative_text")}
    ids = as_tensors(outputs["tokens"])["ids"]
    assert rows == {"text": ids.shape[1], "negative_text": 1}
    assert ids.shape[1] < 20


def test_spellings_of_one_prompt_are_one_request(model: StagedModel, request_: Request) -> None:
    """Entities, runs of white space and broken encodings make no other token ids; case does."""

    def ids(text: str) -> list[int]:
        known: dict[str, Output] = {stage.name: {} for stage in model.description.stages if stage.name != "tokens"}
        return [int(i) for i in as_tensors(run(model, request_.but(prompt=text), known=known)["tokens"])["ids"][0]]

    assert ids(RESPELLED) == ids("a cat & a dog run")
    assert ids("a cafÃ©") == ids("a café")
    assert ids("a cat") != ids("A cat")


def two_experts(folder: Path, **config: Any) -> WanImageToVideoPipeline:
    """As Wan 2.2: one transformer for much noise, one for little, and none that reads the picture as a whole."""
    parts = open_pipeline(WanImageToVideoPipeline, str(folder), torch.float32).components
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers = {"transformer": transformer(None), "transformer_2": transformer(None)}
    missing = {"image_encoder": None, "image_processor": None}
    return WanImageToVideoPipeline(**{**parts, **transformers, **missing, "boundary_ratio": 0.9, **config})


def saved(pipeline: WanImageToVideoPipeline, folder: Path) -> Path:
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def test_two_experts_equal_the_librarys_call(folder: Path, tmp_path: Path) -> None:
    """Each works on its side of the boundary with a guidance of its own, and both are in the fingerprint."""
    model = opened(saved(two_experts(folder), tmp_path / "wan22"))
    assert "vision" not in {stage.name for stage in model.description.stages}
    request = base_request(model.description, FAMILY.asked)
    seen = set()
    for changes in ({}, {"guidance_scale_2": 2.0}, {"guidance_scale": 2.0}, {"guidance_scale": 1.0}):
        seen.add(results(run(model, request.but(**changes)))["denoise"])
        assert results(run(model, request.but(**changes))) == library_output(FAMILY, model, request.but(**changes))
    assert len(seen) == 4
    before = model.description.stage("denoise").fingerprint
    nudge(model.pipeline.transformer_2)
    assert describe(model.pipeline, "small").stage("denoise").fingerprint != before


def test_another_scheduler_equals_the_librarys_call(folder: Path, tmp_path: Path) -> None:
    """So it does with the scheduler without a memory."""
    pipeline = open_pipeline(WanImageToVideoPipeline, str(folder), torch.float32)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    model = opened(saved(pipeline, tmp_path / "euler"))
    request = base_request(model.description, FAMILY.asked)
    assert results(run(model, request)) == library_output(FAMILY, model, request)


UNKNOWN: dict[str, Callable[[Path], WanImageToVideoPipeline]] = {
    "every patch": lambda folder: two_experts(folder, expand_timesteps=True),
    "half of a pair": lambda folder: two_experts(folder, boundary_ratio=None),
    "no seed decides": lambda folder: two_experts(folder, scheduler=EulerDiscreteScheduler()),
}


@pytest.mark.parametrize("reason", UNKNOWN)
def test_what_is_computed_otherwise_is_refused(folder: Path, tmp_path: Path, reason: str) -> None:
    """A relative of this family with another graph is a ValueError when it is loaded, and not wrong bits later."""
    other = saved(UNKNOWN[reason](folder), tmp_path / "other")
    with pytest.raises(ValueError, match=reason):
        load(str(other), name="m", device="cpu")
