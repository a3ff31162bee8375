"""Pool: outputs of stages kept in the device's memory, so that the next run that needs one finds it there.

What is pooled is also in the tiers, so letting go of it costs time and nothing else. A leased entry stays until it is
released. Belongs to one event loop; it counts memory and moves none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cache.bans import Bans
from cache.bounded import Bounded, Policy, Removal
from cache.keys import Address
from cache.record import Record
from cache.sweep import Gone, sweep
from inference.models.base import Tensors


@dataclass(frozen=True, slots=True)
class Hot:
    """An output on the device, and what is known of it. Its tensors are read by many runs and changed by none."""

    tensors: Tensors
    weight: int  # bytes it keeps allocated
    record: Record


class Pool:
    """See the module."""

    def __init__(
        self,
        *,
        max_bytes: int,
        max_entries: int | None = None,
        max_weight: int | None = None,
        policy: Policy[Address] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._entries: Bounded[Address, Hot] = Bounded(
            max_bytes=max_bytes, max_entries=max_entries, max_weight=max_weight, policy=policy
        )
        self._clock = clock

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        return self._entries.bytes

    @property
    def evictions(self) -> int:
        """Entries that left for want of room."""
        return self._entries.removals[Removal.SIZE]

    def put(self, address: Address, hot: Hot) -> bool:
        """Keep an output; make room by letting go of others. False if there is none, or what is there is worth more."""
        record = hot.record
        return self._entries.put(
            address,
            hot,
            weight=hot.weight,
            now=self._clock(),
            ttl=record.ttl,
            hard_expiry=record.expires_at,
            cost=record.total_device_seconds,
        )

    def peek(self, address: Address) -> Hot | None:
        """The output at an address; nothing is leased, and it gets no younger."""
        return self._entries.peek(address, self._clock())

    def lease(self, address: Address) -> Hot | None:
        """The output at an address, which stays until it is released as often as it was leased."""
        return self._entries.lease(address, self._clock())

    def release(self, address: Address) -> None:
        self._entries.release(address)

    async def let_go(self, bans: Bans) -> Gone:
        """Let go of what is banned. What is leased stays until it is released; whoever leases asks about bans."""
        return await sweep(self._entries, lambda _, hot: bans.forbid(hot.record))

    def clear(self) -> int:
        """Let go of everything that is not leased; the number of bytes that came free."""
        return self._entries.clear()


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
