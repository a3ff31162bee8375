"""I2VGen-XL in stages: what is its own, and the proof that all families of moving pictures owe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

from cache.digest import Digest
from inference import tensors
from inference.models import load
from inference.models.base import Artifact, Output
from inference.models.i2vgen_xl import I2VGenXL, describe
from tests.inference.conftest import opened
from tests.inference.proof import (
    Family,
    Request,
    as_tensors,
    base_request,
    ids_of,
    nudge,
    run,
    variants,
)
from tests.inference.proof_of_pictures import PictureProof, library_output, merge_lora, results

RESPELLED = "A  CAT walks over the grass "  # the prompt below in other letters
NONE = Artifact(b"", "")


def library(pipeline: Any, request: Request, output_type: str) -> Any:
    asked = request.parameters
    names = ("prompt", "negative_prompt", "width", "height", "num_frames", "num_inference_steps", "guidance_scale")
    options = {name: asked[name] for name in (*names, "clip_skip", "eta") if name in asked}
    return pipeline(
        image=request.image,
        target_fps=asked["motion_fps"],
        generator=torch.Generator().manual_seed(int(asked["seed"])),
        output_type=output_type,
        **options,
    ).frames


FAMILY = Family(
    "i2vgen-xl",
    describe=describe,
    library=library,
    asked={
        "prompt": "a cat walks over the grass",
        "negative_prompt": "blurry",
        "width": 64,
        "height": 64,
        "num_frames": 3,
        "num_inference_steps": 3,
    },
    varied={
        "prompt": (RESPELLED,),
        "negative_prompt": ("a cat walks over the grass",),
        "num_frames": (1,),
        "clip_skip": (2,),
        "seed": (2**53 - 1,),
    },
    cases=(
        *(
            {"guidance_scale": guidance, "eta": eta, "num_frames": frames}
            for frames in (1, 2, 4)
            for guidance, eta in ((9.0, 0.0), (9.0, 0.7), (1.0, 0.0), (0.5, 0.7))
        ),
        {"num_frames": 8, "height": 96, "width": 72},
        {"clip_skip": 3},
    ),
    changes={
        "tokenizer": (lambda p: p.tokenizer.add_tokens(["reprise"]), {"tokens"}),
        "text weights": (lambda p: nudge(p.text_encoder), {"text"}),
        "vision weights": (lambda p: nudge(p.image_encoder), {"vision"}),
        "vision crop": (lambda p: setattr(p.feature_extractor.crop_size, "width", 24), {"vision"}),
        "encoder weights": (lambda p: nudge(p.vae.encoder), {"moments"}),
        "decoder weights": (lambda p: nudge(p.vae.decoder), {"video"}),
        "latent scale": (lambda p: p.vae.register_to_config(scaling_factor=0.5), {"moments", "denoise", "video"}),
        "unet weights": (lambda p: nudge(p.unet), {"denoise"}),
        "unet adapter": (lambda p: merge_lora(p.unet), {"denoise"}),
        "unet attention": (lambda p: p.unet.set_default_attn_processor(), {"denoise"}),
        "schedule": (lambda p: p.scheduler.register_to_config(timestep_spacing="trailing"), {"denoise"}),
    },
    libraries={
        "torch": {"text", "vision", "moments", "denoise", "video"},
        "diffusers": {"vision", "moments", "denoise", "video"},
        "transformers": {"tokens", "text", "vision"},
        "tokenizers": {"tokens"},
        "pillow": {"vision", "moments", "video"},
    },
)


class TestProof(PictureProof):
    family = FAMILY


@pytest.fixture
def request_(model: I2VGenXL) -> Request:
    return base_request(model.description, FAMILY.asked)


def test_half_precision_is_stored_in_half_precision(small_folder: Path) -> None:
    """Whatever a stage stores has the type the model computes with."""
    outputs = run(opened(small_folder, "bfloat16"), base_request(opened(small_folder).description, FAMILY.asked))
    kinds = {
        tensor.dtype
        for name in ("text", "vision", "moments", "denoise")
        for tensor in as_tensors(outputs[name]).values()
    }
    assert kinds == {torch.bfloat16}


# diffusers converts tensors in a way that numpy 2 deprecates
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, DDPMScheduler])
def test_other_schedulers_equal_the_librarys_call(small_folder: Path, scheduler: Any) -> None:
    """With any other scheduler each run is the library's too, and eta, which only DDIM reads, is not declared."""
    model = opened(small_folder)
    model.pipeline.scheduler = scheduler.from_config(model.pipeline.scheduler.config, rescale_betas_zero_snr=False)
    model.description = describe(model.pipeline, "small", random_weights=True)
    assert "eta" not in {parameter.name for parameter in model.description.parameters}
    request = base_request(model.description, FAMILY.asked)
    first = results(run(model, request))
    assert results(run(model, request)) == first == library_output(FAMILY, model, request)


def test_shapes_are_as_documented(model: I2VGenXL, request_: Request) -> None:
    """Rows are single, whatever the guidance, and moments and latents have the size of the video over eight."""
    outputs = run(model, request_.but(width=72, height=96, num_frames=5))
    shapes = {
        name: tuple(next(iter(as_tensors(output).values())).shape)
        for name, output in outputs.items()
        if name != "video"
    }
    assert shapes == {
        "tokens": (1, 77),
        "negative_tokens": (1, 77),
        "text": (1, 77, 32),
        "negative_text": (1, 77, 32),
        "vision": (1, 1, 32),
        "moments": (1, 8, 12, 9),
        "denoise": (1, 4, 5, 12, 9),
    }


# --- the oracle: the components' own calls, memoised under the unmodified call -------------------------------------


class Memo:
    """Remembers the components' outputs by their exact input, and in which order they were asked for."""

    def __init__(self) -> None:
        self.outputs: dict[tuple[str, str], Any] = {}
        self.asked: list[tuple[str, str]] = []

    def around(self, component: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(given: torch.Tensor, **options: Any) -> Any:
            key = component, Digest.of(tensors.to_bytes({"given": given}) + repr(sorted(options.items())).encode()).hex
            self.asked.append(key)
            if key not in self.outputs:
                self.outputs[key] = function(given, **options)
            return self.outputs[key]

        return call


@contextmanager
def memoised(model: I2VGenXL, memo: Memo) -> Iterator[None]:
    pipeline = model.pipeline
    with pytest.MonkeyPatch.context() as patch:
        for name, component, method in (
            ("text", pipeline.text_encoder, "forward"),
            ("vision", pipeline.image_encoder, "forward"),
            ("moments", pipeline.vae, "encode"),
        ):
            patch.setattr(component, method, memo.around(name, getattr(component, method)))
        yield


def variations(model: I2VGenXL, request: Request) -> list[Request]:
    """The request, and it with every single input changed."""
    values = variants(model.description, request, FAMILY.varied)
    return [request, *(request.but(**{name: value}) for name, others in values.items() for value in others)]


def plain_call(model: I2VGenXL, request: Request) -> torch.Tensor:
    model.pipeline.set_progress_bar_config(disable=True)
    with torch.random.fork_rng():
        torch.manual_seed(int(request.parameters["seed"]))
        latents: torch.Tensor = library(model.pipeline, request, "latent")
    return latents


def test_memoised_components_change_nothing(model: I2VGenXL, request_: Request) -> None:
    """Reusing the encoders' outputs for equal inputs, as staged runs do, leaves the library's result as it is."""
    memo = Memo()
    for request in variations(model, request_):
        plain = plain_call(model, request)
        with memoised(model, memo):
            assert torch.equal(plain_call(model, request), plain)
    assert len(memo.outputs) < len(memo.asked) / 3


def test_equal_declared_keys_mean_equal_inputs_and_outputs(model: I2VGenXL, request_: Request) -> None:
    """Requests that share a stage's content id ask the component the same question, to the bit; others ask another."""
    memo, questions = Memo(), dict[str, set[str]]()
    # The encoder is asked the same for every clip_skip: it is what is taken from its answer that differs.
    requests = [r for r in variations(model, request_) if r.parameters["clip_skip"] == request_.parameters["clip_skip"]]
    for request in requests:
        memo.asked.clear()
        with memoised(model, memo):
            plain_call(model, request)
        without_result = run(model, request, known=dict.fromkeys(("denoise", "video"), NONE))
        ids = ids_of(model.description, request, without_result)
        stages = [name for name in ("text", "negative_text", "vision", "moments") if name in ids]
        assert [model.description.stage(name).kind for name in stages] == [component for component, _ in memo.asked]
        for name, (_, question) in zip(stages, memo.asked, strict=True):
            questions.setdefault(ids[name], set()).add(question)
    assert {len(asked_) for asked_ in questions.values()} == {1}
    assert len(set.union(*questions.values())) == len(questions)


# --- what a text is ------------------------------------------------------------------------------------------------


def test_spellings_of_one_prompt_are_one_request(model: I2VGenXL, request_: Request) -> None:
    """Case, runs of white space, and words the model cannot hold make no other token ids."""

    def ids(text: str) -> list[int]:
        return [int(i) for i in as_tensors(run(model, request_.but(prompt=text), known=LATER)["tokens"])["ids"][0]]

    assert ids("A  CAT walks ") == ids("a cat walks")
    assert ids("cat " * 100 + "dog") == ids("cat " * 100)
    assert ids("a cat") != ids("a dog")


LATER: dict[str, Output] = dict.fromkeys(
    ("text", "negative_tokens", "negative_text", "vision", "moments", "denoise", "video"), NONE
)


def test_without_guidance_the_negative_prompt_is_no_part_of_the_request(model: I2VGenXL, request_: Request) -> None:
    """Up to a guidance of 1 the negative prompt names nothing and changes nothing."""
    before, after = (request_.but(guidance_scale=1.0, negative_prompt=text) for text in ("blurry", "sharp"))
    outputs = [run(model, request) for request in (before, after)]
    assert outputs[0].keys() == {"tokens", "text", "vision", "moments", "denoise", "video"}
    assert results(outputs[0]) == results(outputs[1])
    assert ids_of(model.description, before, outputs[0]) == ids_of(model.description, after, outputs[1])


# --- loading -------------------------------------------------------------------------------------------------------


def test_what_is_no_known_model_is_refused(tmp_path: Path, small_folder: Path) -> None:
    """Folders without a model, models of unknown families and impossible types are ValueErrors that say so."""
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        load(str(tmp_path), name="m", device="cpu")
    (tmp_path / "model_index.json").write_text('{"_class_name": "SomePipeline"}')
    with pytest.raises(ValueError, match=r"is a SomePipeline; known families are .*I2VGenXLPipeline, "):
        load(str(tmp_path), name="m", device="cpu")
    with pytest.raises(ValueError, match="no floating point type"):
        load(str(small_folder), name="m", device="cpu", dtype="int8")


def test_a_text_encoder_that_needs_a_mask_is_refused(small_folder: Path, tmp_path: Path) -> None:
    """Ids do not tell padding from text, so an encoder that asks for the difference would be given too little."""
    folder = shutil.copytree(small_folder, tmp_path / "model")
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_attention_mask": True}))
    with pytest.raises(ValueError, match="more than token ids"):
        load(str(folder), name="m", device="cpu")
