"""`python -m inference.models.small DIR --family NAME`: small models, built where they are wanted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from inference.models.small import FAMILIES, build


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a small model of the true architecture with random weights.")
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument(
        "--family", dest="families", choices=sorted(FAMILIES), action="append", help="once for each DIR"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    families = arguments.families or ["i2vgen-xl"]
    if len(families) != len(arguments.folders):
        parser.error("give --family once for each DIR")
    for folder, family in zip(arguments.folders, families, strict=True):
        build(folder, arguments.seed, family=family)
        sys.stdout.write(f"{folder}: a small {family} with random weights\n")


if __name__ == "__main__":
    main()
