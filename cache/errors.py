"""What can go wrong with a tier.

    TierError           the tier failed
    ├── TierTimeout     it did not answer within its budget
    ├── TierUnwritable  it answers, and takes no writes now
    └── TierResting     it was not asked: its breaker is open after failures

Drivers' own exceptions are translated where the driver is called; nothing above a store knows redis or obstore. A
lookup never raises any of these: it says so in its outcome. Writes do raise them.
"""

from __future__ import annotations


class TierError(Exception):
    """The tier failed. The message names the kind of failure, never a key or a value."""


class TierTimeout(TierError):
    """The tier did not answer within its budget."""


class TierUnwritable(TierError):
    """The tier's server answers and takes no writes: its memory or its disk is full, or it is a replica."""


class TierResting(TierError):
    """The tier was not asked, because it failed often lately."""
