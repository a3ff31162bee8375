"""`python -m inference.models.small DIR`: one small model, built where it is wanted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from inference.models.small import FAMILIES, build


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a small model of the true architecture with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=sorted(FAMILIES), default="i2vgen-xl")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = build(arguments.folder, arguments.seed, family=arguments.family)
    sys.stdout.write(f"{folder}: a small {arguments.family} with random weights\n")


if __name__ == "__main__":
    main()
