"""The cache under a pipeline of diffusers that knows nothing of it, in three lines.

    python deploy/examples/three_lines.py [MODEL] [--store FOLDER] [--device cuda]

MODEL is a folder or hub id of an I2VGen-XL; without one a small model of the true architecture with random weights is
built. Five prompts for one picture: the picture is encoded once, and every result equals the plain pipeline's bit for
bit. Then what was made of the picture is forgotten, by condition, and encoded again. Run it twice with one --store:
the second process encodes nothing but what was forgotten.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import I2VGenXLPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

from inference.models import small

PROMPTS = (
    "a slow camera pan to the left",
    "a slow camera pan to the right",
    "leaves fall, soft light",
    "a gentle zoom, shallow focus",
    "the wind picks up",
)
SIDE, FRAMES, STEPS, SEED = 64, 3, 2, 7


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        source = arguments.model or str(small.build(Path(scratch) / "small"))
        pipeline = I2VGenXLPipeline.from_pretrained(source).to(arguments.device)
        pipeline.set_progress_bar_config(disable=True)
        picture = Image.linear_gradient("L").convert("RGB")
        plain = [generate(pipeline, prompt, picture) for prompt in PROMPTS]
        store = arguments.store or Path(scratch) / "store"

        # The three lines. The pipeline is used as before.
        from cache.alone import Cache
        from inference.memo import remember

        memo = remember(pipeline, Cache.open(store))

        videos = [generate(pipeline, prompt, picture) for prompt in PROMPTS]
        say(f"equal to the plain pipeline: {all(map(torch.equal, plain, videos))}")
        for stage, counts in memo.counts.items():
            say(f"{stage}: run {counts.run}, reused {counts.reused}")

        receipt = memo.invalidate(stage="vae.encode")
        say(f"invalidated: {', '.join(f'{gone.entries} in {tier}' for tier, gone in sorted(receipt.tiers.items()))}")
        before = memo.counts["vae.encode"].run
        again = generate(pipeline, PROMPTS[0], picture)
        say(f"vae.encode: run {memo.counts['vae.encode'].run - before} more")
        say(f"equal to the plain pipeline: {torch.equal(plain[0], again)}")
        memo.cache.close()  # stores what is still on its way; happens at exit too


def generate(pipeline: Any, prompt: str, picture: Image.Image) -> torch.Tensor:
    """The frames of a video, as numbers; the library draws from the global generator and from the one it is given."""
    torch.manual_seed(SEED)
    frames: torch.Tensor = pipeline(
        prompt=prompt,
        image=picture,
        height=SIDE,
        width=SIDE,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        clip_skip=None,  # its default fails with transformers since 5.6
        generator=torch.Generator().manual_seed(SEED),
        output_type="pt",
    ).frames
    return frames


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default="", help="folder or hub id of an I2VGen-XL")
    parser.add_argument("--store", type=Path, help="folder that keeps what was encoded; a temporary one if not given")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    logging.captureWarnings(True)
    for library_logging in (diffusers_logging, transformers_logging):
        library_logging.set_verbosity_error()
        library_logging.disable_progress_bar()
    main()
