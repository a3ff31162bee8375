"""The worker that gateways of the bench ask: the scripted one of the gateway's tests, each of whose steps lasts."""

from __future__ import annotations

import asyncio
import signal

import click
import uvloop

from cache.fair import SHARE
from cache.process import keep_large_buffers
from cache.settings import CacheSettings, ProcessSettings, load
from tests.gateway.worker import COSTS, open_worker

STEPS = 2  # of a generation
_SIGN_OF_LIFE = 1.0  # seconds; a worker that says nothing for long is taken for a hung one


async def _serve(cache: CacheSettings, port: int, step_seconds: float, line: int | None) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    async with open_worker(cache, port=port) as worker:
        worker.step_seconds = step_seconds
        worker.inlines = True
        worker.speaks_every = _SIGN_OF_LIFE
        if line is not None:
            worker.line_up(line, share=SHARE)
            worker.costs = dict.fromkeys(COSTS, 0.0) | {"denoise": STEPS * step_seconds}  # what it really takes
        await told.wait()


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("port", type=int)
@click.argument("step_seconds", type=float)
@click.option("--line", type=int, default=None, help="One generation at a time, and so many may wait for it.")
def main(config: str, port: int, step_seconds: float, line: int | None) -> None:
    """Serve until told to stop."""
    keep_large_buffers()
    settings = load(ProcessSettings, config, others=frozenset({"gateway", "worker"}))
    uvloop.run(_serve(settings.cache, port, step_seconds, line))


if __name__ == "__main__":
    main()
