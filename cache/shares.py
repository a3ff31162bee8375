"""Shares: what each question has cost of a batch that was asked at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from cache.tier import Lookup

K = TypeVar("K")


def shares(asked: Mapping[K, Sequence[Lookup]]) -> dict[K, list[Lookup]]:
    """The same lookups, each with its part of the time instead of all of it.

    Those of one tier that began at one time are one batch.
    """
    batches = Counter((lookup.tier, lookup.started_ns) for lookups in asked.values() for lookup in lookups)
    return {
        key: [replace(each, seconds=each.seconds / batches[each.tier, each.started_ns], value=None) for each in lookups]
        for key, lookups in asked.items()
    }
