"""Live sound: pieces of sentences, however they come, are one sound in the text's order, cut the same at every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.live import Live

RATE = 16  # samples per second: blocks of four


@dataclass
class Told:
    """What a listener was told, and what it makes of it."""

    blocks: list[tuple[int, bytes]] = field(default_factory=list)

    def __call__(self, offset: int, pcm: bytes) -> None:
        self.blocks.append((offset, pcm))

    @property
    def sound(self) -> bytes:
        assert [offset for offset, _ in self.blocks] == [
            sum(len(pcm) // 2 for _, pcm in self.blocks[:place]) for place in range(len(self.blocks))
        ]
        return b"".join(pcm for _, pcm in self.blocks)


def sentence(part: int, samples: int) -> bytes:
    """Unlike every other part, and unlike itself at every other sample."""
    return b"".join((part * 1000 + sample).to_bytes(2, "little") for sample in range(samples))


def blocks_of(sound: bytes) -> list[tuple[int, bytes]]:
    return [(start // 2, sound[start : start + 8]) for start in range(0, len(sound), 8)]


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[int], list[bytes]]:
    """Which part stands at each place, and the sound of each part."""
    order: list[int] = []
    for _ in range(draw(st.integers(1, 6))):
        order.append(draw(st.integers(0, max(order, default=-1) + 1)))
    return order, [sentence(part, draw(st.integers(0, 11))) for part in range(max(order) + 1)]


def cut(sound: bytes, data: st.DataObject) -> Iterator[tuple[int, bytes]]:
    """A sound in pieces, each with the samples before it. Some are empty."""
    at = 0
    while at < len(sound):
        size = 2 * data.draw(st.integers(0, 7))
        yield at // 2, sound[at : at + size]
        at += size


@given(texts(), st.data())
def test_pieces_are_one_sound_in_the_texts_order(text: tuple[list[int], list[bytes]], data: st.DataObject) -> None:
    """Whatever the order in which parts are made, however they are cut, and wherever one is begun anew; whole blocks
    of a quarter of a second come at once, and the last may be shorter.
    """
    order, sounds = text
    told = Told()
    live = Live(order, RATE, told)
    for part in data.draw(st.permutations(range(len(sounds)))):
        if data.draw(st.booleans()):  # it failed after some pieces, and begins anew
            begun = data.draw(st.integers(0, len(sounds[part]) // 2))
            for offset, piece in cut(sounds[part][: begun * 2], data):
                live.hear(part, offset, piece)
        for offset, piece in cut(sounds[part], data):
            live.hear(part, offset, piece)
        live.end(part)

    whole = b"".join(sounds[part] for part in order)
    assert whole == told.sound
    assert blocks_of(whole) == told.blocks


@given(texts(), st.data())
def test_nothing_that_could_be_told_is_held_back(text: tuple[list[int], list[bytes]], data: st.DataObject) -> None:
    """After every piece, all whole blocks of what is known without a gap have been told; and no sample more."""
    order, sounds = text
    told = Told()
    live = Live(order, RATE, told)
    heard = [b""] * len(sounds)
    ended: set[int] = set()
    for part in data.draw(st.permutations(range(len(sounds)))):
        for offset, piece in cut(sounds[part], data):
            live.hear(part, offset, piece)
            heard[part] += piece
            assert blocks_told(order, heard, ended) == told.blocks
        live.end(part)
        ended.add(part)
        assert blocks_told(order, heard, ended) == told.blocks


def blocks_told(order: Sequence[int], heard: Sequence[bytes], ended: set[int]) -> list[tuple[int, bytes]]:
    known = b""
    for part in order:
        known += heard[part]
        if part not in ended:
            return blocks_of(known[: len(known) // 8 * 8])
    return blocks_of(known)


def test_a_sentence_said_again_comes_from_memory() -> None:
    """As soon as its turn comes; what comes before its turn waits; and what is said for the last time is let go of."""
    told = Told()
    live = Live([0, 1, 0, 2], RATE, told)
    yes, no, good = sentence(0, 4), sentence(1, 4), sentence(2, 4)
    live.hear(2, 0, good)
    live.end(2)
    assert [] == told.blocks
    live.hear(0, 0, yes)
    live.end(0)
    assert [(0, yes)] == told.blocks
    live.hear(1, 0, no)
    assert [(0, yes), (4, no)] == told.blocks
    live.end(1)
    assert [(0, yes), (4, no), (8, yes), (12, good)] == told.blocks
    assert {} == live._heard


def test_a_missing_piece_is_no_silence() -> None:
    """A piece that leaves a gap is refused: what follows would be other sound than the file's."""
    live = Live([0], RATE, Told())
    live.hear(0, 0, sentence(0, 2))
    with pytest.raises(ValueError, match="missing"):
        live.hear(0, 3, sentence(0, 1))


@pytest.mark.parametrize(("sample_rate", "samples"), [(24_000, 6000), (22_050, 5512), (3, 1)])
def test_blocks_are_a_quarter_of_a_second(sample_rate: int, samples: int) -> None:
    """Of the rate they are at, rounded down; at no rate are they nothing."""
    told = Told()
    live = Live([0], sample_rate, told)
    live.hear(0, 0, bytes(samples * 2 * 2 + 2))
    live.end(0)
    assert [(0, samples * 2), (samples, samples * 2), (2 * samples, 2)] == [
        (offset, len(pcm)) for offset, pcm in told.blocks
    ]
