"""A clock that can be set: the wall clock of one process, by libfaketime, which is loaded into it and reads a file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_LIBRARY = "vendor/libfaketime/src/libfaketime.so.1"
_EVERY = "1"  # seconds of that process, after which the file is read again


class NoClock(Exception):
    """libfaketime is not to be had here."""


@dataclass(frozen=True)
class SetClock:
    """Of every process that is started in its environment. Their other clocks, and the ages of files, stay true."""

    file: Path

    @property
    def environment(self) -> dict[str, str]:
        """Raises NoClock."""
        return {
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_CACHE_DURATION": _EVERY,
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, seconds: float) -> None:
        """So far ahead of the true time, from the next look at the file on."""
        self.file.write_text(f"{seconds:+.0f}\n")


def _library() -> Path:
    """Found without being imported: nothing of it runs in our own process."""
    found = find_spec("libfaketime")
    library = Path(found.origin).parent / _LIBRARY if found and found.origin else None
    if library is None or not library.exists():
        raise NoClock("libfaketime, which comes as a wheel for Linux on x86-64 (the extra dev)")
    return library
