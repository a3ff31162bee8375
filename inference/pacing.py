"""Pacing: how fast samples are said, without a change of pitch, and at what rate they are taken. By the filters of
ffmpeg: its time stretcher (`atempo`), which needs no model, and its resampler (`aresample`).

What a stretcher makes of an end, and when it gives what, depends on the portions it is fed: at half speed the last of
it may come out otherwise, or not at all. So samples go in as blocks of one size, and after the last comes silence
instead of an end: what comes out follows from what went in, whatever the portions. As much comes out as the arithmetic
says, to the sample: n samples become the number nearest to n * sample_rate / (rate * speed). Equal samples give equal
bits on one host; across hosts nothing is promised, as the filters choose their code by the processor.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, TypeAlias

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph

from cache.encoding import Value

CODE_VERSION = 1  # of everything here that shapes samples

Samples: TypeAlias = npt.NDArray[Any]  # int16 or float32 [n]

_BLOCK = 2048  # samples
_PATIENCE = 64  # blocks of silence after which every filter has given all it had: far more than its windows hold
# Said in full, so that another default of the library changes nothing. Twice the usual length of filter.
_RESAMPLER = "filter_size=64:phase_shift=10:cutoff=0.97:exact_rational=1"
_FORMATS = {np.dtype(np.int16): "s16", np.dtype(np.float32): "flt"}


class Pace:
    """Takes samples in any portions and gives them at another speed and rate, as soon as it can. `rate` and
    `sample_rate` are samples per second, `speed` is in 0.5..2: 2 is twice as fast. With nothing to change it gives what
    it is given.
    """

    def __init__(self, rate: int, *, speed: float = 1.0, sample_rate: int, dtype: npt.DTypeLike = np.int16) -> None:
        self._dtype = np.dtype(dtype)
        self._ratio = sample_rate / (rate * speed)
        self._chain = None if speed == 1.0 and rate == sample_rate else _Chain(rate, speed, sample_rate, self._dtype)
        self._waiting = self._none()  # has not gone in: less than a block
        self._ready = self._none()  # has come out and is not given yet
        self._taken = self._given = 0

    def feed(self, samples: Samples) -> Samples:
        """What can be given by now: samples [n], 0 or more of them."""
        self._taken += len(samples)
        if self._chain is None:
            return samples
        self._waiting = np.concatenate([self._waiting, samples])
        whole = len(self._waiting) // _BLOCK * _BLOCK
        for start in range(0, whole, _BLOCK):
            self._push(self._waiting[start : start + _BLOCK])
        self._waiting = self._waiting[whole:]
        return self._give(self._taken - len(self._waiting))

    def end(self) -> Samples:
        """The rest."""
        if self._chain is None:
            return self._none()
        wanted = round(self._taken * self._ratio) - self._given
        silence = np.zeros(_BLOCK, self._dtype)
        rest = self._waiting
        for _ in range(_PATIENCE):
            if len(self._ready) >= wanted:
                return self._give(self._taken)
            self._push(np.concatenate([rest, silence])[:_BLOCK])
            rest = self._none()
        raise RuntimeError("the filters keep what they were given")

    def _push(self, block: Samples) -> None:
        if self._chain is not None:
            self._ready = np.concatenate([self._ready, *self._chain.push(block)])

    def _give(self, taken: int) -> Samples:
        """No more than belongs to the `taken` samples that count: the filters may be a little ahead or behind."""
        count = min(len(self._ready), max(round(taken * self._ratio) - self._given, 0))
        given, self._ready = self._ready[:count], self._ready[count:]
        self._given += count
        return given

    def _none(self) -> Samples:
        return np.zeros(0, self._dtype)


class _Chain:
    """Filters in a row, as one thing that takes blocks."""

    def __init__(self, rate: int, speed: float, sample_rate: int, dtype: np.dtype[Any]) -> None:
        self._rate, self._format = rate, _FORMATS[dtype]
        self._graph = Graph()
        self._graph.threads = 1
        contexts = [self._graph.add_abuffer(sample_rate=rate, format=self._format, layout="mono", name="in")]
        if speed != 1.0:
            contexts.append(self._graph.add("atempo", f"tempo={speed!r}"))
        if rate != sample_rate:
            contexts.append(self._graph.add("aresample", f"{sample_rate}:{_RESAMPLER}"))
        contexts.append(self._graph.add("abuffersink"))
        for before, after in pairwise(contexts):
            before.link_to(after)
        self._graph.configure()
        self._pushed = 0

    def push(self, block: Samples) -> list[Samples]:
        frame = av.AudioFrame.from_ndarray(block[np.newaxis], format=self._format, layout="mono")
        frame.sample_rate, frame.pts = self._rate, self._pushed
        self._pushed += len(block)
        self._graph.push(frame)
        pulled: list[Samples] = []
        while True:
            try:
                pulled.append(self._graph.pull().to_ndarray().reshape(-1))
            except av.BlockingIOError:
                return pulled


def resampled(samples: npt.NDArray[np.float32], rate: int, sample_rate: int) -> npt.NDArray[np.float32]:
    """Samples [n] at another rate."""
    pace = Pace(rate, sample_rate=sample_rate, dtype=np.float32)
    given: npt.NDArray[np.float32] = np.concatenate([pace.feed(samples), pace.end()])
    return given


def versions() -> Value:
    """Versions of everything that shapes samples: our code, the binding, and the libraries inside its wheel."""
    libraries: dict[str, Value] = {name: list(numbers) for name, numbers in av.library_versions.items()}
    return {"code": CODE_VERSION, "av": av.__version__, "libraries": libraries}
