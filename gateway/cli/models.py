"""`reprise models`: what a model is, before a worker loads it. Looked at in a process of its own, which has torch."""

import importlib.util
import subprocess
import sys

import click


@click.group()
def models() -> None:
    """Look at models before a worker loads them."""


@models.command()
@click.argument("source")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="[default: the worker's]")
def check(source: str, device: str, dtype: str | None) -> None:
    """Say what SOURCE is: a folder, or OWNER/NAME[@REVISION] of the hub. Fails if a worker here could not serve it."""
    if not importlib.util.find_spec("torch"):
        raise click.ClickException('PyTorch is not installed here: pip install "reprise[inference]"')
    options = ["--device", device, *(["--dtype", dtype] if dtype else [])]
    command = [sys.executable, "-P", "-m", "inference.models", "check", *options, "--", source]
    sys.exit(subprocess.run(command, check=False).returncode)  # noqa: S603  # our own program, no shell
