"""What a deployment serves now: the models, their active revisions, and the workers that have them.

The gateway says who its workers are. Which revision each has is for the workers to say, so those that cannot be reached
from here are told without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import grpc

from cache.description import Description
from gateway.client import Client
from reprise.v1.inference_pb2 import DescribeRequest, DescribeResponse
from reprise.v1.inference_pb2_grpc import InferenceServiceStub

_PATIENCE = 5.0  # seconds for one worker's answer


@dataclass(frozen=True)
class Served:
    """A model that healthy workers have."""

    active: str  # its revision for new requests; empty: no worker that has it said so
    workers: Mapping[str, str]  # address -> revision there; empty: it did not say
    description: Description | None  # of the active revision; None: no worker told it


async def served(client: Client, pinned: Mapping[str, str]) -> dict[str, Served]:
    """By model. `pinned` are the gateways' own revisions of models. Raises AioRpcError where no gateway answers."""
    workers = sorted((await client.stats()).workers, key=lambda worker: worker.address)
    healthy = [worker for worker in workers if worker.healthy]
    answers = await asyncio.gather(*(_describe(worker.address) for worker in healthy))
    found: dict[str, Served] = {}
    for model in sorted({model for worker in healthy for model in worker.models}):
        having = [(each, answer) for each, answer in zip(healthy, answers, strict=True) if model in each.models]
        told = {each.address: (started_at, models[model]) for each, (started_at, models) in having if model in models}
        newest = max(((started_at, each.revision) for started_at, each in told.values()), default=(0.0, ""))[1]
        active = pinned.get(model, newest)
        found[model] = Served(
            active=active,
            workers={
                each.address: told[each.address][1].revision if each.address in told else "" for each, _ in having
            },
            description=next((each for _, each in told.values() if each.revision == active), None),
        )
    return found


async def _describe(address: str) -> tuple[float, dict[str, Description]]:
    """When a worker started, and the description of each of its models; of none where it does not answer."""
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            answer: DescribeResponse = await InferenceServiceStub(channel).Describe(
                DescribeRequest(), timeout=_PATIENCE
            )
            descriptions = [Description.from_bytes(content) for content in answer.descriptions]
        except (grpc.aio.AioRpcError, ValueError):
            return 0.0, {}
    return answer.started_at, {each.model: each for each in descriptions}
