"""Who gets whose results from a gateway, over two tenants, two users and two sessions: who may, and nobody else."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from cache.description import Description, Scope
from gateway.identity import hash_key
from gateway.stack.redis import flush
from tests.gateway.worker import family
from tests.gateway.world import World, outcome

PEOPLE = [
    (tenant, user, session) for tenant, user, session in product(("acme", "umbrella"), ("ann", "bob"), ("s1", "s2"))
]
PARTS = {Scope.SHARED: 0, Scope.TENANT: 1, Scope.USER: 2, Scope.SESSION: 3}  # of a name that those who share have alike


def with_results_for(scope: Scope) -> Description:
    usual = family()
    *before, final = usual.stages
    return usual.model_copy(update={"stages": (*before, final.model_copy(update={"scope": scope}))})


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("tier", ["L1", "L2", "L3"])
async def test_results_are_shared_with_those_who_may_have_them(
    world: World, tmp_path: Path, redis_url: str, scope: Scope, tier: str
) -> None:
    """From whatever tier: a hit for those of the same scope, a generation for everybody else."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        "\n".join(
            f"- {{key_sha256: {hash_key(tenant + user)!r}, tenant: {tenant}, user: {user}}}"
            for tenant, user in product(("acme", "umbrella"), ("ann", "bob"))
        )
    )
    worker = await world.worker(with_results_for(scope))
    cache = world.cache if tier == "L1" else world.only("l2", "l3")
    desk = await world.desk(worker, cache=cache, identity={"mode": "api_keys", "file": keys})
    served: set[tuple[str, ...]] = set()
    for person in PEOPLE:
        tenant, user, session = person
        client = await desk.connect(api_key=tenant + user, session=session)
        if tier == "L3":
            flush(int(redis_url.rpartition(":")[2].partition("/")[0]))

        media = await desk.follow(client=client).media()
        await client.until_stored(media)

        group = person[: PARTS[scope]]
        assert (f"hit from {tier}" if group in served else "miss") == outcome(media)
        served.add(group)
