"""Pool: outputs of stages kept in memory, so that the next run that needs one finds it there.

What is pooled is also in the tiers, so letting go of it costs time and nothing else. An entry's bytes are reserved
before they are used: while it is on its way it has its room, and nobody finds it. A leased entry stays until it is
released; a pinned one is as if leased by its pin. Belongs to one event loop; it counts memory and moves none
(`stock.py` does).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from cache.bans import Bans
from cache.bounded import Bounded, Policy, Removal
from cache.clock import steady
from cache.keys import Address
from cache.record import Record
from cache.sweep import Gone, sweep
from inference.models.base import Tensors


@dataclass(frozen=True, slots=True)
class Hot:
    """An output in memory, and what is known of it. Its tensors are read by many runs and changed by none."""

    tensors: Tensors  # empty while they are on their way
    weight: int  # bytes it keeps allocated
    record: Record


class Place:
    """Room for an entry that is on its way. Use as a context manager, which gives it back unless it was filled.

    `evicted` are the entries that had to leave for it. Their bytes are free once nobody holds their tensors.
    """

    def __init__(self, pool: Pool, hot: Hot, evicted: list[Hot]) -> None:
        self.address = hot.record.address
        self.evicted = evicted
        self._pool = pool
        self._hot = hot
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._pool._give_back(self.address)

    def fill(self, tensors: Tensors) -> None:
        """The entry is there from now on. Raises ValueError the second time."""
        if not self._open:
            raise ValueError("a place is filled once")
        self._open = False
        self._hot.tensors.update(tensors)
        self._pool._arrived(self.address)


class Pool:
    """See the module."""

    def __init__(
        self,
        *,
        max_bytes: int,
        max_entries: int | None = None,
        max_share: float = 1.0,
        policy: Policy[Address] | None = None,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._entries: Bounded[Address, Hot] = Bounded(
            max_bytes=max_bytes,
            max_entries=max_entries,
            max_share=max_share,
            policy=policy,
            on_removal=self._note_removal,
        )
        self._clock = clock
        self._evicted: list[Hot] = []  # of the call under way
        self._pins: set[Address] = set()  # wished for
        self._pinned: set[Address] = set()  # of these, the ones whose entry the pin has leased

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, address: Address) -> bool:
        """Whether an output is here, or on its way."""
        return address in self._entries

    @property
    def bytes(self) -> int:
        """Held, or promised to what is on its way."""
        return self._entries.bytes

    @property
    def max_bytes(self) -> int:
        return self._entries.max_bytes

    @property
    def evictions(self) -> int:
        """Entries that left for want of room."""
        return self._entries.removals[Removal.SIZE]

    @property
    def pinned(self) -> int:
        """Entries that are here because they are pinned."""
        return len(self._pinned)

    @property
    def missing(self) -> set[Address]:
        """What is pinned, and not here."""
        return self._pins - self._pinned

    def reserve(self, record: Record, weight: int) -> Place | None:
        """Room for this output, others having left for it, an earlier copy too. None if there is none, or a copy is
        leased or on its way.
        """
        address, hot = record.address, Hot({}, weight, record)
        self._forget_old_pins()
        self._loosen(address)
        pinned = address in self._pins
        self._evicted = []
        kept = self._entries.put(
            address,
            hot,
            weight=weight,
            now=self._clock(),
            ttl=float("inf") if pinned else record.ttl,
            hard_expiry=record.expires_at,
            cost=record.total_device_seconds,
        )
        evicted, self._evicted = self._evicted, []
        if not kept or self._entries.lease(address, self._clock()) is None:  # it may be too old already
            return None
        return Place(self, hot, evicted)

    def put(self, hot: Hot) -> bool:
        """Keep an output that is in memory already; make room by letting go of others. False if there is none."""
        place = self.reserve(hot.record, hot.weight)
        if place is not None:
            place.fill(hot.tensors)
        return place is not None

    def peek(self, address: Address) -> Hot | None:
        """The output at an address; nothing is leased, and it gets no younger."""
        return _arrived(self._entries.peek(address, self._clock()))

    def lease(self, address: Address) -> Hot | None:
        """The output at an address, which stays until it is released as often as it was leased."""
        if self.peek(address) is None:
            return None
        return self._entries.lease(address, self._clock())

    def release(self, address: Address) -> None:
        self._entries.release(address)
        if address in self.missing:
            self._hold(address)

    def pin(self, address: Address) -> None:
        """Have the entry at an address stay once it is here, up to its hard age, however seldom it is used."""
        self._pins.add(address)
        self._hold(address)

    def unpin(self, address: Address) -> None:
        self._pins.discard(address)
        self._loosen(address)

    def take(self, address: Address) -> Hot | None:
        """Let one entry go, and have it. None if it is not here, or is leased."""
        hot = self.peek(address)
        return hot if hot is not None and self._entries.delete(address) else None

    def resize(self, max_bytes: int) -> list[Hot]:
        """Another bound from now on; what has to leave for it, pins and what is leased excepted."""
        self._evicted = []
        self._entries.resize(max_bytes)
        evicted, self._evicted = self._evicted, []
        return evicted

    async def let_go(self, bans: Bans) -> Gone:
        """Let go of what is banned. What is leased stays until it is released; whoever leases asks about bans."""
        for address, hot in self._entries.items():
            if bans.forbid(hot.record):
                self._loosen(address)
        return await sweep(self._entries, lambda _, hot: bans.forbid(hot.record))

    def clear(self) -> list[Hot]:
        """Let go of everything that no run has leased, pins and all; what it was. Pins are kept in mind."""
        for address in set(self._pinned):
            self._loosen(address)
        self._entries.expire(self._clock())
        return [hot for address, _ in self._entries.items() if (hot := self.take(address)) is not None]

    def _note_removal(self, address: Address, hot: Hot, cause: Removal) -> None:
        if cause is Removal.SIZE:
            self._evicted.append(hot)

    def _give_back(self, address: Address) -> None:
        self._entries.release(address)
        self._entries.delete(address)

    def _arrived(self, address: Address) -> None:
        if address in self._pins:
            self._pinned.add(address)  # what was the place's lease is the pin's from now on
        else:
            self._entries.release(address)

    def _hold(self, address: Address) -> None:
        """Lease an entry for its pin, if it can be had. It is put anew, so that only its hard age ends it."""
        if address not in self._pinned and (hot := self.take(address)) is not None:
            self.put(hot)

    def _loosen(self, address: Address) -> None:
        if address in self._pinned:
            self._pinned.discard(address)
            self._entries.release(address)

    def _forget_old_pins(self) -> None:
        now = self._clock()
        for address in [address for address in self._pinned if self._entries.peek(address, now) is None]:
            self._loosen(address)
            self._entries.delete(address)


def _arrived(hot: Hot | None) -> Hot | None:
    return hot if hot is not None and hot.tensors else None


def compact(tensors: Tensors) -> tuple[Tensors, int]:
    """These tensors contiguous and with no more storage than they need, and the bytes that keeping them costs.

    A view of one row keeps the whole matrix allocated, so views are cloned. Works with the device.
    """
    own = {name: _compact(tensor) for name, tensor in tensors.items()}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in own.values()}
    return own, sum(storages.values())


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
