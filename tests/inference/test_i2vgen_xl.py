"""I2VGen-XL in stages against the library's own call: the same bits, by declarations neither too short nor too long."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from PIL import Image

from cache.description import Description, Scalar
from cache.digest import Digest
from cache.keys import content_ids
from inference import rendition, tensors
from inference.models import load
from inference.models.base import Artifact, Call, Cancelled, Output, Tensors
from inference.models.i2vgen_xl import I2VGenXL, describe
from tests.inference.conftest import opened

CPU_AND_ACCELERATOR = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


def picture(seed: int = 0) -> Image.Image:
    """Coarse coloured noise of a size and shape that no video has."""
    noise = np.random.default_rng(seed).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((150, 110), Image.Resampling.BICUBIC)


@dataclasses.dataclass(frozen=True)
class Request:
    """What a caller asks for: complete parameters and one picture."""

    parameters: Mapping[str, Scalar]
    image: Image.Image

    def but(self, **changes: Any) -> Request:
        image = changes.pop("image", self.image)
        return Request({**self.parameters, **changes}, image)


@pytest.fixture
def request_(model: I2VGenXL) -> Request:
    return asked(model)


def asked(model: I2VGenXL) -> Request:
    """A small complete request."""
    defaults = {parameter.name: parameter.default for parameter in model.description.parameters}
    small = {"width": 64, "height": 64, "num_frames": 3, "num_inference_steps": 3}
    texts = {"prompt": "a cat walks over the grass", "negative_prompt": "blurry"}
    complete = {**defaults, **small, **texts}
    return Request({name: value for name, value in complete.items() if value is not None}, picture())


def run(
    model: I2VGenXL,
    request: Request,
    *,
    pass_on: Callable[[Tensors], Tensors] = lambda output: output,
    step: Callable[[int, int], None] = lambda done, of: None,
    preview: Callable[[Image.Image], None] | None = None,
    known: Mapping[str, Output] | None = None,
) -> dict[str, Output]:
    """The outputs of all stages not `known`, each given exactly what it declares, its upstream through `pass_on`."""
    outputs: dict[str, Output] = dict(known or {})
    for stage in model.description.active(request.parameters):
        if stage.name not in outputs:
            parameters = {role: request.parameters[name] for role, name in stage.parameters.items()}
            upstream = {
                role: pass_on(as_tensors(outputs[name])) for role, name in stage.upstream.items() if name in outputs
            }
            media = dict.fromkeys(stage.media, request.image)
            outputs[stage.name] = model.run(stage.name, Call(parameters, media, upstream, step, preview))
    return outputs


def as_tensors(output: Output) -> Tensors:
    assert not isinstance(output, Artifact)
    return output


def stored(output: Output) -> bytes:
    return output.data if isinstance(output, Artifact) else tensors.to_bytes(output)


def through_bytes(output: Tensors) -> Tensors:
    """As it comes back from a cache."""
    device = next(iter(output.values())).device
    return tensors.from_bytes(tensors.to_bytes(output), device)


def library_call(model: I2VGenXL, request: Request, output_type: str) -> Any:
    """The reference: the library's own unstaged call in a fork of the global generator."""
    asked_for = request.parameters
    names = ("prompt", "negative_prompt", "width", "height", "num_frames", "num_inference_steps", "guidance_scale")
    options = {name: asked_for[name] for name in (*names, "clip_skip")}
    if "eta" in asked_for:
        options["eta"] = asked_for["eta"]
    seed = int(asked_for["seed"])
    model.pipeline.set_progress_bar_config(disable=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model.pipeline(
            image=request.image,
            target_fps=asked_for["motion_fps"],
            generator=torch.Generator().manual_seed(seed),
            output_type=output_type,
            **options,
        ).frames


def library_output(model: I2VGenXL, request: Request) -> dict[str, bytes]:
    """What the last two stages store, made of what the library computes."""
    latents = library_call(model, request, "latent")
    frames = library_call(model, request, "pil")[0]
    rate, container = int(request.parameters["playback_fps"]), str(request.parameters["format"])
    return {
        "denoise": tensors.to_bytes({"latents": latents}),
        "video": rendition.encode(frames, rate, container).data,
    }


def staged_output(model: I2VGenXL, request: Request, **options: Any) -> dict[str, bytes]:
    outputs = run(model, request, **options)
    return {name: stored(outputs[name]) for name in ("denoise", "video")}


# --- the same bits as the library ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pass_on", [pytest.param(lambda output: output, id="fresh"), pytest.param(through_bytes, id="cached")]
)
@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_scale": guidance, "eta": eta, "num_frames": frames}
        for frames in (1, 2, 4)
        for guidance, eta in ((9.0, 0.0), (9.0, 0.7), (1.0, 0.0), (0.5, 0.7))
    ]
    + [{"num_frames": 8, "height": 96, "width": 72}, {"clip_skip": 0}, {"clip_skip": 3}, {"seed": 2**53 - 1}],
    ids=str,
)
def test_staged_runs_equal_the_librarys_call(
    model: I2VGenXL, request_: Request, changes: dict[str, Any], pass_on: Callable[[Tensors], Tensors]
) -> None:
    """Latents and file are the library's bit for bit, with stage outputs fresh or back from a cache."""
    request = request_.but(**changes)
    assert staged_output(model, request, pass_on=pass_on) == library_output(model, request)


@pytest.mark.parametrize("device", CPU_AND_ACCELERATOR)
def test_half_precision_equals_the_librarys_call(small_folder: Path, device: str) -> None:
    """The same holds in half precision, whose outputs are stored in half precision too."""
    model = opened(small_folder, "bfloat16" if device == "cpu" else None, device)
    request = asked(model)
    outputs = run(model, request, pass_on=through_bytes)
    kinds = {
        tensor.dtype
        for name in ("text", "vision", "moments", "denoise")
        for tensor in as_tensors(outputs[name]).values()
    }
    assert kinds == {model.pipeline.unet.dtype}
    assert {name: stored(outputs[name]) for name in ("denoise", "video")} == library_output(model, request)


# diffusers converts tensors in a way that numpy 2 deprecates
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, DDPMScheduler])
def test_other_schedulers_equal_the_librarys_call(small_folder: Path, scheduler: Any) -> None:
    """With any other scheduler each run is the library's too, and eta, which only DDIM reads, is not declared."""
    model = opened(small_folder)
    model.pipeline.scheduler = scheduler.from_config(model.pipeline.scheduler.config, rescale_betas_zero_snr=False)
    model.description = describe(model.pipeline, "small", random_weights=True)
    assert "eta" not in {parameter.name for parameter in model.description.parameters}
    request = asked(model)
    first = staged_output(model, request)
    assert staged_output(model, request) == first == library_output(model, request)


def test_outputs_are_contiguous_and_on_the_device(model: I2VGenXL, request_: Request) -> None:
    """What a stage gives out has the strides it will have when it comes back from a cache."""
    outputs = run(model, request_)
    stored_ = [tensor for name in outputs.keys() - {"video"} for tensor in as_tensors(outputs[name]).values()]
    assert len(stored_) == 7
    assert all(tensor.is_contiguous() and tensor.device == model.device for tensor in stored_)


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


RESPELLED = "A  CAT walks over the grass "  # the prompt of `asked` in other letters

VARIED: dict[str, tuple[Any, ...]] = {
    "prompt": (RESPELLED, "a dog runs"),
    "negative_prompt": ("", "a cat walks over the grass"),
    "width": (72,),
    "height": (96,),
    "num_frames": (2, 1),
    "num_inference_steps": (2,),
    "guidance_scale": (4.0, 1.0),
    "motion_fps": (8,),
    "playback_fps": (24,),
    "format": ("webm",),
    "seed": (7,),
    "eta": (0.5,),
    "clip_skip": (0, 2),
    "image": (picture(1),),
}


def variations(request: Request) -> list[Request]:
    """The request, and it with every single input changed."""
    return [request, *(request.but(**{name: value}) for name, values in VARIED.items() for value in values)]


def test_every_input_is_varied(model: I2VGenXL) -> None:
    """A new parameter cannot escape the tests below."""
    media = {name for stage in model.description.stages for name in stage.media}
    assert set(VARIED) == {parameter.name for parameter in model.description.parameters} | media


def test_memoised_components_change_nothing(model: I2VGenXL, request_: Request) -> None:
    """Reusing the encoders' outputs for equal inputs, as staged runs do, leaves the library's result as it is."""
    memo = Memo()
    for request in variations(request_):
        plain = library_call(model, request, "latent")
        with memoised(model, memo):
            assert torch.equal(library_call(model, request, "latent"), plain)
    assert len(memo.outputs) < len(memo.asked) / 3


def test_equal_declared_keys_mean_equal_inputs_and_outputs(model: I2VGenXL, request_: Request) -> None:
    """Requests that share a stage's content id ask the component the same question, to the bit; others ask another."""
    memo, questions = Memo(), dict[str, set[str]]()
    # The encoder is asked the same for every clip_skip: it is what is taken from its answer that differs.
    requests = [r for r in variations(request_) if r.parameters["clip_skip"] == request_.parameters["clip_skip"]]
    for request in requests:
        memo.asked.clear()
        with memoised(model, memo):
            library_call(model, request, "latent")
        ids = ids_of(
            model, model.description, request, run(model, request, known=dict.fromkeys(("denoise", "video"), NONE))
        )
        stages = [name for name in ("text", "negative_text", "vision", "moments") if name in ids]
        assert [model.description.stage(name).kind for name in stages] == [component for component, _ in memo.asked]
        for name, (_, question) in zip(stages, memo.asked, strict=True):
            questions.setdefault(ids[name], set()).add(question)
    assert {len(asked_) for asked_ in questions.values()} == {1}
    assert len(set.union(*questions.values())) == len(questions)


# --- the declarations ----------------------------------------------------------------------------------------------

NONE = Artifact(b"", "")


def identity(image: Image.Image) -> str:
    return Digest.of(image.tobytes()).hex


def ids_of(
    model: I2VGenXL, description: Description, request: Request, outputs: Mapping[str, Output]
) -> dict[str, str]:
    canonical = {
        stage.name: Digest.of(stored(outputs[stage.name]))
        for stage in description.active(request.parameters)
        if stage.canonicalises
    }
    return content_ids(description, request.parameters, {"image": identity(request.image)}, canonical)


def broken_declarations(model: I2VGenXL, description: Description, before: Request, after: Request) -> set[str]:
    """Stages of both requests whose content id changes without their bytes, or their bytes without their content id."""
    outputs = [run(model, request) for request in (before, after)]
    ids = [
        ids_of(model, description, request, output) for request, output in zip((before, after), outputs, strict=True)
    ]
    return {
        name
        for name in ids[0].keys() & ids[1].keys()
        if (ids[0][name] == ids[1][name]) != (stored(outputs[0][name]) == stored(outputs[1][name]))
    }


@pytest.mark.parametrize("name", VARIED)
def test_a_changed_input_changes_the_stages_that_declare_it(model: I2VGenXL, request_: Request, name: str) -> None:
    """Stages whose content id changes change their bytes; all others keep them bit for bit."""
    for value in VARIED[name]:
        broken = broken_declarations(model, model.description, request_, request_.but(**{name: value}))
        # To make one output of many inputs is what a canonicalising stage is for.
        assert broken == ({"tokens"} if value == RESPELLED else set())


@pytest.mark.parametrize(
    ("stage", "declared", "changed"),
    [
        ("text", {"clip_skip": None}, "clip_skip"),
        ("moments", {"height": None}, "height"),
        ("vision", {"height": "height"}, "height"),
        ("denoise", {"motion_fps": None}, "motion_fps"),
        ("denoise", {"playback_fps": "playback_fps"}, "playback_fps"),
        ("video", {"format": None}, "format"),
    ],
)
def test_a_wrong_declaration_is_found(
    model: I2VGenXL, request_: Request, stage: str, declared: dict[str, str | None], changed: str
) -> None:
    """A declaration that forgets a parameter, or names one that does not matter, fails the check above."""
    parameters = {**model.description.stage(stage).parameters, **declared}
    doctored = model.description.stage(stage).model_copy(
        update={"parameters": {role: name for role, name in parameters.items() if name is not None}}
    )
    stages = tuple(doctored if each.name == stage else each for each in model.description.stages)
    description = model.description.model_copy(update={"stages": stages})
    after = request_.but(**{changed: VARIED[changed][0]})
    assert stage in broken_declarations(model, description, request_, after)


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
    assert run(model, before).keys() == {"tokens", "text", "vision", "moments", "denoise", "video"}
    assert staged_output(model, before) == staged_output(model, after)
    ids = [ids_of(model, model.description, request, run(model, request)) for request in (before, after)]
    assert ids[0] == ids[1]


def test_the_description_survives_the_wire(model: I2VGenXL) -> None:
    """A gateway reads the very description that the worker wrote."""
    assert Description.from_bytes(model.description.to_bytes()) == model.description


# --- randomness, progress, previews, cancelling --------------------------------------------------------------------


def test_the_global_generator_is_neither_read_nor_moved(model: I2VGenXL, request_: Request) -> None:
    """A generation follows from its seed alone and leaves torch's global randomness as it was."""
    results = []
    with torch.random.fork_rng():
        for state in (1, 2):
            torch.manual_seed(state)
            before = torch.get_rng_state()
            results.append(staged_output(model, request_))
            assert torch.equal(torch.get_rng_state(), before)
    assert results[0] == results[1]


def test_progress_counts_every_step(model: I2VGenXL, request_: Request) -> None:
    """Progress is told once after each step of the denoising, and by no other stage."""
    told: list[tuple[int, int]] = []
    run(model, request_.but(num_inference_steps=4), step=lambda done, of: told.append((done, of)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_previews_are_small_pictures_of_the_work_so_far(model: I2VGenXL, request_: Request) -> None:
    """Every few steps comes a picture with one pixel for each of the latent; looking changes nothing."""
    seen: list[Image.Image] = []
    request = request_.but(num_inference_steps=20, width=72, num_frames=2)
    watched = staged_output(model, request, preview=seen.append)
    assert [(image.mode, image.size) for image in seen] == [("RGB", (9, 8))] * 6
    assert len({image.tobytes() for image in seen}) == 6
    assert watched == staged_output(model, request)


def test_a_preview_has_the_colours_of_the_video(model: I2VGenXL, request_: Request) -> None:
    """The last preview of a plain latent is close to what the decoder makes of it, on average and in its colours."""
    seen: list[Image.Image] = []
    outputs = run(model, request_.but(num_frames=1), preview=seen.append)
    latents = as_tensors(outputs["denoise"])["latents"]
    with torch.no_grad():
        video = model.pipeline.decode_latents(latents, decode_chunk_size=1)
    frame = model.pipeline.video_processor.postprocess_video(video, output_type="pil")[0][0]
    difference = np.asarray(frame, dtype=float).mean((0, 1)) - np.asarray(seen[-1], dtype=float).mean((0, 1))
    assert np.abs(difference).max() < 32


def test_a_cancelled_generation_leaves_nothing_behind(model: I2VGenXL, request_: Request) -> None:
    """Cancelling stops after the running step, and the next run gives the same bytes as if nothing had been."""
    expected = staged_output(model, request_)
    told: list[int] = []

    def cancel_in_the_second(done: int, of: int) -> None:
        told.append(done)
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(model, request_, step=cancel_in_the_second)
    assert told == [1, 2]
    assert staged_output(model, request_) == expected


# --- loading -------------------------------------------------------------------------------------------------------


def test_what_is_no_known_model_is_refused(tmp_path: Path, small_folder: Path) -> None:
    """Folders without a model, models of unknown families and impossible types are ValueErrors that say so."""
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        load(str(tmp_path), name="m", device="cpu")
    (tmp_path / "model_index.json").write_text('{"_class_name": "SomePipeline"}')
    with pytest.raises(ValueError, match="is a SomePipeline; known families are I2VGenXLPipeline"):
        load(str(tmp_path), name="m", device="cpu")
    with pytest.raises(ValueError, match="no floating point type"):
        load(str(small_folder), name="m", device="cpu", dtype="int8")


def test_pickled_weights_are_never_read(small_folder: Path, tmp_path: Path) -> None:
    """A model whose weights are in no safetensors file is refused."""
    folder = shutil.copytree(small_folder, tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="safetensors"):
        load(str(folder), name="m", device="cpu")


def test_a_text_encoder_that_needs_a_mask_is_refused(small_folder: Path, tmp_path: Path) -> None:
    """Ids do not tell padding from text, so an encoder that asks for the difference would be given too little."""
    folder = shutil.copytree(small_folder, tmp_path / "model")
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_attention_mask": True}))
    with pytest.raises(ValueError, match="more than token ids"):
        load(str(folder), name="m", device="cpu")
