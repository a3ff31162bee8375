"""`reprise gc` as an operator runs it beside a deployment."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cache.bans import Ban, Bans
from cache.condition import Condition
from cache.objects import ObjectsStore
from cache.orders import IN_FORCE, Orders
from cache.settings import CacheSettings
from cache.switches import Switches
from gateway.cli import main
from tests.gateway.world import SECRET, World, open_world, outcome, picture
from tests.servers import S3


def plain(settings: CacheSettings) -> dict[str, Any]:
    """The same settings as a file holds them."""
    fields = settings.model_dump(mode="json")
    fields["secret"] = settings.secret.get_secret_value()
    fields["l2"]["url"] = settings.l2.url.get_secret_value()
    fields["l3"]["secret_key"] = settings.l3.secret_key.get_secret_value()
    return fields


async def gc(folder: Path, settings: CacheSettings | dict[str, Any], *options: object) -> Result:
    file = folder / "reprise.yaml"
    cache = plain(settings) if isinstance(settings, CacheSettings) else settings
    file.write_text(yaml.safe_dump({"cache": cache, "worker": {"port": 1}}))
    return await asyncio.to_thread(CliRunner().invoke, main, ["gc", "--config", str(file), *map(str, options)])


def grow_old(objects: Path, seconds: float) -> None:
    """Everything in the folder was written so long ago."""
    for file in objects.rglob("*"):
        if file.is_file():
            os.utime(file, (time.time() - seconds,) * 2)


def count(objects: Path, kind: str) -> int:
    return sum(file.is_file() for file in (objects / kind).rglob("*"))


async def test_a_sweep_beside_a_deployment_loses_nothing_that_lives(world: World, tmp_path: Path) -> None:
    """What was generated and uploaded stays, blobs that lost their records go, and the numbers say so."""
    worker = await world.worker()
    await worker.publish()
    desk = await world.desk(worker, cache=world.only("l3"))
    objects = tmp_path / "objects"
    uploaded = await desk.client.upload(picture(7))
    await desk.stored(await desk.animate())
    await desk.stored(await desk.animate("a dog"))
    before = {kind: count(objects, kind) for kind in "rb"}

    def lose_a_record() -> None:
        files = [file for file in (objects / "r").rglob("*") if file.is_file()]
        file = next(file for file in files if b"\xa5stage\xa7denoise" in file.read_bytes())
        file.unlink()
        grow_old(objects, 4000.0)

    await asyncio.to_thread(lose_a_record)
    would = await gc(tmp_path, world.cache, "--dry-run")
    assert (0, before["b"]) == (would.exit_code, count(objects, "b"))
    assert any(line.split() == ["would", "go", "entries", "MiB"] for line in would.stdout.splitlines())
    done = await gc(tmp_path, world.cache)

    assert 0 == done.exit_code
    rows = {" ".join(words[:-2]): int(words[-2]) for line in done.stdout.splitlines()[1:] if (words := line.split())}
    assert {
        "records past their age": 0,
        "records beyond what a namespace may keep": 0,
        "damaged records, and those that another version left long ago": 0,
        "blobs that no record names": 1,
        "orders that are over": 0,
        "marks of schedules": 0,
        "all together": 1,
    } == {name: number for name, number in rows.items() if "stays" not in name}
    assert before["r"] - 1 + before["b"] - 1 == sum(number for name, number in rows.items() if "stays" in name)
    assert before["b"] - 1 == count(objects, "b")
    held = await gc(tmp_path, world.cache, "--dry-run", "--most", "0")
    assert [str(before["r"] - 1)] == [
        line.split()[-2] for line in held.stdout.splitlines() if line.startswith("records beyond")
    ]
    other = await world.desk(worker, cache=world.only("l3"))
    assert ["hit from L3", "hit from L3"] == [outcome(await other.animate(prompt)) for prompt in ("a cat", "a dog")]
    assert "miss" == outcome(await other.animate(image_digest=uploaded.digest))
    await worker.die()
    last = await world.desk(cache=world.only("l3"))
    assert "hit from L3" == outcome(await last.animate())


async def test_a_sweep_of_a_bucket(redis_url: str, s3: S3, tmp_path: Path) -> None:
    """With the credentials of the file. What was just written stays."""
    async with open_world(redis_url, s3) as world:
        desk = await world.desk(await world.worker())
        await desk.stored(await desk.animate())
        done = await gc(tmp_path, world.cache)
    assert 0 == done.exit_code
    assert any(line.split()[:3] == ["all", "together", "0"] for line in done.stdout.splitlines())


async def test_orders_that_are_over_go_under_the_secret_of_the_file(tmp_path: Path) -> None:
    """Those of this deployment, and none of another."""
    folder = tmp_path / "objects"
    store = await asyncio.to_thread(ObjectsStore.connect, f"file://{folder}")
    for secret in (bytes.fromhex(SECRET), bytes([7] * 32)):
        orders = Orders(store, None, process="p", secret=secret, bans=Bans(), switches=Switches())
        await orders.give(Ban(time.time() - IN_FORCE - 4000.0, Condition(model="small")))
    await asyncio.to_thread(grow_old, folder, 4000.0)
    settings = {"secret": SECRET, "l2": {"enabled": False}, "l3": {"url": f"file://{folder}"}}

    done = await gc(tmp_path, settings)

    assert (0, 1) == (done.exit_code, count(folder, "o"))
    assert any(line.split()[:5] == ["orders", "that", "are", "over", "1"] for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("settings", "options", "code", "said"),
    [
        ({"l3": {"enabled": False}}, (), 1, "cache.l3 is not enabled"),
        ({"l3": {"endpoint": "http://127.0.0.1:9", "access_key": "k"}}, (), 1, "the object store failed"),
        ({"l3": {"enabled": "perhaps"}}, (), 1, "cache.l3.enabled"),
        ({}, ("--margin", 5), 2, "--margin"),
    ],
    ids=["no store", "no server", "no settings", "no margin"],
)
async def test_what_cannot_be_swept_is_said_in_a_sentence(
    tmp_path: Path, settings: dict[str, Any], options: tuple[object, ...], code: int, said: str
) -> None:
    """One error, no traceback."""
    done = await gc(tmp_path, {"secret": SECRET, **settings}, *options)
    assert (code, True, False) == (done.exit_code, said in done.stderr, "Traceback" in done.stderr)
