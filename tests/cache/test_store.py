"""Store: sealing and unsealing what is large is not the event loop's work."""

import threading
from typing import Any

import pytest

from cache import store
from cache.digest import AT_ONCE
from cache.envelope import seal, unseal
from cache.keys import Key
from tests.cache.helpers import address_of

KEY = Key.of_record(address_of("clip"))


@pytest.mark.parametrize(("size", "beside"), [(1000, False), (AT_ONCE, False), (AT_ONCE + 1, True)])
async def test_large_entries_are_sealed_and_unsealed_beside_the_loop(
    monkeypatch: pytest.MonkeyPatch, size: int, beside: bool
) -> None:
    """From a few milliseconds' work on it is done in another thread, and comes to the same."""
    threads = []

    def noted(work: Any) -> Any:
        def call(*arguments: Any) -> bytes:
            threads.append(threading.current_thread() is not threading.main_thread())
            done: bytes = work(*arguments)
            return done

        return call

    monkeypatch.setattr(store, "seal", noted(seal))
    monkeypatch.setattr(store, "unseal", noted(unseal))
    data = bytes(size)

    sealed = await store.sealed(KEY, data)

    assert seal(KEY, data) == sealed
    assert data == await store.unsealed(KEY, sealed)
    assert [beside, size + 48 > AT_ONCE] == threads
