from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from rich.console import Console
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cache.description import Scalar, Stage
from cache.parts import whole_name
from inference.models import small
from tests.bench.models import true_i2vgen_xl, true_svd, true_wan
from tests.bench.operations import Operations
from tests.bench.reuse import measure, parser
from tests.bench.shares import SUBJECTS, Spent, changes, saved
from tests.bench.watched import Watched
from tests.inference.proof import (
    Request,
    Shelf,
    StagedModel,
    base_request,
    opened,
    run,
    stages_of,
    through_bytes,
    understood,
    variants,
)

TINY = {"width": 64, "height": 64, "num_frames": 2, "num_inference_steps": 1}
ASKED: Mapping[str, Mapping[str, Scalar]] = {
    "i2vgen-xl": {"prompt": "a boat drifts", **TINY},
    "svd": TINY,
    "wan-i2v": {"prompt": "a boat drifts", **TINY},
    "pocket-tts": {"text": "The boat drifts. A star is bright."},
}

# diffusers converts tensors in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


async def test_the_bench_measures_what_it_says() -> None:
    """Tiny, and without a look at times: of five tries the picture is encoded once, and that is reused four times; the
    stages' shares are a whole; the encoder has what it truly has of a request at true size, and a change saves that.
    """
    out = io.StringIO()
    options = "--device cpu --rounds 1 --width 64 --height 64 --frames 2 --steps 1 --only I2VGen-XL"

    found = await measure(parser().parse_args(options.split()), Console(file=out, width=200))

    assert found.tries is not None
    assert ([True] * 5, [True, False, False, False, False]) == (
        [each.encoded for each in found.tries.without],
        [each.encoded for each in found.tries.cached],
    )
    assert all(each.picture == 0 for each in found.tries.cached[1:])
    assert "4 of 5 reused: 80% hits" in out.getvalue()
    (family,) = found.families
    for shares in (family.counted, family.measured):
        assert pytest.approx(1) == sum(shares.values())
    assert pytest.approx(0.068e-2, rel=0.01) == family.counted["vision"] + family.counted["moments"]
    told = {name: change for change in family.changes for name in change.inputs}
    of_true_size = {name: saved(change, family.counted) for name, change in told.items()}
    assert 1 == of_true_size["nothing"]
    encodings = sum(family.counted[stage] for stage in ("vision", "moments", "negative_text"))
    assert pytest.approx(encodings) == of_true_size["prompt"]
    assert 0.98 < of_true_size["format"]
    assert (0.0, ("denoise", "video")) == (of_true_size["image"] // 1e-4, told["seed"].runs)


@pytest.mark.parametrize("family", ["i2vgen-xl", "svd", "wan-i2v"])
def test_operations_that_are_counted_elsewhere_are_those_of_a_run(family: str, folder: Path) -> None:
    """Stage by stage, to the last one, of a model small enough to be run."""
    model, other = (opened(small.build(folder / family, family=family)) for _ in range(2))
    request = base_request(model.description, ASKED[family])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # other kernels are not all counted
        real = Watched(model, counter.get_total_flops)
        run(real, request)
    operations = Operations()
    operations.take(other.pipeline)
    elsewhere = Watched(other, lambda: operations.so_far)
    run(elsewhere, request)

    if family == "svd":  # which blurs the picture before its encoder sees it: a product, but of no network
        with FlopCounterMode(display=False) as blurring:
            _resize_with_antialiasing(torch.zeros(1, 3, request.image.height, request.image.width), (224, 224))
        real.spent["vision"] -= blurring.get_total_flops()
    assert 0 < real.spent["denoise"]
    assert dict(real.spent) == dict(elsewhere.spent)


@pytest.mark.parametrize("family", list(ASKED))
def test_what_is_said_to_run_again_does(family: str, folder: Path) -> None:
    """And the rest is reused, or not even needed: on a model that runs, from stored outputs."""
    model = opened(small.build(folder / family, family=family))
    base = base_request(model.description, ASKED[family])
    said = {name: change for change in changes(Spent(model, base, {})) for name in change.inputs}
    inputs = variants(model.description, base, {})
    assert {"nothing", *inputs} == said.keys()
    first = Shelf()
    first.run(model, base)
    for name, (value, *_) in inputs.items():
        shelf = Shelf()
        shelf.entries.update(first.entries)
        shelf.run(model, changed := base.but(**{name: value}))
        kept = {stage.name for stage in model.description.stages if stage.cached}
        active = {whole_name(stage.name) for stage in _stages(model, changed)}
        assert {whole_name(stage) for stage in shelf.ran} == kept.intersection(said[name].runs), name
        assert said[name].reused == tuple(stage for stage in said[name].reused if stage in active), name
    assert ((), 1.0) == (said["nothing"].runs, saved(said["nothing"], dict.fromkeys(said["nothing"].reused, 0.5)))


def _stages(model: StagedModel, request: Request) -> tuple[Stage, ...]:
    return stages_of(model.description, request, understood(model, request, through_bytes, {}))


def test_a_longer_clip_of_one_span_keeps_its_encoding(folder: Path) -> None:
    """Which no table of parameters would say: it follows from the names of outputs."""
    model = opened(small.build(folder / "wan-i2v", family="wan-i2v"))
    base = base_request(model.description, {**ASKED["wan-i2v"], "num_frames": 9})
    told = {name: change for change in changes(Spent(model, base, {})) for name in change.inputs}
    assert ("condition" in told["num_frames"].reused, "condition" in told["width"].runs) == (True, True)


def test_true_sizes_are_those_of_the_published_models(folder: Path) -> None:
    """In millions of weights."""
    found: dict[str, int] = {}
    for family, make in (("i2vgen-xl", true_i2vgen_xl), ("svd", true_svd), ("wan-i2v", true_wan)):
        parts = opened(small.build(folder / family, family=family)).pipeline
        with torch.device("meta"):
            pipeline = make(parts)
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                found[f"{family} {name}"] = round(sum(weight.numel() for weight in part.parameters()) / 1e6)
    assert {
        "i2vgen-xl text_encoder": 353,
        "i2vgen-xl image_encoder": 632,
        "i2vgen-xl vae": 84,
        "i2vgen-xl unet": 1420,
        "svd image_encoder": 632,
        "svd vae": 98,
        "svd unet": 1525,
        "wan-i2v text_encoder": 5681,
        "wan-i2v image_encoder": 631,
        "wan-i2v vae": 127,
        "wan-i2v transformer": 16395,
    } == found
    assert len(SUBJECTS) == len({subject.name for subject in SUBJECTS})
