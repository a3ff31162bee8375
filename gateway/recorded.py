"""Recorded: what a deployment knows of its traffic, as figures for sizing: from access records, from its gateways, from
its models' descriptions. Everything in bytes and seconds.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from prometheus_client import CollectorRegistry

from cache.accesses import Access
from cache.build import build_tiers
from cache.catalogue import Catalogue
from cache.description import Description, Scope
from cache.keys import Principal, namespace
from cache.settings import CacheSettings
from gateway.sizing import HOUR, Figure, Source
from reprise.v1.cache_pb2 import SavingsResponse, StatsResponse

_SHORTEST = 60.0  # seconds that a rate is told over at least
_PATIENCE = 5.0  # seconds for all of a look into the catalogue


@dataclass(slots=True)
class Stay:
    """An entry that is there, from its first access on, as long as none comes too late."""

    first: float
    last: float
    size: int
    cost: float
    accesses: int = 1


def stays(accesses: Iterable[Access], ttl: float) -> list[Stay]:
    """In a memory without end, whose entries are gone after `ttl` seconds without access. Accesses are in order."""
    found: list[Stay] = []
    latest: dict[str, Stay] = {}
    for access in accesses:
        stay = latest.get(access.key)
        if stay is not None and access.at - stay.last < ttl:
            stay.last = access.at
            stay.accesses += 1
        else:
            stay = latest[access.key] = Stay(access.at, access.at, access.size, access.cost)
            found.append(stay)
    return found


def of_results(accesses: Sequence[Access], ttl: float) -> dict[str, Figure]:
    """What gateways noted of results; nothing if that is nothing."""
    if not accesses:
        return {}
    where = f"access records, {len(accesses):,} of results"
    found = stays(accesses, ttl)
    again = [stay for stay in found if stay.accesses > 1]
    told = {
        "rate": _busiest([access.at for access in accesses], accesses) / HOUR,
        "repeated": 1 - len(found) / len(accesses),
        "again": len(again) / len(found),
        "result_bytes": fmean(stay.size for stay in found),
        "largest_bytes": max(stay.size for stay in found),
        "device_seconds": fmean(stay.cost for stay in found),
    }
    if again:
        told["span"] = fmean(stay.last - stay.first for stay in again)
    return _figures(told, where)


def of_encodings(accesses: Sequence[Access], ttl: float) -> dict[str, Figure]:
    """What workers noted of outputs that their pools are for; nothing if that is nothing."""
    if not accesses:
        return {}
    found = stays(accesses, ttl)
    told = {
        "encodings": _busiest([stay.first for stay in found], accesses),
        "session": fmean(stay.last - stay.first for stay in found),
        "encoding_bytes": fmean(stay.size for stay in found),
        "largest_encoding": max(stay.size for stay in found),
    }
    return _figures(told, f"access records, {len(accesses):,} of encodings")


def of_gateways(
    answers: Sequence[tuple[StatsResponse, SavingsResponse]], models: Iterable[Description] = ()
) -> dict[str, Figure]:
    """What gateways have counted since they started. What none of them has counted yet is left out."""
    asked = sum(outcome.count for stats, _ in answers for outcome in stats.requests)
    generations = sum(stats.generations for stats, _ in answers)
    workers = {worker.address: worker for stats, _ in answers for worker in stats.workers if worker.healthy}
    pooled = sum(worker.pool_entries for worker in workers.values())
    told: dict[str, float] = {"workers": len(workers)} if workers else {}
    if asked:
        told["rate"] = sum(
            sum(outcome.count for outcome in stats.requests) / max(stats.uptime_seconds, _SHORTEST)
            for stats, _ in answers
        )
        told["repeated"] = max(1 - generations / asked, 0.0)
    if generations:
        told["device_seconds"] = sum(stats.device_seconds_spent for stats, _ in answers) / generations
    if pooled:
        told["encoding_bytes"] = sum(worker.pool_bytes for worker in workers.values()) / pooled
    encode = {(model.model, model.affinity) for model in models}
    encoded = [(row.ran, saved) for _, saved in answers for row in saved.rows if (row.model, row.stage) in encode]
    if encoded:
        told["pictures"] = sum(ran / max(saved.uptime_seconds, _SHORTEST) * HOUR for ran, saved in encoded)
    return _figures(told, "gateways, since they started")


def of_models(models: Sequence[Description]) -> dict[str, Figure]:
    """The longest TTLs of results, and of encodings: what pools are for, and what requests go to one worker for."""
    results = [model.final.ttl for model in models]
    encodings = [each.ttl for model in models for each in model.stages if each.pooled or each.name == model.affinity]
    told = {"result_ttl": results, "encoding_ttl": encodings}
    names = ", ".join(sorted(model.model for model in models))
    return {name: Figure(max(ttls), Source.DESCRIBED, names) for name, ttls in told.items() if ttls}


async def catalogue(settings: CacheSettings) -> list[Description]:
    """The active descriptions of a deployment; none where it has no durable tier. Raises TierError and TimeoutError."""
    secret = settings.secret_bytes
    tiers = await asyncio.to_thread(build_tiers, settings, CollectorRegistry())
    async with tiers:
        if tiers.objects is None:
            return []
        shared = namespace(secret, Scope.SHARED, Principal(""))
        known = Catalogue(tiers.objects, tiers.below_memory, shared)
        async with asyncio.timeout(_PATIENCE):
            found = [await known.active(model) for model in await known.models()]
    return [description for description in found if description is not None]


def _busiest(times: Sequence[float], accesses: Sequence[Access]) -> float:
    """The most in an hour; where less than that was recorded, as many as an hour of it would have. In order of time."""
    if (recorded := accesses[-1].at - accesses[0].at) < HOUR:
        return len(times) * HOUR / max(recorded, _SHORTEST)
    return max(bisect_left(times, start + HOUR) - number for number, start in enumerate(times))


def _figures(told: Mapping[str, float], where: str) -> dict[str, Figure]:
    return {name: Figure(value, Source.RECORDED, where) for name, value in told.items()}
