"""One process that tries inputs on one target: `python -m tests.fuzz.guided TARGET SEED INPUTS CORPUS FINDINGS`.

Where atheris can be had, libFuzzer makes the inputs, guided by the branches of Python code they reach. Elsewhere they
are seeds with random changes, and the output says so. C code below (Pillow, FFmpeg, msgpack, protobuf) guides nothing,
and is tried all the same.

It writes lines to standard output, `JSON`: how it runs, how many inputs so far, and every new finding. An unexpected
exception is kept once for each place it comes from, and the run goes on. What kills the process (a crash, a time-out,
too much memory) libFuzzer writes to FINDINGS, and the exit status says so.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.fuzz.target import GUIDING, MOST_MEMORY, SLOWEST, Target, load

try:
    import atheris as atheris
except ImportError:  # no wheel for this platform
    atheris = None
if os.environ.get("REPRISE_FUZZ_UNGUIDED"):
    atheris = None

_TELL_EVERY = 0.25  # seconds
_HANGS = 20  # seconds that an input may take before the process is killed


def main(name: str, seed: int, inputs: int, corpus: Path, findings: Path) -> None:
    if atheris is None:
        target = load(name)
    else:
        with atheris.instrument_imports(include=list(GUIDING)):
            target = load(name)
    trial = Trial(target, inputs, findings)
    seeds = list(target.seeds())
    _tell(guided=atheris is not None)
    if atheris is None:
        for data in _changed(seeds, seed, target.longest):
            trial.take(data)
    for number, each in enumerate(seeds):
        (corpus / f"seed-{number:03}").write_bytes(each)
    options = {"seed": seed, "max_len": target.longest, "timeout": _HANGS, "rss_limit_mb": _peak() + MOST_MEMORY}
    options |= {"len_control": 0, "reduce_inputs": 0}  # files stay as long as they must be to be taken
    arguments = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, f"-artifact_prefix={findings}/", str(corpus)], trial.take)
    atheris.Fuzz()


def _peak() -> int:
    """MiB that this process is said to have held at most: libFuzzer looks at nothing else. Linux hands down the figure
    of the parent, so a process that a large one started has a high one before its first input.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


class Trial:
    """Tries inputs, counts them, and ends the process after the last one."""

    def __init__(self, target: Target, inputs: int, findings: Path) -> None:
        self._target = target
        self._inputs = inputs
        self._findings = findings
        self._tried = 0
        self._taken = 0
        self._slowest = 0.0
        self._told = 0.0
        self._known: set[str] = set()

    def take(self, data: bytes) -> None:
        began = time.thread_time()
        try:
            self._taken += self._target.take(data)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is a finding
            self._found(_place_of(error), data, "".join(traceback.format_exception(error)))
        spent = time.thread_time() - began
        self._slowest = max(self._slowest, spent)
        if spent > SLOWEST:
            self._found("slow", data, f"{spent:.1f} s of processor time")
        self._tried += 1
        if self._tried == self._inputs or time.monotonic() - self._told > _TELL_EVERY:
            self._told = time.monotonic()
            _tell(tried=self._tried, taken=self._taken, slowest=round(self._slowest, 4))
        if self._tried == self._inputs:
            sys.stderr.flush()
            os._exit(0)

    def _found(self, place: str, data: bytes, told: str) -> None:
        if place in self._known:
            return
        self._known.add(place)
        file = self._findings / f"{self._target.name}-{sha256(data).hexdigest()[:12]}"
        file.write_bytes(data)
        _tell(finding=str(file), place=place, told=told)


def _place_of(error: Exception) -> str:
    """The innermost line of ours that it came through, and what it is."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    return f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"


def _changed(seeds: Sequence[bytes], seed: int, longest: int) -> Iterator[bytes]:
    """The seeds, then changes of them for ever: bytes put in, taken out, written over, and pieces of one in another."""
    yield from seeds
    draw = random.Random(seed)
    while True:
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.randint(1, 4)):
            start, size = draw.randint(0, len(data)), draw.choice((0, 1, 1, 2, 4, draw.randint(0, 64)))
            other = draw.choice(seeds)
            piece = draw.choice(
                (draw.randbytes(size), bytes(size), b"\xff" * size, other[draw.randint(0, len(other)) :][:size])
            )
            data[start : start + draw.choice((0, size, len(piece)))] = piece
        yield bytes(data[:longest])


def _tell(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
