"""Several models on one worker: who shares what with whom, and that one thread does all the work on the device."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cache.description import Scalar
from inference.models import small
from inference.models.base import Artifact, Call, Output
from inference.settings import ModelSettings
from inference.worker import Worker, open_worker
from reprise.v1.inference_pb2 import RunRequest
from tests.inference.proof import Request, StagedModel, base_request, opened, run
from tests.inference.test_server import Wire, settings, telemetry
from tests.inference.worker_fixtures import Heard, Pixels, ask

PICTURE = Pixels(width=64, height=64)
RUN, REUSED = "RUN", "REUSED"
ASKED: Mapping[str, Scalar] = {"width": 64, "height": 64, "num_frames": 5, "num_inference_steps": 2, "seed": 3}
TEXTS: Mapping[str, Scalar] = {"prompt": "a cat runs", "negative_prompt": "blurry", "guidance_scale": 4.0}

# diffusers converts tensors in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Wan, a tuned copy of it with other transformer weights, and a Stable Video Diffusion."""
    root = tmp_path_factory.mktemp("models")
    wan = small.build(root / "wan", family="wan-i2v")
    tuned = small.build(root / "tuned", family="wan-i2v")
    weights = tuned / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file({name: tensor * 0.9 for name, tensor in state.items()}, weights, {"format": "pt"})
    return {"wan": wan, "tuned": tuned, "svd": small.build(root / "svd", family="svd")}


@dataclass
class Fleet:
    """One worker with several models, and how one asks it."""

    worker: Worker
    wire: Wire

    def model(self, name: str) -> StagedModel:
        return self.worker.engine.models[name]  # type: ignore[return-value]  # all of them wrap a pipeline

    def wanted(self, name: str, **more: Scalar) -> dict[str, Scalar]:
        declared = {parameter.name for parameter in self.model(name).description.parameters}
        return {key: value for key, value in {**ASKED, **TEXTS, **more}.items() if key in declared}

    async def ask(self, name: str, **more: Scalar) -> Heard:
        wanted: dict[str, Any] = {**self.wanted(name, **more)}
        request: RunRequest = ask(self.model(name).description, picture=PICTURE, **wanted)
        if "prompt" not in wanted:
            del request.parameters["prompt"]
        return await self.wire.run(request)

    def alone(self, folder: Path, name: str) -> bytes:
        """What a model that nobody else uses makes of the same request, without any cache. Blocking."""
        torch.set_num_threads(1)  # which torch keeps for each thread
        pixels = Image.frombytes("RGB", (PICTURE.width, PICTURE.height), PICTURE.message().rgb)
        base = base_request(self.model(name).description, self.wanted(name))
        video = run(opened(folder), Request(base.parameters, {"image": pixels}))["video"]
        assert isinstance(video, Artifact)
        return video.data


@pytest.fixture
async def fleet(tmp_path: Path, folders: Mapping[str, Path]) -> AsyncIterator[Fleet]:
    sources = {**folders, "again": folders["wan"]}
    wanted = settings(tmp_path, tuple(ModelSettings(name=name, source=str(path)) for name, path in sources.items()))
    async with telemetry() as own, open_worker(wanted, own) as worker:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{worker.port}") as channel:
            yield Fleet(worker, Wire(channel))
        await worker.leave()


@contextmanager
def watched(fleet: Fleet) -> Iterator[dict[str, set[str]]]:
    """Names of the threads that stages run in, by stage."""
    threads: dict[str, set[str]] = defaultdict(set)

    def watch(model: StagedModel, patch: pytest.MonkeyPatch) -> None:
        plain = model.run

        def noted(stage: str, call: Call) -> Output:
            threads[stage].add(threading.current_thread().name)
            return plain(stage, call)

        patch.setattr(model, "run", noted)

    with pytest.MonkeyPatch.context() as patch:
        for name in fleet.worker.engine.models:
            watch(fleet.model(name), patch)
        yield threads


async def test_families_do_not_disturb_each_other(fleet: Fleet, folders: Mapping[str, Path]) -> None:
    """Asked at once, each gives what it would give alone, and one thread runs whatever computes on the device."""
    with watched(fleet) as threads:
        heard = await asyncio.gather(*(fleet.ask(name) for name in folders))
    for name, each in zip(folders, heard, strict=True):
        assert each.data == await asyncio.to_thread(fleet.alone, folders[name], name)
    canonical = {"tokens", "negative_tokens", "length", "span"}
    assert threads.keys() == canonical | {"text", "negative_text", "vision", "condition", "denoise", "video"}
    assert len(set.union(*(names for stage, names in threads.items() if stage not in canonical))) == 1


async def test_what_is_truly_the_same_is_shared(fleet: Fleet) -> None:
    """A tuned copy takes over all but what the tuned weights compute; another name for one model takes over all."""
    await fleet.ask("wan")
    tuned = (await fleet.ask("tuned")).stages
    reused = {stage for stage, (outcome, _) in tuned.items() if outcome == REUSED}
    assert reused == {"text", "negative_text", "vision", "condition"}
    assert {tuned["denoise"][0], tuned["video"][0]} == {RUN}
    generations = fleet.worker.engine.shop.generations
    assert (await fleet.ask("again")).stages["video"][0] == REUSED
    assert fleet.worker.engine.shop.generations == generations


async def test_what_only_looks_the_same_is_not_shared(fleet: Fleet) -> None:
    """Stages of one name and one picture, in families that compute them otherwise, have nothing in common."""
    await fleet.ask("wan")
    heard = await fleet.ask("svd")
    assert {outcome for outcome, _ in heard.stages.values()} == {RUN}
    assert heard.stages.keys() == {"vision", "condition", "denoise", "video"}
