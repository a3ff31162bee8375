"""Who finds whose outputs, over two tenants, two users and two sessions, at every tier: who may, and nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from itertools import product
from pathlib import Path

import pytest

from cache.description import Scope
from cache.keys import Address, Principal
from gateway.stack.redis import flush
from inference.retention import decide
from inference.settings import RetentionSettings
from tests.inference.worker_fixtures import Bench, GatedModel, open_bench

PEOPLE = [Principal(*names) for names in product(("acme", "umbrella"), ("ann", "bob"), ("s1", "s2"))]
SHARED_BY: dict[Scope, Callable[[Principal], tuple[str, ...]]] = {
    Scope.SHARED: lambda one: (),
    Scope.TENANT: lambda one: (one.tenant,),
    Scope.USER: lambda one: (one.tenant, one.user),
    Scope.SESSION: lambda one: (one.tenant, one.user, one.session),
}


@pytest.fixture(params=list(Scope))
def scope(request: pytest.FixtureRequest) -> Scope:
    scope: Scope = request.param
    return scope


@pytest.fixture
async def bench(tmp_path: Path, redis_url: str, scope: Scope) -> AsyncIterator[Bench]:
    """A worker whose picture encodings have this scope."""
    model = GatedModel()
    model.description = decide(model.description, {"moments": RetentionSettings(scope=scope)})
    async with open_bench(tmp_path / "l3", model=model, redis=redis_url) as bench:
        yield bench


@pytest.mark.parametrize("tier", ["pool", "l1", "l2", "l3"])
async def test_what_may_be_shared_is_and_nothing_else(bench: Bench, scope: Scope, tier: str, redis_url: str) -> None:
    """The picture is encoded once for each of those who may not share, whatever holds it."""
    served: set[tuple[str, ...]] = set()
    for seed, person in enumerate(PEOPLE):
        forget_above(tier, bench, redis_url)
        group = SHARED_BY[scope](person)

        told = await bench.run(principal=person, seed=seed)

        outcome, source = told.stages["moments"]
        assert ("REUSED" if group in served else "RUN") == outcome
        if outcome == "REUSED":
            # Small outputs lie in their record: from memory they are told as the record's tier.
            assert tier == source.lower()
        served.add(group)
    assert len(served) == bench.model.runs["moments"]


def forget_above(tier: str, bench: Bench, redis_url: str) -> None:
    """Leave what was made in this tier and below it."""
    if tier != "pool":
        bench.shop.pool.clear()
    if tier in ("l2", "l3"):
        bench.tiers.memory.entries.clear()
    if tier == "l3":
        flush(int(redis_url.rpartition(":")[2].partition("/")[0]))


async def test_addresses_of_those_who_may_not_share_name_nothing_of_each_other(bench: Bench, scope: Scope) -> None:
    """The same output has one address for each of them; who knows another's content id still lacks its namespace."""
    addresses = {
        SHARED_BY[scope](person): Address.parse(bench.ask(principal=person).addresses["moments"]) for person in PEOPLE
    }

    assert len(addresses) == len({address.namespace for address in addresses.values()})
    assert 1 == len({address.content_id for address in addresses.values()})
