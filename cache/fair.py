"""Fair: what one of many may hold of what there is a bounded amount of.

Places that nobody can be asked to leave are shared by `may_take`: everybody may have the same share of what the others
leave. Who is alone has that share of all places, so there is always room for the first of somebody else; several who
want all they can get come to hold equally many: with a share of 0.8, one of them 80 %, two 44 % each, three 31 %.
Nobody is counted beforehand, and nothing is remembered.

Room that can be taken back is shared by `EqualParts`: who is alone has all of it, and loses what is over an equal part
to others as they come.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
SHARE = 0.8


def may_take(held: int, others: int, *, places: int, share: float) -> bool:
    """Whether somebody who holds `held` places may take one more while others hold `others`.

    Rounded up, so that few places are all for who is alone. Never more than there are.
    """
    return held < math.ceil(share * (places - others))


class EqualParts(Generic[K]):
    """Who holds how much of a bounded map. `owner` says whose an entry is; None: nobody's, and never protected."""

    def __init__(self, owner: Callable[[K], Hashable | None], *, max_bytes: int, max_entries: int | None) -> None:
        self._owner = owner
        self.max_bytes = max_bytes
        self._max_entries = max_entries
        self._bytes: Counter[Hashable] = Counter()
        self._entries: Counter[Hashable] = Counter()

    def add(self, key: K, weight: int) -> None:
        if (owner := self._owner(key)) is not None:
            self._bytes[owner] += weight
            self._entries[owner] += 1

    def remove(self, key: K, weight: int) -> None:
        if (owner := self._owner(key)) is not None:
            self._bytes[owner] -= weight
            self._entries[owner] -= 1
            if not self._entries[owner]:
                del self._bytes[owner], self._entries[owner]

    def guard(self, newcomer: K) -> Callable[[K, int], bool]:
        """Whether an entry of this weight may leave for the newcomer. Asked of one after the other, and those that may
        are taken to leave: what others have within an equal part stays, and so does what they keep of more than that.
        """
        mine = self._owner(newcomer)
        sizes, counts = self._bytes.copy(), self._entries.copy()
        owners = len(sizes.keys() | ({mine} if mine is not None else set()))

        def may_leave(key: K, weight: int) -> bool:
            owner = self._owner(key)
            if owner is None or owner == mine:
                return True
            over = sizes[owner] * owners > self.max_bytes
            if self._max_entries is not None:
                over = over or counts[owner] * owners > self._max_entries
            sizes[owner] -= weight if over else 0
            counts[owner] -= over
            return over

        return may_leave
