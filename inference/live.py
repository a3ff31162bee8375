"""Live: speech that is heard while it is made. Pieces of sentences, as they come, become one sound in the text's order.

Sentences are made one after the other, and each but once: what is said again is said from memory, and what comes before
its turn waits. What is told is cut every quarter of a second, wherever the pieces and the sentences end, so that it is
the same for whoever hears it, now or from the finished file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

BYTES_PER_SAMPLE = 2
_BLOCKS_PER_SECOND = 4


class Live:
    """`order` says which part stands at each place of the text. `tell` hears of samples before these, and of these,
    16-bit little-endian mono. Belongs to the event loop's thread.
    """

    def __init__(self, order: Sequence[int], sample_rate: int, tell: Callable[[int, bytes], None]) -> None:
        self._order = order
        self._tell = tell
        self._last = {part: place for place, part in enumerate(order)}  # where it is said for the last time
        self._heard: dict[int, bytearray] = {}  # of parts that are yet to be said, at least once more
        self._ended: set[int] = set()
        self._place = 0  # whose turn it is
        self._said = 0  # bytes of the part that stands there
        self._block = bytearray()  # not told yet
        self._block_bytes = max(1, sample_rate // _BLOCKS_PER_SECOND) * BYTES_PER_SAMPLE
        self._told = 0  # bytes

    def hear(self, part: int, offset: int, pcm: bytes) -> None:
        """A piece of a part, after `offset` samples of it. What was heard before, because a part is made once more, is
        not heard again. Raises ValueError for a piece that leaves a gap.
        """
        heard = self._heard.setdefault(part, bytearray())
        known = len(heard) - offset * BYTES_PER_SAMPLE
        if known < 0:
            raise ValueError("a piece before this one is missing")
        heard += pcm[known:]
        self._say()

    def end(self, part: int) -> None:
        """All of a part has been heard."""
        self._ended.add(part)
        self._say()

    def _say(self) -> None:
        while self._place < len(self._order):
            part = self._order[self._place]
            heard = self._heard.get(part, b"")
            self._block += heard[self._said :]
            self._said = len(heard)
            self._tell_blocks()
            if part not in self._ended:
                return
            if self._last[part] == self._place:
                self._heard.pop(part, None)
            self._place, self._said = self._place + 1, 0
        self._tell_blocks(last=True)

    def _tell_blocks(self, *, last: bool = False) -> None:
        while len(self._block) >= self._block_bytes or (last and self._block):
            block = bytes(self._block[: self._block_bytes])
            del self._block[: self._block_bytes]
            self._tell(self._told // BYTES_PER_SAMPLE, block)
            self._told += len(block)
