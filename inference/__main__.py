"""`python -m inference --config FILE`: one worker process."""

from __future__ import annotations

import os
import sys

import click
import uvloop

from cache.outlet import speak_freely
from cache.process import keep_large_buffers
from cache.settings import SettingsError, load
from inference.settings import OTHERS, WorkerSettings


@click.command()
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="YAML file; the environment overrides it.")
def main(config: str | None) -> None:
    """Run a worker until it is told to stop."""
    keep_large_buffers()
    speak_freely()
    # Torch's threads wait for each other many times in every stage. By default they do so awake for long, and where
    # others use the processor too, each wait lasts until these are pushed aside: a sentence of 0.15 s has taken ten.
    # Asleep at once they would be a fifth slower where nobody else is.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        settings = load(WorkerSettings, config, others=OTHERS)
        from inference.worker import serve  # torch comes with it, which is slow to import and useless to a typing error

        uvloop.run(serve(settings))
    except SettingsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
