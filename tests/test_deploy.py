"""What stands in deploy/ is true: the sample configuration names every setting, with its default; alerts ask for what
is counted, and say what to do.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from cache.settings import CacheSettings, ProcessSettings, TelemetrySettings, load
from gateway import settings as gateway
from inference import settings as worker
from tests.gateway.world import ask, open_world, problem_of

SAMPLE = Path("deploy/reprise.yaml")
SECRET = "5e" * 32
ALERTS = Path("deploy/alerts.yaml")
_SERIES = re.compile(r"(reprise_\w+)(?:\{(.*?)\})?")


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


def _alerts() -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


async def test_alerts_ask_for_what_a_gateway_counts(redis_url: str, tmp_path: Path) -> None:
    """Every series that a rule names is there, with the labels by which the rule chooses."""
    async with open_world(redis_url, tmp_path / "objects") as world:
        desk = await world.desk(await world.worker())
        await desk.animate()
        await problem_of(desk.client.animate(ask(num_frames=1000)))
        counted = {
            (each.name, label)
            for kind in desk.registry.collect()
            for each in kind.samples
            for label in ("", *each.labels)
        }

    named = [series for rule in _alerts() for series in _SERIES.findall(rule["expr"])]
    wanted = {(name, label) for name, chosen in named for label in ("", *re.findall(r"(\w+)=", chosen))}
    assert {name for name, _ in wanted} >= {"reprise_workers", "reprise_event_loop_lag_seconds_bucket"}
    assert set() == wanted - counted


def test_every_alert_has_an_entry_in_the_runbook() -> None:
    """Whoever is woken up reads what it means and what to do; nothing is described that does not exist."""
    runbook = Path("deploy/README.md").read_text().partition("## Alerts")[2]
    described = re.findall(r"^\| `(\w+)` \|", runbook, re.MULTILINE)
    assert [rule["alert"] for rule in _alerts()] == described
