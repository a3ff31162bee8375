"""Fair: how many of a bounded number of places one of many may hold.

Everybody may have the same share of what the others leave. Who is alone has that share of all places, so there is
always room for the first of somebody else; several who want all they can get come to hold equally many: with a share of
0.8, one of them 80 %, two 44 % each, three 31 %. Nobody is counted beforehand, and nothing is remembered.
"""

from __future__ import annotations

import math

SHARE = 0.8


def may_take(held: int, others: int, *, places: int, share: float) -> bool:
    """Whether somebody who holds `held` places may take one more while others hold `others`.

    Rounded up, so that few places are all for who is alone. Never more than there are.
    """
    return held < math.ceil(share * (places - others))
