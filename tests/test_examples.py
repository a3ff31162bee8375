"""The examples in deploy/ run as they stand, and show what they claim."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> list[str]:
    """What an example says, line by line."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout.splitlines()


def test_three_lines_put_the_cache_under_a_pipeline(tmp_path: Path) -> None:
    """One picture is encoded once for five prompts, then once more after it was invalidated; with equal bits. A second
    process over the same store encodes nothing but what was invalidated.
    """
    example = ("deploy/examples/three_lines.py", "--store", str(tmp_path))

    first, second = run(*example), run(*example)

    equal, again = "equal to the plain pipeline: True", ["invalidated: 1 in l1, 1 in l3", "vae.encode: run 1 more"]
    texts, pictures = "text_encoder.forward: run {}, reused {}", "{}: run {}, reused {}"
    assert [
        equal,
        texts.format(6, 4),
        pictures.format("image_encoder.forward", 1, 4),
        pictures.format("vae.encode", 1, 4),
        *again,
        equal,
    ] == first
    assert [
        equal,
        texts.format(0, 10),
        pictures.format("image_encoder.forward", 0, 5),
        pictures.format("vae.encode", 0, 5),
        *again,
        equal,
    ] == second
