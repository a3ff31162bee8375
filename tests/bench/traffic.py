"""The reference traffic: a third of all requests ask for a dozen lines, the rest for thousands, some far more often
than others. Drawn from a seed: the same numbers every time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import accumulate

FAVOURITES, SHARE = 12, 0.35
OTHERS, EXPONENT = 5_000, 0.9  # how many there are besides, and how steeply they fall (Zipf)
_MEDIAN, _SPREAD = 24_000, 0.6  # bytes of a file, and the deviation of its logarithm


def lines(seed: int = 0) -> Iterator[int]:
    """Numbers of lines, for ever: below `FAVOURITES` the dozen."""
    chance = random.Random(seed)
    weights = list(accumulate(1 / (rank + 1) ** EXPONENT for rank in range(OTHERS)))
    others = range(FAVOURITES, FAVOURITES + OTHERS)
    while True:
        if chance.random() < SHARE:
            yield chance.randrange(FAVOURITES)
        else:
            yield chance.choices(others, cum_weights=weights)[0]


def size_of(line: int) -> int:
    """Bytes of the file that this line becomes."""
    return round(random.Random(f"size {line}").lognormvariate(0.0, _SPREAD) * _MEDIAN)
