"""`python -m tests.chaos.another MODULE ...`: a program of ours as its next version, with which nothing is shared.

The bump is made here, before anything that has taken the number over is imported.
"""

from __future__ import annotations

import runpy
import sys

import cache.encoding

VERSION = cache.encoding.VERSION + 1


def main() -> None:
    cache.encoding.VERSION, cache.encoding.SCHEMA = VERSION, f"reprise/{VERSION}"
    module, *sys.argv[1:] = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
