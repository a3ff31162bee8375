"""Processes beside the world's own: each is like one of these, but for what a case wants of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from gateway.stack import Part, Stack
from gateway.stack.ports import LOOPBACK, free_port
from tests.chaos.world import GATEWAYS, World
from tests.servers import leashed

Door = Callable[..., str]


def one_more(
    world: World,
    like: str,
    name: str,
    *,
    port: int | None = None,
    metrics: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Part:
    """It runs where the one that it is like does, and so has its links."""
    part, port = world.parts[like], port or free_port()
    kind = "GATEWAY" if like in GATEWAYS else "WORKER"
    own = {
        f"REPRISE_{kind}__NAME": name,
        f"REPRISE_{kind}__PORT": str(port),
        "REPRISE_TELEMETRY__METRICS_PORT": str(metrics),
    }
    if like in GATEWAYS:
        own["REPRISE_GATEWAY__HTTP_PORT"] = str(free_port())
    return replace(
        part,
        name=name,
        address=f"{LOOPBACK}:{port}",
        log=part.log.with_name(f"{name}.log"),
        environment={**part.environment, **own, **(environment or {})},
        prepare=(),
        grace=0.0,
    )


@asynccontextmanager
async def beside(world: World, *parts: Part) -> AsyncIterator[tuple[Stack, Door]]:
    """These, up and ready, and where they are by name; killed at the end."""
    with leashed(world.stack.data / parts[0].name) as stack:
        await asyncio.to_thread(stack.up, parts)
        addresses = {part.name: part.address for part in parts}
        try:
            yield stack, lambda *names: ",".join(addresses[name] for name in names)
        finally:
            for part in reversed(parts):
                await asyncio.to_thread(stack.part(part.name).kill)
            await asyncio.to_thread(stack.down)
