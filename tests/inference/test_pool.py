from __future__ import annotations

import time

import pytest
import torch

from cache.digest import Digest
from cache.keys import Address
from cache.record import Output, Record
from inference.pool import Hot, Pool, compact
from inference.settings import WorkerSection
from inference.worker import pool_of
from tests.inference.scripted_device import Clock


def address(number: int) -> Address:
    return Address("0" * 32, f"{number:064x}")


def hot(number: int, weight: int = 100, *, cost: float = 1.0, ttl: float = 60.0, expires_at: float = 1e12) -> Hot:
    record = Record(
        address=address(number),
        model="m",
        revision="1",
        stage="text",
        fingerprint="f",
        output=Output(Digest.of(b""), "application/vnd.safetensors"),
        device_seconds=1.0,
        total_device_seconds=cost,
        made_at=1000.0,
        touched_at=1000.0,
        ttl=ttl,
        expires_at=expires_at,
    )
    return Hot({"t": torch.zeros(1)}, weight, record)


def freed(pool: Pool) -> int:
    return sum(hot.weight for hot in pool.clear())


def test_the_pool_stays_within_its_bytes() -> None:
    """What was not used for longest goes when room is needed, and is counted."""
    pool = Pool(max_bytes=250, clock=Clock())
    for number in (1, 2, 3):
        assert pool.put(hot(number))
    assert (pool.bytes, len(pool), pool.evictions) == (200, 2, 1)
    assert pool.lease(address(1)) is None
    assert pool.lease(address(2)) is not None


def test_a_leased_entry_stays() -> None:
    """Neither want of room nor emptying the pool takes away what somebody uses."""
    pool = Pool(max_bytes=250, clock=Clock())
    pool.put(hot(1))
    leased = pool.lease(address(1))
    pool.put(hot(2))
    assert pool.put(hot(3))
    assert freed(pool) == 100
    assert pool.lease(address(1)) is leased
    pool.release(address(1))
    pool.release(address(1))
    assert freed(pool) == 100
    assert pool.bytes == 0


def test_a_full_pool_says_so() -> None:
    """Where everything is leased, nothing new comes in and nothing is lost."""
    pool = Pool(max_bytes=150, clock=Clock())
    pool.put(hot(1))
    pool.lease(address(1))
    assert not pool.put(hot(2))
    assert not pool.put(hot(3, weight=1000))
    assert len(pool) == 1


def test_entries_age_like_their_records() -> None:
    """An access starts the TTL again; the hard age does not move."""
    clock = Clock()
    pool = Pool(max_bytes=1000, clock=clock)
    pool.put(hot(1, ttl=60.0, expires_at=1100.0))
    clock.now = 1050.0
    assert pool.lease(address(1)) is not None
    pool.release(address(1))
    clock.now = 1099.0
    assert pool.lease(address(1)) is not None
    pool.release(address(1))
    clock.now = 1100.0
    assert pool.lease(address(1)) is None


def test_a_number_of_entries_can_be_the_bound() -> None:
    """Besides bytes, entries are counted where that is wished."""
    pool = Pool(max_bytes=1000, max_entries=2, clock=Clock())
    for number in (1, 2, 3):
        pool.put(hot(number))
    assert len(pool) == 2


@pytest.mark.parametrize(("policy", "stays"), [("value", 1), ("lru", 2)])
def test_settings_choose_who_leaves_the_pool(policy: str, stays: int) -> None:
    """By device seconds for its bytes, or by last use; and no output takes more than its share."""
    section = WorkerSection.model_validate({"pool_policy": policy, "pool_share": 0.6})
    pool = pool_of(section, 20_000)
    forever = time.time() + 1e6
    assert not pool.put(hot(4, 12_001, cost=99.0, expires_at=forever))
    for number, cost in ((1, 30.0), (2, 0.1), (3, 3.0)):
        assert pool.put(hot(number, 9_000, cost=cost, expires_at=forever))

    assert [stays, 3] == [number for number in (1, 2, 3) if pool.lease(address(number)) is not None]


def test_a_view_is_kept_as_its_own_bytes() -> None:
    """A row of a matrix does not keep the matrix in memory, and strides are made plain."""
    matrix = torch.arange(10_000.0).reshape(100, 100)
    own, weight = compact({"row": matrix[3], "column": matrix[:, 3]})
    assert weight == 2 * 100 * 4
    assert all(tensor.is_contiguous() for tensor in own.values())
    assert torch.equal(own["row"], matrix[3])
    assert torch.equal(own["column"], matrix[:, 3])


def test_a_whole_tensor_is_not_copied() -> None:
    """What has its storage for itself is kept as it is."""
    tensor = torch.arange(100.0)
    own, weight = compact({"t": tensor, "same": tensor})
    assert own["t"].data_ptr() == tensor.data_ptr()
    assert weight == 400
