"""What stands in deploy/ is true: the sample configuration names every setting, with its default."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from cache.settings import CacheSettings, ProcessSettings, TelemetrySettings, load
from gateway import settings as gateway
from inference import settings as worker

SAMPLE = Path("deploy/reprise.yaml")
SECRET = "5e" * 32


@pytest.mark.parametrize(
    ("process", "others"),
    [(gateway.GatewaySettings, gateway.OTHERS), (worker.WorkerSettings, worker.OTHERS)],
)
def test_both_processes_read_the_sample(
    process: type[ProcessSettings], others: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file serves gateway and worker, each leaving the other's section alone; the environment adds the secret."""
    monkeypatch.setenv("REPRISE_CACHE__SECRET", SECRET)
    assert SECRET == load(process, SAMPLE, others=others).cache.secret.get_secret_value()


@pytest.mark.parametrize(
    ("section", "defaults"),
    [
        ("cache", CacheSettings.model_validate({"secret": SECRET})),
        ("gateway", gateway.GatewaySection()),
        ("worker", worker.WorkerSection(name="any")),
        ("telemetry", TelemetrySettings()),
    ],
)
def test_the_sample_names_every_setting_with_its_default(section: str, defaults: BaseModel) -> None:
    """Whoever reads the sample sees all there is to set, and what holds if nothing is set."""
    sample = yaml.safe_load(SAMPLE.read_text())[section]
    if section == "cache":
        sample["secret"] = SECRET  # which a file that everybody can read does not hold
    if section == "worker":
        sample["name"] = "any"  # the host's name unless it is given

    assert defaults == type(defaults).model_validate(sample)
    assert set(_names(defaults)) == set(_keys(sample))


def _names(settings: BaseModel, prefix: str = "") -> list[str]:
    names = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        names += _names(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else [prefix + name]
    return names


def _keys(mapping: dict[str, object], prefix: str = "") -> list[str]:
    keys = []
    for name, value in mapping.items():
        keys += _keys(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [prefix + name]
    return keys
