"""Handover: runs that this worker, their home, left to an idle one, and the memory of it that lets equal plans meet.

| a plan comes whose run | result |
|---|---|
| is under way here | it joins, whatever is idle elsewhere |
| was handed over | it is told the same worker, whatever it thinks is idle |
| is new, and the line here is short | it waits here |
| is new, the line is long, and a named worker has less to do | it is told that worker |
| reads a picture that a run before it here is about to encode | it waits until that is done, then as above |
| reads a picture that a run it would have followed is about to encode elsewhere | it goes there or stays |
| comes back, because that worker is gone | the note is forgotten, and it runs here |

A note lasts while any stream that was told of it is open, and a grace longer: for whoever comes back in the meantime.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from cache.keys import Address

K = TypeVar("K", bound=Hashable)


@dataclass(eq=False)
class Note(Generic[K]):
    """That a run is at another worker."""

    key: K
    worker: str  # its address, as the plan named it
    encodings: frozenset[Address] = frozenset()  # of pictures, that the run may be about to make there
    streams: int = 0  # that were told of it and are open
    closed: bool = False  # there were some, and there are none any more
    timer: asyncio.TimerHandle | None = None


class Notes(Generic[K]):
    """The runs that were handed over, by key. `grace` is in seconds."""

    def __init__(self, *, grace: float) -> None:
        self._grace = grace
        self._notes: dict[K, Note[K]] = {}
        self._over = asyncio.Event()

    def __len__(self) -> int:
        return len(self._notes)

    def find(self, key: K) -> Note[K] | None:
        return self._notes.get(key)

    def choose(self, idle: Sequence[str], encodings: Set[Address]) -> tuple[str, int] | None:
        """The worker that a run should go to, and how many runs from here it has. None if it should go to none.

        The first of those that have the fewest; and only where an encoding that this run reads may be made already, if
        there is such a worker.
        """
        under_way = [note for note in self._notes.values() if not note.closed]
        makers = {note.worker for note in under_way if not note.encodings.isdisjoint(encodings)}
        load = Counter(note.worker for note in under_way)
        worker = min((each for each in idle if not makers or each in makers), key=load.__getitem__, default=None)
        return None if worker is None else (worker, load[worker])

    def write(self, key: K, worker: str, encodings: Set[Address] = frozenset()) -> Note[K]:
        """A note for those who follow this run now; it fades like any other if none of them hears of it."""
        self.forget(key)
        note = self._notes[key] = Note(key, worker, frozenset(encodings))
        self._fade_later(note)
        return note

    def forget(self, key: K) -> None:
        if (note := self._notes.pop(key, None)) is not None and note.timer is not None:
            note.timer.cancel()

    @contextmanager
    def telling(self, note: Note[K]) -> Iterator[None]:
        """A stream is told of this note for as long as the block lasts."""
        self._notes.setdefault(note.key, note)  # it may have faded before its first follower heard of it
        if note.timer is not None:
            note.timer.cancel()
        note.streams, note.closed = note.streams + 1, False
        try:
            yield
        finally:
            note.streams -= 1
            if note.streams == 0:
                note.closed = True
                self._fade_later(note)

    async def until_closed(self) -> None:
        """As long as there is somebody to tell: returns when `close` is called."""
        await self._over.wait()

    def close(self) -> None:
        """End all streams that are kept open for a note."""
        self._over.set()

    def _fade_later(self, note: Note[K]) -> None:
        note.timer = asyncio.get_running_loop().call_later(self._grace, self._fade, note)

    def _fade(self, note: Note[K]) -> None:
        if self._notes.get(note.key) is note:
            del self._notes[note.key]
