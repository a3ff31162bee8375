from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from cache.parts import whole_name
from inference.device import HostDevice
from inference.models import load, small
from inference.models.base import Model
from inference.models.pocket_tts import PocketTTS
from inference.rehearsal import rehearse, smallest
from inference.settings import ModelSettings
from inference.worker import open_worker
from tests.inference.test_server import settings, telemetry

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # SVD's scheduler


@pytest.fixture
def speaker(tmp_path: Path) -> ModelSettings:
    return ModelSettings(name="small", source=str(small.build(tmp_path / "model", family="pocket-tts")))


def counted(model: Any, patch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each stage of a model, or of a class of models, is run or begun."""
    ran: Counter[str] = Counter()

    def count(name: str) -> None:
        plain = getattr(model, name)

        def noted(*args: Any) -> Any:
            ran[args[-2]] += 1
            return plain(*args)

        patch.setattr(model, name, noted)

    for name in {"run", "follow"} & set(dir(model)):
        count(name)
    return ran


@pytest.mark.parametrize("family", small.FAMILIES)
def test_every_stage_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Of every family, on as little as it can be asked for; and it is no secret that draws from the process's dice."""
    model: Model = load(str(small.build(tmp_path / "model", family=family)), name="small", device="cpu")
    ran, dice = counted(model, monkeypatch), torch.get_rng_state()
    rehearse(model, HostDevice())
    plan = smallest(model)
    assert ran == {whole_name(stage.name): 1 for stage in plan.stages}
    assert {1, None} >= {plan.parameters.get("num_inference_steps"), plan.parameters.get("num_flow_steps")}
    assert torch.equal(dice, torch.get_rng_state())


async def test_a_worker_serves_what_was_rehearsed(
    tmp_path: Path, speaker: ModelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is done once before anybody asks; and nothing of it is kept."""
    ran = counted(PocketTTS, monkeypatch)
    wanted = settings(tmp_path, (speaker,))
    async with telemetry() as own, open_worker(wanted, own) as worker:
        assert ran == {whole_name(stage.name): 1 for stage in worker.engine.models["small"].description.stages}
        assert own.registry.get_sample_value("reprise_pool_entries") == 0.0
        assert own.registry.get_sample_value("reprise_worker_generations_total") == 0.0
        await worker.leave()


async def test_a_rehearsal_that_fails_is_told_and_costs_no_model(
    tmp_path: Path, speaker: ModelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What callers ask for may work all the same."""

    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(PocketTTS, "_voice", fail)
    wanted = settings(tmp_path, (speaker,))
    with capture_logs() as logged:
        async with telemetry() as own, open_worker(wanted, own) as worker:
            assert worker.engine.models.keys() == {"small"}
            await worker.leave()
    assert [("warning", "small")] == [
        (line["log_level"], line["model"]) for line in logged if "rehears" in line["event"]
    ]
