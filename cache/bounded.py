"""Bounded: a map that stays within a budget of bytes and a number of entries, and forgets by age.

Three layers that know nothing of each other: this map counts, a policy chooses victims, and whoever owns the map brings
concurrency and clocks. It is synchronous and total: every operation leaves bytes counted equal to bytes held.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from cache.fair import EqualParts

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Removal(StrEnum):
    """Why an entry left."""

    SIZE = "size"
    EXPIRED = "expired"
    REPLACED = "replaced"
    EXPLICIT = "explicit"


class Policy(Protocol[K]):
    """Chooses who leaves when room is needed. Told of every entry's coming, use and going."""

    def admits(self, key: K, weight: int, cost: float, victims: Sequence[K]) -> bool:
        """Whether a newcomer may push these out, who were given in this order. Asked once for every newcomer that fits;
        if there are none, it comes in anyhow.
        """
        ...

    def admitted(self, key: K, weight: int, cost: float) -> None:
        """A new entry of `weight` bytes that would cost `cost` device seconds to have again."""
        ...

    def accessed(self, key: K) -> None: ...

    def removed(self, key: K, cause: Removal) -> None: ...

    def victims(self) -> Iterator[K]:
        """Entries in the order in which to let them go. Nobody comes, is used or goes while this is read."""
        ...


class LeastRecentlyUsed(Policy[K]):
    """Lets go of what was not used for longest."""

    def __init__(self) -> None:
        self._order: OrderedDict[K, None] = OrderedDict()

    def admits(self, key: K, weight: int, cost: float, victims: Sequence[K]) -> bool:
        return True

    def admitted(self, key: K, weight: int, cost: float) -> None:
        self._order[key] = None

    def accessed(self, key: K) -> None:
        self._order.move_to_end(key)

    def removed(self, key: K, cause: Removal) -> None:
        del self._order[key]

    def victims(self) -> Iterator[K]:
        return iter(self._order)


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    weight: int
    ttl: float
    expires: float  # without further access
    hard_expiry: float
    leases: int = 0
    overdue: bool = False  # it expired while it was leased, and goes once it is released


class Bounded(Generic[K, V]):
    """See the module. No entry may take more than `max_share` of the bytes, so that one cannot push out all others.
    With an `owner` of each entry, newcomers do not push out what other owners hold within an equal part (`fair.py`), as
    long as there is anything else to push out. `on_removal` hears of every entry that leaves, after it has left.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_entries: int | None = None,
        max_share: float = 1.0,
        policy: Policy[K] | None = None,
        owner: Callable[[K], Hashable | None] | None = None,
        on_removal: Callable[[K, V, Removal], None] | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self._max_share = max_share
        self.bytes = 0
        self.removals: dict[Removal, int] = dict.fromkeys(Removal, 0)
        self._policy: Policy[K] = policy if policy is not None else LeastRecentlyUsed()
        self._parts = EqualParts(owner, max_bytes=max_bytes, max_entries=max_entries) if owner is not None else None
        self._on_removal = on_removal
        self._entries: dict[K, _Entry[V]] = {}
        self._expiries: list[tuple[float, int, K]] = []  # a heap of guesses; an access makes them too early, never late
        self._count = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    @property
    def max_weight(self) -> int:
        """The most that one entry may weigh."""
        return round(self._max_share * self.max_bytes)

    def items(self) -> list[tuple[K, V]]:
        """What is held now, whatever its age, without that counting as an access."""
        return [(key, entry.value) for key, entry in self._entries.items()]

    def get(self, key: K, now: float) -> V | None:
        """The value, its age started again; None if there is none or it has expired."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now >= entry.expires:
            if not entry.leases:
                self._remove(key, Removal.EXPIRED)
            return None
        entry.expires = min(now + entry.ttl, entry.hard_expiry)
        self._policy.accessed(key)
        return entry.value

    def peek(self, key: K, now: float) -> V | None:
        """What `get` would give, with nothing changed by asking."""
        entry = self._entries.get(key)
        return entry.value if entry is not None and now < entry.expires else None

    def weight_of(self, key: K) -> int:
        """Bytes that an entry is charged; 0 if there is none."""
        entry = self._entries.get(key)
        return 0 if entry is None else entry.weight

    def put(
        self,
        key: K,
        value: V,
        *,
        weight: int,
        now: float,
        ttl: float,
        hard_expiry: float = float("inf"),
        cost: float = 0.0,
    ) -> bool:
        """Keep a value of `weight` bytes. False if there is no room for it even after letting go of all that may go, or
        if it is worth less than what it would push out.
        """
        self.expire(now)
        if key in self._entries:
            if self._entries[key].leases:
                return False
            self._remove(key, Removal.REPLACED)
        if not self._make_room(key, weight, cost):
            return False
        expires = min(now + ttl, hard_expiry)
        self._entries[key] = _Entry(value, weight, ttl, expires, hard_expiry)
        self.bytes += weight
        if self._parts is not None:
            self._parts.add(key, weight)
        self._policy.admitted(key, weight, cost)
        self._guess(key, expires)
        return True

    def lease(self, key: K, now: float) -> V | None:
        """Like `get`, and the entry cannot leave until it is released as often as it was leased."""
        value = self.get(key, now)
        if value is not None:
            self._entries[key].leases += 1
        return value

    def release(self, key: K) -> None:
        entry = self._entries[key]
        if entry.leases == 0:
            raise ValueError("released more often than leased")
        entry.leases -= 1
        if entry.overdue and not entry.leases:
            self._guess(key, entry.expires)

    def delete(self, key: K) -> bool:
        """Let one entry go. False if there is none, or it is leased."""
        entry = self._entries.get(key)
        if entry is None or entry.leases:
            return False
        self._remove(key, Removal.EXPLICIT)
        return True

    def clear(self) -> int:
        """Let go of everything that is not leased; the number of bytes that came free."""
        before = self.bytes
        for key in [key for key, entry in self._entries.items() if not entry.leases]:
            self._remove(key, Removal.EXPLICIT)
        return before - self.bytes

    def resize(self, max_bytes: int) -> None:
        """Another budget from now on. What a smaller one has no room for goes, as far as it is not leased."""
        self.max_bytes = max_bytes
        if self._parts is not None:
            self._parts.max_bytes = max_bytes
        self.shrink(max_bytes)

    def shrink(self, most: int) -> None:
        """Let go of entries until `most` bytes are left, or only what is leased; the budget stays as it is."""
        going, over = list[K](), self.bytes - most
        for key in self._policy.victims():
            if over <= 0:
                break
            if not self._entries[key].leases:
                going.append(key)
                over -= self._entries[key].weight
        for key in going:
            self._remove(key, Removal.SIZE)

    def expire(self, now: float) -> None:
        """Let go of everything too old. Costs little when nothing is."""
        while self._expiries and self._expiries[0][0] <= now:
            _, _, key = heapq.heappop(self._expiries)
            entry = self._entries.get(key)
            if entry is None:
                continue
            if entry.expires > now:
                self._guess(key, entry.expires)
            elif entry.leases:
                entry.overdue = True
            else:
                self._remove(key, Removal.EXPIRED)

    def _make_room(self, key: K, weight: int, cost: float) -> bool:
        if weight > self.max_weight or self.max_entries == 0:
            return False
        victims = self._victims(weight, self._parts.guard(key)) if self._parts is not None else None
        if victims is None:
            victims = self._victims(weight, lambda victim, weight: True)
        if victims is None or not self._policy.admits(key, weight, cost, victims):
            return False
        for victim in victims:
            self._remove(victim, Removal.SIZE)
        return True

    def _victims(self, weight: int, may_leave: Callable[[K, int], bool]) -> list[K] | None:
        """Who has to leave for so many bytes, of those who may. None: that would not be enough."""
        victims: list[K] = []
        free, slots = self.max_bytes - self.bytes, self._free_slots()
        if free >= weight and slots > 0:
            return victims
        for victim in self._policy.victims():
            entry = self._entries[victim]
            if not entry.leases and may_leave(victim, entry.weight):
                victims.append(victim)
                free += entry.weight
                slots += 1
            if free >= weight and slots > 0:
                return victims
        return None

    def _free_slots(self) -> float:
        return float("inf") if self.max_entries is None else self.max_entries - len(self._entries)

    def _remove(self, key: K, cause: Removal) -> None:
        entry = self._entries.pop(key)
        self.bytes -= entry.weight
        if self._parts is not None:
            self._parts.remove(key, entry.weight)
        self._policy.removed(key, cause)
        self.removals[cause] += 1
        if self._on_removal is not None:
            self._on_removal(key, entry.value, cause)

    def _guess(self, key: K, expires: float) -> None:
        self._count += 1
        if expires != float("inf"):
            heapq.heappush(self._expiries, (expires, self._count, key))
        if len(self._expiries) > 2 * len(self._entries) + 64:
            self._expiries = [(entry.expires, n, key) for n, (key, entry) in enumerate(self._entries.items())]
            heapq.heapify(self._expiries)
