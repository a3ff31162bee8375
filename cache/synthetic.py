"""Synthetic accesses: streams of requests with the shape that real ones have, for when none were recorded. Seeded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import accumulate, count

from cache.accesses import Access

_KIB, _MIB = 1024, 1024 * 1024
_LINES, _HOT_LINES, _VOICES, _PICTURES = 5_000, 12, 200, 20_000


class _Traffic:
    """Arrivals, `rate` a second on average; things people ask for, each with a size and a cost of its own."""

    def __init__(self, seed: int, rate: float) -> None:
        self._rate = rate
        self.random = random.Random(seed)  # noqa: S311 - a simulation needs no secrecy
        self.now = 0.0
        self._made: dict[str, tuple[int, float]] = {}

    def arrive(self) -> None:
        self.now += self.random.expovariate(self._rate)

    def ask(self, key: str, size: float, spread: float, cost: float, *, fixed: float = 0.0) -> Access:
        """Of a median size in bytes, lognormal; `cost` device seconds at that size and in proportion, and `fixed`."""
        if key not in self._made:
            length = self.random.lognormvariate(0.0, spread)
            self._made[key] = max(1, int(size * length)), fixed + cost * length
        return Access(self.now, key, *self._made[key])

    def line(self, name: str) -> Access:
        """A spoken line: 300 KiB, and 5.2 device seconds, as measured where the reference case runs."""
        return self.ask(f"line {name}", 300 * _KIB, 0.6, 4.2, fixed=1.0)

    def chance(self, share: float) -> bool:
        return self.random.random() < share


class _Zipf:
    """Ranks below `size`, the n-th as often as 1/n to the power of `skew`."""

    def __init__(self, traffic: _Traffic, size: int, skew: float = 1.0) -> None:
        self._random = traffic.random
        self._ranks = range(size)
        self._weights = list(accumulate((rank + 1) ** -skew for rank in self._ranks))

    def draw(self) -> int:
        return self._random.choices(self._ranks, cum_weights=self._weights)[0]


def zipf(seed: int, rate: float) -> Iterator[Access]:
    """Spoken lines, few of them popular."""
    traffic = _Traffic(seed, rate)
    lines = _Zipf(traffic, _LINES)
    while True:
        traffic.arrive()
        yield traffic.line(str(lines.draw()))


def reference(seed: int, rate: float) -> Iterator[Access]:
    """The reference case: 35 % of requests on a dozen lines; the others as in `zipf`."""
    traffic = _Traffic(seed, rate)
    lines = _Zipf(traffic, _LINES)
    while True:
        traffic.arrive()
        hot = traffic.chance(0.35)
        yield traffic.line(str(traffic.random.randrange(_HOT_LINES) if hot else lines.draw()))


def scan(seed: int, rate: float) -> Iterator[Access]:
    """As `zipf`, and 29 % of requests from a batch in which no line comes twice."""
    traffic = _Traffic(seed, rate)
    lines = _Zipf(traffic, _LINES)
    batch = count()
    while True:
        traffic.arrive()
        yield traffic.line(f"of the batch {next(batch)}" if traffic.chance(0.29) else str(lines.draw()))


def bursts(seed: int, rate: float) -> Iterator[Access]:
    """Lines that are all asked for five times within some minutes and never again: frequency says nothing here."""
    traffic = _Traffic(seed, rate)
    names = count()
    current: list[list[int]] = []  # a line, and how often it is still asked for
    while True:
        traffic.arrive()
        if len(current) < 60 and (not current or traffic.chance(0.3)):
            current.append([next(names), 5])
        asked = traffic.random.choice(current)
        asked[1] -= 1
        if not asked[1]:
            current.remove(asked)
        yield traffic.line(str(asked[0]))


def sessions(seed: int, rate: float) -> Iterator[Access]:
    """Finished files: people trying prompts on a picture, lines in popular voices, and batches that are read once."""
    return (access for access, is_result in _sessions(seed, rate) if is_result)


def stages(seed: int, rate: float) -> Iterator[Access]:
    """What the runs of `sessions` need on the device: encodings of pictures and texts, features of voices."""
    return (access for access, is_result in _sessions(seed, rate) if not is_result)


def _sessions(seed: int, rate: float) -> Iterator[tuple[Access, bool]]:
    traffic = _Traffic(seed, rate)
    lines, voices = _Zipf(traffic, 4 * _LINES, 0.9), _Zipf(traffic, _VOICES)
    pictures, batch, prompts = _Zipf(traffic, _PICTURES, 0.6), count(), count()
    open_sessions: list[list[str]] = []  # a picture, and the videos made of it so far
    while True:
        traffic.arrive()
        if not traffic.chance(0.17):
            one_off = traffic.chance(0.36)
            voice = f"voice {voices.draw()}"
            line = traffic.line(f"of the batch {next(batch)}" if one_off else str(lines.draw()))
            yield line, True
            yield traffic.ask(voice, 200 * _KIB, 0.3, 0.15), False
            continue
        if not open_sessions or traffic.chance(0.2):
            open_sessions.append([f"picture {pictures.draw()}"])
        if len(open_sessions) > 50:
            open_sessions.pop(0)
        tries = traffic.random.choice(open_sessions)
        if len(tries) > 1 and traffic.chance(0.35):
            video = traffic.random.choice(tries[1:])  # shown to somebody else, or looked at again
        else:
            video = f"video {next(prompts)} of {tries[0]}"
            tries.append(video)
            yield traffic.ask(tries[0], 80 * _KIB, 0.3, 0.06), False
            yield traffic.ask(f"text {video}", 300 * _KIB, 0.0, 0.02), False
        yield traffic.ask(video, 2 * _MIB, 0.7, 36.0, fixed=4.0), True


SYNTHETIC: dict[str, Callable[[int, float], Iterator[Access]]] = {
    "zipf": zipf,
    "reference": reference,
    "scan": scan,
    "bursts": bursts,
    "sessions": sessions,
    "stages": stages,
}
