"""`python -m tests.chaos.poisoned MODULE ...`: a worker with a fault in native code that one request runs into.

The process aborts on its device's thread, in the middle of a stage: nothing can be caught, told or cleaned up. Which
request it is, the environment says by its seed.
"""

from __future__ import annotations

import os
import runpy
import sys

from inference.chain import Go
from inference.models.base import Output

SEED = "CHAOS_POISONOUS_SEED"


def main() -> None:
    seed, lead = int(os.environ[SEED]), Go._lead

    def lead_or_die(go: Go, *args: object) -> Output:
        if go._plan.parameters.get("seed") == seed:
            os.abort()
        return lead(go, *args)  # type: ignore[arg-type]  # whatever it takes

    Go._lead = lead_or_die  # type: ignore[method-assign,assignment]
    module, *sys.argv[1:] = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
