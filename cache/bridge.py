"""Bridge: lets code that knows no asyncio use the tiers, which live on an event loop of their own in one thread.

Each caller waits for its own call, so there are never more calls under way than there are calling threads. What is not
waited for is bounded by whoever queues it (`write_behind.py`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import TimeoutError as TooLate
from typing import Any, TypeVar

_T = TypeVar("_T")


class Closed(RuntimeError):
    """The bridge was closed; nothing runs on the other side any more."""


class Bridge:
    """An event loop in a thread. Everything that belongs to the loop is made, used and closed through `call`."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._state = threading.Lock()
        self._open = True
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, _T], patience: float | None = None) -> _T:
        """What `work` returns, or raises. After `patience` seconds it is cancelled and TimeoutError is raised.

        Raises Closed, and RuntimeError when called on the bridge's own loop, which could never go on.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("the loop cannot wait for itself")
        with self._state:
            if not self._open:
                work.close()
                raise Closed("closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(patience)
        except TooLate:
            future.cancel()  # nothing happens if it was the work itself that raised TimeoutError
            raise TimeoutError("no answer in time") from None

    def close(self) -> None:
        """Cancel what is still under way, stop the loop and end the thread. May be said twice."""
        with self._state:
            if not self._open:
                return
            self._open = False
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
