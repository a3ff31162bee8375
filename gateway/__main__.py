"""`python -m gateway --config FILE`: one gateway process."""

from __future__ import annotations

import sys

import click
import uvloop

from cache.outlet import speak_freely
from cache.process import keep_large_buffers
from cache.settings import SettingsError, load
from gateway.identity import KeyFileError
from gateway.serve import serve
from gateway.settings import OTHERS, GatewaySettings


@click.command()
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="YAML file; the environment overrides it.")
def main(config: str | None) -> None:
    """Run a gateway until it is told to stop."""
    keep_large_buffers()
    speak_freely()
    try:
        settings = load(GatewaySettings, config, others=OTHERS)
        uvloop.run(serve(settings))
    except (SettingsError, KeyFileError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
